//! A fragment of a group of parameters that lies on a GPU: anchor, velocity and what travels lie there too.
//!
//! The arithmetic is [`Replica`]'s and [`OuterOptimiser`]'s, by kernels that give the same bits. Everything is put into the
//! default stream, in which libtorch works, so that it comes after the steps before and before the steps after.

use super::ExchangeOptions;
use super::fragments::Ranges;
use super::state::travelling;
use crate::collective::{Communicator, Feedback};
use crate::device::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu};
use crate::error::{Error, Result};
use crate::policy::{Begun, Install, Outer, OuterOptimiser, Replica};
use crate::reduce::cuda::{AnchorStep, Kernels, Launch, OuterUpdate, ParameterStep};
use crate::reduce::{ElementType, Operator};
use cudarc::driver::CudaStream;
use std::sync::Arc;

/// Only models of f32 are trained on GPUs.
const ELEMENT: ElementType = ElementType::F32;

pub(super) struct GpuState {
    ranges: Ranges,
    /// Whether that is the whole group, so that nothing has to be copied together.
    is_whole: bool,
    gathered: DeviceBuffer<f32>,
    anchor: DeviceBuffer<f32>,
    /// Parameters when the running exchange began, if it overlaps with steps. Allocated by the first such exchange.
    submitted: Option<DeviceBuffer<f32>>,
    /// Of Nesterov's momentum. Allocated by the first exchange.
    velocity: Option<DeviceBuffer<f32>>,
    /// For swapping. Allocated by the first swap.
    swapped: Option<DeviceBuffer<f32>>,
    /// Which exchange may begin and end when: a replica of no elements keeps the rules.
    rules: Replica<f32>,
    outer: Outer,
    learning_rate: f64,
    /// The exchange that was begun, and the steps before it.
    begun: Option<(Begun, u64)>,
    steps: u64,
    on: Queue,
    pub(super) load: Option<GpuValues>,
}

/// What travels: the trained part, then the statistics.
pub(in crate::runtime) struct GpuValues {
    values: DeviceBuffer<f32>,
    trainable: usize,
    feedback: Option<Feedback>,
    on: Queue,
}

/// Where kernels are put.
#[derive(Clone)]
struct Queue {
    gpu: Arc<Gpu>,
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
}

impl Queue {
    /// `into = weight · (params − anchor)`, or `weight · params`. `into` may be `params`: each element is read before it is
    /// written.
    fn delta(
        &self,
        into: &DeviceSliceMut<'_, f32>,
        params: DeviceSlice<'_, f32>,
        anchor: Option<DeviceSlice<'_, f32>>,
        weight: f64,
    ) -> Result<()> {
        let lengths = [params.len(), anchor.map_or(into.len(), |anchor| anchor.len())];
        self.check(into.len(), &lengths)?;
        let (to, from, anchor) = (into.address(), params.address(), anchor.map(|anchor| anchor.address()));
        // SAFETY: all have the length that is said; the borrows keep them alive while this is put into the stream, and what
        // frees their memory waits for the stream.
        unsafe { self.kernels.delta(&self.stream, ELEMENT, to, from, anchor, weight, into.len()) }
    }

    fn check(&self, len: usize, others: &[usize]) -> Result<()> {
        match others.iter().find(|&&other| other != len) {
            None => Ok(()),
            Some(other) => {
                Err(Error::Internal(format!("{other} elements on {} for {len} parameters", self.gpu)))
            }
        }
    }
}

impl GpuState {
    pub(super) fn new(
        values: DeviceSliceMut<'_, f32>,
        ranges: Ranges,
        communicator: &Communicator,
        options: &ExchangeOptions,
    ) -> Result<GpuState> {
        let gpu = values.gpu().clone();
        let kernels =
            communicator.kernels().filter(|kernels| Arc::ptr_eq(kernels.gpu(), &gpu)).ok_or_else(|| {
                Error::Usage(format!(
                    "a model on {gpu} needs a communicator whose ranks have agreed on devices"
                ))
            })?;
        let on = Queue { kernels, stream: gpu.default_stream(), gpu };
        let is_whole = ranges.len == values.len();
        let trainable = ranges.trainable;
        let feedback = options.error_feedback.then(Feedback::default);
        let travelling = DeviceBuffer::new(&on.gpu, ranges.len)?;
        let mut state = GpuState {
            is_whole,
            gathered: DeviceBuffer::new(&on.gpu, if is_whole { 0 } else { ranges.len })?,
            anchor: DeviceBuffer::new(&on.gpu, ranges.len)?,
            submitted: None,
            velocity: None,
            swapped: None,
            rules: Replica::new(&[], 0)?,
            outer: options.outer,
            learning_rate: options.global_learning_rate,
            begun: None,
            steps: 0,
            load: Some(GpuValues { values: travelling, trainable, feedback, on: on.clone() }),
            ranges,
            on,
        };
        state.restart(values)?;
        Ok(state)
    }

