//! Hosts with several ranks each: as little as possible over the slow links between them.

mod embed;
mod hosts;
mod parts;

use super::blocks::{Addition, canonical_additions};
use super::registry::{check_root, refuse_orders};
use super::{
    Butterfly, Circulant, Collective, DoubleTree, Kind, Operation, Order, Schedule, Slice, Step, Topology,
    parameter_server, part,
};
use crate::error::{Error, Result};
use crate::transport::Rank;
use embed::Embedded;
use hosts::Hosts;
use std::ops::Range;
use std::sync::Arc;

/// Up to this many hosts exchange directly, which is least bytes in fewest rounds; more would be too many messages to one
/// network card at once.
const MOST_DIRECT_HOSTS: usize = 8;

/// The hierarchical algorithm with several leaders: sum inside each host, exchange between hosts, share inside each host.
///
/// With N hosts, of which host h has g ranks:
///
/// | kind | inside a host | between hosts | bytes that a host sends to others |
/// |---|---|---|---|
/// | all-reduce | reduce-scatter in g parts, all-gather | an all-reduce of each part's owners | 2(N−1)/N · S: the optimum |
/// | broadcast | the root scatters, all-gather | a broadcast among each part's owners | at most S |
/// | reduce | reduce-scatter, the root collects | a reduce among each part's owners | at most S, and at most 2(N−1)/N · S to the root |
/// | reduce-scatter, all-gather | one round | one round | S less its own ranks' parts; its own ranks' parts (N−1) times |
///
/// All ranks of a host exchange with the other hosts at once, each for the part that it owns. **Unequal hosts**: each
/// host is cut into as many parts as it has ranks, and the cuts of all hosts together make *lanes*; a lane has one owner
/// on every host, so a host with fewer ranks has owners of several lanes, and every rank of a host works alike. Ranks of
/// one host need not be consecutive. On one host only the phases inside it are left.
///
/// Inside a host everybody sends to the owners directly, one round. **Between hosts** it is the algorithm that
/// [`between`](Hierarchical::between) says. By itself the choice is for fewest bytes, then fewest rounds: directly between
/// up to 8 hosts and between unequal ones (2 rounds; all lanes together), the [`Butterfly`] between more where they are
/// a power of two, else [`Circulant`]; [`DoubleTree`] from or to a root. Lanes of one owner go one after the other where
/// the exchange is not direct.
///
/// The canonical tree T(n) is evaluated, and the default, where every host's ranks are consecutive and make one of its
/// inner sums (whole aligned blocks: for example, hosts of equal size 2^k); everything is then exchanged directly, or by
/// butterflies. Otherwise the order `canonical` is refused, and sums are grouped by host. `rank` is always refused.
/// Scratch: (g−1)/g · S inside hosts, (N−1)/N of a rank's part between them.
#[derive(Clone, Default)]
pub struct Hierarchical {
    /// The algorithm of all-reduce, broadcast and reduce between the hosts. Where it refuses a broadcast or a reduce,
    /// and where it is `None`, the choice is by the number of hosts.
    pub between: Option<Arc<dyn Collective>>,
}

impl Collective for Hierarchical {
    fn name(&self) -> &'static str {
        "hierarchical"
    }

    fn schedule(
        &self,
        operation: &Operation,
        topology: &Topology,
        rank: Rank,
        len: usize,
    ) -> Result<Schedule> {
        check_root(self, operation, topology.size())?;
        refuse_orders(self, operation, &[Order::Rank], "ranks are grouped by host")?;
        let hosts = Hosts::new(topology, rank);
        let canonical = hosts.canonical_additions();
        if let Err(why) = &canonical {
            refuse_orders(self, operation, &[Order::Canonical], why)?;
        }
        let sums = Sums {
            is_canonical: canonical.is_ok() && operation.order != Order::Fastest,
            additions: canonical.unwrap_or_else(|_| canonical_additions(hosts.count())),
        };
        match operation.kind {
            Kind::ReduceScatter => Ok(parts::reduce_scatter(&hosts, len, &sums.additions)),
            Kind::AllGather => Ok(parts::all_gather(&hosts, len)),
            Kind::AllReduce | Kind::Broadcast | Kind::Reduce => self.by_lanes(operation, &hosts, len, &sums),
        }
    }
}

