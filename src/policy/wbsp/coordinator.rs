//! The server's rule: buffer, publish when the slowest has pushed, answer at the end of the instant.

use super::WbspReason;
use crate::policy::{Coordinator, Directive, PushRule, Reason, Reply, Report};
use crate::transport::Rank;
use std::time::Duration;

/// WBSP's rule, for both of its modes.
///
/// ```
/// use esync::policy::wbsp::WbspCoordinator;
/// use esync::policy::{Coordinator, Directive, LocalSteps, Payload, Reply, Report, Versions};
/// use std::time::Duration;
///
/// let mut server = WbspCoordinator::new(2, 0.5);
/// let push = Report::Pushed {
///     payload: Payload::Delta,
///     local_steps: LocalSteps(1),
///     samples: 32,
///     loss: 2.3,
///     seconds_since_push: 0.1,
///     compute_seconds: 0.1,
///     base: Versions(0),
///     norm: 1.0,
/// };
/// let now = Duration::from_millis(100);
/// assert!(matches!(server.on(now, 0, push.clone())[..], [Directive::Apply { from: 0, .. }]));
/// assert_eq!(server.next_deadline(), Some(now), "answered when the instant is over");
/// assert!(matches!(server.tick(now)[..], [Directive::Reply { to: 0, reply: Reply::Continue, .. }]));
///
/// let now = Duration::from_millis(300);
/// let directives = server.on(now, 1, push);
/// assert!(matches!(directives[..], [Directive::Apply { from: 1, .. }, Directive::Publish { .. }]));
/// assert!(matches!(server.tick(now)[..], [Directive::Reply { to: 1, reply: Reply::Pull, .. }]));
/// ```
#[derive(Debug, Clone)]
pub struct WbspCoordinator {
    scale: f64,
    workers: Vec<Row>,
    /// Whose pushes of which instant are not answered yet.
    unanswered: Vec<Rank>,
    instant: Duration,
}

#[derive(Debug, Clone, Copy, Default)]
struct Row {
    has_pushed: bool,
    must_pull: bool,
    gone: bool,
}

impl WbspCoordinator {
    /// For `size` workers. `scale` multiplies each push: 1 / `size` for the mean of the workers' sums of steps.
    pub fn new(size: usize, scale: f64) -> Self {
        WbspCoordinator {
            scale,
            workers: vec![Row::default(); size],
            unanswered: Vec::new(),
            instant: Duration::ZERO,
        }
    }

    /// The first live worker that has not pushed since the last publication.
    fn awaited(&self) -> Option<Rank> {
        self.workers.iter().position(|row| !row.gone && !row.has_pushed)
    }

    fn publish(&mut self, reason: WbspReason) -> Directive {
        for row in &mut self.workers {
            row.has_pushed = false;
            row.must_pull = true;
        }
        Directive::Publish { reason: Reason::Wbsp(reason) }
    }

    fn pushed(&mut self, from: Rank, loss: f64) -> Vec<Directive> {
        let row = &mut self.workers[from];
        row.has_pushed = true;
        // A worker whose loss is not a number begins again from the published parameters.
        row.must_pull |= !loss.is_finite();
        self.unanswered.push(from);
        let awaited = self.awaited();
        let (rule, reason) = match awaited {
            _ if !loss.is_finite() => (PushRule::Discard, Reason::NotANumber { loss }),
            Some(awaited) => (self.rule(), Reason::Wbsp(WbspReason::Buffered { awaited })),
            None => (self.rule(), Reason::Wbsp(WbspReason::CompletesBuffer)),
        };
        let mut directives = vec![Directive::Apply { from, rule, reason }];
        if awaited.is_none() {
            directives.push(self.publish(WbspReason::SlowestPushed { rank: from }));
        }
        directives
    }

    fn rule(&self) -> PushRule {
        PushRule::Buffer { scale: self.scale }
    }

    /// Answers all pushes of the instant that is over.
    fn answer(&mut self) -> Vec<Directive> {
        let awaited = self.awaited().unwrap_or(0);
        let unanswered = std::mem::take(&mut self.unanswered);
        let answer = |to: Rank| {
            let (reply, reason) = match std::mem::take(&mut self.workers[to].must_pull) {
                true => (Reply::Pull, WbspReason::PublishedSincePull),
                false => (Reply::Continue, WbspReason::NothingPublished { awaited }),
            };
            Directive::Reply { to, reply, reason: Reason::Wbsp(reason) }
        };
        unanswered.into_iter().map(answer).collect()
    }
}

