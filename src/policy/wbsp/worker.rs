//! The workers' sides of WBSP.

use super::WbspReason;
use crate::policy::{Action, Fragment, Install, Payload, Reason, Reply, Update, WorkerEvent, WorkerPolicy};

const STEP: Action = Action::Step { update: Update::Local };

fn why(reason: WbspReason) -> Reason {
    Reason::Wbsp(reason)
}

/// A step, a push, a pull if the server says so, and again.
///
/// ```
/// use esync::policy::wbsp::WbspWorker;
/// use esync::policy::{Action, Install, Reply, WorkerEvent, WorkerPolicy};
///
/// let mut policy = WbspWorker;
/// policy.next(WorkerEvent::Started { rank: 0, step_seconds: [0.1, 0.3].into() });
/// let (action, _) = policy.next(WorkerEvent::Stepped { step_seconds: 0.1, samples: 32, loss: 2.3 });
/// assert!(matches!(action, Action::Push { .. }));
/// assert!(matches!(policy.next(WorkerEvent::Replied(Reply::Continue)).0, Action::Step { .. }));
/// assert_eq!(policy.next(WorkerEvent::Replied(Reply::Pull)).0, Action::Pull { install: Install::Rebase });
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct WbspWorker;

impl WorkerPolicy for WbspWorker {
    fn name(&self) -> &'static str {
        "wbsp"
    }

    fn next(&mut self, event: WorkerEvent) -> (Action, Reason) {
        match event {
            WorkerEvent::Started { .. } => (STEP, Reason::Started),
            WorkerEvent::Stepped { .. } => {
                let push = Action::Push { payload: Payload::Delta, fragment: Fragment::Whole };
                (push, why(WbspReason::EveryStepIsPushed))
            }
            WorkerEvent::Replied(Reply::Pull) => {
                (Action::Pull { install: Install::Rebase }, Reason::ServerDecided)
            }
            WorkerEvent::Replied(Reply::Stop) | WorkerEvent::StopRequested => {
                (Action::Stop, Reason::StopRequested)
            }
            WorkerEvent::Replied(_) => (STEP, Reason::ServerDecided),
            WorkerEvent::Pulled { version } => (STEP, Reason::ServerParameters { version }),
            other => (Action::Stop, Reason::unexpected(&other)),
        }
    }
}

/// So many steps may be taken while one push travels. Where a step is long beside a transfer, as the paper has it, one is
/// enough to hide it. Where steps are shorter, workers that never waited would train alone and hardly ever push.
const MOST_STEPS_AHEAD: u64 = 4;

/// Steps without a pause, while at most one push travels; a push that travels for longer than four steps is waited for.
///
/// ```
/// use esync::policy::wbsp::WbspOverlapWorker;
/// use esync::policy::{Action, WorkerEvent, WorkerPolicy};
///
/// let mut policy = WbspOverlapWorker::default();
/// policy.next(WorkerEvent::Started { rank: 0, step_seconds: [0.1, 0.3].into() });
/// let stepped = WorkerEvent::Stepped { step_seconds: 0.1, samples: 32, loss: 2.3 };
/// assert!(matches!(policy.next(stepped.clone()).0, Action::BeginPush { .. }));
/// assert!(matches!(policy.next(WorkerEvent::PushBegun).0, Action::Step { .. }));
/// assert_eq!(policy.next(stepped).0, Action::FinishPush { wait: false });
/// let (action, reason) = policy.next(WorkerEvent::NotYet);
/// assert!(matches!(action, Action::Step { .. }));
/// assert_eq!(reason.to_string(), "the push travels while the next step runs");
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct WbspOverlapWorker {
    push_travels: bool,
    steps_ahead: u64,
}

impl WbspOverlapWorker {
    /// There is always a step to push: the one that was just taken.
    fn push(&mut self, reason: WbspReason) -> (Action, Reason) {
        (self.push_travels, self.steps_ahead) = (true, 0);
        (Action::BeginPush { payload: Payload::Delta, fragment: Fragment::Whole }, why(reason))
    }
}

