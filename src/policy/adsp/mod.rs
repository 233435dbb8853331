//! `--mode adsp`: adaptive synchronous parallel (Hu, Wang and Wu, *Distributed Machine Learning through Heterogeneous Edge
//! Systems*, AAAI 2020, arXiv 1911.06949).
//!
//! Nobody waits. All workers *commit* (push their delta and pull) equally often, whatever their speeds: a worker trains until
//! the time that it was given is over, so that a fast one puts more steps into a commit. How often that is, is searched while
//! training: the server tries neighbouring rates, a *probe* each, and keeps the one with which the loss falls fastest.
//!
//! Rare commits act like momentum ([`implicit_momentum`]) and diverge when they are too rare; frequent ones cost transfers.
//!
//! - Γ, the *check period*: at its start every worker's target is the greatest count of commits so far plus the rate, so
//!   that who joined late or fell behind catches up.
//! - A worker with a target of ΔC more commits, and an overhead O of transfers and waiting, has `max(T_min, Γ/ΔC − O)`
//!   seconds of computing between two commits.
//! - The server adds 1/K of every commit, at once.
//!
//! # Where this differs from the paper and its published code
//!
//! - The code fits three parameters to three samples, which lets a *rising* loss win. Here a probe has seven samples, the fit
//!   is robust and bounded ([`Curve::fit`]), and a probe whose loss does not fall, or leaves the finite numbers, is rejected.
//! - Probes follow each other, and later ones begin at lower losses. They are compared over the same stretch of loss: the one
//!   that would pass it in less time wins. The code compares times to a target, which favours whoever was last.
//! - The rate can come down as well as go up. In the code it only grows.
//! - No barrier before a probe. It begins when every live worker has learned of its rate with a commit; nobody waits for that.
//! - The first search begins with the first commit. Targets forgive a lag of one commit, which may be a matter of order.
//! - A probe lasts Γ, or two commits if that is longer: with one commit per period the loss would be the same in all samples.
//! - Losses are measured with an evaluation, not (as in the code) with the training operation, and off the training's clock
//!   if the driver can.
//! - Explicit momentum at the server (`--server-momentum`, 0 as in the paper's final form) is Nesterov's.

mod coordinator;
mod curve;
mod probing;
mod reason;
mod search;
mod worker;

pub use coordinator::AdspCoordinator;
pub use curve::{Curve, Rejection, Sample};
pub use reason::{AdspReason, RateReason};
pub use search::{Next, Probe, Search};
pub use worker::AdspWorker;

use crate::policy::{Job, PolicyOptions, Preset};

/// What can be chosen. Times are in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Γ: how long a check period lasts.
    pub check_seconds: f64,
    /// T_min: the shortest time of computing between two commits.
    pub least_seconds: f64,
    /// From the end of one search to the next.
    pub search_seconds: f64,
    /// The relative increase of the loss between two checks that forces a search.
    pub alarm: f64,
    /// Explicit momentum at the server, 0 to below 1.
    pub server_momentum: f64,
    /// The loss that training aims at, if that is known: probes are compared down to it.
    pub target_loss: Option<f64>,
}

impl Settings {
    /// T_min in check periods, the paper's 10 s of 60 s.
    const LEAST_SHARE: f64 = 1.0 / 6.0;
    /// Check periods between two searches, the paper's 20 minutes of one-minute periods.
    const PERIODS_PER_SEARCH: f64 = 20.0;
    /// Γ in steps of the straggler, where the job is small.
    const SCALED_CHECK_STEPS: f64 = 4.0;

    /// What was asked for, and the preset's defaults for the rest.
    pub fn from_options(options: &PolicyOptions, job: &Job) -> Self {
        let preset_check_seconds = match (options.preset(), job.straggler_seconds()) {
            (Preset::Scaled, straggler_seconds) if straggler_seconds > 0.0 => {
                Self::SCALED_CHECK_STEPS * straggler_seconds
            }
            _ => 60.0,
        };
        let check_seconds = options.check_period.map_or(preset_check_seconds, |period| period.as_secs_f64());
        let least_seconds = Self::LEAST_SHARE * check_seconds;
        let search_seconds = Self::PERIODS_PER_SEARCH * check_seconds;
        Settings {
            check_seconds,
            least_seconds: options.commit_period.map_or(least_seconds, |period| period.as_secs_f64()),
            search_seconds: options.search_period.map_or(search_seconds, |period| period.as_secs_f64()),
            alarm: 0.3,
            server_momentum: options.server_momentum.unwrap_or(0.0),
            target_loss: options.target_loss,
        }
    }

    /// Seconds of computing between two commits of a worker that is to make `commits` in a check period, and for which a
    /// commit's transfers and waiting take `overhead_seconds`.
    ///
    /// ```
    /// use esync::policy::adsp::Settings;
    /// use esync::policy::{Job, PolicyOptions, Preset};
    ///
    /// let job = Job {
    ///     size: 2,
    ///     step_seconds: [1.0, 1.0].into(),
    ///     shard_samples: [100, 100].into(),
    ///     batch_size: 1,
    ///     learning_rate: 0.1,
    ///     budget_samples: None,
    /// };
    /// let options = PolicyOptions { preset: Some(Preset::Paper), ..PolicyOptions::default() };
    /// let settings = Settings::from_options(&options, &job);
    /// assert_eq!(settings.budget_seconds(3, 2.0), 18.0);
    /// assert_eq!(settings.budget_seconds(30, 2.0), 10.0, "the least");
    /// ```
    pub fn budget_seconds(&self, commits: u64, overhead_seconds: f64) -> f64 {
        (self.check_seconds / commits.max(1) as f64 - overhead_seconds).max(self.least_seconds)
    }

    /// The greatest rate: beyond it the time between two commits no longer gets shorter.
    fn greatest_rate(&self) -> u64 {
        // Rounding must not take a whole commit away: 1 / (1/6) is 6.
        const ROUNDING: f64 = 1e-9;
        ((self.check_seconds / self.least_seconds.max(f64::MIN_POSITIVE) + ROUNDING).floor() as u64)
            .clamp(1, 1000)
    }
}

/// The momentum 1 − p that rare commits act like, with `p = 1 / (1 + (1 − 1/K) Σ 1 / (ΔC · v_k))`: `rate` is ΔC, and
/// `steps_per_period` the steps v_k that each of the K workers does in a check period.
///
/// It tells how momentum and rate hang together, and that a higher rate means less of it; it is reported, not acted upon.
///
/// ```
/// use esync::policy::adsp::implicit_momentum;
///
/// let workers = [20.0; 18];
/// assert!((implicit_momentum(1, &workers) - 0.459).abs() < 1e-3);
/// assert!(implicit_momentum(6, &workers) < implicit_momentum(1, &workers));
/// assert_eq!(implicit_momentum(1, &[20.0]), 0.0, "alone");
/// ```
pub fn implicit_momentum(rate: u64, steps_per_period: &[f64]) -> f64 {
    let workers = steps_per_period.len().max(1) as f64;
    let known = steps_per_period.iter().filter(|&&steps| steps > 0.0 && steps.is_finite());
    let sum: f64 = known.map(|steps| 1.0 / (rate.max(1) as f64 * steps)).sum();
    1.0 - 1.0 / (1.0 + (1.0 - 1.0 / workers) * sum)
}
