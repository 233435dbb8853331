//! Messages between processes: queues of what is posted, and the rings through which it moves. All copying is done by the
//! rank's own calls, so nothing of the caller's is in use once they have returned.

use super::ring::Ring;
use crate::transport::tickets::{Outcome, Slots};
use crate::transport::{Domain, Rank, Tag, Ticket};
use std::collections::VecDeque;

/// What precedes a message in a ring.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Envelope {
    len: u64,
    tag: u64,
}

const ENVELOPE: usize = size_of::<Envelope>();

/// A message of the caller's.
struct Posted {
    tag: Tag,
    start: *mut u8,
    len: usize,
    slot: u32,
    /// Bytes that have moved.
    moved: usize,
    /// The envelope is in the ring.
    is_announced: bool,
}

/// Where an arriving message goes.
enum Into {
    Receive(Posted),
    /// Nobody has posted its tag, and messages behind it are wanted.
    Stash(Tag, Vec<u8>, usize),
    /// Its length was wrong: the rest is skipped.
    Nowhere(usize),
}

/// What is between this rank and another one.
struct Pair {
    out: Ring,
    into: Ring,
    sends: VecDeque<Posted>,
    receives: VecDeque<Posted>,
    arriving: Option<Into>,
    stashed: VecDeque<(Tag, Vec<u8>)>,
    /// Bytes moved since the other was told.
    is_to_be_told: bool,
}

/// One rank's messages.
pub(super) struct Messages {
    pairs: Vec<Pair>,
    slots: Slots,
    /// A message was given up half-way: what follows it in its ring would be misread.
    pub(super) is_broken: bool,
    /// Whom the current wait is for.
    pub(super) missing: Vec<bool>,
}

// SAFETY: the pointers are used by the calls of one rank only, which hold the lock around this.
unsafe impl Send for Messages {}

impl Messages {
    /// # Safety
    /// The domain's rings must outlive this value, and be used by it alone on this rank.
    pub(super) unsafe fn new(domain: &Domain) -> Messages {
        let own = domain.rank();
        let ring = |from: Rank, to: Rank| {
            let (start, bytes) = domain.ring(from, to);
            // SAFETY: the layout gives every ordered pair of ranks aligned memory of its own.
            unsafe { Ring::new(start, bytes) }
        };
        let pair = |peer: Rank| Pair {
            out: ring(own, peer),
            into: ring(peer, own),
            sends: VecDeque::with_capacity(4),
            receives: VecDeque::with_capacity(4),
            arriving: None,
            stashed: VecDeque::new(),
            is_to_be_told: false,
        };
        Messages {
            pairs: (0..domain.size()).map(pair).collect(),
            slots: Slots::default(),
            is_broken: false,
            missing: vec![false; domain.size()],
        }
    }

    pub(super) fn reserve(&mut self, messages: usize) {
        for pair in &mut self.pairs {
            pair.sends.reserve(messages.saturating_sub(pair.sends.len()));
            pair.receives.reserve(messages.saturating_sub(pair.receives.len()));
        }
    }

    /// Queues a transfer.
    pub(super) fn post(&mut self, peer: Rank, tag: Tag, start: *mut u8, len: usize, is_send: bool) -> Ticket {
        let slot = self.slots.take(peer);
        let posted = Posted { tag, start, len, slot, moved: 0, is_announced: false };
        let pair = &mut self.pairs[peer];
        if is_send {
            pair.sends.push_back(posted);
        } else if let Some(found) = pair.stashed.iter().position(|(stashed, _)| *stashed == tag) {
            let bytes = pair.stashed.remove(found).map(|(_, bytes)| bytes).unwrap_or_default();
            let outcome = if bytes.len() == len {
                // SAFETY: the receive's memory is good for `len` bytes until its ticket completes, which is below.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, len) };
                Outcome::Done
            } else {
                Outcome::WrongLength { sent: bytes.len(), expected: len }
            };
            self.slots.finish(slot, outcome);
        } else {
            pair.receives.push_back(posted);
        }
        Ticket(slot)
    }

    /// Moves what can be moved to and from one rank.
    pub(super) fn progress_with(&mut self, peer: Rank, domain: &Domain) {
        let pair = &mut self.pairs[peer];
        pair.push(&mut self.slots);
        pair.pull(&mut self.slots);
        if std::mem::take(&mut pair.is_to_be_told) {
            domain.ring_doorbell(peer);
        }
    }

    /// Moves what can be moved.
    pub(super) fn progress(&mut self, domain: &Domain) {
        for peer in 0..self.pairs.len() {
            self.progress_with(peer, domain);
        }
    }

