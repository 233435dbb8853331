//! A worker's side of ESync.

use super::{Planning, Row, Settings, planned_local_steps};
use crate::policy::{
    Action, ExchangeId, Fragment, Install, LocalSteps, MemberReport, Payload, Reason, Reply, Report,
    Smoothed, Update, WorkerEvent, WorkerPolicy,
};
use crate::transport::Rank;

/// What the worker has asked for and not been told yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pending {
    Start,
    Step,
    Reply,
    Begin,
    Finish,
    Nothing,
}

/// Local steps until the state server (or the plan) says to exchange, then the exchange, and again.
///
/// ```
/// use esync::policy::esync::{EsyncWorker, Settings};
/// use esync::policy::{Action, Reply, Update, WorkerEvent, WorkerPolicy};
///
/// let mut policy = EsyncWorker::new(Settings::default());
/// let step = Action::Step { update: Update::Local };
/// assert_eq!(policy.next(WorkerEvent::Started { rank: 0, step_seconds: [0.1, 0.3].into() }).0, step);
/// let (action, reason) = policy.next(WorkerEvent::Stepped { step_seconds: 0.1, samples: 32, loss: 2.3 });
/// assert!(matches!(action, Action::Report(_)));
/// assert_eq!(reason.to_string(), "the state server decides");
/// assert_eq!(policy.next(WorkerEvent::Replied(Reply::Train)).0, step);
/// ```
#[derive(Debug, Clone)]
pub struct EsyncWorker {
    settings: Settings,
    rank: Rank,
    pending: Pending,
    round: u64,
    local_steps: u64,
    planned_steps: u64,
    step_seconds: Smoothed,
    transfer_seconds: Smoothed,
    round_seconds: f64,
    /// What every rank's seconds for a step were in the last rounds; only to plan ahead.
    figures: Vec<Smoothed>,
}

impl EsyncWorker {
    /// A worker that has not begun.
    pub fn new(settings: Settings) -> Self {
        EsyncWorker {
            settings,
            rank: 0,
            pending: Pending::Start,
            round: 0,
            local_steps: 0,
            planned_steps: 1,
            step_seconds: Smoothed::default(),
            transfer_seconds: Smoothed::default(),
            round_seconds: 0.0,
            figures: Vec::new(),
        }
    }

    fn step(&mut self, reason: Reason) -> (Action, Reason) {
        self.pending = Pending::Step;
        (Action::Step { update: Update::Local }, reason)
    }

    fn begin(&mut self, reason: Reason) -> (Action, Reason) {
        self.pending = Pending::Begin;
        let exchange = ExchangeId(self.round);
        (Action::Begin { exchange, fragment: Fragment::Whole, payload: Payload::Delta }, reason)
    }

    fn stop(&mut self, reason: Reason) -> (Action, Reason) {
        self.pending = Pending::Nothing;
        (Action::Stop, reason)
    }

    fn stepped(&mut self, step_seconds: f64) -> (Action, Reason) {
        self.step_seconds.add(step_seconds);
        self.round_seconds += step_seconds;
        self.local_steps += 1;
        let local_steps = self.local_steps;
        match self.settings.planning {
            Planning::StateServer => {
                self.pending = Pending::Reply;
                let report = Report::Stepped {
                    round: self.round,
                    local_steps: LocalSteps(local_steps),
                    step_seconds: self.step_seconds.get(),
                    low_step_seconds: self.step_seconds.low(),
                    transfer_seconds: self.transfer_seconds.get(),
                    round_seconds: self.round_seconds,
                };
                (Action::Report(report), Reason::AskCoordinator)
            }
            Planning::Ahead if local_steps < self.planned_steps => {
                self.step(Reason::PlannedStepsLeft { local_steps, planned_steps: self.planned_steps })
            }
            Planning::Ahead => self.begin(Reason::PlannedStepsDone { local_steps }),
        }
    }

    fn finished(&mut self, transfer_seconds: f64, members: &[MemberReport], stop: bool) -> (Action, Reason) {
        if stop {
            return self.stop(Reason::Agreed);
        }
        self.transfer_seconds.add(transfer_seconds);
        let step_seconds = members.iter().map(|member| (member.rank, member.step_seconds));
        self.plan(step_seconds);
        self.round += 1;
        self.local_steps = 0;
        self.round_seconds = 0.0;
        self.step(Reason::RoundBegins { round: self.round })
    }

    fn plan(&mut self, step_seconds: impl Iterator<Item = (Rank, f64)>) {
        if self.settings.planning == Planning::StateServer {
            return;
        }
        let mut rows = Vec::new();
        for (rank, step_seconds) in step_seconds {
            if rows.len() <= rank {
                rows.resize(rank + 1, Row { gone: true, ..Row::default() });
            }
            if self.figures.len() <= rank {
                self.figures.resize(rank + 1, Smoothed::default());
            }
            self.figures[rank].add(step_seconds);
            rows[rank] = Row {
                low_step_seconds: self.figures[rank].low(),
                transfer_seconds: self.transfer_seconds.get(),
                ..Row::new(step_seconds)
            };
        }
        self.planned_steps = planned_local_steps(&rows, self.rank, &self.settings);
    }
}

