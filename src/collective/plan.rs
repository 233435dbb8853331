//! A schedule made ready to run: byte offsets instead of element ranges, long transfers cut into segments, and for every
//! local step the messages that it has to wait for.

use super::schedule::{Place, Schedule, Slice, Step};
use crate::transport::Rank;
use std::collections::HashMap;

/// A rank's schedule for one length and element size.
pub(super) struct Plan {
    pub(super) stages: Vec<PlannedStage>,
    pub(super) scratch_bytes: usize,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    /// Of any stage.
    pub(super) most_messages: usize,
    /// Of any stage, from one and the same rank.
    pub(super) most_from_one: usize,
}

#[derive(Default)]
pub(super) struct PlannedStage {
    pub(super) messages: Vec<Message>,
    pub(super) locals: Vec<Local>,
}

/// Bytes of the caller's buffer or of the scratch space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Region {
    pub(super) in_scratch: bool,
    pub(super) start: usize,
    pub(super) len: usize,
}

pub(super) struct Message {
    pub(super) peer: Rank,
    pub(super) is_send: bool,
    pub(super) region: Region,
    /// Which segment of the schedule's message it is; both ends count alike.
    #[cfg(feature = "cuda")]
    pub(super) segment: usize,
}

pub(super) struct Local {
    pub(super) work: Work,
    /// Numbers of the stage's messages that must be complete before.
    pub(super) needs: Vec<usize>,
}

#[derive(Clone, Copy)]
pub(super) enum Work {
    Copy { into: Region, from: Region },
    Reduce { into: Region, left: Region, right: Region },
}

impl Region {
    fn overlaps(&self, other: &Region) -> bool {
        self.in_scratch == other.in_scratch
            && self.start.max(other.start) < (self.start + self.len).min(other.start + other.len)
    }

    fn segment(self, segment_bytes: usize, index: usize) -> Region {
        let start = index * segment_bytes;
        Region { start: self.start + start, len: segment_bytes.min(self.len - start), ..self }
    }
}

impl Work {
    fn target(&self) -> Region {
        match *self {
            Work::Copy { into, .. } | Work::Reduce { into, .. } => into,
        }
    }

    fn touches(&self, region: &Region) -> bool {
        match self {
            Work::Copy { into, from } => into.overlaps(region) || from.overlaps(region),
            Work::Reduce { into, left, right } => {
                into.overlaps(region) || left.overlaps(region) || right.overlaps(region)
            }
        }
    }

    fn segment(&self, segment_bytes: usize, index: usize) -> Work {
        let cut = |region: Region| region.segment(segment_bytes, index);
        match *self {
            Work::Copy { into, from } => Work::Copy { into: cut(into), from: cut(from) },
            Work::Reduce { into, left, right } => {
                Work::Reduce { into: cut(into), left: cut(left), right: cut(right) }
            }
        }
    }
}

/// Pieces of scratch space begin at cache lines.
const SCRATCH_ALIGNMENT: usize = 64;

impl Plan {
    /// A plan that does nothing.
    #[cfg(feature = "cuda")]
    pub(super) fn empty() -> Plan {
        Plan::new(&Schedule::empty(), 1, 1)
    }

    /// `segment_bytes` is a multiple of `element_size`; both ends of a message must use the same.
    pub(super) fn new(schedule: &Schedule, element_size: usize, segment_bytes: usize) -> Plan {
        let mut offsets = Vec::with_capacity(schedule.scratch.len());
        let mut scratch_bytes = 0;
        for len in &schedule.scratch {
            offsets.push(scratch_bytes);
            scratch_bytes += (len * element_size).next_multiple_of(SCRATCH_ALIGNMENT);
        }
        let region = |slice: &Slice| {
            let (in_scratch, base) = match slice.place {
                Place::Buffer => (false, 0),
                Place::Scratch(number) => (true, offsets[number]),
            };
            Region {
                in_scratch,
                start: base + slice.range.start * element_size,
                len: slice.len() * element_size,
            }
        };
        let mut plan = Plan {
            stages: Vec::new(),
            scratch_bytes,
            bytes_sent: 0,
            bytes_received: 0,
            most_messages: 0,
            most_from_one: 0,
        };
        for stage in &schedule.stages {
            let mut planned = PlannedStage::default();
            for step in &stage.steps {
                match step {
                    Step::Send { to, from } => planned.add_message(*to, true, region(from), segment_bytes),
                    Step::Recv { from, into } => {
                        planned.add_message(*from, false, region(into), segment_bytes)
                    }
                    Step::Copy { .. } | Step::Reduce { .. } => {}
                }
            }
            for step in &stage.steps {
                match step {
                    Step::Copy { into, from } => {
                        planned
                            .add_local(Work::Copy { into: region(into), from: region(from) }, segment_bytes);
                    }
                    Step::Reduce { into, left, right } => {
                        let work =
                            Work::Reduce { into: region(into), left: region(left), right: region(right) };
                        planned.add_local(work, segment_bytes);
                    }
                    Step::Send { .. } | Step::Recv { .. } => {}
                }
            }
            for message in &planned.messages {
                let bytes = message.region.len as u64;
                *(if message.is_send { &mut plan.bytes_sent } else { &mut plan.bytes_received }) += bytes;
            }
            plan.most_messages = plan.most_messages.max(planned.messages.len());
            plan.most_from_one = plan.most_from_one.max(planned.most_from_one());
            plan.stages.push(planned);
        }
        plan
    }
}

impl PlannedStage {
    fn most_from_one(&self) -> usize {
        let mut counts = HashMap::new();
        for message in self.messages.iter().filter(|message| !message.is_send) {
            *counts.entry(message.peer).or_insert(0) += 1;
        }
        counts.into_values().max().unwrap_or(0)
    }

    fn add_message(&mut self, peer: Rank, is_send: bool, region: Region, segment_bytes: usize) {
        for index in 0..region.len.div_ceil(segment_bytes) {
            self.messages.push(Message {
                peer,
                is_send,
                region: region.segment(segment_bytes, index),
                #[cfg(feature = "cuda")]
                segment: index,
            });
        }
    }

    fn add_local(&mut self, work: Work, segment_bytes: usize) {
        let needs_message = |work: &Work| -> Vec<usize> {
            let needed = |(_, message): &(usize, &Message)| !message.is_send && work.touches(&message.region);
            self.messages.iter().enumerate().filter(needed).map(|(number, _)| number).collect()
        };
        if needs_message(&work).is_empty() {
            self.locals.push(Local { work, needs: Vec::new() });
            return;
        }
        // Cut like the messages, so that reducing one segment overlaps receiving the next.
        for index in 0..work.target().len.div_ceil(segment_bytes) {
            let work = work.segment(segment_bytes, index);
            let needs = needs_message(&work);
            self.locals.push(Local { work, needs });
        }
    }
}
