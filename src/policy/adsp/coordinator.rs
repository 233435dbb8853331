//! The server's rule of ADSP.

use super::probing::{Probing, seconds};
use super::{AdspReason, Next, Probe, RateReason, Search, Settings, implicit_momentum};
use crate::policy::{Coordinator, Directive, PushRule, Reason, Reply, Report, Smoothed};
use crate::transport::Rank;
use std::collections::VecDeque;
use std::time::Duration;

/// Adds every commit at once, keeps all workers' counts of commits together, and searches for their rate.
///
/// ```
/// use esync::policy::adsp::{AdspCoordinator, Settings};
/// use esync::policy::{Coordinator, Directive, Job, LocalSteps, Payload, PolicyOptions, Report, Versions};
/// use std::time::Duration;
///
/// let job = Job {
///     size: 2,
///     step_seconds: [1.0, 3.0].into(),
///     shard_samples: [100, 100].into(),
///     batch_size: 1,
///     learning_rate: 0.1,
///     budget_samples: None,
/// };
/// let mut server = AdspCoordinator::new(&job.step_seconds, Settings::from_options(&PolicyOptions::default(), &job));
/// assert_eq!(server.next_deadline(), None, "nothing happens before the first commit");
/// let commit = Report::Pushed {
///     payload: Payload::Delta,
///     local_steps: LocalSteps(12),
///     samples: 12,
///     loss: 2.3,
///     seconds_since_push: 12.0,
///     compute_seconds: 12.0,
///     base: Versions(0),
///     norm: 1.0,
/// };
/// let now = Duration::from_secs(12);
/// let directives = server.on(now, 0, commit);
/// assert!(matches!(directives[..], [Directive::Apply { .. }, Directive::Reply { .. }, Directive::Evaluate]));
/// server.on(now, 0, Report::GlobalLoss { loss: 2.3 });
/// // The first probe: two periods of 12 s, with 7 samples.
/// assert_eq!(server.next_deadline(), Some(Duration::from_secs(16)));
/// ```
#[derive(Debug, Clone)]
pub struct AdspCoordinator {
    settings: Settings,
    workers: Vec<Row>,
    rate: u64,
    why_rate: RateReason,
    check_at: Duration,
    phase: Phase,
    /// What the losses are for that are being measured, in order.
    measuring: VecDeque<Purpose>,
    last_check: Option<f64>,
    /// Probes begun so far.
    probes: u64,
}

#[derive(Debug, Clone)]
struct Row {
    commits: u64,
    /// ΔC: commits that it is to make in the check period.
    target: u64,
    overhead_seconds: Smoothed,
    step_seconds: Smoothed,
    /// The time between two commits that it knows of.
    budget_seconds: f64,
    gone: bool,
}

#[derive(Debug, Clone)]
enum Phase {
    /// Until the first commit: by then training has begun on every driver, whenever its clock did.
    Beginning,
    /// Until the next search.
    Training { search_at: Duration },
    /// Until every live worker has learned of the rate to be probed.
    Telling { search: Search, untold: Vec<bool> },
    /// A probe runs.
    Probing { search: Search, probing: Probing },
}

#[derive(Debug, Clone, Copy)]
enum Purpose {
    Check,
    Sample { probe: u64, seconds: f64 },
}

impl AdspCoordinator {
    /// For workers that needed `step_seconds` for a step before training, in rank order. They begin with one commit per
    /// check period.
    pub fn new(step_seconds: &[f64], settings: Settings) -> Self {
        let rate = 1;
        let row = |&step_seconds: &f64| Row {
            commits: 0,
            target: rate,
            overhead_seconds: Smoothed::default(),
            step_seconds: Smoothed::new(step_seconds),
            budget_seconds: settings.budget_seconds(rate, 0.0),
            gone: false,
        };
        AdspCoordinator {
            settings,
            workers: step_seconds.iter().map(row).collect(),
            rate,
            why_rate: RateReason::First { rate },
            check_at: Duration::ZERO,
            phase: Phase::Beginning,
            measuring: VecDeque::new(),
            last_check: None,
            probes: 0,
        }
    }

