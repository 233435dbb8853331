//! The data that an algorithm is made of.

use crate::transport::Rank;
use std::fmt;
use std::ops::Range;

/// A rank's program for one operation: stages, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schedule {
    /// The stages, in order.
    pub stages: Vec<Stage>,
    /// The length, in elements, of each numbered piece of scratch space.
    pub scratch: Vec<usize>,
}

/// Steps that belong together.
///
/// All sends and receives of a stage are in flight together. Copies and reductions run in the order in which they are
/// listed, each as soon as the ranges that it reads have arrived. A send takes the values from before the stage, so no
/// step of the same stage may write a range that the stage sends; the verifier checks it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stage {
    /// The steps.
    pub steps: Vec<Step>,
}

/// Which memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The caller's vector.
    Buffer,
    /// A numbered piece of scratch space, undefined at the beginning.
    Scratch(usize),
}

/// A range of elements of one place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Slice {
    /// Which memory.
    pub place: Place,
    /// Which elements.
    pub range: Range<usize>,
}

impl Slice {
    /// Elements `range` of the caller's vector.
    pub fn buffer(range: Range<usize>) -> Self {
        Slice { place: Place::Buffer, range }
    }

    /// Elements `range` of scratch space `number`.
    pub fn scratch(number: usize, range: Range<usize>) -> Self {
        Slice { place: Place::Scratch(number), range }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether it holds no element.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Whether two slices share an element.
    pub fn overlaps(&self, other: &Slice) -> bool {
        self.place == other.place
            && self.range.start.max(other.range.start) < self.range.end.min(other.range.end)
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Buffer => write!(f, "buffer[{}..{}]", self.range.start, self.range.end),
            Place::Scratch(number) => write!(f, "scratch{number}[{}..{}]", self.range.start, self.range.end),
        }
    }
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send elements to a rank.
    Send {
        /// The receiver.
        to: Rank,
        /// What.
        from: Slice,
    },
    /// Receive elements from a rank.
    Recv {
        /// The sender.
        from: Rank,
        /// Where to.
        into: Slice,
    },
    /// Copy elements.
    Copy {
        /// Where to.
        into: Slice,
        /// Where from.
        from: Slice,
    },
    /// `into = left ⊕ right`. `into` equals one operand or overlaps none.
    Reduce {
        /// Where the result goes.
        into: Slice,
        /// The left operand.
        left: Slice,
        /// The right operand.
        right: Slice,
    },
}

impl Schedule {
    /// A schedule that does nothing.
    pub fn empty() -> Self {
        Schedule::default()
    }

    /// Reserves a piece of scratch space and returns its number.
    pub fn add_scratch(&mut self, len: usize) -> usize {
        self.scratch.push(len);
        self.scratch.len() - 1
    }

    /// Appends a stage. Steps on empty ranges are left out, and so is a stage without steps: an empty part sends no
    /// message.
    pub fn push(&mut self, steps: impl IntoIterator<Item = Step>) {
        let steps: Vec<Step> = steps.into_iter().filter(|step| !step.is_empty()).collect();
        if !steps.is_empty() {
            self.stages.push(Stage { steps });
        }
    }

    /// Elements that this rank sends.
    pub fn elements_sent(&self) -> usize {
        self.steps().map(|step| if let Step::Send { from, .. } = step { from.len() } else { 0 }).sum()
    }

    /// Elements that this rank receives.
    pub fn elements_received(&self) -> usize {
        self.steps().map(|step| if let Step::Recv { into, .. } = step { into.len() } else { 0 }).sum()
    }

    /// All steps of all stages.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.stages.iter().flat_map(|stage| &stage.steps)
    }
}

impl Step {
    fn is_empty(&self) -> bool {
        match self {
            Step::Send { from, .. } => from.is_empty(),
            Step::Recv { into, .. } | Step::Copy { into, .. } | Step::Reduce { into, .. } => into.is_empty(),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Send { to, from } => write!(f, "send {from} to {to}"),
            Step::Recv { from, into } => write!(f, "receive {into} from {from}"),
            Step::Copy { into, from } => write!(f, "copy {from} into {into}"),
            Step::Reduce { into, left, right } => write!(f, "{into} = {left} + {right}"),
        }
    }
}
