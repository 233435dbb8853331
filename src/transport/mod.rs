//! Where the bytes travel: the trait [`Transport`] and its implementations.
//!
//! | transport | ranks are | file |
//! |---|---|---|
//! | `threads` | threads of one process | [`threads`] |
//! | `shm` | processes of one host, which share memory | [`shm`] |
//! | `mpi` | processes started by an MPI launcher (feature `mpi`) | `mpi` |
//! | `nccl` | any of these, each with a GPU (feature `cuda`) | `nccl` |
//!
//! A transport knows nothing of collectives: it moves messages between pairs of ranks, in order, with a deadline.

mod deadline;
mod delayed;
mod launcher;
#[cfg(feature = "mpi")]
pub mod mpi;
#[cfg(feature = "cuda")]
pub mod nccl;
mod page;
mod peer;
mod shared;
pub mod shm;
pub mod threads;
mod tickets;

#[cfg(feature = "cuda")]
pub(crate) use deadline::Backoff;
pub use deadline::{Deadline, Patience, Wait};
pub use delayed::Delayed;
pub(crate) use launcher::{SHM_PARENT, SHM_RANK, SHM_RANKS, SHM_SEGMENT};
pub use launcher::{announced_rank, announced_ranks, speak_in_turn};
pub use page::{SharedPage, host_clock};
pub(crate) use peer::stalled;
pub use peer::{Peer, host_name};
pub use shared::Domain;
pub(crate) use shared::{
    INLINE_BYTES, Place, Publication, Region, Round, Segment, Session, Taken, Whereabouts,
};

use crate::error::Result;
use crate::reduce::{ElementType, Operator};

/// A process's (or thread's) number in a communicator, from 0.
pub type Rank = usize;

/// Separates kinds of traffic between the same two ranks. Messages of one tag between one pair arrive in the order sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag(pub u16);

impl Tag {
    /// The entry rendezvous of an exchange.
    pub const ENTRY: Tag = Tag(1);
    /// The data of collectives.
    pub const DATA: Tag = Tag(2);
    /// What ranks tell each other before a transport on top of another one starts.
    pub const START: Tag = Tag(3);
}

/// A transfer that was posted and not yet waited for. Belongs to the transport that gave it out.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a transfer that is never waited for keeps its buffer in use"]
pub struct Ticket(pub(crate) u32);

/// Moves messages between ranks.
///
/// # Contract
///
/// - Between one pair of ranks, messages of one tag are matched in the order in which they were posted.
/// - A message must be received with exactly the length that was sent; anything else is an error, not a truncation.
/// - Posting never blocks, and any number of transfers may be in flight.
/// - [`wait`](Transport::wait) ends by the deadline, and an error names the peer and the operation.
/// - After an error the transport is *failed*: buffers of transfers that were in flight may still be in use, so the
///   caller calls [`abandon`](Transport::abandon) and keeps or leaks them as it answers.
/// - Methods may be called from one thread at a time per rank; implementations need not allow more.
pub trait Transport: Send + Sync {
    /// The transport's name, as on the command line.
    fn name(&self) -> &'static str;

    /// This rank's number.
    fn rank(&self) -> Rank;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// Who a rank is, for messages to people and for finding out which ranks share a host.
    fn peer(&self, rank: Rank) -> &Peer;

    /// Makes room for `messages` messages in flight at once from each rank to this one, so that posting them later need
    /// not allocate. More than that may be in flight all the same.
    fn reserve(&self, messages: usize) {
        let _ = messages;
    }

    /// Starts sending `len` bytes to `to`.
    ///
    /// # Safety
    /// The bytes must stay valid and unchanged until the ticket was waited for with success, or
    /// [`abandon`](Transport::abandon) answered that nothing is in use.
    unsafe fn post_send(&self, to: Rank, tag: Tag, bytes: *const u8, len: usize) -> Result<Ticket>;

    /// Starts receiving exactly `len` bytes from `from`.
    ///
    /// # Safety
    /// The bytes must stay valid, and nobody else may touch them, until the ticket was waited for with success, or
    /// [`abandon`](Transport::abandon) answered that nothing is in use.
    unsafe fn post_recv(&self, from: Rank, tag: Tag, into: *mut u8, len: usize) -> Result<Ticket>;

