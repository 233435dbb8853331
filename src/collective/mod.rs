//! How an exchange moves through the cluster: algorithms as data.
//!
//! A [`Collective`] is a pure function from the operation, the topology, the rank and the length to a [`Schedule`].
//! One [executor](Communicator) runs every schedule on every transport, the [verifier](verify) proves schedules for a
//! given number of ranks and length, and a user's own algorithm is one more implementation of the trait.

pub mod auto;
pub mod binary_blocks;
mod blocks;
pub mod butterfly;
mod choose;
pub mod circulant;
mod communicator;
pub mod cost;
#[cfg(feature = "cuda")]
mod device;
mod direct;
pub mod double_tree;
mod entry;
mod executor;
pub mod hierarchical;
mod narrow;
mod operands;
mod parameter_server;
mod partition;
mod plan;
pub mod recursive_doubling;
mod registry;
pub mod ring;
mod schedule;
mod scratch;
pub mod verify;

pub use auto::Auto;
pub use binary_blocks::BinaryBlocks;
pub(crate) use blocks::canonical_pairs;
pub use butterfly::Butterfly;
pub use circulant::Circulant;
pub(crate) use communicator::SEGMENT_BYTES;
pub use communicator::{Communicator, CommunicatorOptions};
pub use direct::SharedBuffer;
pub use double_tree::DoubleTree;
pub use entry::{Entry, Member};
pub use hierarchical::Hierarchical;
pub use narrow::{Feedback, TWO_SHOT};
pub use parameter_server::ParameterServer;
pub use partition::part;
pub use recursive_doubling::RecursiveDoubling;
pub use registry::{COLLECTIVE_CHOICES, COLLECTIVE_NAMES, Native, collective_by_name};
pub use ring::Ring;
pub use schedule::{Place, Schedule, Slice, Stage, Step};

use crate::error::{Error, Result};
use crate::transport::Rank;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The five operations.
///
/// `part(len, n, r)` is [`part`]: the r-th of n contiguous pieces of the vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Every rank ends with the reduction of all ranks' vectors.
    AllReduce,
    /// Rank r ends with part r of the reduction, at its place in the vector; the rest of its vector is left undefined.
    ReduceScatter,
    /// Rank r begins with part r at its place in the vector; every rank ends with all parts.
    AllGather,
    /// Every rank ends with the root's vector.
    Broadcast,
    /// The root ends with the reduction; the other ranks' vectors are left undefined.
    Reduce,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 5] =
        [Kind::AllReduce, Kind::ReduceScatter, Kind::AllGather, Kind::Broadcast, Kind::Reduce];

    /// Whether elements are combined, so that an order of summation means something.
    pub fn reduces(self) -> bool {
        matches!(self, Kind::AllReduce | Kind::ReduceScatter | Kind::Reduce)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::AllReduce => "all-reduce",
            Kind::ReduceScatter => "reduce-scatter",
            Kind::AllGather => "all-gather",
            Kind::Broadcast => "broadcast",
            Kind::Reduce => "reduce",
        })
    }
}

/// Which tree of additions is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// The canonical tree where the algorithm can evaluate it, else its own order (rank-identical, run-to-run
    /// identical).
    #[default]
    Auto,
    /// The canonical tree T(n): power-of-two blocks of ranks, pairwise inside a block, `B₁ ⊕ (B₂ ⊕ (…))` between blocks.
    /// The same bits from every algorithm that accepts it, for every length and every split of the vector.
    Canonical,
    /// Left to right by rank: `((v₀ ⊕ v₁) ⊕ v₂) ⊕ …`.
    Rank,
    /// Whatever is fastest (still rank-identical and run-to-run identical).
    Fastest,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Order::Auto => "auto",
            Order::Canonical => "canonical",
            Order::Rank => "rank",
            Order::Fastest => "fastest",
        })
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operation {
    /// Which of the five.
    pub kind: Kind,
    /// The root of a broadcast or a reduce; ignored by the others.
    pub root: Rank,
    /// The order of summation asked for; ignored by all-gather and broadcast.
    pub order: Order,
}

impl Operation {
    /// An operation with root 0 and the order `Auto`.
    pub fn new(kind: Kind) -> Self {
        Operation { kind, root: 0, order: Order::Auto }
    }

    /// The same with another order.
    pub fn with_order(self, order: Order) -> Self {
        Operation { order, ..self }
    }

    /// The same with another root.
    pub fn with_root(self, root: Rank) -> Self {
        Operation { root, ..self }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if matches!(self.kind, Kind::Broadcast | Kind::Reduce) {
            write!(f, " with root {}", self.root)?;
        }
        if self.kind.reduces() && self.order != Order::Auto {
            write!(f, " in order `{}`", self.order)?;
        }
        Ok(())
    }
}

/// The cluster, as far as algorithms look at it: how many ranks, and which of them share a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Topology {
    hosts: Vec<u32>,
}

impl Topology {
    /// `size` ranks on one host.
    pub fn flat(size: usize) -> Self {
        Topology { hosts: vec![0; size] }
    }

    /// One host number for each rank; equal numbers share a host.
    pub fn with_hosts(hosts: Vec<u32>) -> Self {
        Topology { hosts }
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.hosts.len()
    }

    /// The number of a rank's host.
    pub fn host(&self, rank: Rank) -> u32 {
        self.hosts[rank]
    }

    /// How many different hosts there are.
    pub fn host_count(&self) -> usize {
        self.ranks_by_host().len()
    }

    /// The ranks of each host, in order; hosts in the order of their first rank.
    ///
    /// ```
    /// use esync::collective::Topology;
    /// let topology = Topology::with_hosts(vec![7, 3, 7, 3, 3]);
    /// assert_eq!(topology.ranks_by_host(), [vec![0, 2], vec![1, 3, 4]]);
    /// ```
    pub fn ranks_by_host(&self) -> Vec<Vec<Rank>> {
        let mut numbers: Vec<u32> = Vec::new();
        let mut ranks: Vec<Vec<Rank>> = Vec::new();
        for (rank, host) in self.hosts.iter().enumerate() {
            match numbers.iter().position(|number| number == host) {
                Some(index) => ranks[index].push(rank),
                None => {
                    numbers.push(*host);
                    ranks.push(vec![rank]);
                }
            }
        }
        ranks
    }
}

/// An algorithm.
///
/// # Contract
/// - Pure: the same arguments give the same schedule on every machine.
/// - The schedules of all ranks fit together; [`verify::verify`] proves it for a given size and length.
/// - What the algorithm cannot do (a kind, an order, a number of ranks) is refused with the reason, by
///   [`Collective::refuse`].
pub trait Collective: Send + Sync {
    /// The name, as on the command line.
    fn name(&self) -> &'static str;

    /// What `rank` does for `operation` on a vector of `len` elements over `topology`.
    ///
    /// # Errors
    /// `Refused` with the reason.
    fn schedule(
        &self,
        operation: &Operation,
        topology: &Topology,
        rank: Rank,
        len: usize,
    ) -> Result<Schedule>;

    /// Itself as [`Auto`], if it is no algorithm but the choice of one.
    fn as_auto(&self) -> Option<&Auto> {
        None
    }

    /// The error for something that this algorithm cannot do.
    fn refuse(&self, operation: &Operation, reason: impl Into<String>) -> Error
    where
        Self: Sized,
    {
        Error::Refused { collective: self.name(), operation: operation.to_string(), reason: reason.into() }
    }
}
