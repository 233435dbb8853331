//! `esync-train`'s inside: configuration, the training loop, and what it writes.

mod config;
mod devices;
mod flags;
mod heterogeneity;
mod launch;
mod metrics;
mod summary;

#[cfg(feature = "torch")]
mod evaluate;
pub(crate) mod report;
#[cfg(feature = "torch")]
mod run;
#[cfg(feature = "torch")]
mod served;
#[cfg(feature = "torch")]
mod supervisor;
#[cfg(feature = "torch")]
mod watcher;

pub use config::Config;
pub use devices::Placed;
pub use flags::{Flags, Progress, TransportChoice};
pub use heterogeneity::{SlowLinks, SlowRanks, Slowness};
pub use launch::{first_failure, run_ranks};
pub use metrics::Metrics;
#[cfg(feature = "torch")]
pub use run::{Outcome, train};
#[cfg(feature = "torch")]
pub(crate) use run::{server_samples, set_aside};
pub use summary::{ServerSummary, StoppedBy, Summary, WorkerSummary};
#[cfg(feature = "torch")]
pub use watcher::Signals;
