//! `--overlap`: the exchange of one round runs beside the next round's local steps.

use super::{
    Action, ExchangeId, Fragment, Install, MemberReport, Payload, Reason, WorkerEvent, WorkerPolicy,
};
use std::sync::Arc;

/// Any policy of rounds, with its exchanges one round late.
///
/// The policy inside says `Begin` and `Finish` one after the other. Here `Finish` is put off until the policy wants to begin
/// the *next* exchange: meanwhile the next round's steps are done. The result is merged ([`Install::Merge`]), which
/// keeps the steps that were taken meanwhile; they are the next exchange's. So every step is sent once and applied once, one
/// round late.
///
/// - What the policy inside learns about other ranks (its [`MemberReport`]s) is one round late as well, and transfers, which
///   are hidden, cost it nothing.
/// - The first exchange is finished at once: from it the policy inside learns how fast everybody is.
/// - When all have agreed to stop there are steps that nobody has seen: one more exchange, finished at once, takes them in, so
///   that all ranks end with the same parameters.
///
/// Every rank must do the same; whether to stop is agreed, so it does.
///
/// ```
/// use esync::policy::local_sgd::LocalSgd;
/// use esync::policy::{Overlapped, WorkerPolicy};
/// let policy = Overlapped::new(Box::new(LocalSgd::worker(8)));
/// assert_eq!(policy.name(), "local-sgd");
/// ```
pub struct Overlapped {
    inner: Box<dyn WorkerPolicy>,
    in_flight: Option<ExchangeId>,
    /// The exchange that the policy inside wants to begin.
    wanted: Option<ExchangeId>,
    /// What the last exchange that ended said.
    figures: Option<Figures>,
    is_last: bool,
}

#[derive(Clone)]
struct Figures {
    wait_seconds: f64,
    members: Arc<[MemberReport]>,
}

impl Overlapped {
    /// Puts off the exchanges of `inner`, which must be of deltas of all parameters.
    pub fn new(inner: Box<dyn WorkerPolicy>) -> Self {
        Overlapped { inner, in_flight: None, wanted: None, figures: None, is_last: false }
    }

    /// Lets the policy inside go on.
    fn tell(&mut self, event: WorkerEvent) -> (Action, Reason) {
        let (action, reason) = self.inner.next(event);
        match action {
            Action::Begin { exchange, fragment: Fragment::Whole, payload: Payload::Delta } => {
                self.wanted = Some(exchange);
                match self.in_flight {
                    Some(previous) => (finish(previous, Install::Merge), Reason::LastRoundsExchangeDue),
                    None => (begin(exchange), reason),
                }
            }
            Action::Begin { .. } => {
                let event = format!("{action:?}, which cannot be put off");
                (Action::Stop, Reason::Unexpected { event })
            }
            other => (other, reason),
        }
    }

    /// The policy inside hears that its exchange is done.
    fn tell_finished(&mut self, exchange: ExchangeId, figures: Figures) -> (Action, Reason) {
        let (action, reason) = self.inner.next(WorkerEvent::Begun { exchange });
        if !matches!(action, Action::Finish { exchange: finished, .. } if finished == exchange) {
            return (action, reason);
        }
        let Figures { wait_seconds, members } = figures;
        let (transfer_seconds, stop) = (0.0, false);
        self.tell(WorkerEvent::Finished { exchange, transfer_seconds, wait_seconds, members, stop })
    }
}

fn begin(exchange: ExchangeId) -> Action {
    Action::Begin { exchange, fragment: Fragment::Whole, payload: Payload::Delta }
}

fn finish(exchange: ExchangeId, install: Install) -> Action {
    Action::Finish { exchange, fragment: Fragment::Whole, install }
}

