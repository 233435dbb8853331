//! All ranks' schedules at once, with trees of additions in place of numbers.

use super::super::{Place, Schedule, Slice, Step};
use super::flaw::{At, Blocked, Flaw};
use super::memory::{Memory, Run, Value, append, zip};
use super::tree::Forest;
use crate::transport::Rank;
use std::ops::Range;

/// A message that both of its ends agree on.
#[derive(Debug, Clone, Copy)]
struct Message {
    send: At,
    receive: At,
    /// Whether one of its ends has been reached.
    posted: bool,
    delivered: bool,
}

/// The k-th message that a rank sends to another is the k-th that the other receives from it.
fn messages(schedules: &[Schedule]) -> Result<Vec<Message>, Flaw> {
    let mut sends: Vec<(Rank, Rank, At)> = Vec::new();
    let mut receives: Vec<(Rank, Rank, At)> = Vec::new();
    for (at, step) in all_steps(schedules) {
        match *step {
            Step::Send { to, .. } => sends.push((at.rank, to, at)),
            Step::Recv { from, .. } => receives.push((from, at.rank, at)),
            Step::Copy { .. } | Step::Reduce { .. } => {}
        }
    }
    // Stable sorts: the messages of a pair stay in order.
    sends.sort_by_key(|&(from, to, _)| (from, to));
    receives.sort_by_key(|&(from, to, _)| (from, to));
    let pair = |list: &[(Rank, Rank, At)], index: usize| list.get(index).map(|&(from, to, _)| (from, to));
    let mut messages = Vec::with_capacity(sends.len());
    for index in 0..sends.len().max(receives.len()) {
        let (sent, received) = (pair(&sends, index), pair(&receives, index));
        if sent == received {
            messages.push(Message {
                send: sends[index].2,
                receive: receives[index].2,
                posted: false,
                delivered: false,
            });
            continue;
        }
        // The lists agree up to here, so the smaller pair of the two is the one with a message too many.
        let send_is_left_over = received.is_none() || (sent.is_some() && sent < received);
        let (from, to, at) = if send_is_left_over { sends[index] } else { receives[index] };
        let count =
            |list: &[(Rank, Rank, At)]| list.iter().filter(|entry| (entry.0, entry.1) == (from, to)).count();
        return Err(Flaw::Unmatched { at, from, to, sends: count(&sends), receives: count(&receives) });
    }
    Ok(messages)
}

fn all_steps(schedules: &[Schedule]) -> impl Iterator<Item = (At, &Step)> {
    schedules.iter().enumerate().flat_map(|(rank, schedule)| {
        schedule.stages.iter().enumerate().flat_map(move |(stage, steps)| {
            steps.steps.iter().enumerate().map(move |(step, it)| (At { rank, stage, step }, it))
        })
    })
}

/// What a message's end reads or writes.
fn end_slice(schedules: &[Schedule], at: At) -> &Slice {
    match &schedules[at.rank].stages[at.stage].steps[at.step] {
        Step::Send { from: slice, .. }
        | Step::Recv { into: slice, .. }
        | Step::Copy { into: slice, .. }
        | Step::Reduce { into: slice, .. } => slice,
    }
}

fn check_lengths(schedules: &[Schedule], messages: &[Message]) -> Result<(), Flaw> {
    for &Message { send, receive, .. } in messages {
        let (sent, received) = (end_slice(schedules, send), end_slice(schedules, receive));
        if sent.len() != received.len() {
            return Err(Flaw::MessageLength {
                send,
                sent: sent.clone(),
                receive,
                received: received.clone(),
            });
        }
    }
    Ok(())
}

/// A rank on its way through its schedule.
struct Progress {
    /// The stage it is in.
    stage: usize,
    /// How many messages of the stage are not delivered yet.
    open: usize,
    /// When it entered the stage, in rounds.
    entered: usize,
    /// When the stage's last delivered message was delivered.
    until: usize,
    /// Its messages, in the order of its stages, with the stage of each.
    messages: Vec<(usize, usize)>,
    /// How many of them have been reached.
    reached: usize,
}

