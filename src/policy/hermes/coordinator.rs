//! The server's rule of Hermes.

use super::{HermesReason, Settings, Sizes, is_outlier, median};
use crate::policy::{Coordinator, Directive, Job, PushRule, Reason, Reply, Report};
use crate::transport::Rank;
use std::time::Duration;

/// Merges major updates by their losses, and sizes the epochs of workers whose epochs take much longer or shorter than the
/// others'.
///
/// ```
/// use esync::policy::hermes::{HermesCoordinator, Settings};
/// use esync::policy::{Coordinator, Directive, Job, LocalSteps, PolicyOptions, Reply, Report};
/// use std::time::Duration;
///
/// let job = Job {
///     size: 3,
///     step_seconds: [0.1, 0.1, 0.4].into(),
///     shard_samples: [1000, 1000, 1000].into(),
///     batch_size: 32,
///     learning_rate: 0.05,
///     budget_samples: None,
/// };
/// let mut server = HermesCoordinator::new(Settings::from_options(&PolicyOptions::default(), &job), &job);
/// let report = Report::Stepped {
///     round: 0,
///     local_steps: LocalSteps(6),
///     step_seconds: 0.4,
///     low_step_seconds: 0.4,
///     transfer_seconds: 0.0,
///     round_seconds: 2.4,
/// };
/// let directives = server.on(Duration::from_secs(3), 2, report);
/// let [Directive::Reply { to: 2, reply, reason }] = &directives[..] else { panic!() };
/// assert_eq!(*reply, Reply::SetBatch { batch_size: 32, data_budget: Some(64) });
/// assert_eq!(
///     reason.to_string(),
///     "its epoch lasts 3.200 s and the median 0.800 s: 64 samples in mini-batches of 32 in place of 256 samples in mini-batches of 32"
/// );
/// ```
#[derive(Debug, Clone)]
pub struct HermesCoordinator {
    settings: Settings,
    workers: Vec<Row>,
    best: f64,
    pushes_since_best: u64,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    /// Seconds for a mini-batch.
    step_seconds: f64,
    sizes: Sizes,
    most_samples: u64,
    gone: bool,
}

impl HermesCoordinator {
    /// For a job's workers, whose speeds are those of the warm-up until they report.
    pub fn new(settings: Settings, job: &Job) -> Self {
        let row = |rank: Rank| Row {
            step_seconds: job.step_seconds.get(rank).copied().unwrap_or(0.0),
            sizes: settings.first_sizes(job, rank),
            most_samples: settings.most_samples(job, rank),
            gone: false,
        };
        let workers = (0..job.size).map(row).collect();
        HermesCoordinator { settings, workers, best: f64::INFINITY, pushes_since_best: 0 }
    }

    fn epoch_seconds(&self, rank: Rank) -> f64 {
        let row = &self.workers[rank];
        self.settings.sizing.epoch_seconds(row.sizes, row.step_seconds)
    }

    /// Why training is over, if it is.
    fn is_over(&self) -> Option<Reason> {
        let pushes = self.pushes_since_best;
        let is_over = self.settings.patience.is_some_and(|patience| pushes >= patience);
        is_over.then_some(Reason::Hermes(HermesReason::NoNewBest { pushes, best: self.best }))
    }

    fn pushed(&mut self, from: Rank, loss: f64) -> Vec<Directive> {
        if !loss.is_finite() {
            return vec![Directive::Apply {
                from,
                rule: PushRule::Discard,
                reason: Reason::NotANumber { loss },
            }];
        }
        let reason = Reason::Hermes(HermesReason::Merged);
        let mut directives = vec![Directive::Apply { from, rule: PushRule::LossWeighted, reason }];
        if self.settings.patience.is_some() {
            directives.push(Directive::Evaluate);
        }
        directives
    }

