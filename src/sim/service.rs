//! The server of a simulation: the policy's coordinator, and the parameters if it serves any.

use super::queue::Nanoseconds;
use crate::policy::{Coordinator, Payload, Report, Store, Versions};
use crate::transport::Rank;
use std::collections::VecDeque;

/// What a worker sends.
pub(super) struct Message {
    pub(super) report: Report,
    pub(super) values: Option<Vec<f32>>,
    pub(super) sent: Nanoseconds,
}

/// A push that waits for its `Apply`.
pub(super) struct Push {
    pub(super) payload: Payload,
    pub(super) values: Vec<f32>,
    pub(super) base: Versions,
}

/// A message that waits for its reply.
pub(super) struct Open {
    pub(super) report: Report,
    pub(super) sent: Nanoseconds,
    pub(super) arrived: Nanoseconds,
}

/// Nobody reaches this many deadlines in a row without a message unless all wait for each other.
pub(super) const MOST_IDLE_DEADLINES: u32 = 10_000;

pub(super) struct Service {
    pub(super) coordinator: Box<dyn Coordinator>,
    /// Absent in the state server, which holds no parameters.
    pub(super) store: Option<Store>,
    /// By rank.
    pub(super) pushes: Vec<Option<Push>>,
    /// By rank, the oldest first.
    pub(super) open: Vec<VecDeque<Open>>,
    /// The next call of `tick` that is in the queue.
    pub(super) deadline: Option<Nanoseconds>,
    pub(super) idle_deadlines: u32,
    /// Training is over: every report is answered by `Stop`.
    pub(super) is_stopping: bool,
    pub(super) discarded: u64,
    pub(super) bytes_sent: u64,
}

impl Service {
    pub(super) fn new(coordinator: Box<dyn Coordinator>, store: Option<Store>, size: usize) -> Self {
        Service {
            coordinator,
            store,
            pushes: (0..size).map(|_| None).collect(),
            open: (0..size).map(|_| VecDeque::new()).collect(),
            deadline: None,
            idle_deadlines: 0,
            is_stopping: false,
            discarded: 0,
            bytes_sent: 0,
        }
    }

    /// Forgets what a worker that is gone has sent.
    pub(super) fn forget(&mut self, rank: Rank) {
        self.pushes[rank] = None;
        self.open[rank].clear();
    }

    /// Updates so far.
    pub(super) fn versions(&self) -> u64 {
        self.store.as_ref().map_or(0, |store| store.version().0)
    }
}
