//! Memory that the ranks of one host share: the [`Domain`].
//!
//! A domain knows nothing of collectives. It offers what they are made of: a rendezvous of all ranks at which each one says
//! where its buffers are and hands over a short vector, chunks to claim, windows, a word of progress for each rank, and
//! waits that have a deadline, see dead peers, and do not take the core from those who have work.
//!
//! | file | holds |
//! |---|---|
//! | `protocol.rs` | rendezvous and claims: nothing but atomics, checked by loom |
//! | `layout.rs` | where things are in the control segment |
//! | `memory.rs` | files and mappings |
//! | `segment.rs` | how processes come to share a domain |
//! | `buffers.rs` | registered buffers, a rank's own and those of others |
//! | `foreign.rs` | reading private memory of other processes |
//! | `session.rs` | one operation, from arriving to leaving |
//! | `waiting.rs` | spin, yield, sleep; deadlines and dead peers |

mod atomics;
mod buffers;
mod foreign;
mod layout;
mod memory;
mod protocol;
mod segment;
mod session;
mod waiting;

pub(crate) use buffers::Region;
pub(crate) use layout::{INLINE_BYTES, Place};
pub(crate) use segment::{Opened, Segment};
pub(crate) use session::{Publication, Round, Session, Taken, Whereabouts};

use super::{Peer, Rank, Wait};
use crate::error::{Error, Result};
use buffers::{OwnBuffers, SeenBuffers};
use layout::{Header, Layout, Member, REASON_BYTES, TableEntry};
use memory::Control;
use protocol::Arrival;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

/// Ranks that have a core each look at each other's arrivals, while they are few; where they take turns on the cores, or are
/// many, one word with their count is looked at sooner.
const MOST_TO_ANNOUNCE: usize = 16;

/// How many ranks can run at a time, as far as this process knows.
fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Who shares a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Threads: every pointer is valid everywhere.
    Threads,
    /// Processes: only registered buffers can be addressed.
    Processes,
}

/// One rank's handle on the memory that the ranks of a host share.
///
/// Only the library's own collectives use it; programs allocate buffers in it by
/// [`Communicator::alloc`](crate::collective::Communicator::alloc).
pub struct Domain {
    control: Arc<Control>,
    layout: Layout,
    scope: Scope,
    rank: Rank,
    peers: Vec<Peer>,
    cores: usize,
    own: Arc<Mutex<OwnBuffers>>,
    local: Mutex<Local>,
}

/// What only this rank's calls use.
struct Local {
    /// The number of the last operation.
    operation: u64,
    seen: SeenBuffers,
    /// Whether ranks should read each other's private memory, once it was tried.
    reading_pays: Option<bool>,
    failure: Option<Error>,
}

impl Domain {
    /// The domains of `size` threads, by rank.
    pub(super) fn of_threads(size: usize) -> Vec<Domain> {
        let layout = Layout::new(size, false);
        let control = Arc::new(Control::heap(layout.bytes));
        let peers: Vec<Peer> = (0..size).map(Peer::this_process).collect();
        let cores = available_cores();
        (0..size)
            .map(|rank| Domain::new(control.clone(), layout, Scope::Threads, rank, peers.clone(), cores))
            .collect()
    }

    /// Ranks that are threads of this process and treat each other as processes: windows, no common pointers.
    #[cfg(test)]
    pub(crate) fn of_pretended_processes(size: usize) -> Vec<Domain> {
        Self::pretended((0..size).map(Peer::this_process).collect())
    }

    /// The same, where `rank` is said to be another process.
    #[cfg(test)]
    pub(crate) fn of_pretended_processes_with_pid(size: usize, rank: Rank, pid: u32) -> Vec<Domain> {
        let mut peers: Vec<Peer> = (0..size).map(Peer::this_process).collect();
        peers[rank].pid = pid;
        Self::pretended(peers)
    }

