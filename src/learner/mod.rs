//! What a worker computes: models, optimisers and losses.
//!
//! The rest of the library meets a model only as [`Learner`]: one flat buffer of parameters, steps, and a share of an evaluation.
//! [`Quadratic`] needs no libtorch and is for tests and measurements of everything around the model.
#![cfg_attr(
    feature = "torch",
    doc = "[`TorchLearner`] trains the networks of [`NETWORK_NAMES`]; [`FlatStore`] is for other people's models."
)]

#[cfg(feature = "torch")]
pub mod flat;
mod layout;
#[cfg(feature = "torch")]
mod memory;
mod model;
#[cfg(feature = "torch")]
pub mod models;
mod quadratic;
mod sgd;
#[cfg(feature = "torch")]
mod torch;
pub mod weights;

#[cfg(feature = "torch")]
pub use flat::{FlatGroupMut, FlatStore};
pub use layout::{Layout, TensorLayout};
#[cfg(feature = "torch")]
pub use memory::Memory;
pub use model::{FlatSlice, Model};
pub use quadratic::{Quadratic, QuadraticOptions};
pub use sgd::{Sgd, SgdOptions};
#[cfg(feature = "torch")]
pub use torch::{TorchLearner, TorchOptions, set_threads};

use crate::data::BatchPosition;
#[cfg(feature = "cuda")]
use crate::device::DeviceSliceMut;
use crate::error::{Error, Result};
use crate::policy::Update;
use serde::{Deserialize, Serialize};
use std::ops::{AddAssign, Range};

/// The networks that come with the library (built with the feature `torch`).
pub const NETWORK_NAMES: [&str; 6] = ["logistic", "mlp", "mlp-bn", "lenet", "lenet-bn", "char-mlp"];

/// What the runtime needs of a model: flat buffers, steps, and a share of an evaluation.
pub trait Learner {
    /// Where each tensor lies in [`parameters`](Learner::parameters). All ranks have the same layout.
    fn layout(&self) -> &Layout;

    /// All parameters, of which the model's tensors are views: first the trainable ones, then statistics such as the
    /// running mean and variance of batch normalisation. A change takes effect in the next step or evaluation. None, for a
    /// learner on a GPU.
    fn parameters(&mut self) -> &mut [f32];

    /// The gradient of the last step: one value for each *trainable* parameter. An exchange may replace it before
    /// [`apply_gradient`](Learner::apply_gradient). None, for a learner on a GPU.
    fn gradient(&mut self) -> &mut [f32];

    /// Whether parameters and gradient lie on a GPU.
    fn is_on_gpu(&self) -> bool {
        false
    }

    /// The parameters of a learner on a GPU.
    #[cfg(feature = "cuda")]
    fn device_parameters(&mut self) -> Option<DeviceSliceMut<'_, f32>> {
        None
    }

    /// The gradient of a learner on a GPU.
    #[cfg(feature = "cuda")]
    fn device_gradient(&mut self) -> Option<DeviceSliceMut<'_, f32>> {
        None
    }

    /// A copy of the parameters, wherever they lie.
    ///
    /// # Errors
    ///
    /// [`Error::Environment`] if a GPU refuses.
    fn parameters_on_host(&mut self) -> Result<Vec<f32>> {
        #[cfg(feature = "cuda")]
        if let Some(parameters) = self.device_parameters() {
            let mut copy = vec![0.0; parameters.len()];
            parameters.as_slice().copy_to(&mut copy)?;
            return Ok(copy);
        }
        Ok(self.parameters().to_vec())
    }

    /// Fetches a mini-batch and computes its loss and gradient, updating the statistics. With [`Update::Local`] the
    /// optimiser then applies the gradient: the same as [`Update::Deferred`] and `apply_gradient`, bit for bit.
    ///
    /// A loss that is not a number is returned, not refused: the runtime decides.
    ///
    /// # Errors
    ///
    /// [`Error::Training`] if the computation fails.
    fn step(&mut self, update: Update) -> Result<StepOutcome>;

    /// Applies the gradient with the local optimiser, once.
    ///
    /// # Errors
    ///
    /// [`Error::Training`] if the computation fails.
    fn apply_gradient(&mut self) -> Result<()>;

    /// Changes the local optimiser's learning rate from the next update on; its other state stays.
    fn set_learning_rate(&mut self, learning_rate: f64);

    /// Measures the loss and accuracy of the present parameters on part `part` (from 0) of `parts` of the test set. The
    /// sums of all parts are those of the whole set. Nothing is changed.
    ///
    /// # Errors
    ///
    /// [`Error::Training`] if the computation fails; [`Error::Internal`] if there is no such part.
    fn evaluate(&mut self, part: usize, parts: usize) -> Result<Evaluation>;

    /// Measures the loss and accuracy of the present parameters on the samples that were set aside of this worker's shard,
    /// always the same ones. Nothing is changed.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if none were set aside.
    fn held_out(&mut self) -> Result<Evaluation>;

    /// From the next step on, mini-batches have `batch_size` samples, and an epoch draws `data_budget` samples of the shard
    /// (all of them with `None`).
    ///
    /// # Errors
    ///
    /// [`Error::Usage`], and nothing is changed, for a size that the model cannot train on.
    fn set_batch(&mut self, batch_size: usize, data_budget: Option<usize>) -> Result<()>;

    /// A copy of everything that steps change: put back with [`load_state`](Learner::load_state), the same steps follow
    /// bit for bit. For the discarded warm-up step, and for checkpoints.
    ///
    /// # Errors
    ///
    /// [`Error::Training`] if it cannot be read.
    fn save_state(&self) -> Result<LearnerState>;

    /// Puts a saved state back, of this learner or of one made with the same arguments.
    ///
    /// # Errors
    ///
    /// [`Error::Training`], and nothing is changed, if the state belongs to another model or partition of the data.
    fn load_state(&mut self, state: &LearnerState) -> Result<()>;
}

