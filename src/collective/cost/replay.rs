//! The replay itself: a small discrete-event simulation of all ranks' plans.

use super::super::plan::{Plan, Work};
use super::resources::Resources;
use crate::cluster::Cluster;
use crate::transport::Rank;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

/// Time is counted in picoseconds, so that moments that differ only by rounding are the same moment.
const TICKS_PER_SECOND: f64 = 1e12;

/// A sender waits this long before it settles what goes first, so that all that is posted at about one moment is known.
const LOOK_SECONDS: f64 = 1e-10;

/// A message on its way: what both sides have posted of it.
struct Transfer {
    from: Rank,
    to: Rank,
    bytes: usize,
    /// Which message of the sender's and of the receiver's current stage it is.
    slots: [Option<usize>; 2],
    /// Its number among everything that was posted to be sent.
    order: u64,
    /// Ticks for which it occupies its receiver.
    occupies: u64,
}

/// Where a rank is in its plan.
#[derive(Default)]
struct Progress {
    stage: usize,
    /// Of the stage's messages: whether it is complete.
    complete: Vec<bool>,
    incomplete: usize,
    next_local: usize,
    /// Until when its local work occupies it.
    busy_until: f64,
    is_done: bool,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A rank begins its next stage.
    Begin(Rank),
    /// A sender's port is free again.
    PortFree(Rank),
    /// A sender looks what it could send next.
    Look(Rank),
    /// A transfer is complete on both sides.
    Arrived(usize),
}

/// Ticks, and a number that keeps events of one moment in the order of their making, so that a replay is the same on every
/// machine.
type Moment = (u64, u64, Event);

pub(super) struct Replay<'a> {
    plans: &'a [Plan],
    segment_bytes: usize,
    resources: Resources<'a>,
    ranks: Vec<Progress>,
    transfers: Vec<Transfer>,
    /// Posted by one side only, by (sender, receiver), in order; a queue holds sends or receives, never both.
    unmatched: HashMap<(Rank, Rank), VecDeque<usize>>,
    /// Of each sender: posted by both sides and not begun.
    ready: Vec<Vec<usize>>,
    /// Of each receiver: what it has posted and not received, in ticks.
    backlog: Vec<u64>,
    is_sending: Vec<bool>,
    events: BinaryHeap<Reverse<Moment>>,
    made: u64,
    posted: u64,
}

impl<'a> Replay<'a> {
    pub(super) fn new(cluster: &'a Cluster, plans: &'a [Plan], segment_bytes: usize) -> Self {
        let size = plans.len();
        Replay {
            plans,
            segment_bytes,
            resources: Resources::new(cluster),
            ranks: (0..size).map(|_| Progress::default()).collect(),
            transfers: Vec::new(),
            unmatched: HashMap::new(),
            ready: vec![Vec::new(); size],
            backlog: vec![0; size],
            is_sending: vec![false; size],
            events: BinaryHeap::new(),
            made: 0,
            posted: 0,
        }
    }

    /// Seconds until the last rank is done; `None` if some rank never is.
    pub(super) fn run(mut self) -> Option<f64> {
        for rank in 0..self.plans.len() {
            self.at(0.0, Event::Begin(rank));
        }
        let mut end = 0.0_f64;
        while let Some(Reverse((ticks, _, event))) = self.events.pop() {
            let now = ticks as f64 / TICKS_PER_SECOND;
            match event {
                Event::Begin(rank) => {
                    end = end.max(now);
                    self.begin(now, rank);
                }
                Event::PortFree(rank) => {
                    self.is_sending[rank] = false;
                    self.at(now + LOOK_SECONDS, Event::Look(rank));
                }
                Event::Look(rank) => self.send_next(now, rank),
                Event::Arrived(transfer) => self.arrived(now, transfer),
            }
        }
        self.ranks.iter().all(|rank| rank.is_done).then_some(end)
    }

    fn at(&mut self, seconds: f64, event: Event) {
        self.made += 1;
        self.events.push(Reverse((ticks(seconds), self.made, event)));
    }

