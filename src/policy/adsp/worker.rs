//! A worker's side of ADSP.

use super::AdspReason;
use crate::policy::{Action, Fragment, Install, Payload, Reason, Reply, Update, WorkerEvent, WorkerPolicy};

/// Steps until the time between two commits is over, a commit, a pull, and again.
///
/// ```
/// use esync::policy::adsp::AdspWorker;
/// use esync::policy::{Action, Reply, WorkerEvent, WorkerPolicy};
///
/// let mut policy = AdspWorker::new(0.25);
/// policy.next(WorkerEvent::Started { rank: 0, step_seconds: [0.1, 0.3].into() });
/// let stepped = WorkerEvent::Stepped { step_seconds: 0.15, samples: 32, loss: 2.3 };
/// assert!(matches!(policy.next(stepped.clone()).0, Action::Step { .. }));
/// let (action, reason) = policy.next(stepped);
/// assert!(matches!(action, Action::Push { .. }));
/// assert_eq!(reason.to_string(), "a commit is due: 0.3000 s of 0.2500 s are over");
/// // A new time between commits instead of parameters: those are asked for.
/// let (action, _) = policy.next(WorkerEvent::Replied(Reply::CommitEvery { seconds: 0.5 }));
/// assert!(matches!(action, Action::Pull { .. }));
/// ```
#[derive(Debug, Clone)]
pub struct AdspWorker {
    budget_seconds: f64,
    computed_seconds: f64,
}

impl AdspWorker {
    /// A worker that first commits after so many seconds of computing.
    pub fn new(budget_seconds: f64) -> Self {
        AdspWorker { budget_seconds, computed_seconds: 0.0 }
    }

    fn stepped(&mut self, step_seconds: f64) -> (Action, Reason) {
        self.computed_seconds += step_seconds.max(0.0);
        let (computed_seconds, budget_seconds) = (self.computed_seconds, self.budget_seconds);
        if computed_seconds < budget_seconds {
            let reason = AdspReason::TimeLeft { computed_seconds, budget_seconds };
            return (Action::Step { update: Update::Local }, Reason::Adsp(reason));
        }
        self.computed_seconds = 0.0;
        let reason = AdspReason::TimeIsOver { computed_seconds, budget_seconds };
        (Action::Push { payload: Payload::Delta, fragment: Fragment::Whole }, Reason::Adsp(reason))
    }
}

impl WorkerPolicy for AdspWorker {
    fn name(&self) -> &'static str {
        "adsp"
    }

    fn next(&mut self, event: WorkerEvent) -> (Action, Reason) {
        let step = Action::Step { update: Update::Local };
        match event {
            WorkerEvent::Started { .. } => (step, Reason::Started),
            WorkerEvent::Stepped { step_seconds, .. } => self.stepped(step_seconds),
            WorkerEvent::Replied(Reply::CommitEvery { seconds }) => {
                self.budget_seconds = seconds;
                (Action::Pull { install: Install::Rebase }, Reason::ServerDecided)
            }
            WorkerEvent::Replied(Reply::Stop) | WorkerEvent::StopRequested => {
                (Action::Stop, Reason::StopRequested)
            }
            WorkerEvent::Replied(Reply::Pull) => {
                (Action::Pull { install: Install::Rebase }, Reason::ServerDecided)
            }
            WorkerEvent::Replied(_) => (step, Reason::ServerDecided),
            WorkerEvent::Pulled { version } => (step, Reason::ServerParameters { version }),
            other => (Action::Stop, Reason::unexpected(&other)),
        }
    }
}
