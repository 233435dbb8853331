//! Where things are in the control segment, and the words that are not [`protocol`](super::protocol)'s.

use super::protocol::{Arrival, Bell, Line, Rendezvous};
use crate::transport::Rank;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// The longest vector that travels inside a slot.
pub(crate) const INLINE_BYTES: usize = 16 * 1024;
/// A vector this short shares a cache line with the words that every rank reads anyway.
const TAIL_BYTES: usize = 24;
/// Bytes of the header that callers compare.
pub(crate) const HEADER_BYTES: usize = 128;
/// Bytes of the figures that a rank says when it enters.
pub(crate) const FIGURES_BYTES: usize = 64;
/// The most bytes of one window for private buffers; each rank has two.
const MOST_WINDOW_BYTES: usize = 512 * 1024;
/// The least, for many ranks.
const LEAST_WINDOW_BYTES: usize = 128 * 1024;
/// Buffers that a rank can have registered at a time.
pub(super) const TABLE_ENTRIES: usize = 64;
/// The longest reason of a failure that the others can read.
pub(super) const REASON_BYTES: usize = 1024;

pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"esync\0\0\x02");

/// States of a rank.
pub(super) const ABSENT: u32 = 0;
pub(super) const RUNNING: u32 = 1;
pub(super) const LEFT: u32 = 2;
pub(super) const GAVE_UP: u32 = 3;

/// The first words of the segment.
#[repr(C)]
pub(super) struct Header {
    /// Written last by the maker.
    pub(super) magic: AtomicU64,
    pub(super) ranks: AtomicU32,
    /// How many ranks have opened the segment.
    pub(super) joined: AtomicU32,
    /// The cores that some rank may use, as bits.
    pub(super) cores: [AtomicU64; 16],
    /// One more than the rank that failed first; 0 if none did.
    pub(super) failed: AtomicU32,
    /// Bytes of the reason, once it is written.
    pub(super) reason_bytes: AtomicU32,
    /// 1 once a rank has printed its error.
    pub(super) spoken: AtomicU32,
    /// 1 if some rank could not open another's memory: then nobody registers buffers.
    pub(super) unreachable: AtomicU32,
    pub(super) rendezvous: Rendezvous,
}

/// What a rank tells about itself, in lines of its own.
#[repr(C)]
pub(super) struct Member {
    pub(super) words: Line<Words>,
    pub(super) progress: Line<Progress>,
    /// Rung for messages to this rank, and for room in its rings.
    pub(super) doorbell: Line<Doorbell>,
}

#[repr(C)]
pub(super) struct Words {
    pub(super) pid: AtomicU32,
    pub(super) state: AtomicU32,
    /// Its handle on the control segment while it starts.
    pub(super) file: AtomicU32,
    /// The last operation that it entered.
    pub(super) arrived: AtomicU64,
    /// The operation of which it is doing a chunk, or 0.
    pub(super) working: AtomicU64,
}

#[repr(C)]
pub(super) struct Progress {
    pub(super) value: AtomicU64,
    pub(super) bell: Bell,
}

#[repr(C)]
pub(super) struct Doorbell {
    pub(super) count: AtomicU32,
    pub(super) bell: Bell,
}

/// A registered buffer, as its owner announces it.
#[repr(C)]
pub(super) struct TableEntry {
    pub(super) generation: AtomicU32,
    pub(super) file: AtomicU32,
    pub(super) bytes: AtomicU64,
}

/// Says where a rank's buffer is: which of its registered buffers, and at which byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(super) offset: u64,
    pub(super) buffer: u32,
}

impl Place {
    /// Memory that nobody else can address, or none at all.
    pub(crate) const NOWHERE: Place = Place { offset: 0, buffer: u32::MAX };

    /// Private memory: its address in the process that owns it.
    pub(crate) fn private(address: *const u8) -> Place {
        Place { offset: address.expose_provenance() as u64, ..Self::NOWHERE }
    }
}

/// One rank's words of one operation.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct SlotHead {
    pub(super) hash: u64,
    pub(super) source: u64,
    pub(super) target: u64,
    pub(super) buffers: [u32; 2],
}