/// The execution of all ranks' schedules.
pub(super) struct Execution<'a> {
    schedules: &'a [Schedule],
    messages: Vec<Message>,
    progress: Vec<Progress>,
    /// The vector and the scratch space of each rank.
    memories: Vec<Vec<Memory>>,
    pub(super) forest: Forest,
    /// Ranks whose stage may be complete.
    ready: Vec<Rank>,
    runs: [Vec<Run>; 3],
}

fn index(place: Place) -> usize {
    match place {
        Place::Buffer => 0,
        Place::Scratch(number) => number + 1,
    }
}

impl<'a> Execution<'a> {
    /// Matches the messages, and gives every rank the part of its vector that `defined` says.
    pub(super) fn new(
        schedules: &'a [Schedule],
        len: usize,
        defined: impl Fn(Rank) -> Range<usize>,
    ) -> Result<Self, Flaw> {
        let messages = messages(schedules)?;
        check_lengths(schedules, &messages)?;
        let mut progress: Vec<Progress> = schedules
            .iter()
            .map(|_| Progress { stage: 0, open: 0, entered: 0, until: 0, messages: Vec::new(), reached: 0 })
            .collect();
        for (number, message) in messages.iter().enumerate() {
            for end in [message.send, message.receive] {
                progress[end.rank].messages.push((end.stage, number));
            }
        }
        progress.iter_mut().for_each(|progress| progress.messages.sort_unstable());
        let memories = schedules.iter().enumerate().map(|(rank, schedule)| {
            let lens = [len].into_iter().chain(schedule.scratch.iter().copied());
            let mut memories: Vec<Memory> = lens.map(Memory::undefined).collect();
            memories[0].define(defined(rank), rank as u32);
            memories
        });
        let memories = memories.collect();
        let forest = Forest::new(schedules.len());
        Ok(Execution {
            schedules,
            messages,
            progress,
            memories,
            forest,
            ready: Vec::new(),
            runs: Default::default(),
        })
    }

    /// Runs to the end. The result does not depend on the order in which ranks move, as matching does not.
    pub(super) fn run(&mut self) -> Result<(), Flaw> {
        for rank in 0..self.schedules.len() {
            self.enter(rank)?;
        }
        while let Some(rank) = self.ready.pop() {
            self.complete(rank)?;
            self.enter(rank)?;
        }
        self.check_finished()
    }

    /// The longest chain of rounds: a stage's messages are one round, which begins when the later end gets there.
    pub(super) fn rounds(&self) -> usize {
        self.progress.iter().map(|progress| progress.entered).max().unwrap_or(0)
    }

    /// What a rank's vector holds.
    pub(super) fn vector(&self, rank: Rank, range: &Range<usize>) -> Vec<Run> {
        let mut runs = Vec::new();
        self.memories[rank][0].read(range, &mut runs);
        runs
    }

    /// Posts the messages of the stage that the rank is in, and delivers those whose other end is there already.
    fn enter(&mut self, rank: Rank) -> Result<(), Flaw> {
        let progress = &mut self.progress[rank];
        if progress.stage == self.schedules[rank].stages.len() {
            return Ok(());
        }
        let first = progress.reached;
        let rest = &progress.messages[first..];
        progress.open = rest.iter().take_while(|(stage, _)| *stage == progress.stage).count();
        progress.reached += progress.open;
        progress.until = progress.entered;
        let last = progress.reached;
        if first == last {
            self.ready.push(rank);
        }
        for index in first..last {
            let number = self.progress[rank].messages[index].1;
            let message = &mut self.messages[number];
            if message.posted {
                message.delivered = true;
                let message = *message;
                self.deliver(message)?;
            } else {
                message.posted = true;
            }
        }
        Ok(())
    }

    /// Moves a message. Nothing that its sender's stage writes can change it, so it does not matter when.
    fn deliver(&mut self, message: Message) -> Result<(), Flaw> {
        let Message { send, receive, .. } = message;
        let schedules = self.schedules;
        let mut runs = std::mem::take(&mut self.runs[0]);
        self.read(send, end_slice(schedules, send), &mut runs)?;
        self.write(receive.rank, end_slice(schedules, receive), &runs);
        self.runs[0] = runs;
        let moved = self.progress[send.rank].entered.max(self.progress[receive.rank].entered) + 1;
        for rank in [send.rank, receive.rank] {
            let progress = &mut self.progress[rank];
            progress.until = progress.until.max(moved);
            progress.open -= 1;
            if progress.open == 0 {
                self.ready.push(rank);
            }
        }
        Ok(())
    }

