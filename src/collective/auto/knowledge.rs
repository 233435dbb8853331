//! What `auto` knows: a cluster, and where the figures come from. Rank 0 finds it out, all ranks agree on it.

use super::{Auto, TOPOLOGY_VARIABLE, usual};
use crate::cluster::{Cluster, cache_path};
use crate::collective::communicator::SEGMENT_BYTES;
use crate::collective::cost;
use crate::collective::{Collective, Topology};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// Where figures come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A topology file.
    File {
        /// Which.
        path: PathBuf,
    },
    /// Nothing was measured: what such transports usually do.
    Usual {
        /// Why there is no file.
        why: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path } => write!(f, "topology file {}", path.display()),
            Origin::Usual { why } => write!(f, "usual figures ({why})"),
        }
    }
}

/// What a choice is made from.
#[derive(Debug, Clone)]
pub struct Knowledge {
    /// Links, speeds and measured times.
    pub cluster: Cluster,
    /// Where they come from.
    pub origin: Origin,
    pub(super) topology: Topology,
    /// The length, in bytes, into which messages are cut.
    pub segment_bytes: usize,
}

/// What rank 0 tells the others.
#[derive(Serialize, Deserialize)]
enum Told {
    Cluster { text: String, origin: Origin },
    Unusable { path: PathBuf, what: String },
}

impl Knowledge {
    /// Knowledge of a cluster that was measured, or imagined.
    pub fn new(cluster: Cluster, origin: Origin) -> Self {
        let topology = cost::topology_of(&cluster);
        Knowledge { cluster, origin, topology, segment_bytes: SEGMENT_BYTES }
    }

    /// What is usual for a transport between ranks on these hosts (one name for each rank), each with so many cores.
    pub fn usual(transport: &str, hosts: &[&str], cores: usize) -> Self {
        let why = "`esync probe` measures this cluster".into();
        Self::new(usual::cluster(transport, hosts, cores), Origin::Usual { why })
    }

    /// What rank 0 of a job with ranks on these hosts (one name for each rank) would know.
    ///
    /// # Errors
    /// `Data` if the topology file that was named cannot be used.
    pub fn look_up(auto: &Auto, transport: &str, hosts: &[&str]) -> Result<Self> {
        Self::understand(&Self::find(auto, transport, hosts))
    }

    /// The text that rank 0 tells the others: the topology file that was named (on the command line or by the environment),
    /// or the cache's, or what is usual.
    pub(crate) fn find(auto: &Auto, transport: &str, hosts: &[&str]) -> String {
        let named = auto.topology.clone().or_else(|| {
            std::env::var_os(TOPOLOGY_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
        });
        let told = match named {
            Some(path) => match read_for(&path, hosts) {
                Ok(cluster) => Told::Cluster { text: cluster.to_toml(), origin: Origin::File { path } },
                Err(what) => Told::Unusable { path, what },
            },
            None => cached_or_usual(transport, hosts),
        };
        // A map of strings always has a JSON text.
        serde_json::to_string(&told).unwrap_or_default()
    }

    /// Understands what rank 0 told.
    ///
    /// # Errors
    /// `Data` if the file that was named cannot be used, on all ranks alike.
    pub(crate) fn understand(told: &str) -> Result<Self> {
        match serde_json::from_str(told) {
            Ok(Told::Cluster { text, origin }) => {
                Ok(Self::new(Cluster::parse(&text, Path::new("topology of rank 0"))?, origin))
            }
            Ok(Told::Unusable { path, what }) => Err(Error::data(path, what)),
            Err(e) => Err(Error::Internal(format!("rank 0 told no topology: {e}"))),
        }
    }

    /// Whether the cluster has times of this operation in this order.
    pub(super) fn measured<'a>(
        &'a self,
        operation: &'a str,
        order: &'a str,
    ) -> impl Iterator<Item = &'a crate::cluster::Measured> {
        self.cluster.measured.iter().filter(move |measured| {
            measured.operation == operation && (order.is_empty() || measured.order == order)
        })
    }

    /// The seconds that the cost model predicts for an algorithm, without the entry.
    ///
    /// # Errors
    /// `Refused` by the algorithm.
    pub fn predict(&self, collective: &dyn Collective, question: &super::Question) -> Result<f64> {
        let super::Question { operation, count, element_bytes, .. } = question;
        cost::predict(&self.cluster, collective, operation, *count, *element_bytes, self.segment_bytes)
    }
}

fn read_for(path: &Path, hosts: &[&str]) -> Result<Cluster, String> {
    let cluster = Cluster::read(path).map_err(|error| match error {
        Error::Data { what, .. } | Error::File { what, .. } => what,
        other => other.to_string(),
    })?;
    match cluster.difference(hosts) {
        None => Ok(cluster),
        Some(difference) => Err(format!("the topology file is not of this job: {difference}")),
    }
}

fn cached_or_usual(transport: &str, hosts: &[&str]) -> Told {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let why = match cache_path(transport, hosts) {
        Some(path) if path.exists() => match read_for(&path, hosts) {
            Ok(cluster) => return Told::Cluster { text: cluster.to_toml(), origin: Origin::File { path } },
            Err(what) => format!("{}: {what}; measure again with `esync probe`", path.display()),
        },
        _ => "`esync probe` measures this cluster".into(),
    };
    let text = usual::cluster(transport, hosts, cores).to_toml();
    Told::Cluster { text, origin: Origin::Usual { why } }
}
