//! One exchange: weigh, all-reduce, apply.

mod fragments;
mod load;
#[cfg(feature = "cuda")]
mod on_gpu;
mod state;

pub use fragments::Fragments;
pub(crate) use fragments::Ranges;
pub(super) use load::Load;

use crate::collective::Communicator;
use crate::error::{Error, Result};
use crate::learner::{FlatSlice, Model};
use crate::policy::{Float, Fragment, Install, Outer, OuterOptimiser, Replica, Weighting};
use crate::reduce::Operator;
use state::{Group, travelling, with_group};

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
    /// Into which fragments the parameters are cut, for policies that exchange them one by one.
    pub fragments: Option<Fragments>,
    /// Whether what a narrow wire rounds off deltas is made up for in the next exchange.
    pub error_feedback: bool,
}

impl Default for ExchangeOptions {
    fn default() -> Self {
        ExchangeOptions {
            weighting: Weighting::default(),
            outer: Outer::default(),
            global_learning_rate: 1.0,
            shard_samples: Vec::new(),
            fragments: None,
            error_feedback: false,
        }
    }
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

/// The buffers of a model's exchanges: an anchor and a buffer for each fragment and group of parameters.
pub struct Exchange {
    /// One, or a fragment each.
    parts: Vec<Part>,
}

/// One fragment of all groups.
struct Part {
    groups: Vec<Group>,
    /// Elements in all groups.
    count: usize,
    figures: Figures,
}

/// What a fragment's next delta holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Figures {
    pub(super) local_steps: u64,
    pub(super) samples: u64,
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
        let count = options.fragments.map_or(1, |fragments| usize::from(fragments.count));
        let empty = || Part { groups: Vec::new(), count: 0, figures: Figures::default() };
        let mut parts: Vec<Part> = std::iter::repeat_with(empty).take(count).collect();
        let mut trained = vec![0; count];
        for index in 0..model.groups() {
            let trainable = model.trainable(index);
            let len = model.parameters(index).len();
            let ranges = match options.fragments {
                None => vec![Ranges::whole(len, trainable)],
                Some(fragments) => fragments.ranges(model.tensors(index), len, trainable),
            };
            for ((part, ranges), trained) in parts.iter_mut().zip(ranges).zip(&mut trained) {
                *trained += ranges.trainable;
                part.count += ranges.len;
                part.groups.push(Group::new(model.parameters(index), ranges, communicator, options)?);
            }
        }
        if let Some(fragments) = options.fragments {
            fragments.check(&trained)?;
        }
        Ok(Exchange { parts })
    }

    /// For workers that never enter an exchange: nothing is kept.
    pub(super) fn none() -> Exchange {
        Exchange { parts: Vec::new() }
    }

    /// Elements of a fragment in all groups: what the entry rendezvous compares.
    pub(super) fn count(&self, fragment: Fragment) -> Result<usize> {
        Ok(self.parts[self.index(fragment)?].count)
    }

    /// What a fragment's next delta holds.
    pub(super) fn figures(&self, fragment: Fragment) -> Result<Figures> {
        Ok(self.parts[self.index(fragment)?].figures)
    }

    fn index(&self, fragment: Fragment) -> Result<usize> {
        let (index, count) = match fragment {
            Fragment::Whole => (0, 1),
            Fragment::Part { index, count } => (usize::from(index), usize::from(count)),
        };
        if count != self.parts.len() || index >= count {
            let parts = self.parts.len();
            return Err(Error::Internal(format!("{fragment:?} of parameters in {parts} fragments")));
        }
        Ok(index)
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
        for index in 0..model.groups() {
            match model.parameters(index) {
                FlatSlice::F32(values) => communicator.broadcast(values, 0)?,
                FlatSlice::F64(values) => communicator.broadcast(values, 0)?,
                FlatSlice::F16(values) => communicator.broadcast(values, 0)?,
                FlatSlice::BF16(values) => communicator.broadcast(values, 0)?,
                #[cfg(feature = "cuda")]
                FlatSlice::Gpu(values) => communicator.broadcast_device(values, 0)?,
            }
            for part in &mut self.parts {
                #[cfg(feature = "cuda")]
                if let (Group::Gpu(state), FlatSlice::Gpu(values)) =
                    (&mut part.groups[index], model.parameters(index))
                {
                    state.restart(values)?;
                    continue;
                }
                with_group!(&mut part.groups[index], model.parameters(index), |state, values| {
                    let replica = state.with_values(values, |state, values| {
                        Replica::new(values, state.replica.trainable())
                    })?;
                    state.replica = replica;
                    state.outer = options.optimiser();
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// To be called after every step that changed the parameters.
    pub fn step_taken(&mut self, samples: u64) {
        for part in &mut self.parts {
            part.figures.local_steps += 1;
            part.figures.samples += samples;
            for group in &mut part.groups {
                group.step_taken();
            }
        }
    }

    /// Begins: writes the deltas, multiplied by `weight`, into loads that are the caller's until [`land`](Self::land). If the
    /// exchange `overlaps`, steps may be taken meanwhile.
    ///
    /// # Errors
    /// `Internal` if an exchange of these parameters has begun already.
    pub(super) fn depart(
        &mut self,
        model: &mut impl Model,
        fragment: Fragment,
        weight: f64,
        size: usize,
        overlaps: bool,
    ) -> Result<Vec<Load>> {
        let index = self.index(fragment)?;
        let part = &mut self.parts[index];
        part.figures = Figures::default();
        let mut loads = Vec::with_capacity(part.groups.len());
        for (index, group) in part.groups.iter_mut().enumerate() {
            loads.push(group.depart(model.parameters(index), weight, size, overlaps)?);
        }
        Ok(loads)
    }

    /// Ends: puts the sums in place.
    ///
    /// # Errors
    /// `Training` if the result cannot be put in place without losing a step.
    pub(super) fn land(
        &mut self,
        model: &mut impl Model,
        fragment: Fragment,
        loads: Vec<Load>,
        install: Install,
    ) -> Result<()> {
        let index = self.index(fragment)?;
        for (index, (group, load)) in self.parts[index].groups.iter_mut().zip(loads).enumerate() {
            group.land(model.parameters(index), load, install)?;
        }
        Ok(())
    }

    /// All-reduces the model's gradient, multiplied by `weight`, and lets the local optimiser apply it.
    ///
    /// # Errors
    /// Those of the communicator; `Internal` if the model does not show its gradient.
    pub(super) fn run_gradient(
        &mut self,
        model: &mut impl Model,
        communicator: &mut Communicator,
        weight: f64,
    ) -> Result<()> {
        let size = communicator.size();
        let index = self.index(Fragment::Whole)?;
        for (index, group) in self.parts[index].groups.iter_mut().enumerate() {
            #[cfg(feature = "cuda")]
            if let Group::Gpu(state) = group {
                run_gradient_on_gpu(state, model, index, communicator, weight)?;
                continue;
            }
            with_group!(&mut *group, model.parameters(index), |state, values| {
                let load = state.load.as_mut().ok_or_else(travelling)?;
                state.replica.statistics(values, size, &mut load.values)
            })?;
            let Some(gradient) = model.gradient(index) else {
                return Err(Error::Internal("this model does not show its gradient; exchange deltas".into()));
            };
            with_group!(&mut *group, gradient, |state, gradient| {
                scale(gradient, weight);
                communicator.all_reduce_entered(gradient, Operator::Sum)?;
                let load = state.load.as_mut().ok_or_else(travelling)?;
                load::sum_exactly(communicator, &mut load.values[load.trainable..])
            })?;
            with_group!(group, model.parameters(index), |state, values| {
                let load = state.load.as_ref().ok_or_else(travelling)?;
                state.replica.install_statistics(values, &load.values)
            })?;
        }
        model.apply_gradient()?;
        self.step_taken(0);
        // Gradients leave no delta behind.
        self.parts.iter_mut().for_each(|part| part.figures = Figures::default());
        Ok(())
    }

    /// Exchanges the model's parameters and the anchors, which are the same on all ranks. To be called a second time before
    /// anything else: that brings the local parameters back.
    ///
    /// # Errors
    /// `Internal` if the model has changed its shape.
    pub(super) fn swap_anchors(&mut self, model: &mut impl Model) -> Result<()> {
        for part in &mut self.parts {
            for (index, group) in part.groups.iter_mut().enumerate() {
                #[cfg(feature = "cuda")]
                if let (Group::Gpu(state), FlatSlice::Gpu(values)) = (&mut *group, model.parameters(index)) {
                    state.swap_anchor(values)?;
                    continue;
                }
                with_group!(group, model.parameters(index), |state, values| {
                    state.with_values(values, |state, values| state.replica.swap_anchor(values))
                })?;
            }
        }
        Ok(())
    }

    /// Whether there are fragments, so that an exchange leaves other parameters where they were.
    pub(super) fn is_fragmented(&self) -> bool {
        self.parts.len() > 1
    }
}

/// What [`Exchange::run_gradient`] does for a group on a GPU.
#[cfg(feature = "cuda")]
fn run_gradient_on_gpu(
    state: &mut on_gpu::GpuState,
    model: &mut impl Model,
    index: usize,
    communicator: &mut Communicator,
    weight: f64,
) -> Result<()> {
    let changed = || Error::Internal("a group of parameters left its GPU".into());
    let FlatSlice::Gpu(values) = model.parameters(index) else { return Err(changed()) };
    state.gather_statistics(values, communicator.size())?;
    let Some(FlatSlice::Gpu(gradient)) = model.gradient(index) else { return Err(changed()) };
    state.sum_gradient(gradient, communicator, weight)?;
    let FlatSlice::Gpu(values) = model.parameters(index) else { return Err(changed()) };
    state.install_statistics(values)
}

fn scale<T: Float>(values: &mut [T], weight: f64) {
    let weight = T::wide(weight);
    values.iter_mut().for_each(|value| *value = T::narrow(weight * value.widen()));
}
