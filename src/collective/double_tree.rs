//! Two pipelined trees, in which every rank works at full bandwidth.

use super::registry::{check_root, refuse_orders};
use super::{Collective, Kind, Operation, Order, Schedule, Slice, Step, Topology, part};
use crate::error::Result;
use crate::transport::Rank;
use std::ops::Range;

/// The double binary tree: each half of the vector has a tree of its own, and travels through it in segments.
///
/// With h ≤ ⌈log₂ n⌉ the height of the trees and g the number of segments of a half ([`segments`]):
///
/// | kind | rounds | elements sent (and received) by the busiest rank |
/// |---|---|---|
/// | all-reduce | 2h + g − 1 | 2S |
/// | broadcast | h + g − 1 | S (S) |
/// | reduce | h + g − 1 | S (S) |
///
/// Bandwidth like a ring's with a latency like a tree's: for many ranks and medium vectors. Below the root, a rank is an
/// inner node of one of the trees only, and a leaf of the other, so nobody sends or receives both children's data twice.
/// While segment s goes up from a rank, segment s+1 arrives from its children and, in an all-reduce, an earlier one comes
/// down.
///
/// In the first tree, the parent of rank r (counted from the root) is r with its lowest bit moved up by one, or without it
/// where there is no such rank. The second tree has the other ranks mirrored for odd n, and shifted by one for even n,
/// and the same root.
///
/// The two halves are summed along two trees, so the orders `canonical` and `rank` are refused; reduce-scatter and
/// all-gather are no trees and refused too. Scratch: two segments of each half.
///
/// Sanders, Speck and Träff, *Two-tree algorithms for full bandwidth broadcast, reduction and scan*, 2009.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DoubleTree;

impl Collective for DoubleTree {
    fn name(&self) -> &'static str {
        "double-tree"
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
        refuse_orders(
            self,
            operation,
            &[Order::Canonical, Order::Rank],
            "the two halves are summed along two trees",
        )?;
        let flow = match operation.kind {
            Kind::AllReduce => Flow { root: 0, up: true, down: true },
            Kind::Reduce => Flow { root: operation.root, up: true, down: false },
            Kind::Broadcast => Flow { root: operation.root, up: false, down: true },
            Kind::ReduceScatter | Kind::AllGather => {
                return Err(self.refuse(
                    operation,
                    "a tree has whole vectors at its top; use `circulant` or `parameter-server`",
                ));
            }
        };
        Ok(both_halves(n, rank, len, flow))
    }
}

/// With messages of this many elements, sending one takes about as long as starting one.
const LATENCY_ELEMENTS: usize = 16 * 1024;

/// More segments gain nothing, as the executor cuts what is still long.
const MOST_SEGMENTS: usize = 128;

/// Into how many segments each half of a vector of `len` elements is cut among `n` ranks.
///
/// With g segments the operation lasts (2h + g)(α + 2Sβ/g), which is shortest for g = √(4hSβ/α).
///
/// ```
/// use esync::collective::double_tree::segments;
/// assert_eq!([segments(8, 1000), segments(8, 1 << 18), segments(8, 1 << 30)], [1, 13, 128]);
/// ```
pub fn segments(n: usize, len: usize) -> usize {
    let height = n.next_power_of_two().ilog2() as usize;
    let squared = (4 * height).saturating_mul(len) / LATENCY_ELEMENTS;
    squared.isqrt().clamp(1, MOST_SEGMENTS)
}

/// What travels.
#[derive(Debug, Clone, Copy)]
struct Flow {
    root: Rank,
    /// Sums, to the root.
    up: bool,
    /// Results, from the root.
    down: bool,
}

fn both_halves(n: usize, rank: Rank, len: usize, flow: Flow) -> Schedule {
    let mut schedule = Schedule::empty();
    let segments = segments(n, len);
    let halves = [0, 1].map(|number| {
        let node = Node::new(number, n, (rank + n - flow.root) % n);
        let first_scratch = schedule.scratch.len();
        let elements = part(len, 2, number);
        let half = Half { node, n, root: flow.root, elements, segments, first_scratch };
        if flow.up {
            for _ in &half.node.children {
                schedule.add_scratch(half.longest_segment());
            }
        }
        half
    });
    // Both ends of a message compute the same round for it, and every rank goes through the rounds in order: so no
    // circle of waits can arise.
    let height = halves.iter().map(|half| half.node.height).max().unwrap_or(0);
    for round in 0..2 * height + segments {
        let mut steps = Vec::new();
        for half in &halves {
            if flow.up {
                half.go_up(round, &mut steps);
            }
            if flow.down {
                let top_is_complete = if flow.up { half.node.height } else { 0 };
                half.come_down(round.checked_sub(top_is_complete), &mut steps);
            }
        }
        schedule.push(steps);
    }
    schedule
}

/// A rank's place in one of the trees, in which ranks are counted from the root.
struct Node {
    parent: Option<usize>,
    children: Vec<Child>,
    /// The longest way down to a leaf from here.
    level: usize,
    /// The way up to the root.
    depth: usize,
    /// The root's level.
    height: usize,
}

