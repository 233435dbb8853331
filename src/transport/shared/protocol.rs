//! The rendezvous, and the claiming of chunks: the few words on which the safety of the whole path rests.
//!
//! Operations are numbered from 1, the same on all ranks. Words come in pairs, for even and odd operations: a rank can be
//! at most one operation ahead of another, because each operation begins with a rendezvous of all. Those of chunks come in
//! threes, so that they can be cleared while no rank is in the operation that used them or in the one that will.
//!
//! This file needs nothing but atomics, so that loom can check it (`tests/loom_shared.rs`). All words begin as zero.

use super::atomics::{AtomicU32, AtomicU64, Ordering, fence};

/// How to sleep on a word, and to wake its sleepers: futexes, or a model of them.
pub(super) trait Sleep {
    /// Returns at once if the word differs from `value`, else after a wake-up (or earlier).
    fn sleep_while(&self, word: &AtomicU32, value: u32);
    /// Ends all sleeps on the word.
    fn wake_all(&self, word: &AtomicU32);
}

/// Two cache lines, because some processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub(super) struct Line<T>(pub(super) T);

/// A word that says how far things have come, and on which one can sleep.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Bell {
    word: AtomicU32,
    sleepers: AtomicU32,
}

impl Bell {
    pub(super) fn seen(&self) -> u32 {
        self.word.load(Ordering::Acquire)
    }

    /// Sets the word and wakes whoever sleeps: one call to the system, and none if nobody does.
    pub(super) fn ring(&self, value: u32, sleep: &impl Sleep) {
        // Both sides write one word and then read the other. The fences are in one total order, so either the ringer sees the
        // sleeper, or the sleeper sees the new value.
        self.word.store(value, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            sleep.wake_all(&self.word);
        }
    }

    /// Ends all sleeps without anything having come further.
    pub(super) fn nudge(&self, sleep: &impl Sleep) {
        sleep.wake_all(&self.word);
    }

    /// For who has written elsewhere what others wait for: wakes whoever sleeps. While nobody does, the word's line stays
    /// where it is.
    fn wake(&self, sleep: &impl Sleep) {
        // As in `ring`: either the sleeper is seen here, or it sees, before it sleeps, what was written.
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            self.word.fetch_add(1, Ordering::Release);
            sleep.wake_all(&self.word);
        }
    }

    /// Sleeps unless the word has changed since it was `seen`, or what is waited for `is_ready`.
    pub(super) fn doze(&self, seen: u32, is_ready: impl Fn() -> bool, sleep: &impl Sleep) {
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.word.load(Ordering::Acquire) == seen && !is_ready() {
            sleep.sleep_while(&self.word, seen);
        }
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all ranks said when they arrived, added up in one word: how many they are, how many of them said that they hold a
/// private buffer, and the sum of their hashes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tally(u64);

const HASH_BITS: u32 = 44;
const COUNT_BITS: u32 = 10;

/// The most ranks whose sums fit.
pub(super) const MOST_RANKS: usize = (1 << COUNT_BITS) - 1;

impl Tally {
    /// One rank's contribution.
    pub(super) fn of_one(hash: u32, is_private: bool) -> Tally {
        Tally(1 << (HASH_BITS + COUNT_BITS) | u64::from(is_private) << HASH_BITS | u64::from(hash))
    }

    fn count(self) -> u64 {
        self.0 >> (HASH_BITS + COUNT_BITS)
    }

    /// How many said that they hold a private buffer.
    pub(super) fn private(self) -> u64 {
        (self.0 >> HASH_BITS) & ((1 << COUNT_BITS) - 1)
    }

    /// Whether all `ranks` said the same as this one, as far as a sum can tell.
    pub(super) fn agrees_with(self, hash: u32, ranks: u64) -> bool {
        self.0 & ((1 << HASH_BITS) - 1) == u64::from(hash) * ranks
    }
}

/// One rank's arrival, in the line of its slot's head: what it says (a bit and a hash) below the number of the operation.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(super) struct Arrival(AtomicU64);

const ARRIVAL_HASH_BITS: u32 = 32;
const ARRIVAL_OPERATION: u32 = ARRIVAL_HASH_BITS + 1;

impl Arrival {
    /// Enters `operation`: one line travels to each other rank, where [`Rendezvous::arrive`] needs three that follow each
    /// other. Words come in pairs here too. What a rank wrote before, those see who see that it [has
    /// entered](Self::has_entered). Whoever calls this must [wake](Rendezvous::wake) the sleepers before it sleeps itself.
    pub(super) fn announce(&self, operation: u64, hash: u32, is_private: bool) {
        let said = u64::from(is_private) << ARRIVAL_HASH_BITS | u64::from(hash);
        self.0.store(operation << ARRIVAL_OPERATION | said, Ordering::Release);
    }

    /// Whether the rank has entered `operation`. To be asked of its word of that parity, and before this rank enters the next one:
    /// until then nobody can be two operations further, where the word is used again.
    pub(super) fn has_entered(&self, operation: u64) -> bool {
        self.0.load(Ordering::Acquire) >> ARRIVAL_OPERATION
            == operation << ARRIVAL_OPERATION >> ARRIVAL_OPERATION
    }

    /// What all ranks said, for those that have seen all of them enter.
    pub(super) fn tally<'a>(of_all: impl Iterator<Item = &'a Arrival>) -> Tally {
        let of_one = |arrival: &Arrival| {
            let word = arrival.0.load(Ordering::Relaxed);
            Tally::of_one(word as u32, word >> ARRIVAL_HASH_BITS & 1 == 1)
        };
        Tally(of_all.map(|arrival| of_one(arrival).0).sum())
    }
}