    /// What a worker's next epoch is to be.
    fn size(&mut self, rank: Rank) -> (Reply, Reason) {
        let epoch_seconds = self.epoch_seconds(rank);
        let is_other = |&other: &Rank| other != rank && !self.workers[other].gone;
        let mut all: Vec<f64> =
            (0..self.workers.len()).filter(is_other).map(|other| self.epoch_seconds(other)).collect();
        let is_outlier = is_outlier(epoch_seconds, &all);
        all.push(epoch_seconds);
        let target_seconds = median(&all).unwrap_or(epoch_seconds);
        let is_close = (epoch_seconds - target_seconds).abs() <= self.settings.sizing.tolerance_seconds;
        if !is_outlier || is_close {
            let reason = HermesReason::LastsAsOthers { epoch_seconds, target_seconds };
            return (Reply::Continue, Reason::Hermes(reason));
        }
        let row = &mut self.workers[rank];
        let before = row.sizes;
        match self.settings.sizing.fit(before, row.step_seconds, target_seconds, row.most_samples) {
            None => {
                let reason = HermesReason::NothingFits { epoch_seconds, target_seconds };
                (Reply::Continue, Reason::Hermes(reason))
            }
            Some(after) => {
                row.sizes = after;
                let (batch_size, data_budget) = (after.batch_size as usize, Some(after.data_budget as usize));
                let reason = HermesReason::Sized { epoch_seconds, target_seconds, before, after };
                (Reply::SetBatch { batch_size, data_budget }, Reason::Hermes(reason))
            }
        }
    }
}

impl Coordinator for HermesCoordinator {
    fn on(&mut self, _now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        if let Report::GlobalLoss { loss } = report {
            self.pushes_since_best += 1;
            if loss < self.best {
                (self.best, self.pushes_since_best) = (loss, 0);
            }
            return Vec::new();
        }
        if self.workers.get(from).is_none_or(|row| row.gone) {
            return Vec::new();
        }
        let mut directives = match report {
            Report::Pushed { loss, .. } => self.pushed(from, loss),
            _ => Vec::new(),
        };
        let (reply, reason) = match (self.is_over(), report) {
            (Some(reason), _) => (Reply::Stop, reason),
            (None, Report::Pushed { .. } | Report::PullRequested) => {
                (Reply::Pull, Reason::Hermes(HermesReason::MergedParameters))
            }
            (None, Report::Stepped { step_seconds, .. }) => {
                if step_seconds > 0.0 && step_seconds.is_finite() {
                    self.workers[from].step_seconds = step_seconds;
                }
                self.size(from)
            }
            (None, Report::Evaluated { .. } | Report::GlobalLoss { .. }) => {
                (Reply::Continue, Reason::NothingToDecide)
            }
        };
        directives.push(Directive::Reply { to: from, reply, reason });
        directives
    }

