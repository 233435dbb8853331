//! Whole vectors in few rounds: recursive doubling, and binomial trees.

use super::blocks::{blocks, canonical_additions, holder};
use super::butterfly::Fold;
use super::partition::{cyclic_parts, parts};
use super::registry::{check_root, refuse_orders};
use super::{Collective, Kind, Operation, Order, Place, Schedule, Slice, Step, Topology};
use crate::error::Result;
use crate::transport::Rank;

/// Recursive doubling: in round t, ranks at distance 2^t exchange and add their whole vectors. For short vectors.
///
/// With k = ⌊log₂ n⌋, p = 2^k:
///
/// | kind | rounds | elements sent by the busiest rank |
/// |---|---|---|
/// | all-reduce, n = 2^k | k: the optimum | k·S |
/// | all-reduce, n ≠ 2^k | at most k + b, with b binary digits of n that are 1 | (k+1)·S, or (e+R)·S in a block of 2^e ranks below one R times as large |
/// | all-reduce, n ≠ 2^k, order `fastest` | k + 2 (neighbour fold) | (k+1)·S |
/// | broadcast, reduce | ⌈log₂ n⌉ (binomial tree) | ⌈log₂ n⌉·S, S |
/// | all-gather | ⌈log₂ n⌉ | (n−1)/n · S |
///
/// All-reduce and reduce evaluate the canonical tree T(n) for every n: where n is no power of two, the power-of-two
/// blocks of ranks double on their own, then hop from the smallest to the largest, which sends the result down. A reduce
/// to any root evaluates each addition of T(n) at the root where it has an operand, so it needs no additional hop.
/// `fastest` folds each surplus rank into its neighbour instead, which is another tree for some n. All-gather is Bruck's
/// for n ≠ 2^k, placing parts where they belong instead of rotating them. Scratch of a reduction: S.
///
/// Thakur, Rabenseifner and Gropp, *Optimization of collective communication operations in MPICH*, 2005; Bruck et al.,
/// *Efficient algorithms for all-to-all communications in multiport message-passing systems*, 1997.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecursiveDoubling;

impl Collective for RecursiveDoubling {
    fn name(&self) -> &'static str {
        "recursive-doubling"
    }

    fn schedule(
        &self,
        operation: &Operation,
        topology: &Topology,
        rank: Rank,
        len: usize,
    ) -> Result<Schedule> {
        let n = topology.size();
        check_root(self, operation, n)?;
        refuse_orders(self, operation, &[Order::Rank], "ranks are added pairwise")?;
        match operation.kind {
            Kind::AllReduce if operation.order == Order::Fastest && !n.is_power_of_two() => {
                Ok(folded_all_reduce(n, rank, len))
            }
            Kind::AllReduce => Ok(all_reduce(n, rank, len)),
            Kind::ReduceScatter => Err(self.refuse(
                operation,
                "it moves whole vectors; use `butterfly` (n a power of two), `ring` or `parameter-server`",
            )),
            Kind::AllGather if n.is_power_of_two() => Ok(all_gather(n, rank, len)),
            Kind::AllGather => Ok(bruck_all_gather(n, rank, len)),
            Kind::Broadcast => Ok(broadcast(n, operation.root, rank, len)),
            Kind::Reduce => Ok(reduce(n, operation.root, rank, len)),
        }
    }
}

/// Exchanges of whole vectors. A stage may not write what it sends, so the sum moves between the caller's vector and one
/// piece of scratch space.
struct Doubling {
    schedule: Schedule,
    len: usize,
    current: Place,
    other: Place,
}

impl Doubling {
    fn new(len: usize) -> Self {
        let mut schedule = Schedule::empty();
        let scratch = schedule.add_scratch(len);
        Doubling { schedule, len, current: Place::Buffer, other: Place::Scratch(scratch) }
    }

    fn whole(&self, place: Place) -> Slice {
        Slice { place, range: 0..self.len }
    }

    fn swap(&mut self) {
        std::mem::swap(&mut self.current, &mut self.other);
    }

    /// What receives `peer`'s vector beside the own one and adds the two into `into`.
    fn add_received(&self, peer: Rank, peer_is_left: bool, into: Place) -> [Step; 2] {
        let (held, arrived) = (self.whole(self.current), self.whole(self.other));
        let (left, right) = if peer_is_left { (arrived.clone(), held) } else { (held, arrived.clone()) };
        [Step::Recv { from: peer, into: arrived }, Step::Reduce { into: self.whole(into), left, right }]
    }

    /// Both partners end with the sum of both.
    fn exchange(&mut self, peer: Rank, peer_is_left: bool) {
        let send = Step::Send { to: peer, from: self.whole(self.current) };
        let add = self.add_received(peer, peer_is_left, self.other);
        self.schedule.push([send].into_iter().chain(add));
        self.swap();
    }

    /// Adds `peer`'s sum. Nothing is sent, so the result may go to either place.
    fn absorb(&mut self, peer: Rank, peer_is_left: bool, into: Place) {
        let add = self.add_received(peer, peer_is_left, into);
        self.schedule.push(add);
        if self.current != into {
            self.swap();
        }
    }

    fn send(&mut self, to: impl IntoIterator<Item = Rank>) {
        let from = self.whole(self.current);
        self.schedule.push(to.into_iter().map(|to| Step::Send { to, from: from.clone() }));
    }

