//! One simulated worker: its policy, its learner, and what it is in the middle of.

use super::queue::Nanoseconds;
use super::record::WorkerRecord;
use super::watch::SimPush;
use crate::error::{Error, Result};
use crate::learner::Learner;
use crate::policy::streaming_diloco::FragmentMap;
use crate::policy::{
    Begun, ExchangeId, Fragment, Install, LocalSteps, MemberReport, Outer, OuterOptimiser, Payload, Replica,
    Reply, Smoothed, Update, Versions, WorkerPolicy,
};
use crate::runtime::{Fragments, Ranges};
use crate::transport::Rank;
use std::collections::VecDeque;
use std::sync::Arc;

/// DiLoCo's β (Douillard et al. 2023), as in the runtime.
const OUTER_MOMENTUM: f64 = 0.9;

/// What a worker is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Doing {
    /// It has not begun.
    Nothing,
    /// A mini-batch.
    Step { update: Update, began: Nanoseconds },
    /// Waiting for the result of an exchange.
    Finish { exchange: ExchangeId, install: Install, since: Nanoseconds },
    /// Waiting for a coordinator's reply to a report.
    Report { since: Nanoseconds },
    /// Waiting for the reply to a push.
    Push { since: Nanoseconds },
    /// Waiting for the parameters that it asked for.
    Pull { install: Install, since: Nanoseconds },
    /// Waiting until a coordinator says something.
    Wait { since: Nanoseconds },
    /// Evaluating on held-out data.
    Evaluate { began: Nanoseconds },
    /// It has stopped.
    Stopped,
    /// It has died.
    Dead,
}

/// A part of the parameters with its anchor: all of them, or a fragment.
struct Part {
    ranges: Ranges,
    replica: Replica<f32>,
    outer: OuterOptimiser<f32>,
    begun: Option<Begun>,
    /// What its next delta holds.
    local_steps: u64,
    samples: u64,
}

impl Part {
    fn new(parameters: &[f32], ranges: Ranges, outer: (Outer, f64)) -> Result<Part> {
        let replica = Replica::new(parameters, ranges.trainable)?;
        Ok(Part { ranges, replica, outer: optimiser(outer), begun: None, local_steps: 0, samples: 0 })
    }

    fn is_whole(&self, parameters: &[f32]) -> bool {
        self.ranges.len == parameters.len()
    }
}

/// Parameters on their way from the server.
pub(super) struct Parcel {
    pub(super) parameters: Arc<[f32]>,
    pub(super) version: Versions,
    pub(super) bytes: u64,
}

/// A reply that has arrived.
pub(super) struct Delivery {
    pub(super) reply: Reply,
    pub(super) parcel: Option<Parcel>,
    /// It answers a push.
    pub(super) answers_push: bool,
    /// When its message was sent.
    pub(super) sent: Nanoseconds,
    /// Seconds for which the message and its answer travelled.
    pub(super) travel_seconds: f64,
}

/// The figures since the last exchange or push.
#[derive(Default, Clone, Copy)]
pub(super) struct Round {
    pub(super) local_steps: u64,
    pub(super) samples: u64,
    pub(super) loss_sum: f64,
    pub(super) compute_seconds: f64,
}

impl Round {
    pub(super) fn mean_loss(&self) -> f64 {
        self.loss_sum / self.local_steps.max(1) as f64
    }
}

pub(super) struct Worker {
    pub(super) policy: Box<dyn WorkerPolicy>,
    pub(super) learner: Box<dyn Learner>,
    pub(super) doing: Doing,
    pub(super) record: WorkerRecord,
    pub(super) round: Round,
    pub(super) step_seconds: Smoothed,
    /// Of its last exchange, in seconds.
    pub(super) transfer_seconds: f64,
    /// Its mini-batch, as a multiple of the job's.
    pub(super) batch_factor: f64,
    /// Parts of the parameters, the whole of them first.
    parts: Vec<Part>,
    trainable: usize,
    outer: (Outer, f64),
    /// A fragment's parameters, copied together.
    gathered: Vec<f32>,
    /// Pushes: when the last one was, and which version the anchor came from.
    pub(super) last_push: Nanoseconds,
    pub(super) base: Versions,
    /// A push is on its way or unanswered.
    pub(super) is_push_open: bool,
    /// The last push's figures.
    pub(super) pushed: SimPush,
    pub(super) requested: Option<Begun>,
    pub(super) inbox: VecDeque<Delivery>,
    pub(super) parcel: Option<Parcel>,
    /// Exchanges that it has begun and not finished.
    pub(super) open: Vec<ExchangeId>,
}