    /// Commits per check period that all workers are to make.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    fn anybody_lives(&self) -> bool {
        self.workers.iter().any(|row| !row.gone)
    }

    /// A check period begins: who has committed less is to catch up with who has committed most, to within one commit. Who
    /// lags by one may just be about to commit; to hurry it would put it ahead, and then everybody else after it.
    fn renew_targets(&mut self, now: Duration) {
        self.check_at = now.saturating_add(seconds(self.settings.check_seconds));
        let most = self.workers.iter().filter(|row| !row.gone).map(|row| row.commits).max().unwrap_or(0);
        for row in &mut self.workers {
            row.target = most.saturating_sub(row.commits + 1) + self.rate;
        }
    }

    fn rule(&self) -> (PushRule, f64) {
        let share = 1.0 / self.workers.len().max(1) as f64;
        let momentum = self.settings.server_momentum;
        let rule = match momentum > 0.0 {
            false => PushRule::Add { scale: share },
            // With a period of one push the rule is Nesterov's momentum.
            true => PushRule::DelayedNesterov { period: 1, learning_rate: share, momentum, carry: 0.0 },
        };
        (rule, share)
    }

    fn pushed(&mut self, now: Duration, from: Rank, report: &Report) -> Vec<Directive> {
        let &Report::Pushed { loss, local_steps, seconds_since_push, compute_seconds, .. } = report else {
            return Vec::new();
        };
        let row = &mut self.workers[from];
        row.commits += 1;
        row.step_seconds.add(compute_seconds / local_steps.0.max(1) as f64);
        row.overhead_seconds.add(seconds_since_push - compute_seconds);
        let (rule, share) = self.rule();
        let (rule, reason) = match loss.is_finite() {
            true => (rule, Reason::Adsp(AdspReason::Added { share })),
            false => (PushRule::Discard, Reason::NotANumber { loss }),
        };
        let mut directives = vec![Directive::Apply { from, rule, reason }, self.answer(from)];
        if let Phase::Telling { untold, .. } = &mut self.phase {
            untold[from] = false;
        }
        directives.extend(match self.phase {
            Phase::Beginning => {
                self.renew_targets(now);
                self.search(now)
            }
            _ => self.probe_if_all_are_told(now),
        });
        directives
    }

    /// Parameters, or a new time between two commits if it differs by more than a twentieth from what the worker knows: it
    /// then asks for the parameters.
    fn answer(&mut self, to: Rank) -> Directive {
        let check_seconds = self.settings.check_seconds;
        let row = &self.workers[to];
        let overhead_seconds = row.overhead_seconds.get();
        let budget_seconds = self.settings.budget_seconds(row.target, overhead_seconds);
        let before = row.budget_seconds;
        let (commits, target) = (row.commits, row.target);
        let (reply, reason) = if (budget_seconds - before).abs() > 0.05 * before {
            let implicit_momentum = self.implicit_momentum();
            self.workers[to].budget_seconds = budget_seconds;
            let rate = self.why_rate.clone();
            let reason = AdspReason::NewBudget {
                budget_seconds,
                commits: target,
                check_seconds,
                overhead_seconds,
                implicit_momentum,
                rate,
            };
            (Reply::CommitEvery { seconds: budget_seconds }, reason)
        } else {
            (Reply::Pull, AdspReason::GoesOn { commits })
        };
        Directive::Reply { to, reply, reason: Reason::Adsp(reason) }
    }

    fn implicit_momentum(&self) -> f64 {
        let live = self.workers.iter().filter(|row| !row.gone);
        let steps: Vec<f64> = live.map(|row| self.settings.check_seconds / row.step_seconds.get()).collect();
        implicit_momentum(self.rate, &steps)
    }

    fn measure(&mut self, purpose: Purpose) -> Directive {
        self.measuring.push_back(purpose);
        Directive::Evaluate
    }

    fn search(&mut self, now: Duration) -> Vec<Directive> {
        let search = Search::new(self.settings.greatest_rate(), self.settings.target_loss);
        self.try_rate(now, search, self.rate, None)
    }

    /// Goes to a rate to be probed. If it is the present one, everybody knows it, and the probe begins.
    fn try_rate(&mut self, now: Duration, search: Search, rate: u64, after: Option<Probe>) -> Vec<Directive> {
        self.why_rate = RateReason::Probed { rate, after };
        let is_new = rate != self.rate;
        let untold = self.workers.iter().map(|row| is_new && !row.gone).collect();
        self.phase = Phase::Telling { search, untold };
        if is_new {
            self.rate = rate;
            self.renew_targets(now);
        }
        self.probe_if_all_are_told(now)
    }

    fn probe_if_all_are_told(&mut self, now: Duration) -> Vec<Directive> {
        match &self.phase {
            Phase::Telling { search, untold } if !untold.contains(&true) => {
                // Two commits at least, else there is nothing to be seen between them.
                let length_seconds = self.settings.check_seconds * (2.0 / self.rate as f64).max(1.0);
                let probing = Probing::new(now, self.rate, length_seconds);
                self.phase = Phase::Probing { search: search.clone(), probing };
                self.probes += 1;
                self.sample(now)
            }
            _ => Vec::new(),
        }
    }

    /// Measures the loss if a sample of the probe is due.
    fn sample(&mut self, now: Duration) -> Vec<Directive> {
        let Phase::Probing { probing, .. } = &mut self.phase else { return Vec::new() };
        if probing.next_at().is_none_or(|at| now < at) {
            return Vec::new();
        }
        let seconds = probing.ask(now);
        vec![self.measure(Purpose::Sample { probe: self.probes, seconds })]
    }

    /// A loss was measured.
    fn measured(&mut self, now: Duration, loss: f64) -> Vec<Directive> {
        match self.measuring.pop_front() {
            Some(Purpose::Sample { probe, seconds }) if probe == self.probes => {
                self.sampled(now, seconds, loss)
            }
            Some(Purpose::Check) => self.checked(now, loss),
            Some(Purpose::Sample { .. }) | None => Vec::new(),
        }
    }

    fn sampled(&mut self, now: Duration, seconds_into: f64, loss: f64) -> Vec<Directive> {
        let Phase::Probing { search, probing } = &mut self.phase else { return Vec::new() };
        let Some(probe) = probing.add(seconds_into, loss) else { return Vec::new() };
        let mut search = search.clone();
        self.last_check = Some(loss);
        match search.add(probe.clone()) {
            Next::Probe(rate) => self.try_rate(now, search, rate, Some(probe)),
            Next::Keep(rate) => {
                let search_at = now.saturating_add(seconds(self.settings.search_seconds));
                self.phase = Phase::Training { search_at };
                self.why_rate = RateReason::Kept { rate, after: probe };
                self.rate = rate;
                self.renew_targets(now);
                Vec::new()
            }
        }
    }

    /// A search is forced when the loss has risen much.
    fn checked(&mut self, now: Duration, loss: f64) -> Vec<Directive> {
        let before = self.last_check.replace(loss);
        let has_risen = before.is_some_and(|before| loss - before >= self.settings.alarm * before.abs());
        match self.phase {
            Phase::Training { .. } if has_risen => self.search(now),
            _ => Vec::new(),
        }
    }
}

