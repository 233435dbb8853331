//! Chained accumulators: the ranks of a group add their window one after another, in rank order, into the group's
//! accumulator; every rank then stores the sum of the accumulators into its own buffer. With a group for each core, only
//! the operands touch memory outside the second cache, and each rank waits once for each window.

use super::super::{Call, Room};
use crate::collective::part;
use crate::error::Result;
use crate::reduce::{Operator, ReduceMany, Store, Target, reduce_into, reduce_many, scale_for_average};
use crate::transport::{Domain, Session, WINDOW_BYTES, Wait};
use std::ops::Range;
use std::slice;

/// All-reduce through the accumulators of `groups` groups of ranks, at most as many as ranks.
///
/// A rank's step t is: store the result of window t−1, add to window t. The first rank of a group begins step t when all
/// groups have done step t−1, each other one when the rank before it has done step t. The accumulators alternate between
/// two windows: whoever clears the one of window t knows that all have stored the result of window t−2.
///
/// # Safety
/// The call's input and output are good for `call.count` elements, and all ranks are in the same call with as many groups.
pub(super) unsafe fn run(
    session: &mut Session<'_>,
    domain: &Domain,
    call: &Call,
    groups: usize,
    room: &mut Room,
    wait: &Wait<'_>,
) -> Result<()> {
    let (ranks, rank, bytes) = (domain.size(), domain.rank(), call.bytes());
    let windows = bytes.div_ceil(WINDOW_BYTES);
    let range = |window: usize| window * WINDOW_BYTES..((window + 1) * WINDOW_BYTES).min(bytes);
    let members = |group: usize| part(ranks, groups, group);
    // The sizes of groups differ by at most one, so this search is short.
    let own = (0..groups).map(members).find(|group| group.contains(&rank)).unwrap_or(0..ranks);
    // The words of progress of all ranks have advanced equally far.
    let base = domain.progress(rank);
    for step in 0..=windows {
        let reached = base + step as u64;
        if step > 0 {
            for group in 0..groups {
                let last = members(group).end - 1;
                domain.wait_for(last, reached, wait).map_err(|error| session.fail_here(error))?;
            }
            room.sources.clear();
            let accumulators = (0..groups).map(|group| domain.window(members(group).start, step - 1));
            room.sources.extend(accumulators.map(<*mut u8>::cast_const));
            // SAFETY: the accumulators are complete, and nobody changes them before this rank has done this step; the
            // output is the caller's.
            unsafe { store_sum(call, range(step - 1), ranks, room) };
        }
        if step < windows {
            if rank > own.start {
                let before = domain.wait_for(rank - 1, reached + 1, wait);
                before.map_err(|error| session.fail_here(error))?;
            }
            let accumulator = domain.window(own.start, step);
            // SAFETY: it is this rank's turn with the accumulator; the input is the caller's.
            unsafe { add(call, range(step), accumulator, rank == own.start) };
        }
        domain.advance(reached + 1);
    }
    Ok(())
}

/// Adds a range of the input to the accumulator, or begins it.
///
/// # Safety
/// The range lies in the call's input; the accumulator, of a window's size, is this rank's alone.
unsafe fn add(call: &Call, range: Range<usize>, accumulator: *mut u8, is_first: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        let input = slice::from_raw_parts(call.input.add(range.start), range.len());
        let left = slice::from_raw_parts_mut(accumulator, range.len());
        if is_first {
            left.copy_from_slice(input);
        } else {
            reduce_into(call.element, call.operator, Target::Left { left, right: input });
        }
    }
}

/// Stores the sum of all accumulators to a range of the output.
///
/// # Safety
/// The range lies in the call's output; the sources are accumulators of at least its length, which nobody changes.
unsafe fn store_sum(call: &Call, range: Range<usize>, ranks: usize, room: &Room) {
    let is_average = call.operator == Operator::Average;
    // The average of sums of several ranks is that of the ranks, not that of the sums.
    let is_scaled_here = is_average && room.sources.len() < ranks;
    // SAFETY: the caller's promise.
    unsafe {
        let output = call.output.add(range.start);
        reduce_many(&ReduceMany {
            element: call.element,
            operator: if is_scaled_here { Operator::Sum } else { call.operator },
            tree: call.tree(),
            sources: &room.sources,
            targets: &[output],
            bytes: range.len(),
            store: Store::Ordinary,
        });
        if is_scaled_here {
            scale_for_average(call.element, slice::from_raw_parts_mut(output, range.len()), ranks);
        }
    }
}
