//! Buffers that all ranks can address: whoever runs claims chunks, so that the operation ends when the chunks are done
//! and not when all ranks have worked.

use super::{Call, Room};
use crate::error::Result;
use crate::reduce::Store;
use crate::transport::{Domain, Round, Session, Taken, Wait};

/// Chunks for `workers` ranks that run at a time: some for each, so that they end together, but not so small that claiming
/// them costs, nor so large that n of them leave the second cache. A claim takes as long as some 10 KiB: two chunks of 32 KiB
/// took two cores 0.7 to 0.9 of the time of eight, with 2 to 8 ranks (7 interleaved processes).
pub(super) fn chunk_bytes(bytes: usize, workers: usize) -> usize {
    let least = (bytes / workers).clamp(8 * 1024, 32 * 1024);
    (bytes / (4 * workers)).clamp(least, 64 * 1024).next_multiple_of(64)
}

/// The same for what no cache holds anyway: longer, since nothing is won by staying small.
fn streaming_chunk_bytes(bytes: usize, workers: usize) -> usize {
    (bytes / (8 * workers)).clamp(64 * 1024, 256 * 1024).next_multiple_of(64)
}

/// Beyond this, in all buffers together, results are not kept in the last cache.
const STREAMING_BYTES: usize = 64 << 20;

/// How an operation on buffers that all ranks can address is cut; the same on all ranks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    store: Store,
    chunk: usize,
    pub(super) total: usize,
}

impl Cut {
    pub(super) fn new(call: &Call, domain: &Domain) -> Cut {
        let (bytes, ranks) = (call.bytes(), domain.size());
        let workers = ranks.min(domain.cores());
        let (store, chunk) = if bytes * ranks > STREAMING_BYTES {
            (Store::Streaming, streaming_chunk_bytes(bytes, workers))
        } else {
            (Store::Ordinary, chunk_bytes(bytes, workers))
        };
        Cut { store, chunk, total: bytes.div_ceil(chunk) }
    }
}

/// Runs the chunks of an operation whose gate is open.
///
/// # Safety
/// `cut` is the call's; all ranks are in the same one, and have said where their buffers of `call.count` elements are.
pub(super) unsafe fn run(
    session: &mut Session<'_>,
    round: &Round,
    domain: &Domain,
    call: &Call,
    cut: Cut,
    room: &mut Room,
    wait: &Wait<'_>,
) -> Result<()> {
    let (bytes, ranks) = (call.bytes(), domain.size());
    let Cut { store, chunk, total } = cut;
    let mut is_resolved = false;
    loop {
        let number = match session.claim(round, total, wait) {
            Ok(Taken::Chunk(number)) => number,
            Ok(Taken::Nothing) => break,
            Err(error) => return Err(session.give_up(round, total, error)),
        };
        // Only now: a rank that comes late finds everything done, and buffers that may be gone.
        if !is_resolved && let Err(error) = resolve(session, round, ranks, room, wait) {
            session.abandon(round);
            return Err(session.give_up(round, total, error));
        }
        is_resolved = true;
        let start = number * chunk;
        // SAFETY: the chunk is this rank's alone until it is finished; the buffers' owners wait for that, or have
        // put other memory in their place.
        unsafe { call.work(room, start..(start + chunk).min(bytes), store) };
        session.finish(round, total);
    }
    session.wait_finished(round, total, wait)
}

fn resolve(
    session: &mut Session<'_>,
    round: &Round,
    ranks: usize,
    room: &mut Room,
    wait: &Wait<'_>,
) -> Result<()> {
    room.sources.clear();
    room.targets.clear();
    for rank in 0..ranks {
        room.sources.push(session.source(round, rank, wait)?);
        room.targets.push(session.target(round, rank, wait)?);
    }
    Ok(())
}
