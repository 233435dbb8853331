//! An algorithm that the library does not have, written against its public interface only: the double binary tree.
//!
//! Two trees over the same ranks, such that a rank is an inner node of at most one of them (but for the top). Each
//! carries half of the vector, in segments: sums flow up while results flow down. Every rank sends and receives at most
//! 2S, in about 2 log₂ n + segments rounds. Sanders, Speck and Träff, *Two-tree algorithms for full bandwidth broadcast,
//! reduction and scan*, 2009; the shape of the trees is NCCL's.

use esync::Result;
use esync::collective::verify::{Proof, verify};
use esync::collective::{Collective, Kind, Operation, Order, Schedule, Slice, Step, Topology, part};
use std::ops::Range;

/// Segments of each half.
const SEGMENTS: usize = 8;

struct DoubleTree;

impl Collective for DoubleTree {
    fn name(&self) -> &'static str {
        "double-tree"
    }

    fn schedule(
        &self,
        operation: &Operation,
        topology: &Topology,
        rank: usize,
        len: usize,
    ) -> Result<Schedule> {
        if operation.kind != Kind::AllReduce {
            return Err(self.refuse(operation, "only all-reduce; use `parameter-server`"));
        }
        if matches!(operation.order, Order::Canonical | Order::Rank) {
            return Err(
                self.refuse(operation, "the two halves are summed along two trees; use `parameter-server`")
            );
        }
        let halves = [0, 1].map(|number| Half::new(number, topology.size(), rank, part(len, 2, number)));
        let mut schedule = Schedule::empty();
        for half in &halves {
            for child in 0..2 {
                let number = schedule.add_scratch(half.longest_segment());
                assert_eq!(number, half.scratch(child));
            }
        }
        // Both ends of a message compute the same round for it, and every rank goes through the rounds in order: so no
        // circle of waits can arise.
        let rounds = 2 * halves.iter().map(|half| half.tree.height).max().unwrap_or(0) + SEGMENTS;
        for round in 0..rounds {
            schedule.push(halves.iter().flat_map(|half| half.round(round)));
        }
        Ok(schedule)
    }
}

/// A rank's place in one of the two trees.
struct Place {
    parent: Option<usize>,
    children: Vec<usize>,
    /// The longest way down to a leaf from here.
    level: usize,
    /// The way up to the top.
    depth: usize,
    /// The levels of the children.
    child_levels: Vec<usize>,
    /// The top's level.
    height: usize,
}

impl Place {
    fn new(tree: usize, n: usize, rank: usize) -> Self {
        let parents: Vec<Option<usize>> = (0..n).map(|rank| parent(tree, n, rank)).collect();
        let mut levels = vec![0; n];
        let mut depth = 0;
        for start in 0..n {
            let (mut at, mut distance) = (start, 0);
            while let Some(up) = parents[at] {
                (at, distance) = (up, distance + 1);
                levels[at] = levels[at].max(distance);
            }
            if start == rank {
                depth = distance;
            }
        }
        let children: Vec<usize> = (0..n).filter(|child| parents[*child] == Some(rank)).collect();
        let child_levels = children.iter().map(|child| levels[*child]).collect();
        let height = levels.iter().copied().max().unwrap_or(0);
        Place { parent: parents[rank], children, level: levels[rank], depth, child_levels, height }
    }
}

/// The second tree is the first one mirrored for even n, shifted by one rank for odd n.
fn parent(tree: usize, n: usize, rank: usize) -> Option<usize> {
    match (tree, n % 2) {
        (0, _) => parent_by_lowest_bit(n, rank),
        (_, 0) => parent_by_lowest_bit(n, n - 1 - rank).map(|up| n - 1 - up),
        _ => parent_by_lowest_bit(n, (rank + n - 1) % n).map(|up| (up + 1) % n),
    }
}

fn parent_by_lowest_bit(n: usize, rank: usize) -> Option<usize> {
    if rank == 0 {
        return None;
    }
    let low = rank & rank.wrapping_neg();
    let up = (rank ^ low) | (low << 1);
    Some(if up < n { up } else { rank ^ low })
}

