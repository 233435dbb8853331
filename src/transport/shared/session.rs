//! One operation of one rank: it arrives, waits for the others, claims chunks, and leaves.

use super::layout::{FIGURES_BYTES, GAVE_UP, HEADER_BYTES, INLINE_BYTES, Place, SlotHead};
use super::protocol::{Arrival, Claim, Tally};
use super::{Domain, Local, Scope};
use crate::error::{Error, Result};
use crate::transport::{Rank, Wait};
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

/// What a rank says when it arrives.
pub(crate) struct Publication<'a> {
    /// Of the header. Ranks whose headers differ have different hashes.
    pub(crate) hash: u64,
    /// What all ranks must agree on; at most [`HEADER_BYTES`].
    pub(crate) header: &'a [u8],
    /// At most [`FIGURES_BYTES`] of the rank's own.
    pub(crate) figures: &'a [u8],
    /// The buffer that is read.
    pub(crate) source: Place,
    /// The buffer that is written.
    pub(crate) target: Place,
    /// The others cannot address one of the two.
    pub(crate) is_private: bool,
    /// No more chunks than this are there to claim, once all have arrived.
    pub(crate) most_chunks: usize,
}

/// An operation whose gate is open: all ranks are inside, or were.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    operation: u64,
    tally: Tally,
    hash: u64,
}

impl Round {
    /// Whether a rank said that its buffer is private.
    pub(crate) fn any_private(&self) -> bool {
        self.tally.private() > 0
    }

    /// Whether all `ranks` said so.
    pub(crate) fn all_private(&self, ranks: usize) -> bool {
        self.tally.private() == ranks as u64
    }
}

/// Where the memory of a rank is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// This rank can address it.
    Here(*mut u8),
    /// Private, at this address of the other process.
    There(u64),
}

/// The answer to a claim of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The caller's alone, until it calls [`Session::finish`].
    Chunk(usize),
    /// There are no more.
    Nothing,
}

/// The calls of one rank, one at a time.
pub(crate) struct Session<'a> {
    pub(super) domain: &'a Domain,
    pub(super) local: MutexGuard<'a, Local>,
}

/// The part of a publication that is there at a glance.
#[derive(Clone, Copy)]
struct Said {
    hash: u32,
    is_private: bool,
    most_chunks: usize,
}

fn fold(hash: u64) -> u32 {
    (hash ^ hash >> 32) as u32
}

impl<'a> Session<'a> {
    pub(super) fn new(domain: &'a Domain, local: MutexGuard<'a, Local>) -> Self {
        Session { domain, local }
    }

    /// Where this rank's short vector of `bytes` bytes (at most [`INLINE_BYTES`]) goes before it arrives.
    pub(crate) fn outgoing(&self, bytes: usize) -> *mut u8 {
        assert!(bytes <= INLINE_BYTES, "a slot has no room for {bytes} bytes");
        let domain = self.domain;
        // The rank's own slot of the next operation: the others have left it, because all have entered the last one.
        domain.at(domain.layout.payload(domain.rank, self.local.operation + 1, bytes))
    }

    /// The place of the `bytes` bytes from `start` on, if the other ranks can address them.
    pub(crate) fn place(&self, start: *const u8, bytes: usize) -> Option<Place> {
        match self.domain.scope {
            Scope::Threads => Some(Place { offset: start as u64, buffer: 0 }),
            Scope::Processes => {
                self.domain.own.lock().unwrap_or_else(PoisonError::into_inner).place(start, bytes)
            }
        }
    }