/// How the sums of hosts are added.
struct Sums {
    /// The additions between hosts, by the hosts' numbers.
    additions: Vec<Addition>,
    /// Whether these are needed, because they make the canonical tree of all ranks.
    is_canonical: bool,
}

impl Hierarchical {
    fn by_lanes(&self, operation: &Operation, hosts: &Hosts, len: usize, sums: &Sums) -> Result<Schedule> {
        let mut schedule = Schedule::empty();
        let inside = Inside { hosts, len };
        let root = operation.root;
        match operation.kind {
            Kind::Broadcast => inside.scatter(&mut schedule, root),
            _ => inside.push(&mut schedule, Kind::ReduceScatter, |_| true),
        }
        self.between_hosts(&mut schedule, operation, hosts, len, sums)?;
        match operation.kind {
            Kind::Reduce => inside.collect(&mut schedule, root),
            // The root of a broadcast has everything.
            Kind::Broadcast if hosts.rank == root => {
                inside.push(&mut schedule, Kind::AllGather, |step| matches!(step, Step::Send { .. }));
            }
            Kind::Broadcast => inside.push(
                &mut schedule,
                Kind::AllGather,
                |step| !matches!(step, Step::Send { to, .. } if *to == root),
            ),
            _ => inside.push(&mut schedule, Kind::AllGather, |_| true),
        }
        Ok(schedule)
    }

    /// What this rank's lanes do.
    fn between_hosts(
        &self,
        schedule: &mut Schedule,
        operation: &Operation,
        hosts: &Hosts,
        len: usize,
        sums: &Sums,
    ) -> Result<()> {
        if hosts.count() == 1 {
            return Ok(());
        }
        let root = hosts.host_of(operation.root);
        let mut stages: Vec<Vec<Step>> = Vec::new();
        for lane in hosts.lanes(len).into_iter().filter(|lane| lane.owners[hosts.own] == hosts.rank) {
            let exchange = Exchange { operation, sums, hosts, root, len: lane.elements.len() };
            let (part, is_direct) = self.exchange(&exchange)?;
            let embedded = Embedded { members: &lane.owners, offset: lane.elements.start };
            // Direct exchanges have the same stages on all hosts, so that those of several lanes can go together. Others
            // may not; a rank's lanes then take their turn, in the same order everywhere, so that no circle of waits
            // can arise.
            let first = if is_direct { 0 } else { stages.len() };
            for (number, steps) in embedded.stages(part, schedule).into_iter().enumerate() {
                if first + number == stages.len() {
                    stages.push(Vec::new());
                }
                stages[first + number].extend(steps);
            }
        }
        stages.into_iter().for_each(|steps| schedule.push(steps));
        Ok(())
    }

    /// The schedule of this rank's host in a lane, and whether it is the direct exchange.
    fn exchange(&self, exchange: &Exchange<'_>) -> Result<(Schedule, bool)> {
        if let Some(between) = &self.between {
            match exchange.by_choice(self, &**between) {
                Err(Error::Refused { .. }) if exchange.operation.kind != Kind::AllReduce => {}
                other => return other.map(|schedule| (schedule, false)),
            }
        }
        let count = exchange.hosts.count();
        let is_tree = exchange.sums.is_canonical;
        let algorithm: &dyn Collective = match exchange.operation.kind {
            Kind::Broadcast => &DoubleTree,
            Kind::Reduce if !is_tree => &DoubleTree,
            Kind::AllReduce if count > MOST_DIRECT_HOSTS && exchange.hosts.are_equal() => {
                match (count.is_power_of_two(), is_tree) {
                    // Equal hosts that are blocks of T(n) are the leaves of T(N), which is the butterfly's.
                    (true, _) => &Butterfly,
                    (false, false) => &Circulant,
                    (false, true) => return Ok((exchange.direct(), true)),
                }
            }
            _ => return Ok((exchange.direct(), true)),
        };
        let order = if is_tree { Order::Auto } else { Order::Fastest };
        exchange.by(algorithm, order).map(|schedule| (schedule, false))
    }
}