    /// Runs the copies and reductions of a stage whose messages are all delivered.
    fn complete(&mut self, rank: Rank) -> Result<(), Flaw> {
        let stage = self.progress[rank].stage;
        let schedules = self.schedules;
        for (number, step) in schedules[rank].stages[stage].steps.iter().enumerate() {
            let at = At { rank, stage, step: number };
            match step {
                Step::Send { .. } | Step::Recv { .. } => {}
                Step::Copy { into, from } => {
                    let mut runs = std::mem::take(&mut self.runs[0]);
                    self.read(at, from, &mut runs)?;
                    self.write(rank, into, &runs);
                    self.runs[0] = runs;
                }
                Step::Reduce { into, left, right } => self.reduce(at, into, left, right)?,
            }
        }
        let progress = &mut self.progress[rank];
        progress.stage += 1;
        progress.entered = progress.until;
        Ok(())
    }

    fn reduce(&mut self, at: At, into: &Slice, left: &Slice, right: &Slice) -> Result<(), Flaw> {
        let [mut left_runs, mut right_runs, mut sums] = std::mem::take(&mut self.runs);
        self.read(at, left, &mut left_runs)?;
        self.read(at, right, &mut right_runs)?;
        sums.clear();
        let forest = &mut self.forest;
        zip(&left_runs, &right_runs, |positions, l, r| {
            // Both were found to be defined when they were read.
            let (Some(l), Some(r)) = (l, r) else { return Ok(()) };
            let element = l.element(positions.start);
            if l.shift != r.shift {
                let right_element = r.element(positions.start);
                return Err(Flaw::MixedElements {
                    at,
                    left_slice: left.clone(),
                    left: element,
                    right_slice: right.clone(),
                    right: right_element,
                });
            }
            let tree = forest.add(l.tree, r.tree).map_err(|contribution| Flaw::Duplicate {
                at,
                contribution,
                element,
                left: forest.tree(l.tree),
                right: forest.tree(r.tree),
            })?;
            append(&mut sums, Run { end: positions.end, value: Some(Value { tree, ..l }) });
            Ok(())
        })?;
        self.write(at.rank, into, &sums);
        self.runs = [left_runs, right_runs, sums];
        Ok(())
    }

    fn read(&self, at: At, slice: &Slice, runs: &mut Vec<Run>) -> Result<(), Flaw> {
        self.memories[at.rank][index(slice.place)].read(&slice.range, runs);
        let Some(undefined) = runs.iter().position(|run| run.value.is_none()) else { return Ok(()) };
        let before = if undefined == 0 { 0 } else { runs[undefined - 1].end };
        Err(Flaw::Undefined { at, slice: slice.clone(), position: slice.range.start + before })
    }

    fn write(&mut self, rank: Rank, slice: &Slice, runs: &[Run]) {
        self.memories[rank][index(slice.place)].write(slice.range.clone(), runs);
    }

    /// A rank that stopped half-way waits for another that did, as every message has two ends: follow them in a circle.
    fn check_finished(&self) -> Result<(), Flaw> {
        let mut stuck = (0..self.schedules.len()).find_map(|rank| self.blocked(rank));
        let mut path: Vec<Blocked> = Vec::new();
        while let Some(blocked) = stuck {
            if let Some(start) = path.iter().position(|earlier| earlier.at.rank == blocked.at.rank) {
                return Err(Flaw::Deadlock { cycle: path.split_off(start) });
            }
            path.push(blocked);
            stuck = self.blocked(blocked.by.rank);
        }
        Ok(())
    }

    /// What a rank waits for.
    fn blocked(&self, rank: Rank) -> Option<Blocked> {
        let progress = &self.progress[rank];
        let open = progress
            .messages
            .iter()
            .map(|(_, number)| self.messages[*number])
            .find(|message| !message.delivered)?;
        let (at, by) =
            if open.send.rank == rank { (open.send, open.receive) } else { (open.receive, open.send) };
        Some(Blocked { at, by })
    }
}
