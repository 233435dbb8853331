//! What the power-of-two algorithms share: blocks of ranks, nested cuts of the vector, and the order of additions.

use super::part;
use crate::transport::Rank;
use std::ops::Range;

/// A power of two of consecutive ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    /// The first rank.
    pub(super) start: Rank,
    /// The binary logarithm of the number of ranks.
    pub(super) log: u32,
}

impl Block {
    pub(super) fn size(self) -> usize {
        1 << self.log
    }

    pub(super) fn ranks(self) -> Range<Rank> {
        self.start..self.start + self.size()
    }
}

/// Cuts `n` ranks into blocks after the binary digits of `n`, the largest block first.
pub(super) fn blocks(n: usize) -> Vec<Block> {
    let mut start = 0;
    let logs = (0..usize::BITS).rev().filter(|log| n >> log & 1 == 1);
    logs.map(|log| {
        let block = Block { start, log };
        start += block.size();
        block
    })
    .collect()
}

/// The lowest `bits` bits of `i`, the other way round.
pub(super) fn bit_reverse(i: usize, bits: u32) -> usize {
    if bits == 0 { 0 } else { i.reverse_bits() >> (usize::BITS - bits) }
}

/// A vector cut into 2^`log` fine parts, from which the segments of every smaller power of two are put together, so
/// that bounds nest even where the length is not divisible.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) len: usize,
    pub(super) log: u32,
}

impl Grid {
    /// The elements of consecutive segments, of which the whole vector has 2^`log`.
    pub(super) fn segments(self, log: u32, segments: Range<usize>) -> Range<usize> {
        let bound = |segment: usize| part(self.len, 1 << self.log, segment << (self.log - log)).start;
        bound(segments.start)..bound(segments.end)
    }
}

/// One addition of a tree over ranks: the sum of the ranks `left` ⊕ the sum of the ranks `right`, which follow them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Addition {
    pub(super) left: Range<Rank>,
    pub(super) right: Range<Rank>,
}

impl Addition {
    /// The ranks whose sum it makes.
    pub(super) fn sum(&self) -> Range<Rank> {
        self.left.start..self.right.end
    }
}

/// The additions of the canonical tree T(n), operands before their sum: pairwise inside each block, then from the
/// smallest block to the largest.
pub(super) fn canonical_additions(n: usize) -> Vec<Addition> {
    let blocks = blocks(n);
    let mut additions = Vec::new();
    for block in &blocks {
        add_pairwise(block.ranks(), &mut additions);
    }
    for pair in blocks.windows(2).rev() {
        additions.push(Addition { left: pair[0].ranks(), right: pair[1].start..n });
    }
    additions
}

/// The additions of the canonical tree as pairs of slots: the second is added into the first, and the sum of all ends in slot 0.
pub(crate) fn canonical_pairs(n: usize) -> impl Iterator<Item = (Rank, Rank)> {
    canonical_additions(n).into_iter().map(|addition| (addition.left.start, addition.right.start))
}

fn add_pairwise(ranks: Range<Rank>, additions: &mut Vec<Addition>) {
    if ranks.len() < 2 {
        return;
    }
    let middle = ranks.start + ranks.len() / 2;
    add_pairwise(ranks.start..middle, additions);
    add_pairwise(middle..ranks.end, additions);
    additions.push(Addition { left: ranks.start..middle, right: middle..ranks.end });
}

/// The additions from left to right by rank.
pub(super) fn rank_order_additions(n: usize) -> Vec<Addition> {
    (1..n).map(|rank| Addition { left: 0..rank, right: rank..rank + 1 }).collect()
}

/// Where the sum of a group of ranks is kept so that the last one ends at `target` and no addition needs a move:
/// at `target` itself in its groups, at the lowest rank elsewhere.
pub(super) fn holder(group: &Range<Rank>, target: Rank) -> Rank {
    if group.contains(&target) { target } else { group.start }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_the_binary_digits() {
        let sizes = |n| blocks(n).iter().map(|block| (block.start, block.size())).collect::<Vec<_>>();
        assert_eq!(sizes(0), []);
        assert_eq!(sizes(1), [(0, 1)]);
        assert_eq!(sizes(8), [(0, 8)]);
        assert_eq!(sizes(11), [(0, 8), (8, 2), (10, 1)]);
    }

    #[test]
    fn bits_are_reversed() {
        assert_eq!((0..8).map(|i| bit_reverse(i, 3)).collect::<Vec<_>>(), [0, 4, 2, 6, 1, 5, 3, 7]);
        assert_eq!(bit_reverse(5, 0), 0);
    }

    #[test]
    fn segments_nest_where_the_length_is_not_divisible() {
        let grid = Grid { len: 11, log: 2 };
        assert_eq!(grid.segments(2, 0..1), 0..3);
        assert_eq!(grid.segments(2, 1..2), 3..6);
        assert_eq!(grid.segments(1, 0..1), 0..6);
        assert_eq!(grid.segments(0, 0..1), 0..11);
    }

    #[test]
    fn additions_join_neighbours() {
        for n in 1..=64 {
            for additions in [canonical_additions(n), rank_order_additions(n)] {
                assert_eq!(additions.len(), n - 1);
                assert!(additions.iter().all(|addition| addition.left.end == addition.right.start));
                assert!(additions.last().is_none_or(|addition| addition.sum() == (0..n)));
            }
        }
    }
}
