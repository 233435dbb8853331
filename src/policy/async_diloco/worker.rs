//! A worker's side of asynchronous DiLoCo.

use crate::policy::{
    Action, Fragment, Install, LocalSteps, Payload, Reason, Reply, Update, WorkerEvent, WorkerPolicy,
};

/// As many local steps as the server says, a push, a pull, and again.
///
/// ```
/// use esync::policy::async_diloco::AsyncDilocoWorker;
/// use esync::policy::{Action, LocalSteps, Reply, WorkerEvent, WorkerPolicy};
///
/// let mut policy = AsyncDilocoWorker::new(2);
/// policy.next(WorkerEvent::Started { rank: 0, step_seconds: [0.1, 0.3].into() });
/// let stepped = WorkerEvent::Stepped { step_seconds: 0.1, samples: 32, loss: 2.3 };
/// let (action, reason) = policy.next(stepped.clone());
/// assert!(matches!(action, Action::Step { .. }));
/// assert_eq!(reason.to_string(), "1 of 2 planned local steps are done");
/// assert!(matches!(policy.next(stepped).0, Action::Push { .. }));
/// // A new number of steps instead of parameters: those are asked for.
/// let (action, _) = policy.next(WorkerEvent::Replied(Reply::StepsPerPush(LocalSteps(3))));
/// assert!(matches!(action, Action::Pull { .. }));
/// ```
#[derive(Debug, Clone)]
pub struct AsyncDilocoWorker {
    planned_steps: u64,
    local_steps: u64,
}

impl AsyncDilocoWorker {
    /// A worker whose first window has `local_steps` steps.
    pub fn new(local_steps: u64) -> Self {
        AsyncDilocoWorker { planned_steps: local_steps.max(1), local_steps: 0 }
    }

    fn step(&mut self, reason: Reason) -> (Action, Reason) {
        self.local_steps += 1;
        (Action::Step { update: Update::Local }, reason)
    }
}

impl WorkerPolicy for AsyncDilocoWorker {
    fn name(&self) -> &'static str {
        "async-diloco"
    }

    fn next(&mut self, event: WorkerEvent) -> (Action, Reason) {
        let (local_steps, planned_steps) = (self.local_steps, self.planned_steps);
        match event {
            WorkerEvent::Started { .. } => self.step(Reason::Started),
            WorkerEvent::Stepped { .. } if local_steps < planned_steps => {
                self.step(Reason::PlannedStepsLeft { local_steps, planned_steps })
            }
            WorkerEvent::Stepped { .. } => {
                self.local_steps = 0;
                let push = Action::Push { payload: Payload::Delta, fragment: Fragment::Whole };
                (push, Reason::PlannedStepsDone { local_steps })
            }
            WorkerEvent::Replied(Reply::StepsPerPush(LocalSteps(steps))) => {
                self.planned_steps = steps.max(1);
                (Action::Pull { install: Install::Rebase }, Reason::ServerDecided)
            }
            WorkerEvent::Replied(Reply::Stop) | WorkerEvent::StopRequested => {
                (Action::Stop, Reason::StopRequested)
            }
            WorkerEvent::Replied(Reply::Pull) => {
                (Action::Pull { install: Install::Rebase }, Reason::ServerDecided)
            }
            WorkerEvent::Replied(_) => self.step(Reason::ServerDecided),
            WorkerEvent::Pulled { version } => self.step(Reason::ServerParameters { version }),
            other => (Action::Stop, Reason::unexpected(&other)),
        }
    }
}
