//! Why ADSP did what it did.

use super::{Probe, Rejection};
use std::fmt;

/// Why ADSP did what it did.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum AdspReason {
    /// The time between two commits is not over.
    TimeLeft {
        /// Seconds of computing since the last commit.
        computed_seconds: f64,
        /// Seconds of computing between two commits.
        budget_seconds: f64,
    },
    /// The time between two commits is over.
    TimeIsOver {
        /// Seconds of computing since the last commit.
        computed_seconds: f64,
        /// Seconds of computing between two commits.
        budget_seconds: f64,
    },
    /// A commit is added.
    Added {
        /// The share of it that counts.
        share: f64,
    },
    /// The worker goes on as before, with the newest parameters.
    GoesOn {
        /// Its commits so far.
        commits: u64,
    },
    /// The worker's time between two commits changes.
    NewBudget {
        /// Seconds of computing between two commits.
        budget_seconds: f64,
        /// Commits that it is to make in the check period.
        commits: u64,
        /// Seconds of a check period.
        check_seconds: f64,
        /// What a commit's transfers and waiting take.
        overhead_seconds: f64,
        /// The momentum that the rate acts like.
        implicit_momentum: f64,
        /// Why the rate is what it is.
        rate: RateReason,
    },
    /// The worker asked for parameters.
    PullAsked,
}

/// Why the rate of commits is what it is.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RateReason {
    /// Nothing was tried yet.
    First {
        /// Commits per check period.
        rate: u64,
    },
    /// It is being tried.
    Probed {
        /// Commits per check period.
        rate: u64,
        /// What the last probe has shown, if there was one in this search.
        after: Option<Probe>,
    },
    /// A search has ended with it.
    Kept {
        /// Commits per check period.
        rate: u64,
        /// What the last probe has shown.
        after: Probe,
    },
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rejection::TooFew { samples } => write!(f, "it has only {samples} samples"),
            Rejection::Diverged { loss } => write!(f, "its loss went to {loss:.4}"),
            Rejection::NotFalling { first, last } => {
                write!(
                    f,
                    "its loss does not fall between most of its samples: {first:.4} at first, {last:.4} at last"
                )
            }
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.curve {
            Err(rejection) => write!(f, "{} is rejected, because {rejection}", self.rate),
            Ok(curve) => {
                write!(f, "{} makes the loss fall with a steepness of {:.4}/s", self.rate, curve.steepness)
            }
        }
    }
}

impl fmt::Display for RateReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RateReason::First { rate } => write!(f, "a rate of {rate} is the first"),
            RateReason::Probed { rate, after: None } => write!(f, "a rate of {rate} is being tried"),
            RateReason::Probed { rate, after: Some(after) } => {
                write!(f, "a rate of {rate} is being tried, after {after}")
            }
            RateReason::Kept { rate, after } => {
                write!(f, "a rate of {rate} is kept until the next search, after {after}")
            }
        }
    }
}

impl fmt::Display for AdspReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdspReason::TimeLeft { computed_seconds, budget_seconds } => {
                write!(f, "{computed_seconds:.4} s of {budget_seconds:.4} s are over until the next commit")
            }
            AdspReason::TimeIsOver { computed_seconds, budget_seconds } => {
                write!(f, "a commit is due: {computed_seconds:.4} s of {budget_seconds:.4} s are over")
            }
            AdspReason::Added { share } => write!(f, "added with a share of {share:.4}"),
            AdspReason::GoesOn { commits } => write!(f, "the newest parameters, after its commit {commits}"),
            AdspReason::NewBudget {
                budget_seconds,
                commits,
                check_seconds,
                overhead_seconds,
                implicit_momentum,
                rate,
            } => write!(
                f,
                "{budget_seconds:.4} s between commits: {commits} in {check_seconds:.3} s, less {overhead_seconds:.4} s for \
                 transfers; {rate} (implicit momentum {implicit_momentum:.2})"
            ),
            AdspReason::PullAsked => write!(f, "it asked for the newest parameters"),
        }
    }
}
