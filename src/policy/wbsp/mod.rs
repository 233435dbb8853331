//! `--mode wbsp` and `--mode wbsp-overlap`: worker-busy synchronous parallel (Yang et al., *WBSP: Addressing stragglers in
//! distributed machine learning with worker-busy synchronous parallel*, Parallel Computing 121, 2024).
//!
//! Every worker pushes after every step and goes on at once. The server keeps what arrives in a buffer, and publishes the
//! buffer when the slowest worker has pushed: then everybody pulls the new parameters with its next push. Nobody waits, and
//! nobody trains on parameters that are older than one step of the slowest.
//!
//! `wbsp-overlap` also hides the transfer: a push is begun and the next step runs while it travels. What is pulled is merged,
//! so that the steps in flight stay.
//!
//! # Where this differs from the paper and its published code
//!
//! - The slowest worker is not named in advance (the code takes worker 1). The buffer is published as soon as every live
//!   worker has pushed at least once since the last publication: the same thing with one constant straggler, and right when
//!   speeds change or a worker dies.
//! - The code adds each push to the parameters at once, so that workers which pull at different moments get different
//!   models. Here pushes wait in the buffer, and all workers pull the same model between two publications.
//! - In the code's overlapping form a pull overwrites the steps that were taken meanwhile, and pushes may be empty. Here the
//!   pull is merged, and a push begins only after a step.
//! - Arrivals of one instant are all handled before any of them is answered. Equal workers then do what `sync` does.
//!
//! If a worker dies, it is no longer awaited; what it had pushed stays in the buffer.

mod coordinator;
mod worker;

pub use coordinator::WbspCoordinator;
pub use worker::{WbspOverlapWorker, WbspWorker};

use crate::transport::Rank;
use std::fmt;

/// Why WBSP did what it did.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum WbspReason {
    /// A worker pushes after every step.
    EveryStepIsPushed,
    /// The steps that were taken while the last push travelled are pushed next.
    PushWhatIsNew,
    /// The push is on its way.
    PushTravels,
    /// The push has been on its way for as many steps as one may hide.
    TooFarAhead {
        /// How many.
        local_steps: u64,
    },
    /// A push waits in the buffer.
    Buffered {
        /// Who has not pushed since the last publication (the first of them).
        awaited: Rank,
    },
    /// The push completes the buffer.
    CompletesBuffer,
    /// Every live worker has pushed since the last publication.
    SlowestPushed {
        /// Who pushed last.
        rank: Rank,
    },
    /// The only worker that had not pushed is gone.
    SlowestIsGone {
        /// Who.
        rank: Rank,
    },
    /// Parameters were published since the worker's last pull.
    PublishedSincePull,
    /// Nothing was published since the worker's last pull.
    NothingPublished {
        /// Who has not pushed since the last publication (the first of them).
        awaited: Rank,
    },
    /// The worker asked for parameters.
    PullAsked,
}

impl fmt::Display for WbspReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WbspReason::EveryStepIsPushed => write!(f, "every step is pushed"),
            WbspReason::PushWhatIsNew => {
                write!(f, "the last push has arrived, and there are new steps to push")
            }
            WbspReason::PushTravels => write!(f, "the push travels while the next step runs"),
            WbspReason::TooFarAhead { local_steps } => {
                write!(f, "the push has travelled for {local_steps} steps, and more would be training alone")
            }
            WbspReason::Buffered { awaited } => {
                write!(f, "kept in the buffer until every worker has pushed; rank {awaited} has not")
            }
            WbspReason::CompletesBuffer => write!(f, "the last push that the buffer waited for"),
            WbspReason::SlowestPushed { rank } => {
                write!(f, "every worker has pushed since the last publication; rank {rank} was the last")
            }
            WbspReason::SlowestIsGone { rank } => {
                write!(f, "rank {rank}, the only one that had not pushed, is gone")
            }
            WbspReason::PublishedSincePull => write!(f, "parameters were published since its last pull"),
            WbspReason::NothingPublished { awaited } => {
                write!(f, "nothing new is published: rank {awaited} has not pushed")
            }
            WbspReason::PullAsked => write!(f, "it asked for the published parameters"),
        }
    }
}
