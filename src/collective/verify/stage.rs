//! The rules that a stage must obey by itself, whatever the other ranks do.

use super::super::{Place, Schedule, Slice, Stage, Step};
use super::flaw::{At, Flaw};
use crate::transport::Rank;
use std::ops::Range;

/// Checks all stages of a rank's schedule.
pub(in crate::collective) fn check(
    schedule: &Schedule,
    rank: Rank,
    size: usize,
    len: usize,
) -> Result<(), Flaw> {
    for (number, stage) in schedule.stages.iter().enumerate() {
        let checked = CheckedStage { schedule, stage, rank, number, size, len };
        checked.slices()?;
        checked.operands()?;
        checked.writes()?;
    }
    Ok(())
}

struct CheckedStage<'a> {
    schedule: &'a Schedule,
    stage: &'a Stage,
    rank: Rank,
    number: usize,
    size: usize,
    len: usize,
}

/// What a copy or reduction reads.
pub(super) fn operands(step: &Step) -> impl Iterator<Item = &Slice> {
    let (first, second) = match step {
        Step::Copy { from, .. } => (Some(from), None),
        Step::Reduce { left, right, .. } => (Some(left), Some(right)),
        Step::Send { .. } | Step::Recv { .. } => (None, None),
    };
    first.into_iter().chain(second)
}

fn written(step: &Step) -> Option<&Slice> {
    match step {
        Step::Send { .. } => None,
        Step::Recv { into, .. } | Step::Copy { into, .. } | Step::Reduce { into, .. } => Some(into),
    }
}

impl CheckedStage<'_> {
    fn at(&self, step: usize) -> At {
        At { rank: self.rank, stage: self.number, step }
    }

    fn steps(&self) -> impl Iterator<Item = (usize, &Step)> {
        self.stage.steps.iter().enumerate()
    }

    fn place_len(&self, place: Place) -> Option<usize> {
        match place {
            Place::Buffer => Some(self.len),
            Place::Scratch(number) => self.schedule.scratch.get(number).copied(),
        }
    }

    /// Every range is inside its place, every peer is another rank.
    fn slices(&self) -> Result<(), Flaw> {
        for (number, step) in self.steps() {
            let at = self.at(number);
            let sent = match step {
                Step::Send { from, .. } => Some(from),
                _ => None,
            };
            for slice in sent.into_iter().chain(written(step)).chain(operands(step)) {
                let len = self.place_len(slice.place);
                if slice.range.start > slice.range.end || len.is_none_or(|len| slice.range.end > len) {
                    return Err(Flaw::OutOfRange { at, slice: slice.clone(), len });
                }
            }
            if let Step::Send { to: peer, .. } | Step::Recv { from: peer, .. } = *step
                && (peer >= self.size || peer == self.rank)
            {
                return Err(Flaw::NoSuchPeer { at, peer, size: self.size });
            }
        }
        Ok(())
    }

    /// The ranges of a copy or reduction fit together.
    fn operands(&self) -> Result<(), Flaw> {
        for (number, step) in self.steps() {
            let Some(into) = written(step) else { continue };
            let in_place = matches!(step, Step::Reduce { .. });
            for operand in operands(step) {
                let at = self.at(number);
                if operand.len() != into.len() {
                    return Err(Flaw::OperandLength { at, into: into.clone(), operand: operand.clone() });
                }
                if operand.overlaps(into) && !(in_place && operand == into) {
                    return Err(Flaw::PartialOverlap { at, into: into.clone(), operand: operand.clone() });
                }
            }
        }
        Ok(())
    }

    /// No step writes what is being sent, or what is being received and was not waited for.
    fn writes(&self) -> Result<(), Flaw> {
        let mut sent = Cover::default();
        let mut arriving = Cover::default();
        for (number, step) in self.steps() {
            match step {
                Step::Send { from, .. } => sent.insert(from),
                Step::Recv { into, .. } => {
                    if arriving.overlaps(into) {
                        return Err(self.overlapping_receives(number, into));
                    }
                    arriving.insert(into);
                }
                Step::Copy { .. } | Step::Reduce { .. } => {}
            }
        }
        for (number, step) in self.steps() {
            let Some(into) = written(step) else { continue };
            if sent.overlaps(into) {
                return Err(self.writes_what_is_sent(number, into));
            }
            if matches!(step, Step::Recv { .. }) {
                continue;
            }
            // Reading waits for what arrives; afterwards it may be written.
            operands(step).for_each(|operand| arriving.remove(operand));
            if arriving.overlaps(into) {
                return Err(self.race(number, into));
            }
        }
        Ok(())
    }

    /// The first step whose message has an element of `slice`.
    fn message(&self, slice: &Slice, is_send: bool) -> (usize, Slice) {
        let found = self.steps().find_map(|(number, step)| match step {
            Step::Send { from, .. } if is_send && from.overlaps(slice) => Some((number, from.clone())),
            Step::Recv { into, .. } if !is_send && into.overlaps(slice) => Some((number, into.clone())),
            _ => None,
        });
        found.unwrap_or((0, slice.clone()))
    }

    #[cold]
    fn overlapping_receives(&self, number: usize, into: &Slice) -> Flaw {
        let (other, received) = self.message(into, false);
        Flaw::OverlappingReceives { at: self.at(number), slice: into.clone(), other, received }
    }

    #[cold]
    fn writes_what_is_sent(&self, number: usize, into: &Slice) -> Flaw {
        let (send, sent) = self.message(into, true);
        Flaw::WritesWhatIsSent { at: self.at(number), slice: into.clone(), send, sent }
    }

    #[cold]
    fn race(&self, number: usize, into: &Slice) -> Flaw {
        let (receive, received) = self.message(into, false);
        Flaw::Race { at: self.at(number), slice: into.clone(), receive, received }
    }
}