    /// Takes the tickets that are complete and marks the peers of the others as missing. Answers whether any is left, or how
    /// one ended wrongly.
    pub(super) fn collect(&mut self, tickets: &mut [Option<Ticket>]) -> Result<bool, (Rank, usize, usize)> {
        self.missing.fill(false);
        let mut is_left = false;
        for ticket in tickets {
            let Some(Ticket(slot)) = *ticket else { continue };
            match self.slots.outcome(slot) {
                None => {
                    is_left = true;
                    self.missing[self.slots.peer(slot)] = true;
                }
                Some(outcome) => {
                    let peer = self.slots.release(slot);
                    *ticket = None;
                    if let Outcome::WrongLength { sent, expected } = outcome {
                        return Err((peer, sent, expected));
                    }
                }
            }
        }
        Ok(is_left)
    }

    /// Forgets transfers, wherever they are.
    pub(super) fn abandon(&mut self, tickets: &mut [Option<Ticket>]) {
        for Ticket(slot) in tickets.iter_mut().filter_map(Option::take) {
            let pair = &mut self.pairs[self.slots.peer(slot)];
            let is_half_sent = |posted: &Posted| posted.slot == slot && posted.is_announced;
            let is_half_received =
                matches!(&pair.arriving, Some(Into::Receive(posted)) if posted.slot == slot);
            self.is_broken |= is_half_received || pair.sends.iter().any(is_half_sent);
            if is_half_received {
                pair.arriving = None;
            }
            pair.sends.retain(|posted| posted.slot != slot);
            pair.receives.retain(|posted| posted.slot != slot);
            self.slots.release(slot);
        }
    }
}

impl Pair {
    /// Writes what is posted, as far as there is room.
    fn push(&mut self, slots: &mut Slots) {
        while let Some(posted) = self.sends.front_mut() {
            if !posted.is_announced {
                if self.out.room() < ENVELOPE {
                    return;
                }
                let envelope = Envelope { len: posted.len as u64, tag: u64::from(posted.tag.0) };
                // SAFETY: the envelope's own bytes; this rank alone writes to the ring.
                unsafe { self.out.write(bytemuck::bytes_of(&envelope).as_ptr(), ENVELOPE) };
                posted.is_announced = true;
                self.is_to_be_told = true;
            }
            // SAFETY: the caller keeps the message valid until its ticket completes.
            let moved = unsafe { self.out.write(posted.start.add(posted.moved), posted.len - posted.moved) };
            posted.moved += moved;
            self.is_to_be_told |= moved > 0;
            if posted.moved < posted.len {
                return;
            }
            slots.finish(posted.slot, Outcome::Done);
            self.sends.pop_front();
        }
    }

    /// Reads what has arrived and is wanted.
    fn pull(&mut self, slots: &mut Slots) {
        loop {
            let Some(arriving) = &mut self.arriving else {
                if !self.begin(slots) {
                    return;
                }
                continue;
            };
            let (moved, is_complete) = match arriving {
                Into::Receive(posted) => {
                    // SAFETY: the caller keeps the memory valid until its ticket completes.
                    let moved =
                        unsafe { self.into.read(posted.start.add(posted.moved), posted.len - posted.moved) };
                    posted.moved += moved;
                    (moved, posted.moved == posted.len)
                }
                Into::Stash(_, bytes, filled) => {
                    // SAFETY: the rest of a vector of ours.
                    let moved =
                        unsafe { self.into.read(bytes.as_mut_ptr().add(*filled), bytes.len() - *filled) };
                    *filled += moved;
                    (moved, *filled == bytes.len())
                }
                Into::Nowhere(left) => {
                    // SAFETY: null skips the bytes.
                    let moved = unsafe { self.into.read(std::ptr::null_mut(), *left) };
                    *left -= moved;
                    (moved, *left == 0)
                }
            };
            self.is_to_be_told |= moved > 0;
            if !is_complete {
                return;
            }
            match self.arriving.take() {
                Some(Into::Receive(posted)) => slots.finish(posted.slot, Outcome::Done),
                Some(Into::Stash(tag, bytes, _)) => self.stashed.push_back((tag, bytes)),
                Some(Into::Nowhere(_)) | None => {}
            }
        }
    }

    /// Looks at the next message. One that nobody wants yet stays where it is, unless it is in the way.
    fn begin(&mut self, slots: &mut Slots) -> bool {
        let mut envelope = Envelope { len: 0, tag: 0 };
        if self.receives.is_empty() || self.into.filled() < ENVELOPE {
            return false;
        }
        let bytes = bytemuck::bytes_of_mut(&mut envelope);
        // SAFETY: the envelope's own bytes; this rank alone reads the ring.
        unsafe { self.into.read(bytes.as_mut_ptr(), ENVELOPE) };
        let (tag, len) = (Tag(envelope.tag as u16), envelope.len as usize);
        let wanted = self.receives.iter().position(|posted| posted.tag == tag);
        self.arriving = Some(match wanted.and_then(|index| self.receives.remove(index)) {
            Some(posted) if posted.len == len => Into::Receive(posted),
            Some(posted) => {
                slots.finish(posted.slot, Outcome::WrongLength { sent: len, expected: posted.len });
                Into::Nowhere(len)
            }
            None => Into::Stash(tag, vec![0; len], 0),
        });
        true
    }
}