    /// Waits until all of `tickets` are complete, and takes them (each entry becomes `None`).
    ///
    /// # Errors
    /// `Stalled` when the deadline passes, `PeerLost` when a peer is known to be gone. Tickets that did not complete
    /// stay in the slice.
    fn wait(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<()>;

    /// Takes those of `tickets` that are complete (each entry becomes `None`) without waiting, and answers whether none is left.
    /// For callers that have something else to look at for a moment; it has no deadline and does not look for lost peers, so
    /// they come to [`wait`](Transport::wait) in the end. `wait` names the operation.
    ///
    /// # Errors
    /// `Mismatch` if a message has another length.
    fn poll(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<bool>;

    /// Gives up transfers after an error. Answers `true` if their buffers are free again, `false` if they may be in
    /// use until the process ends (MPI), so that the caller must leak them.
    fn abandon(&self, tickets: &mut [Option<Ticket>]) -> bool;

    /// The back end's own all-reduce, if it has one.
    fn native(&self) -> Option<&dyn Native> {
        None
    }

    /// The memory that all ranks share, if they do.
    fn shared(&self) -> Option<&Domain> {
        None
    }

    /// Itself as the transport between GPUs, if it is that.
    #[cfg(feature = "cuda")]
    fn nccl(&self) -> Option<&nccl::Nccl> {
        None
    }

    /// Tells the other ranks that this one has failed, as far as the transport can without their help.
    fn poison(&self, why: &str);

    /// Ends the whole job with one message and the error's exit code. For transports whose transfers cannot be taken back.
    fn abort(&self, error: &crate::Error) -> ! {
        eprintln!("esync: {}: {error}", self.peer(self.rank()));
        std::process::exit(error.exit_code())
    }
}

/// A back end's own collectives: no schedule, its own order of summation, there to be measured against.
pub trait Native {
    /// Sums (or what `operator` says) the `count` elements at `buffer` over all ranks, in place on every rank.
    ///
    /// # Errors
    /// `Refused` by name for types and operators that the back end lacks; `Stalled` and `PeerLost` as in
    /// [`Transport::wait`].
    ///
    /// # Safety
    /// `buffer` points to `count` elements of `element`, which nobody else touches during the call. A back end
    /// that cannot give the buffer back after a failure does not return: it ends the job with [`Transport::abort`].
    unsafe fn all_reduce(
        &self,
        buffer: *mut u8,
        count: usize,
        element: ElementType,
        operator: Operator,
        wait: &Wait<'_>,
    ) -> Result<()>;
}

/// A shared handle is a transport too.
impl Transport for std::sync::Arc<dyn Transport> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn rank(&self) -> Rank {
        (**self).rank()
    }

    fn size(&self) -> usize {
        (**self).size()
    }

    fn peer(&self, rank: Rank) -> &Peer {
        (**self).peer(rank)
    }

    fn reserve(&self, messages: usize) {
        (**self).reserve(messages);
    }

    unsafe fn post_send(&self, to: Rank, tag: Tag, bytes: *const u8, len: usize) -> Result<Ticket> {
        // SAFETY: the caller's promise is passed on.
        unsafe { (**self).post_send(to, tag, bytes, len) }
    }

    unsafe fn post_recv(&self, from: Rank, tag: Tag, into: *mut u8, len: usize) -> Result<Ticket> {
        // SAFETY: the caller's promise is passed on.
        unsafe { (**self).post_recv(from, tag, into, len) }
    }

    fn wait(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<()> {
        (**self).wait(tickets, wait)
    }

    fn poll(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<bool> {
        (**self).poll(tickets, wait)
    }

    fn abandon(&self, tickets: &mut [Option<Ticket>]) -> bool {
        (**self).abandon(tickets)
    }

    fn native(&self) -> Option<&dyn Native> {
        (**self).native()
    }

    fn shared(&self) -> Option<&Domain> {
        (**self).shared()
    }

    #[cfg(feature = "cuda")]
    fn nccl(&self) -> Option<&nccl::Nccl> {
        (**self).nccl()
    }

    fn poison(&self, why: &str) {
        (**self).poison(why);
    }

    fn abort(&self, error: &crate::Error) -> ! {
        (**self).abort(error)
    }
}
