//! Collectives of ranks that see each other's memory: what `native` means over `threads` and `shm`.
//!
//! | form | for | rendezvous |
//! |---|---|---|
//! | flat | short vectors, private ones up to more bytes: they travel in the slots, and every rank reduces all of them | 1 |
//! | chunks | buffers that all ranks can address: chunks are claimed, reduced over all buffers, stored to all | 1, and a wait for the last chunk |
//! | private | private buffers, in the forms of `private/` | 1, and their own |
//!
//! All of them do all five kinds, every type and operator, in the canonical tree or in rank order.

mod buffer;
mod chunks;
mod flat;
mod private;
mod work;

pub use buffer::SharedBuffer;

use super::entry::{self, Agreed};
use super::{Kind, Operation, Order};
use crate::buffer::FlatBuffer;
use crate::error::Result;
use crate::reduce::Tree;
use crate::reduce::{ElementType, Operator};
use crate::transport::{Domain, Place, Publication, Wait, Whereabouts};
use chunks::Cut;

/// One call: `count` elements are read at `input` and written at `output`, which are the same or do not overlap.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub(super) operation: Operation,
    pub(super) element: ElementType,
    pub(super) operator: Operator,
    pub(super) input: *const u8,
    pub(super) output: *mut u8,
    pub(super) count: usize,
}

impl Call {
    fn bytes(&self) -> usize {
        self.count * self.element.size()
    }

    fn tree(&self) -> Tree {
        if self.operation.order == Order::Rank { Tree::RankOrder } else { Tree::Canonical }
    }
}

/// Room for pointers to every rank's buffers, kept by the communicator.
pub(super) struct Room {
    sources: Vec<*const u8>,
    targets: Vec<*mut u8>,
    /// The same at the range in work.
    sources_here: Vec<*const u8>,
    targets_here: Vec<*mut u8>,
    /// Where every rank has the buffer that is read and the one that is written, if some are private.
    whereabouts: Vec<[Whereabouts; 2]>,
    /// Copies of private memory of others, made at first need.
    scratch: FlatBuffer<i64>,
}

// SAFETY: the pointers are only used inside a call, on the thread that makes it.
unsafe impl Send for Room {}
// SAFETY: as above; a shared room cannot be used at all.
unsafe impl Sync for Room {}

impl Room {
    pub(super) fn new(ranks: usize) -> Room {
        Room {
            sources: Vec::with_capacity(ranks),
            targets: Vec::with_capacity(ranks),
            sources_here: Vec::with_capacity(ranks),
            targets_here: Vec::with_capacity(ranks),
            whereabouts: Vec::with_capacity(ranks),
            scratch: FlatBuffer::new(0),
        }
    }
}

/// Runs `call` together with all ranks of `domain`; includes the entry rendezvous, at which `agreed` (with its hash) is compared.
///
/// # Errors
/// `Mismatch`; `Stalled` and `PeerLost`, after which nobody else writes to the caller's buffers any more.
///
/// # Safety
/// `input` is good for reading and `output` for writing `count` elements, and nobody else uses them during the call.
pub(super) unsafe fn run(
    domain: &Domain,
    call: &Call,
    (agreed, hash): (&Agreed, u64),
    room: &mut Room,
    wait: &Wait<'_>,
) -> Result<()> {
    let mut session = domain.session()?;
    let bytes = call.bytes();
    let is_short = flat::is_short(call, domain);
    let place = |start| if is_short { None } else { session.place(start, bytes) };
    let (source, target) = (place(call.input), place(call.output));
    let is_private = !is_short && (source.is_none() || target.is_none());
    // If somebody has registered buffers, these copies are in vain.
    let is_short_if_private = is_private && flat::is_short_if_private(call, domain);
    if is_short || is_short_if_private {
        // SAFETY: the caller's promise.
        unsafe { flat::hand_over(&session, domain, call) };
    }
    let cut = Cut::new(call, domain);
    let nowhere = |start| if is_short { Place::NOWHERE } else { Place::private(start) };
    let said = Publication {
        hash,
        header: agreed.bytes(),
        figures: &[],
        source: source.unwrap_or_else(|| nowhere(call.input)),
        target: target.unwrap_or_else(|| nowhere(call.output)),
        is_private,
        most_chunks: cut.total,
    };
    let round = session.arrive(&said, wait)?;
    if !session.all_agree(&round) {
        return Err(entry::mismatch(&session, &round, domain.size(), wait));
    }
    // SAFETY: the caller's promise; all ranks are in the same call.
    unsafe {
        if is_short || is_short_if_private && round.all_private(domain.size()) {
            flat::take(&session, &round, domain, call, room);
            Ok(())
        } else if round.any_private() {
            private::run(&mut session, &round, domain, call, room, wait)
        } else {
            chunks::run(&mut session, &round, domain, call, cut, room, wait)
        }
    }
}

/// Bytes that a rank of a ring would send for it, which is how traffic is counted where nothing is sent.
pub(super) fn bytes_as_a_ring(kind: Kind, bytes: u64, ranks: u64) -> u64 {
    let once = (ranks - 1) * bytes / ranks;
    if kind == Kind::AllReduce { 2 * (ranks - 1) * bytes / ranks } else { once }
}