struct Child {
    number: usize,
    level: usize,
}

impl Node {
    fn new(tree: usize, n: usize, number: usize) -> Self {
        let parents: Vec<Option<usize>> = (0..n).map(|number| parent(tree, n, number)).collect();
        let mut levels = vec![0; n];
        let mut depths = vec![0; n];
        for (start, depth) in depths.iter_mut().enumerate() {
            let mut at = start;
            while let Some(up) = parents[at] {
                at = up;
                *depth += 1;
                levels[at] = levels[at].max(*depth);
            }
        }
        let children = (0..n).filter(|child| parents[*child] == Some(number));
        Node {
            parent: parents[number],
            children: children.map(|number| Child { number, level: levels[number] }).collect(),
            level: levels[number],
            depth: depths[number],
            height: levels[0],
        }
    }
}

/// The second tree is the first one with all numbers but the root's mirrored for odd n, which makes even numbers odd,
/// and shifted by one for even n, which does so for all but one: the first tree's inner nodes are its even numbers.
fn parent(tree: usize, n: usize, number: usize) -> Option<usize> {
    if tree == 0 || number == 0 {
        return parent_by_lowest_bit(n, number);
    }
    let is_mirrored = !n.is_multiple_of(2);
    let place = match number {
        _ if is_mirrored => n - number,
        1 => n - 1,
        _ => number - 1,
    };
    parent_by_lowest_bit(n, place).map(|up| match up {
        0 => 0,
        _ if is_mirrored => n - up,
        _ => up % (n - 1) + 1,
    })
}

fn parent_by_lowest_bit(n: usize, number: usize) -> Option<usize> {
    if number == 0 {
        return None;
    }
    let low = number & number.wrapping_neg();
    let up = (number ^ low) | (low << 1);
    Some(if up < n { up } else { number ^ low })
}

/// One half of the vector on its way up and down its tree.
struct Half {
    node: Node,
    n: usize,
    root: Rank,
    elements: Range<usize>,
    segments: usize,
    /// The piece of scratch space in which the first child's sums arrive; the others' follow.
    first_scratch: usize,
}

impl Half {
    fn rank_of(&self, number: usize) -> Rank {
        (number + self.root) % self.n
    }

    fn longest_segment(&self) -> usize {
        part(self.elements.len(), self.segments, 0).len()
    }

    /// The segment that is this many rounds from the beginning, if there is one.
    fn segment(&self, number: Option<usize>) -> Option<Slice> {
        let number = number.filter(|number| *number < self.segments)?;
        let range = part(self.elements.len(), self.segments, number);
        Some(Slice::buffer(self.elements.start + range.start..self.elements.start + range.end))
    }

    /// Segment s leaves a rank of level l in round l + s, so it is complete at the root before round height + s.
    fn go_up(&self, round: usize, steps: &mut Vec<Step>) {
        let node = &self.node;
        if let (Some(to), Some(from)) = (node.parent, self.segment(round.checked_sub(node.level))) {
            steps.push(Step::Send { to: self.rank_of(to), from });
        }
        for (index, child) in node.children.iter().enumerate() {
            if let Some(sum) = self.segment(round.checked_sub(child.level)) {
                let arrived = Slice::scratch(self.first_scratch + index, 0..sum.len());
                steps.push(Step::Recv { from: self.rank_of(child.number), into: arrived.clone() });
                steps.push(Step::Reduce { into: sum.clone(), left: sum, right: arrived });
            }
        }
    }

    /// Segment s leaves a rank of depth d in round d + s, counted from the one in which the root has the first.
    fn come_down(&self, round: Option<usize>, steps: &mut Vec<Step>) {
        let node = &self.node;
        let segment_at = |depth| self.segment(round.and_then(|round| round.checked_sub(depth)));
        if let Some(from) = node.parent
            && let Some(into) = segment_at(node.depth - 1)
        {
            steps.push(Step::Recv { from: self.rank_of(from), into });
        }
        if let Some(from) = segment_at(node.depth) {
            let sends = node.children.iter().map(|child| self.rank_of(child.number));
            steps.extend(sends.map(|to| Step::Send { to, from: from.clone() }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_is_an_inner_node_of_one_tree_only() {
        for n in 2..=64_usize {
            for tree in 0..2 {
                let height = Node::new(tree, n, 0).height;
                assert!(height <= n.next_power_of_two().ilog2() as usize, "tree {tree} of {n}: {height}");
            }
            for number in 1..n {
                let children = [0, 1].map(|tree| Node::new(tree, n, number).children.len());
                assert!(children.iter().all(|count| *count <= 2), "{number} of {n}: {children:?}");
                assert!(children.contains(&0), "{number} of {n}: {children:?}");
            }
        }
    }

    #[test]
    fn the_number_of_segments_grows_with_the_root_of_the_length() {
        assert_eq!([0, 1000, 1 << 16, 1 << 18, 1 << 20].map(|len| segments(8, len)), [1, 1, 6, 13, 27]);
        assert_eq!(segments(64, usize::MAX), MOST_SEGMENTS);
    }
}