/// What one mini-batch gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// The mean loss over the mini-batch, before the update.
    pub loss: f64,
    /// Samples in the mini-batch.
    pub samples: usize,
}

/// Sums over test samples. Parts are put together with `+=`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Evaluation {
    /// The sum of the samples' losses.
    pub loss_sum: f64,
    /// How many were classified rightly.
    pub correct: u64,
    /// How many there were.
    pub samples: u64,
}

impl Evaluation {
    /// The mean loss (NaN without samples).
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.samples as f64
    }

    /// The share that was classified rightly, 0 to 1 (NaN without samples).
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.samples as f64
    }
}

impl AddAssign for Evaluation {
    fn add_assign(&mut self, other: Self) {
        self.loss_sum += other.loss_sum;
        self.correct += other.correct;
        self.samples += other.samples;
    }
}

/// Everything that a learner's steps change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LearnerState {
    /// [`Learner::parameters`].
    pub parameters: Vec<f32>,
    /// [`Learner::gradient`]: it matters between a deferred step and its application.
    pub gradient: Vec<f32>,
    /// The optimiser's: the velocity of [`Sgd`].
    pub optimizer: Vec<f32>,
    /// Which mini-batch comes next.
    pub position: BatchPosition,
}

impl LearnerState {
    /// Whether it fits a learner whose optimiser keeps `optimizer` values.
    fn check(&self, layout: &Layout, optimizer: usize) -> Result<()> {
        let found = (self.parameters.len(), self.gradient.len(), self.optimizer.len());
        let expected = (layout.len, layout.trainable, optimizer);
        if found == expected {
            return Ok(());
        }
        Err(Error::Training(format!(
            "a saved state with {found:?} parameters, gradients and optimiser values cannot be put into a model with \
             {expected:?}: it is another model's"
        )))
    }
}

/// Part `part` of `parts` of `0..len`; lengths differ by at most one.
fn share(len: usize, part: usize, parts: usize) -> Result<Range<usize>> {
    if part >= parts {
        return Err(Error::Internal(format!("part {part} of {parts} of the test set")));
    }
    // In 128 bits, because the product of two lengths may not fit into 64.
    let cut = |part: usize| (len as u128 * part as u128 / parts as u128) as usize;
    Ok(cut(part)..cut(part + 1))
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn shares_cover_everything_once() {
        for (len, parts) in [(0, 1), (0, 3), (1, 3), (360, 7), (2000, 8), (5, 5)] {
            let mut next = 0;
            for part in 0..parts {
                let range = share(len, part, parts).unwrap();
                assert_eq!(range.start, next);
                assert!(range.len().abs_diff(len / parts) <= 1);
                next = range.end;
            }
            assert_eq!(next, len);
        }
        assert!(share(5, 5, 5).is_err());
        assert!(share(5, 0, 0).is_err());
    }
}
