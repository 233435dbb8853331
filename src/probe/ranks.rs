//! What each rank can do by itself, and what it costs to share a core.

use super::Probe;
use crate::buffer::FlatBuffer;
use crate::cluster::Cluster;
use crate::collective::{
    Collective, Communicator, CommunicatorOptions, Operation, Schedule, Slice, Step, Topology,
};
use crate::error::Result;
use crate::reduce::{ElementType, Operator, Target, reduce_into};
use crate::transport::Rank;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

/// Elements (f32) that are added and copied: 256 KiB, half a segment.
const LEN: usize = 1 << 16;
const REPETITIONS: usize = 20;
/// Times that every rank passes something to its right neighbour.
const TURNS: usize = 8;

/// Everybody passes an element to the right, again and again.
#[derive(Debug, Clone, Copy)]
struct Turns;

impl Collective for Turns {
    fn name(&self) -> &'static str {
        "turns"
    }

    fn schedule(&self, _: &Operation, topology: &Topology, rank: Rank, _: usize) -> Result<Schedule> {
        let mut schedule = Schedule::empty();
        let scratch = schedule.add_scratch(1);
        let size = topology.size();
        for _ in 0..TURNS {
            schedule.push([
                Step::Send { to: (rank + 1) % size, from: Slice::buffer(0..1) },
                Step::Recv { from: (rank + size - 1) % size, into: Slice::scratch(scratch, 0..1) },
            ]);
        }
        Ok(schedule)
    }
}

impl Probe<'_> {
    /// Measures one rank after the other, then all together.
    pub(super) fn measure_ranks(&self, communicator: &mut Communicator, cluster: &mut Cluster) -> Result<()> {
        let size = cluster.size();
        self.bar.set_length(size as u64);
        self.bar.set_position(0);
        for rank in 0..size {
            let (reduce, copy) = if rank == self.transport.rank() { own_speed() } else { (0.0, 0.0) };
            let mut said = self.say(reduce);
            said.extra[0] = copy;
            let members = communicator.gather(said)?.members;
            cluster.workers[rank].reduce_seconds_per_byte = members[rank].transfer_seconds;
            cluster.workers[rank].copy_seconds_per_byte = members[rank].extra[0];
            self.bar.inc(1);
        }
        if size > 1 {
            self.measure_turns(cluster)?;
        }
        Ok(())
    }

    /// Where ranks outnumber cores, a turn takes longer than its message, by a hand-over of the core for each rank in line.
    fn measure_turns(&self, cluster: &mut Cluster) -> Result<()> {
        let size = cluster.size();
        let options = CommunicatorOptions { collective: Arc::new(Turns), ..self.options() };
        let mut communicator = Communicator::new(self.transport.clone(), options)?;
        let mut quickest = f64::INFINITY;
        for _ in 0..REPETITIONS {
            let (seconds, _) = self.time(&mut communicator, 0, &mut [0.0])?;
            quickest = quickest.min(seconds / TURNS as f64);
        }
        let message =
            (0..size).map(|rank| cluster.link(rank, (rank + 1) % size).latency_seconds).fold(0.0, f64::max);
        let lines = |host: usize| {
            cluster.ranks_of(host).count().div_ceil(cluster.hosts[host].cores).saturating_sub(1)
        };
        let longest = (0..cluster.hosts.len()).map(lines).max().unwrap_or(0);
        if longest > 0 {
            let switch_seconds = (quickest - message).max(0.0) / longest as f64;
            cluster.hosts.iter_mut().for_each(|host| host.switch_seconds = switch_seconds);
        }
        Ok(())
    }
}

/// Seconds for each byte of a reduction and of a copy, at their quickest.
fn own_speed() -> (f64, f64) {
    let mut into = FlatBuffer::<f32>::new(LEN);
    let from = FlatBuffer::<f32>::new(LEN);
    let mut quickest = (f64::INFINITY, f64::INFINITY);
    for _ in 0..REPETITIONS {
        let begun = Instant::now();
        let (left, right) = (bytemuck::cast_slice_mut(&mut into), bytemuck::cast_slice(&from));
        reduce_into(ElementType::F32, Operator::Sum, Target::Left { left, right });
        black_box(&mut into);
        quickest.0 = quickest.0.min(begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        into.copy_from_slice(black_box(&from));
        black_box(&mut into);
        quickest.1 = quickest.1.min(begun.elapsed().as_secs_f64());
    }
    let bytes = (LEN * size_of::<f32>()) as f64;
    (quickest.0 / bytes, quickest.1 / bytes)
}
