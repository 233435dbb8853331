//! Recursive halving and doubling: Rabenseifner's butterfly.

use super::blocks::{Grid, bit_reverse};
use super::registry::{check_root, refuse_orders};
use super::{Collective, Kind, Operation, Order, Schedule, Slice, Step, Topology, binary_blocks};
use crate::error::Result;
use crate::transport::Rank;
use std::ops::Range;

/// The butterfly: a reduce-scatter by recursive vector halving, then an all-gather by recursive doubling.
///
/// With k = ⌊log₂ n⌋, p = 2^k:
///
/// | kind | rounds | elements sent by the busiest rank |
/// |---|---|---|
/// | all-reduce, n = 2^k | 2k | 2(n−1)/n · S: the optimum |
/// | all-reduce, n ≠ 2^k | 2k and the hops between blocks | at most 2S ([`BinaryBlocks`](super::BinaryBlocks)) |
/// | all-reduce, n ≠ 2^k, order `fastest` | 2k + 3 (halved fold) | (3 + ½ − 2/p) · S |
/// | reduce-scatter, all-gather, n = 2^k | k | (n−1)/n · S |
///
/// The distance doubles from round to round (1, 2, 4 …), so rank j finishes segment bit-reverse(j), large messages go to
/// near neighbours, and every element is summed in the canonical tree T(n). Where n is no power of two, blocks of ranks
/// hop to each other instead of folding, which keeps that tree; `fastest` folds the surplus ranks by exchanging halves.
/// Reduce-scatter and all-gather halve the distance instead, so that part r ends at rank r; that is another tree.
/// Scratch: S/2.
///
/// Rabenseifner, *Optimization of collective reduction operations*, 2004.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Butterfly;

impl Collective for Butterfly {
    fn name(&self) -> &'static str {
        "butterfly"
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
            Kind::AllReduce => Ok(binary_blocks::all_reduce(n, rank, len)),
            Kind::Broadcast | Kind::Reduce => Err(self.refuse(
                operation,
                "halving serves all ranks alike, not a root; use `recursive-doubling` or `parameter-server`",
            )),
            Kind::ReduceScatter | Kind::AllGather if !n.is_power_of_two() => Err(self.refuse(
                operation,
                format!("{n} ranks are no power of two; use `ring` or `parameter-server`"),
            )),
            Kind::ReduceScatter => {
                if n > 2 {
                    let why = "halving the distance, which leaves part r at rank r, adds far ranks first";
                    refuse_orders(self, operation, &[Order::Canonical], why)?;
                }
                Ok(reduce_scatter(n, rank, len))
            }
            Kind::AllGather => Ok(all_gather(n, rank, len)),
        }
    }
}

/// How far away the partner of a round is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Distance {
    /// 1, 2, 4 …: rank i finishes segment bit-reverse(i), in the canonical tree.
    Doubling,
    /// …, 4, 2, 1: rank i finishes segment i.
    Halving,
}

/// Recursive halving among 2^`log` ranks, of which this one is number `index`.
pub(super) struct Halving<'a> {
    pub(super) log: u32,
    pub(super) index: usize,
    pub(super) distance: Distance,
    pub(super) grid: Grid,
    /// The rank that has a number.
    pub(super) member: &'a dyn Fn(usize) -> Rank,
}

impl Halving<'_> {
    fn partner(&self, round: u32) -> usize {
        match self.distance {
            Distance::Doubling => self.index ^ 1 << round,
            Distance::Halving => self.index ^ 1 << (self.log - 1 - round),
        }
    }

    /// The elements that a number is responsible for after `rounds` rounds.
    pub(super) fn held(&self, index: usize, rounds: u32) -> Range<usize> {
        let first = match self.distance {
            Distance::Doubling => bit_reverse(index & ((1 << rounds) - 1), rounds),
            Distance::Halving => index >> (self.log - rounds),
        };
        self.grid.segments(rounds, first..first + 1)
    }

    /// Scratch that [`Halving::reduce_round`] needs.
    pub(super) fn scratch_len(&self) -> usize {
        if self.log == 0 { 0 } else { self.held(self.index, 1).len() }
    }

    /// Gives one half of what was held to the partner, and adds the partner's share of the other half, the lower
    /// number on the left.
    pub(super) fn reduce_round(&self, round: u32, scratch: usize) -> Vec<Step> {
        let partner = self.partner(round);
        let kept = Slice::buffer(self.held(self.index, round + 1));
        let given = Slice::buffer(self.held(partner, round + 1));
        let arrived = Slice::scratch(scratch, 0..kept.len());
        let peer = (self.member)(partner);
        let (left, right) = if self.index < partner {
            (kept.clone(), arrived.clone())
        } else {
            (arrived.clone(), kept.clone())
        };
        vec![
            Step::Send { to: peer, from: given },
            Step::Recv { from: peer, into: arrived },
            Step::Reduce { into: kept, left, right },
        ]
    }

    /// The reverse of [`Halving::reduce_round`]: both partners end with both halves.
    pub(super) fn gather_round(&self, round: u32) -> Vec<Step> {
        let partner = self.partner(round);
        let peer = (self.member)(partner);
        vec![
            Step::Send { to: peer, from: Slice::buffer(self.held(self.index, round + 1)) },
            Step::Recv { from: peer, into: Slice::buffer(self.held(partner, round + 1)) },
        ]
    }

    fn push_reduce_rounds(&self, schedule: &mut Schedule) {
        let scratch = schedule.add_scratch(self.scratch_len());
        for round in 0..self.log {
            schedule.push(self.reduce_round(round, scratch));
        }
    }

    fn push_gather_rounds(&self, schedule: &mut Schedule) {
        for round in (0..self.log).rev() {
            schedule.push(self.gather_round(round));
        }
    }
}

