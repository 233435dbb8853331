//! Who shares a host, who owns what, and which hosts are blocks of the canonical tree.

use super::super::blocks::{Addition, canonical_additions};
use super::super::{Topology, part};
use crate::transport::Rank;
use std::ops::Range;

/// The hosts as a rank sees them.
pub(super) struct Hosts {
    /// The ranks of each host, in order; hosts in the order of their first rank.
    ranks: Vec<Vec<Rank>>,
    /// This rank.
    pub(super) rank: Rank,
    /// The number of its host.
    pub(super) own: usize,
    /// Its number on its host.
    pub(super) index: usize,
    /// The host, and the number on it, of each rank.
    places: Vec<(usize, usize)>,
}

/// A piece of the vector that has one owner on each host.
pub(super) struct Lane {
    pub(super) elements: Range<usize>,
    /// By host.
    pub(super) owners: Vec<Rank>,
}

impl Hosts {
    pub(super) fn new(topology: &Topology, rank: Rank) -> Self {
        let ranks = topology.ranks_by_host();
        let mut places = vec![(0, 0); topology.size()];
        for (host, ranks) in ranks.iter().enumerate() {
            for (index, rank) in ranks.iter().enumerate() {
                places[*rank] = (host, index);
            }
        }
        let (own, index) = places[rank];
        Hosts { ranks, rank, own, index, places }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.ranks.len()
    }

    /// The ranks of this rank's host.
    pub(super) fn members(&self) -> &[Rank] {
        &self.ranks[self.own]
    }

    pub(super) fn host_of(&self, rank: Rank) -> usize {
        self.places[rank].0
    }

    /// Whether all have as many ranks.
    pub(super) fn are_equal(&self) -> bool {
        self.ranks.windows(2).all(|pair| pair[0].len() == pair[1].len())
    }

    /// The number of all ranks.
    pub(super) fn size(&self) -> usize {
        self.places.len()
    }

    /// The rank of `host` that carries what `rank` finishes or gives: `rank` itself on its own host, elsewhere the one
    /// with the same share of its host's ranks below it.
    pub(super) fn carrier(&self, host: usize, rank: Rank) -> Rank {
        let (home, index) = self.places[rank];
        if home == host {
            rank
        } else {
            self.ranks[host][index * self.ranks[host].len() / self.ranks[home].len()]
        }
    }

    /// The pieces between the cuts of all hosts together, none of them empty. Rank i of a host of g owns its i-th of g
    /// parts of the vector.
    pub(super) fn lanes(&self, len: usize) -> Vec<Lane> {
        let starts = |ranks: &Vec<Rank>| {
            let count = ranks.len();
            (0..count).map(move |index| part(len, count, index).start)
        };
        let mut bounds: Vec<usize> = self.ranks.iter().flat_map(starts).collect();
        bounds.push(len);
        bounds.sort_unstable();
        bounds.dedup();
        // Each host's owner moves on where its part ends.
        let mut indices = vec![0; self.count()];
        let lane = |bounds: &[usize]| {
            let elements = bounds[0]..bounds[1];
            let owners = self.ranks.iter().zip(&mut indices).map(|(ranks, index)| {
                while part(len, ranks.len(), *index).end <= elements.start {
                    *index += 1;
                }
                ranks[*index]
            });
            Lane { owners: owners.collect(), elements: elements.clone() }
        };
        bounds.windows(2).map(lane).collect()
    }

    /// The additions of T(n) between hosts, where every host's ranks make an inner sum of T(n).
    ///
    /// # Errors
    /// Which host prevents it, and why.
    pub(super) fn canonical_additions(&self) -> Result<Vec<Addition>, String> {
        let additions = canonical_additions(self.size());
        for (host, ranks) in self.ranks.iter().enumerate() {
            let (first, count) = (ranks[0], ranks.len());
            if ranks[count - 1] != first + count - 1 {
                return Err(format!("the ranks of host {host} ({ranks:?}) are not consecutive"));
            }
            if count > 1 && !additions.iter().any(|addition| addition.sum() == (first..first + count)) {
                return Err(format!(
                    "host {host} has the ranks {first} to {}, which are no block of the canonical tree of {} ranks",
                    first + count - 1,
                    self.size()
                ));
            }
        }
        let between = additions
            .iter()
            .filter(|addition| self.host_of(addition.left.start) != self.host_of(addition.right.end - 1));
        // Hosts are whole inner sums, so both operands of what is left are whole hosts.
        let hosts = |ranks: &Range<Rank>| self.host_of(ranks.start)..self.host_of(ranks.end - 1) + 1;
        Ok(between
            .map(|addition| Addition { left: hosts(&addition.left), right: hosts(&addition.right) })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(of_ranks: &[u32]) -> Hosts {
        Hosts::new(&Topology::with_hosts(of_ranks.to_vec()), 0)
    }

    #[test]
    fn lanes_are_cut_by_all_hosts_and_have_an_owner_on_each() {
        let lanes = hosts(&[0, 0, 1, 1, 1]).lanes(12);
        let found: Vec<_> = lanes.iter().map(|lane| (lane.elements.clone(), lane.owners.clone())).collect();
        let expected = [(0..4, vec![0, 2]), (4..6, vec![0, 3]), (6..8, vec![1, 3]), (8..12, vec![1, 4])];
        assert_eq!(found, expected);
        assert_eq!(hosts(&[0, 0, 1, 1]).lanes(1).len(), 1);
        assert_eq!(hosts(&[0, 0, 1, 1]).lanes(0).len(), 0);
    }

    #[test]
    fn hosts_that_are_blocks_of_the_canonical_tree_are_recognised() {
        let additions = |of_ranks: &[u32]| {
            let found = hosts(of_ranks).canonical_additions()?;
            Ok::<_, String>(found.iter().map(|a| (a.left.clone(), a.right.clone())).collect::<Vec<_>>())
        };
        assert_eq!(additions(&[0, 0, 0]), Ok(vec![]));
        assert_eq!(additions(&[0, 0, 1, 1]), Ok(vec![(0..1, 1..2)]));
        assert_eq!(additions(&[0, 0, 1, 1, 2, 2]), Ok(vec![(0..1, 1..2), (0..2, 2..3)]));
        // B₁ on one host, B₂ ⊕ B₃ on the other.
        assert_eq!(additions(&[0, 0, 0, 0, 1, 1, 1]), Ok(vec![(0..1, 1..2)]));
        // B₁ ⊕ (B₂ ⊕ B₃) between three hosts.
        assert_eq!(additions(&[0, 0, 0, 0, 1, 1, 2]), Ok(vec![(1..2, 2..3), (0..1, 1..3)]));
        let reason = additions(&[0, 0, 0, 1, 1, 1]).expect_err("3 + 3 of 6 are no blocks");
        assert!(reason.contains("the ranks 0 to 2"), "{reason}");
        let reason = additions(&[0, 1, 0, 1]).expect_err("interleaved");
        assert!(reason.contains("host 0 ([0, 2]) are not consecutive"), "{reason}");
    }
}
