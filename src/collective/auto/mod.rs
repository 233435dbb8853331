//! `auto`: picks an algorithm for each operation and length.
//!
//! A decision is a pure function of [`Knowledge`], on which all ranks agree before their first operation, and of the
//! operation. In this order: shared memory, where the transport has it; times measured on this cluster (`esync probe`),
//! interpolated; the [cost model](super::cost) over the cluster's measured links, or over usual ones.
//!
//! It competes within the order asked for. The order `auto` means the canonical tree here, which some algorithm evaluates
//! for every kind and number of ranks: so the bits of a result do not depend on what was chosen, nor on the length.
//! `fastest` lets every algorithm compete.

mod decide;
mod knowledge;
mod usual;

pub(crate) use decide::ShownSeconds;
pub use decide::{Decision, NativeReach, Question, Reason, Second};
pub use knowledge::{Knowledge, Origin};

use super::{Collective, Operation, Schedule, Topology};
use crate::error::Result;
use crate::transport::Rank;
use std::path::PathBuf;

/// The environment variable that names a topology file.
pub const TOPOLOGY_VARIABLE: &str = "ESYNC_TOPOLOGY";

/// The collective that chooses among all others.
///
/// As an algorithm of its own, without a communicator, it knows only how many ranks there are and which share a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Auto {
    /// The topology file. `None`: what [`TOPOLOGY_VARIABLE`] names on rank 0, else what `esync probe` has left in rank 0's
    /// cache folder for this cluster.
    pub topology: Option<PathBuf>,
}

impl Collective for Auto {
    fn name(&self) -> &'static str {
        "auto"
    }

    fn schedule(
        &self,
        operation: &Operation,
        topology: &Topology,
        rank: Rank,
        len: usize,
    ) -> Result<Schedule> {
        let hosts: Vec<String> = (0..topology.size()).map(|rank| topology.host(rank).to_string()).collect();
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let knowledge = Knowledge::usual("mpi", &hosts, 1);
        let question = Question::new(*operation, len, size_of::<f32>());
        let decision = knowledge.decide(&question)?;
        decision.collective.schedule(&decision.operation, topology, rank, len)
    }

    fn as_auto(&self) -> Option<&Auto> {
        Some(self)
    }
}
