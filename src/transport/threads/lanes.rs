//! The book-keeping of messages that are posted and not yet matched.

use crate::transport::Tag;
use std::collections::VecDeque;

/// One side of a message.
#[derive(Clone, Copy)]
pub(super) struct Posted {
    pub(super) tag: Tag,
    pub(super) start: *mut u8,
    pub(super) len: usize,
    /// The poster's slot.
    pub(super) slot: u32,
}

// SAFETY: the pointer is only used to copy between two posted ranges, whose owners promised not to touch them.
unsafe impl Send for Posted {}

/// The messages from one rank to another that still lack their other side. Only one of the queues holds a given tag.
#[derive(Default)]
pub(super) struct Lane {
    sends: VecDeque<Posted>,
    receives: VecDeque<Posted>,
}

impl Lane {
    pub(super) fn new() -> Self {
        let mut lane = Lane::default();
        lane.reserve(2);
        lane
    }

    /// Makes room for so many messages that wait, whichever side comes first.
    pub(super) fn reserve(&mut self, messages: usize) {
        for queue in [&mut self.sends, &mut self.receives] {
            queue.reserve(messages.saturating_sub(queue.len()));
        }
    }

    /// Returns the other side if it is here, else keeps this one.
    pub(super) fn post(&mut self, posted: Posted, sends: bool) -> Option<Posted> {
        let (own, other) = match sends {
            true => (&mut self.sends, &mut self.receives),
            false => (&mut self.receives, &mut self.sends),
        };
        match other.iter().position(|other| other.tag == posted.tag) {
            Some(position) => other.remove(position),
            None => {
                own.push_back(posted);
                None
            }
        }
    }

    /// Removes a message that was not matched; says whether it was here.
    pub(super) fn withdraw(&mut self, slot: u32, sends: bool) -> bool {
        let queue = if sends { &mut self.sends } else { &mut self.receives };
        let before = queue.len();
        queue.retain(|posted| posted.slot != slot);
        queue.len() < before
    }
}