    /// Nobody is ever held; the dead no longer count among the others.
    fn lost(&mut self, _now: Duration, rank: Rank) -> Vec<Directive> {
        if let Some(row) = self.workers.get_mut(rank) {
            row.gone = true;
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{LocalSteps, Payload, PolicyOptions, Versions};

    fn server(step_seconds: &[f64], shard: u64, patience: Option<u64>) -> HermesCoordinator {
        let job = Job {
            size: step_seconds.len(),
            step_seconds: step_seconds.into(),
            shard_samples: vec![shard; step_seconds.len()].into(),
            batch_size: 16,
            learning_rate: 0.1,
            budget_samples: None,
        };
        let options = PolicyOptions { patience, ..PolicyOptions::default() };
        HermesCoordinator::new(Settings::from_options(&options, &job), &job)
    }

    fn report(step_seconds: f64) -> Report {
        Report::Stepped {
            round: 0,
            local_steps: LocalSteps(6),
            step_seconds,
            low_step_seconds: step_seconds,
            transfer_seconds: 0.0,
            round_seconds: 6.0 * step_seconds,
        }
    }

    fn push(loss: f64) -> Report {
        let (payload, local_steps, base) = (Payload::Parameters, LocalSteps(8), Versions(0));
        let (samples, seconds_since_push, compute_seconds, norm) = (128, 0.8, 0.8, 1.0);
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

    fn reply(directives: &[Directive]) -> Reply {
        let replies: Vec<&Reply> = directives
            .iter()
            .filter_map(|directive| match directive {
                Directive::Reply { reply, .. } => Some(reply),
                _ => None,
            })
            .collect();
        assert_eq!(replies.len(), 1, "{directives:?}");
        replies[0].clone()
    }

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn the_slow_get_less_data_and_equal_workers_keep_theirs() {
        let mut server = server(&[0.1, 0.1, 0.1, 0.4], 1000, None);
        assert_eq!(reply(&server.on(NOW, 0, report(0.1))), Reply::Continue);
        let sized = Reply::SetBatch { batch_size: 16, data_budget: Some(32) };
        assert_eq!(reply(&server.on(NOW, 3, report(0.4))), sized);
        assert_eq!(reply(&server.on(NOW, 3, report(0.4))), Reply::Continue, "now it is one of many");
    }

    #[test]
    fn the_median_follows_speeds_that_change_and_workers_that_die() {
        let mut server = server(&[0.1, 0.1, 0.1, 0.4], 1000, None);
        for rank in 0..3 {
            server.on(NOW, rank, report(0.4));
        }
        assert_eq!(reply(&server.on(NOW, 3, report(0.4))), Reply::Continue, "all have become as slow");
        for rank in 0..3 {
            assert!(server.lost(NOW, rank).is_empty());
        }
        assert_eq!(reply(&server.on(NOW, 3, report(4.0))), Reply::Continue, "alone");
        assert!(server.on(NOW, 1, report(0.1)).is_empty(), "the dead are not answered");
    }

    #[test]
    fn nobody_is_given_more_than_it_has_and_empty_shards_are_left_alone() {
        // 40 samples are 2.5 mini-batches; the fast one would need 20 of them for 2 s.
        let mut fast = server(&[0.8, 0.8, 0.8, 0.1], 40, None);
        let Reply::SetBatch { batch_size, data_budget } = reply(&fast.on(NOW, 3, report(0.1))) else {
            panic!()
        };
        assert_eq!((batch_size, data_budget), (2, Some(40)));
        let mut empty = server(&[0.8, 0.8, 0.8, 0.1], 0, None);
        assert_eq!(reply(&empty.on(NOW, 3, report(0.1))), Reply::Continue);
    }

    #[test]
    fn training_ends_when_the_loss_stops_improving_if_that_is_asked_for() {
        let mut server = server(&[0.1, 0.1], 1000, Some(2));
        for (loss, expected) in [(1.0, Reply::Pull), (1.1, Reply::Pull), (1.2, Reply::Pull)] {
            let directives = server.on(NOW, 0, push(1.0));
            let [Directive::Apply { rule: PushRule::LossWeighted, .. }, Directive::Evaluate, _] =
                &directives[..]
            else {
                panic!("{directives:?}")
            };
            assert_eq!(reply(&directives), expected);
            assert!(server.on(NOW, 0, Report::GlobalLoss { loss }).is_empty());
        }
        let directives = server.on(NOW, 1, report(0.1));
        let [Directive::Reply { reply: Reply::Stop, reason, .. }] = &directives[..] else { panic!() };
        assert_eq!(reason.to_string(), "2 pushes have brought no better loss than 1.0000");
        assert_eq!(server.on(NOW, 0, push(1.0)).len(), 3, "a push is still consumed");
    }

    #[test]
    fn without_patience_nothing_is_measured_and_what_is_not_a_number_is_thrown_away() {
        let mut server = server(&[0.1, 0.1], 1000, None);
        assert_eq!(server.on(NOW, 0, push(1.0)).len(), 2);
        let directives = server.on(NOW, 0, push(f64::NAN));
        assert!(matches!(directives[0], Directive::Apply { rule: PushRule::Discard, .. }));
        assert_eq!(reply(&directives), Reply::Pull);
        assert_eq!(reply(&server.on(NOW, 1, Report::PullRequested)), Reply::Pull);
    }
}
