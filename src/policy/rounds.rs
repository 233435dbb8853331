//! Rounds of local steps and one exchange of deltas: what `local-sgd`, `post-local-sgd`, `adacomm` and `diloco` share. They
//! differ only in their [`Plan`]: how many local steps the next round has.

use super::{
    Action, ExchangeId, Fragment, Install, MemberReport, Payload, Reason, Update, WorkerEvent, WorkerPolicy,
};

/// How long a round is.
///
/// All ranks must plan alike: a plan goes by what all ranks know, the figures of the exchanges, and by nothing of its own.
pub trait Plan: Send {
    /// The policy's name, as `--mode` takes it.
    fn name(&self) -> &'static str;

    /// Local steps of the present round; 0 counts as 1.
    fn local_steps(&self) -> u64;

    /// A round has ended: `transfer_seconds` are its exchange's, `members` all ranks' figures. Answers why the next round,
    /// number `round`, is as long as it is.
    fn round_ended(&mut self, round: u64, transfer_seconds: f64, members: &[MemberReport]) -> Reason {
        let _ = (transfer_seconds, members);
        Reason::RoundBegins { round }
    }
}

/// Local steps, an exchange of deltas, and again.
///
/// A policy of one's own is a plan:
/// ```
/// use esync::policy::rounds::{Plan, Rounds};
/// use esync::policy::{Action, MemberReport, Reason, WorkerEvent, WorkerPolicy};
///
/// /// Each round is one step longer than the last.
/// struct Growing(u64);
/// impl Plan for Growing {
///     fn name(&self) -> &'static str {
///         "growing"
///     }
///     fn local_steps(&self) -> u64 {
///         self.0
///     }
///     fn round_ended(&mut self, round: u64, _: f64, _: &[MemberReport]) -> Reason {
///         self.0 += 1;
///         Reason::RoundBegins { round }
///     }
/// }
///
/// let mut policy = Rounds::new(Growing(1));
/// policy.next(WorkerEvent::Started { rank: 0, step_seconds: [0.1].into() });
/// let (action, _) = policy.next(WorkerEvent::Stepped { step_seconds: 0.1, samples: 32, loss: 2.3 });
/// assert!(matches!(action, Action::Begin { .. }));
/// ```
#[derive(Debug, Clone)]
pub struct Rounds<P> {
    plan: P,
    round: u64,
    local_steps: u64,
}

impl<P: Plan> Rounds<P> {
    /// A worker that has not begun.
    pub fn new(plan: P) -> Self {
        Rounds { plan, round: 0, local_steps: 0 }
    }

    /// The plan.
    pub fn plan(&self) -> &P {
        &self.plan
    }

    pub(super) fn plan_mut(&mut self) -> &mut P {
        &mut self.plan
    }

    fn stepped(&mut self) -> (Action, Reason) {
        self.local_steps += 1;
        let (local_steps, planned_steps) = (self.local_steps, self.plan.local_steps().max(1));
        if local_steps < planned_steps {
            return (STEP, Reason::PlannedStepsLeft { local_steps, planned_steps });
        }
        let exchange = ExchangeId(self.round);
        let begin = Action::Begin { exchange, fragment: Fragment::Whole, payload: Payload::Delta };
        match planned_steps {
            1 => (begin, Reason::EveryStep),
            _ => (begin, Reason::PlannedStepsDone { local_steps }),
        }
    }
}

const STEP: Action = Action::Step { update: Update::Local };

impl<P: Plan> WorkerPolicy for Rounds<P> {
    fn name(&self) -> &'static str {
        self.plan.name()
    }

    fn next(&mut self, event: WorkerEvent) -> (Action, Reason) {
        let current = ExchangeId(self.round);
        match event {
            WorkerEvent::Started { .. } => (STEP, Reason::Started),
            WorkerEvent::Stepped { .. } => self.stepped(),
            WorkerEvent::Begun { exchange } if exchange == current => {
                let (fragment, install) = (Fragment::Whole, Install::Rebase);
                (Action::Finish { exchange, fragment, install }, Reason::ExchangeBegun)
            }
            WorkerEvent::Finished { exchange, stop: true, .. } if exchange == current => {
                (Action::Stop, Reason::Agreed)
            }
            WorkerEvent::Finished { exchange, transfer_seconds, members, .. } if exchange == current => {
                self.round += 1;
                self.local_steps = 0;
                (STEP, self.plan.round_ended(self.round, transfer_seconds, &members))
            }
            WorkerEvent::StopRequested => (Action::Stop, Reason::StopRequested),
            other => (Action::Stop, Reason::unexpected(&other)),
        }
    }
}

/// What the plans' tests share.
#[cfg(test)]
pub(super) mod script {
    use super::*;
    use crate::policy::LocalSteps;

    /// Runs a policy for `rounds` rounds of equal ranks; `figures` gives each round's loss and seconds for a step. Answers
    /// the local steps of every round and the reasons with which rounds began.
    pub(in crate::policy) fn run(
        policy: &mut dyn WorkerPolicy,
        ranks: usize,
        rounds: u64,
        figures: impl Fn(u64) -> (f64, f64),
    ) -> (Vec<u64>, Vec<String>) {
        let mut event = WorkerEvent::Started { rank: 0, step_seconds: vec![0.1; ranks].into() };
        let (mut steps, mut reasons, mut in_round, mut ended) = (Vec::new(), Vec::new(), 0, false);
        loop {
            let (action, reason) = policy.next(event);
            if std::mem::take(&mut ended) {
                reasons.push(reason.to_string());
            }
            let (loss, step_seconds) = figures(steps.len() as u64);
            event = match action {
                Action::Step { .. } => {
                    in_round += 1;
                    WorkerEvent::Stepped { step_seconds, samples: 8, loss }
                }
                Action::Begin { exchange, .. } => WorkerEvent::Begun { exchange },
                Action::Finish { exchange, install, .. } => {
                    assert_eq!(install, Install::Rebase);
                    let member = |rank| MemberReport {
                        rank,
                        local_steps: LocalSteps(in_round),
                        samples: 8 * in_round,
                        step_seconds,
                        transfer_seconds: 0.0,
                        loss,
                    };
                    let members = (0..ranks).map(member).collect();
                    steps.push(std::mem::take(&mut in_round));
                    ended = true;
                    WorkerEvent::Finished {
                        exchange,
                        transfer_seconds: 0.0,
                        wait_seconds: 0.0,
                        members,
                        stop: exchange.0 + 1 == rounds,
                    }
                }
                Action::Stop => return (steps, reasons),
                other => panic!("{other:?}"),
            };
        }
    }
}