impl Worker {
    pub(super) fn new(
        policy: Box<dyn WorkerPolicy>,
        mut learner: Box<dyn Learner>,
        outer: (Outer, f64),
        warm_up_seconds: f64,
    ) -> Result<Worker> {
        let trainable = learner.layout().trainable;
        let ranges = Ranges::whole(learner.layout().len, trainable);
        let whole = Part::new(learner.parameters(), ranges, outer)?;
        Ok(Worker {
            policy,
            learner,
            doing: Doing::Nothing,
            record: WorkerRecord::default(),
            round: Round::default(),
            step_seconds: Smoothed::new(warm_up_seconds),
            transfer_seconds: 0.0,
            batch_factor: 1.0,
            parts: vec![whole],
            trainable,
            outer,
            gathered: Vec::new(),
            last_push: 0,
            base: Versions(0),
            is_push_open: false,
            pushed: SimPush::default(),
            requested: None,
            inbox: VecDeque::new(),
            parcel: None,
            open: Vec::new(),
        })
    }

    pub(super) fn is_active(&self) -> bool {
        !matches!(self.doing, Doing::Stopped | Doing::Dead)
    }

    /// To be called after every step that changed the parameters.
    pub(super) fn step_taken(&mut self, samples: u64) {
        for part in &mut self.parts {
            part.replica.step_taken();
            part.local_steps += 1;
            part.samples += samples;
        }
    }

    /// The parameters at the last exchange, which all ranks share; with fragments, each fragment's last.
    pub(super) fn anchor(&self) -> Vec<f32> {
        let mut anchor = self.parts[0].replica.anchor().to_vec();
        for part in &self.parts[1..] {
            part.ranges.scatter(part.replica.anchor(), &mut anchor);
        }
        anchor
    }

    /// Closes the round: its figures, and how many steps it had.
    pub(super) fn take_round(&mut self) -> Round {
        let round = std::mem::take(&mut self.round);
        self.record.steps_per_round.push(round.local_steps.try_into().unwrap_or(u32::MAX));
        round
    }

    pub(super) fn member(&self, rank: Rank, round: &Round) -> MemberReport {
        MemberReport {
            rank,
            local_steps: LocalSteps(round.local_steps),
            samples: round.samples,
            step_seconds: self.step_seconds.get(),
            transfer_seconds: self.transfer_seconds,
            loss: round.mean_loss(),
        }
    }

    /// Cuts the parameters into fragments. Where no map is asked for, they are made of layers if there are enough.
    pub(super) fn cut(&mut self, count: u16, map: Option<FragmentMap>) -> Result<()> {
        let layout = self.learner.layout();
        let ranges = |map| Fragments { count, map }.ranges(&layout.tensors, layout.len, layout.trainable);
        let trained =
            |ranges: &[Ranges]| -> Vec<usize> { ranges.iter().map(|part| part.trainable).collect() };
        let map = map.unwrap_or_else(|| match trained(&ranges(FragmentMap::Strided)).contains(&0) {
            true => FragmentMap::Contiguous,
            false => FragmentMap::Strided,
        });
        let ranges = ranges(map);
        Fragments { count, map }.check(&trained(&ranges))?;
        // Nothing was exchanged as a whole, so that the whole's anchor is where training began.
        let Part { local_steps, samples, .. } = self.parts[0];
        for ranges in ranges {
            ranges.gather(self.parts[0].replica.anchor(), &mut self.gathered);
            self.parts.push(Part { local_steps, samples, ..Part::new(&self.gathered, ranges, self.outer)? });
        }
        Ok(())
    }

    /// The place of a fragment's part; fragments that were not cut before are made of layers, if there are enough.
    fn part(&mut self, fragment: Fragment) -> Result<usize> {
        let Fragment::Part { index, count } = fragment else { return Ok(0) };
        if self.parts.len() == 1 {
            self.cut(count, None)?;
        }
        if index >= count || self.parts.len() != usize::from(count) + 1 {
            return Err(Error::Internal(format!("fragment {index} of {count} of the parameters")));
        }
        Ok(usize::from(index) + 1)
    }

    /// What the next delta of these parameters holds: deltas are weighed by it, which for a fragment is more than what was
    /// done since the last exchange.
    pub(super) fn holds(&mut self, fragment: Fragment, member: MemberReport) -> Result<MemberReport> {
        let place = self.part(fragment)?;
        let part = &self.parts[place];
        Ok(match part.local_steps {
            // Gradients leave no delta behind.
            0 => member,
            steps => MemberReport { local_steps: LocalSteps(steps), samples: part.samples, ..member },
        })
    }

