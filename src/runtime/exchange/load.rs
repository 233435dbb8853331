//! What travels in an exchange: memory that can be handed to another thread and comes back.

#[cfg(feature = "cuda")]
use super::on_gpu::GpuValues;
use crate::collective::{Communicator, Feedback, SharedBuffer};
use crate::error::Result;
use crate::policy::Float;
use crate::reduce::Operator;
use half::{bf16, f16};

/// One group's load, by its element type.
pub(in crate::runtime) enum Load {
    F32(Values<f32>),
    F64(Values<f64>),
    F16(Values<f16>),
    BF16(Values<bf16>),
    #[cfg(feature = "cuda")]
    Gpu(GpuValues),
}

/// The trained part, then the statistics.
pub(in crate::runtime) struct Values<T: Float> {
    pub(super) values: SharedBuffer<T>,
    pub(super) trainable: usize,
    /// Rounding errors that are made up for in the next exchange; only of `f32`.
    pub(super) feedback: Option<Feedback>,
}

impl Load {
    /// Multiplies the trained part by `weight`. Statistics are averaged with equal weights and have theirs already.
    ///
    /// # Errors
    /// `Environment` if a GPU refuses.
    pub(in crate::runtime) fn weigh(&mut self, weight: f64) -> Result<()> {
        match self {
            Load::F32(load) => load.weigh(weight),
            Load::F64(load) => load.weigh(weight),
            Load::F16(load) => load.weigh(weight),
            Load::BF16(load) => load.weigh(weight),
            #[cfg(feature = "cuda")]
            Load::Gpu(load) => return load.weigh(weight),
        }
        Ok(())
    }

    /// Sums it over all ranks. The entry rendezvous was made.
    ///
    /// # Errors
    /// Those of the communicator.
    pub(in crate::runtime) fn sum(&mut self, communicator: &mut Communicator) -> Result<()> {
        match self {
            Load::F32(Values { values, trainable, feedback: Some(feedback) }) => {
                let (trained, statistics) = values.split_at_mut(*trainable);
                communicator.all_reduce_entered_with_feedback(trained, Operator::Sum, feedback)?;
                sum_exactly(communicator, statistics)
            }
            Load::F32(load) => load.sum(communicator),
            Load::F64(load) => load.sum(communicator),
            Load::F16(load) => load.sum(communicator),
            Load::BF16(load) => load.sum(communicator),
            #[cfg(feature = "cuda")]
            Load::Gpu(load) => load.sum(communicator),
        }
    }
}

impl<T: Float> Values<T> {
    fn weigh(&mut self, weight: f64) {
        super::scale(&mut self.values[..self.trainable], weight);
    }

    /// Statistics do not go over a narrow wire: they are few, and beside deltas so large that blocks which hold both would
    /// lose the deltas.
    fn sum(&mut self, communicator: &mut Communicator) -> Result<()> {
        if self.values.is_empty() {
            return Ok(());
        }
        if !communicator.options().wire.narrows(T::TYPE) {
            return communicator.all_reduce_entered(&mut self.values, Operator::Sum);
        }
        let (trained, statistics) = self.values.split_at_mut(self.trainable);
        communicator.all_reduce_entered(trained, Operator::Sum)?;
        sum_exactly(communicator, statistics)
    }
}

pub(super) fn sum_exactly<T: Float>(communicator: &mut Communicator, statistics: &mut [T]) -> Result<()> {
    match statistics {
        [] => Ok(()),
        statistics => communicator.all_reduce_entered_exact(statistics, Operator::Sum),
    }
}
