//! Where a rank that holds all operands of a sum has them.

use super::blocks::{Addition, holder};
use super::{Slice, Step};
use std::ops::Range;

/// The operands of a sum that is made at one place: the own one in the caller's vector, where the sum ends too, the
/// others in consecutive slots of scratch space. Operands have numbers from 0.
pub(super) struct Operands {
    /// The number of the own operand.
    pub(super) own: usize,
    /// The own operand's elements.
    pub(super) sum: Range<usize>,
    /// The piece of scratch space that has the slots …
    pub(super) scratch: usize,
    /// … from this element on.
    pub(super) start: usize,
}

impl Operands {
    /// Where an operand is.
    pub(super) fn of(&self, number: usize) -> Slice {
        if number == self.own {
            return Slice::buffer(self.sum.clone());
        }
        let slot = if number < self.own { number } else { number - 1 };
        let len = self.sum.len();
        Slice::scratch(self.scratch, self.start + slot * len..self.start + (slot + 1) * len)
    }

    /// The addition in place; sums that include the own operand are made in the vector, so the last one is.
    pub(super) fn add(&self, addition: &Addition) -> Step {
        let place = |group: &Range<usize>| self.of(holder(group, self.own));
        Step::Reduce {
            into: place(&addition.sum()),
            left: place(&addition.left),
            right: place(&addition.right),
        }
    }
}
