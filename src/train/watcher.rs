//! Looks on while a worker trains: metrics, evaluation by global samples, budgets, targets, signals.

use super::config::Config;
use super::evaluate::{Score, evaluate};
use super::metrics::Metrics;
use super::report::{Line, Reporter};
use super::summary::StoppedBy;
use super::supervisor::Verdict;
use crate::error::{Error, Result};
use crate::learner::Learner;
use crate::policy::{Action, Reason};
use crate::runtime::server::Handle;
use crate::runtime::{
    Activity, ExchangeReport, Observed, Observer, PullReport, PushReport, Step, Stopwatch, Totals,
};
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What signals ask for; set by handlers, read between steps.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// SIGINT or SIGTERM.
    pub interrupt: Arc<AtomicBool>,
    /// SIGUSR1: finish this round and end in order.
    pub request: Arc<AtomicBool>,
    /// Not a signal: this process has failed, so that SIGTERM shall end it at once.
    pub failed: Arc<AtomicBool>,
}

/// The limits of a run.
pub(super) struct Limits {
    pub(super) samples: Option<u64>,
    pub(super) seconds: Option<f64>,
    pub(super) target_accuracy: Option<f64>,
    pub(super) target_loss: Option<f64>,
    pub(super) eval_every: u64,
}

impl Limits {
    pub(super) fn new(config: &Config, training_samples: usize) -> Self {
        Limits {
            samples: config.sample_budget(training_samples),
            seconds: config.max_seconds,
            target_accuracy: config.target_accuracy,
            target_loss: config.target_loss,
            eval_every: config.eval_every,
        }
    }

    /// Whether there is a target, and this score meets all of it.
    pub(super) fn meets_target(&self, score: &Score) -> bool {
        let has_target = self.target_accuracy.is_some() || self.target_loss.is_some();
        has_target
            && self.target_accuracy.is_none_or(|target| score.accuracy >= target)
            && self.target_loss.is_none_or(|target| score.loss <= target)
    }
}

pub(super) struct Watcher {
    limits: Arc<Limits>,
    metrics: Metrics,
    reporter: Reporter,
    signals: Signals,
    started: Instant,
    evaluate_seconds: f64,
    next_evaluation: u64,
    /// The last evaluation, and after how many global samples it was.
    pub(super) last_score: Option<(Score, u64)>,
    pub(super) time_to_target_seconds: Option<f64>,
    pub(super) stopped_by: Option<StoppedBy>,
    /// This run makes no exchanges: limits are checked after every step.
    is_alone: bool,
    /// This rank's round, from 1; a round ends with the exchange of the same number.
    round: u64,
    /// Seconds of sleep up to the last step.
    slow_seconds: f64,
    /// The parameter server's shard in this process: its clock begins with this rank's.
    service: Option<Handle>,
}

/// Reasons to stop, as numbers that travel; the greatest wins. The first three are wishes of any rank, the others are what a
/// parameter server's head finds.
const WISHES: [(u64, StoppedBy); 5] = [
    (1, StoppedBy::Seconds),
    (2, StoppedBy::Request),
    (3, StoppedBy::Interrupt),
    (SAMPLES, StoppedBy::Samples),
    (TARGET, StoppedBy::Target),
];
pub(super) const SAMPLES: u64 = 4;
pub(super) const TARGET: u64 = 5;

#[derive(Serialize)]
struct StepEvent {
    local_step: u64,
    step_seconds: f64,
    /// How many of `step_seconds` were sleep.
    slow_seconds: f64,
    samples: usize,
    loss: f64,
}

impl Watcher {
    pub(super) fn new(
        limits: Arc<Limits>,
        metrics: Metrics,
        reporter: Reporter,
        signals: Signals,
        is_alone: bool,
    ) -> Self {
        Watcher {
            next_evaluation: limits.eval_every,
            limits,
            metrics,
            reporter,
            signals,
            started: Instant::now(),
            evaluate_seconds: 0.0,
            last_score: None,
            time_to_target_seconds: None,
            stopped_by: None,
            is_alone,
            round: 1,
            slow_seconds: 0.0,
            service: None,
        }
    }