impl Coordinator for AdspCoordinator {
    fn on(&mut self, now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        if let Report::GlobalLoss { loss } = report {
            return self.measured(now, loss);
        }
        if self.workers.get(from).is_none_or(|row| row.gone) {
            return Vec::new();
        }
        let (reply, reason) = match report {
            Report::Pushed { .. } => return self.pushed(now, from, &report),
            Report::PullRequested => (Reply::Pull, Reason::Adsp(AdspReason::PullAsked)),
            _ => (Reply::Continue, Reason::NothingToDecide),
        };
        vec![Directive::Reply { to: from, reply, reason }]
    }

    /// Nobody is ever held; a probe no longer waits for the dead to learn of its rate.
    fn lost(&mut self, now: Duration, rank: Rank) -> Vec<Directive> {
        let Some(row) = self.workers.get_mut(rank) else { return Vec::new() };
        row.gone = true;
        if let Phase::Telling { untold, .. } = &mut self.phase {
            untold[rank] = false;
        }
        if self.anybody_lives() { self.probe_if_all_are_told(now) } else { Vec::new() }
    }

    fn tick(&mut self, now: Duration) -> Vec<Directive> {
        if self.next_deadline().is_none() {
            return Vec::new();
        }
        let mut directives = Vec::new();
        if now >= self.check_at {
            self.renew_targets(now);
            if matches!(self.phase, Phase::Training { .. }) {
                directives.push(self.measure(Purpose::Check));
            }
        }
        match self.phase {
            Phase::Training { search_at } if now >= search_at => directives.extend(self.search(now)),
            Phase::Probing { .. } => directives.extend(self.sample(now)),
            Phase::Beginning | Phase::Training { .. } | Phase::Telling { .. } => {}
        }
        directives
    }

    fn next_deadline(&self) -> Option<Duration> {
        if !self.anybody_lives() {
            return None;
        }
        let phase = match &self.phase {
            Phase::Beginning => return None,
            Phase::Training { search_at } => Some(*search_at),
            Phase::Telling { .. } => None,
            Phase::Probing { probing, .. } => probing.next_at(),
        };
        Some(phase.map_or(self.check_at, |at| at.min(self.check_at)))
    }
}

#[cfg(test)]
mod tests;
