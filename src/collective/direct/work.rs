//! What is done to one range of the vector, wherever the buffers are.

use super::{Call, Room};
use crate::collective::{Kind, part};
use crate::reduce::{ReduceMany, Store, reduce_many};
use std::ops::Range;

impl Call {
    /// The bytes of the part of `rank`.
    pub(super) fn part_bytes(&self, ranks: usize, rank: usize) -> Range<usize> {
        let (part, size) = (part(self.count, ranks, rank), self.element.size());
        part.start * size..part.end * size
    }

    /// Which rank's part holds the byte.
    pub(super) fn owner(&self, ranks: usize, byte: usize) -> usize {
        let element = byte / self.element.size();
        let (short, longer) = (self.count / ranks, self.count % ranks);
        let in_longer = longer * (short + 1);
        if element < in_longer { element / (short + 1) } else { longer + (element - in_longer) / short }
    }

    /// Cuts a range of bytes at the bounds of parts, if the kind has parts, and says whose part each piece is.
    pub(super) fn pieces(
        &self,
        ranks: usize,
        range: Range<usize>,
        mut each: impl FnMut(usize, Range<usize>),
    ) {
        let mut start = range.start;
        while start < range.end {
            let owner = self.owner(ranks, start);
            let end = range.end.min(self.part_bytes(ranks, owner).end);
            each(owner, start..end);
            start = end;
        }
    }

    /// Does the bytes of `range` of the operation: `room` points to the start of each rank's source and target.
    ///
    /// # Safety
    /// All of those are good for the range, and nobody else uses it in them.
    pub(super) unsafe fn work(&self, room: &mut Room, range: Range<usize>, store: Store) {
        let ranks = room.sources.len();
        let root = self.operation.root;
        match self.operation.kind {
            // SAFETY: the caller's promise.
            Kind::AllReduce => unsafe { self.reduce(room, None, None, range, store) },
            // SAFETY: the caller's promise.
            Kind::Reduce => unsafe { self.reduce(room, None, Some(root), range, store) },
            Kind::ReduceScatter => self.pieces(ranks, range, |owner, piece| {
                // SAFETY: the caller's promise.
                unsafe { self.reduce(room, None, Some(owner), piece, store) }
            }),
            Kind::AllGather => self.pieces(ranks, range, |owner, piece| {
                // SAFETY: the caller's promise.
                unsafe { self.reduce(room, Some(owner), None, piece, store) }
            }),
            // SAFETY: the caller's promise.
            Kind::Broadcast => unsafe { self.reduce(room, Some(root), None, range, store) },
        }
    }

    /// Reduces a range of one rank's source (a copy) or of all, into one rank's target or all.
    ///
    /// # Safety
    /// As [`work`](Self::work).
    unsafe fn reduce(
        &self,
        room: &mut Room,
        from: Option<usize>,
        into: Option<usize>,
        range: Range<usize>,
        store: Store,
    ) {
        let Room { sources, targets, sources_here, targets_here, .. } = room;
        let sources = from.map_or(&sources[..], |rank| &sources[rank..=rank]);
        let targets = into.map_or(&targets[..], |rank| &targets[rank..=rank]);
        sources_here.clear();
        sources_here.extend(sources.iter().map(|source| source.wrapping_add(range.start)));
        targets_here.clear();
        targets_here.extend(targets.iter().map(|target| target.wrapping_add(range.start)));
        let job = ReduceMany {
            element: self.element,
            operator: self.operator,
            tree: self.tree(),
            sources: sources_here,
            targets: targets_here,
            bytes: range.len(),
            store,
        };
        // SAFETY: the caller's promise.
        unsafe { reduce_many(&job) };
    }
}
