//! What can be wrong with a set of schedules.

use super::super::{Order, Slice};
use super::tree::Tree;
use crate::error::Error;
use crate::transport::Rank;
use std::fmt;

/// A step of a rank's schedule. Stages and steps count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct At {
    /// The rank.
    pub rank: Rank,
    /// The stage of its schedule.
    pub stage: usize,
    /// The step of the stage.
    pub step: usize,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}, stage {}, step {}", self.rank, self.stage, self.step)
    }
}

/// A rank that cannot finish its stage before another rank arrives in one of its later stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Blocked {
    /// The send or receive that waits.
    pub at: At,
    /// The send or receive that would match it, and is never reached.
    pub by: At,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Blocked { at, by } = self;
        write!(
            f,
            "rank {} in stage {} waits for rank {} to reach stage {}",
            at.rank, at.stage, by.rank, by.stage
        )
    }
}

/// What is wrong, where, and with which ranges.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// The algorithm refused the operation.
    #[error(transparent)]
    Refused(Box<Error>),

    /// The operation's root is no rank.
    #[error("there is no root {root} among {size} ranks")]
    NoSuchRoot {
        /// The root.
        root: Rank,
        /// The number of ranks.
        size: usize,
    },

    /// A message to or from the rank itself, or a rank that does not exist.
    #[error("{at}: there is no other rank {peer} among {size}")]
    NoSuchPeer {
        /// The send or receive.
        at: At,
        /// Its peer.
        peer: Rank,
        /// The number of ranks.
        size: usize,
    },

    /// A range beyond the end of its place, or a piece of scratch space that was not reserved.
    #[error("{at}: {slice} is out of range: {}", describe_place(.len))]
    OutOfRange {
        /// The step.
        at: At,
        /// Its range.
        slice: Slice,
        /// The place's length, if there is such a place.
        len: Option<usize>,
    },

    /// A copy or a reduction between ranges of different lengths.
    #[error("{at}: {into} and {operand} differ in length")]
    OperandLength {
        /// The copy or reduction.
        at: At,
        /// The range that it writes.
        into: Slice,
        /// The range that it reads.
        operand: Slice,
    },

    /// A copy that overlaps itself, or a reduction whose result overlaps an operand without being equal to it.
    #[error("{at}: {into} overlaps {operand} in part")]
    PartialOverlap {
        /// The copy or reduction.
        at: At,
        /// The range that it writes.
        into: Slice,
        /// The range that it reads.
        operand: Slice,
    },

    /// A step writes what the same stage sends.
    #[error("{at} writes {slice}, and step {send} of the same stage sends {sent}")]
    WritesWhatIsSent {
        /// The step that writes.
        at: At,
        /// What it writes.
        slice: Slice,
        /// The step that sends.
        send: usize,
        /// What it sends.
        sent: Slice,
    },

    /// Two messages of one stage arrive in one place.
    #[error("{at} receives {slice}, and step {other} of the same stage receives {received}")]
    OverlappingReceives {
        /// The later receive.
        at: At,
        /// Its range.
        slice: Slice,
        /// The earlier receive.
        other: usize,
        /// Its range.
        received: Slice,
    },

    /// A copy or reduction writes where a message of the same stage arrives, before anything waited for the message.
    #[error("{at} writes {slice} in a race with step {receive} of the same stage, which receives {received}")]
    Race {
        /// The step that writes.
        at: At,
        /// What it writes.
        slice: Slice,
        /// The step that receives.
        receive: usize,
        /// Its range.
        received: Slice,
    },

    /// A send without receive, or a receive without send.
    #[error(
        "{at} has no counterpart: rank {from} sends {sends} messages to rank {to}, which receives {receives}"
    )]
    Unmatched {
        /// The first send or receive that is left over.
        at: At,
        /// The sender.
        from: Rank,
        /// The receiver.
        to: Rank,
        /// How many messages the sender sends to the receiver.
        sends: usize,
        /// How many messages the receiver receives from the sender.
        receives: usize,
    },

    /// A message whose sender and receiver disagree about its length.
    #[error("{send} sends {sent}, which {receive} receives as {received}")]
    MessageLength {
        /// The send.
        send: At,
        /// What it sends.
        sent: Slice,
        /// The receive.
        receive: At,
        /// Where it arrives.
        received: Slice,
    },

    /// Ranks wait for each other in a circle if every send waits for its receive.
    #[error("deadlock: {}", list(.cycle, "; "))]
    Deadlock {
        /// The circle.
        cycle: Vec<Blocked>,
    },

    /// A step reads or sends what was never written.
    #[error("{at} reads {slice}, of which element {position} is undefined")]
    Undefined {
        /// The step.
        at: At,
        /// What it reads.
        slice: Slice,
        /// The first undefined element's position in the place.
        position: usize,
    },

    /// A reduction of different elements.
    #[error("{at} adds element {left} of the vector in {left_slice} to element {right} in {right_slice}")]
    MixedElements {
        /// The reduction.
        at: At,
        /// The left operand.
        left_slice: Slice,
        /// Which element of the vector it begins with.
        left: usize,
        /// The right operand.
        right_slice: Slice,
        /// Which element of the vector it begins with.
        right: usize,
    },

    /// A reduction of two operands that both have a rank's contribution.
    #[error("{at} adds rank {contribution}'s element {element} twice: ({left}) + ({right})")]
    Duplicate {
        /// The reduction.
        at: At,
        /// Whose contribution.
        contribution: Rank,
        /// Which element of the vector.
        element: usize,
        /// The left operand.
        left: Tree,
        /// The right operand.
        right: Tree,
    },

    /// An element of the result that was never written.
    #[error("rank {rank} ends without element {element}")]
    NoResult {
        /// The rank.
        rank: Rank,
        /// The element of its vector.
        element: usize,
    },

    /// An element of the result that is another element of the vector.
    #[error("rank {rank} ends with element {found} where element {element} belongs")]
    Misplaced {
        /// The rank.
        rank: Rank,
        /// The element of its vector.
        element: usize,
        /// What is there.
        found: usize,
    },

    /// A sum without some rank's contribution.
    #[error("rank {rank}'s element {element} is {tree}: the contribution of rank {} is missing", list(.missing, ", "))]
    Missing {
        /// The rank.
        rank: Rank,
        /// The element of its vector.
        element: usize,
        /// Who is missing.
        missing: Vec<Rank>,
        /// What is there.
        tree: Tree,
    },

    /// Two ranks that end with different sums of the same contributions.
    #[error("rank {rank}'s element {element} is {found}, rank {other}'s is {expected}")]
    RanksDiffer {
        /// The rank.
        rank: Rank,
        /// The element of the vector.
        element: usize,
        /// Its tree of additions.
        found: Tree,
        /// The rank that it is compared with.
        other: Rank,
        /// That rank's tree.
        expected: Tree,
    },

    /// A tree of additions that is not the one asked for, which the algorithm did not refuse.
    #[error("the order `{order}` was asked for, but element {element} is {found}")]
    WrongOrder {
        /// What was asked for.
        order: Order,
        /// The element of the vector.
        element: usize,
        /// Its tree of additions.
        found: Tree,
    },
}

fn describe_place(len: &Option<usize>) -> String {
    match len {
        Some(len) => format!("the place has {len} elements"),
        None => "there is no such place".into(),
    }
}

fn list(items: &[impl fmt::Display], separator: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}
