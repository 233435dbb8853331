//! Proofs of schedules: all ranks' schedules are executed symbolically, with trees of additions in place of numbers.
//!
//! [`verify`] proves for one operation, number of ranks and length that
//!
//! - every contribution is in every element of the result exactly once, at every rank that gets it, with the same tree
//!   of additions everywhere, and with the tree that was asked for;
//! - sends match receives, in order and in length;
//! - nothing deadlocks, even if every send waits for its receive;
//! - no step breaks the rules of [`Stage`](super::Stage), and nothing undefined is read.
//!
//! The work grows with the number of steps and parts, not with the length of the vector.
//!
//! ```
//! use esync::collective::{BinaryBlocks, Kind, Operation, Ring, Topology};
//! use esync::collective::verify::verify;
//!
//! let all_reduce = Operation::new(Kind::AllReduce);
//! let proof = verify(&BinaryBlocks, &all_reduce, &Topology::flat(6), 1000)?;
//! assert!(proof.is_canonical());
//! assert_eq!(proof.to_string(), "((0+1)+(2+3))+(4+5)");
//! assert_eq!(proof.rounds(), 4);
//!
//! let proof = verify(&Ring, &all_reduce, &Topology::flat(3), 900)?;
//! assert_eq!(proof.trees().len(), 3); // One for each part.
//! assert_eq!(proof.tree(0).map(|tree| tree.to_string()).as_deref(), Some("(0+1)+2"));
//! assert_eq!(proof.ranks()[0].sent, 1200);
//! # Ok::<(), esync::collective::verify::Flaw>(())
//! ```

mod flaw;
mod memory;
mod run;
mod stage;
mod tree;

pub use flaw::{At, Blocked, Flaw};
pub use tree::{Tree, canonical_tree, rank_order_tree};

use super::{Collective, Kind, Operation, Order, Schedule, Step, Topology, part};
use crate::transport::Rank;
use memory::{Run, zip};
use run::Execution;
use std::fmt;
use std::ops::Range;
use tree::{Forest, TreeId};

pub(in crate::collective) use stage::check as check_stages;

/// Proves what an algorithm does for one operation and length.
///
/// # Errors
/// The first flaw that was found; [`Flaw::Refused`] if the algorithm refuses.
pub fn verify(
    collective: &dyn Collective,
    operation: &Operation,
    topology: &Topology,
    len: usize,
) -> Result<Proof, Flaw> {
    let ranks = 0..topology.size();
    let schedules: Result<Vec<Schedule>, _> =
        ranks.map(|rank| collective.schedule(operation, topology, rank, len)).collect();
    verify_schedules(&schedules.map_err(|error| Flaw::Refused(Box::new(error)))?, operation, len)
}

/// Proves the schedules of all ranks, `schedules[r]` being rank r's.
///
/// # Errors
/// The first flaw that was found.
pub fn verify_schedules(schedules: &[Schedule], operation: &Operation, len: usize) -> Result<Proof, Flaw> {
    let size = schedules.len();
    let rooted = matches!(operation.kind, Kind::Broadcast | Kind::Reduce);
    if rooted && operation.root >= size {
        return Err(Flaw::NoSuchRoot { root: operation.root, size });
    }
    for (rank, schedule) in schedules.iter().enumerate() {
        stage::check(schedule, rank, size, len)?;
    }
    let goal = Goal { operation, size, len };
    let mut execution = Execution::new(schedules, len, |rank| goal.given(rank))?;
    execution.run()?;
    goal.check(&execution)?;
    let proof = Proof::new(&goal, execution, schedules);
    proof.check_order(operation)?;
    Ok(proof)
}

/// What an operation must lead to.
struct Goal<'a> {
    operation: &'a Operation,
    size: usize,
    len: usize,
}