const SLOT_HEAD: usize = FIGURES_BYTES + HEADER_BYTES;
const SLOT_ARRIVAL: usize = SLOT_HEAD + size_of::<SlotHead>();
const SLOT_TAIL: usize = SLOT_ARRIVAL + size_of::<Arrival>();
const SLOT_PAYLOAD: usize = SLOT_TAIL + TAIL_BYTES;
const SLOT_BYTES: usize = SLOT_PAYLOAD + INLINE_BYTES;
const _: () =
    assert!(size_of::<SlotHead>() == 32 && SLOT_HEAD.is_multiple_of(64) && SLOT_BYTES.is_multiple_of(64));

/// Byte offsets from the segment's start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    ranks: usize,
    members: usize,
    reason: usize,
    tables: usize,
    slots: usize,
    windows: usize,
    pub(super) window_bytes: usize,
    rings: usize,
    ring_bytes: usize,
    pub(super) bytes: usize,
}

impl Layout {
    /// `for_processes` adds what threads do not need: tables, windows and rings.
    pub(super) fn new(ranks: usize, for_processes: bool) -> Layout {
        let (mut at, times) = (0, usize::from(for_processes));
        let mut take = |bytes: usize| {
            let start = at;
            at += bytes.next_multiple_of(128);
            start
        };
        take(size_of::<Header>());
        let reason = take(REASON_BYTES);
        let members = take(ranks * size_of::<Member>());
        let tables = take(times * ranks * TABLE_ENTRIES * size_of::<TableEntry>());
        let slots = take(2 * ranks * SLOT_BYTES);
        at = at.next_multiple_of(4096);
        let windows = at;
        // All windows together take at most 32 MiB with up to 128 ranks.
        let window_bytes = ((16 << 20) / ranks / 8192 * 8192).clamp(LEAST_WINDOW_BYTES, MOST_WINDOW_BYTES);
        at += times * 2 * ranks * window_bytes;
        // All rings together take 16 MiB with up to 16 ranks, and 4 KiB each beyond.
        let ring_bytes =
            times * ((16 << 20) / (ranks * ranks)).clamp(4096, 256 * 1024).next_multiple_of(4096);
        let rings = at;
        at += ranks * ranks * ring_bytes;
        Layout { ranks, members, reason, tables, slots, windows, window_bytes, rings, ring_bytes, bytes: at }
    }

    pub(super) fn member(&self, rank: Rank) -> usize {
        debug_assert!(rank < self.ranks);
        self.members + rank * size_of::<Member>()
    }

    pub(super) fn reason(&self) -> usize {
        self.reason
    }

    pub(super) fn table_entry(&self, rank: Rank, index: usize) -> usize {
        self.tables + (rank * TABLE_ENTRIES + index) * size_of::<TableEntry>()
    }

    fn slot(&self, rank: Rank, operation: u64) -> usize {
        self.slots + (2 * rank + (operation & 1) as usize) * SLOT_BYTES
    }

    pub(super) fn figures(&self, rank: Rank, operation: u64) -> usize {
        self.slot(rank, operation)
    }

    pub(super) fn header(&self, rank: Rank, operation: u64) -> usize {
        self.slot(rank, operation) + FIGURES_BYTES
    }

    pub(super) fn slot_head(&self, rank: Rank, operation: u64) -> usize {
        self.slot(rank, operation) + SLOT_HEAD
    }

    pub(super) fn arrival(&self, rank: Rank, operation: u64) -> usize {
        self.slot(rank, operation) + SLOT_ARRIVAL
    }

    /// Where a vector of `bytes` travels inside a slot.
    pub(super) fn payload(&self, rank: Rank, operation: u64, bytes: usize) -> usize {
        self.slot(rank, operation) + if bytes <= TAIL_BYTES { SLOT_TAIL } else { SLOT_PAYLOAD }
    }

    pub(super) fn window(&self, rank: Rank, which: usize) -> usize {
        self.windows + (2 * rank + which % 2) * self.window_bytes
    }

    /// The ring of messages from one rank to another, and its bytes.
    pub(super) fn ring(&self, from: Rank, to: Rank) -> (usize, usize) {
        (self.rings + (from * self.ranks + to) * self.ring_bytes, self.ring_bytes)
    }
}
