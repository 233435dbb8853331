//! A schedule among few ranks on a piece of the vector, as part of a schedule among all ranks on the whole vector.

use super::super::{Place, Schedule, Slice, Step};
use crate::transport::Rank;

/// Where the small schedule's ranks and elements are.
pub(super) struct Embedded<'a> {
    /// The rank that is number i in the small schedule.
    pub(super) members: &'a [Rank],
    /// The element that is element 0 in the small schedule.
    pub(super) offset: usize,
}

impl Embedded<'_> {
    /// The stages of `small`, whose scratch space is added to `large`.
    pub(super) fn stages(&self, small: Schedule, large: &mut Schedule) -> Vec<Vec<Step>> {
        let first_scratch = large.scratch.len();
        large.scratch.extend(small.scratch);
        let slice = |slice: Slice| match slice.place {
            Place::Buffer => Slice::buffer(self.offset + slice.range.start..self.offset + slice.range.end),
            Place::Scratch(number) => Slice::scratch(first_scratch + number, slice.range),
        };
        let step = |step| match step {
            Step::Send { to, from } => Step::Send { to: self.members[to], from: slice(from) },
            Step::Recv { from, into } => Step::Recv { from: self.members[from], into: slice(into) },
            Step::Copy { into, from } => Step::Copy { into: slice(into), from: slice(from) },
            Step::Reduce { into, left, right } => {
                Step::Reduce { into: slice(into), left: slice(left), right: slice(right) }
            }
        };
        small.stages.into_iter().map(|stage| stage.steps.into_iter().map(step).collect()).collect()
    }
}
