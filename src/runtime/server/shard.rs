//! One shard: its part of the parameters, the pushes that wait, and the lines to the workers. Every shard, the head's own
//! included, changes only by the same log of commands.

use super::frame::{self, Command, FromShard, FromWorker, Slice, ToWorker};
use super::outgoing::{Body, Outgoing};
use super::{Counters, Inbox, Setup};
use crate::error::{Error, Result};
use crate::policy::{Payload, PushRule, Store, Versions};
use crate::reduce::WireFormat;
use crate::transport::Rank;
use std::collections::BTreeMap;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

/// What a shard holds. One thread owns it, so that nothing is locked.
pub(super) struct Shard {
    pub(super) store: Store,
    slice: Slice,
    wire: WireFormat,
    /// Pushes that were not applied yet, by worker and number. A worker has one at a time, but the head's answer may reach it
    /// before the log reaches another shard, whose next part then comes early.
    waiting: BTreeMap<(Rank, u64), Waiting>,
    lines: BTreeMap<Rank, Outgoing>,
    /// The parameters as they travel, for all who pull the same version.
    encoded: Option<(Versions, Body)>,
    counters: Arc<Counters>,
}

struct Waiting {
    payload: Payload,
    values: Vec<f32>,
}

impl Shard {
    /// The shard of `setup`, with a line to every guest among `streams` but the head; starts the readers of `streams`.
    pub(super) fn new(
        setup: &Setup,
        streams: Vec<(usize, TcpStream)>,
        inbox: &Sender<Inbox>,
        counters: Arc<Counters>,
    ) -> Result<Shard> {
        let part = setup.slice.of(&setup.parameters);
        let mut store = Store::new(&part, setup.slice.trainable(), setup.workers)?;
        if setup.keeps_backups {
            store = store.with_backups();
        }
        let mut lines = BTreeMap::new();
        for (guest, stream) in streams {
            let name = format!("server {} to {guest}", setup.index);
            lines.insert(guest, Outgoing::new(&stream, name, setup.timeout, Shutdown::Write)?);
            let reader = WorkerReader {
                from: guest,
                slice: setup.slice.clone(),
                wire: setup.wire,
                counters: counters.clone(),
            };
            let inbox = inbox.clone();
            spawn(format!("server {} from {guest}", setup.index), move || reader.run(stream, &inbox))?;
        }
        let (slice, wire) = (setup.slice.clone(), setup.wire);
        Ok(Shard { store, slice, wire, waiting: BTreeMap::new(), lines, encoded: None, counters })
    }

    /// Keeps a worker's part until it is to be applied.
    pub(super) fn keep(&mut self, from: Rank, number: u64, payload: Payload, values: Vec<f32>) {
        self.waiting.insert((from, number), Waiting { payload, values });
    }

    /// Carries out [`Command::Apply`].
    pub(super) fn apply(
        &mut self,
        from: Rank,
        number: u64,
        rule: PushRule,
        loss: &mut dyn FnMut(&[f32]) -> Result<f64>,
    ) -> Result<()> {
        let Some(push) = self.waiting.remove(&(from, number)) else {
            return Err(Error::Internal(format!("push {number} of rank {from} is not here to be applied")));
        };
        self.store.apply(from, push.payload, &push.values, rule, loss)
    }

    /// Carries out [`Command::Forget`].
    pub(super) fn forget(&mut self, from: Rank) {
        self.waiting.retain(|(rank, _), _| *rank != from);
        if let Some(line) = self.lines.get(&from) {
            line.cut();
        }
    }

    /// Tells a worker something without numbers. One that is gone hears nothing.
    pub(super) fn tell(&self, to: Rank, message: &ToWorker) -> Result<()> {
        self.lines.get(&to).map_or(Ok(()), |line| line.tell(message))
    }

    /// The same with numbers.
    pub(super) fn tell_with(&self, to: Rank, message: &ToWorker, body: Body) -> Result<()> {
        self.lines.get(&to).map_or(Ok(()), |line| line.send(message, body))
    }

    /// Sends this moment's parameters behind a message.
    pub(super) fn send_parameters(&mut self, to: Rank, message: impl FnOnce(u64) -> ToWorker) -> Result<()> {
        let (parameters, version) = self.store.pull(to);
        let body = match &self.encoded {
            Some((at, body)) if *at == version => body.clone(),
            _ => Arc::new(frame::encode(self.wire, parameters, self.slice.trainable())),
        };
        self.encoded = Some((version, body.clone()));
        self.counters.add_sent(body.len());
        self.tell_with(to, &message(version.0), body)
    }

    /// Everybody who has a line.
    pub(super) fn guests(&self) -> Vec<Rank> {
        self.lines.keys().copied().collect()
    }

    /// Says the same to every guest.
    pub(super) fn tell_all(&self, message: &ToWorker) -> Result<()> {
        self.lines.values().try_for_each(|line| line.tell(message))
    }

    /// Ends all connections, after what was sent.
    pub(super) fn close(&mut self) {
        std::mem::take(&mut self.lines).into_values().for_each(Outgoing::close);
    }
}

/// Starts a thread that nobody waits for: it ends with its connection.
pub(super) fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<()> {
    match std::thread::Builder::new().name(name.clone()).spawn(body) {
        Ok(_) => Ok(()),
        Err(e) => Err(Error::Environment(format!("cannot start the thread `{name}`: {e}"))),
    }
}