    /// Enters the next operation, and waits until all ranks have.
    ///
    /// # Errors
    /// `Stalled`, `PeerLost`; then the domain has failed for this rank, see [`fail`](Self::fail).
    // As a call, it would read whole from memory what was written there in parts a moment ago, and wait for all writes before.
    #[inline(always)]
    pub(crate) fn arrive(&mut self, said: &Publication<'_>, wait: &Wait<'_>) -> Result<Round> {
        let domain = self.domain;
        let operation = self.local.operation + 1;
        let (layout, rank) = (&domain.layout, domain.rank);
        let head = SlotHead {
            hash: said.hash,
            source: said.source.offset,
            target: said.target.offset,
            buffers: [said.source.buffer, said.target.buffer],
        };
        assert!(said.header.len() <= HEADER_BYTES && said.figures.len() <= FIGURES_BYTES, "too much to say");
        // SAFETY: this rank's own slot of this parity, which the others have left: all have entered the operation before.
        unsafe {
            domain.at(layout.slot_head(rank, operation)).cast::<SlotHead>().write(head);
            let copy = |from: &[u8], to: usize| {
                std::ptr::copy_nonoverlapping(from.as_ptr(), domain.at(to), from.len());
            };
            copy(said.header, layout.header(rank, operation));
            copy(said.figures, layout.figures(rank, operation));
        }
        let Publication { is_private, most_chunks, .. } = *said;
        let short = Said { hash: fold(said.hash), is_private, most_chunks };
        self.enter(operation, short, said.hash, wait)
    }

    /// A rendezvous at which nothing is said, for operations that need more than one.
    ///
    /// # Errors
    /// As [`arrive`](Self::arrive).
    pub(crate) fn meet(&mut self, wait: &Wait<'_>) -> Result<Round> {
        // What is claimed behind it lies in windows, which no rank has to take back.
        let nothing = Said { hash: 0, is_private: false, most_chunks: 0 };
        self.enter(self.local.operation + 1, nothing, 0, wait)
    }

    fn enter(&mut self, operation: u64, said: Said, hash: u64, wait: &Wait<'_>) -> Result<Round> {
        let domain = self.domain;
        self.local.operation = operation;
        domain.member(domain.rank).words.0.arrived.store(operation, Ordering::Relaxed);
        let entered = if domain.announces() {
            self.announce(operation, said, wait)
        } else {
            self.count(operation, said, wait)
        };
        match entered {
            Ok(tally) => Ok(Round { operation, tally, hash }),
            // The gate may have opened behind this rank's back: what others have claimed since then is theirs to finish.
            Err(error) => Err(self.fail(operation, said.most_chunks as u64, error)),
        }
    }

    /// Enters as one more of those who have arrived.
    fn count(&self, operation: u64, said: Said, wait: &Wait<'_>) -> Result<Tally> {
        let domain = self.domain;
        let rendezvous = &domain.header().rendezvous;
        let said = Tally::of_one(said.hash, said.is_private);
        rendezvous.arrive(operation, domain.size() as u64, said, &domain.sleep(None));
        let is_open = || rendezvous.is_open(operation);
        domain.wait_until(is_open, rendezvous.gate(), self.has_not_entered(operation), wait)?;
        Ok(rendezvous.tally(operation))
    }

    /// Enters where all ranks see it, and looks for all of them.
    fn announce(&self, operation: u64, said: Said, wait: &Wait<'_>) -> Result<Tally> {
        let domain = self.domain;
        let rendezvous = &domain.header().rendezvous;
        if domain.rank == 0 {
            rendezvous.clear_chunks(operation + 1);
        }
        domain.arrival(domain.rank, operation).announce(operation, said.hash, said.is_private);
        let others = || (0..domain.size()).filter(|&rank| rank != domain.rank);
        let all_entered = || others().all(|rank| domain.arrival(rank, operation).has_entered(operation));
        // Before looking at the others: their arrivals take a while to travel, and so does the fence.
        rendezvous.wake(&domain.sleep(None));
        domain.wait_until(all_entered, rendezvous.gate(), self.has_not_entered(operation), wait)?;
        Ok(Arrival::tally((0..domain.size()).map(|rank| domain.arrival(rank, operation))))
    }

    /// Which ranks an operation waits for.
    fn has_not_entered(&self, operation: u64) -> impl Fn(Rank) -> bool {
        let domain = self.domain;
        move |rank| domain.member(rank).words.0.arrived.load(Ordering::Relaxed) < operation
    }

