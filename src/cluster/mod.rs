//! The cluster as it was measured or imagined: hosts, links between ranks, network cards, speeds, and measured times of
//! collectives.
//!
//! A [`Cluster`] is what the cost model, `auto` and the simulator look at. It is read from and written to a topology
//! file ([`Cluster::read`], [`Cluster::to_toml`]), which `esync probe` measures and which people may write by hand:
//!
//! ```
//! let text = r#"
//! version = 1
//! transport = "mpi"
//!
//! [[hosts]]
//! name = "a"
//! ranks = 2
//! cores = 4
//! reduce_seconds_per_byte = 1e-10
//!
//! [[hosts]]
//! name = "b"
//! ranks = [2]
//! cores = 1
//! reduce_seconds_per_byte = 4e-10
//!
//! [[network_cards]]
//! ranks = [0, 1]
//! bandwidth_bytes_per_second = 1.25e9
//!
//! [[links]]                      # any two ranks of one host
//! hosts = "same"
//! latency_seconds = 1e-6
//! bandwidth_bytes_per_second = 8e9
//!
//! [[links]]                      # any two ranks of different hosts
//! hosts = "different"
//! latency_seconds = 30e-6
//! seconds_per_byte = 8e-10
//! "#;
//! let cluster = esync::cluster::Cluster::parse(text, "cluster.toml".as_ref())?;
//! assert_eq!(cluster.size(), 3);
//! assert_eq!(cluster.link(0, 2).latency_seconds, 30e-6);
//! # Ok::<(), esync::Error>(())
//! ```
//!
//! It knows nothing of algorithms: measured times carry names, which `auto` understands.

mod cache;
mod file;
mod links;
mod simulated;
mod write;

pub use cache::cache_path;
pub(crate) use simulated::{BehaviourEntry, PauseEntry, Simulated};

use crate::error::Result;
use crate::transport::Rank;

/// One direction of the way between two ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Seconds from posting a message of no bytes to its arrival.
    pub latency_seconds: f64,
    /// Seconds for which a message of no bytes occupies its sender and its receiver: at most the latency, and what
    /// limits the rate of many short messages.
    pub message_seconds: f64,
    /// Seconds for each byte of a message.
    pub seconds_per_byte: f64,
}

/// A machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// Its name, as the ranks report it.
    pub name: String,
    /// Cores that its ranks may use.
    pub cores: usize,
    /// Seconds to hand a core from one waiting rank to the next, where ranks outnumber cores.
    pub switch_seconds: f64,
}

/// What one rank can do by itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Worker {
    /// The number of its host.
    pub host: usize,
    /// Seconds to add a byte of one vector to another (f32).
    pub reduce_seconds_per_byte: f64,
    /// Seconds to copy a byte.
    pub copy_seconds_per_byte: f64,
    /// Seconds of a training step, for the simulator.
    pub step_seconds: Option<f64>,
}

/// A network card, shared by ranks of one host. Each direction has the whole bandwidth.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkCard {
    /// Who shares it.
    pub ranks: Vec<Rank>,
    /// Seconds for each byte that passes it in one direction.
    pub seconds_per_byte: f64,
}

/// Measured times of one algorithm for one operation, at increasing sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The operation, as on the command line (`all-reduce`).
    pub operation: String,
    /// The order of summation (`canonical`, `rank`, `fastest`).
    pub order: String,
    /// The algorithm.
    pub collective: String,
    /// `(bytes of one rank's vector, seconds on the slowest rank)`, by increasing bytes.
    pub times: Vec<(u64, f64)>,
}

/// Ranks, the hosts that they run on, and everything that was measured about them.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// The transport that the figures hold for.
    pub transport: String,
    /// When it was measured, as the measuring program wrote it.
    pub measured_at: Option<String>,
    /// With what it was measured.
    pub measured_with: Option<String>,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// The ranks.
    pub workers: Vec<Worker>,
    /// The network cards that are known to be shared.
    pub network_cards: Vec<NetworkCard>,
    /// Times of whole operations.
    pub measured: Vec<Measured>,
    /// What only the simulator looks at.
    pub(crate) simulated: Simulated,
    pub(crate) links: Links,
}

/// The ways from each rank to each rank.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Links {
    /// Row by row.
    Each(Vec<Link>),
    /// All alike, but for a rank's own host: a matrix of many thousand ranks would take gigabytes.
    Classes { same_host: Link, other_host: Link },
}

/// From so many ranks on, links are kept by class where the classes say everything.
const MANY: usize = 257;