    /// The anchor begins as these parameters.
    pub(super) fn restart(&mut self, values: DeviceSliceMut<'_, f32>) -> Result<()> {
        (self.rules, self.begun, self.steps, self.velocity) = (Replica::new(&[], 0)?, None, 0, None);
        self.with_values(values, |state, values| {
            state.anchor.as_mut_slice().copy_from_device(values.as_slice())
        })
    }

    pub(super) fn step_taken(&mut self) {
        self.steps += 1;
        self.rules.step_taken();
    }

    /// Runs `body` with this fragment of the group's `values`, which it may change.
    fn with_values<R>(
        &mut self,
        mut values: DeviceSliceMut<'_, f32>,
        body: impl FnOnce(&mut Self, DeviceSliceMut<'_, f32>) -> Result<R>,
    ) -> Result<R> {
        if self.is_whole {
            self.on.check(self.ranges.len, &[values.len()])?;
            return body(self, values);
        }
        let empty = DeviceBuffer::new(&self.on.gpu, 0)?;
        let mut gathered = std::mem::replace(&mut self.gathered, empty);
        let mut start = 0;
        for range in &self.ranges.ranges {
            let mut into = gathered.as_mut_slice().slice(start..start + range.len());
            into.copy_from_device(values.as_slice().slice(range.clone()))?;
            start += range.len();
        }
        let result = body(self, gathered.as_mut_slice());
        let mut start = 0;
        for range in &self.ranges.ranges {
            let from = gathered.as_slice().slice(start..start + range.len());
            values.reborrow().slice(range.clone()).copy_from_device(from)?;
            start += range.len();
        }
        self.gathered = gathered;
        result
    }

    pub(super) fn depart(
        &mut self,
        values: DeviceSliceMut<'_, f32>,
        weight: f64,
        size: usize,
        overlaps: bool,
    ) -> Result<GpuValues> {
        let mut load = self.load.take().ok_or_else(travelling)?;
        let begun = match overlaps {
            true => self.rules.begin_overlapped(&[], weight, size, &mut [])?,
            false => self.rules.begin(&[], weight, size, &mut [])?,
        };
        self.begun = Some((begun, self.steps));
        self.with_values(values, |state, values| {
            let (trainable, params) = (state.ranges.trainable, values.as_slice());
            let anchor = state.anchor.as_slice().slice(0..trainable);
            let into = load.values.as_mut_slice().slice(0..trainable);
            state.on.delta(&into, params.slice(0..trainable), Some(anchor), weight)?;
            load.fill_statistics(params, size)?;
            if overlaps {
                let place = &mut state.submitted;
                let submitted = match place {
                    Some(submitted) => submitted,
                    None => place.insert(DeviceBuffer::new(&state.on.gpu, params.len())?),
                };
                submitted.as_mut_slice().copy_from_device(params)?;
            }
            Ok(())
        })?;
        Ok(load)
    }

    pub(super) fn land(
        &mut self,
        values: DeviceSliceMut<'_, f32>,
        load: GpuValues,
        install: Install,
    ) -> Result<()> {
        let (begun, steps) =
            self.begun.take().ok_or_else(|| Error::Internal("no exchange has begun".into()))?;
        let is_stepped = steps != self.steps;
        self.rules.finish(begun, &mut [], &[], &mut OuterOptimiser::sgd(1.0), install)?;
        if self.outer == Outer::Nesterov && self.velocity.is_none() {
            self.velocity = Some(DeviceBuffer::new(&self.on.gpu, self.ranges.trainable)?);
        }
        let anchor_step = match (self.outer, &self.velocity) {
            (Outer::Nesterov, Some(velocity)) => AnchorStep::Nesterov {
                learning_rate: self.learning_rate,
                momentum: super::OUTER_MOMENTUM,
                velocity: velocity.address(),
            },
            _ => AnchorStep::Sgd { learning_rate: self.learning_rate },
        };
        let parameter_step = match (install, &self.submitted) {
            (Install::Mix { alpha }, _) => ParameterStep::Mix { alpha },
            (Install::Merge, Some(submitted)) if is_stepped => {
                ParameterStep::Merge { submitted: submitted.address() }
            }
            (Install::Merge | Install::Rebase, _) => ParameterStep::Rebase,
        };
        self.with_values(values, |state, values| {
            let trained = 0..state.ranges.trainable;
            state.update(&values, &load, trained.clone(), anchor_step, parameter_step)?;
            let statistics = trained.end..state.ranges.len;
            state.update(&values, &load, statistics, AnchorStep::Replace, parameter_step)
        })?;
        self.load = Some(load);
        Ok(())
    }

    fn update(
        &mut self,
        values: &DeviceSliceMut<'_, f32>,
        load: &GpuValues,
        range: std::ops::Range<usize>,
        anchor_step: AnchorStep,
        parameter_step: ParameterStep,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let params = values.as_slice().slice(range.clone());
        let update = OuterUpdate {
            anchor: self.anchor.as_slice().slice(range.clone()).address(),
            sum: load.values.as_slice().slice(range.clone()).address(),
            // The weights of the deltas make their sum a mean.
            ranks: 1,
            params: params.address(),
            count: range.len(),
            anchor_step,
            parameter_step,
        };
        // SAFETY: all vectors have these elements and are different memory; what was submitted and the velocity are looked at
        // for the trained part only, which begins where they do. They live as long as this state, whose end waits for the
        // stream.
        unsafe { self.on.kernels.outer_update(&self.on.stream, ELEMENT, &update) }
    }

    /// The statistics of an exchange of gradients, into what travels.
    pub(super) fn gather_statistics(&mut self, values: DeviceSliceMut<'_, f32>, size: usize) -> Result<()> {
        let mut load = self.load.take().ok_or_else(travelling)?;
        let result = self.with_values(values, |_, values| load.fill_statistics(values.as_slice(), size));
        self.load = Some(load);
        result
    }

    /// Multiplies a gradient by `weight`, and sums it and the statistics over all ranks.
    pub(super) fn sum_gradient(
        &mut self,
        gradient: DeviceSliceMut<'_, f32>,
        communicator: &mut Communicator,
        weight: f64,
    ) -> Result<()> {
        self.on.delta(&gradient, gradient.as_slice(), None, weight)?;
        communicator.all_reduce_entered_device(gradient, Operator::Sum)?;
        self.load.as_mut().ok_or_else(travelling)?.sum_statistics(communicator)
    }

    /// Puts averaged statistics in place.
    pub(super) fn install_statistics(&mut self, values: DeviceSliceMut<'_, f32>) -> Result<()> {
        let load = self.load.take().ok_or_else(travelling)?;
        let result = self.with_values(values, |state, values| {
            let statistics = state.ranges.trainable..state.ranges.len;
            let mean = load.values.as_slice().slice(statistics.clone());
            state.anchor.as_mut_slice().slice(statistics.clone()).copy_from_device(mean)?;
            values.slice(statistics).copy_from_device(mean)
        });
        self.load = Some(load);
        result
    }

    /// Exchanges parameters and anchor.
    pub(super) fn swap_anchor(&mut self, values: DeviceSliceMut<'_, f32>) -> Result<()> {
        self.with_values(values, |state, mut values| {
            let place = &mut state.swapped;
            let swapped = match place {
                Some(swapped) => swapped,
                None => place.insert(DeviceBuffer::new(&state.on.gpu, values.len())?),
            };
            swapped.as_mut_slice().copy_from_device(values.as_slice())?;
            values.copy_from_device(state.anchor.as_slice())?;
            state.anchor.as_mut_slice().copy_from_device(swapped.as_slice())
        })
    }
}

impl GpuValues {
    fn fill_statistics(&mut self, params: DeviceSlice<'_, f32>, size: usize) -> Result<()> {
        let statistics = self.trainable..self.values.len();
        let into = self.values.as_mut_slice().slice(statistics.clone());
        self.on.delta(&into, params.slice(statistics), None, 1.0 / size.max(1) as f64)
    }