/// A set of elements: disjoint ranges of each place, in order.
#[derive(Debug, Default)]
struct Cover {
    ranges: Vec<(usize, Range<usize>)>,
}

impl Cover {
    fn key(place: Place) -> usize {
        match place {
            Place::Buffer => 0,
            Place::Scratch(number) => number + 1,
        }
    }

    /// The indices of the ranges that share an element with a slice, or touch it if `touching`.
    fn find(&self, slice: &Slice, touching: bool) -> Range<usize> {
        let key = Cover::key(slice.place);
        let slack = usize::from(touching);
        let first = self
            .ranges
            .partition_point(|(place, range)| (*place, range.end + slack) <= (key, slice.range.start));
        let last = self
            .ranges
            .partition_point(|(place, range)| (*place, range.start) < (key, slice.range.end + slack));
        first..last.max(first)
    }

    fn overlaps(&self, slice: &Slice) -> bool {
        !slice.is_empty() && !self.find(slice, false).is_empty()
    }

    fn insert(&mut self, slice: &Slice) {
        if slice.is_empty() {
            return;
        }
        let found = self.find(slice, true);
        let mut joined = slice.range.clone();
        for (_, range) in &self.ranges[found.clone()] {
            joined = joined.start.min(range.start)..joined.end.max(range.end);
        }
        self.ranges.splice(found, [(Cover::key(slice.place), joined)]);
    }

    fn remove(&mut self, slice: &Slice) {
        if slice.is_empty() {
            return;
        }
        let found = self.find(slice, false);
        let mut left = Vec::new();
        for (place, range) in &self.ranges[found.clone()] {
            let parts = [range.start..slice.range.start, slice.range.end..range.end];
            left.extend(parts.into_iter().filter(|part| part.start < part.end).map(|part| (*place, part)));
        }
        self.ranges.splice(found, left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cover_joins_and_splits() {
        let mut cover = Cover::default();
        for range in [0..2, 4..6, 2..4, 8..9] {
            cover.insert(&Slice::buffer(range));
        }
        cover.insert(&Slice::scratch(0, 3..5));
        assert_eq!(cover.ranges, [(0, 0..6), (0, 8..9), (1, 3..5)]);
        cover.remove(&Slice::buffer(1..3));
        assert_eq!(cover.ranges, [(0, 0..1), (0, 3..6), (0, 8..9), (1, 3..5)]);
        assert!(cover.overlaps(&Slice::buffer(5..8)));
        assert!(!cover.overlaps(&Slice::buffer(6..8)));
        assert!(!cover.overlaps(&Slice::scratch(0, 5..9)));
    }
}