    fn receive_result(mut self, from: Rank) -> Schedule {
        let into = self.whole(Place::Buffer);
        self.schedule.push([Step::Recv { from, into }]);
        self.schedule
    }

    /// Brings the sum to the caller's vector.
    fn finish(mut self) -> Schedule {
        if self.current != Place::Buffer {
            let (from, into) = (self.whole(self.current), self.whole(Place::Buffer));
            self.schedule.push([Step::Copy { into, from }]);
        }
        self.schedule
    }
}

fn all_reduce(n: usize, rank: Rank, len: usize) -> Schedule {
    let blocks = blocks(n);
    let Some(number) = blocks.iter().position(|block| block.ranks().contains(&rank)) else {
        return Schedule::empty();
    };
    if n == 1 {
        return Schedule::empty();
    }
    let block = blocks[number];
    let index = rank - block.start;
    let mut doubling = Doubling::new(len);
    for round in 0..block.log {
        let partner = index ^ 1 << round;
        doubling.exchange(block.start + partner, partner < index);
    }
    if let Some(smaller) = blocks.get(number + 1) {
        doubling.absorb(smaller.start + index % smaller.size(), false, Place::Buffer);
    }
    let largest = blocks[0].size();
    if number > 0 {
        let larger = blocks[number - 1];
        doubling.send(larger.ranks().skip(index).step_by(block.size()));
        return doubling.receive_result(rank - largest);
    }
    if rank + largest < n {
        doubling.send([rank + largest]);
    }
    doubling.finish()
}

fn folded_all_reduce(n: usize, rank: Rank, len: usize) -> Schedule {
    let fold = Fold::new(n);
    let folded = rank < 2 * fold.surplus;
    let mut doubling = Doubling::new(len);
    if folded && rank.is_multiple_of(2) {
        doubling.send([rank + 1]);
        return doubling.receive_result(rank + 1);
    }
    if folded {
        // An odd number of exchanges then ends in the caller's vector, without a copy.
        let into = if fold.log.is_multiple_of(2) { doubling.current } else { doubling.other };
        doubling.absorb(rank - 1, true, into);
    }
    let index = fold.index(rank);
    for round in 0..fold.log {
        let partner = index ^ 1 << round;
        doubling.exchange(fold.member(partner), partner < index);
    }
    if folded {
        doubling.send([rank - 1]);
    }
    doubling.finish()
}

fn all_gather(n: usize, rank: Rank, len: usize) -> Schedule {
    let mut schedule = Schedule::empty();
    for round in 0..n.ilog2() {
        let held = |rank: Rank| {
            let first = rank >> round << round;
            Slice::buffer(parts(len, n, first..first + (1 << round)))
        };
        let peer = rank ^ 1 << round;
        schedule
            .push([Step::Send { to: peer, from: held(rank) }, Step::Recv { from: peer, into: held(peer) }]);
    }
    schedule
}

/// A rank holds `distance` parts from its own on, cyclically, and gets the following ones from the rank that holds them.
fn bruck_all_gather(n: usize, rank: Rank, len: usize) -> Schedule {
    let mut schedule = Schedule::empty();
    let mut distance = 1;
    while distance < n {
        let count = distance.min(n - distance);
        let to = (rank + n - distance) % n;
        let from = (rank + distance) % n;
        // The same two ranges of memory at both ends of a message.
        let ranges = |first| cyclic_parts(len, n, first, count).map(Slice::buffer);
        let sends = ranges(rank).map(|range| Step::Send { to, from: range });
        let receives = ranges(from).map(|range| Step::Recv { from, into: range });
        schedule.push(sends.into_iter().chain(receives));
        distance *= 2;
    }
    schedule
}

/// The binomial tree, relabelled so that the root is number 0.
fn broadcast(n: usize, root: Rank, rank: Rank, len: usize) -> Schedule {
    let number = (rank + n - root) % n;
    let rank_of = |number: usize| (number + root) % n;
    let mut schedule = Schedule::empty();
    let mut distance = n.next_power_of_two() / 2;
    while distance > 0 {
        let vector = Slice::buffer(0..len);
        match number % (2 * distance) {
            0 if number + distance < n => {
                schedule.push([Step::Send { to: rank_of(number + distance), from: vector }]);
            }
            rest if rest == distance => {
                schedule.push([Step::Recv { from: rank_of(number - distance), into: vector }]);
            }
            _ => {}
        }
        distance /= 2;
    }
    schedule
}

/// Every addition of T(n), at whichever of its two operands' holders leads to the root.
fn reduce(n: usize, root: Rank, rank: Rank, len: usize) -> Schedule {
    let vector = Slice::buffer(0..len);
    let arrived = Slice::scratch(0, 0..len);
    let mut schedule = Schedule::empty();
    for addition in canonical_additions(n) {
        let (left, right) = (holder(&addition.left, root), holder(&addition.right, root));
        let adds_at_left = holder(&addition.sum(), root) == left;
        let (from, to) = if adds_at_left { (right, left) } else { (left, right) };
        if rank == from {
            schedule.push([Step::Send { to, from: vector.clone() }]);
        } else if rank == to {
            if schedule.scratch.is_empty() {
                schedule.add_scratch(len);
            }
            let (left, right) = if adds_at_left { (&vector, &arrived) } else { (&arrived, &vector) };
            schedule.push([
                Step::Recv { from, into: arrived.clone() },
                Step::Reduce { into: vector.clone(), left: left.clone(), right: right.clone() },
            ]);
        }
    }
    schedule
}