    /// With a parameter server's shard in this process.
    pub(super) fn beside(mut self, service: Option<Handle>) -> Self {
        self.service = service;
        self
    }

    /// Seconds of training, without those of evaluation.
    pub(super) fn train_seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64() - self.evaluate_seconds
    }

    pub(super) fn metrics(&mut self) -> &mut Metrics {
        &mut self.metrics
    }

    /// What a parameter server's head has found, instead of this rank's own limits.
    pub(super) fn adopt(&mut self, verdict: &Verdict) {
        self.stopped_by =
            WISHES.iter().find(|(number, _)| Some(*number) == verdict.stop).map(|(_, why)| *why);
        if let Some((seconds, score)) = verdict.winner {
            self.time_to_target_seconds = Some(seconds);
            self.last_score = Some((score, verdict.global_samples));
        }
    }

    /// The last evaluation of a parameter server's result may meet the target too: then that was when all were stopped.
    pub(super) fn adopt_last_score(&mut self, score: &Score, verdict: &Verdict) {
        if self.limits.meets_target(score) && verdict.winner.is_none() {
            self.time_to_target_seconds = Some(verdict.stop_seconds);
            self.stopped_by = Some(StoppedBy::Target);
        }
    }

    pub(super) fn finish(&self) {
        self.reporter.finish();
    }

    /// Evaluates, and notes whether the target is met.
    pub(super) fn evaluate<L: Learner + ?Sized>(
        &mut self,
        observed: &mut Observed<'_, Box<L>>,
    ) -> Result<Score> {
        let train_seconds = self.train_seconds();
        observed.clock.switch(Activity::Evaluate);
        let score = evaluate(&mut **observed.model, observed.communicator)?;
        let evaluate_seconds = observed.clock.switch(Activity::Other);
        if !score.loss.is_finite() {
            // The last step made the parameters useless, and no later one has noticed.
            let (rank, step) = (observed.communicator.rank(), observed.totals.local_steps);
            return Err(Error::Diverged { rank, step, loss: score.loss });
        }
        self.evaluate_seconds += evaluate_seconds;
        self.last_score = Some((score, observed.totals.global_samples));
        if self.limits.meets_target(&score) && self.time_to_target_seconds.is_none() {
            self.time_to_target_seconds = Some(train_seconds);
        }
        if observed.communicator.rank() == 0 {
            let event = json!({
                "accuracy": score.accuracy,
                "loss": score.loss,
                "global_samples": observed.totals.global_samples,
                "train_seconds": train_seconds,
                "evaluate_seconds": evaluate_seconds,
            });
            self.metrics.event("evaluate", event)?;
        }
        Ok(score)
    }

    /// Evaluates if it is due, and says whether a limit is reached.
    fn check_limits<L: Learner + ?Sized>(
        &mut self,
        wish: u64,
        mut observed: Observed<'_, Box<L>>,
    ) -> Result<bool> {
        let Totals { global_samples, .. } = observed.totals;
        let spent = self.limits.samples.is_some_and(|limit| global_samples >= limit);
        if global_samples >= self.next_evaluation || spent {
            self.next_evaluation = (global_samples / self.limits.eval_every + 1) * self.limits.eval_every;
            self.evaluate(&mut observed)?;
        }
        self.stopped_by = if self.time_to_target_seconds.is_some() {
            Some(StoppedBy::Target)
        } else if spent {
            Some(StoppedBy::Samples)
        } else {
            WISHES.iter().find(|(number, _)| *number == wish).map(|(_, why)| *why)
        };
        Ok(self.stopped_by.is_some())
    }

    fn note(&mut self, step: &Step, clock: &Stopwatch, totals: Totals) -> Result<()> {
        let slow_seconds = clock.seconds(Activity::Slow);
        let event = StepEvent {
            local_step: totals.local_steps,
            step_seconds: step.seconds,
            slow_seconds: slow_seconds - self.slow_seconds,
            samples: step.samples,
            loss: step.loss,
        };
        self.slow_seconds = slow_seconds;
        self.metrics.event("step", event)
    }

    fn wish(&self) -> u64 {
        if self.signals.interrupt.load(Ordering::Relaxed) {
            3
        } else if self.signals.request.load(Ordering::Relaxed) {
            2
        } else {
            u64::from(self.limits.seconds.is_some_and(|limit| self.train_seconds() >= limit))
        }
    }

    fn show<M>(&mut self, report: &ExchangeReport, observed: &Observed<'_, M>) {
        let elapsed = self.train_seconds();
        let local_steps: Vec<u64> = report.members.iter().map(|member| member.local_steps.0).collect();
        self.reporter.show(&Line {
            elapsed,
            what: "round",
            number: report.exchange,
            loss: report.mean_loss(),
            accuracy: self.last_score.map(|(score, _)| score.accuracy),
            global_samples: observed.totals.global_samples,
            counts: ("steps", &local_steps),
            wait_share: Some(observed.clock.seconds(Activity::Wait) / elapsed.max(1e-9)),
            exchange_seconds: Some(report.exchange_seconds),
        });
    }
}