impl WorkerPolicy for Overlapped {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn next(&mut self, event: WorkerEvent) -> (Action, Reason) {
        match event {
            WorkerEvent::Begun { exchange } if self.wanted == Some(exchange) => match &self.figures {
                Some(figures) if !self.is_last => {
                    let figures = figures.clone();
                    self.wanted = None;
                    self.in_flight = Some(exchange);
                    self.tell_finished(exchange, figures)
                }
                _ => (finish(exchange, Install::Rebase), Reason::ExchangeBegun),
            },
            WorkerEvent::Finished { exchange, wait_seconds, members, stop, .. } => {
                let figures = Figures { wait_seconds, members };
                self.figures = Some(figures.clone());
                if self.is_last {
                    return (Action::Stop, Reason::Agreed);
                }
                match (self.in_flight.take(), self.wanted) {
                    // The next exchange has waited for this one.
                    (Some(previous), Some(next)) if previous == exchange => {
                        self.is_last = stop;
                        (begin(next), if stop { Reason::LastExchange } else { Reason::LastRoundApplied })
                    }
                    // The first exchange, finished at once.
                    (None, Some(wanted)) if wanted == exchange => {
                        self.wanted = None;
                        if stop {
                            return (Action::Stop, Reason::Agreed);
                        }
                        self.tell_finished(exchange, figures)
                    }
                    _ => {
                        let event = format!("Finished of exchange {}", exchange.0);
                        (Action::Stop, Reason::Unexpected { event })
                    }
                }
            }
            other => self.tell(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::local_sgd::LocalSgd;
    use crate::policy::sync::SyncWorker;
    use crate::policy::{LocalSteps, Update};

    /// What the policy does, all agreeing to stop after exchange number `last`: `s`, `B0`, `M0` (merged), `R0` (rebased) …
    fn trace(policy: &mut dyn WorkerPolicy, last: u64) -> String {
        let mut event = WorkerEvent::Started { rank: 0, step_seconds: [0.1].into() };
        let mut words = Vec::new();
        loop {
            let (action, reason) = policy.next(event);
            assert!(!reason.to_string().contains("internal error"), "{reason}");
            event = match action {
                Action::Step { update: Update::Local } => {
                    words.push("s".to_string());
                    WorkerEvent::Stepped { step_seconds: 0.1, samples: 8, loss: 1.0 }
                }
                Action::Begin { exchange, .. } => {
                    words.push(format!("B{}", exchange.0));
                    WorkerEvent::Begun { exchange }
                }
                Action::Finish { exchange, install, .. } => {
                    let letter = if install == Install::Merge { 'M' } else { 'R' };
                    words.push(format!("{letter}{}", exchange.0));
                    let member = MemberReport {
                        rank: 0,
                        local_steps: LocalSteps(1),
                        samples: 8,
                        step_seconds: 0.1,
                        transfer_seconds: 0.5,
                        loss: 1.0,
                    };
                    WorkerEvent::Finished {
                        exchange,
                        transfer_seconds: 0.5,
                        wait_seconds: 0.0,
                        members: [member].into(),
                        stop: exchange.0 >= last,
                    }
                }
                Action::Stop => return words.join(" "),
                other => panic!("{other:?}"),
            };
        }
    }

    #[test]
    fn an_exchange_ends_when_the_next_one_begins() {
        let trace = |last| trace(&mut Overlapped::new(Box::new(LocalSgd::worker(2))), last);
        assert_eq!(trace(2), "s s B0 R0 s s B1 s s M1 B2 s s M2 B3 R3");
        assert_eq!(trace(1), "s s B0 R0 s s B1 s s M1 B2 R2");
        assert_eq!(trace(0), "s s B0 R0");
    }

    #[test]
    fn gradients_cannot_be_put_off() {
        let mut policy = Overlapped::new(Box::new(SyncWorker::default()));
        policy.next(WorkerEvent::Started { rank: 0, step_seconds: [0.1].into() });
        let (action, reason) = policy.next(WorkerEvent::Stepped { step_seconds: 0.1, samples: 8, loss: 1.0 });
        assert_eq!(action, Action::Stop);
        assert!(reason.to_string().contains("cannot be put off"), "{reason}");
    }
}
