//! What the program that runs a server sees of it and decides: when to measure, when to stop.

use super::Inbox;
use crate::error::{Error, Result};
use crate::policy::{Directive, Versions};
use crate::transport::Rank;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::time::Instant;

/// What has been done so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Seconds since training began.
    pub seconds: f64,
    /// Samples of all workers, as they told.
    pub global_samples: u64,
    /// Pushes of all workers.
    pub pushes: u64,
    /// The server's version.
    pub version: Versions,
    /// The worker's mean training loss since its last push, if this is a push.
    pub pushed_loss: Option<f64>,
    /// The worker.
    pub from: Rank,
}

/// What is due after a push or another report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Due {
    /// Stop, for this reason (the overseer's own number, above 0).
    pub stop: Option<u64>,
    /// Give me a [`Snapshot`] of the parameters once this report was dealt with.
    pub snapshot: bool,
}

/// The parameters of one version, from all shards.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// When it was taken: seconds since training began.
    pub seconds: f64,
    /// Samples of all workers until then.
    pub global_samples: u64,
    /// The version.
    pub version: Versions,
    /// The parameters.
    pub parameters: Vec<f32>,
}

/// What a worker has done, as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkerFigures {
    /// Pushes that arrived.
    pub pushes: u64,
    /// Of them, those that changed nothing.
    pub discarded_pushes: u64,
    /// Parameters that it was sent.
    pub pulls: u64,
    /// How many applied pushes were how many versions behind.
    pub staleness: BTreeMap<u64, u64>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// The last parameters.
    pub last: Snapshot,
    /// Why all were stopped, if they were: the greatest of the workers' wishes, or the overseer's own number.
    pub stop: Option<u64>,
    /// When all were stopped.
    pub stop_seconds: f64,
    /// Each worker's figures, in rank order.
    pub workers: Vec<WorkerFigures>,
}

/// Looks on at the head, and decides when to measure and when to stop. Called on the head's thread, where nothing should take
/// long: everybody waits.
pub trait Overseer {
    /// Training begins.
    fn began(&mut self) {}

    /// The coordinator has decided.
    ///
    /// # Errors
    /// Whatever ends training.
    fn decided(&mut self, directive: &Directive, version: Versions) -> Result<()> {
        let _ = (directive, version);
        Ok(())
    }

    /// A push or another report has arrived, and was not dealt with yet.
    ///
    /// # Errors
    /// Whatever ends training.
    fn told(&mut self, progress: &Progress) -> Result<Due> {
        let _ = progress;
        Ok(Due::default())
    }

    /// The snapshot that was due.
    ///
    /// # Errors
    /// Whatever ends training.
    fn snapshot(&mut self, snapshot: Snapshot) -> Result<()> {
        let _ = snapshot;
        Ok(())
    }

    /// The loss of these parameters on the server's held-out data.
    ///
    /// # Errors
    /// `Internal` if there are none.
    fn loss(&mut self, parameters: &[f32]) -> Result<f64> {
        let _ = parameters;
        Err(Error::Internal("this server has no data to measure a loss on".into()))
    }

    /// A worker is lost, and the others go on.
    fn lost(&mut self, rank: Rank, why: &str) {
        let _ = (rank, why);
    }

    /// All workers are done. Returns a text for every rank, and the parameters that are the result.
    ///
    /// # Errors
    /// Whatever shall end the others too.
    fn finish(&mut self, ending: Ending) -> Result<(String, Vec<f32>)> {
        Ok((String::new(), ending.last.parameters))
    }
}

/// An overseer that lets workers decide when to stop.
pub struct Unsupervised;
impl Overseer for Unsupervised {}

/// By which others speak to a service of their process.
#[derive(Clone)]
pub struct Handle {
    pub(super) inbox: Sender<Inbox>,
}

impl Handle {
    /// Training begins now: what the server stamps counts from here.
    pub fn begin(&self) {
        let _ = self.inbox.send(Inbox::Begin { now: Instant::now() });
    }

    /// Every worker is to stop, for this reason (a number above 0; the greatest counts).
    pub fn stop(&self, why: u64) {
        let _ = self.inbox.send(Inbox::Wish { wish: why });
    }
}
