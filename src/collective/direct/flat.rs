//! Short vectors: they travel in the slots of the one rendezvous, and every rank does the whole operation for itself.

use super::{Call, Room};
use crate::collective::Kind;
use crate::reduce::Store;
use crate::transport::{Domain, INLINE_BYTES, Round, Session};

/// Every rank reads all n vectors, most of them from other cores' caches: n times the lines that claimed chunks move, to
/// save waiting for who has claimed them.
///
/// Two cores, f32 sum, medians of 5 interleaved processes, this form against chunks: 2 ranks 256 B 0.88 and 1.06 µs, 512 B
/// 1.08 and 1.09, 1 KiB 1.42 and 1.17, 16 KiB 10.5 and 2.3; 4 ranks 512 B 5.24 and 5.16, 1 KiB 6.1 and 5.4, 16 KiB 24 and 7;
/// 8 ranks 256 B to 1 KiB within 6%, 2 KiB 10.1 and 9.0.
const LONGEST: usize = 512;

/// The same where the alternative is to copy everything through windows, with two more waits: if each rank has a core, and if
/// they take turns.
///
/// As above, against the two-shot form in windows: 2 ranks 1 KiB 1.43 and 1.48 µs, 2 KiB 2.1 and 1.6, 16 KiB 10.4 and 3.5;
/// 4 ranks 4 KiB 9.8 and 14, 8 KiB 14.8 and 14.6, 16 KiB 24 and 16; against claimed chunks of windows: 8 ranks 8 KiB 14
/// and 25.
const LONGEST_PRIVATE: usize = 1024;
const LONGEST_PRIVATE_IN_TURN: usize = 8 * 1024;
const _: () = assert!(LONGEST_PRIVATE_IN_TURN <= INLINE_BYTES);

/// Whether a vector travels in the slots wherever it lies.
pub(super) fn is_short(call: &Call) -> bool {
    call.bytes() <= LONGEST
}

/// Whether it does so if all ranks have private buffers.
pub(super) fn is_short_if_private(call: &Call, domain: &Domain) -> bool {
    let (ranks, bytes) = (domain.size(), call.bytes());
    if ranks <= domain.cores() {
        bytes <= LONGEST_PRIVATE
    } else {
        bytes <= LONGEST_PRIVATE_IN_TURN && bytes * ranks <= 8 * LONGEST_PRIVATE_IN_TURN
    }
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
