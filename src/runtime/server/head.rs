//! Shard 0: hears the workers, asks the coordinator, and writes the log.

use super::frame::{Command, Slice, ToWorker, Told};
use super::outgoing::Outgoing;
use super::overseer::{Ending, Overseer, Progress, Snapshot, WorkerFigures};
use super::shard::{Shard, needs_whole};
use super::{Inbox, Setup};
use crate::error::{Error, Result};
use crate::policy::{Coordinator, Directive, PushRule, Reason, Reply, Report, Versions};
use crate::transport::Rank;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

pub(super) struct Head {
    shard: Shard,
    /// The logs of the other shards.
    others: Vec<Outgoing>,
    slices: Vec<Slice>,
    rule: Box<dyn Coordinator>,
    overseer: Box<dyn Overseer>,
    /// When training began. Before that no time passes.
    began: Option<Instant>,
    workers: Vec<WorkerState>,
    /// Parts that have arrived of pushes that are not complete.
    arrived: BTreeMap<(Rank, u64), usize>,
    snapshots: VecDeque<Gathering>,
    /// Why all must stop, and since when.
    stop: Option<(u64, f64)>,
    global_samples: u64,
    pushes: u64,
    /// Something was buffered since the last publication.
    has_buffered: bool,
}

#[derive(Default)]
struct WorkerState {
    presence: Presence,
    /// When each report arrived that was not replied to yet.
    asked: VecDeque<Instant>,
    /// The push that is not applied yet.
    push: Option<Push>,
    /// How many versions its last applied push was behind, if nobody told it yet.
    staleness: Option<u64>,
    figures: WorkerFigures,
}

#[derive(Default, PartialEq, Eq)]
enum Presence {
    #[default]
    Training,
    /// It has said goodbye, and waits for the end.
    Done,
    Lost,
}

struct Push {
    number: u64,
    told: Told,
}

/// A snapshot whose parts are on their way.
struct Gathering {
    purpose: Purpose,
    snapshot: Snapshot,
    has_part: Vec<bool>,
}

impl Gathering {
    fn is_complete(&self) -> bool {
        self.has_part.iter().all(|&has_part| has_part)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// For the overseer.
    Evaluation,
    /// For [`Directive::Evaluate`].
    Loss,
    /// The end.
    Last,
}

/// A coordinator that asks to be called at a moment which has passed already is not asked more often than this.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

impl Head {
    pub(super) fn new(
        setup: Setup,
        shard: Shard,
        others: Vec<Outgoing>,
        rule: Box<dyn Coordinator>,
        overseer: Box<dyn Overseer>,
    ) -> Head {
        Head {
            shard,
            others,
            rule,
            overseer,
            began: None,
            workers: (0..setup.workers).map(|_| WorkerState::default()).collect(),
            slices: setup.slices,
            arrived: BTreeMap::new(),
            snapshots: VecDeque::new(),
            stop: None,
            global_samples: 0,
            pushes: 0,
            has_buffered: false,
        }
    }

    /// Serves until every worker is done or lost.
    pub(super) fn serve(&mut self, inbox: &Receiver<Inbox>) -> Result<()> {
        let result = self.serve_until_done(inbox);
        match &result {
            Ok(()) => self.log(&Command::Finish)?,
            Err(error) => self.shard.tell_all(&ToWorker::Failed { why: error.to_string() })?,
        }
        self.shard.close();
        self.others.drain(..).for_each(Outgoing::close);
        result
    }

