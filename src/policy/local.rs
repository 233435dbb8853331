//! `--mode local`: one worker alone, the sequential reference that every policy is compared with.

use super::{Action, Reason, Update, WorkerEvent, WorkerPolicy};

/// Trains without exchanging anything, until it is told to stop.
///
/// ```
/// use esync::policy::{Action, Update, WorkerEvent, WorkerPolicy, local::LocalWorker};
///
/// let mut policy = LocalWorker;
/// let started = WorkerEvent::Started { rank: 0, step_seconds: [0.1].into() };
/// let (action, reason) = policy.next(started);
/// assert_eq!(action, Action::Step { update: Update::Local });
/// assert_eq!(reason.to_string(), "this worker trains alone");
/// assert_eq!(policy.next(WorkerEvent::StopRequested).0, Action::Stop);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalWorker;

impl WorkerPolicy for LocalWorker {
    fn name(&self) -> &'static str {
        "local"
    }

    fn next(&mut self, event: WorkerEvent) -> (Action, Reason) {
        match event {
            WorkerEvent::Started { .. } | WorkerEvent::Stepped { .. } => {
                (Action::Step { update: Update::Local }, Reason::Alone)
            }
            WorkerEvent::StopRequested => (Action::Stop, Reason::StopRequested),
            other => (Action::Stop, Reason::unexpected(&other)),
        }
    }
}
