//! The two-shot form in windows: of each row of n chunks a rank hands the others theirs, sums its own, and takes what the
//! others have summed. All ranks do the same work at the same time.

use super::super::{Call, Room};
use crate::error::Result;
use crate::reduce::Store;
use crate::transport::{Domain, Session, Wait};
use std::ops::Range;

/// Rows that a rank's two windows hold, two in each. Three are under way: one that is handed over, one that is summed, and one
/// that is taken.
const ROWS_HELD: usize = 4;

/// All-reduce of private buffers. Chunk c of a row is summed by rank c.
///
/// A rank's step t is: hand over row t, sum in row t−1, take row t−2. The last two begin when all ranks have done step
/// t−1: then their operands of row t−1 and their sums of row t−2 are there. Row t takes the place of row t−4, which nobody needs:
/// all have summed it in step t−3, and this rank, whose window it is, has taken it in step t−2.
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
    let ranks = domain.size();
    let row_bytes = domain.window_bytes() / 2;
    let chunk_bytes = (row_bytes / ranks / 64 * 64).min(call.bytes().div_ceil(ranks).next_multiple_of(64));
    let two_shot = TwoShot { domain, call, wait, row_bytes, chunk_bytes };
    // SAFETY: the caller's promise.
    unsafe { two_shot.all_steps(room) }.map_err(|error| session.fail_here(error))
}

struct TwoShot<'a> {
    domain: &'a Domain,
    call: &'a Call,
    wait: &'a Wait<'a>,
    /// The most bytes of a row: half of a window.
    row_bytes: usize,
    chunk_bytes: usize,
}

impl TwoShot<'_> {
    /// # Safety
    /// As [`run`].
    unsafe fn all_steps(&self, room: &mut Room) -> Result<()> {
        let (ranks, rank) = (self.domain.size(), self.domain.rank());
        let rows = self.call.bytes().div_ceil(ranks * self.chunk_bytes);
        // The words of progress of all ranks have advanced equally far.
        let base = self.domain.progress(rank);
        for step in 0..rows + 2 {
            if step < rows {
                // SAFETY: the caller's promise; all have taken what was in this place.
                unsafe { self.hand_over(step) };
            }
            if step > 0 {
                for other in (1..ranks).map(|distance| (rank + distance) % ranks) {
                    self.domain.wait_for(other, base + step as u64, self.wait)?;
                }
            }
            if (1..=rows).contains(&step) {
                // SAFETY: the caller's promise; all have handed over.
                unsafe { self.sum(room, step - 1) };
            }
            if step >= 2 {
                // SAFETY: the caller's promise; all have summed, and this rank has handed over what was in its output.
                unsafe { self.take(step - 2) };
            }
            self.domain.advance(base + step as u64 + 1);
        }
        Ok(())
    }

    /// The bytes of the vector from chunk `first` to before chunk `end` of a row.
    fn chunks(&self, row: usize, first: usize, end: usize) -> Range<usize> {
        let byte =
            |chunk: usize| ((row * self.domain.size() + chunk) * self.chunk_bytes).min(self.call.bytes());
        byte(first)..byte(end)
    }

    /// The bytes of a row that others sum.
    fn of_others(&self, row: usize) -> [Range<usize>; 2] {
        let (ranks, rank) = (self.domain.size(), self.domain.rank());
        [self.chunks(row, 0, rank), self.chunks(row, rank + 1, ranks)]
    }

    /// Where a rank's window has this byte of a row.
    fn held(&self, rank: usize, row: usize, byte: usize) -> *mut u8 {
        let place = row % ROWS_HELD;
        let start = row * self.domain.size() * self.chunk_bytes;
        self.domain.window(rank, place / 2).wrapping_add(place % 2 * self.row_bytes + byte - start)
    }

    /// Copies this rank's operands for the others into its window.
    ///
    /// # Safety
    /// As [`run`]; nobody uses the row that was in this place.
    unsafe fn hand_over(&self, row: usize) {
        for range in self.of_others(row) {
            // SAFETY: the range lies in the input, and a window has room for a row.
            unsafe {
                let held = self.held(self.domain.rank(), row, range.start);
                held.copy_from_nonoverlapping(self.call.input.add(range.start), range.len());
            }
        }
    }

    /// Sums this rank's chunk of a row into its output, and into the others' windows: in their place, whose lines it has just
    /// read. Passed on in its own window, a sum would move twice as many lines between the cores.
    ///
    /// # Safety
    /// As [`run`]; all have handed over the row.
    unsafe fn sum(&self, room: &mut Room, row: usize) {
        let rank = self.domain.rank();
        let chunk = self.chunks(row, rank, rank + 1);
        if chunk.is_empty() {
            return;
        }
        room.sources.clear();
        room.targets.clear();
        // SAFETY: the chunk lies in the input, in the output, and in every window's row, where it is this rank's alone.
        unsafe {
            for other in 0..self.domain.size() {
                let is_own = other == rank;
                let held = self.held(other, row, chunk.start);
                room.sources.push(if is_own { self.call.input.add(chunk.start) } else { held });
                room.targets.push(if is_own { self.call.output.add(chunk.start) } else { held });
            }
            self.call.work(room, 0..chunk.len(), Store::Ordinary);
        }
    }

    /// Copies the others' sums from this rank's window to its output.
    ///
    /// # Safety
    /// As [`run`]; all have summed the row, and nobody needs these chunks of this rank's input any more.
    unsafe fn take(&self, row: usize) {
        for range in self.of_others(row) {
            // SAFETY: the range lies in the output and in the window.
            unsafe {
                let output = self.call.output.add(range.start);
                output.copy_from_nonoverlapping(self.held(self.domain.rank(), row, range.start), range.len());
            }
        }
    }
}
