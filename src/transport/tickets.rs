//! The book-keeping of tickets, for transports that complete them by themselves.

use super::Rank;

/// How a transfer ended.
#[derive(Clone, Copy)]
pub(super) enum Outcome {
    Done,
    WrongLength { sent: usize, expected: usize },
}

/// The tickets of one rank.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<(Rank, Option<Outcome>)>,
    free: Vec<u32>,
}

impl Slots {
    pub(super) fn take(&mut self, peer: Rank) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = (peer, None);
                slot
            }
            None => {
                self.slots.push((peer, None));
                self.slots.len() as u32 - 1
            }
        }
    }

    pub(super) fn finish(&mut self, slot: u32, outcome: Outcome) {
        self.slots[slot as usize].1 = Some(outcome);
    }

    pub(super) fn outcome(&self, slot: u32) -> Option<Outcome> {
        self.slots[slot as usize].1
    }

    pub(super) fn peer(&self, slot: u32) -> Rank {
        self.slots[slot as usize].0
    }

    /// Frees the slot; returns the peer.
    pub(super) fn release(&mut self, slot: u32) -> Rank {
        self.free.push(slot);
        self.slots[slot as usize].0
    }
}
