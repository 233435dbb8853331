//! `--mode async-diloco`: asynchronous local SGD with delayed Nesterov momentum and dynamic local updates (Liu et al.,
//! *Asynchronous Local-SGD Training for Language Modeling*, 2024, arXiv 2401.09135).
//!
//! Each worker trains for its own number of steps, pushes its delta, pulls, and goes on; nobody waits for a slower one.
//!
//! - **Delayed Nesterov.** Momentum that every stale push renews would amplify itself. The server adds each delta at once and
//!   renews the momentum once in N pushes, N being the number of workers
//!   ([`PushRule::DelayedNesterov`](crate::policy::PushRule::DelayedNesterov)). N pushes together are one Nesterov step on
//!   their mean.
//! - **Dynamic local updates.** Worker k does `max(1, ⌊v_k / max v · H⌋)` steps between two pushes, v being steps per second,
//!   so that windows take all workers about equally long and pushes are hardly stale.
//! - **Grace period.** After a push the server waits a little for others, applies them in the order of their arrival, and
//!   then answers all: these workers begin their next window from the same parameters.
//!
//! # Where this differs from the paper
//!
//! - A worker learns of a new number of steps only when that differs from its old one by more than a tenth: it then asks for
//!   the parameters in a second message. All other pushes take one round trip.
//! - The grace period ends early when all live workers have pushed.
//! - Speeds are of computing alone. With transfers in them, a worker behind a slow link would be given fewer steps, its
//!   transfers would weigh more, and it would be given fewer still.

mod coordinator;
mod worker;

pub use coordinator::AsyncDilocoCoordinator;
pub use worker::AsyncDilocoWorker;

use crate::policy::{Job, PolicyOptions, Preset};
use crate::transport::Rank;
use std::fmt;
use std::time::Duration;

/// What can be chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// H: local steps between two pushes of the fastest worker, at least 1.
    pub local_steps: u64,
    /// How long the server waits for further pushes after one has arrived; zero for not at all.
    pub grace_period: Duration,
    /// Outer learning rate.
    pub learning_rate: f64,
    /// Outer momentum β.
    pub momentum: f64,
    /// c: how much of the momentum pushes between two renewals carry along, 0 to 1/N.
    pub carry: f64,
}

impl Settings {
    /// H where the job is small.
    const SCALED_LOCAL_STEPS: u64 = 16;
    /// The least that the paper uses for language models.
    const PAPER_LOCAL_STEPS: u64 = 50;
    /// The authors' example waits 0.5 s, and its slowest worker needs 3.33 s for a step.
    const PAPER_GRACE_SECONDS: f64 = 0.5;
    const GRACE_SHARE: f64 = 0.15;

    /// What was asked for, and the preset's defaults for the rest.
    pub fn from_options(options: &PolicyOptions, job: &Job) -> Self {
        let defaults = match options.preset() {
            Preset::Scaled => Settings::scaled(job.straggler_seconds()),
            Preset::Paper => Settings::paper(),
        };
        Settings {
            local_steps: options.local_steps.unwrap_or(defaults.local_steps).max(1),
            grace_period: options.grace_period.unwrap_or(defaults.grace_period),
            learning_rate: options.global_learning_rate.unwrap_or(defaults.learning_rate),
            ..defaults
        }
    }

    /// Steps of `rank`'s first window, if its and all others' steps take these seconds.
    pub fn first_local_steps(&self, step_seconds: &[f64], rank: Rank) -> u64 {
        let own = step_seconds.get(rank).copied().unwrap_or(0.0);
        dynamic_local_steps(own, fastest(step_seconds.iter().copied()), self.local_steps)
    }

    /// Defaults for a job whose slowest worker needs `straggler_seconds` for a step.
    pub fn scaled(straggler_seconds: f64) -> Self {
        let grace_period = Duration::try_from_secs_f64(Self::GRACE_SHARE * straggler_seconds);
        Settings {
            local_steps: Self::SCALED_LOCAL_STEPS,
            grace_period: grace_period.unwrap_or_default(),
            ..Settings::paper()
        }
    }

    /// The authors' own numbers.
    pub fn paper() -> Self {
        Settings {
            local_steps: Self::PAPER_LOCAL_STEPS,
            grace_period: Duration::from_secs_f64(Self::PAPER_GRACE_SECONDS),
            learning_rate: 0.7,
            momentum: 0.9,
            carry: 0.0,
        }
    }
}

/// How many steps a worker does between two pushes when it needs `step_seconds` for one, the fastest needs
/// `fastest_seconds`, and the fastest does `local_steps`.
///
/// ```
/// use esync::policy::async_diloco::dynamic_local_steps;
/// assert_eq!(dynamic_local_steps(0.75, 0.58, 50), 38);
/// assert_eq!(dynamic_local_steps(3.33, 0.58, 50), 8);
/// assert_eq!(dynamic_local_steps(100.0, 0.58, 50), 1);
/// ```
pub fn dynamic_local_steps(step_seconds: f64, fastest_seconds: f64, local_steps: u64) -> u64 {
    if !(step_seconds > 0.0 && fastest_seconds > 0.0) {
        return local_steps.max(1);
    }
    // A ratio such as 0.1 / 0.3 of 12 steps is 4, and must not become 3 by rounding.
    const ROUNDING: f64 = 1e-9;
    let share = (fastest_seconds / step_seconds).min(1.0);
    ((share * local_steps as f64 + ROUNDING).floor() as u64).max(1)
}

/// The fastest of these seconds for a step; 0 if none is known.
fn fastest(step_seconds: impl Iterator<Item = f64>) -> f64 {
    let known = step_seconds.filter(|&seconds| seconds > 0.0 && seconds.is_finite());
    known.min_by(f64::total_cmp).unwrap_or(0.0)
}

/// Why asynchronous DiLoCo did what it did.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum AsyncDilocoReason {
    /// A push, applied at once.
    Applied {
        /// Which of the momentum's period, from 1.
        push: u64,
        /// Pushes per renewal of the momentum.
        period: u32,
    },
    /// Parameters for a worker whose number of steps stays.
    NewestParameters {
        /// Pushes that were applied together with its own.
        together: usize,
    },
    /// The number of steps follows the speeds.
    StepsFollowSpeed {
        /// Its seconds for a step.
        step_seconds: f64,
        /// The fastest live worker's.
        fastest_seconds: f64,
        /// Steps so far.
        before: u64,
    },
    /// The worker asked for parameters.
    PullAsked,
}

impl fmt::Display for AsyncDilocoReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AsyncDilocoReason::Applied { push, period } if *push == u64::from(*period) => {
                write!(f, "push {push} of {period}: it renews the momentum")
            }
            AsyncDilocoReason::Applied { push, period } => {
                write!(f, "push {push} of {period}: the momentum waits")
            }
            AsyncDilocoReason::NewestParameters { together: 1 } => {
                write!(f, "the newest parameters, after its push")
            }
            AsyncDilocoReason::NewestParameters { together } => {
                write!(f, "the newest parameters, after {together} pushes together")
            }
            AsyncDilocoReason::StepsFollowSpeed { step_seconds, fastest_seconds, before } => write!(
                f,
                "{before} steps no longer fit its speed: a step takes {step_seconds:.4} s, the fastest worker's {fastest_seconds:.4} s"
            ),
            AsyncDilocoReason::PullAsked => write!(f, "it asked for the newest parameters"),
        }
    }
}
