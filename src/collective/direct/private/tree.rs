//! The canonical tree in windows: the operands of a window meet in the ranks' windows as the tree has it, each addition
//! done by the rank of its last operand, and every rank then copies the result to its own buffer. Half of the operands
//! are never copied, the sums in between stay in the caches, and each rank waits about once for each window.
//!
//! Groups of ranks with an accumulator for each core, whose results every rank adds up, were mostly slower on two
//! cores: all ranks then read several accumulators, and those of a group can only work one after another.

use super::super::Call;
use crate::error::Result;
use crate::reduce::{Operator, Target, reduce_into, scale_for_average};
use crate::transport::{Domain, Session, WINDOW_BYTES, Wait};
use std::ops::Range;
use std::slice;

/// All-reduce in the canonical order.
///
/// A rank's step t is: store the result of window t−1, then add to window t. It begins when the last rank, which ends the
/// tree, has done step t−1: then everybody has added to window t−1, and so has stored the result of window t−2. The windows
/// alternate between two.
///
/// # Safety
/// The call's input and output are good for `call.count` elements, and all ranks are in the same call.
pub(super) unsafe fn run(
    session: &mut Session<'_>,
    domain: &Domain,
    call: &Call,
    wait: &Wait<'_>,
) -> Result<()> {
    let tree = Tree { domain, call, wait };
    // SAFETY: the caller's promise.
    unsafe { tree.all_steps() }.map_err(|error| session.fail_here(error))
}

struct Tree<'a> {
    domain: &'a Domain,
    call: &'a Call,
    wait: &'a Wait<'a>,
}

impl Tree<'_> {
    /// # Safety
    /// As [`run`].
    unsafe fn all_steps(&self) -> Result<()> {
        let windows = self.call.bytes().div_ceil(WINDOW_BYTES);
        // The words of progress of all ranks have advanced equally far.
        let base = self.domain.progress(self.domain.rank());
        for step in 0..=windows {
            let reached = base + step as u64;
            if step > 0 {
                self.domain.wait_for(self.domain.size() - 1, reached, self.wait)?;
                // SAFETY: the result is complete, and stays until this rank has done this step.
                unsafe { self.store_result(step - 1) };
            }
            if step < windows {
                // SAFETY: the caller's promise.
                unsafe { self.add(step, reached + 1)? };
            }
            self.domain.advance(reached + 1);
        }
        Ok(())
    }

    /// The bytes of the vector that pass through a window.
    fn range(&self, window: usize) -> Range<usize> {
        window * WINDOW_BYTES..((window + 1) * WINDOW_BYTES).min(self.call.bytes())
    }

    /// Does the additions of a window whose last operand is this rank's.
    ///
    /// The sum of ranks i to j is kept in the window of rank i. Rank j adds it to the sum to its left when both are of the
    /// same power of two; the last rank adds everything that is left.
    ///
    /// # Safety
    /// As [`run`].
    unsafe fn add(&self, window: usize, done: u64) -> Result<()> {
        let (range, rank) = (self.range(window), self.domain.rank());
        let is_last = rank + 1 == self.domain.size();
        // SAFETY: the range lies in the input. A window is only touched by the rank whose turn it is: the one that finds both
        // sums complete.
        unsafe {
            let input = slice::from_raw_parts(self.call.input.add(range.start), range.len());
            let sum_from =
                |first: usize| slice::from_raw_parts_mut(self.domain.window(first, window), range.len());
            let mut first = rank;
            while first > 0 && (is_last || rank + 1 - first == 1 << first.trailing_zeros()) {
                self.domain.wait_for(first - 1, done, self.wait)?;
                let to_the_left = first & (first - 1);
                let right: &[u8] = if first == rank { input } else { sum_from(first) };
                let target = Target::Left { left: sum_from(to_the_left), right };
                reduce_into(self.call.element, self.call.operator, target);
                first = to_the_left;
            }
            if first == rank {
                sum_from(rank).copy_from_slice(input);
            } else if is_last && self.call.operator == Operator::Average {
                scale_for_average(self.call.element, sum_from(0), self.domain.size());
            }
        }
        Ok(())
    }

    /// Copies a result to this rank's buffer.
    ///
    /// # Safety
    /// As [`run`]; the result is complete, and nobody changes it.
    unsafe fn store_result(&self, window: usize) {
        let range = self.range(window);
        // SAFETY: the range lies in the output, and the window is as long.
        unsafe {
            let output = self.call.output.add(range.start);
            output.copy_from_nonoverlapping(self.domain.window(0, window), range.len());
        }
    }
}
