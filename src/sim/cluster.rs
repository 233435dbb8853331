//! The cluster that is simulated.

use super::step_time::WorkerBehaviour;
use crate::cluster::{Cluster, Link};
use crate::error::{Error, Result};
use crate::transport::Rank;

/// Workers, the network between them, and the way to the server.
///
/// ```
/// use esync::sim::SimCluster;
///
/// // Two equal workers beside one that needs three times as long, in a network that costs nothing.
/// let cluster = SimCluster::of_steps(&[1.0, 1.0, 3.0]);
/// assert_eq!(cluster.size(), 3);
/// ```
#[derive(Debug, Clone)]
pub struct SimCluster {
    /// Hosts, links and network cards.
    pub network: Cluster,
    /// The workers, by rank.
    pub workers: Vec<WorkerBehaviour>,
    /// Where the parameter server is.
    pub server: ServerPlace,
    /// Seconds of every exchange, instead of what the collective's schedule needs in this network.
    pub exchange_seconds: Option<f64>,
    /// Bytes that all parameters together count as where they travel in f32, instead of the trained model's own: a small
    /// model then takes the time and the traffic of a large one. Parts and narrow wires count in proportion.
    pub model_bytes: Option<u64>,
}

/// The way to the parameter server, and what all workers share of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServerPlace {
    /// The way between any worker and the server, each way; `None` for that to another host in the worker's own network.
    pub link: Option<Link>,
    /// Seconds for each byte that passes the server's network card in one direction; `None` for the best link's.
    pub card_seconds_per_byte: Option<f64>,
}

const NOTHING: Link = Link { latency_seconds: 0.0, message_seconds: 0.0, seconds_per_byte: 0.0 };

/// Sixteen terabytes: beyond it schedules would be longer than memory.
const MOST_MODEL_BYTES: u64 = 1 << 44;

impl SimCluster {
    /// A worker for each element of `step_seconds`, on a host of its own, in a network that costs nothing.
    pub fn of_steps(step_seconds: &[f64]) -> Self {
        SimCluster {
            network: Cluster::homogeneous(step_seconds.len(), NOTHING, 0.0),
            workers: step_seconds.iter().map(|&seconds| WorkerBehaviour::constant(seconds)).collect(),
            server: ServerPlace { link: None, card_seconds_per_byte: None },
            exchange_seconds: Some(0.0),
            model_bytes: None,
        }
    }

    /// The same with this link between any two workers, and to the server.
    pub fn with_link(mut self, link: Link) -> Self {
        self.network = Cluster::homogeneous(self.size(), link, 0.0);
        self.exchange_seconds = None;
        self
    }

    /// The same with exchanges that take so long, whatever they carry.
    pub fn with_exchange_seconds(self, seconds: f64) -> Self {
        SimCluster { exchange_seconds: Some(seconds), ..self }
    }

    /// The same with a model that counts as so many bytes where it travels.
    pub fn with_model_bytes(self, bytes: u64) -> Self {
        SimCluster { model_bytes: Some(bytes), ..self }
    }

    /// How many workers there are.
    pub fn size(&self) -> usize {
        self.workers.len()
    }

    /// Refuses what cannot be simulated.
    ///
    /// # Errors
    /// `Usage` with the place and the quantity.
    pub fn check(&self) -> Result<()> {
        if self.workers.is_empty() || self.workers.len() != self.network.size() {
            return Err(Error::Usage(format!(
                "a cluster of {} workers in a network of {}; there must be one at least, and as many",
                self.workers.len(),
                self.network.size()
            )));
        }
        if let Some(seconds) =
            self.exchange_seconds.filter(|seconds| !(*seconds >= 0.0 && seconds.is_finite()))
        {
            return Err(Error::Usage(format!("an exchange of {seconds} s; it must not be negative")));
        }
        if let Some(bytes) = self.model_bytes.filter(|bytes| !(1..=MOST_MODEL_BYTES).contains(bytes)) {
            return Err(Error::Usage(format!(
                "a model of {bytes} bytes; it must be 1 to {MOST_MODEL_BYTES}"
            )));
        }
        (0..self.size()).try_for_each(|rank| self.workers[rank].check(&format!("worker {rank}")))
    }

    /// The way between a worker and the server.
    pub(super) fn server_link(&self, rank: Rank) -> Link {
        self.server.link.unwrap_or_else(|| {
            let host = |rank: Rank| self.network.workers[rank].host;
            let others = || (0..self.size()).filter(|&other| other != rank);
            let elsewhere = others().find(|&other| host(other) != host(rank)).or_else(|| others().next());
            elsewhere.map_or(NOTHING, |other| self.network.link(rank, other))
        })
    }
}