/// One half of the vector on its way up and down its tree.
struct Half {
    number: usize,
    tree: Place,
    elements: Range<usize>,
}

impl Half {
    fn new(number: usize, n: usize, rank: usize, elements: Range<usize>) -> Self {
        Half { number, tree: Place::new(number, n, rank), elements }
    }

    fn scratch(&self, child: usize) -> usize {
        2 * self.number + child
    }

    fn longest_segment(&self) -> usize {
        part(self.elements.len(), SEGMENTS, 0).len()
    }

    /// The segment that is this many rounds from the beginning, if there is one.
    fn segment(&self, number: Option<usize>) -> Option<Slice> {
        let number = number.filter(|number| *number < SEGMENTS)?;
        let range = part(self.elements.len(), SEGMENTS, number);
        Some(Slice::buffer(self.elements.start + range.start..self.elements.start + range.end))
    }

    /// Segment s leaves a rank of level l upwards in round l + s; it is complete at the top before round height + s, and
    /// leaves a rank of depth d downwards in round height + d + s.
    fn round(&self, round: usize) -> Vec<Step> {
        let Place { parent, children, level, depth, child_levels, height } = &self.tree;
        let mut steps = Vec::new();
        if let (Some(to), Some(from)) = (*parent, self.segment(round.checked_sub(*level))) {
            steps.push(Step::Send { to, from });
        }
        for (child, from) in children.iter().enumerate() {
            if let Some(sum) = self.segment(round.checked_sub(child_levels[child])) {
                let arrived = Slice::scratch(self.scratch(child), 0..sum.len());
                steps.push(Step::Recv { from: *from, into: arrived.clone() });
                steps.push(Step::Reduce { into: sum.clone(), left: sum, right: arrived });
            }
        }
        if let (Some(from), Some(into)) =
            (*parent, self.segment(round.checked_sub(height + depth - usize::from(*depth > 0))))
        {
            steps.push(Step::Recv { from, into });
        }
        if let Some(from) = self.segment(round.checked_sub(height + depth)) {
            steps.extend(children.iter().map(|to| Step::Send { to: *to, from: from.clone() }));
        }
        steps
    }
}

fn prove(n: usize, len: usize) -> Proof {
    verify(&DoubleTree, &Operation::new(Kind::AllReduce), &Topology::flat(n), len)
        .unwrap_or_else(|flaw| panic!("{n} ranks, {len} elements: {flaw}"))
}

#[test]
fn a_users_own_algorithm_is_proven() {
    for n in 1..=64 {
        for len in [0, 1, n - 1, n, n + 1, 1009, 1_000_000] {
            let proof = prove(n, len);
            assert!(proof.trees().len() <= 2, "one tree for each half: {proof}");
        }
    }
}

#[test]
fn a_rank_is_an_inner_node_of_one_tree_only() {
    for n in 2..=64 {
        for rank in 0..n {
            let inner = (0..2).filter(|tree| Place::new(*tree, n, rank).children.len() == 2).count();
            assert!(inner <= 1, "rank {rank} of {n}");
        }
    }
}

#[test]
fn bandwidth_is_full_and_latency_logarithmic() {
    for n in 2..=64_usize {
        let len = 2 * SEGMENTS * 10;
        let proof = prove(n, len);
        for (rank, cost) in proof.ranks().iter().enumerate() {
            assert!(
                cost.sent <= 2 * len && cost.received <= 2 * len,
                "rank {rank} of {n} sends {}",
                cost.sent
            );
        }
        let bound = 2 * n.next_power_of_two().ilog2() as usize + SEGMENTS + 1;
        assert!(proof.rounds() <= bound, "{n} ranks: {} rounds of {bound}", proof.rounds());
    }
}

#[test]
fn orders_that_it_cannot_keep_are_refused() {
    let operation = Operation::new(Kind::AllReduce).with_order(Order::Canonical);
    let Err(error) = DoubleTree.schedule(&operation, &Topology::flat(4), 0, 8) else { panic!("not refused") };
    assert!(
        error.to_string().starts_with("collective `double-tree` refuses all-reduce in order `canonical`"),
        "{error}"
    );
}