    /// Appends what the worker brings to an exchange, not yet weighed, and answers how many elements of it are trained. The
    /// weights are known when all have arrived; in f32, subtracting and weighing give the same bits one after the other.
    pub(super) fn begin_exchange(
        &mut self,
        fragment: Fragment,
        payload: Payload,
        out: &mut Vec<f32>,
    ) -> Result<usize> {
        let place = self.part(fragment)?;
        let part = &mut self.parts[place];
        let trainable = part.replica.trainable();
        let start = out.len();
        out.resize(start + part.ranges.len, 0.0);
        let out = &mut out[start..];
        match payload {
            Payload::Delta => {
                let parameters = match part.is_whole(self.learner.parameters()) {
                    true => self.learner.parameters(),
                    false => {
                        part.ranges.gather(self.learner.parameters(), &mut self.gathered);
                        &mut self.gathered[..]
                    }
                };
                part.begun = Some(part.replica.begin_overlapped(parameters, 1.0, 1, out)?);
                (part.local_steps, part.samples) = (0, 0);
            }
            Payload::Gradient if place == 0 => {
                part.replica.statistics(self.learner.parameters(), 1, out)?;
                out[..trainable].copy_from_slice(self.learner.gradient());
            }
            Payload::Gradient => {
                return Err(Error::Internal("an exchange carries gradients of all parameters".into()));
            }
            Payload::Parameters => {
                return Err(Error::Internal("an exchange carries gradients or deltas".into()));
            }
        }
        Ok(trainable)
    }

    /// Puts the result of an exchange in place.
    pub(super) fn finish_exchange(
        &mut self,
        fragment: Fragment,
        payload: Payload,
        install: Install,
        mean: &[f32],
    ) -> Result<()> {
        let place = self.part(fragment)?;
        let part = &mut self.parts[place];
        match payload {
            Payload::Delta => {
                let Some(begun) = part.begun.take() else {
                    return Err(Error::Internal("an exchange was finished that had not begun".into()));
                };
                let parameters = self.learner.parameters();
                if part.is_whole(parameters) {
                    return part.replica.finish(begun, parameters, mean, &mut part.outer, install);
                }
                part.ranges.gather(parameters, &mut self.gathered);
                part.replica.finish(begun, &mut self.gathered, mean, &mut part.outer, install)?;
                part.ranges.scatter(&self.gathered, parameters);
                Ok(())
            }
            Payload::Gradient | Payload::Parameters => {
                self.learner.gradient().copy_from_slice(&mean[..part.replica.trainable()]);
                part.replica.install_statistics(self.learner.parameters(), mean)?;
                self.learner.apply_gradient()?;
                self.step_taken(0);
                // They leave no delta behind.
                self.parts.iter_mut().for_each(|part| (part.local_steps, part.samples) = (0, 0));
                Ok(())
            }
        }
    }

    /// What a push carries: the trained part, then the statistics by value.
    pub(super) fn take_push(&mut self, payload: Payload, fragment: Fragment) -> Result<Vec<f32>> {
        if fragment != Fragment::Whole {
            return Err(Error::Internal("a parameter server takes pushes of all parameters".into()));
        }
        if self.is_push_open {
            return Err(Error::Internal("a worker pushes again before its last push was answered".into()));
        }
        let replica = &mut self.parts[0].replica;
        let mut values = self.learner.parameters().to_vec();
        match payload {
            Payload::Parameters => {}
            Payload::Delta => replica.take_delta(self.learner.parameters(), &mut values)?,
            Payload::Gradient => values[..self.trainable].copy_from_slice(self.learner.gradient()),
        }
        self.is_push_open = true;
        Ok(values)
    }

    /// To be called before anything leaves for the server that it may answer with parameters.
    pub(super) fn request(&mut self) {
        self.requested = Some(self.parts[0].replica.request());
    }

    /// Puts the server's parameters in place.
    pub(super) fn install(&mut self, parcel: &Parcel, install: Install) -> Result<()> {
        let replica = &mut self.parts[0].replica;
        let requested = self.requested.take().unwrap_or_else(|| replica.request());
        replica.install(requested, self.learner.parameters(), &parcel.parameters, install)?;
        self.base = parcel.version;
        self.record.pulls += 1;
        Ok(())
    }
}

fn optimiser((rule, learning_rate): (Outer, f64)) -> OuterOptimiser<f32> {
    match rule {
        Outer::Sgd => OuterOptimiser::sgd(learning_rate),
        Outer::Nesterov => OuterOptimiser::nesterov(learning_rate, OUTER_MOMENTUM),
    }
}
