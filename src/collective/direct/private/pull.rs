//! Single copy with the kernel's help: every rank reads its chunks of the others' inputs, reduces them into its own output,
//! and the others read the result from there.
//!
//! Nobody writes to another's memory. Writing the results back would move as many bytes and save a rendezvous, but a rank
//! that was stopped meanwhile could write into memory that its owner, having given up, uses for something else.

use super::super::{Call, Room};
use crate::buffer::FlatBuffer;
use crate::error::Result;
use crate::reduce::Store;
use crate::transport::{Domain, Session, Wait, Whereabouts};
use std::ops::Range;

/// Read at a time: n of them should stay in the second cache, and the kernel's fixed costs should not show.
const CHUNK_BYTES: usize = 64 * 1024;

/// Rows of n chunks between reducing and fetching: the time that a rank has to be late without making others wait.
const LAG: usize = 4;

/// All-reduce of private buffers. Chunk c is reduced by rank c mod n.
///
/// # Safety
/// The call's input and output are good for `call.count` elements, all ranks are in the same call, may read each other's
/// memory, and have looked up where the buffers are.
pub(super) unsafe fn run(
    session: &mut Session<'_>,
    domain: &Domain,
    call: &Call,
    room: &mut Room,
    wait: &Wait<'_>,
) -> Result<()> {
    let pull = Pull { domain, call, wait };
    // SAFETY: the caller's promise.
    let done = unsafe { pull.all_rows(room) };
    done.map_err(|error| session.fail_here(error))?;
    // Nobody leaves while others still read from its buffers.
    session.meet(wait).map(drop)
}

struct Pull<'a> {
    domain: &'a Domain,
    call: &'a Call,
    wait: &'a Wait<'a>,
}

impl Pull<'_> {
    /// # Safety
    /// As [`run`].
    unsafe fn all_rows(&self, room: &mut Room) -> Result<()> {
        let (ranks, rank) = (self.domain.size(), self.domain.rank());
        let rows = self.call.bytes().div_ceil(ranks * CHUNK_BYTES);
        let words = ranks * CHUNK_BYTES / size_of::<i64>();
        if room.scratch.len() < words {
            room.scratch = FlatBuffer::new(words);
        }
        // The words of progress of all ranks have advanced equally far.
        let base = self.domain.progress(rank);
        for row in 0..rows + LAG {
            if row < rows {
                // SAFETY: the caller's promise.
                unsafe { self.reduce(room, self.chunk(row, rank))? };
                self.domain.advance(base + row as u64 + 1);
            }
            let Some(fetched) = row.checked_sub(LAG) else { continue };
            for other in (1..ranks).map(|step| (rank + step) % ranks) {
                self.domain.wait_for(other, base + fetched as u64 + 1, self.wait)?;
                // SAFETY: the caller's promise; the chunk's reduction is done, and has read this rank's operand.
                unsafe { self.fetch(room, other, self.chunk(fetched, other))? };
            }
        }
        Ok(())
    }

    /// The bytes of the chunk of `owner` in a row.
    fn chunk(&self, row: usize, owner: usize) -> Range<usize> {
        let bytes = self.call.bytes();
        let start = ((row * self.domain.size() + owner) * CHUNK_BYTES).min(bytes);
        start..(start + CHUNK_BYTES).min(bytes)
    }

    /// Reduces a chunk of all inputs into this rank's output.
    ///
    /// # Safety
    /// As [`run`]; the chunk is this rank's.
    unsafe fn reduce(&self, room: &mut Room, chunk: Range<usize>) -> Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        let Room { sources, scratch, whereabouts, .. } = room;
        let scratch = scratch.as_mut_ptr().cast::<u8>();
        sources.clear();
        for (rank, [input, _]) in whereabouts.iter().enumerate() {
            // SAFETY: the scratch memory has a chunk for every rank, and the chunk lies in all inputs.
            unsafe {
                sources.push(match *input {
                    _ if rank == self.domain.rank() => self.call.input.add(chunk.start),
                    Whereabouts::Here(start) => start.add(chunk.start).cast_const(),
                    Whereabouts::There(address) => {
                        let (address, into) = (address + chunk.start as u64, scratch.add(rank * CHUNK_BYTES));
                        self.domain.read_peer(rank, address, into, chunk.len(), self.wait)?;
                        into.cast_const()
                    }
                });
            }
        }
        room.targets.clear();
        // SAFETY: the sources were read or can be addressed, and their owners do not touch this chunk before it is done;
        // the output is the caller's.
        unsafe {
            room.targets.push(self.call.output.add(chunk.start));
            self.call.work(room, 0..chunk.len(), Store::Ordinary);
        }
        Ok(())
    }

    /// Copies a finished chunk from its owner's output.
    ///
    /// # Safety
    /// As [`run`]; nobody needs this chunk of this rank's buffers any more.
    unsafe fn fetch(&self, room: &Room, owner: usize, chunk: Range<usize>) -> Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        let [_, output] = room.whereabouts[owner];
        // SAFETY: the caller's promise; buffers of different ranks do not overlap.
        unsafe {
            let into = self.call.output.add(chunk.start);
            match output {
                Whereabouts::Here(start) => {
                    into.copy_from_nonoverlapping(start.add(chunk.start), chunk.len());
                    Ok(())
                }
                Whereabouts::There(address) => {
                    let address = address + chunk.start as u64;
                    self.domain.read_peer(owner, address, into, chunk.len(), self.wait)
                }
            }
        }
    }
}
