//! The parameter server: shards of the parameters as services of some ranks, and the workers' lines to them.
//!
//! A shard is one thread in its rank's process, reached by sockets, because a blocking read costs no core. It owns its part
//! of the parameters in a [`Store`](crate::policy::Store), so that nothing is locked. Shard 0 is the *head*: it runs the
//! [`Coordinator`](crate::policy::Coordinator), counts samples, and writes the log of commands (apply this push, send this moment's parameters to that
//! worker) that every shard carries out in the same order. Hence:
//!
//! - every pull has the same version from all shards;
//! - every push is applied once, on all shards or on none: the head decides on it when all its parts have arrived;
//! - a slow worker holds up nobody: every connection has a queue, and threads that read and write it.
//!
//! A worker whose connection closes without a goodbye is lost; the [`Coordinator`](crate::policy::Coordinator) is told, and the others go on. A server
//! that fails ends everybody's wait at once.
//!
//! ```
//! use esync::collective::{Communicator, CommunicatorOptions};
//! use esync::policy::wbsp::WbspCoordinator;
//! use esync::policy::{LocalSteps, Payload, Report, Versions};
//! use esync::runtime::server::{Rule, ServerOptions, Unsupervised, establish};
//! use esync::transport::threads;
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! let results = threads::run(2, |transport| {
//!     let mut communicator = Communicator::new(Arc::new(transport), CommunicatorOptions::default())?;
//!     let rule = || {
//!         let coordinator = Box::new(WbspCoordinator::new(2, 0.5));
//!         Ok(Rule { coordinator, overseer: Box::new(|_| Ok(Box::new(Unsupervised))) })
//!     };
//!     let mut server = establish(&mut communicator, &ServerOptions::default(), &[0.0], 1, rule)?;
//!     if let Some(service) = &server.service {
//!         service.handle().begin();
//!     }
//!     let report = Report::Pushed {
//!         payload: Payload::Delta,
//!         local_steps: LocalSteps(1),
//!         samples: 32,
//!         loss: 1.0,
//!         norm: 2.0,
//!         seconds_since_push: 0.1,
//!         compute_seconds: 0.1,
//!         base: Versions(0),
//!     };
//!     server.link.push(Payload::Delta, &[2.0], report, 32, 0)?;
//!     server.link.answer("a push")?;
//!     server.link.goodbye()?;
//!     Ok(server.link.finale(Some(Duration::from_secs(60)))?.parameters)
//! });
//! for parameters in results {
//!     assert_eq!(parameters?, [2.0]);
//! }
//! # Ok::<(), esync::Error>(())
//! ```

mod establish;
mod frame;
mod head;
mod link;
mod outgoing;
mod overseer;
mod shard;

pub use establish::{Established, Rule, ServerOptions, Service, establish};
pub use link::{Answer, Finale, Link};
pub use overseer::{Due, Ending, Handle, Overseer, Progress, Snapshot, Unsupervised, WorkerFigures};

use crate::error::{Error, Result};
use crate::policy::Payload;
use crate::reduce::WireFormat;
use crate::transport::Rank;
use frame::{Command, Slice, Told};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Where shards live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// Beside the workers of the first ranks.
    #[default]
    Shared,
    /// On the last ranks, which do not train.
    Dedicated,
}

impl Placement {
    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Dedicated => "dedicated",
        }
    }

    /// How many of `size` ranks train beside `servers` servers.
    ///
    /// ```
    /// use esync::runtime::server::Placement;
    /// assert_eq!(Placement::Shared.workers(8, 2), 8);
    /// assert_eq!(Placement::Dedicated.workers(8, 2), 6);
    /// ```
    pub fn workers(self, size: usize, servers: usize) -> usize {
        match self {
            Self::Shared => size,
            Self::Dedicated => size.saturating_sub(servers),
        }
    }

    /// The rank that holds shard `index` of `servers`.
    pub fn rank(self, size: usize, servers: usize, index: usize) -> Rank {
        self.workers(size, servers) % size + index
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Placement {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Shared, Self::Dedicated].into_iter().find(|placement| placement.name() == text).ok_or_else(
            || Error::Usage(format!("unknown placement `{text}`; choose one of: shared, dedicated")),
        )
    }
}

/// What a shard is told before it begins.
struct Setup {
    index: usize,
    slice: Slice,
    /// Every shard's, the head's first.
    slices: Vec<Slice>,
    /// All ranks' initial parameters.
    parameters: Vec<f32>,
    workers: usize,
    keeps_backups: bool,
    wire: WireFormat,
    timeout: Duration,
}

/// What a shard's one thread is told by its readers.
enum Inbox {
    /// A worker's part of a push; at the head with its report.
    Push { from: Rank, number: u64, payload: Payload, values: Vec<f32>, told: Option<Told> },
    /// A report without numbers.
    Report { from: Rank, told: Told },
    /// Somebody wishes to stop.
    Wish { wish: u64 },
    /// A worker says that all must end.
    Failed { from: Rank, why: String },
    /// A worker is done.
    Goodbye { from: Rank },
    /// A worker's connection has ended.
    Closed { from: Rank, why: String },
    /// Training begins.
    Begin { now: Instant },
    /// The head: a part of a push has arrived at another shard.
    Arrived { from: Rank, number: u64 },
    /// The head: another shard's part of a snapshot.
    Part { shard: usize, version: u64, values: Vec<f32> },
    /// The head: another shard is gone.
    ShardLost { shard: usize, why: String },
    /// Another shard: the log.
    Command(Command),
    /// Another shard: the log has ended.
    HeadLost,
}

/// Bytes of parameters, gradients and deltas through one service.
#[derive(Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counters {
    fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
