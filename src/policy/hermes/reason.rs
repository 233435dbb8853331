//! Why Hermes did what it did.

use super::{Sizes, Verdict};
use std::fmt;

/// Why Hermes did what it did.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum HermesReason {
    /// The job begins with other sizes than the command line's.
    FirstSizes(Sizes),
    /// The size of the next epoch is asked for before it is needed.
    AskForNextSize {
        /// Steps of this epoch that are left.
        steps_left: u64,
    },
    /// The epoch is over.
    EpochOver {
        /// Its steps.
        local_steps: u64,
    },
    /// The gate's verdict on the held-out loss.
    Judged {
        /// The loss.
        loss: f64,
        /// What the gate found.
        verdict: Verdict,
    },
    /// The held-out loss is not a number.
    BeginAgain {
        /// The loss.
        loss: f64,
    },
    /// The server has sized the next epoch.
    NextSizes(Sizes),
    /// A push is merged.
    Merged,
    /// The merged parameters go to whom has pushed, or asked.
    MergedParameters,
    /// An epoch lasts about as long as the others'.
    LastsAsOthers {
        /// Its seconds.
        epoch_seconds: f64,
        /// The median of all.
        target_seconds: f64,
    },
    /// No sizes would bring the epoch closer to the others'.
    NothingFits {
        /// Its seconds.
        epoch_seconds: f64,
        /// The median of all.
        target_seconds: f64,
    },
    /// An epoch lasts much longer or shorter than the others'.
    Sized {
        /// Its seconds so far.
        epoch_seconds: f64,
        /// The median of all.
        target_seconds: f64,
        /// The sizes so far.
        before: Sizes,
        /// The sizes from now on.
        after: Sizes,
    },
    /// The loss has stopped improving.
    NoNewBest {
        /// Pushes since the best loss.
        pushes: u64,
        /// The best loss.
        best: f64,
    },
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} samples in mini-batches of {}", self.data_budget, self.batch_size)
    }
}

impl fmt::Display for HermesReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HermesReason::FirstSizes(sizes) => write!(f, "a pass has {sizes} at first"),
            HermesReason::AskForNextSize { steps_left } => {
                write!(
                    f,
                    "the next epoch's size is asked for before it is needed; steps left in this one: {steps_left}"
                )
            }
            HermesReason::EpochOver { local_steps } => write!(f, "the epoch's {local_steps} steps are done"),
            HermesReason::Judged { loss, verdict: Verdict { z_score: None, .. } } => {
                write!(
                    f,
                    "minor: the held-out loss of {loss:.4} has nothing to be compared with, or none differs from it"
                )
            }
            HermesReason::Judged {
                loss,
                verdict: Verdict { z_score: Some(z_score), threshold, is_major },
            } => {
                let (verdict, relation) = if *is_major { ("major", "not above") } else { ("minor", "above") };
                write!(
                    f,
                    "{verdict}: the held-out loss of {loss:.4} scores {z_score:.3}, {relation} {threshold:.3}"
                )
            }
            HermesReason::BeginAgain { loss } => {
                write!(f, "the held-out loss is {loss}: the worker begins again from the merged parameters")
            }
            HermesReason::NextSizes(sizes) => write!(f, "from now on a pass has {sizes}"),
            HermesReason::Merged => write!(f, "merged by inverse losses"),
            HermesReason::MergedParameters => write!(f, "the merged parameters"),
            HermesReason::LastsAsOthers { epoch_seconds, target_seconds } => {
                write!(
                    f,
                    "its epoch of {epoch_seconds:.3} s is no outlier, the median is {target_seconds:.3} s"
                )
            }
            HermesReason::NothingFits { epoch_seconds, target_seconds } => {
                write!(
                    f,
                    "its epoch of {epoch_seconds:.3} s cannot come closer to the median of {target_seconds:.3} s"
                )
            }
            HermesReason::Sized { epoch_seconds, target_seconds, before, after } => write!(
                f,
                "its epoch lasts {epoch_seconds:.3} s and the median {target_seconds:.3} s: {after} in place of {before}"
            ),
            HermesReason::NoNewBest { pushes, best } => {
                write!(f, "{pushes} pushes have brought no better loss than {best:.4}")
            }
        }
    }
}