    #[cfg(test)]
    fn pretended(peers: Vec<Peer>) -> Vec<Domain> {
        let layout = Layout::new(peers.len(), true);
        let control = Arc::new(Control::heap(layout.bytes));
        let cores = available_cores();
        (0..peers.len())
            .map(|rank| {
                let domain =
                    Domain::new(control.clone(), layout, Scope::Processes, rank, peers.clone(), cores);
                domain.set_state(layout::RUNNING);
                domain
            })
            .collect()
    }

    /// `control` is zeroed memory of the layout's size, or already in use by other ranks. `cores` must be the same for all ranks
    /// before they first meet.
    fn new(
        control: Arc<Control>,
        layout: Layout,
        scope: Scope,
        rank: Rank,
        peers: Vec<Peer>,
        cores: usize,
    ) -> Domain {
        assert!(peers.len() <= protocol::MOST_RANKS, "{} ranks are too many to share memory", peers.len());
        let local =
            Local { operation: 0, seen: buffers::none_seen(peers.len()), reading_pays: None, failure: None };
        let domain = Domain {
            control,
            layout,
            scope,
            rank,
            peers,
            cores,
            own: Arc::default(),
            local: Mutex::new(local),
        };
        if scope == Scope::Threads {
            domain.set_state(layout::RUNNING);
        }
        domain
    }

    /// This rank.
    pub(crate) fn rank(&self) -> Rank {
        self.rank
    }

    /// The number of ranks.
    pub(crate) fn size(&self) -> usize {
        self.peers.len()
    }

    /// Who a rank is.
    pub(crate) fn peer(&self, rank: Rank) -> &Peer {
        &self.peers[rank]
    }

    /// Threads or processes.
    pub(crate) fn scope(&self) -> Scope {
        self.scope
    }

    /// Whether every rank can address all memory of every other.
    pub(crate) fn is_of_threads(&self) -> bool {
        self.scope == Scope::Threads
    }

    /// How many ranks can run at a time; the same number on all ranks.
    pub(crate) fn cores(&self) -> usize {
        self.cores
    }

    /// Bytes of a window: of whole pages, as is half of it.
    pub(crate) fn window_bytes(&self) -> usize {
        self.layout.window_bytes
    }

    /// One of a rank's two windows, of [`window_bytes`](Self::window_bytes). Who may touch it when is the caller's protocol. Threads
    /// have none.
    pub(crate) fn window(&self, rank: Rank, which: usize) -> *mut u8 {
        assert!(self.scope == Scope::Processes && rank < self.size(), "no such window");
        self.at(self.layout.window(rank, which))
    }

    /// Sets this rank's word of progress, which never goes back, and wakes those who wait for it. What this rank wrote
    /// before is seen by those who see the value.
    pub(crate) fn advance(&self, value: u64) {
        let progress = &self.member(self.rank).progress.0;
        progress.value.store(value, Ordering::Release);
        progress.bell.ring(value as u32, &self.sleep(None));
    }

    /// A rank's word of progress; 0 before its first step.
    pub(crate) fn progress(&self, member: Rank) -> u64 {
        self.member(member).progress.0.value.load(Ordering::Acquire)
    }

    /// Waits until `member` has advanced to `value` or beyond. Consecutive values of one member must differ by less than
    /// 2³².
    ///
    /// # Errors
    /// `Stalled` at the deadline, `PeerLost` if the member is gone.
    pub(crate) fn wait_for(&self, member: Rank, value: u64, wait: &Wait<'_>) -> Result<()> {
        let bell = &self.member(member).progress.0.bell;
        self.wait_until(|| self.progress(member) >= value, bell, |rank| rank == member, wait)
    }

