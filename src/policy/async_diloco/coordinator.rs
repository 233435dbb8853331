//! The server's rule of asynchronous DiLoCo.

use super::{AsyncDilocoReason, Settings, dynamic_local_steps, fastest};
use crate::policy::{Coordinator, Directive, LocalSteps, PushRule, Reason, Reply, Report, Smoothed};
use crate::transport::Rank;
use std::time::Duration;

/// Applies pushes with delayed Nesterov momentum, after a grace period, and fits every worker's number of steps to its speed.
///
/// ```
/// use esync::policy::async_diloco::{AsyncDilocoCoordinator, Settings};
/// use esync::policy::{Coordinator, Directive, LocalSteps, Payload, Reply, Report, Versions};
/// use std::time::Duration;
///
/// let settings = Settings { grace_period: Duration::from_millis(50), ..Settings::paper() };
/// let mut server = AsyncDilocoCoordinator::new(&[0.1, 0.1], settings);
/// let push = Report::Pushed {
///     payload: Payload::Delta,
///     local_steps: LocalSteps(50),
///     samples: 1600,
///     loss: 2.3,
///     seconds_since_push: 5.0,
///     compute_seconds: 5.0,
///     base: Versions(0),
///     norm: 1.0,
/// };
/// assert!(server.on(Duration::from_secs(5), 1, push).is_empty(), "others may come");
/// let over = server.next_deadline().expect("the grace period ends");
/// assert_eq!(over, Duration::from_millis(5050));
/// let directives = server.tick(over);
/// assert!(matches!(directives[..], [Directive::Apply { from: 1, .. }, Directive::Reply { reply: Reply::Pull, .. }]));
/// ```
#[derive(Debug, Clone)]
pub struct AsyncDilocoCoordinator {
    settings: Settings,
    workers: Vec<Row>,
    waiting: Vec<Arrival>,
    grace_ends: Duration,
    applied: u64,
}

/// A push that waits for the grace period to end.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    from: Rank,
    loss: f64,
}

#[derive(Debug, Clone)]
struct Row {
    step_seconds: Smoothed,
    /// Steps per push that the worker knows of.
    local_steps: u64,
    gone: bool,
}

impl AsyncDilocoCoordinator {
    /// For workers that needed `step_seconds` for a step before training, in rank order. They begin with
    /// [`dynamic_local_steps`] of these.
    pub fn new(step_seconds: &[f64], settings: Settings) -> Self {
        let fastest_seconds = fastest(step_seconds.iter().copied());
        let row = |&seconds: &f64| Row {
            step_seconds: Smoothed::new(seconds),
            local_steps: dynamic_local_steps(seconds, fastest_seconds, settings.local_steps),
            gone: false,
        };
        let workers = step_seconds.iter().map(row).collect();
        AsyncDilocoCoordinator {
            settings,
            workers,
            waiting: Vec::new(),
            grace_ends: Duration::ZERO,
            applied: 0,
        }
    }

    fn period(&self) -> u32 {
        u32::try_from(self.workers.len().max(1)).unwrap_or(u32::MAX)
    }

    fn apply(&mut self, arrival: Arrival) -> Directive {
        let Arrival { from, loss } = arrival;
        if !loss.is_finite() {
            return Directive::Apply { from, rule: PushRule::Discard, reason: Reason::NotANumber { loss } };
        }
        let Settings { learning_rate, momentum, carry, .. } = self.settings;
        let period = self.period();
        let push = self.applied % u64::from(period) + 1;
        self.applied += 1;
        let rule = PushRule::DelayedNesterov { period, learning_rate, momentum, carry };
        Directive::Apply {
            from,
            rule,
            reason: Reason::AsyncDiloco(AsyncDilocoReason::Applied { push, period }),
        }
    }

    fn answer(&mut self, to: Rank, together: usize) -> Directive {
        let live = self.workers.iter().filter(|row| !row.gone);
        let fastest_seconds = fastest(live.map(|row| row.step_seconds.get()));
        let row = &mut self.workers[to];
        let (before, step_seconds) = (row.local_steps, row.step_seconds.get());
        let steps = dynamic_local_steps(step_seconds, fastest_seconds, self.settings.local_steps);
        let (reply, reason) = if steps.abs_diff(before) * 10 > before {
            row.local_steps = steps;
            let reason = AsyncDilocoReason::StepsFollowSpeed { step_seconds, fastest_seconds, before };
            (Reply::StepsPerPush(LocalSteps(steps)), reason)
        } else {
            (Reply::Pull, AsyncDilocoReason::NewestParameters { together })
        };
        Directive::Reply { to, reply, reason: Reason::AsyncDiloco(reason) }
    }

    /// Applies everything that has arrived, in order, and then answers: these workers go on from the same parameters.
    fn close(&mut self) -> Vec<Directive> {
        let arrivals = std::mem::take(&mut self.waiting);
        let mut directives: Vec<Directive> = arrivals.iter().map(|&arrival| self.apply(arrival)).collect();
        directives.extend(arrivals.iter().map(|arrival| self.answer(arrival.from, arrivals.len())));
        directives
    }

    fn close_if_over(&mut self, now: Duration) -> Vec<Directive> {
        let live = self.workers.iter().filter(|row| !row.gone).count();
        let all_are_here = self.waiting.len() >= live;
        if self.waiting.is_empty() || !(all_are_here || now >= self.grace_ends) {
            return Vec::new();
        }
        self.close()
    }
}

