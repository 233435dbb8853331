//! One exchange: weigh, all-reduce, apply.

use crate::collective::{Communicator, SharedBuffer};
use crate::error::{Error, Result};
use crate::learner::{FlatSlice, Model};
use crate::policy::{Float, Install, Outer, OuterOptimiser, Payload, Replica, Weighting};
use crate::reduce::Operator;
use half::{bf16, f16};

/// The options of an exchange, shared by all policies.
#[derive(Debug, Clone)]
pub struct ExchangeOptions {
    /// How deltas are weighed.
    pub weighting: Weighting,
    /// How their mean is applied.
    pub outer: Outer,
    /// The outer optimiser's learning rate.
    pub global_learning_rate: f64,
    /// Samples of every rank's shard, for the weighting `shard`.
    pub shard_samples: Vec<u64>,
}

impl ExchangeOptions {
    fn optimiser<T: Float>(&self) -> OuterOptimiser<T> {
        match self.outer {
            Outer::Sgd => OuterOptimiser::sgd(self.global_learning_rate),
            Outer::Nesterov => OuterOptimiser::nesterov(self.global_learning_rate, OUTER_MOMENTUM),
        }
    }
}

/// DiLoCo's β (Douillard et al. 2023).
const OUTER_MOMENTUM: f64 = 0.9;

/// The buffers of a model's exchanges: an anchor and a buffer for each group of parameters.
pub struct Exchange {
    groups: Vec<Group>,
    /// Elements in all.
    count: usize,
}

/// One group, by its element type.
enum Group {
    F32(State<f32>),
    F64(State<f64>),
    F16(State<f16>),
    BF16(State<bf16>),
}

struct State<T: Float> {
    replica: Replica<T>,
    outer: OuterOptimiser<T>,
    /// What travels: the trained part, then the statistics.
    buffer: SharedBuffer<T>,
}

/// Runs `$body` with `$state` and `$slice` of one common type.
macro_rules! with_group {
    ($group:expr, $slice:expr, |$state:ident, $values:ident| $body:expr) => {
        match ($group, $slice) {
            (Group::F32($state), FlatSlice::F32($values)) => $body,
            (Group::F64($state), FlatSlice::F64($values)) => $body,
            (Group::F16($state), FlatSlice::F16($values)) => $body,
            (Group::BF16($state), FlatSlice::BF16($values)) => $body,
            _ => Err(Error::Internal("a group of parameters changed its element type".into())),
        }
    };
}

macro_rules! with_state {
    ($group:expr, |$state:ident| $body:expr) => {
        match $group {
            Group::F32($state) => $body,
            Group::F64($state) => $body,
            Group::F16($state) => $body,
            Group::BF16($state) => $body,
        }
    };
}

impl Exchange {
    /// The anchors begin as the model's present parameters.
    ///
    /// # Errors
    /// `Usage` if an option does not fit; `Environment` if there is no memory left.
    pub fn new(
        model: &mut impl Model,
        communicator: &Communicator,
        options: &ExchangeOptions,
    ) -> Result<Exchange> {
        let mut groups = Vec::new();
        let mut count = 0;
        for index in 0..model.groups() {
            let trainable = model.trainable(index);
            groups.push(match model.parameters(index) {
                FlatSlice::F32(values) => Group::F32(State::new(values, trainable, communicator, options)?),
                FlatSlice::F64(values) => Group::F64(State::new(values, trainable, communicator, options)?),
                FlatSlice::F16(values) => Group::F16(State::new(values, trainable, communicator, options)?),
                FlatSlice::BF16(values) => Group::BF16(State::new(values, trainable, communicator, options)?),
            });
            count += with_state!(&groups[index], |state| state.buffer.len());
        }
        Ok(Exchange { groups, count })
    }

