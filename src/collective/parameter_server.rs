//! Every part of the vector has a server among the ranks.

use super::blocks::{Addition, canonical_additions, rank_order_additions};
use super::operands::Operands;
use super::registry::check_root;
use super::{Collective, Kind, Operation, Order, Schedule, Slice, Step, Topology, part};
use crate::error::Result;
use crate::transport::Rank;
use std::ops::Range;

/// The sharded parameter server: part j of q is pushed to rank j by everybody, summed there, and pulled by everybody.
///
/// | kind | rounds | elements sent by the busiest rank |
/// |---|---|---|
/// | all-reduce, q = n | 2 | 2(n−1)/n · S: the optimum |
/// | all-reduce, q < n | 2 | ((q−1)/q + (n−1)/q) · S: a server; the other ranks send S |
/// | reduce-scatter, all-gather (always n parts) | 1 | (n−1)/n · S |
/// | broadcast | 2 | the root: up to S + (n−1)/q · S |
/// | reduce | 2 | up to S |
///
/// Rounds count messages in flight together as one; a rank has n−1 messages in flight, so a switched network must
/// stand the incast. Destinations are staggered: the s-th message of rank r goes to rank r+s. All five kinds.
///
/// A server holds all operands, so it can add them in any order: the canonical tree T(n) by default, left to right by
/// rank for the orders `rank` and `fastest`. Scratch: (n−1)/q · S.
///
/// Li et al., *Scaling distributed machine learning with the parameter server*, 2014; with q = n it is the direct
/// (all-to-all) reduce-scatter and all-gather.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ParameterServer {
    /// How many ranks hold shards: ranks 0 to k−1. `None`: all of them.
    pub servers: Option<usize>,
}

impl Collective for ParameterServer {
    fn name(&self) -> &'static str {
        "parameter-server"
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
        let servers = self.servers.unwrap_or(n);
        if !(1..=n).contains(&servers) {
            let reason = format!("{servers} servers among {n} ranks; the valid range is 1 to {n}");
            return Err(self.refuse(operation, reason));
        }
        let additions = match operation.order {
            Order::Auto | Order::Canonical => canonical_additions(n),
            Order::Rank | Order::Fastest => rank_order_additions(n),
        };
        Ok(Shards { n, rank, len, parts: servers }.schedule(operation.kind, operation.root, &additions))
    }
}

/// What `rank` of `n` servers does where everything is summed by `additions`.
pub(super) fn along(
    additions: &[Addition],
    kind: Kind,
    root: Rank,
    n: usize,
    rank: Rank,
    len: usize,
) -> Schedule {
    Shards { n, rank, len, parts: n }.schedule(kind, root, additions)
}

/// One rank among n, with the vector cut into `parts`, of which rank j serves part j.
#[derive(Debug, Clone, Copy)]
struct Shards {
    n: usize,
    rank: Rank,
    len: usize,
    parts: usize,
}

impl Shards {
    fn schedule(self, kind: Kind, root: Rank, additions: &[Addition]) -> Schedule {
        let of_all = Shards { parts: self.n, ..self };
        let mut schedule = Schedule::empty();
        match kind {
            Kind::AllReduce => {
                self.push_and_sum(&mut schedule, additions);
                schedule.push(self.pulls());
            }
            Kind::ReduceScatter => of_all.push_and_sum(&mut schedule, additions),
            Kind::AllGather => schedule.push(of_all.pulls()),
            Kind::Broadcast => {
                schedule.push(self.scatter(root));
                schedule.push(self.pulls_but_by(root));
            }
            Kind::Reduce => {
                self.push_and_sum(&mut schedule, additions);
                schedule.push(self.collect(root));
            }
        }
        schedule
    }

    /// The part that a rank serves; nothing for a rank that does not serve.
    fn served_by(&self, rank: Rank) -> Range<usize> {
        if rank < self.parts { part(self.len, self.parts, rank) } else { 0..0 }
    }

    /// The other ranks, beginning after this one, so that not everybody begins with rank 0.
    fn following(&self) -> impl Iterator<Item = Rank> + use<> {
        let Shards { n, rank, .. } = *self;
        (1..n).map(move |step| (rank + step) % n)
    }

    /// The other ranks, in the order in which [`Shards::following`] makes them send to this one.
    fn preceding(&self) -> impl Iterator<Item = Rank> + use<> {
        let Shards { n, rank, .. } = *self;
        (1..n).map(move |step| (rank + n - step) % n)
    }

    fn send_to(&self, to: Rank, range: Range<usize>) -> Step {
        Step::Send { to, from: Slice::buffer(range) }
    }

    fn receive_from(&self, from: Rank, range: Range<usize>) -> Step {
        Step::Recv { from, into: Slice::buffer(range) }
    }

    /// Everybody sends part j to server j, which adds what it gets to its own.
    fn push_and_sum(&self, schedule: &mut Schedule, additions: &[Addition]) {
        let mut steps: Vec<Step> = self.following().map(|to| self.send_to(to, self.served_by(to))).collect();
        let served = self.served_by(self.rank);
        if !served.is_empty() && self.n > 1 {
            let scratch = schedule.add_scratch((self.n - 1) * served.len());
            let operands = Operands { own: self.rank, sum: served, scratch, start: 0 };
            steps.extend(self.preceding().map(|from| Step::Recv { from, into: operands.of(from) }));
            steps.extend(additions.iter().map(|addition| operands.add(addition)));
        }
        schedule.push(steps);
    }

    /// Everybody gets part j from server j.
    fn pulls(&self) -> Vec<Step> {
        let served = self.served_by(self.rank);
        let sends = self.following().map(|to| self.send_to(to, served.clone()));
        let receives = self.preceding().map(|from| self.receive_from(from, self.served_by(from)));
        sends.chain(receives).collect()
    }

    /// [`Shards::pulls`], where `root` has all parts already.
    fn pulls_but_by(&self, root: Rank) -> Vec<Step> {
        let is_needless = |step: &Step| match step {
            Step::Send { to, .. } => *to == root,
            Step::Recv { .. } => self.rank == root,
            Step::Copy { .. } | Step::Reduce { .. } => false,
        };
        self.pulls().into_iter().filter(|step| !is_needless(step)).collect()
    }

    /// The root sends part j to server j.
    fn scatter(&self, root: Rank) -> Vec<Step> {
        if self.rank == root {
            self.following().map(|to| self.send_to(to, self.served_by(to))).collect()
        } else {
            vec![self.receive_from(root, self.served_by(self.rank))]
        }
    }

    /// Server j sends part j to the root.
    fn collect(&self, root: Rank) -> Vec<Step> {
        if self.rank == root {
            self.preceding().map(|from| self.receive_from(from, self.served_by(from))).collect()
        } else {
            vec![self.send_to(root, self.served_by(self.rank))]
        }
    }
}