fn in_natural_order(n: usize, rank: Rank, len: usize) -> Halving<'static> {
    let log = n.ilog2();
    Halving {
        log,
        index: rank,
        distance: Distance::Halving,
        grid: Grid { len, log },
        member: &std::convert::identity,
    }
}

fn reduce_scatter(n: usize, rank: Rank, len: usize) -> Schedule {
    let mut schedule = Schedule::empty();
    if n > 1 {
        in_natural_order(n, rank, len).push_reduce_rounds(&mut schedule);
    }
    schedule
}

fn all_gather(n: usize, rank: Rank, len: usize) -> Schedule {
    let mut schedule = Schedule::empty();
    in_natural_order(n, rank, len).push_gather_rounds(&mut schedule);
    schedule
}

/// The surplus x = n − p ranks share the work of adding their neighbour's vector before the butterfly of p ranks, and
/// get the result after it.
fn folded_all_reduce(n: usize, rank: Rank, len: usize) -> Schedule {
    let fold = Fold::new(n);
    let Fold { log, surplus } = fold;
    let grid = Grid { len, log };
    let lower = Slice::buffer(grid.segments(1, 0..1));
    let upper = Slice::buffer(grid.segments(1, 1..2));
    let whole = Slice::buffer(0..len);
    let mut schedule = Schedule::empty();

    let folded = rank < 2 * surplus;
    let scratch = schedule.add_scratch(lower.len());
    if folded && rank.is_multiple_of(2) {
        let peer = rank + 1;
        let arrived = Slice::scratch(scratch, 0..upper.len());
        schedule.push([
            Step::Send { to: peer, from: lower },
            Step::Recv { from: peer, into: arrived.clone() },
            Step::Reduce { into: upper.clone(), left: upper.clone(), right: arrived },
        ]);
        schedule.push([Step::Send { to: peer, from: upper }]);
        schedule.push([Step::Recv { from: peer, into: whole }]);
        return schedule;
    }
    if folded {
        let peer = rank - 1;
        let arrived = Slice::scratch(scratch, 0..lower.len());
        schedule.push([
            Step::Send { to: peer, from: upper.clone() },
            Step::Recv { from: peer, into: arrived.clone() },
            Step::Reduce { into: lower.clone(), left: arrived, right: lower },
        ]);
        schedule.push([Step::Recv { from: peer, into: upper }]);
    }
    let member = |index| fold.member(index);
    let halving =
        Halving { log, index: fold.index(rank), distance: Distance::Doubling, grid, member: &member };
    for round in 0..log {
        schedule.push(halving.reduce_round(round, scratch));
    }
    halving.push_gather_rounds(&mut schedule);
    if folded {
        schedule.push([Step::Send { to: rank - 1, from: whole }]);
    }
    schedule
}

/// Of `n` ranks, 2^`log` go on after each of the first `surplus` odd ranks has taken in its lower neighbour.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fold {
    pub(super) log: u32,
    pub(super) surplus: usize,
}

impl Fold {
    pub(super) fn new(n: usize) -> Self {
        let log = n.ilog2();
        Fold { log, surplus: n - (1 << log) }
    }

    /// The rank that goes on under a number.
    pub(super) fn member(self, index: usize) -> Rank {
        if index < self.surplus { 2 * index + 1 } else { index + self.surplus }
    }

    /// The number of a rank that goes on.
    pub(super) fn index(self, rank: Rank) -> usize {
        if rank < 2 * self.surplus { rank / 2 } else { rank - self.surplus }
    }
}