    fn begin(&mut self, now: f64, rank: Rank) {
        let plans = self.plans;
        let Some(stage) = plans[rank].stages.get(self.ranks[rank].stage) else {
            self.ranks[rank].is_done = true;
            return;
        };
        let progress = &mut self.ranks[rank];
        progress.complete.clear();
        progress.complete.resize(stage.messages.len(), false);
        progress.incomplete = stage.messages.len();
        progress.next_local = 0;
        progress.busy_until = now;
        for (slot, message) in stage.messages.iter().enumerate() {
            let (from, to) = if message.is_send { (rank, message.peer) } else { (message.peer, rank) };
            self.post(now, from, to, message.region.len, usize::from(!message.is_send), slot);
        }
        self.go_on(now, rank);
    }

    /// One side (0: the sender, 1: the receiver) posts a message.
    fn post(&mut self, now: f64, from: Rank, to: Rank, bytes: usize, side: usize, slot: usize) {
        self.posted += 1;
        let segments = bytes.div_ceil(self.segment_bytes);
        let occupies = ticks(self.resources.occupied_seconds(from, to, bytes, segments));
        if side == 1 {
            self.backlog[to] += occupies;
        }
        let waiting = self.unmatched.entry((from, to)).or_default();
        let is_other = waiting.front().is_some_and(|&first| self.transfers[first].slots[side].is_none());
        if !is_other {
            let mut slots = [None; 2];
            slots[side] = Some(slot);
            waiting.push_back(self.transfers.len());
            self.transfers.push(Transfer { from, to, bytes, slots, order: self.posted, occupies });
            return;
        }
        if let Some(number) = waiting.pop_front() {
            let transfer = &mut self.transfers[number];
            transfer.slots[side] = Some(slot);
            if side == 0 {
                transfer.order = self.posted;
            }
            self.ready[from].push(number);
            if !self.is_sending[from] {
                self.at(now + LOOK_SECONDS, Event::Look(from));
            }
        }
    }

    /// Begins a rank's next message, if its port is free: to the receiver that has most to come, which is what ports that
    /// are shared fairly come to, and in the order of posting where that does not decide.
    fn send_next(&mut self, now: f64, rank: Rank) {
        if self.is_sending[rank] {
            return;
        }
        let urgency = |&(_, &number): &(usize, &usize)| {
            let transfer = &self.transfers[number];
            (self.backlog[transfer.to], Reverse(transfer.order))
        };
        let Some((place, &transfer)) = self.ready[rank].iter().enumerate().max_by_key(urgency) else {
            return;
        };
        self.ready[rank].swap_remove(place);
        self.is_sending[rank] = true;
        let Transfer { to, bytes, .. } = self.transfers[transfer];
        let passage = self.resources.pass(now, rank, to, bytes, bytes.div_ceil(self.segment_bytes));
        self.at(passage.port_free, Event::PortFree(rank));
        self.at(passage.arrival, Event::Arrived(transfer));
    }

    fn arrived(&mut self, now: f64, transfer: usize) {
        let Transfer { from, to, slots, occupies, .. } = self.transfers[transfer];
        self.backlog[to] -= occupies;
        for (rank, slot) in [from, to].into_iter().zip(slots) {
            if let Some(slot) = slot {
                self.ranks[rank].complete[slot] = true;
                self.ranks[rank].incomplete -= 1;
            }
            self.go_on(now, rank);
        }
    }

    /// Runs the local work whose messages have come, and ends the stage if that was all.
    fn go_on(&mut self, now: f64, rank: Rank) {
        let progress = &mut self.ranks[rank];
        let stage = &self.plans[rank].stages[progress.stage];
        while let Some(local) = stage.locals.get(progress.next_local) {
            if local.needs.iter().any(|&message| !progress.complete[message]) {
                return;
            }
            let (bytes, is_reduction) = match local.work {
                Work::Copy { into, .. } => (into.len, false),
                Work::Reduce { into, .. } => (into.len, true),
            };
            let begun = progress.busy_until.max(now);
            progress.busy_until = self.resources.work(begun, rank, bytes, is_reduction);
            progress.next_local += 1;
        }
        if progress.incomplete > 0 {
            return;
        }
        progress.stage += 1;
        let turn = if stage.messages.is_empty() { 0.0 } else { self.resources.turn_seconds(rank) };
        let end = progress.busy_until.max(now) + turn;
        self.at(end, Event::Begin(rank));
    }
}

fn ticks(seconds: f64) -> u64 {
    (seconds * TICKS_PER_SECOND).round() as u64
}
