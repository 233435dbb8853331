//! What a rank's memory holds, as runs of elements that were made alike: the work does not grow with the length.

use super::tree::TreeId;
use std::ops::Range;

/// Elements, up to `end`, whose value is `value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The position after the last one.
    pub(super) end: usize,
    /// What they hold; `None` if nothing was ever written there.
    pub(super) value: Option<Value>,
}

/// A tree over one element of all ranks' vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) tree: TreeId,
    /// Which element: the position plus this.
    pub(super) shift: isize,
}

/// One place of one rank.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    runs: Vec<Run>,
}

impl Memory {
    pub(super) fn undefined(len: usize) -> Self {
        Memory { runs: if len == 0 { Vec::new() } else { vec![Run { end: len, value: None }] } }
    }

    /// Defines `range` as the rank's own elements.
    pub(super) fn define(&mut self, range: Range<usize>, tree: TreeId) {
        let end = range.len();
        let shift = range.start as isize;
        self.write(range, &[Run { end, value: Some(Value { tree, shift }) }]);
    }

    /// The runs of `range`, with positions relative to its start, appended to `into`.
    pub(super) fn read(&self, range: &Range<usize>, into: &mut Vec<Run>) {
        into.clear();
        if range.is_empty() {
            return;
        }
        let first = self.runs.partition_point(|run| run.end <= range.start);
        for run in &self.runs[first..] {
            let value = run.value.map(|value| value.moved(-(range.start as isize)));
            into.push(Run { end: run.end.min(range.end) - range.start, value });
            if run.end >= range.end {
                break;
            }
        }
    }

    /// Replaces `range` by runs with positions relative to its start.
    pub(super) fn write(&mut self, range: Range<usize>, runs: &[Run]) {
        if range.is_empty() {
            return;
        }
        let mut first = self.runs.partition_point(|run| run.end <= range.start);
        let last = self.runs.partition_point(|run| run.end < range.end);
        let tail = self.runs[last];
        let mut new = Vec::with_capacity(runs.len() + 2);
        let first_start = if first == 0 { 0 } else { self.runs[first - 1].end };
        if first_start < range.start {
            new.push(Run { end: range.start, value: self.runs[first].value });
        } else if first > 0 {
            // Taken along so that it can grow.
            first -= 1;
            new.push(self.runs[first]);
        }
        for run in runs {
            let value = run.value.map(|value| value.moved(range.start as isize));
            append(&mut new, Run { end: run.end + range.start, value });
        }
        if tail.end > range.end {
            append(&mut new, tail);
        }
        self.runs.splice(first..=last, new);
    }
}

impl Value {
    /// The same elements after their positions grew by `distance`.
    fn moved(self, distance: isize) -> Self {
        Value { shift: self.shift - distance, ..self }
    }

    /// Which element of the vectors is at `position`.
    pub(super) fn element(self, position: usize) -> usize {
        (position as isize + self.shift) as usize
    }
}

/// Appends a run, as part of the last one if it holds the same.
pub(super) fn append(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.value == run.value => last.end = run.end,
        _ => runs.push(run),
    }
}

/// Cuts two lists of runs over the same positions at the bounds of both: `visit(positions, left, right)`.
pub(super) fn zip<E>(
    left: &[Run],
    right: &[Run],
    mut visit: impl FnMut(Range<usize>, Option<Value>, Option<Value>) -> Result<(), E>,
) -> Result<(), E> {
    let (mut l, mut r, mut start) = (0, 0, 0);
    while l < left.len() && r < right.len() {
        let end = left[l].end.min(right[r].end);
        visit(start..end, left[l].value, right[r].value)?;
        l += usize::from(left[l].end == end);
        r += usize::from(right[r].end == end);
        start = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(memory: &Memory, range: Range<usize>) -> Vec<Run> {
        let mut runs = Vec::new();
        memory.read(&range, &mut runs);
        runs
    }

    #[test]
    fn writes_split_and_join_runs() {
        let own = |end| Run { end, value: Some(Value { tree: 3, shift: 0 }) };
        let other = Run { end: 2, value: Some(Value { tree: 4, shift: 4 }) };
        let mut memory = Memory::undefined(10);
        memory.define(0..10, 3);
        assert_eq!(memory.runs, [own(10)]);
        memory.write(4..6, &[other]);
        let middle = Run { end: 6, value: Some(Value { tree: 4, shift: 0 }) };
        assert_eq!(memory.runs, [own(4), middle, own(10)]);
        assert_eq!(read(&memory, 4..6), [other]);
        assert_eq!(read(&memory, 5..7).iter().map(|run| run.end).collect::<Vec<_>>(), [1, 2]);
        memory.define(4..6, 3);
        assert_eq!(memory.runs.len(), 2, "joined with what is before; {:?}", memory.runs);
        memory.define(0..10, 3);
        assert_eq!(memory.runs, [own(10)]);
    }
}
