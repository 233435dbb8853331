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
    /// Receives from one and the same rank that are in flight at a time.
    pub(super) most_from_one: usize,
}

#[derive(Default)]
pub(super) struct PlannedStage {
    pub(super) messages: Vec<Message>,
    pub(super) locals: Vec<Local>,
    /// The receives may be posted while the stage before is at work.
    pub(super) receives_early: bool,
    /// The sends may be in flight until the next stage has ended.
    pub(super) sends_late: bool,
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
            plan.stages.push(planned);
        }
        plan.overlap_stages();
        plan.most_from_one = plan.most_from_one();
        plan
    }

    /// Finds the messages that can be in flight beside the stage before or after theirs. It is all or none of a stage, so
    /// that messages between two ranks keep their order.
    fn overlap_stages(&mut self) {
        for number in 1..self.stages.len() {
            let next = &self.stages[number];
            let is_late = self.stages[number - 1].sends().all(|send| !next.writes(&send.region));
            self.stages[number - 1].sends_late = is_late;
        }
        for number in 1..self.stages.len() {
            let before = &self.stages[number - 1];
            // Still in flight while the stage before is at work.
            let late =
                number.checked_sub(2).map(|number| &self.stages[number]).filter(|stage| stage.sends_late);
            let is_free = |region: &Region| {
                !before.touches(region)
                    && late.is_none_or(|stage| stage.sends().all(|send| !send.region.overlaps(region)))
            };
            let is_early = self.stages[number].receives().all(|receive| is_free(&receive.region));
            self.stages[number].receives_early = is_early;
        }
    }

    fn most_from_one(&self) -> usize {
        let counts: Vec<usize> = self.stages.iter().map(PlannedStage::most_from_one).collect();
        let early = |number: usize| match self.stages.get(number) {
            Some(stage) if stage.receives_early => counts[number],
            _ => 0,
        };
        (0..counts.len()).map(|number| counts[number] + early(number + 1)).max().unwrap_or(0)
    }
}

impl PlannedStage {
    fn sends(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter().filter(|message| message.is_send)
    }

    fn receives(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter().filter(|message| !message.is_send)
    }

    fn writes(&self, region: &Region) -> bool {
        self.receives().any(|receive| receive.region.overlaps(region))
            || self.locals.iter().any(|local| local.work.target().overlaps(region))
    }

    /// Whether it reads or writes any of the region.
    fn touches(&self, region: &Region) -> bool {
        self.messages.iter().any(|message| message.region.overlaps(region))
            || self.locals.iter().any(|local| local.work.touches(region))
    }

    fn most_from_one(&self) -> usize {
        let mut counts = HashMap::new();
        for message in self.receives() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::{
        COLLECTIVE_NAMES, Collective, Kind, Operation, Order, Ring, Topology, collective_by_name,
    };

    /// Replays the order of the executor, and looks at everything that is in flight at each moment.
    fn check(plan: &Plan, what: &str) {
        let mut in_flight: Vec<(&Message, usize)> = Vec::new();
        for (number, stage) in plan.stages.iter().enumerate() {
            let early = |of: usize| plan.stages.get(of).filter(|stage| stage.receives_early);
            let posted = stage.messages.iter().filter(|message| message.is_send || early(number).is_none());
            in_flight.extend(posted.map(|message| (message, number)));
            let next = early(number + 1).into_iter().flat_map(PlannedStage::receives);
            in_flight.extend(next.map(|message| (message, number + 1)));
            for (index, (one, _)) in in_flight.iter().enumerate() {
                for (other, _) in &in_flight[index + 1..] {
                    let only_read = one.is_send && other.is_send;
                    assert!(only_read || !one.region.overlaps(&other.region), "{what}, stage {number}");
                }
            }
            for local in &stage.locals {
                for (message, of) in &in_flight {
                    let may_have_arrived = *of == number && !message.is_send;
                    let is_written = local.work.target().overlaps(&message.region);
                    let is_touched = local.work.touches(&message.region);
                    let is_wrong = if message.is_send { is_written } else { is_touched && !may_have_arrived };
                    assert!(!is_wrong, "{what}, stage {number}");
                }
            }
            in_flight
                .retain(|(message, of)| *of > number || *of == number && message.is_send && stage.sends_late);
        }
        assert!(in_flight.is_empty(), "{what}: a message is never waited for");
    }

    #[test]
    fn what_is_in_flight_beside_another_stage_is_not_touched_by_it() {
        let mut overlapping = 0;
        // `native` has no schedule, and `auto` is one of the others.
        for name in COLLECTIVE_NAMES.iter().filter(|name| **name != "native") {
            let collective = collective_by_name(name, None).unwrap();
            for (n, len) in [(2, 64), (3, 7), (4, 64), (5, 100), (7, 3), (8, 1000), (13, 26)] {
                let topology = Topology::flat(n);
                for kind in Kind::ALL {
                    let operation = Operation { kind, root: n - 1, order: Order::Fastest };
                    for rank in 0..n {
                        let Ok(schedule) = collective.schedule(&operation, &topology, rank, len) else {
                            continue;
                        };
                        let plan = Plan::new(&schedule, 4, 64);
                        check(&plan, &format!("{name} {kind}, rank {rank} of {n}, {len}"));
                        overlapping += plan.stages.iter().filter(|stage| stage.receives_early).count();
                    }
                }
            }
        }
        assert!(overlapping > 1000, "{overlapping}");
    }

    #[test]
    fn a_ring_never_waits_for_its_own_sends_before_it_goes_on() {
        let operation = Operation { kind: Kind::AllReduce, root: 0, order: Order::Fastest };
        let topology = Topology::flat(8);
        let schedule = Ring.schedule(&operation, &topology, 3, 8000).unwrap();
        let plan = Plan::new(&schedule, 4, 1 << 20);
        assert_eq!(plan.stages.len(), 14);
        assert!(plan.stages[1..].iter().all(|stage| stage.receives_early));
        assert!(plan.stages[..13].iter().all(|stage| stage.sends_late));
        assert!(!plan.stages[0].receives_early && !plan.stages[13].sends_late);
    }
}