    /// Whether all ranks said the same header, as far as a sum of 32-bit hashes can tell; [`source`](Self::source) and
    /// [`target`](Self::target) compare all of the hash, so that nobody's memory is touched by mistake.
    pub(crate) fn all_agree(&self, round: &Round) -> bool {
        round.tally.agrees_with(fold(round.hash), self.domain.size() as u64)
    }

    fn head(&self, round: &Round, rank: Rank) -> SlotHead {
        // SAFETY: written before the gate opened, and not again before this rank enters the next operation.
        unsafe {
            self.domain.at(self.domain.layout.slot_head(rank, round.operation)).cast::<SlotHead>().read()
        }
    }

    /// The header that `rank` said: its first `N` bytes.
    pub(crate) fn header<const N: usize>(&self, round: &Round, rank: Rank) -> [u8; N] {
        const { assert!(N <= HEADER_BYTES) }
        // SAFETY: as for the head; any bytes are a value.
        unsafe { self.domain.at(self.domain.layout.header(rank, round.operation)).cast::<[u8; N]>().read() }
    }

    /// The figures that `rank` said: the first `N` bytes.
    pub(crate) fn figures<const N: usize>(&self, round: &Round, rank: Rank) -> [u8; N] {
        const { assert!(N <= FIGURES_BYTES) }
        // SAFETY: as for the head; any bytes are a value.
        unsafe { self.domain.at(self.domain.layout.figures(rank, round.operation)).cast::<[u8; N]>().read() }
    }

    /// The short vector of `bytes` bytes that `rank` handed over. To be read before this session's next operation.
    pub(crate) fn incoming(&self, round: &Round, rank: Rank, bytes: usize) -> *const u8 {
        self.domain.at(self.domain.layout.payload(rank, round.operation, bytes))
    }

    /// The buffer that `rank` lets others read. For ranks that hold a chunk: only then does the buffer live for sure.
    ///
    /// # Errors
    /// `Mismatch` if the rank said another header; `Environment` or `File` if its buffer cannot be mapped.
    pub(crate) fn source(&mut self, round: &Round, rank: Rank, wait: &Wait<'_>) -> Result<*mut u8> {
        let head = self.agreed_head(round, rank, wait)?;
        self.resolve(rank, Place { offset: head.source, buffer: head.buffers[0] })
    }

    /// The buffer that `rank` lets others write.
    ///
    /// # Errors
    /// As [`source`](Self::source).
    pub(crate) fn target(&mut self, round: &Round, rank: Rank, wait: &Wait<'_>) -> Result<*mut u8> {
        let head = self.agreed_head(round, rank, wait)?;
        self.resolve(rank, Place { offset: head.target, buffer: head.buffers[1] })
    }

    /// Where `rank` has the buffer that is read and the one that is written. To be called before this session's next
    /// operation.
    ///
    /// # Errors
    /// As [`source`](Self::source).
    pub(crate) fn whereabouts(
        &mut self,
        round: &Round,
        rank: Rank,
        wait: &Wait<'_>,
    ) -> Result<[Whereabouts; 2]> {
        let SlotHead { source, target, buffers, .. } = self.agreed_head(round, rank, wait)?;
        let mut find = |offset: u64, buffer: u32| {
            if buffer == Place::NOWHERE.buffer {
                return Ok(Whereabouts::There(offset));
            }
            self.resolve(rank, Place { offset, buffer }).map(Whereabouts::Here)
        };
        Ok([find(source, buffers[0])?, find(target, buffers[1])?])
    }

    fn agreed_head(&self, round: &Round, rank: Rank, wait: &Wait<'_>) -> Result<SlotHead> {
        let head = self.head(round, rank);
        if head.hash == round.hash {
            return Ok(head);
        }
        let what = format!("rank {} and rank {rank} called it with different arguments", self.domain.rank);
        Err(Error::Mismatch { operation: wait.operation.to_string(), what })
    }

    fn resolve(&mut self, rank: Rank, place: Place) -> Result<*mut u8> {
        match self.domain.scope {
            Scope::Threads => Ok(std::ptr::with_exposed_provenance_mut(place.offset as usize)),
            Scope::Processes => self.domain.address(&mut self.local.seen, rank, place),
        }
    }

