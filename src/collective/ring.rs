//! Everything to the right neighbour: the ring.

use super::registry::{check_root, refuse_orders};
use super::{Collective, Kind, Operation, Order, Schedule, Slice, Step, Topology, part};
use crate::error::Result;
use crate::transport::Rank;
use std::ops::Range;

/// The ring: every rank sends to its right neighbour only.
///
/// | kind | rounds | elements sent by the busiest rank |
/// |---|---|---|
/// | all-reduce | 2(n−1) | 2(n−1)/n · S |
/// | reduce-scatter, all-gather | n−1 | (n−1)/n · S |
/// | broadcast, reduce | 2n−2, in n pieces (fewer if S < n) | S |
///
/// Bandwidth-optimal for every n, with a latency that grows with n. The vector is cut into n parts; a rank adds what it
/// holds to the sum that comes from the left. Part j of an all-reduce is therefore summed in ring order beginning at
/// rank j, so its tree of additions differs from part to part, and the orders `canonical` and `rank` are refused.
/// Scratch: two parts.
///
/// Broadcast and reduce are a chain around the ring that ends before (or at) the root, pipelined in n pieces.
///
/// Patarasuk and Yuan, *Bandwidth optimal all-reduce algorithms for clusters of workstations*, 2009.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ring;

impl Collective for Ring {
    fn name(&self) -> &'static str {
        "ring"
    }

    fn schedule(
        &self,
        operation: &Operation,
        topology: &Topology,
        rank: Rank,
        len: usize,
    ) -> Result<Schedule> {
        check_root(self, operation, topology.size())?;
        refuse_orders(
            self,
            operation,
            &[Order::Canonical, Order::Rank],
            "each part is summed around the ring beginning at another rank",
        )?;
        let ring = Around { n: topology.size(), rank, len };
        Ok(match operation.kind {
            Kind::AllReduce => ring.all_reduce(),
            Kind::ReduceScatter => ring.reduce_scatter(),
            Kind::AllGather => ring.all_gather(),
            Kind::Broadcast => ring.broadcast(operation.root),
            Kind::Reduce => ring.reduce(operation.root),
        })
    }
}

/// One rank's place on the ring.
struct Around {
    n: usize,
    rank: Rank,
    len: usize,
}

impl Around {
    fn right(&self) -> Rank {
        (self.rank + 1) % self.n
    }

    fn left(&self) -> Rank {
        (self.rank + self.n - 1) % self.n
    }

    fn part(&self, index: usize) -> Range<usize> {
        part(self.len, self.n, index)
    }

    /// The part `back` places to the left of `part`.
    fn before(&self, part: usize, back: usize) -> Range<usize> {
        self.part((part + 2 * self.n - back) % self.n)
    }

    fn send(&self, range: Range<usize>) -> Step {
        Step::Send { to: self.right(), from: Slice::buffer(range) }
    }

    fn receive(&self, range: Range<usize>) -> Step {
        Step::Recv { from: self.left(), into: Slice::buffer(range) }
    }

    /// Receives the sum of the ranks to the left and adds what this rank holds.
    fn accumulate(&self, range: Range<usize>, scratch: usize) -> [Step; 2] {
        let arrived = Slice::scratch(scratch, 0..range.len());
        let held = Slice::buffer(range);
        [
            Step::Recv { from: self.left(), into: arrived.clone() },
            Step::Reduce { into: held.clone(), left: arrived, right: held },
        ]
    }

    /// n−1 rounds of adding, beginning by sending part `first`; this rank finishes the part after it.
    fn add_rounds(&self, schedule: &mut Schedule, first: usize) {
        // Two in turn, so that one part arrives while the other is added.
        let scratch: Vec<usize> =
            (0..2.min(self.n - 1)).map(|_| schedule.add_scratch(self.part(0).len())).collect();
        for round in 0..self.n - 1 {
            let mut steps = vec![self.send(self.before(first, round))];
            steps.extend(self.accumulate(self.before(first, round + 1), scratch[round % scratch.len()]));
            schedule.push(steps);
        }
    }

    /// n−1 rounds of passing on finished parts, beginning by sending part `first`.
    fn pass_rounds(&self, schedule: &mut Schedule, first: usize) {
        for round in 0..self.n - 1 {
            schedule
                .push([self.send(self.before(first, round)), self.receive(self.before(first, round + 1))]);
        }
    }

    fn all_reduce(&self) -> Schedule {
        let mut schedule = Schedule::empty();
        if self.n > 1 {
            self.add_rounds(&mut schedule, self.rank);
            self.pass_rounds(&mut schedule, self.right());
        }
        schedule
    }

    fn reduce_scatter(&self) -> Schedule {
        let mut schedule = Schedule::empty();
        if self.n > 1 {
            self.add_rounds(&mut schedule, self.left());
        }
        schedule
    }

    fn all_gather(&self) -> Schedule {
        let mut schedule = Schedule::empty();
        self.pass_rounds(&mut schedule, self.rank);
        schedule
    }

    /// Piece after piece from the root to its left neighbour: a rank passes a piece on while it receives the next.
    fn broadcast(&self, root: Rank) -> Schedule {
        let first = self.rank == root;
        let last = self.right() == root;
        self.chain(first, last, |piece| vec![self.receive(self.part(piece))], 0)
    }

    /// Piece after piece from the root's right neighbour to the root.
    fn reduce(&self, root: Rank) -> Schedule {
        let first = self.left() == root;
        let last = self.rank == root;
        self.chain(first, last, |piece| self.accumulate(self.part(piece), 0).into(), self.part(0).len())
    }

    fn chain(&self, first: bool, last: bool, take: impl Fn(usize) -> Vec<Step>, scratch: usize) -> Schedule {
        let mut schedule = Schedule::empty();
        if self.n == 1 {
            return schedule;
        }
        if !first && scratch > 0 {
            schedule.add_scratch(scratch);
        }
        for stage in 0..=self.n {
            let mut steps = Vec::new();
            if stage > 0 && !last {
                steps.push(self.send(self.part(stage - 1)));
            }
            if stage < self.n && !first {
                steps.extend(take(stage));
            }
            schedule.push(steps);
        }
        schedule
    }
}
