//! Private buffers of processes: piece by piece through windows that all ranks can address. Copy in, meet, reduce what was
//! claimed, copy out. The windows alternate, so that a rank may fill the next one while others still read this one.

use super::super::{Call, Room, chunks};
use crate::collective::Kind;
use crate::error::Result;
use crate::reduce::Store;
use crate::transport::{Domain, Session, Taken, Wait};
use std::ops::Range;

/// Runs an operation in which some rank's buffer is private.
///
/// # Safety
/// The call's input and output are good for `call.count` elements, and all ranks are in the same call.
pub(super) unsafe fn run(
    session: &mut Session<'_>,
    domain: &Domain,
    call: &Call,
    room: &mut Room,
    wait: &Wait<'_>,
) -> Result<()> {
    let bytes = call.bytes();
    // Half of a window, so that all ranks' pieces stay in the caches.
    let piece_bytes = domain.window_bytes() / 2;
    for (number, start) in (0..bytes).step_by(piece_bytes).enumerate() {
        let piece = start..(start + piece_bytes).min(bytes);
        // SAFETY: the caller's promise.
        unsafe { one(session, domain, call, room, piece, number, wait)? };
    }
    Ok(())
}

/// One piece. All ranks have entered the one before, and so have left the one before that, which used the same memory.
///
/// # Safety
/// As [`run`].
unsafe fn one(
    session: &mut Session<'_>,
    domain: &Domain,
    call: &Call,
    room: &mut Room,
    piece: Range<usize>,
    number: usize,
    wait: &Wait<'_>,
) -> Result<()> {
    let (ranks, rank) = (domain.size(), domain.rank());
    let own = domain.window(rank, number);
    let common = |range: Range<usize>| {
        let start = range.start.max(piece.start);
        start..range.end.min(piece.end).max(start)
    };
    // What this rank reads or writes of its own buffer, which others hand over or want.
    let part = common(call.part_bytes(ranks, rank));
    let is_root = call.operation.root == rank;
    let (takes, gives) = match call.operation.kind {
        Kind::AllReduce => (piece.clone(), piece.clone()),
        Kind::ReduceScatter => (part, piece.clone()),
        Kind::AllGather => (piece.clone(), part),
        Kind::Broadcast => (piece.clone(), if is_root { piece.clone() } else { 0..0 }),
        Kind::Reduce => (if is_root { piece.clone() } else { 0..0 }, piece.clone()),
    };
    let inside = |byte: usize| byte - piece.start;
    if !gives.is_empty() {
        // SAFETY: the range lies in the caller's input, and in this rank's window, which nobody reads before all meet.
        unsafe {
            std::ptr::copy_nonoverlapping(
                call.input.add(gives.start),
                own.add(inside(gives.start)),
                gives.len(),
            );
        }
    }
    let round = session.meet(wait)?;
    // SAFETY: source and target of a copy are a window and the caller's output; what is read was written before the
    // rendezvous, or before its chunk was done, and is not written again before all have entered the next window.
    let copy_out = |from: usize, range: Range<usize>| unsafe {
        let source = domain.window(from, number).add(inside(range.start));
        std::ptr::copy_nonoverlapping(source, call.output.add(range.start), range.len());
    };
    match call.operation.kind {
        Kind::Broadcast => copy_out(call.operation.root, takes),
        Kind::AllGather => call.pieces(ranks, takes, copy_out),
        Kind::AllReduce | Kind::Reduce | Kind::ReduceScatter => {
            room.sources.clear();
            room.sources.extend((0..ranks).map(|rank| domain.window(rank, number).cast_const()));
            // The sum goes to rank 0's window alone, from where all take it.
            room.targets.clear();
            room.targets.push(domain.window(0, number));
            let sum = Call {
                operation: crate::collective::Operation { kind: Kind::AllReduce, ..call.operation },
                ..*call
            };
            let chunk = chunks::chunk_bytes(piece.len(), ranks.min(domain.cores()));
            let total = piece.len().div_ceil(chunk);
            loop {
                match session.claim(&round, total, wait) {
                    Ok(Taken::Chunk(number)) => {
                        let start = number * chunk;
                        let range = start..(start + chunk).min(piece.len());
                        // SAFETY: the chunk of all windows is this rank's alone until it is finished.
                        unsafe { sum.work(room, range, Store::Ordinary) };
                        session.finish(&round, total);
                    }
                    Ok(Taken::Nothing) => break,
                    Err(error) => return Err(session.give_up(&round, total, error)),
                }
            }
            session.wait_finished(&round, total, wait)?;
            if !takes.is_empty() {
                copy_out(0, takes);
            }
        }
    }
    Ok(())
}
