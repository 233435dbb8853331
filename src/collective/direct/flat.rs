//! Short vectors: they travel in the slots of the one rendezvous, and every rank does the whole operation for itself.

use super::{Call, Room};
use crate::collective::Kind;
use crate::reduce::Store;
use crate::transport::{Domain, INLINE_BYTES, Round, Session};

/// Every rank reads all n vectors, so all ranks together do n times the work of claimed chunks, and save waiting for them.
pub(super) fn is_short(call: &Call, ranks: usize) -> bool {
    call.bytes() <= (4 * INLINE_BYTES / ranks).min(INLINE_BYTES)
}

/// Puts this rank's contribution where the others will find it.
///
/// # Safety
/// The call's input is good for reading.
pub(super) unsafe fn hand_over(session: &Session<'_>, domain: &Domain, call: &Call) {
    let bytes = call.bytes();
    let range = match call.operation.kind {
        Kind::AllGather => call.part_bytes(domain.size(), domain.rank()),
        Kind::Broadcast if call.operation.root != domain.rank() => 0..0,
        _ => 0..bytes,
    };
    let outgoing = session.outgoing(bytes);
    // SAFETY: the caller's promise; the slot has room for `bytes` and is this rank's own.
    unsafe {
        std::ptr::copy_nonoverlapping(call.input.add(range.start), outgoing.add(range.start), range.len())
    };
}

/// Does the operation for this rank alone, once all have handed over.
///
/// # Safety
/// The call's output is good for writing.
pub(super) unsafe fn take(
    session: &Session<'_>,
    round: &Round,
    domain: &Domain,
    call: &Call,
    room: &mut Room,
) {
    let (bytes, ranks, rank) = (call.bytes(), domain.size(), domain.rank());
    room.sources.clear();
    room.sources.extend((0..ranks).map(|rank| session.incoming(round, rank, bytes)));
    let own = match call.operation.kind {
        Kind::Reduce if rank != call.operation.root => 0..0,
        Kind::ReduceScatter => call.part_bytes(ranks, rank),
        _ => 0..bytes,
    };
    // Every target is this rank's own: what the kind stores to others, they store for themselves.
    room.targets.clear();
    match call.operation.kind {
        Kind::AllReduce | Kind::AllGather | Kind::Broadcast => room.targets.push(call.output),
        Kind::Reduce | Kind::ReduceScatter => room.targets.extend((0..ranks).map(|_| call.output)),
    }
    // SAFETY: the caller's promise; the slots are not written before this rank enters its next operation.
    unsafe { call.work(room, own, Store::Ordinary) };
}
