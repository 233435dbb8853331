//! One simulated worker: its policy, its learner, and what it is in the middle of.

use super::queue::Nanoseconds;
use super::record::WorkerRecord;
use super::watch::SimPush;
use crate::collective::part;
use crate::error::{Error, Result};
use crate::learner::Learner;
use crate::policy::{
    Begun, ExchangeId, Fragment, Install, LocalSteps, MemberReport, Outer, OuterOptimiser, Payload, Replica,
    Reply, Smoothed, Update, Versions, WorkerPolicy,
};
use crate::transport::Rank;
use std::collections::VecDeque;
use std::ops::Range;
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

/// A range of the parameters with its anchor: all of them, or a fragment.
struct Part {
    range: Range<usize>,
    replica: Replica<f32>,
    outer: OuterOptimiser<f32>,
    begun: Option<Begun>,
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
        let replica = Replica::new(learner.parameters(), trainable)?;
        let whole = Part { range: 0..learner.layout().len, replica, outer: optimiser(outer), begun: None };
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
    pub(super) fn step_taken(&mut self) {
        self.parts.iter_mut().for_each(|part| part.replica.step_taken());
    }

    /// The parameters at the last exchange, which all ranks share; with fragments, each fragment's last.
    pub(super) fn anchor(&self) -> Vec<f32> {
        let parts = if self.parts.len() == 1 { &self.parts[..] } else { &self.parts[1..] };
        parts.iter().flat_map(|part| part.replica.anchor()).copied().collect()
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

    /// The place of a fragment's part, made at its first use. Fragments cut the trained part evenly; the statistics travel
    /// with the last.
    fn part(&mut self, fragment: Fragment) -> Result<usize> {
        let Fragment::Part { index, count } = fragment else { return Ok(0) };
        let (index, count) = (usize::from(index), usize::from(count));
        if index >= count || (self.parts.len() > 1 && self.parts.len() != count + 1) {
            return Err(Error::Internal(format!("fragment {index} of {count} of the parameters")));
        }
        if self.parts.len() == 1 {
            // Nothing was exchanged as a whole, so that the whole's anchor is where training began.
            for index in 0..count {
                let mut range = part(self.trainable, count, index);
                let trainable = range.len();
                if index + 1 == count {
                    range.end = self.parts[0].range.end;
                }
                let replica = Replica::new(&self.parts[0].replica.anchor()[range.clone()], trainable)?;
                self.parts.push(Part { range, replica, outer: optimiser(self.outer), begun: None });
            }
        }
        Ok(index + 1)
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
        out.resize(start + part.range.len(), 0.0);
        let out = &mut out[start..];
        match payload {
            Payload::Delta => {
                let parameters = &self.learner.parameters()[part.range.clone()];
                part.begun = Some(part.replica.begin_overlapped(parameters, 1.0, 1, out)?);
            }
            Payload::Gradient => {
                part.replica.statistics(&self.learner.parameters()[part.range.clone()], 1, out)?;
                let range = part.range.start..part.range.start + trainable;
                out[..trainable].copy_from_slice(&self.learner.gradient()[range]);
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
        let Part { range, replica, outer, begun } = &mut self.parts[place];
        match payload {
            Payload::Delta => {
                let Some(begun) = begun.take() else {
                    return Err(Error::Internal("an exchange was finished that had not begun".into()));
                };
                let parameters = &mut self.learner.parameters()[range.clone()];
                replica.finish(begun, parameters, mean, outer, install)
            }
            Payload::Gradient | Payload::Parameters => {
                let trained = range.start..range.start + replica.trainable();
                self.learner.gradient()[trained.clone()].copy_from_slice(&mean[..trained.len()]);
                replica.install_statistics(&mut self.learner.parameters()[range.clone()], mean)?;
                self.learner.apply_gradient();
                self.step_taken();
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
