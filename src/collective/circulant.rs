//! Fewest rounds at optimal volume for every number of ranks: the circulant graph.

use super::partition::cyclic_parts;
use super::registry::{check_root, refuse_orders};
use super::{Collective, Kind, Operation, Order, Schedule, Slice, Step, Topology};
use crate::error::Result;
use crate::transport::Rank;

/// The circulant reduce-scatter and all-gather: half of what is left goes to a rank further on, whatever n is.
///
/// | kind | rounds | elements sent by the busiest rank |
/// |---|---|---|
/// | all-reduce | 2⌈log₂ n⌉ | 2(n−1)/n · S: the optimum |
/// | reduce-scatter, all-gather | ⌈log₂ n⌉ | (n−1)/n · S: the optimum |
///
/// No fold and no hops, so it is the best of its family where n is no power of two. The vector is cut into n parts, of
/// which rank r finishes part r. The skips are n halved (rounded up) until 1: with s the new skip and s' the one before,
/// rank r sends the parts of the ranks r+s … r+s'−1 to rank r+s, and adds those of the ranks r … r+s'−s−1 that arrive
/// from rank r−s. The all-gather is the same backwards. Cyclically consecutive parts are one message, or two where
/// they wrap around the end of the vector.
///
/// Each part is summed along another tree, so the orders `canonical` and `rank` are refused. Scratch: S/2.
/// Broadcast and reduce are refused: the graph serves all ranks alike, not a root.
///
/// Träff, *Optimal, non-pipelined reduce-scatter and allreduce algorithms*, 2024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Circulant;

impl Collective for Circulant {
    fn name(&self) -> &'static str {
        "circulant"
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
            "each part is summed along a tree of its own",
        )?;
        if matches!(operation.kind, Kind::Broadcast | Kind::Reduce) {
            return Err(self.refuse(
                operation,
                "the graph serves all ranks alike, not a root; use `double-tree` or `parameter-server`",
            ));
        }
        let graph = Graph { n: topology.size(), rank, len };
        let mut schedule = Schedule::empty();
        if matches!(operation.kind, Kind::AllReduce | Kind::ReduceScatter) {
            graph.push_add_rounds(&mut schedule);
        }
        if matches!(operation.kind, Kind::AllReduce | Kind::AllGather) {
            graph.push_gather_rounds(&mut schedule);
        }
        Ok(schedule)
    }
}

/// The distances to the partners of the rounds, each with the one before it: n is halved, rounded up, until it is 1.
fn skips(n: usize) -> Vec<Skip> {
    let mut skips = Vec::new();
    let mut before = n;
    while before > 1 {
        let distance = before.div_ceil(2);
        skips.push(Skip { distance, count: before - distance });
        before = distance;
    }
    skips
}

#[derive(Debug, Clone, Copy)]
struct Skip {
    /// How far away the partners are.
    distance: usize,
    /// How many parts travel.
    count: usize,
}

/// One rank of n in the graph.
struct Graph {
    n: usize,
    rank: Rank,
    len: usize,
}

impl Graph {
    fn further(&self, distance: usize) -> Rank {
        (self.rank + distance) % self.n
    }

    fn back(&self, distance: usize) -> Rank {
        (self.rank + self.n - distance) % self.n
    }

    /// The parts that travel along an edge, which belong to the ranks from `first` on.
    fn parts(&self, first: Rank, skip: Skip) -> [Slice; 2] {
        cyclic_parts(self.len, self.n, first, skip.count).map(Slice::buffer)
    }

    fn push_add_rounds(&self, schedule: &mut Schedule) {
        let skips = skips(self.n);
        let most = skips.iter().map(|skip| self.parts(self.rank, *skip).iter().map(Slice::len).sum());
        let Some(most) = most.max() else { return };
        let scratch = schedule.add_scratch(most);
        for skip in skips {
            let (to, from) = (self.further(skip.distance), self.back(skip.distance));
            let mut steps: Vec<Step> =
                self.parts(to, skip).map(|from| Step::Send { to, from }).into_iter().collect();
            let mut start = 0;
            for held in self.parts(self.rank, skip) {
                let arrived = Slice::scratch(scratch, start..start + held.len());
                start += held.len();
                steps.push(Step::Recv { from, into: arrived.clone() });
                steps.push(Step::Reduce { into: held.clone(), left: arrived, right: held });
            }
            schedule.push(steps);
        }
    }

    fn push_gather_rounds(&self, schedule: &mut Schedule) {
        for skip in skips(self.n).into_iter().rev() {
            let (to, from) = (self.back(skip.distance), self.further(skip.distance));
            let sends = self.parts(self.rank, skip).map(|from| Step::Send { to, from });
            let receives = self.parts(from, skip).map(|into| Step::Recv { from, into });
            schedule.push(sends.into_iter().chain(receives));
        }
    }
}