impl Cluster {
    /// `size` equal ranks with a host and a core each, any two joined by `link`, in a network that nothing limits.
    ///
    /// ```
    /// use esync::cluster::{Cluster, Link};
    /// let link = Link { latency_seconds: 1e-5, message_seconds: 1e-5, seconds_per_byte: 1e-9 };
    /// let cluster = Cluster::homogeneous(4, link, 1e-10);
    /// assert_eq!(cluster.link(3, 0), link);
    /// ```
    pub fn homogeneous(size: usize, link: Link, reduce_seconds_per_byte: f64) -> Self {
        let host = |rank| Host { name: format!("host{rank}"), cores: 1, switch_seconds: 0.0 };
        let worker = |host| Worker {
            host,
            reduce_seconds_per_byte,
            copy_seconds_per_byte: reduce_seconds_per_byte,
            step_seconds: None,
        };
        Cluster {
            transport: "any".into(),
            measured_at: None,
            measured_with: None,
            hosts: (0..size).map(host).collect(),
            workers: (0..size).map(worker).collect(),
            network_cards: Vec::new(),
            measured: Vec::new(),
            simulated: Simulated::default(),
            links: match size {
                0..MANY => Links::Each(vec![link; size * size]),
                _ => Links::Classes { same_host: link, other_host: link },
            },
        }
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.workers.len()
    }

    /// The way from one rank to another.
    pub fn link(&self, from: Rank, to: Rank) -> Link {
        match &self.links {
            Links::Each(links) => links[from * self.size() + to],
            Links::Classes { same_host, other_host } => {
                if self.workers[from].host == self.workers[to].host {
                    *same_host
                } else {
                    *other_host
                }
            }
        }
    }

    /// The way between any two ranks of one host, or of different hosts, where all of a class are alike.
    pub(crate) fn class_link(&self, is_same_host: bool) -> Option<Link> {
        match &self.links {
            Links::Each(_) => None,
            Links::Classes { same_host, other_host } => {
                Some(if is_same_host { *same_host } else { *other_host })
            }
        }
    }

    /// Changes the way from one rank to another (this direction only).
    pub fn set_link(&mut self, from: Rank, to: Rank, link: Link) {
        let size = self.size();
        if let Links::Classes { .. } = self.links {
            let pairs = (0..size * size).map(|index| self.link(index / size, index % size));
            self.links = Links::Each(pairs.collect());
        }
        if let Links::Each(links) = &mut self.links {
            links[from * size + to] = link;
        }
    }

    /// The same with some of the ranks only, given ascending; they get new numbers. Measured times are left out.
    pub fn restricted(&self, ranks: &[Rank]) -> Cluster {
        let renumbered = |card: &NetworkCard| NetworkCard {
            ranks: (0..ranks.len()).filter(|&new| card.ranks.contains(&ranks[new])).collect(),
            seconds_per_byte: card.seconds_per_byte,
        };
        let pairs = || ranks.iter().flat_map(|&from| ranks.iter().map(move |&to| (from, to)));
        let links = match &self.links {
            Links::Each(_) => Links::Each(pairs().map(|(from, to)| self.link(from, to)).collect()),
            classes => classes.clone(),
        };
        Cluster {
            workers: ranks.iter().map(|&rank| self.workers[rank]).collect(),
            network_cards: self.network_cards.iter().map(renumbered).collect(),
            links,
            measured: Vec::new(),
            simulated: Simulated::default(),
            hosts: self.hosts.clone(),
            transport: self.transport.clone(),
            measured_at: self.measured_at.clone(),
            measured_with: self.measured_with.clone(),
        }
    }

    /// The name of a rank's host.
    pub fn host_name(&self, rank: Rank) -> &str {
        &self.hosts[self.workers[rank].host].name
    }

    /// The ranks of a host, ascending.
    pub fn ranks_of(&self, host: usize) -> impl Iterator<Item = Rank> {
        self.workers.iter().enumerate().filter(move |(_, worker)| worker.host == host).map(|(rank, _)| rank)
    }

    /// Why it does not describe ranks on these hosts (one name for each rank), if it does not.
    pub fn difference(&self, hosts: &[&str]) -> Option<String> {
        if hosts.len() != self.size() {
            return Some(format!("it describes {} ranks, and this job has {}", self.size(), hosts.len()));
        }
        let rank = (0..hosts.len()).find(|&rank| self.host_name(rank) != hosts[rank])?;
        Some(format!(
            "its rank {rank} is on host {}, and this job's is on {}",
            self.host_name(rank),
            hosts[rank]
        ))
    }

    /// Reads a topology file.
    ///
    /// # Errors
    /// `File` if it cannot be read; `Data` with the place if it is no topology file, or if a quantity is missing,
    /// negative or not finite.
    pub fn read(path: &std::path::Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| crate::Error::file(path, format!("cannot read the topology file: {e}")))?;
        Self::parse(&text, path)
    }

    /// Writes a topology file, whole or not at all. Missing folders are made.
    ///
    /// # Errors
    /// `File`.
    pub fn write(&self, path: &std::path::Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|e| crate::Error::file(folder, format!("cannot make the folder: {e}")))?;
        }
        crate::files::write_atomically(path, &[self.to_toml().as_bytes()])
    }
}