impl<L: Learner + ?Sized> Observer<Box<L>> for Watcher {
    fn stop_wish(&mut self) -> u64 {
        self.wish()
    }

    fn began(&mut self) {
        self.started = Instant::now();
        self.metrics.start_clock();
        if let Some(service) = &self.service {
            service.begin();
        }
    }

    fn decided(&mut self, action: &Action, reason: &Reason) {
        // A full disk is reported by the next event that can return an error.
        let decision = json!({
            "round": self.round,
            "action": action.name(),
            "reason": reason.to_string(),
        });
        let _ = self.metrics.event("decision", decision);
    }

    fn stepped(&mut self, step: &Step, observed: Observed<'_, Box<L>>) -> Result<bool> {
        self.note(step, observed.clock, observed.totals)?;
        if self.is_alone {
            let wish = self.wish();
            return self.check_limits(wish, observed);
        }
        Ok(false)
    }

    fn stepped_beside_exchange(&mut self, step: &Step, clock: &Stopwatch, totals: Totals) -> Result<()> {
        self.note(step, clock, totals)
    }

    fn pushed(&mut self, report: &PushReport) -> Result<()> {
        self.metrics.event(
            "push",
            json!({
                "push": report.push,
                "local_steps": report.local_steps,
                "samples": report.samples,
                "loss": report.loss,
                "base": report.base.0,
                "staleness": report.staleness,
                "bytes": report.bytes,
                "wait_seconds": report.wait_seconds,
                "exchange_seconds": report.exchange_seconds,
            }),
        )
    }

    fn pulled(&mut self, report: &PullReport) -> Result<()> {
        self.metrics.event(
            "pull",
            json!({
                "version": report.version.0,
                "versions_ahead": report.versions_ahead,
                "bytes": report.bytes,
                "exchange_seconds": report.exchange_seconds,
            }),
        )
    }

    fn exchanged(&mut self, report: &ExchangeReport, observed: Observed<'_, Box<L>>) -> Result<bool> {
        let rank = observed.communicator.rank();
        let own = &report.members[rank];
        self.metrics.event(
            "exchange",
            json!({
                "exchange": report.exchange,
                "local_steps": own.local_steps.0,
                "samples": own.samples,
                "global_samples": observed.totals.global_samples,
                "loss": own.loss,
                "wait_seconds": report.wait_seconds,
                "exchange_seconds": report.exchange_seconds,
                "bytes_sent": observed.communicator.bytes_sent(),
            }),
        )?;
        self.round += 1;
        if rank == 0 {
            self.show(report, &observed);
        }
        self.check_limits(report.stop_wish, observed)
    }
}
