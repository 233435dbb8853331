//! Recursive halving in blocks of ranks, without a fold where the number of ranks is no power of two.

use super::blocks::{Block, Grid, bit_reverse, blocks};
use super::butterfly::{Distance, Halving};
use super::registry::refuse_orders;
use super::{Collective, Kind, Operation, Order, Schedule, Slice, Step, Topology};
use crate::error::Result;
use crate::transport::Rank;
use std::ops::Range;

/// Binary blocks: the ranks are cut into blocks after the binary digits of n, each block does the
/// [`Butterfly`](super::Butterfly) on its own, and the blocks' sums hop from the smallest block to the largest and back.
///
/// With n = 2^e₁ + … + 2^e_b, e₁ > … > e_b, a rank of block j sends
/// `2(1−2^−e_j)S + [j ≥ 2]·S·2^−e_j + [j < b]·S·2^−e_j`: never more than 2S, where a fold sends up to 3S, and
/// 2(n−1)/n · S for n = 2^k. The longest chain has at most 2e₁ + 2(b−1) rounds; a block absorbs its smaller neighbour in
/// the stage of its own last halving, so that it is 2e₁ where the gaps between blocks are small. The loss is largest
/// for n = 2^k + 1, where one rank moves the whole vector up and down.
///
/// Inside a block the distance doubles and in-block rank i finishes segment bit-reverse(i); the segments of all blocks
/// are cut from one fine grid, so that they nest for every length. This gives the canonical tree T(n) for every n.
/// Only all-reduce; scratch: S/2, and one segment more in a block that absorbs another.
///
/// Rabenseifner and Träff, *More efficient reduction algorithms for non-power-of-two number of processors*, 2004.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BinaryBlocks;

impl Collective for BinaryBlocks {
    fn name(&self) -> &'static str {
        "binary-blocks"
    }

    fn schedule(
        &self,
        operation: &Operation,
        topology: &Topology,
        rank: Rank,
        len: usize,
    ) -> Result<Schedule> {
        if operation.kind != Kind::AllReduce {
            return Err(self.refuse(
                operation,
                "blocks of unequal size do not leave equal parts; use `parameter-server`, which does all five kinds",
            ));
        }
        refuse_orders(self, operation, &[Order::Rank], "ranks are added pairwise")?;
        Ok(all_reduce(topology.size(), rank, len))
    }
}

/// The all-reduce of one rank among `n`, in the canonical tree.
pub(super) fn all_reduce(n: usize, rank: Rank, len: usize) -> Schedule {
    let blocks = blocks(n);
    let Some(number) = blocks.iter().position(|block| block.ranks().contains(&rank)) else {
        return Schedule::empty();
    };
    let block = blocks[number];
    let larger = number.checked_sub(1).map(|number| blocks[number]);
    let smaller = blocks.get(number + 1).copied();
    let member = |index| block.start + index;
    let halving = Halving {
        log: block.log,
        index: rank - block.start,
        distance: Distance::Doubling,
        grid: Grid { len, log: blocks[0].log },
        member: &member,
    };
    let mut schedule = Schedule::empty();
    up(&mut schedule, &halving, block, smaller);
    if let Some(larger) = larger {
        // The stage that gives a segment away cannot receive into it.
        schedule
            .push(owners(&halving, larger).map(|(to, piece)| Step::Send { to, from: Slice::buffer(piece) }));
        schedule.push(
            owners(&halving, larger).map(|(from, piece)| Step::Recv { from, into: Slice::buffer(piece) }),
        );
    }
    down(&mut schedule, &halving, smaller);
    schedule
}

/// The block's own halving; its last round also takes in the smaller block's sum, which is waiting by then.
fn up(schedule: &mut Schedule, halving: &Halving<'_>, block: Block, smaller: Option<Block>) {
    if block.log == 0 {
        return;
    }
    let scratch = schedule.add_scratch(halving.scratch_len());
    for round in 0..block.log {
        let mut steps = halving.reduce_round(round, scratch);
        if let Some(smaller) = smaller.filter(|_| round + 1 == block.log) {
            let held = Slice::buffer(halving.held(halving.index, halving.log));
            let number = schedule.add_scratch(held.len());
            let arrived = Slice::scratch(number, 0..held.len());
            steps.push(Step::Recv { from: feeder(halving, smaller), into: arrived.clone() });
            steps.push(Step::Reduce { into: held.clone(), left: held, right: arrived });
        }
        schedule.push(steps);
    }
}

/// The halving backwards; its first round also hands the finished segment to the smaller block.
fn down(schedule: &mut Schedule, halving: &Halving<'_>, smaller: Option<Block>) {
    for round in (0..halving.log).rev() {
        let mut steps = halving.gather_round(round);
        if let Some(smaller) = smaller.filter(|_| round + 1 == halving.log) {
            let held = Slice::buffer(halving.held(halving.index, halving.log));
            steps.push(Step::Send { to: feeder(halving, smaller), from: held });
        }
        schedule.push(steps);
    }
}

/// The pieces of this rank's segment, each with the rank of the larger block that owns it.
fn owners<'a>(halving: &'a Halving<'_>, larger: Block) -> impl Iterator<Item = (Rank, Range<usize>)> + 'a {
    let segment = bit_reverse(halving.index, halving.log);
    let pieces = 1 << (larger.log - halving.log);
    (segment * pieces..(segment + 1) * pieces).map(move |piece| {
        let owner = larger.start + bit_reverse(piece, larger.log);
        (owner, halving.grid.segments(larger.log, piece..piece + 1))
    })
}

/// The rank of the smaller block whose segment holds this rank's.
fn feeder(halving: &Halving<'_>, smaller: Block) -> Rank {
    let segment = bit_reverse(halving.index, halving.log) >> (halving.log - smaller.log);
    smaller.start + bit_reverse(segment, smaller.log)
}
