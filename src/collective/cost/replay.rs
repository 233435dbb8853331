//! The replay itself: a small discrete-event simulation of all ranks' plans.

use super::super::plan::{Plan, Work};
use super::resources::Resources;
use crate::cluster::Cluster;
use crate::transport::Rank;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

/// A message on its way: what both sides have posted of it.
struct Transfer {
    from: Rank,
    to: Rank,
    bytes: usize,
    /// Messages of the sender's and the receiver's current stage that this is.
    slots: [Option<usize>; 2],
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
    /// The ports of a message's two sides are free again.
    PortsFree(Rank, Rank),
    /// A transfer is complete on both sides.
    Arrived(usize),
}

/// Times are not negative, so their bits order as they do. The number keeps events of one time in the order of their
/// making, so that a replay is the same on every machine.
type Moment = (u64, u64, Event);

pub(super) struct Replay<'a> {
    plans: &'a [Plan],
    segment_bytes: usize,
    resources: Resources<'a>,
    ranks: Vec<Progress>,
    transfers: Vec<Transfer>,
    /// Posted by one side only, by (sender, receiver), in order; a queue holds sends or receives, never both.
    unmatched: HashMap<(Rank, Rank), VecDeque<usize>>,
    /// Posted by both sides and not begun, in order, of each sender and of each receiver.
    ready_to_send: Vec<VecDeque<usize>>,
    ready_to_receive: Vec<VecDeque<usize>>,
    sending: Vec<bool>,
    receiving: Vec<bool>,
    events: BinaryHeap<Reverse<Moment>>,
    made: u64,
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
            ready_to_send: vec![VecDeque::new(); size],
            ready_to_receive: vec![VecDeque::new(); size],
            sending: vec![false; size],
            receiving: vec![false; size],
            events: BinaryHeap::new(),
            made: 0,
        }
    }

    /// Seconds until the last rank is done; `None` if some rank never is.
    pub(super) fn run(mut self) -> Option<f64> {
        for rank in 0..self.plans.len() {
            self.at(0.0, Event::Begin(rank));
        }
        let mut end = 0.0_f64;
        while let Some(Reverse((bits, _, event))) = self.events.pop() {
            let now = f64::from_bits(bits);
            match event {
                Event::Begin(rank) => {
                    end = end.max(now);
                    self.begin(now, rank);
                }
                Event::PortsFree(from, to) => {
                    self.sending[from] = false;
                    self.receiving[to] = false;
                    self.start_one(now, from, to);
                }
                Event::Arrived(transfer) => self.arrived(now, transfer),
            }
        }
        self.ranks.iter().all(|rank| rank.is_done).then_some(end)
    }

    fn at(&mut self, seconds: f64, event: Event) {
        self.made += 1;
        self.events.push(Reverse((seconds.to_bits(), self.made, event)));
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
        let waiting = self.unmatched.entry((from, to)).or_default();
        let is_other = waiting.front().is_some_and(|&first| self.transfers[first].slots[side].is_none());
        if !is_other {
            let mut slots = [None; 2];
            slots[side] = Some(slot);
            waiting.push_back(self.transfers.len());
            self.transfers.push(Transfer { from, to, bytes, slots });
            return;
        }
        if let Some(transfer) = waiting.pop_front() {
            self.transfers[transfer].slots[side] = Some(slot);
            self.ready_to_send[from].push_back(transfer);
            self.ready_to_receive[to].push_back(transfer);
            self.start_one(now, from, to);
        }
    }

    /// Begins what the ports of a sender and of a receiver are free for.
    fn start_one(&mut self, now: f64, from: Rank, to: Rank) {
        if !self.sending[from] {
            let ready = self.ready_to_send[from].iter();
            let next = ready.copied().find(|&transfer| !self.receiving[self.transfers[transfer].to]);
            next.into_iter().for_each(|transfer| self.start(now, transfer));
        }
        if !self.receiving[to] {
            let ready = self.ready_to_receive[to].iter();
            let next = ready.copied().find(|&transfer| !self.sending[self.transfers[transfer].from]);
            next.into_iter().for_each(|transfer| self.start(now, transfer));
        }
    }

    fn start(&mut self, now: f64, transfer: usize) {
        let Transfer { from, to, bytes, .. } = self.transfers[transfer];
        for queue in [&mut self.ready_to_send[from], &mut self.ready_to_receive[to]] {
            if let Some(place) = queue.iter().position(|&other| other == transfer) {
                queue.remove(place);
            }
        }
        (self.sending[from], self.receiving[to]) = (true, true);
        let passage = self.resources.pass(now, from, to, bytes, bytes.div_ceil(self.segment_bytes));
        self.at(passage.ports_free, Event::PortsFree(from, to));
        self.at(passage.arrival, Event::Arrived(transfer));
    }

    fn arrived(&mut self, now: f64, transfer: usize) {
        let Transfer { from, to, slots, .. } = self.transfers[transfer];
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