    /// Multiplies the trained part by `weight`.
    pub(super) fn weigh(&mut self, weight: f64) -> Result<()> {
        let trained = self.values.as_mut_slice().slice(0..self.trainable);
        self.on.delta(&trained, trained.as_slice(), None, weight)
    }

    pub(super) fn sum(&mut self, communicator: &mut Communicator) -> Result<()> {
        // As many operations as for a load on the host, with which this one may be summed.
        if let Some(feedback) = &mut self.feedback {
            let trained = self.values.as_mut_slice().slice(0..self.trainable);
            communicator.all_reduce_entered_with_feedback_device(trained, Operator::Sum, feedback)?;
            return self.sum_statistics(communicator);
        }
        if self.values.is_empty() {
            return Ok(());
        }
        if !communicator.options().wire.narrows(ELEMENT) {
            return communicator.all_reduce_entered_device(&mut self.values, Operator::Sum);
        }
        let trained = self.values.as_mut_slice().slice(0..self.trainable);
        communicator.all_reduce_entered_device(trained, Operator::Sum)?;
        self.sum_statistics(communicator)
    }

    fn sum_statistics(&mut self, communicator: &mut Communicator) -> Result<()> {
        let statistics = self.trainable..self.values.len();
        if statistics.is_empty() {
            return Ok(());
        }
        let statistics = self.values.as_mut_slice().slice(statistics);
        communicator.all_reduce_entered_exact_device(statistics, Operator::Sum)
    }
}