/// Opened by the last to arrive. What was said lies beside the bell, so that who sees it open has both.
#[derive(Debug, Default)]
#[repr(C)]
struct Gate {
    bell: Bell,
    tallies: [AtomicU64; 2],
}

#[derive(Debug, Default)]
#[repr(C)]
struct Chunks {
    /// How many were asked for, and [`CLOSED`].
    claimed: Line<AtomicU64>,
    done: Line<AtomicU64>,
}

/// Nobody may claim any more: a rank has given up.
const CLOSED: u64 = 1 << 63;

/// Abandoned chunks are counted apart, so that an operation that has one never counts as finished.
const ABANDONED: u64 = 1 << 32;

/// The answer to a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// This chunk is the caller's alone, and must be [finished](Rendezvous::finish).
    Chunk(u64),
    /// All are taken.
    Exhausted,
    /// A rank has given up the operation: its buffer is not to be touched.
    Closed,
}

/// The shared words.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Rendezvous {
    arrivals: [Line<AtomicU64>; 2],
    chunks: [Chunks; 3],
    gate: Line<Gate>,
    finished: Line<Bell>,
}

fn parity(operation: u64) -> usize {
    (operation & 1) as usize
}

fn place_of_chunks(operation: u64) -> usize {
    (operation % 3) as usize
}

impl Rendezvous {
    /// Enters `operation`. The last of `ranks` clears the next operation's words, which nobody uses: all have left the
    /// one before. Then it opens the gate. What a rank wrote before, every rank sees once the gate is open.
    pub(super) fn arrive(&self, operation: u64, ranks: u64, said: Tally, sleep: &impl Sleep) {
        let before = self.arrivals[parity(operation)].0.fetch_add(said.0, Ordering::AcqRel);
        if Tally(before).count() + 1 == ranks {
            self.arrivals[parity(operation + 1)].0.store(0, Ordering::Relaxed);
            self.clear_chunks(operation + 1);
            let all = before.wrapping_add(said.0);
            self.gate.0.tallies[parity(operation)].store(all, Ordering::Relaxed);
            self.gate.0.bell.ring(operation as u32, sleep);
        }
    }

    /// Clears the words of chunks of `operation`: for a rank without which nobody can enter the operation before. Then all
    /// have left the one three before, which used them.
    pub(super) fn clear_chunks(&self, operation: u64) {
        let chunks = &self.chunks[place_of_chunks(operation)];
        for word in [&chunks.claimed.0, &chunks.done.0] {
            // Operations without chunks leave the lines with all ranks.
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Wakes those who sleep at the gate, for a rank that has [announced](Arrival::announce) itself.
    pub(super) fn wake(&self, sleep: &impl Sleep) {
        self.gate.0.bell.wake(sleep);
    }

    /// The bell of the gate.
    pub(super) fn gate(&self) -> &Bell {
        &self.gate.0.bell
    }

    /// Whether all ranks have entered `operation`.
    pub(super) fn is_open(&self, operation: u64) -> bool {
        self.gate.0.bell.seen().wrapping_sub(operation as u32) as i32 >= 0
    }

    /// What all ranks said; for ranks that have seen the gate open.
    pub(super) fn tally(&self, operation: u64) -> Tally {
        Tally(self.gate.0.tallies[parity(operation)].load(Ordering::Relaxed))
    }

    /// Takes the next of `total` chunks.
    pub(super) fn claim(&self, operation: u64, total: u64) -> Claim {
        let chunks = &self.chunks[place_of_chunks(operation)];
        if chunks.done.0.load(Ordering::Acquire) == total {
            return Claim::Exhausted;
        }
        let number = chunks.claimed.0.fetch_add(1, Ordering::AcqRel);
        match number {
            _ if number & CLOSED != 0 => Claim::Closed,
            _ if number < total => Claim::Chunk(number),
            _ => Claim::Exhausted,
        }
    }

    /// Says that a claimed chunk is done. The last one ends the operation.
    pub(super) fn finish(&self, operation: u64, total: u64, sleep: &impl Sleep) {
        let before = self.chunks[place_of_chunks(operation)].done.0.fetch_add(1, Ordering::AcqRel);
        if before + 1 == total {
            self.finished.0.ring(operation as u32, sleep);
        }
    }

    /// The bell that rings when an operation's chunks are done.
    pub(super) fn finished(&self) -> &Bell {
        &self.finished.0
    }

    /// Whether all chunks are done; then this rank sees what was written.
    pub(super) fn is_finished(&self, operation: u64, total: u64) -> bool {
        self.chunks[place_of_chunks(operation)].done.0.load(Ordering::Acquire) == total
    }

    /// Says that a claimed chunk will never be done, and is not worked on any more.
    pub(super) fn abandon(&self, operation: u64) {
        self.chunks[place_of_chunks(operation)].done.0.fetch_add(ABANDONED, Ordering::AcqRel);
    }

    /// How many of the claimed chunks nobody works on any more.
    pub(super) fn settled(&self, operation: u64) -> u64 {
        let done = self.chunks[place_of_chunks(operation)].done.0.load(Ordering::Acquire);
        done % ABANDONED + done / ABANDONED
    }

    /// Lets nobody claim any more; answers how many of `total` were claimed before. To be called by a rank that is inside
    /// the operation and gives it up.
    pub(super) fn close(&self, operation: u64, total: u64) -> u64 {
        let before = self.chunks[place_of_chunks(operation)].claimed.0.fetch_or(CLOSED, Ordering::AcqRel);
        (before & !CLOSED).min(total)
    }
}