    fn serve_until_done(&mut self, inbox: &Receiver<Inbox>) -> Result<()> {
        let mut ticked = false;
        while self.workers.iter().any(|worker| worker.presence == Presence::Training) {
            // When all are stopped nobody is held any more, and nothing is left to decide.
            let has_time = self.began.is_some() && self.stop.is_none();
            let deadline = self.rule.next_deadline().filter(|_| has_time);
            let deadline = deadline.map(|at| at.saturating_sub(self.now()));
            let message = match deadline {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => inbox.recv_timeout(if ticked { wait.max(SHORTEST_WAIT) } else { wait }),
            };
            ticked = false;
            match message {
                Ok(message) => self.hear(message)?,
                Err(RecvTimeoutError::Timeout) => {
                    ticked = true;
                    let directives = self.rule.tick(self.now());
                    self.carry_out(directives)?;
                }
                // The senders live in the readers: nobody is left to serve.
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
        if self.has_buffered {
            // Nothing that was taken from a worker is lost.
            self.publish()?;
        }
        self.begin_snapshot(Purpose::Last)?;
        while !self.snapshots.is_empty() {
            let Ok(message) = inbox.recv() else { return Ok(()) };
            self.hear(message)?;
        }
        Ok(())
    }

    fn now(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    fn hear(&mut self, message: Inbox) -> Result<()> {
        match message {
            Inbox::Begin { now } => {
                self.began = Some(now);
                self.overseer.began();
            }
            Inbox::Push { from, number, payload, values, told: Some(told) } => {
                self.shard.keep(from, number, payload, values);
                if let Some(worker) = self.workers.get_mut(from)
                    && let Some(old) = worker.push.replace(Push { number, told })
                {
                    return Err(Error::Internal(format!(
                        "push {} of rank {from} was neither applied nor discarded",
                        old.number
                    )));
                }
                self.part_arrived(from, number)?;
            }
            Inbox::Push { from, .. } => self.lose(from, "it pushed without a report")?,
            Inbox::Arrived { from, number } => self.part_arrived(from, number)?,
            Inbox::Report { from, told } => self.told(from, told)?,
            Inbox::Wish { wish } => self.wish(wish)?,
            Inbox::Failed { from, why } => {
                // The rank itself says why the job fails; there is nothing left to train for.
                self.lose(from, &why)?;
                self.wish(1)?;
            }
            Inbox::Goodbye { from } => self.leave(from, Presence::Done)?,
            Inbox::Closed { from, why } => self.lose(from, &why)?,
            Inbox::Part { shard, version, values } => self.part_of_snapshot(shard, version, &values)?,
            Inbox::ShardLost { shard, why } => {
                return Err(Error::Environment(format!(
                    "shard {shard} of the parameter server is gone: {why}"
                )));
            }
            Inbox::Command(_) | Inbox::HeadLost => {}
        }
        Ok(())
    }

    /// Writes into the other shards' logs.
    fn log(&self, command: &Command) -> Result<()> {
        self.others.iter().try_for_each(|other| other.tell(command))
    }

    /// A push counts when all its parts are here, so that it is applied everywhere or, if its worker dies, nowhere.
    fn part_arrived(&mut self, from: Rank, number: u64) -> Result<()> {
        let parts = self.arrived.entry((from, number)).or_default();
        *parts += 1;
        if *parts < self.slices.len() {
            return Ok(());
        }
        self.arrived.remove(&(from, number));
        match self.workers.get(from).and_then(|worker| worker.push.as_ref()) {
            None => Ok(()),
            Some(push) => {
                let told = push.told.clone();
                self.told(from, told)
            }
        }
    }

    /// A report has arrived, with all of its push if it is one.
    fn told(&mut self, from: Rank, told: Told) -> Result<()> {
        let Some(worker) = self.workers.get_mut(from) else { return Ok(()) };
        worker.asked.push_back(Instant::now());
        let pushed_loss = match &told.report {
            Report::Pushed { loss, .. } => Some(*loss),
            _ => None,
        };
        if pushed_loss.is_some() {
            worker.figures.pushes += 1;
            self.pushes += 1;
        }
        if self.stop.is_some() || worker.presence != Presence::Training {
            // Too late to change anything.
            if pushed_loss.is_some() {
                self.apply(from, PushRule::Discard)?;
            }
            return self.answer_stop(from);
        }
        self.global_samples += told.samples;
        let due = self.overseer.told(&Progress {
            seconds: self.now().as_secs_f64(),
            global_samples: self.global_samples,
            pushes: self.pushes,
            version: self.shard.store.version(),
            pushed_loss,
            from,
        })?;
        // Before the directives: the last push is applied, and whoever it would have set free is stopped.
        let directives = self.rule.on(self.now(), from, told.report);
        let stop = due.stop.unwrap_or(0).max(told.wish);
        if stop > 0 {
            self.stop.get_or_insert((stop, self.now().as_secs_f64()));
        }
        self.carry_out(directives)?;
        if self.stop.is_some() {
            self.stop_everybody()?;
        }
        match due.snapshot {
            true => self.begin_snapshot(Purpose::Evaluation),
            false => Ok(()),
        }
    }

    fn wish(&mut self, wish: u64) -> Result<()> {
        if wish == 0 {
            return Ok(());
        }
        let now = self.now().as_secs_f64();
        let stop = self.stop.get_or_insert((wish, now));
        stop.0 = stop.0.max(wish);
        self.stop_everybody()
    }

    fn carry_out(&mut self, directives: Vec<Directive>) -> Result<()> {
        let mut left = VecDeque::from(directives);
        while let Some(directive) = left.pop_front() {
            self.overseer.decided(&directive, self.shard.store.version())?;
            match directive {
                Directive::Apply { from, rule, .. } => self.apply(from, rule)?,
                Directive::Publish { .. } => self.publish()?,
                Directive::Reply { to, reply, reason } => self.reply(to, reply, &reason)?,
                Directive::Evaluate if self.others.is_empty() => {
                    let loss = self.overseer.loss(self.shard.store.parameters())?;
                    left.extend(self.rule.on(self.now(), 0, Report::GlobalLoss { loss }));
                }
                Directive::Evaluate => self.begin_snapshot(Purpose::Loss)?,
            }
        }
        Ok(())
    }

    fn publish(&mut self) -> Result<()> {
        self.has_buffered = false;
        self.log(&Command::Publish)?;
        self.shard.store.publish()
    }

    fn apply(&mut self, from: Rank, rule: PushRule) -> Result<()> {
        let Some(push) = self.workers.get_mut(from).and_then(|worker| worker.push.take()) else {
            // It died between its push and the decision.
            return match self.workers.get(from).is_some_and(|worker| worker.presence == Presence::Lost) {
                true => Ok(()),
                false => {
                    Err(Error::Internal(format!("a push of rank {from} that is not here was to be applied")))
                }
            };
        };
        if rule == PushRule::LossWeighted && !self.others.is_empty() {
            return Err(needs_whole());
        }
        let figures = &mut self.workers[from].figures;
        match (rule, &push.told.report) {
            (PushRule::Discard, _) => figures.discarded_pushes += 1,
            (_, Report::Pushed { base, .. }) => {
                let behind = self.shard.store.version().0.saturating_sub(base.0);
                *figures.staleness.entry(behind).or_default() += 1;
                self.workers[from].staleness = Some(behind);
            }
            _ => {}
        }
        self.has_buffered |= matches!(rule, PushRule::Buffer { .. });
        self.log(&Command::Apply { from, number: push.number, rule })?;
        let overseer = &mut self.overseer;
        self.shard.apply(from, push.number, rule, &mut |parameters| overseer.loss(parameters))
    }

    fn reply(&mut self, to: Rank, reply: Reply, reason: &Reason) -> Result<()> {
        let (stopped, global_samples) = (self.stop.is_some(), self.global_samples);
        let Some(worker) = self.workers.get_mut(to).filter(|worker| worker.presence == Presence::Training)
        else {
            return Ok(());
        };
        let held_seconds = worker.asked.pop_front().map_or(0.0, |at| at.elapsed().as_secs_f64());
        let staleness = worker.staleness.take();
        let (reply, reason) = match stopped {
            true => (Reply::Stop, Reason::StopRequested.to_string()),
            false => (reply, reason.to_string()),
        };
        let with_parameters = reply == Reply::Pull;
        let message = |version| ToWorker::Reply {
            reply,
            reason,
            held_seconds,
            version,
            staleness,
            global_samples,
            with_parameters,
        };
        if !with_parameters {
            return self.shard.tell(to, &message(self.shard.store.version().0));
        }
        worker.figures.pulls += 1;
        self.log(&Command::Send { to })?;
        self.shard.send_parameters(to, message)
    }

    fn answer_stop(&mut self, to: Rank) -> Result<()> {
        self.reply(to, Reply::Stop, &Reason::StopRequested)
    }

    /// Sets everybody free who waits for a reply; the others learn it with their next report.
    fn stop_everybody(&mut self) -> Result<()> {
        for rank in 0..self.workers.len() {
            while !self.workers[rank].asked.is_empty() && self.workers[rank].presence == Presence::Training {
                self.answer_stop(rank)?;
            }
        }
        Ok(())
    }

    fn lose(&mut self, from: Rank, why: &str) -> Result<()> {
        if self.workers.get(from).is_some_and(|worker| worker.presence == Presence::Training) {
            self.overseer.lost(from, why);
        }
        self.leave(from, Presence::Lost)
    }

    /// A worker is done or lost. Guests that are no workers come and go as they like.
    fn leave(&mut self, from: Rank, how: Presence) -> Result<()> {
        let Some(worker) = self.workers.get_mut(from).filter(|worker| worker.presence != Presence::Lost)
        else {
            return Ok(());
        };
        let was_training = worker.presence == Presence::Training;
        let is_lost = how == Presence::Lost;
        worker.presence = how;
        worker.asked.clear();
        if is_lost {
            worker.push = None;
            self.shard.forget(from);
            self.log(&Command::Forget { from })?;
            self.arrived.retain(|(rank, _), _| *rank != from);
        }
        match was_training {
            true => {
                let directives = self.rule.lost(self.now(), from);
                self.carry_out(directives)
            }
            false => Ok(()),
        }
    }

    fn begin_snapshot(&mut self, purpose: Purpose) -> Result<()> {
        self.log(&Command::Snapshot)?;
        let len = self.slices.iter().map(Slice::len).sum();
        let mut parameters = vec![0.0; len];
        self.slices[0].put(self.shard.store.parameters(), &mut parameters);
        let snapshot = Snapshot {
            seconds: self.now().as_secs_f64(),
            global_samples: self.global_samples,
            version: self.shard.store.version(),
            parameters,
        };
        let mut has_part = vec![false; self.slices.len()];
        has_part[0] = true;
        self.snapshots.push_back(Gathering { purpose, snapshot, has_part });
        self.hand_over_snapshots()
    }

    fn part_of_snapshot(&mut self, shard: usize, version: u64, values: &[f32]) -> Result<()> {
        // Each shard sends them in the order of the log.
        let Some(gathering) = self.snapshots.iter_mut().find(|gathering| !gathering.has_part[shard]) else {
            return Err(Error::Internal(format!("shard {shard} sent a snapshot that nobody asked for")));
        };
        if Versions(version) != gathering.snapshot.version {
            return Err(Error::Internal(format!(
                "shard {shard} is at version {version} where the log says {}",
                gathering.snapshot.version
            )));
        }
        gathering.has_part[shard] = true;
        self.slices[shard].put(values, &mut gathering.snapshot.parameters);
        self.hand_over_snapshots()
    }

    fn hand_over_snapshots(&mut self) -> Result<()> {
        while self.snapshots.front().is_some_and(Gathering::is_complete) {
            let Some(gathering) = self.snapshots.pop_front() else { break };
            match gathering.purpose {
                Purpose::Evaluation => self.overseer.snapshot(gathering.snapshot)?,
                Purpose::Loss => {
                    let loss = self.overseer.loss(&gathering.snapshot.parameters)?;
                    let directives = self.rule.on(self.now(), 0, Report::GlobalLoss { loss });
                    self.carry_out(directives)?;
                }
                Purpose::Last => self.finish(gathering.snapshot)?,
            }
        }
        Ok(())
    }

    fn finish(&mut self, last: Snapshot) -> Result<()> {
        let (stop, stop_seconds) = match self.stop {
            Some((why, seconds)) => (Some(why), seconds),
            None => (None, last.seconds),
        };
        let workers = self.workers.iter_mut().map(|worker| std::mem::take(&mut worker.figures)).collect();
        let (verdict, parameters) = self.overseer.finish(Ending { last, stop, stop_seconds, workers })?;
        let body =
            Arc::new(super::frame::encode(crate::reduce::WireFormat::F32, &parameters, parameters.len()));
        for guest in self.shard.guests() {
            self.shard.tell_with(guest, &ToWorker::Finale { verdict: verdict.clone() }, body.clone())?;
        }
        Ok(())
    }
}