impl Coordinator for AsyncDilocoCoordinator {
    fn on(&mut self, now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        // A push that comes after the grace period begins one of its own.
        let mut directives = if now > self.grace_ends { self.close() } else { Vec::new() };
        let Some(row) = self.workers.get_mut(from).filter(|row| !row.gone) else {
            return directives;
        };
        match report {
            Report::Pushed { loss, local_steps, compute_seconds, .. } => {
                row.step_seconds.add(compute_seconds / local_steps.0.max(1) as f64);
                if self.waiting.is_empty() {
                    self.grace_ends = now + self.settings.grace_period;
                }
                self.waiting.push(Arrival { from, loss });
                directives.extend(self.close_if_over(now));
            }
            Report::PullRequested => directives.push(Directive::Reply {
                to: from,
                reply: Reply::Pull,
                reason: Reason::AsyncDiloco(AsyncDilocoReason::PullAsked),
            }),
            Report::GlobalLoss { .. } => {}
            Report::Stepped { .. } | Report::Evaluated { .. } => directives.push(Directive::Reply {
                to: from,
                reply: Reply::Continue,
                reason: Reason::NothingToDecide,
            }),
        }
        directives
    }

    fn lost(&mut self, now: Duration, rank: Rank) -> Vec<Directive> {
        let Some(row) = self.workers.get_mut(rank) else { return Vec::new() };
        row.gone = true;
        self.waiting.retain(|arrival| arrival.from != rank);
        self.close_if_over(now)
    }

    fn tick(&mut self, now: Duration) -> Vec<Directive> {
        self.close_if_over(now)
    }

    fn next_deadline(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(self.grace_ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Payload, Versions};

    const fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn push(local_steps: u64, compute_seconds: f64, loss: f64) -> Report {
        let (payload, local_steps, base) = (Payload::Delta, LocalSteps(local_steps), Versions(0));
        let (samples, seconds_since_push, norm) = (1, compute_seconds, 1.0);
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

    fn server(grace_milliseconds: u64) -> AsyncDilocoCoordinator {
        let settings = Settings { local_steps: 8, grace_period: at(grace_milliseconds), ..Settings::paper() };
        AsyncDilocoCoordinator::new(&[0.1, 0.1, 0.4], settings)
    }

    fn words(directives: &[Directive]) -> Vec<String> {
        let word = |directive: &Directive| match directive {
            Directive::Apply { from, reason, .. } => format!("apply {from}: {reason}"),
            Directive::Reply { to, reply, reason } => format!("{to} {reply:?}: {reason}"),
            other => format!("{other:?}"),
        };
        directives.iter().map(word).collect()
    }

    #[test]
    fn pushes_of_one_grace_period_are_applied_in_order_and_answered_together() {
        let mut server = server(50);
        assert!(server.on(at(800), 1, push(8, 0.8, 1.0)).is_empty());
        assert!(server.on(at(830), 0, push(8, 0.8, 1.0)).is_empty());
        assert_eq!(server.next_deadline(), Some(at(850)), "the first arrival sets it");
        assert!(server.tick(at(840)).is_empty(), "too early");
        let expected = [
            "apply 1: push 1 of 3: the momentum waits",
            "apply 0: push 2 of 3: the momentum waits",
            "1 Pull: the newest parameters, after 2 pushes together",
            "0 Pull: the newest parameters, after 2 pushes together",
        ];
        assert_eq!(words(&server.tick(at(850))), expected);
        assert_eq!(server.next_deadline(), None);
        server.on(at(860), 2, push(2, 0.8, 1.0));
        let late = server.on(at(1600), 1, push(8, 0.74, 1.0));
        let expected =
            ["apply 2: push 3 of 3: it renews the momentum", "2 Pull: the newest parameters, after its push"];
        assert_eq!(words(&late), expected, "a late driver does not put them together");
    }

    #[test]
    fn nobody_waits_for_the_dead_nor_for_those_who_are_here() {
        let mut server = server(50);
        server.on(at(800), 0, push(8, 0.8, 1.0));
        server.on(at(800), 1, push(8, 0.8, 1.0));
        assert_eq!(server.lost(at(810), 2).len(), 4, "all live ones are here");
        server.on(at(1600), 0, push(8, 0.8, 1.0));
        assert!(server.lost(at(1610), 0).is_empty(), "its push goes with it");
        assert_eq!(server.next_deadline(), None);
        assert_eq!(server.on(at(1620), 1, push(8, 0.8, 1.0)).len(), 2);
        assert!(server.on(at(1630), 0, Report::PullRequested).is_empty(), "the dead are not answered");
    }

    #[test]
    fn steps_follow_the_speed_when_it_changes_much() {
        let mut server = server(0);
        let reply = |directives: &[Directive]| words(directives).pop().unwrap();
        assert_eq!(
            reply(&server.on(at(800), 2, push(2, 0.7, 1.0))),
            "2 Pull: the newest parameters, after its push"
        );
        // The lower middle of the last: 0.35 of {0.4, 0.35}, then 0.2 of {0.4, 0.35, 0.2, 0.2}.
        server.on(at(1000), 2, push(2, 0.4, 1.0));
        let told = server.on(at(1200), 2, push(2, 0.4, 1.0));
        let words = "2 StepsPerPush(LocalSteps(4)): 2 steps no longer fit its speed: a step takes 0.2000 s, the fastest \
                     worker's 0.1000 s";
        assert_eq!(reply(&told), words);
        let reason = "2 Pull: it asked for the newest parameters";
        assert_eq!(reply(&server.on(at(1200), 2, Report::PullRequested)), reason);
    }

    #[test]
    fn what_is_not_a_number_is_thrown_away() {
        let mut server = server(0);
        let directives = server.on(at(1), 0, push(8, 0.8, f64::NAN));
        assert!(matches!(directives[0], Directive::Apply { rule: PushRule::Discard, .. }));
        let directives = server.on(at(2), 0, push(8, 0.8, 1.0));
        assert!(words(&directives)[0].contains("push 1 of 3"), "it does not count");
    }
}