    /// Takes the next of `total` chunks.
    ///
    /// # Errors
    /// `PeerLost` if a rank has given up the operation.
    pub(crate) fn claim(&mut self, round: &Round, total: usize, wait: &Wait<'_>) -> Result<Taken> {
        let domain = self.domain;
        let working = &domain.member(domain.rank).words.0.working;
        // Before the claim, so that those who wait for a chunk find who has it.
        working.store(round.operation, Ordering::Relaxed);
        match domain.header().rendezvous.claim(round.operation, total as u64) {
            Claim::Chunk(number) => Ok(Taken::Chunk(number as usize)),
            Claim::Exhausted => {
                working.store(0, Ordering::Relaxed);
                Ok(Taken::Nothing)
            }
            Claim::Closed => {
                working.store(0, Ordering::Relaxed);
                let gave_up =
                    |rank: &Rank| domain.member(*rank).words.0.state.load(Ordering::Acquire) == GAVE_UP;
                let rank = (0..domain.size()).find(gave_up).unwrap_or(domain.rank);
                Err(Error::PeerLost {
                    peer: domain.peer(rank).clone(),
                    operation: wait.operation.to_string(),
                    what: "it gave up this operation after an error of its own".into(),
                })
            }
        }
    }

    /// Says that a claimed chunk will never be done; to be followed by [`give_up`](Self::give_up).
    pub(crate) fn abandon(&mut self, round: &Round) {
        self.domain.header().rendezvous.abandon(round.operation);
    }

    /// Says that a claimed chunk is done.
    pub(crate) fn finish(&mut self, round: &Round, total: usize) {
        let domain = self.domain;
        domain.header().rendezvous.finish(round.operation, total as u64, &domain.sleep(None));
    }

    /// Waits until all `total` chunks are done, whoever does them.
    ///
    /// # Errors
    /// `Stalled`, `PeerLost`; then the domain has failed for this rank.
    pub(crate) fn wait_finished(&mut self, round: &Round, total: usize, wait: &Wait<'_>) -> Result<()> {
        let domain = self.domain;
        let (rendezvous, operation, total) = (&domain.header().rendezvous, round.operation, total as u64);
        let is_missing =
            |rank: Rank| domain.member(rank).words.0.working.load(Ordering::Relaxed) == operation;
        let finished = domain.wait_until(
            || rendezvous.is_finished(operation, total),
            rendezvous.finished(),
            is_missing,
            wait,
        );
        finished.map_err(|error| self.fail(operation, total, error))
    }

    /// Gives up `round`, of which `total` chunks could be claimed: answers the error to return. From now on nobody writes
    /// to this rank's buffers where it can see it, and every later operation fails with the same error.
    pub(crate) fn give_up(&mut self, round: &Round, total: usize, error: Error) -> Error {
        self.fail(round.operation, total as u64, error)
    }

    /// Gives up the present operation, of which no chunks can be claimed.
    pub(crate) fn fail_here(&mut self, error: Error) -> Error {
        self.fail(self.local.operation, 0, error)
    }

    fn fail(&mut self, operation: u64, total: u64, error: Error) -> Error {
        let domain = self.domain;
        let words = &domain.member(domain.rank).words.0;
        domain.set_state(GAVE_UP);
        let claimed = domain.header().rendezvous.close(operation, total);
        words.working.store(0, Ordering::Relaxed);
        domain.wake_all();
        self.local.failure = Some(error.clone());
        match domain.scope {
            // Whoever holds a chunk runs, and is done with it soon.
            Scope::Threads => {
                while domain.header().rendezvous.settled(operation) < claimed {
                    std::thread::yield_now();
                }
                error
            }
            // Whoever holds a chunk may be stopped or dead: it keeps the old memory, this rank goes on with a copy.
            Scope::Processes => {
                let mut own = domain.own.lock().unwrap_or_else(PoisonError::into_inner);
                match own.detach() {
                    Ok(()) => error,
                    Err(second) => Error::Environment(format!("{error}; and then {second}")),
                }
            }
        }
    }
}
