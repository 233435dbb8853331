//! A closed-form model, for tests and measurements of everything around a model.

use super::{Evaluation, Layout, Learner, LearnerState, Sgd, SgdOptions, StepOutcome, share};
use crate::buffer::FlatBuffer;
use crate::data::BatchPosition;
use crate::data::random::{generator, symmetric};
use crate::error::{Error, Result};
use crate::policy::Update;

/// The settings of [`Quadratic`].
#[derive(Debug, Clone, PartialEq)]
pub struct QuadraticOptions {
    /// How many parameters are trained.
    pub dimension: usize,
    /// How many statistics follow them; each is a moving average of one parameter, as in batch normalisation.
    pub statistics: usize,
    /// Makes the curvatures, the minimum, the starting point and, with the rank, the noise.
    pub seed: u64,
    /// This worker.
    pub rank: usize,
    /// How many samples a step counts as. The noise of a larger mini-batch is smaller, as its square root.
    pub batch_size: usize,
    /// The standard deviation of one sample's gradient, in each dimension.
    pub noise: f64,
    /// The local optimiser.
    pub sgd: SgdOptions,
}

/// The noisy quadratic: the loss is `½ Σ aᵢ (wᵢ − mᵢ)²` with curvatures aᵢ from 0.1 to 1, a step sees its gradient with noise.
///
/// All ranks have the same minimum and starting point, and noise of their own. Steps that follow from the same arguments
/// and calls are bit-identical everywhere. In an evaluation each dimension is one test sample, whose loss is
/// `dimension · ½ aᵢ (wᵢ − mᵢ)²`, so that the mean is the loss; nothing is classified, `correct` stays 0.
#[derive(Debug, Clone)]
pub struct Quadratic {
    options: QuadraticOptions,
    layout: Layout,
    curvature: Vec<f32>,
    minimum: Vec<f32>,
    parameters: FlatBuffer<f32>,
    gradient: FlatBuffer<f32>,
    sgd: Sgd,
    steps: u64,
}

/// The weight of the old value in the moving averages.
const STATISTICS_DECAY: f32 = 0.9;

impl Quadratic {
    /// A learner at its starting point.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if the dimension or the batch size is 0.
    pub fn new(options: QuadraticOptions) -> Result<Self> {
        let dimension = options.dimension;
        if dimension == 0 || options.batch_size == 0 {
            return Err(Error::Usage(
                "a quadratic needs at least one dimension and one sample a step".into(),
            ));
        }
        let layout = Layout::new([("w", vec![dimension])], [("average", vec![options.statistics])]);
        let mut rng = generator(b"quadrati", options.seed, 0, 0);
        let curvature = (0..dimension).map(|_| 0.55 + 0.45 * symmetric(&mut rng)).collect();
        let minimum = (0..dimension).map(|_| symmetric(&mut rng)).collect();
        let mut parameters = FlatBuffer::new(layout.len);
        parameters[..dimension].fill_with(|| 2.0 * symmetric(&mut rng));
        let gradient = FlatBuffer::new(dimension);
        let sgd = Sgd::new(options.sgd, dimension);
        Ok(Quadratic { options, layout, curvature, minimum, parameters, gradient, sgd, steps: 0 })
    }

    /// The exact loss of the present parameters.
    pub fn loss(&self) -> f64 {
        let losses = (0..self.options.dimension).map(|index| self.loss_in(index));
        losses.sum()
    }

    /// Where the loss is 0.
    pub fn minimum(&self) -> &[f32] {
        &self.minimum
    }

    fn loss_in(&self, index: usize) -> f64 {
        let distance = f64::from(self.parameters[index]) - f64::from(self.minimum[index]);
        0.5 * f64::from(self.curvature[index]) * distance * distance
    }

    fn update_statistics(&mut self) {
        let (trained, averages) = self.parameters.split_at_mut(self.layout.trainable);
        for (average, value) in averages.iter_mut().zip(trained.iter().cycle()) {
            *average = STATISTICS_DECAY * *average + (1.0 - STATISTICS_DECAY) * value;
        }
    }
}

impl Learner for Quadratic {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn parameters(&mut self) -> &mut [f32] {
        &mut self.parameters
    }

    fn gradient(&mut self) -> &mut [f32] {
        &mut self.gradient
    }

    fn step(&mut self, update: Update) -> Result<StepOutcome> {
        let loss = self.loss();
        // Uniform noise has the bits of its generator everywhere; a normal variate would have those of a logarithm.
        let width = (self.options.noise * (3.0 / self.options.batch_size as f64).sqrt()) as f32;
        let mut rng = generator(b"quadnois", self.options.seed, self.steps, self.options.rank as u64);
        for (index, gradient) in self.gradient.iter_mut().enumerate() {
            let noise = if width == 0.0 { 0.0 } else { width * symmetric(&mut rng) };
            *gradient = self.curvature[index] * (self.parameters[index] - self.minimum[index]) + noise;
        }
        self.steps += 1;
        self.update_statistics();
        if update == Update::Local {
            self.apply_gradient()?;
        }
        Ok(StepOutcome { loss, samples: self.options.batch_size })
    }

    fn apply_gradient(&mut self) -> Result<()> {
        self.sgd.step(&mut self.parameters[..self.layout.trainable], &self.gradient);
        Ok(())
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.sgd.set_learning_rate(learning_rate);
    }

    fn evaluate(&mut self, part: usize, parts: usize) -> Result<Evaluation> {
        let dimension = self.options.dimension;
        let range = share(dimension, part, parts)?;
        let samples = range.len() as u64;
        let loss_sum = range.map(|index| dimension as f64 * self.loss_in(index)).sum();
        Ok(Evaluation { loss_sum, correct: 0, samples })
    }

    /// A quadratic has no samples to set aside: its held-out loss is its exact loss, as one sample.
    fn held_out(&mut self) -> Result<Evaluation> {
        Ok(Evaluation { loss_sum: self.loss(), correct: 0, samples: 1 })
    }

    fn set_batch(&mut self, batch_size: usize, _data_budget: Option<usize>) -> Result<()> {
        if batch_size == 0 {
            return Err(Error::Usage("the batch size is 0; it must be at least 1".into()));
        }
        self.options.batch_size = batch_size;
        Ok(())
    }

    fn save_state(&self) -> Result<LearnerState> {
        Ok(LearnerState {
            parameters: self.parameters.to_vec(),
            gradient: self.gradient.to_vec(),
            optimizer: self.sgd.state().to_vec(),
            position: BatchPosition { epoch: 0, offset: self.steps },
        })
    }

    fn load_state(&mut self, state: &LearnerState) -> Result<()> {
        state.check(&self.layout, self.sgd.state().len())?;
        self.parameters.copy_from_slice(&state.parameters);
        self.gradient.copy_from_slice(&state.gradient);
        self.sgd.state_mut().copy_from_slice(&state.optimizer);
        self.steps = state.position.offset;
        Ok(())
    }
}