impl Goal<'_> {
    /// The part of its vector that a rank begins with.
    fn given(&self, rank: Rank) -> Range<usize> {
        match self.operation.kind {
            Kind::AllReduce | Kind::ReduceScatter | Kind::Reduce => 0..self.len,
            Kind::AllGather => part(self.len, self.size, rank),
            Kind::Broadcast if rank == self.operation.root => 0..self.len,
            Kind::Broadcast => 0..0,
        }
    }

    /// The part of its vector that a rank must end with.
    fn wanted(&self, rank: Rank) -> Range<usize> {
        match self.operation.kind {
            Kind::AllReduce | Kind::AllGather | Kind::Broadcast => 0..self.len,
            Kind::ReduceScatter => part(self.len, self.size, rank),
            Kind::Reduce if rank == self.operation.root => 0..self.len,
            Kind::Reduce => 0..0,
        }
    }

    fn check(&self, execution: &Execution<'_>) -> Result<(), Flaw> {
        let mut first: Option<Vec<Run>> = None;
        for rank in 0..self.size {
            let wanted = self.wanted(rank);
            let runs = execution.vector(rank, &wanted);
            self.check_runs(&execution.forest, rank, wanted.start, &runs)?;
            if wanted.len() == self.len {
                match &first {
                    // Where only the root has a result, it is the first one and there is no other.
                    None => first = Some(runs),
                    Some(first) => self.check_same(&execution.forest, rank, first, &runs)?,
                }
            }
        }
        Ok(())
    }

    fn check_runs(&self, forest: &Forest, rank: Rank, offset: usize, runs: &[Run]) -> Result<(), Flaw> {
        let mut start = 0;
        for run in runs {
            let element = offset + start;
            let Some(value) = run.value else { return Err(Flaw::NoResult { rank, element }) };
            let found = value.element(start);
            if found != element {
                return Err(Flaw::Misplaced { rank, element, found });
            }
            // What is gathered or broadcast needs no such check: only its owner's element was ever defined.
            let missing = if self.operation.kind.reduces() { forest.missing(value.tree) } else { Vec::new() };
            if !missing.is_empty() {
                return Err(Flaw::Missing { rank, element, missing, tree: forest.tree(value.tree) });
            }
            start = run.end;
        }
        Ok(())
    }

    fn check_same(&self, forest: &Forest, rank: Rank, first: &[Run], runs: &[Run]) -> Result<(), Flaw> {
        zip(first, runs, |elements, expected, found| match (expected, found) {
            (Some(expected), Some(found)) if expected != found => Err(Flaw::RanksDiffer {
                rank,
                element: elements.start,
                found: forest.tree(found.tree),
                other: 0,
                expected: forest.tree(expected.tree),
            }),
            _ => Ok(()),
        })
    }
}

/// What one rank has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RankCost {
    /// Elements that it sends.
    pub sent: usize,
    /// Elements that it receives.
    pub received: usize,
    /// Elements that it reduces.
    pub reduced: usize,
    /// Messages that it sends.
    pub messages: usize,
    /// Stages of its schedule.
    pub stages: usize,
    /// Elements of scratch space that it needs.
    pub scratch: usize,
}

impl RankCost {
    fn of(schedule: &Schedule) -> Self {
        let reduced = |step: &Step| if let Step::Reduce { into, .. } = step { into.len() } else { 0 };
        RankCost {
            sent: schedule.elements_sent(),
            received: schedule.elements_received(),
            reduced: schedule.steps().map(reduced).sum(),
            messages: schedule.steps().filter(|step| matches!(step, Step::Send { .. })).count(),
            stages: schedule.stages.len(),
            scratch: schedule.scratch.iter().sum(),
        }
    }
}

/// A proof, and what was learnt on the way.
///
/// Prints as the tree of additions, or as a list of ranges with the tree of each.
#[derive(Debug, Clone)]
pub struct Proof {
    forest: Forest,
    result: Vec<(Range<usize>, TreeId)>,
    canonical: TreeId,
    rank_order: TreeId,
    reduces: bool,
    rounds: usize,
    ranks: Vec<RankCost>,
}

