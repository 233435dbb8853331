//! Reduce-scatter and all-gather, where every rank has a part of its own to end or begin with.
//!
//! Each part has a *carrier* on every host: the rank that it belongs to on that rank's host, and on the others one that
//! represents it.

use super::super::blocks::{Addition, canonical_additions};
use super::super::operands::Operands;
use super::super::{Schedule, Slice, Step, part};
use super::hosts::Hosts;
use crate::transport::Rank;
use std::ops::Range;

/// One round inside each host, in which carriers sum their parts, and one between hosts.
pub(super) fn reduce_scatter(hosts: &Hosts, len: usize, between: &[Addition]) -> Schedule {
    let parts = Parts { hosts, len };
    let mut schedule = Schedule::empty();
    let additions = canonical_additions(hosts.members().len());
    let mut steps = Vec::new();
    for owner in from(hosts.rank, hosts.size()) {
        let to = hosts.carrier(hosts.own, owner);
        if to != hosts.rank {
            steps.push(Step::Send { to, from: parts.of(owner) });
        }
    }
    let carried: Vec<Rank> = parts.carried().collect();
    let total: usize = carried.iter().map(|owner| parts.of(*owner).len()).sum();
    let scratch = schedule.add_scratch((hosts.members().len() - 1) * total);
    let mut start = 0;
    let mut sums = Vec::new();
    for owner in carried {
        let sum = parts.range(owner);
        let operands = Operands { own: hosts.index, sum: sum.clone(), scratch, start };
        start += (hosts.members().len() - 1) * sum.len();
        sums.push((owner, operands));
    }
    for (number, member) in hosts.members().iter().enumerate().filter(|(_, member)| **member != hosts.rank) {
        // As the member sends them.
        let rotation = from(*member, hosts.size());
        let operands = rotation.filter_map(|owner| sums.iter().find(|(carried, _)| *carried == owner));
        steps.extend(operands.map(|(_, sum)| Step::Recv { from: *member, into: sum.of(number) }));
    }
    steps.extend(sums.iter().flat_map(|(_, sum)| additions.iter().map(|addition| sum.add(addition))));
    schedule.push(steps);

    let mut steps: Vec<Step> = parts
        .carried()
        .filter(|owner| *owner != hosts.rank)
        .map(|owner| Step::Send { to: owner, from: parts.of(owner) })
        .collect();
    let own = parts.range(hosts.rank);
    let scratch = schedule.add_scratch((hosts.count() - 1) * own.len());
    let operands = Operands { own: hosts.own, sum: own, scratch, start: 0 };
    for host in parts.other_hosts() {
        steps.push(Step::Recv { from: hosts.carrier(host, hosts.rank), into: operands.of(host) });
    }
    steps.extend(between.iter().map(|addition| operands.add(addition)));
    schedule.push(steps);
    schedule
}

/// One round between hosts, which brings every part to its carriers, and one inside each host.
pub(super) fn all_gather(hosts: &Hosts, len: usize) -> Schedule {
    let parts = Parts { hosts, len };
    let mut schedule = Schedule::empty();
    let own = parts.of(hosts.rank);
    let sends =
        parts.other_hosts().map(|host| Step::Send { to: hosts.carrier(host, hosts.rank), from: own.clone() });
    let receives = parts.carried().filter(|owner| *owner != hosts.rank);
    let receives = receives.map(|owner| Step::Recv { from: owner, into: parts.of(owner) });
    schedule.push(sends.chain(receives));

    let others = || hosts.members().iter().copied().filter(|member| *member != hosts.rank);
    let sends = others().flat_map(|to| parts.carried().map(move |owner| (to, owner)));
    let sends = sends.map(|(to, owner)| Step::Send { to, from: parts.of(owner) });
    let receives = others().flat_map(|from| parts.carried_by(from).map(move |owner| (from, owner)));
    let receives = receives.map(|(from, owner)| Step::Recv { from, into: parts.of(owner) });
    schedule.push(sends.chain(receives));
    schedule
}

/// All ranks, beginning after this one, so that not everybody begins with the same.
fn from(rank: Rank, size: usize) -> impl Iterator<Item = Rank> {
    (1..=size).map(move |step| (rank + step) % size)
}

struct Parts<'a> {
    hosts: &'a Hosts,
    len: usize,
}

impl Parts<'_> {
    fn range(&self, owner: Rank) -> Range<usize> {
        part(self.len, self.hosts.size(), owner)
    }

    fn of(&self, owner: Rank) -> Slice {
        Slice::buffer(self.range(owner))
    }

    /// The owners of the parts that this rank carries.
    fn carried(&self) -> impl Iterator<Item = Rank> {
        self.carried_by(self.hosts.rank)
    }

    /// The owners of the parts that a rank of this host carries.
    fn carried_by(&self, member: Rank) -> impl Iterator<Item = Rank> {
        (0..self.hosts.size()).filter(move |owner| self.hosts.carrier(self.hosts.own, *owner) == member)
    }

    /// Every host but this rank's, beginning after it.
    fn other_hosts(&self) -> impl Iterator<Item = usize> {
        let count = self.hosts.count();
        (1..count).map(move |step| (self.hosts.own + step) % count)
    }
}