/// Reads one worker's frames into the shard's inbox. Blocked while there are none.
struct WorkerReader {
    from: Rank,
    slice: Slice,
    wire: WireFormat,
    counters: Arc<Counters>,
}

impl WorkerReader {
    fn run(&self, mut stream: TcpStream, inbox: &Sender<Inbox>) {
        let (len, trainable) = (self.slice.len(), self.slice.trainable());
        let expected = frame::encoded_bytes(self.wire, len, trainable);
        let mut body = Vec::new();
        loop {
            let message = match frame::read::<FromWorker>(&mut stream, &mut body, expected) {
                Ok(FromWorker::Push { number, payload, told }) => {
                    if body.len() != expected {
                        let why = "a push without its numbers".into();
                        let _ = inbox.send(Inbox::Closed { from: self.from, why });
                        return;
                    }
                    self.counters.add_received(body.len());
                    let mut values = vec![0.0; len];
                    frame::decode(self.wire, &body, &mut values, trainable);
                    Inbox::Push { from: self.from, number, payload, values, told }
                }
                Ok(FromWorker::Report(told)) => Inbox::Report { from: self.from, told },
                Ok(FromWorker::Wish { wish }) => Inbox::Wish { wish },
                Ok(FromWorker::Failed { why }) => Inbox::Failed { from: self.from, why },
                Ok(FromWorker::Goodbye) => Inbox::Goodbye { from: self.from },
                Err(error) => {
                    let _ = inbox.send(Inbox::Closed { from: self.from, why: error.to_string() });
                    return;
                }
            };
            // The shard has ended: so does this.
            if inbox.send(message).is_err() {
                return;
            }
        }
    }
}

/// Reads the head's log into the inbox of another shard.
pub(super) fn read_log(mut stream: TcpStream, inbox: &Sender<Inbox>) {
    let mut body = Vec::new();
    while let Ok(command) = frame::read::<Command>(&mut stream, &mut body, 0) {
        if inbox.send(Inbox::Command(command)).is_err() {
            return;
        }
    }
    let _ = inbox.send(Inbox::HeadLost);
}

/// The main loop of a shard that is not the head: carries out the log.
pub(super) fn follow(shard: &mut Shard, head: &Outgoing, inbox: &Receiver<Inbox>) -> Result<()> {
    loop {
        // The senders live in the readers and in the service's handle: without any, nobody is left to serve.
        let Ok(message) = inbox.recv() else { return Ok(()) };
        match message {
            Inbox::Push { from, number, payload, values, .. } => {
                shard.keep(from, number, payload, values);
                head.tell(&FromShard::Arrived { from, number })?;
            }
            Inbox::Closed { from, why } => head.tell(&FromShard::WorkerLost { rank: from, why })?,
            Inbox::Command(Command::Apply { from, number, rule }) => {
                let mut loss = |_: &[f32]| Err(needs_whole());
                shard.apply(from, number, rule, &mut loss)?;
            }
            Inbox::Command(Command::Publish) => shard.store.publish()?,
            Inbox::Command(Command::Send { to }) => {
                shard.send_parameters(to, |version| ToWorker::Parameters { version })?;
            }
            Inbox::Command(Command::Snapshot) => {
                let part = shard.store.parameters();
                let body = frame::encode(WireFormat::F32, part, shard.slice.trainable());
                head.send(&FromShard::Part { version: shard.store.version().0 }, Arc::new(body))?;
            }
            Inbox::Command(Command::Forget { from }) => shard.forget(from),
            Inbox::Command(Command::Finish) => return Ok(()),
            Inbox::HeadLost => {
                return Err(Error::Environment("the first shard, which decides, is gone".into()));
            }
            // The rest is the head's business, and workers tell it to the head.
            _ => {}
        }
    }
}

/// Reads what another shard tells the head.
pub(super) fn read_shard(index: usize, slice: &Slice, mut stream: TcpStream, inbox: &Sender<Inbox>) {
    let expected = frame::encoded_bytes(WireFormat::F32, slice.len(), slice.trainable());
    let mut body = Vec::new();
    loop {
        let message = match frame::read::<FromShard>(&mut stream, &mut body, expected) {
            Ok(FromShard::Arrived { from, number }) => Inbox::Arrived { from, number },
            Ok(FromShard::Part { version }) => {
                let mut values = vec![0.0; slice.len()];
                if body.len() == expected {
                    frame::decode(WireFormat::F32, &body, &mut values, slice.trainable());
                }
                Inbox::Part { shard: index, version, values }
            }
            Ok(FromShard::WorkerLost { rank, why }) => Inbox::Closed { from: rank, why },
            Ok(FromShard::Failed { why }) => Inbox::ShardLost { shard: index, why },
            Err(error) => {
                let _ = inbox.send(Inbox::ShardLost { shard: index, why: error.to_string() });
                return;
            }
        };
        if inbox.send(message).is_err() {
            return;
        }
    }
}

/// The refusal of a rule that looks at all parameters at once.
pub(super) fn needs_whole() -> Error {
    Error::Usage("merging by loss needs the whole parameters in one place: use --servers 1".into())
}