impl WorkerPolicy for EsyncWorker {
    fn name(&self) -> &'static str {
        "esync"
    }

    fn next(&mut self, event: WorkerEvent) -> (Action, Reason) {
        let current = ExchangeId(self.round);
        match (self.pending, event) {
            (_, WorkerEvent::StopRequested) => self.stop(Reason::StopRequested),
            (Pending::Start, WorkerEvent::Started { rank, step_seconds }) => {
                self.rank = rank;
                if let Some(&own) = step_seconds.get(rank) {
                    self.step_seconds.add(own);
                }
                self.plan(step_seconds.iter().copied().enumerate());
                self.step(Reason::Started)
            }
            (Pending::Step, WorkerEvent::Stepped { step_seconds, .. }) => self.stepped(step_seconds),
            (Pending::Reply, WorkerEvent::Replied(Reply::Train)) => self.step(Reason::CoordinatorDecided),
            (Pending::Reply, WorkerEvent::Replied(Reply::Synchronize)) => {
                self.begin(Reason::CoordinatorDecided)
            }
            (Pending::Reply, WorkerEvent::Replied(Reply::Stop)) => self.stop(Reason::StopRequested),
            (Pending::Begin, WorkerEvent::Begun { exchange }) if exchange == current => {
                self.pending = Pending::Finish;
                let (fragment, install) = (Fragment::Whole, Install::Rebase);
                (Action::Finish { exchange, fragment, install }, Reason::ExchangeBegun)
            }
            (Pending::Finish, WorkerEvent::Finished { exchange, transfer_seconds, members, stop, .. })
                if exchange == current =>
            {
                self.finished(transfer_seconds, &members, stop)
            }
            (_, other) => self.stop(Reason::unexpected(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stepped(step_seconds: f64) -> WorkerEvent {
        WorkerEvent::Stepped { step_seconds, samples: 8, loss: 1.0 }
    }

    fn finished(exchange: u64, step_seconds: &[f64], stop: bool) -> WorkerEvent {
        let members = step_seconds.iter().enumerate().map(|(rank, &step_seconds)| MemberReport {
            rank,
            local_steps: LocalSteps(1),
            samples: 8,
            step_seconds,
            transfer_seconds: 0.2,
            loss: 1.0,
        });
        let exchange = ExchangeId(exchange);
        WorkerEvent::Finished {
            exchange,
            transfer_seconds: 0.2,
            wait_seconds: 0.0,
            members: members.collect(),
            stop,
        }
    }

    #[test]
    fn a_round_with_the_state_server() {
        let mut policy = EsyncWorker::new(Settings::default());
        let step = Action::Step { update: Update::Local };
        let (exchange, fragment) = (ExchangeId(0), Fragment::Whole);
        assert_eq!(policy.next(WorkerEvent::Started { rank: 1, step_seconds: [9.0, 1.0].into() }).0, step);
        let report = |round, steps, step_seconds, transfer_seconds, round_seconds| {
            Action::Report(Report::Stepped {
                round,
                local_steps: LocalSteps(steps),
                step_seconds,
                low_step_seconds: 1.0,
                transfer_seconds,
                round_seconds,
            })
        };
        assert_eq!(policy.next(stepped(1.5)).0, report(0, 1, 1.0, 0.0, 1.5), "the lower of 1.0 and 1.5");
        assert_eq!(policy.next(WorkerEvent::Replied(Reply::Train)).0, step);
        assert_eq!(policy.next(stepped(1.5)).0, report(0, 2, 1.5, 0.0, 3.0));
        let begin = Action::Begin { exchange, fragment, payload: Payload::Delta };
        assert_eq!(policy.next(WorkerEvent::Replied(Reply::Synchronize)).0, begin);
        let finish = Action::Finish { exchange, fragment, install: Install::Rebase };
        assert_eq!(policy.next(WorkerEvent::Begun { exchange }).0, finish);
        let (action, reason) = policy.next(finished(0, &[9.0, 1.5], false));
        assert_eq!((action, reason.to_string().as_str()), (step, "round 1 begins"));
        assert_eq!(policy.next(stepped(1.5)).0, report(1, 1, 1.5, 0.2, 1.5));
        assert_eq!(policy.next(WorkerEvent::StopRequested).0, Action::Stop);
    }

    #[test]
    fn a_plan_comes_from_the_warm_up_and_then_from_the_members() {
        let mut policy = EsyncWorker::new(Settings { planning: Planning::Ahead, ..Settings::default() });
        policy.next(WorkerEvent::Started { rank: 0, step_seconds: [1.0, 2.0].into() });
        let (_, reason) = policy.next(stepped(1.0));
        assert_eq!(reason, Reason::PlannedStepsLeft { local_steps: 1, planned_steps: 2 });
        let (action, reason) = policy.next(stepped(1.0));
        assert!(matches!(action, Action::Begin { .. }));
        assert_eq!(reason.to_string(), "the 2 planned local steps are done");
        policy.next(WorkerEvent::Begun { exchange: ExchangeId(0) });
        policy.next(finished(0, &[1.0, 4.0], false));
        let (_, reason) = policy.next(stepped(1.0));
        assert_eq!(reason.to_string(), "1 of 4 planned local steps are done");
    }

    #[test]
    fn all_stop_together_and_a_broken_contract_stops_with_a_sentence() {
        let mut policy = EsyncWorker::new(Settings { planning: Planning::Ahead, ..Settings::default() });
        policy.next(WorkerEvent::Started { rank: 0, step_seconds: [1.0].into() });
        policy.next(stepped(1.0));
        policy.next(WorkerEvent::Begun { exchange: ExchangeId(0) });
        assert_eq!(policy.clone().next(finished(0, &[1.0], true)), (Action::Stop, Reason::Agreed));
        let (action, reason) = policy.next(finished(3, &[1.0], false));
        assert_eq!(action, Action::Stop);
        assert!(
            reason.to_string().starts_with("internal error, please report it: unexpected Finished"),
            "{reason}"
        );
    }
}
