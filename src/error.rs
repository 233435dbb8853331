//! The library's one error type. Every variant carries the facts as fields, and maps to a documented exit code.

use crate::transport::{Peer, Rank};
use std::path::PathBuf;

/// The result of everything in this library that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where, and (in its text) what to do about it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A flag, a configuration value or an argument that cannot be used.
    #[error("{0}")]
    Usage(String),

    /// Something that the machine should provide is missing or unusable (libtorch, MPI, a device, a directory).
    #[error("{0}")]
    Environment(String),

    /// A data file that is missing, truncated or malformed.
    #[error("{path}: {what}", path = path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        what: String,
    },

    /// A file or directory that could not be read or written.
    #[error("{path}: {what}", path = path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, and the system's answer.
        what: String,
    },

    /// A collective algorithm that cannot do what was asked of it.
    #[error("collective `{collective}` refuses {operation}: {reason}")]
    Refused {
        /// The algorithm's name.
        collective: &'static str,
        /// What was asked.
        operation: String,
        /// Why it cannot, and what can.
        reason: String,
    },

    /// Ranks entered one collective with different arguments.
    #[error("ranks disagree in {operation}: {what}")]
    Mismatch {
        /// The operation as this rank called it.
        operation: String,
        /// Which rank differs, in what, with both values.
        what: String,
    },

    /// A peer ended, panicked or failed while others still needed it.
    #[error("{peer} was lost during {operation}: {what}")]
    PeerLost {
        /// The rank that was lost.
        peer: Peer,
        /// What this rank was doing.
        operation: String,
        /// How it was noticed.
        what: String,
    },

    /// A deadline passed.
    #[error("rank {waiting} waited {seconds:.1} s in {operation} for {}: {hint}", list_peers(missing))]
    Stalled {
        /// The rank that waited.
        waiting: Rank,
        /// Who did not arrive.
        missing: Vec<Peer>,
        /// The operation in which the wait happened.
        operation: String,
        /// How long it waited, in seconds.
        seconds: f64,
        /// What was found out about the missing ranks, and what to do.
        hint: String,
    },

    /// The loss or the parameters stopped being numbers.
    #[error(
        "rank {rank} diverged: its loss is {loss} at local step {step}; lower the learning rate, or look at the data of that rank"
    )]
    Diverged {
        /// The first rank on which it happened.
        rank: Rank,
        /// The number of local steps that the rank had done.
        step: u64,
        /// The loss (NaN or infinite).
        loss: f64,
    },

    /// A worker pushed something that is not a number to a parameter server.
    #[error(
        "rank {rank} diverged: element {element} of its push is {value}; lower the learning rate, or look at the data of that rank"
    )]
    DivergedPush {
        /// Whose push.
        rank: Rank,
        /// The first such element.
        element: usize,
        /// What it is (NaN or infinite).
        value: f32,
    },

    /// Training failed for another reason.
    #[error("{0}")]
    Training(String),

    /// A schedule, a policy or this library broke its own rule.
    #[error("internal error, please report it: {0}")]
    Internal(String),
}

impl Error {
    /// The exit code of a program that ends with this error, as `README.md` documents them.
    ///
    /// ```
    /// assert_eq!(esync::Error::Usage("no such flag".into()).exit_code(), 2);
    /// ```
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Training(_) | Error::Internal(_) | Error::Mismatch { .. } => 1,
            Error::Usage(_) | Error::Refused { .. } => 2,
            Error::Environment(_) | Error::File { .. } => 3,
            Error::Data { .. } => 4,
            Error::PeerLost { .. } => 5,
            Error::Stalled { .. } => 6,
            Error::Diverged { .. } | Error::DivergedPush { .. } => 7,
        }
    }

    /// Whether this error only says that *another* rank failed, so that the other rank's own message is the one to show.
    pub fn is_secondary(&self) -> bool {
        matches!(self, Error::PeerLost { .. })
    }

    /// Whether it is about a rank that did not come, or is gone.
    #[cfg(feature = "mpi")]
    pub(crate) fn concerns_a_peer(&self) -> bool {
        matches!(self, Error::PeerLost { .. } | Error::Stalled { .. })
    }

    /// Whether all ranks see the same error (or each its own side of the same failure), so that one of them should speak.
    pub fn concerns_all(&self) -> bool {
        !matches!(self, Error::Training(_) | Error::Internal(_))
    }

    pub(crate) fn file(path: impl Into<PathBuf>, what: impl std::fmt::Display) -> Self {
        Error::File { path: path.into(), what: what.to_string() }
    }

    pub(crate) fn data(path: impl Into<PathBuf>, what: impl std::fmt::Display) -> Self {
        Error::Data { path: path.into(), what: what.to_string() }
    }
}

fn list_peers(peers: &[Peer]) -> String {
    let names: Vec<String> = peers.iter().map(Peer::to_string).collect();
    names.join(", ")
}