    /// Tells all ranks that this one has failed: their waits end.
    pub(crate) fn poison(&self, why: &str) {
        let header = self.header();
        let own = self.rank as u32 + 1;
        if header.failed.compare_exchange(0, own, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            let bytes = &why.as_bytes()[..why.len().min(REASON_BYTES)];
            // SAFETY: the reason's room belongs to the rank that has set `failed`, until it sets the length.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(self.layout.reason()), bytes.len())
            };
            header.reason_bytes.store(bytes.len() as u32, Ordering::Release);
        }
        self.wake_all();
    }

    /// Says that this rank takes no more part.
    pub(crate) fn leave(&self) {
        let state = &self.member(self.rank).words.0.state;
        // A rank that gave up an operation stays known for that.
        let _ = state.compare_exchange(layout::RUNNING, layout::LEFT, Ordering::AcqRel, Ordering::Relaxed);
        self.wake_all();
    }

    /// Whether no rank has printed an error yet: then this one shall.
    pub(crate) fn may_speak(&self) -> bool {
        self.header().spoken.swap(1, Ordering::Relaxed) == 0
    }

    /// Begins an operation. Calls of one rank exclude each other.
    ///
    /// # Errors
    /// The error that ended an operation before.
    pub(crate) fn session(&self) -> Result<Session<'_>> {
        let local = self.local.lock().unwrap_or_else(PoisonError::into_inner);
        match &local.failure {
            Some(error) => Err(error.clone()),
            None => Ok(Session::new(self, local)),
        }
    }

    /// Rings for a rank that waits for messages, or for room in a ring.
    pub(super) fn ring_doorbell(&self, rank: Rank) {
        let doorbell = &self.member(rank).doorbell.0;
        let count = doorbell.count.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        doorbell.bell.ring(count, &self.sleep(None));
    }

    /// How often this rank's doorbell has rung.
    pub(super) fn doorbell(&self) -> u32 {
        self.member(self.rank).doorbell.0.bell.seen()
    }

    /// Waits until this rank's doorbell has rung again since `seen`. `is_missing` says for whom it waits.
    pub(super) fn wait_for_doorbell(
        &self,
        seen: u32,
        is_missing: impl Fn(Rank) -> bool,
        wait: &Wait<'_>,
    ) -> Result<()> {
        let bell = &self.member(self.rank).doorbell.0.bell;
        self.wait_until(|| bell.seen() != seen, bell, is_missing, wait)
    }

    /// The memory of the ring of messages from one rank to another, and its bytes.
    pub(super) fn ring(&self, from: Rank, to: Rank) -> (*mut u8, usize) {
        assert!(self.scope == Scope::Processes && from.max(to) < self.size(), "no such ring");
        let (offset, bytes) = self.layout.ring(from, to);
        (self.at(offset), bytes)
    }

    fn set_state(&self, state: u32) {
        self.member(self.rank).words.0.state.store(state, Ordering::Release);
    }

    fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.layout.bytes);
        self.control.start().wrapping_add(offset)
    }

    fn header(&self) -> &Header {
        // SAFETY: the segment begins with a header, is page-aligned, lives as long as `self`, and zeros are its first value;
        // it holds nothing but atomics.
        unsafe { &*self.at(0).cast() }
    }

    fn member(&self, rank: Rank) -> &Member {
        // SAFETY: as for the header; the layout has aligned room for every rank.
        unsafe { &*self.at(self.layout.member(rank)).cast() }
    }

    /// Whether ranks see each other arrive, or count those who have.
    fn announces(&self) -> bool {
        self.size() <= self.cores.min(MOST_TO_ANNOUNCE)
    }

    /// A rank's word for its arrival in an operation.
    fn arrival(&self, rank: Rank, operation: u64) -> &Arrival {
        // SAFETY: as for the header; every slot has an aligned word for it.
        unsafe { &*self.at(self.layout.arrival(rank, operation)).cast() }
    }

    fn table_entry(&self, rank: Rank, index: usize) -> &TableEntry {
        // SAFETY: as for the header; tables are there wherever buffers are registered.
        unsafe { &*self.at(self.layout.table_entry(rank, index)).cast() }
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        self.leave();
    }
}
