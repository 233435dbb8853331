//! A fragment of one group of parameters: its anchor, its outer optimiser, and what travels.

use super::ExchangeOptions;
use super::fragments::Ranges;
use super::load::{Load, Values};
#[cfg(feature = "cuda")]
use super::on_gpu::GpuState;
use crate::collective::{Communicator, Feedback};
use crate::error::{Error, Result};
use crate::learner::FlatSlice;
use crate::policy::{Begun, Float, Install, OuterOptimiser, Replica};
use half::{bf16, f16};

/// By its element type.
pub(super) enum Group {
    F32(State<f32>),
    F64(State<f64>),
    F16(State<f16>),
    BF16(State<bf16>),
    /// Of `f32`, on a GPU.
    #[cfg(feature = "cuda")]
    Gpu(GpuState),
}

pub(super) struct State<T: Float> {
    ranges: Ranges,
    /// Whether that is the whole group, so that nothing has to be copied together.
    is_whole: bool,
    gathered: Vec<T>,
    pub(super) replica: Replica<T>,
    pub(super) outer: OuterOptimiser<T>,
    begun: Option<Begun>,
    /// What travels; not here while it does.
    pub(super) load: Option<Values<T>>,
}

/// Runs `$body` with `$state` and `$values` of one common type.
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
pub(super) use with_group;

/// What is wrong when a load is used that another thread has.
pub(super) fn travelling() -> Error {
    Error::Internal("an exchange of these parameters has not been finished".into())
}

impl Group {
    pub(super) fn new(
        values: FlatSlice<'_>,
        ranges: Ranges,
        communicator: &Communicator,
        options: &ExchangeOptions,
    ) -> Result<Group> {
        // Only `f32` goes over a narrow wire.
        let feedback = options.error_feedback.then(Feedback::default);
        Ok(match values {
            FlatSlice::F32(values) => {
                Group::F32(State::new(values, ranges, feedback, communicator, options)?)
            }
            FlatSlice::F64(values) => Group::F64(State::new(values, ranges, None, communicator, options)?),
            FlatSlice::F16(values) => Group::F16(State::new(values, ranges, None, communicator, options)?),
            FlatSlice::BF16(values) => Group::BF16(State::new(values, ranges, None, communicator, options)?),
            #[cfg(feature = "cuda")]
            FlatSlice::Gpu(values) => Group::Gpu(GpuState::new(values, ranges, communicator, options)?),
        })
    }

    /// To be called after every step that changed the parameters.
    pub(super) fn step_taken(&mut self) {
        match self {
            Group::F32(state) => state.replica.step_taken(),
            Group::F64(state) => state.replica.step_taken(),
            Group::F16(state) => state.replica.step_taken(),
            Group::BF16(state) => state.replica.step_taken(),
            #[cfg(feature = "cuda")]
            Group::Gpu(state) => state.step_taken(),
        }
    }

    pub(super) fn depart(
        &mut self,
        values: FlatSlice<'_>,
        weight: f64,
        size: usize,
        overlaps: bool,
    ) -> Result<Load> {
        Ok(match (self, values) {
            (Group::F32(state), FlatSlice::F32(values)) => {
                Load::F32(state.depart(values, weight, size, overlaps)?)
            }
            (Group::F64(state), FlatSlice::F64(values)) => {
                Load::F64(state.depart(values, weight, size, overlaps)?)
            }
            (Group::F16(state), FlatSlice::F16(values)) => {
                Load::F16(state.depart(values, weight, size, overlaps)?)
            }
            (Group::BF16(state), FlatSlice::BF16(values)) => {
                Load::BF16(state.depart(values, weight, size, overlaps)?)
            }
            #[cfg(feature = "cuda")]
            (Group::Gpu(state), FlatSlice::Gpu(values)) => {
                Load::Gpu(state.depart(values, weight, size, overlaps)?)
            }
            _ => return Err(Error::Internal("a group of parameters changed its element type".into())),
        })
    }

    pub(super) fn land(&mut self, values: FlatSlice<'_>, load: Load, install: Install) -> Result<()> {
        match (self, values, load) {
            (Group::F32(state), FlatSlice::F32(values), Load::F32(load)) => state.land(values, load, install),
            (Group::F64(state), FlatSlice::F64(values), Load::F64(load)) => state.land(values, load, install),
            (Group::F16(state), FlatSlice::F16(values), Load::F16(load)) => state.land(values, load, install),
            (Group::BF16(state), FlatSlice::BF16(values), Load::BF16(load)) => {
                state.land(values, load, install)
            }
            #[cfg(feature = "cuda")]
            (Group::Gpu(state), FlatSlice::Gpu(values), Load::Gpu(load)) => state.land(values, load, install),
            _ => Err(Error::Internal("a group of parameters changed its element type".into())),
        }
    }
}

impl<T: Float> State<T> {
    fn new(
        values: &[T],
        ranges: Ranges,
        feedback: Option<Feedback>,
        communicator: &Communicator,
        options: &ExchangeOptions,
    ) -> Result<Self> {
        let is_whole = ranges.len == values.len();
        let mut gathered = Vec::new();
        if !is_whole {
            ranges.gather(values, &mut gathered);
        }
        let trainable = ranges.trainable;
        Ok(State {
            replica: Replica::new(if is_whole { values } else { &gathered }, trainable)?,
            outer: options.optimiser(),
            begun: None,
            load: Some(Values { values: communicator.alloc(ranges.len)?, trainable, feedback }),
            ranges,
            is_whole,
            gathered,
        })
    }

    /// Runs `body` with this fragment of the group's `values`, which it may change.
    pub(super) fn with_values<R>(
        &mut self,
        values: &mut [T],
        body: impl FnOnce(&mut Self, &mut [T]) -> Result<R>,
    ) -> Result<R> {
        if self.is_whole {
            return body(self, values);
        }
        let mut gathered = std::mem::take(&mut self.gathered);
        self.ranges.gather(values, &mut gathered);
        let result = body(self, &mut gathered);
        self.ranges.scatter(&gathered, values);
        self.gathered = gathered;
        result
    }

    fn depart(&mut self, values: &mut [T], weight: f64, size: usize, overlaps: bool) -> Result<Values<T>> {
        let mut load = self.load.take().ok_or_else(travelling)?;
        let begun = self.with_values(values, |state, values| match overlaps {
            true => state.replica.begin_overlapped(values, weight, size, &mut load.values),
            false => state.replica.begin(values, weight, size, &mut load.values),
        })?;
        self.begun = Some(begun);
        Ok(load)
    }

    fn land(&mut self, values: &mut [T], load: Values<T>, install: Install) -> Result<()> {
        let begun = self.begun.take().ok_or_else(|| Error::Internal("no exchange has begun".into()))?;
        self.with_values(values, |state, values| {
            state.replica.finish(begun, values, &load.values, &mut state.outer, install)
        })?;
        self.load = Some(load);
        Ok(())
    }
}
