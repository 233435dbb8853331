//! What the modes with a parameter server share: a worker that steps, pushes and pulls, and the server's list of who lives.

use super::{
    Action, Directive, Fragment, Install, Payload, PushRule, Reason, Reply, Report, ServerReason, Update,
    Versions, WorkerEvent, WorkerPolicy,
};
use crate::transport::Rank;

/// Some steps, a push, and the server's parameters if it says so: the worker's side of `async`, `dc-asgd`, `ssp`,
/// `bounded-delay`, `easgd` and `r2sp`, whose differences are in what is pushed and in the server's rule.
///
/// ```
/// use esync::policy::{Action, Install, Reply, WorkerEvent, WorkerPolicy, async_sgd};
///
/// let mut policy = async_sgd::worker();
/// policy.next(WorkerEvent::Started { rank: 0, step_seconds: [0.1, 0.3].into() });
/// let (action, _) = policy.next(WorkerEvent::Stepped { step_seconds: 0.1, samples: 32, loss: 2.3 });
/// assert!(matches!(action, Action::Push { .. }));
/// assert_eq!(policy.next(WorkerEvent::Replied(Reply::Pull)).0, Action::Pull { install: Install::Rebase });
/// ```
#[derive(Debug, Clone)]
pub struct PushingWorker {
    name: &'static str,
    update: Update,
    payload: Payload,
    install: Install,
    steps_per_push: u64,
    steps: u64,
}

impl PushingWorker {
    /// Pushes deltas of single steps, and begins again from what it pulls.
    pub(super) fn deltas(name: &'static str) -> Self {
        PushingWorker {
            name,
            update: Update::Local,
            payload: Payload::Delta,
            install: Install::Rebase,
            steps_per_push: 1,
            steps: 0,
        }
    }

    /// Pushes gradients that it has not applied.
    pub(super) fn gradients(name: &'static str) -> Self {
        PushingWorker { update: Update::Deferred, payload: Payload::Gradient, ..PushingWorker::deltas(name) }
    }

    /// Pushes its parameters after so many steps, at least one, and keeps a share `alpha` of them when it pulls.
    pub(super) fn parameters(name: &'static str, steps_per_push: u64, alpha: f64) -> Self {
        PushingWorker {
            payload: Payload::Parameters,
            install: Install::Mix { alpha },
            steps_per_push: steps_per_push.max(1),
            ..PushingWorker::deltas(name)
        }
    }

    pub(super) fn step(&self) -> Action {
        Action::Step { update: self.update }
    }
}

impl WorkerPolicy for PushingWorker {
    fn name(&self) -> &'static str {
        self.name
    }

    fn next(&mut self, event: WorkerEvent) -> (Action, Reason) {
        match event {
            WorkerEvent::Started { .. } => (self.step(), Reason::Started),
            WorkerEvent::Stepped { .. } => {
                self.steps += 1;
                let (local_steps, planned_steps) = (self.steps, self.steps_per_push);
                if local_steps < planned_steps {
                    return (self.step(), Reason::PlannedStepsLeft { local_steps, planned_steps });
                }
                self.steps = 0;
                let reason = match planned_steps {
                    1 => Reason::EveryStep,
                    _ => Reason::PlannedStepsDone { local_steps },
                };
                (Action::Push { payload: self.payload, fragment: Fragment::Whole }, reason)
            }
            WorkerEvent::Replied(Reply::Pull) => {
                (Action::Pull { install: self.install }, Reason::ServerDecided)
            }
            WorkerEvent::Replied(Reply::SetBatch { batch_size, data_budget }) => {
                (Action::SetBatch { batch_size, data_budget }, Reason::ServerDecided)
            }
            WorkerEvent::BatchSet => (Action::Pull { install: self.install }, Reason::BatchSet),
            WorkerEvent::Replied(Reply::Continue | Reply::Train) => (self.step(), Reason::ServerDecided),
            WorkerEvent::Pulled { version } => (self.step(), Reason::ServerParameters { version }),
            WorkerEvent::Replied(Reply::Stop) | WorkerEvent::StopRequested => {
                (Action::Stop, Reason::StopRequested)
            }
            other => (Action::Stop, Reason::unexpected(&other)),
        }
    }
}

/// Who still works, and how many pushes were applied.
#[derive(Debug, Clone)]
pub(super) struct Cluster {
    live: Vec<bool>,
    live_count: usize,
    version: u64,
}

impl Cluster {
    pub(super) fn new(size: usize) -> Self {
        Cluster { live: vec![true; size], live_count: size, version: 0 }
    }

    pub(super) fn is_live(&self, rank: Rank) -> bool {
        self.live.get(rank).copied().unwrap_or(false)
    }

    /// How many still work.
    pub(super) fn live_count(&self) -> usize {
        self.live_count
    }

    /// A worker has left. Answers whether it was there.
    pub(super) fn leave(&mut self, rank: Rank) -> bool {
        let was_live = self.is_live(rank);
        if was_live {
            self.live[rank] = false;
            self.live_count -= 1;
        }
        was_live
    }

    /// Pushes that were applied.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Versions since `base`.
    pub(super) fn staleness(&self, base: Versions) -> Versions {
        Versions(self.version.saturating_sub(base.0))
    }

    /// The directive that applies a push, which is counted.
    pub(super) fn apply(&mut self, from: Rank, rule: PushRule, reason: ServerReason) -> Directive {
        self.version += 1;
        Directive::Apply { from, rule, reason: Reason::Server(reason) }
    }
}

/// Throws away what a worker pushed together with a loss that is no number.
pub(super) fn discard(from: Rank, loss: f64) -> Directive {
    Directive::Apply { from, rule: PushRule::Discard, reason: Reason::NotANumber { loss } }
}

pub(super) fn reply(to: Rank, reply: Reply, reason: ServerReason) -> Directive {
    Directive::Reply { to, reply, reason: Reason::Server(reason) }
}

/// The answer to a report other than a push, where the rule holds nobody.
pub(super) fn answer(from: Rank, report: &Report) -> Vec<Directive> {
    match report {
        Report::PullRequested => vec![reply(from, Reply::Pull, ServerReason::Asked)],
        Report::GlobalLoss { .. } => Vec::new(),
        _ => vec![Directive::Reply { to: from, reply: Reply::Continue, reason: Reason::NothingToDecide }],
    }
}