impl WorkerPolicy for WbspOverlapWorker {
    fn name(&self) -> &'static str {
        "wbsp-overlap"
    }

    fn next(&mut self, event: WorkerEvent) -> (Action, Reason) {
        match event {
            WorkerEvent::Started { .. } => (STEP, Reason::Started),
            WorkerEvent::Stepped { .. } if self.push_travels => {
                self.steps_ahead += 1;
                let (local_steps, wait) = (self.steps_ahead, self.steps_ahead >= MOST_STEPS_AHEAD);
                let reason =
                    if wait { WbspReason::TooFarAhead { local_steps } } else { WbspReason::PushTravels };
                (Action::FinishPush { wait }, why(reason))
            }
            WorkerEvent::Stepped { .. } => self.push(WbspReason::EveryStepIsPushed),
            WorkerEvent::PushBegun | WorkerEvent::NotYet => (STEP, why(WbspReason::PushTravels)),
            WorkerEvent::Replied(Reply::Pull) => {
                self.push_travels = false;
                (Action::Pull { install: Install::Merge }, Reason::ServerDecided)
            }
            WorkerEvent::Replied(Reply::Stop) | WorkerEvent::StopRequested => {
                (Action::Stop, Reason::StopRequested)
            }
            WorkerEvent::Replied(_) | WorkerEvent::Pulled { .. } => self.push(WbspReason::PushWhatIsNew),
            other => (Action::Stop, Reason::unexpected(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Replica, Versions};

    fn stepped() -> WorkerEvent {
        WorkerEvent::Stepped { step_seconds: 1.0, samples: 1, loss: 1.0 }
    }

    #[test]
    fn a_worker_pulls_only_when_told_and_stops_when_told() {
        let mut policy = WbspWorker;
        assert_eq!(policy.next(WorkerEvent::Started { rank: 0, step_seconds: [1.0].into() }).0, STEP);
        let (action, reason) = policy.next(WorkerEvent::Pulled { version: Versions(3) });
        assert_eq!(
            (action, reason.to_string().as_str()),
            (STEP, "the server's parameters, version 3, are in place")
        );
        assert_eq!(policy.next(WorkerEvent::Replied(Reply::Stop)).0, Action::Stop);
        assert_eq!(policy.next(WorkerEvent::StopRequested).0, Action::Stop);
        assert!(matches!(policy.next(WorkerEvent::NotYet), (Action::Stop, Reason::Unexpected { .. })));
    }

    #[test]
    fn a_push_that_travels_for_long_is_waited_for() {
        let mut policy = WbspOverlapWorker::default();
        policy.next(WorkerEvent::Started { rank: 0, step_seconds: [1.0].into() });
        assert!(matches!(policy.next(stepped()).0, Action::BeginPush { .. }));
        policy.next(WorkerEvent::PushBegun);
        for ahead in 1..MOST_STEPS_AHEAD {
            assert_eq!(policy.next(stepped()).0, Action::FinishPush { wait: false }, "{ahead} steps ahead");
            policy.next(WorkerEvent::NotYet);
        }
        let (action, reason) = policy.next(stepped());
        assert_eq!(action, Action::FinishPush { wait: true });
        assert!(reason.to_string().starts_with("the push has travelled for 4 steps"), "{reason}");
        assert!(matches!(policy.next(WorkerEvent::Replied(Reply::Continue)).0, Action::BeginPush { .. }));
    }

    /// The driver's part in miniature: every step adds 1, the answers to pushes come `delay` steps late.
    #[test]
    fn no_step_is_lost_and_no_push_is_empty_while_pushes_travel() {
        let mut policy = WbspOverlapWorker::default();
        let (mut parameters, mut delta, mut published) = ([0.0_f64], [0.0], [0.0]);
        let mut replica = Replica::new(&parameters, 1).unwrap();
        let mut event = WorkerEvent::Started { rank: 0, step_seconds: [1.0].into() };
        let (mut steps, mut answered_at) = (0, 0);
        while steps < 40 {
            event = match policy.next(event).0 {
                Action::Step { .. } => {
                    parameters[0] += 1.0;
                    replica.step_taken();
                    steps += 1;
                    stepped()
                }
                Action::BeginPush { .. } => {
                    replica.take_delta(&parameters, &mut delta).unwrap();
                    assert!(delta[0] >= 1.0);
                    published[0] += delta[0];
                    answered_at = steps + steps % 4;
                    WorkerEvent::PushBegun
                }
                Action::FinishPush { wait: false } if steps < answered_at => WorkerEvent::NotYet,
                Action::FinishPush { .. } if steps % 3 == 0 => WorkerEvent::Replied(Reply::Continue),
                Action::FinishPush { .. } => WorkerEvent::Replied(Reply::Pull),
                Action::Pull { install } => {
                    let requested = replica.request();
                    replica.install(requested, &mut parameters, &published, install).unwrap();
                    WorkerEvent::Pulled { version: Versions(0) }
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(parameters[0], steps as f64, "pushed steps and steps in flight");
        }
    }
}
