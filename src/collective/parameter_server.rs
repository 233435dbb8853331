//! Every part of the vector has a server among the ranks.

use super::blocks::{Addition, canonical_additions, holder, rank_order_additions};
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
        let of_servers = Shards { n, rank, len, parts: servers };
        let of_all = Shards { parts: n, ..of_servers };
        let mut schedule = Schedule::empty();
        match operation.kind {
            Kind::AllReduce => {
                of_servers.push_and_sum(&mut schedule, operation.order);
                schedule.push(of_servers.pulls());
            }
            Kind::ReduceScatter => of_all.push_and_sum(&mut schedule, operation.order),
            Kind::AllGather => schedule.push(of_all.pulls()),
            Kind::Broadcast => {
                schedule.push(of_servers.scatter(operation.root));
                schedule.push(of_servers.pulls_but_by(operation.root));
            }
            Kind::Reduce => {
                of_servers.push_and_sum(&mut schedule, operation.order);
                schedule.push(of_servers.collect(operation.root));
            }
        }
        Ok(schedule)
    }
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
    fn push_and_sum(&self, schedule: &mut Schedule, order: Order) {
        let mut steps: Vec<Step> = self.following().map(|to| self.send_to(to, self.served_by(to))).collect();
        let served = self.served_by(self.rank);
        if !served.is_empty() && self.n > 1 {
            let operands = Operands { rank: self.rank, served: served.clone() };
            schedule.add_scratch((self.n - 1) * served.len());
            steps.extend(self.preceding().map(|from| Step::Recv { from, into: operands.of(from) }));
            let additions = match order {
                Order::Auto | Order::Canonical => canonical_additions(self.n),
                Order::Rank | Order::Fastest => rank_order_additions(self.n),
            };
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

/// Where a server has the operands of its part: its own in its vector, the others in slots of scratch space.
struct Operands {
    rank: Rank,
    served: Range<usize>,
}

impl Operands {
    fn of(&self, rank: Rank) -> Slice {
        if rank == self.rank {
            return Slice::buffer(self.served.clone());
        }
        let slot = if rank < self.rank { rank } else { rank - 1 };
        let len = self.served.len();
        Slice::scratch(0, slot * len..(slot + 1) * len)
    }

    /// The addition in place; sums that include the server's own operand are made in its vector, so the last one is.
    fn add(&self, addition: &Addition) -> Step {
        let place = |group: &Range<Rank>| self.of(holder(group, self.rank));
        Step::Reduce {
            into: place(&addition.sum()),
            left: place(&addition.left),
            right: place(&addition.right),
        }
    }
}