    /// Elements in all groups: what the entry rendezvous compares.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Makes all ranks' parameters those of rank 0, and the anchors with them.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn synchronise_start(
        &mut self,
        model: &mut impl Model,
        communicator: &mut Communicator,
        options: &ExchangeOptions,
    ) -> Result<()> {
        for (index, group) in self.groups.iter_mut().enumerate() {
            let trainable = model.trainable(index);
            with_group!(group, model.parameters(index), |state, values| {
                communicator.broadcast(values, 0)?;
                state.replica = Replica::new(values, trainable)?;
                state.outer = options.optimiser();
                Ok(())
            })?;
        }
        Ok(())
    }

    /// To be called after every step that changed the parameters.
    pub fn step_taken(&mut self) {
        for group in &mut self.groups {
            with_state!(group, |state| state.replica.step_taken());
        }
    }

    /// All-reduces what this rank sends, multiplied by `weight`, and puts the result in place. The entry rendezvous was made.
    ///
    /// # Errors
    /// Those of the communicator; `Training` if the result cannot be put in place without losing a step.
    pub fn run(
        &mut self,
        model: &mut impl Model,
        communicator: &mut Communicator,
        payload: Payload,
        weight: f64,
        install: Install,
    ) -> Result<()> {
        match payload {
            Payload::Delta => self.run_delta(model, communicator, weight, install),
            Payload::Gradient => self.run_gradient(model, communicator, weight),
            Payload::Parameters => Err(Error::Internal("an exchange carries gradients or deltas".into())),
        }
    }

    fn run_delta(
        &mut self,
        model: &mut impl Model,
        communicator: &mut Communicator,
        weight: f64,
        install: Install,
    ) -> Result<()> {
        let size = communicator.size();
        for (index, group) in self.groups.iter_mut().enumerate() {
            with_group!(group, model.parameters(index), |state, values| {
                let begun = state.replica.begin(values, weight, size, &mut state.buffer)?;
                state.sum(communicator)?;
                state.replica.finish(begun, values, &state.buffer, &mut state.outer, install)
            })?;
        }
        Ok(())
    }

    fn run_gradient(
        &mut self,
        model: &mut impl Model,
        communicator: &mut Communicator,
        weight: f64,
    ) -> Result<()> {
        let size = communicator.size();
        for (index, group) in self.groups.iter_mut().enumerate() {
            with_group!(&mut *group, model.parameters(index), |state, values| {
                state.replica.statistics(values, size, &mut state.buffer)
            })?;
            let Some(gradient) = model.gradient(index) else {
                return Err(Error::Internal("this model does not show its gradient; exchange deltas".into()));
            };
            with_group!(&mut *group, gradient, |state, gradient| {
                scale(gradient, weight);
                communicator.all_reduce_entered(gradient, Operator::Sum)?;
                state.sum_statistics(communicator)
            })?;
            with_group!(group, model.parameters(index), |state, values| {
                state.replica.install_statistics(values, &state.buffer)
            })?;
        }
        model.apply_gradient();
        self.step_taken();
        Ok(())
    }
}

impl<T: Float> State<T> {
    fn new(
        values: &[T],
        trainable: usize,
        communicator: &Communicator,
        options: &ExchangeOptions,
    ) -> Result<Self> {
        Ok(State {
            replica: Replica::new(values, trainable)?,
            outer: options.optimiser(),
            buffer: communicator.alloc(values.len())?,
        })
    }

    /// Sums the buffer over all ranks. Statistics do not go over a narrow wire: they are few, and beside deltas so large that
    /// blocks which hold both would lose the deltas.
    fn sum(&mut self, communicator: &mut Communicator) -> Result<()> {
        if !communicator.options().wire.narrows(T::TYPE) {
            return communicator.all_reduce_entered(&mut self.buffer, Operator::Sum);
        }
        let trainable = self.replica.trainable();
        communicator.all_reduce_entered(&mut self.buffer[..trainable], Operator::Sum)?;
        self.sum_statistics(communicator)
    }

    fn sum_statistics(&mut self, communicator: &mut Communicator) -> Result<()> {
        match &mut self.buffer[self.replica.trainable()..] {
            [] => Ok(()),
            statistics => communicator.all_reduce_entered_exact(statistics, Operator::Sum),
        }
    }
}

fn scale<T: Float>(values: &mut [T], weight: f64) {
    let weight = T::wide(weight);
    values.iter_mut().for_each(|value| *value = T::narrow(weight * value.widen()));
}
