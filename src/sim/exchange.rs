//! The exchanges in flight, and their arithmetic.

use super::queue::Nanoseconds;
use super::wire::{Feedback, Wire};
use crate::collective::canonical_pairs;
use crate::policy::{Fragment, MemberReport, Payload};
use crate::transport::Rank;
use std::sync::Arc;

/// One exchange that has begun on some rank.
pub(super) struct Exchange {
    pub(super) fragment: Fragment,
    pub(super) payload: Payload,
    /// What each member brought, one after the other in the order of arrival; the sum is the first `len` elements.
    pub(super) values: Vec<f32>,
    pub(super) len: usize,
    pub(super) trainable: usize,
    /// In the order of arrival.
    pub(super) arrived: Vec<MemberReport>,
    /// What their deltas hold, in the same order.
    held: Vec<MemberReport>,
    /// How many of them are neither dead nor have put the result in place.
    pub(super) present: usize,
    pub(super) state: State,
}

pub(super) enum State {
    Gathering,
    /// All are here since `since`; the result is there at the end of the collective.
    Running(Closed),
    Done(Closed),
}

/// What all ranks know of an exchange that all have entered.
#[derive(Clone)]
pub(super) struct Closed {
    /// When the last rank arrived.
    pub(super) since: Nanoseconds,
    pub(super) duration: Nanoseconds,
    pub(super) members: Arc<[MemberReport]>,
    /// Decided by the first rank that has the result.
    pub(super) stop: Option<bool>,
    /// Its number, from 1.
    pub(super) number: u64,
}

impl Exchange {
    pub(super) fn new(fragment: Fragment, payload: Payload, values: Vec<f32>) -> Self {
        Exchange {
            fragment,
            payload,
            values,
            len: 0,
            trainable: 0,
            arrived: Vec::new(),
            held: Vec::new(),
            present: 0,
            state: State::Gathering,
        }
    }

    /// One more is here, whose delta holds what `held` says.
    pub(super) fn arrive(&mut self, member: MemberReport, held: MemberReport) {
        self.arrived.push(member);
        self.held.push(held);
        self.present += 1;
    }

    pub(super) fn has(&self, rank: Rank) -> bool {
        self.arrived.iter().any(|member| member.rank == rank)
    }

    /// All members' figures, by rank.
    pub(super) fn members(&self) -> Arc<[MemberReport]> {
        by_rank(&self.arrived).into()
    }

    /// What all members' deltas hold, by rank.
    pub(super) fn held(&self) -> Vec<MemberReport> {
        by_rank(&self.held)
    }

    /// Weighs every contribution (the statistics, which are averaged by value, equally) and sums them in the canonical tree
    /// by rank, as the collectives do: the first `len` elements become the result. `weights` are in the order of the ranks.
    /// What a narrow wire rounds off is kept in `feedback`, if there is one, as ranks keep it of their contributions and of
    /// the parts of the sum that they own.
    pub(super) fn reduce(&mut self, weights: &[f64], wire: &mut Wire, mut feedback: Option<&mut Feedback>) {
        let mut order: Vec<usize> = (0..self.arrived.len()).collect();
        order.sort_by_key(|&place| self.arrived[place].rank);
        let (len, share) = (self.len, (1.0 / order.len().max(1) as f64) as f32);
        for (&place, &weight) in order.iter().zip(weights) {
            let (trained, statistics) = self.values[place * len..][..len].split_at_mut(self.trainable);
            trained.iter_mut().for_each(|value| *value *= weight as f32);
            statistics.iter_mut().for_each(|value| *value *= share);
            // On one rank nothing travels.
            if order.len() > 1 {
                let left = feedback.as_mut().map(|feedback| feedback.of(self.arrived[place].rank));
                wire.round(trained, left);
            }
        }
        for (left, right) in canonical_pairs(order.len()) {
            add(&mut self.values, order[left] * len, order[right] * len, len);
        }
        if let Some(&first) = order.first() {
            self.values.copy_within(first * len..(first + 1) * len, 0);
        }
        if order.len() > 1 {
            wire.round(&mut self.values[..self.trainable], feedback.map(|feedback| &mut feedback.result));
        }
    }

    pub(super) fn result(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

fn by_rank(members: &[MemberReport]) -> Vec<MemberReport> {
    let mut members = members.to_vec();
    members.sort_by_key(|member| member.rank);
    members
}

/// Adds the vector that begins at `right` to the one that begins at `left`.
fn add(values: &mut [f32], left: usize, right: usize, len: usize) {
    let (low, high) = values.split_at_mut(left.max(right));
    let (a, b) = (&mut low[left.min(right)..][..len], &mut high[..len]);
    let (into, from) = if left < right { (a, b) } else { (b, a) };
    for (into, &from) in into.iter_mut().zip(from.iter()) {
        *into += from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::LocalSteps;
    use crate::reduce::WireFormat;
    use crate::sim::wire::Scale;

    #[test]
    fn the_sum_does_not_depend_on_the_order_of_arrival() {
        let value = |rank: usize| [0.1 + rank as f32, 1e7 / (1.0 + rank as f32), 3.0];
        let sum = |order: &[usize]| {
            let mut exchange = Exchange::new(Fragment::Whole, Payload::Delta, Vec::new());
            (exchange.len, exchange.trainable) = (3, 2);
            for &rank in order {
                exchange.values.extend(value(rank));
                let member = MemberReport {
                    rank,
                    local_steps: LocalSteps(1),
                    samples: 1,
                    step_seconds: 1.0,
                    transfer_seconds: 0.0,
                    loss: 1.0,
                };
                exchange.arrive(member, member);
            }
            let mut wire = Wire::new(WireFormat::F32, Scale::new(None, 3));
            exchange.reduce(&[0.5, 0.25, 1.0, 2.0, 0.125], &mut wire, None);
            exchange.result().to_vec()
        };
        let expected = sum(&[0, 1, 2, 3, 4]);
        assert_eq!(sum(&[3, 1, 4, 0, 2]), expected);
        let w = |rank: usize| [0.5, 0.25, 1.0, 2.0, 0.125][rank] * value(rank)[1];
        assert_eq!(expected[1], ((w(0) + w(1)) + (w(2) + w(3))) + w(4), "the canonical tree");
        assert!((expected[2] - 3.0).abs() < 1e-6, "statistics are averaged");
    }
}
