//! Predicts how long a collective takes on a cluster, without running it.
//!
//! All ranks' [plans](crate::collective) are replayed, message by message, over the links of a [`Cluster`]:
//!
//! - a message of L bytes begins when both sides have posted it and its sender's port is free; it arrives `latency + L ·
//!   seconds_per_byte` later, or when its receiver has taken in what came before. It occupies both ports for
//!   `message_seconds + L · seconds_per_byte` of the *best* link that they have of that class (same host, other host), so
//!   that a slow link delays its own messages and not its neighbours';
//! - messages of one link follow one another; messages between hosts that share a network card share its bandwidth, in
//!   each direction;
//! - reductions and copies run in their order, each when its segments have arrived, so that reducing one segment overlaps
//!   receiving the next, as in the executor;
//! - where ranks outnumber a host's cores, its copies, reductions and local messages share them, and every stage costs a
//!   hand-over of the core for each rank that waits its turn.
//!
//! On equal links this gives the textbook formulas (`tests/cost.rs`). The entry rendezvous, the same for all algorithms,
//! is [`entry_seconds`].

mod replay;
mod resources;

use super::plan::Plan;
use super::{Collective, Operation, Schedule, Slice, Step, Topology};
use crate::cluster::Cluster;
use crate::error::{Error, Result};

/// More segments than this of one message are replayed together: pipelining hardly changes, and the replay stays quick.
const MOST_SEGMENTS: usize = 4;

/// Bytes of an entry record.
const ENTRY_BYTES: usize = 144;

/// Which ranks of a cluster share a host, as algorithms see it.
pub fn topology_of(cluster: &Cluster) -> Topology {
    Topology::with_hosts(cluster.workers.iter().map(|worker| worker.host as u32).collect())
}

/// Seconds that `collective` needs for `operation` on vectors of `count` elements of `element_bytes` bytes, cut into
/// segments of `segment_bytes`, from the moment at which all ranks have entered.
///
/// ```
/// use esync::cluster::{Cluster, Link};
/// use esync::collective::{Kind, Operation, Ring, cost};
///
/// let link = Link { latency_seconds: 1e-5, message_seconds: 1e-5, seconds_per_byte: 1e-9 };
/// let cluster = Cluster::homogeneous(4, link, 0.0);
/// let seconds = cost::predict(&cluster, &Ring, &Operation::new(Kind::AllReduce), 1 << 16, 4, 1 << 20)?;
/// let formula = 6.0 * 1e-5 + 2.0 * 3.0 / 4.0 * (4 << 16) as f64 * 1e-9;
/// assert!((seconds / formula - 1.0).abs() < 0.02);
/// # Ok::<(), esync::Error>(())
/// ```
///
/// # Errors
/// `Refused` by the collective; `Internal` if its schedules do not fit together.
pub fn predict(
    cluster: &Cluster,
    collective: &dyn Collective,
    operation: &Operation,
    count: usize,
    element_bytes: usize,
    segment_bytes: usize,
) -> Result<f64> {
    let topology = topology_of(cluster);
    let schedules: Result<Vec<Schedule>> =
        (0..cluster.size()).map(|rank| collective.schedule(operation, &topology, rank, count)).collect();
    replay(cluster, &schedules?, element_bytes, segment_bytes).ok_or_else(|| {
        Error::Internal(format!(
            "the schedules of `{}` for {operation} of {count} elements on {} ranks do not fit together",
            collective.name(),
            cluster.size()
        ))
    })
}

/// Seconds of the entry rendezvous with which every collective begins, if all ranks enter at once.
pub fn entry_seconds(cluster: &Cluster) -> f64 {
    let size = cluster.size();
    let schedule = |rank: usize| {
        let mut schedule = Schedule::empty();
        let scratch = schedule.add_scratch(ENTRY_BYTES * size);
        let record = |of: usize| Slice::scratch(scratch, of * ENTRY_BYTES..(of + 1) * ENTRY_BYTES);
        let receives = (1..size).map(|distance| {
            let from = (rank + size - distance) % size;
            Step::Recv { from, into: record(from) }
        });
        let sends = (1..size).map(|distance| Step::Send { to: (rank + distance) % size, from: record(rank) });
        schedule.push(receives.chain(sends));
        schedule
    };
    let schedules: Vec<Schedule> = (0..size).map(schedule).collect();
    replay(cluster, &schedules, 1, ENTRY_BYTES).unwrap_or_default()
}

/// `None` if the schedules do not fit together.
fn replay(
    cluster: &Cluster,
    schedules: &[Schedule],
    element_bytes: usize,
    segment_bytes: usize,
) -> Option<f64> {
    let longest = schedules.iter().flat_map(Schedule::steps).map(message_len).max().unwrap_or(0);
    let segments = (longest * element_bytes).div_ceil(segment_bytes);
    let together = segments.div_ceil(MOST_SEGMENTS).max(1);
    let plans: Vec<Plan> = schedules
        .iter()
        .map(|schedule| Plan::new(schedule, element_bytes, segment_bytes * together))
        .collect();
    replay::Replay::new(cluster, &plans, segment_bytes).run()
}

fn message_len(step: &Step) -> usize {
    match step {
        Step::Send { from, .. } => from.len(),
        _ => 0,
    }
}
