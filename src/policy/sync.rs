//! `--mode sync`: synchronous SGD (SSGD, bulk-synchronous parallel). Everybody exchanges gradients after every step, so
//! that every step takes as long as the slowest worker's.

use super::{Action, ExchangeId, Fragment, Install, Payload, Reason, Update, WorkerEvent, WorkerPolicy};

/// One step, one exchange of gradients, and again.
///
/// The mean gradient goes to the local optimiser, which does the same on every rank, so that parameters stay identical
/// without ever being sent.
///
/// ```
/// use esync::policy::{Action, Update, WorkerEvent, WorkerPolicy, sync::SyncWorker};
///
/// let mut policy = SyncWorker::default();
/// let (action, _) = policy.next(WorkerEvent::Started { rank: 0, step_seconds: [0.1, 0.1].into() });
/// assert_eq!(action, Action::Step { update: Update::Deferred });
/// let (action, reason) = policy.next(WorkerEvent::Stepped { step_seconds: 0.1, samples: 32, loss: 2.3 });
/// assert!(matches!(action, Action::Begin { .. }));
/// assert_eq!(reason.to_string(), "this policy exchanges after every step");
/// ```
#[derive(Debug, Clone, Default)]
pub struct SyncWorker {
    round: u64,
    averages_deltas: bool,
}

impl SyncWorker {
    /// The same for loops whose optimiser this library does not call: the local optimiser takes its step, and then the
    /// *deltas* are averaged. With plain SGD that is the same; an optimiser with state (momentum, Adam) builds it from the
    /// worker's own gradients instead of the mean's.
    pub fn averaging_deltas() -> Self {
        SyncWorker { averages_deltas: true, ..SyncWorker::default() }
    }

    fn step(&self) -> Action {
        Action::Step { update: if self.averages_deltas { Update::Local } else { Update::Deferred } }
    }

    fn payload(&self) -> Payload {
        if self.averages_deltas { Payload::Delta } else { Payload::Gradient }
    }
}

impl WorkerPolicy for SyncWorker {
    fn name(&self) -> &'static str {
        "sync"
    }

    fn next(&mut self, event: WorkerEvent) -> (Action, Reason) {
        let exchange = ExchangeId(self.round);
        let fragment = Fragment::Whole;
        match event {
            WorkerEvent::Started { .. } => (self.step(), Reason::Started),
            WorkerEvent::Stepped { .. } => {
                (Action::Begin { exchange, fragment, payload: self.payload() }, Reason::EveryStep)
            }
            WorkerEvent::Begun { exchange: begun } if begun == exchange => {
                (Action::Finish { exchange, fragment, install: Install::Rebase }, Reason::ExchangeBegun)
            }
            WorkerEvent::Finished { exchange: finished, stop, .. } if finished == exchange => {
                if stop {
                    return (Action::Stop, Reason::Agreed);
                }
                self.round += 1;
                (self.step(), Reason::RoundBegins { round: self.round })
            }
            WorkerEvent::StopRequested => (Action::Stop, Reason::StopRequested),
            other => (Action::Stop, Reason::unexpected(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_exchanged_and_a_wrong_answer_ends_it() {
        let mut policy = SyncWorker::default();
        policy.next(WorkerEvent::Started { rank: 0, step_seconds: [1.0].into() });
        for round in 0..3 {
            let (action, _) = policy.next(WorkerEvent::Stepped { step_seconds: 1.0, samples: 1, loss: 1.0 });
            let exchange = ExchangeId(round);
            let (fragment, payload) = (Fragment::Whole, Payload::Gradient);
            assert_eq!(action, Action::Begin { exchange, fragment, payload });
            let (action, _) = policy.next(WorkerEvent::Begun { exchange });
            assert_eq!(action, Action::Finish { exchange, fragment, install: Install::Rebase });
            let (action, _) = policy.next(finished(exchange, false));
            assert_eq!(action, Action::Step { update: Update::Deferred });
        }
        let (action, reason) = policy.next(finished(ExchangeId(7), false));
        assert_eq!(action, Action::Stop);
        assert!(reason.to_string().contains("unexpected Finished"), "{reason}");
    }

    fn finished(exchange: ExchangeId, stop: bool) -> WorkerEvent {
        WorkerEvent::Finished { exchange, transfer_seconds: 0.0, wait_seconds: 0.0, members: [].into(), stop }
    }
}
