//! The discrete-event clock.

use crate::transport::Rank;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Nanoseconds since training began.
pub(super) type Nanoseconds = u64;

pub(super) fn nanoseconds(seconds: f64) -> Nanoseconds {
    (seconds * 1e9).round() as u64
}

pub(super) fn seconds(nanoseconds: Nanoseconds) -> f64 {
    nanoseconds as f64 / 1e9
}

/// In which order events of one instant happen: all that workers finish, then all that arrives at a server, then the
/// server's own deadlines, and only then what is sent back. So a server sees every message of an instant before anybody
/// acts on its answers, and no result depends on the order in which events were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Done,
    Arrival,
    Deadline,
    Answer,
    Death,
}

/// Events by time, then phase, then rank, then the order of their making.
pub(super) struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    made: u64,
}

struct Entry<E> {
    key: (Nanoseconds, Phase, Rank, u64),
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}
impl<E> Eq for Entry<E> {}
impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

impl<E> Queue<E> {
    pub(super) fn new() -> Self {
        Queue { heap: BinaryHeap::new(), made: 0 }
    }

    pub(super) fn push(&mut self, at: Nanoseconds, phase: Phase, rank: Rank, event: E) {
        self.made += 1;
        self.heap.push(Reverse(Entry { key: (at, phase, rank, self.made), event }));
    }

    pub(super) fn pop(&mut self) -> Option<(Nanoseconds, Rank, E)> {
        self.heap.pop().map(|Reverse(Entry { key, event })| (key.0, key.2, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_instant_has_phases_and_then_ranks() {
        let mut queue = Queue::new();
        for (number, (at, phase, rank)) in [
            (5, Phase::Answer, 0),
            (5, Phase::Done, 2),
            (5, Phase::Arrival, 0),
            (5, Phase::Done, 1),
            (3, Phase::Death, 9),
        ]
        .into_iter()
        .enumerate()
        {
            queue.push(at, phase, rank, number);
        }
        let order: Vec<usize> = std::iter::from_fn(|| queue.pop()).map(|(_, _, number)| number).collect();
        assert_eq!(order, [4, 3, 1, 2, 0]);
    }
}