/// One lane's exchange between its owners, as far as this rank's host is concerned.
struct Exchange<'a> {
    operation: &'a Operation,
    sums: &'a Sums,
    hosts: &'a Hosts,
    /// The root's host.
    root: usize,
    len: usize,
}

impl Exchange<'_> {
    fn direct(&self) -> Schedule {
        let Exchange { operation, sums, hosts, root, len } = *self;
        parameter_server::along(&sums.additions, operation.kind, root, hosts.count(), hosts.own, len)
    }

    fn by(&self, algorithm: &dyn Collective, order: Order) -> Result<Schedule> {
        let operation = Operation { kind: self.operation.kind, root: self.root, order };
        algorithm.schedule(&operation, &Topology::flat(self.hosts.count()), self.hosts.own, self.len)
    }

    /// By the algorithm that the user chose; its refusal becomes ours.
    fn by_choice(&self, hierarchical: &Hierarchical, algorithm: &dyn Collective) -> Result<Schedule> {
        let order = self.operation.order;
        let count = self.hosts.count();
        if order == Order::Canonical && self.sums.additions != canonical_additions(count) {
            let why = format!(
                "the sums of {count} hosts of unequal sizes are no canonical tree, which `{}` would need",
                algorithm.name()
            );
            refuse_orders(hierarchical, self.operation, &[Order::Canonical], &why)?;
        }
        self.by(algorithm, order).map_err(|error| match error {
            Error::Refused { collective, reason, .. } => hierarchical
                .refuse(self.operation, format!("between hosts, `{collective}` refuses: {reason}")),
            other => other,
        })
    }
}

/// The phases inside this rank's host, in which each of its ranks owns a part of the vector.
struct Inside<'a> {
    hosts: &'a Hosts,
    len: usize,
}

impl Inside<'_> {
    fn owned(&self, index: usize) -> Range<usize> {
        part(self.len, self.hosts.members().len(), index)
    }

    /// The direct reduce-scatter or all-gather of the host's ranks, or those of its steps that are `wanted`.
    fn push(&self, schedule: &mut Schedule, kind: Kind, wanted: impl Fn(&Step) -> bool) {
        let members = self.hosts.members();
        let additions = canonical_additions(members.len());
        let direct = parameter_server::along(&additions, kind, 0, members.len(), self.hosts.index, self.len);
        for steps in (Embedded { members, offset: 0 }).stages(direct, schedule) {
            schedule.push(steps.into_iter().filter(&wanted));
        }
    }

    /// The root gives every rank of its host the part that it owns.
    fn scatter(&self, schedule: &mut Schedule, root: Rank) {
        if self.hosts.host_of(root) != self.hosts.own {
            return;
        }
        if self.hosts.rank == root {
            let sends = self.others().map(|(index, to)| (to, Slice::buffer(self.owned(index))));
            schedule.push(sends.map(|(to, from)| Step::Send { to, from }));
        } else {
            let into = Slice::buffer(self.owned(self.hosts.index));
            schedule.push([Step::Recv { from: root, into }]);
        }
    }

    /// Every rank of the root's host gives the root the part that it owns.
    fn collect(&self, schedule: &mut Schedule, root: Rank) {
        if self.hosts.host_of(root) != self.hosts.own {
            return;
        }
        if self.hosts.rank == root {
            let receives = self.others().map(|(index, from)| (from, Slice::buffer(self.owned(index))));
            schedule.push(receives.map(|(from, into)| Step::Recv { from, into }));
        } else {
            let from = Slice::buffer(self.owned(self.hosts.index));
            schedule.push([Step::Send { to: root, from }]);
        }
    }

    /// The other ranks of the host, with the numbers of their parts.
    fn others(&self) -> impl Iterator<Item = (usize, Rank)> {
        self.hosts.members().iter().copied().enumerate().filter(|(_, rank)| *rank != self.hosts.rank)
    }
}