impl Proof {
    fn new(goal: &Goal<'_>, execution: Execution<'_>, schedules: &[Schedule]) -> Self {
        let mut result: Vec<(Range<usize>, TreeId)> = Vec::new();
        for rank in 0..goal.size {
            let wanted = goal.wanted(rank);
            // Every rank's result is the same where several have one.
            if wanted.start < result.last().map_or(0, |(elements, _)| elements.end) {
                continue;
            }
            let mut start = wanted.start;
            for run in execution.vector(rank, &wanted) {
                let end = wanted.start + run.end;
                if let Some(value) = run.value {
                    match result.last_mut() {
                        Some((elements, tree)) if *tree == value.tree && elements.end == start => {
                            elements.end = end
                        }
                        _ => result.push((start..end, value.tree)),
                    }
                }
                start = end;
            }
        }
        let rounds = execution.rounds();
        let mut forest = execution.forest;
        Proof {
            result,
            canonical: forest.canonical(),
            rank_order: forest.rank_order(),
            forest,
            reduces: goal.operation.kind.reduces(),
            rounds,
            ranks: schedules.iter().map(RankCost::of).collect(),
        }
    }

    fn check_order(&self, operation: &Operation) -> Result<(), Flaw> {
        let asked = match operation.order {
            Order::Canonical => self.canonical,
            Order::Rank => self.rank_order,
            Order::Auto | Order::Fastest => return Ok(()),
        };
        match self.result.iter().find(|(_, tree)| self.reduces && *tree != asked) {
            None => Ok(()),
            Some((elements, tree)) => Err(Flaw::WrongOrder {
                order: operation.order,
                element: elements.start,
                found: self.forest.tree(*tree),
            }),
        }
    }

    /// The different trees of additions, each with the first range of elements that it makes. One tree means that an
    /// element's value does not depend on its place in the vector.
    pub fn trees(&self) -> Vec<(Range<usize>, Tree)> {
        let mut seen: Vec<TreeId> = Vec::new();
        let mut trees = Vec::new();
        for (elements, tree) in &self.result {
            if !seen.contains(tree) {
                seen.push(*tree);
                trees.push((elements.clone(), self.forest.tree(*tree)));
            }
        }
        trees
    }

    /// The tree of additions that makes an element; `None` beyond the end of the vector.
    pub fn tree(&self, element: usize) -> Option<Tree> {
        let (_, tree) = self.result.iter().find(|(elements, _)| elements.contains(&element))?;
        Some(self.forest.tree(*tree))
    }

    /// Whether every element is made by the canonical tree T(n). False for all-gather and broadcast, which add nothing.
    pub fn is_canonical(&self) -> bool {
        self.reduces && self.result.iter().all(|(_, tree)| *tree == self.canonical)
    }

    /// Whether every element is summed from left to right by rank. False for all-gather and broadcast.
    pub fn is_rank_order(&self) -> bool {
        self.reduces && self.result.iter().all(|(_, tree)| *tree == self.rank_order)
    }

    /// Whether every element is made by the same tree, so that its value does not depend on its place in the vector.
    pub fn is_uniform(&self) -> bool {
        self.result.windows(2).all(|pair| pair[0].1 == pair[1].1)
    }

    /// The rounds of the longest chain of messages that wait for each other. The messages of one stage count as one
    /// round, which begins when the later of its ends arrives.
    pub fn rounds(&self) -> usize {
        self.rounds
    }

    /// What each rank has to do.
    pub fn ranks(&self) -> &[RankCost] {
        &self.ranks
    }

    /// Elements that the busiest rank sends.
    pub fn most_sent(&self) -> usize {
        self.ranks.iter().map(|rank| rank.sent).max().unwrap_or(0)
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [(_, tree)] = self.result.as_slice() {
            return write!(f, "{}", self.forest.tree(*tree));
        }
        for (number, (elements, tree)) in self.result.iter().enumerate() {
            let separator = if number == 0 { "" } else { "\n" };
            write!(f, "{separator}{}..{}: {}", elements.start, elements.end, self.forest.tree(*tree))?;
        }
        Ok(())
    }
}
