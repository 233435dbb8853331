//! Short vectors: they travel in the slots of the one rendezvous, and every rank does the whole operation for itself.

use super::{Call, Room};
use crate::collective::Kind;
use crate::reduce::Store;
use crate::transport::{Domain, INLINE_BYTES, Round, Session};

/// All vectors together that are short.
const LONGEST_OF_ALL: usize = 64 * 1024;

/// The longest vector that is short, if it may lie anywhere or if all ranks have it in `private` memory; the same on all ranks.
///
/// An all-reduce has every rank read all n vectors, most of them from other cores' caches: n times the lines that claimed chunks
/// move, to save waiting for who has claimed them. Private vectors would be copied through windows instead, with more waits.
/// The other kinds move each line once in any case.
///
/// Two cores, f32, medians of 3 to 5 interleaved processes, this form and the other one. Sum, registered: 2 ranks 256 B 0.88 and
/// 1.06 µs, 1 KiB 1.42 and 1.17, 16 KiB 10.5 and 2.3; 4 ranks 512 B 5.24 and 5.16, 1 KiB 6.1 and 5.4, 16 KiB 24 and 7; 8 ranks
/// 2 KiB 10.1 and 9.0, 4 KiB 11.6 and 15. Private: 2 ranks 1 KiB 1.43 and 1.48, 2 KiB 2.1 and 1.6; 4 ranks 4 KiB 9.8 and 14, 16 KiB
/// 24 and 16; 8 ranks 8 KiB 14 and 25. Reduce-scatter and broadcast, registered: 2 ranks 4 KiB 1.3 and 2.2, 1.9 and 1.8, 16 KiB 5.7
/// and 2.2, 8.5 and 2.4; 8 ranks 4 KiB 15 and 16, 12 and 17.
fn longest(kind: Kind, domain: &Domain, private: bool) -> usize {
    let (ranks, cores) = (domain.size(), domain.cores());
    let longest = match kind {
        Kind::AllReduce if private && ranks <= cores => 1024,
        Kind::AllReduce if !private && ranks <= 2 * cores => 512,
        Kind::AllReduce if !private => 4 * 1024,
        _ if ranks <= cores => 4 * 1024,
        _ => 8 * 1024,
    };
    longest.min(LONGEST_OF_ALL / ranks).min(INLINE_BYTES)
}

/// Whether a vector travels in the slots wherever it lies.
pub(super) fn is_short(call: &Call, domain: &Domain) -> bool {
    call.bytes() <= longest(call.operation.kind, domain, false)
}

/// Whether it does so if all ranks have private buffers.
pub(super) fn is_short_if_private(call: &Call, domain: &Domain) -> bool {
    call.bytes() <= longest(call.operation.kind, domain, true)
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
