//! Why the rules of `async`, `dc-asgd`, `ssp`, `bounded-delay`, `easgd` and `r2sp` did what they did.

use super::{Clocks, Versions};
use crate::transport::Rank;
use std::fmt;

/// Why a parameter server applied, answered or held.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ServerReason {
    /// A push is added.
    Added {
        /// How many versions old it is.
        staleness: Versions,
        /// Its factor.
        scale: f64,
    },
    /// A gradient is applied with a correction for its age.
    Compensated {
        /// How many versions old it is.
        staleness: Versions,
    },
    /// This mode lets nobody wait.
    NobodyWaits,
    /// What the worker read last is recent enough.
    CacheIsFresh {
        /// The worker's clock.
        clock: Clocks,
        /// The clock that everybody had completed when it read.
        cached: Clocks,
        /// The bound.
        bound: Clocks,
    },
    /// What the worker read last is too old, and everybody has done what a new reading must hold.
    CacheIsRenewed {
        /// The worker's clock.
        clock: Clocks,
        /// The clock that everybody has completed.
        slowest: Clocks,
        /// The bound.
        bound: Clocks,
    },
    /// Nobody who computes is too far behind.
    WithinBound {
        /// The worker that computes with the oldest parameters, and their age; `None` if all had arrived.
        oldest: Option<(Rank, Versions)>,
        /// The bound.
        bound: Versions,
    },
    /// Worker and centre move towards each other.
    Elastic {
        /// By this share of their difference.
        alpha: f64,
    },
    /// It was this worker's turn.
    Turn {
        /// Whose turn is next.
        next: Rank,
        /// How many versions old its push is.
        staleness: Versions,
        /// The factor of its push.
        scale: f64,
    },
    /// The worker is answered in its turn.
    TurnTaken,
    /// A mini-batch of this size makes the worker's step as long as the others'.
    BatchTuned {
        /// Samples in it.
        batch_size: usize,
        /// The worker's speed.
        samples_per_second: f64,
    },
    /// The worker asked for parameters.
    Asked,
}

impl fmt::Display for ServerReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { staleness, scale } => {
                write!(f, "computed {staleness} versions ago, and counts {scale:.3}")
            }
            Self::Compensated { staleness } => {
                write!(f, "computed {staleness} versions ago, and is corrected for what has changed since")
            }
            Self::NobodyWaits => write!(f, "nobody waits for anybody in this mode"),
            Self::CacheIsFresh { clock, cached, bound } => write!(
                f,
                "at clock {clock} it may go on with parameters that hold everybody's first {cached} steps: the bound is {bound}"
            ),
            Self::CacheIsRenewed { clock, slowest, bound } => write!(
                f,
                "at clock {clock} it needs newer parameters, and everybody has completed {slowest} steps: the bound is {bound}"
            ),
            Self::WithinBound { oldest: Some((rank, age)), bound } => write!(
                f,
                "the oldest parameters in use, those of rank {rank}, are {age} versions old: the bound is {bound}"
            ),
            Self::WithinBound { oldest: None, bound } => {
                write!(f, "everybody has pushed, so that nobody is more than {bound} versions behind")
            }
            Self::Elastic { alpha } => {
                write!(f, "worker and centre move towards each other by {alpha:.4} of their difference")
            }
            Self::Turn { next, staleness, scale } => write!(
                f,
                "it was its turn: computed {staleness} versions ago, counts {scale:.3}, and rank {next} is next"
            ),
            Self::TurnTaken => write!(f, "its turn is over, and the server answers at once"),
            Self::BatchTuned { batch_size, samples_per_second } => write!(
                f,
                "at {samples_per_second:.0} samples per second, {batch_size} samples take as long as the others' steps"
            ),
            Self::Asked => write!(f, "it asked for the server's parameters"),
        }
    }
}