impl Coordinator for WbspCoordinator {
    fn on(&mut self, now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        let mut directives = if now > self.instant { self.answer() } else { Vec::new() };
        self.instant = now;
        if self.workers.get(from).is_none_or(|row| row.gone) {
            return directives;
        }
        match report {
            Report::Pushed { loss, .. } => directives.extend(self.pushed(from, loss)),
            Report::PullRequested => {
                self.workers[from].must_pull = false;
                let reason = Reason::Wbsp(WbspReason::PullAsked);
                directives.push(Directive::Reply { to: from, reply: Reply::Pull, reason });
            }
            Report::GlobalLoss { .. } => {}
            Report::Stepped { .. } | Report::Evaluated { .. } => {
                directives.push(Directive::Reply {
                    to: from,
                    reply: Reply::Continue,
                    reason: Reason::NothingToDecide,
                });
            }
        }
        directives
    }

    fn lost(&mut self, _now: Duration, rank: Rank) -> Vec<Directive> {
        let Some(row) = self.workers.get_mut(rank) else { return Vec::new() };
        row.gone = true;
        self.unanswered.retain(|&unanswered| unanswered != rank);
        let anybody_pushed = self.workers.iter().any(|row| !row.gone && row.has_pushed);
        match self.awaited() {
            None if anybody_pushed => vec![self.publish(WbspReason::SlowestIsGone { rank })],
            _ => Vec::new(),
        }
    }

    fn tick(&mut self, _now: Duration) -> Vec<Directive> {
        self.answer()
    }

    fn next_deadline(&self) -> Option<Duration> {
        (!self.unanswered.is_empty()).then_some(self.instant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{LocalSteps, Payload, Versions};

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn push(loss: f64) -> Report {
        let (payload, local_steps, base) = (Payload::Delta, LocalSteps(1), Versions(0));
        let (seconds_since_push, compute_seconds, norm) = (1.0, 1.0, 1.0);
        let samples = 1;
        Report::Pushed {
            payload,
            local_steps,
            samples,
            loss,
            seconds_since_push,
            compute_seconds,
            base,
            norm,
        }
    }

    /// A directive in a few letters.
    fn words(directives: &[Directive]) -> String {
        let word = |directive: &Directive| match directive {
            Directive::Apply { from, rule: PushRule::Buffer { .. }, .. } => format!("keep {from}"),
            Directive::Apply { from, rule, .. } => format!("{rule:?} {from}"),
            Directive::Publish { .. } => "publish".into(),
            Directive::Reply { to, reply, .. } => format!("{to}: {reply:?}"),
            Directive::Evaluate => "evaluate".into(),
        };
        directives.iter().map(word).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn all_pull_once_after_the_slowest_has_pushed() {
        let mut server = WbspCoordinator::new(2, 0.5);
        let mut seen = Vec::new();
        for (second, from) in [(1, 0), (2, 0), (3, 0), (3, 1), (4, 0), (6, 1), (6, 0)] {
            seen.push(words(&server.on(at(second), from, push(1.0))));
        }
        seen.push(words(&server.tick(at(6))));
        let expected = [
            "keep 0",
            "0: Continue, keep 0",
            "0: Continue, keep 0",
            "keep 1, publish",
            "0: Pull, 1: Pull, keep 0",
            "0: Continue, keep 1, publish",
            "keep 0",
            "1: Pull, 0: Pull",
        ];
        assert_eq!(seen, expected);
        assert_eq!(server.next_deadline(), None);
    }

    #[test]
    fn a_dead_worker_is_not_awaited() {
        let mut server = WbspCoordinator::new(3, 1.0 / 3.0);
        server.on(at(1), 0, push(1.0));
        server.on(at(1), 1, push(1.0));
        let directives = server.lost(at(1), 2);
        let [Directive::Publish { reason }] = &directives[..] else { panic!("{directives:?}") };
        assert_eq!(reason.to_string(), "rank 2, the only one that had not pushed, is gone");
        assert_eq!(words(&server.lost(at(1), 1)), "", "nothing new to publish");
        assert_eq!(words(&server.tick(at(1))), "0: Pull", "the dead are not answered");
        assert_eq!(words(&server.on(at(2), 0, push(1.0))), "keep 0, publish");
        assert_eq!(words(&server.lost(at(2), 0)), "");
        assert_eq!((words(&server.tick(at(2))), server.next_deadline()), (String::new(), None));
        assert_eq!(words(&server.on(at(3), 0, push(1.0))), "", "nor heard");
    }

    #[test]
    fn what_is_not_a_number_is_thrown_away_and_its_worker_begins_again() {
        let mut server = WbspCoordinator::new(2, 0.5);
        assert_eq!(words(&server.on(at(1), 0, push(f64::NAN))), "Discard 0");
        assert_eq!(words(&server.on(at(1), 1, push(1.0))), "keep 1, publish");
        assert_eq!(words(&server.tick(at(1))), "0: Pull, 1: Pull");
        assert_eq!(words(&server.on(at(2), 1, Report::PullRequested)), "1: Pull");
    }
}
