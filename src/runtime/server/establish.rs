//! Sets up the shards and the lines to them.

use super::frame::Slice;
use super::head::Head;
use super::link::Link;
use super::outgoing::Outgoing;
use super::overseer::{Handle, Overseer};
use super::shard::{Shard, follow, read_log, read_shard, spawn};
use super::{Counters, Inbox, Placement, Setup};
use crate::collective::Communicator;
use crate::error::{Error, Result};
use crate::policy::Coordinator;
use crate::reduce::WireFormat;
use crate::runtime::control::all_or_none;
use crate::runtime::socket::{connect, gather, listen};
use crate::transport::{Deadline, Peer, Rank};
use std::collections::BTreeSet;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// The server's options. All ranks give the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerOptions {
    /// How many shards.
    pub servers: usize,
    /// Where they live.
    pub placement: Placement,
    /// What pushes and pulls travel as: `f32`, `f16`, `bf16`.
    pub wire: WireFormat,
    /// Whether shards keep a backup of the parameters for each worker ([`PushRule::DelayCompensated`]).
    ///
    /// [`PushRule::DelayCompensated`]: crate::policy::PushRule::DelayCompensated
    pub keeps_backups: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        let (placement, wire) = (Placement::default(), WireFormat::default());
        ServerOptions { servers: 1, placement, wire, keeps_backups: false }
    }
}

impl ServerOptions {
    fn check(&self, size: usize) -> Result<()> {
        if !(1..=size).contains(&self.servers) {
            return Err(Error::Usage(format!(
                "--servers is {}; with {size} ranks it must be 1 to {size}",
                self.servers
            )));
        }
        if self.placement.workers(size, self.servers) == 0 {
            return Err(Error::Usage(format!(
                "--servers {} on ranks of their own leaves none of the {size} ranks to train",
                self.servers
            )));
        }
        if self.wire == WireFormat::Int8 {
            return Err(Error::Usage(
                "--wire int8 rounds parameters too coarsely for a parameter server; use f16 or bf16".into(),
            ));
        }
        Ok(())
    }
}

/// What runs at the head.
pub struct Rule {
    /// The mode's rule.
    pub coordinator: Box<dyn Coordinator>,
    /// Makes the overseer, on the head's thread. The handle stops everybody, from any thread.
    pub overseer: Box<dyn FnOnce(Handle) -> Result<Box<dyn Overseer>> + Send>,
}

/// What a rank has of the parameter server.
pub struct Established {
    /// The line to it. A rank that does not train waits at it for the end.
    pub link: Link,
    /// The shard in this process, if there is one.
    pub service: Option<Service>,
}

/// A shard that runs in this process.
pub struct Service {
    inbox: Sender<Inbox>,
    counters: Arc<Counters>,
    thread: JoinHandle<Result<()>>,
}

impl Service {
    /// By which others of this process speak to it.
    pub fn handle(&self) -> Handle {
        Handle { inbox: self.inbox.clone() }
    }

    /// What has ended it, if it has failed or does so within a second: for a rank that has lost its line to it.
    pub fn failure(self) -> Option<Error> {
        let deadline = Deadline::after(Duration::from_secs(1));
        while !self.thread.is_finished() && !deadline.has_passed() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.thread.is_finished() { self.join().err() } else { None }
    }

    /// Bytes of pulls that were sent, and of pushes that were received.
    pub fn bytes(&self) -> (u64, u64) {
        (self.counters.sent.load(Ordering::Relaxed), self.counters.received.load(Ordering::Relaxed))
    }

    /// Waits for the end of the service, which comes when all workers are done or gone.
    ///
    /// # Errors
    /// What ended it, if it was not that.
    pub fn join(self) -> Result<()> {
        drop(self.inbox);
        self.thread.join().unwrap_or_else(|panic| {
            let text = crate::transport::threads::panic_text(&*panic);
            Err(Error::Training(format!("the parameter server panicked: {text}")))
        })
    }
}

/// Starts the shards and connects every rank to them. All ranks call it with the same options and the same `parameters`, of
/// which the first `trainable` are trained and the rest are statistics. `rule` is called on the head's rank alone. The
/// server's time begins with [`Handle::begin`] on that rank.
///
/// # Errors
/// `Usage` for options that do not fit; `Environment` if a shard cannot be started or reached; those of the communicator.
pub fn establish(
    communicator: &mut Communicator,
    options: &ServerOptions,
    parameters: &[f32],
    trainable: usize,
    rule: impl FnOnce() -> Result<Rule>,
) -> Result<Established> {
    let (rank, size) = (communicator.rank(), communicator.size());
    options.check(size)?;
    let timeout = communicator.options().timeout;
    let workers = options.placement.workers(size, options.servers);
    let slice = |index| Slice::new(parameters.len(), trainable, options.servers, index);
    let slices: Vec<Slice> = (0..options.servers).map(slice).collect();
    let ranks: Vec<Rank> =
        (0..options.servers).map(|index| options.placement.rank(size, options.servers, index)).collect();
    let own_index = ranks.iter().position(|&server| server == rank);

    // Each server opens its port before anybody is invited.
    let own = communicator.transport().peer(rank).clone();
    let listening = own_index.map(|_| listen(&own)).transpose();
    let listening = listening.map_err(|e| Error::Environment(format!("it cannot open a socket: {e}")));
    let listening = all_or_none(communicator, listening, "cannot serve parameters")?;
    let invitation =
        listening.as_ref().map(|(_, invitation)| serde_json::to_vec(invitation).unwrap_or_default());
    let invitations = communicator.gather_bytes(&invitation.unwrap_or_default())?;
    let invitations: Vec<Vec<u8>> = ranks.iter().map(|&server| invitations[server].clone()).collect();

    let service = match (own_index, listening) {
        (Some(index), Some((listener, invitation))) => {
            let setup = Setup {
                index,
                slice: slices[index].clone(),
                slices: slices.clone(),
                parameters: parameters.to_vec(),
                workers,
                keeps_backups: options.keeps_backups,
                wire: options.wire,
                timeout,
            };
            let (token, invitations) = (invitation.token, invitations.clone());
            let start = |rule| Host { setup, size, rule, listener, token, invitations }.start();
            Some(if index == 0 { rule().map(Some) } else { Ok(None) }.and_then(start))
        }
        _ => None,
    };
    let service = service.transpose();
    let connected = service.and_then(|service| {
        // Who does not train waits at the head for the end.
        let needed = if rank < workers { invitations.len() } else { 1 };
        let streams: Result<Vec<TcpStream>> =
            invitations[..needed].iter().map(|invitation| connect(invitation, rank)).collect();
        let servers: Vec<Peer> =
            ranks.iter().map(|&server| communicator.transport().peer(server).clone()).collect();
        let link = Link::new(rank, servers, slices.clone(), streams?, options.wire, timeout)?;
        Ok(Established { link, service })
    });
    all_or_none(communicator, connected, "cannot reach the parameter server")
}

/// A shard that is about to begin.
struct Host {
    setup: Setup,
    size: usize,
    rule: Option<Rule>,
    listener: TcpListener,
    token: [u8; 16],
    invitations: Vec<Vec<u8>>,
}

impl Host {
    fn start(self) -> Result<Service> {
        let (sender, inbox) = channel();
        let counters = Arc::new(Counters::default());
        let (own_sender, own_counters) = (sender.clone(), counters.clone());
        let name = format!("server {}", self.setup.index);
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || self.run(own_sender, &inbox, own_counters))
            .map_err(|e| Error::Environment(format!("cannot start the thread of a server: {e}")))?;
        Ok(Service { inbox: sender, counters, thread })
    }

    fn run(self, sender: Sender<Inbox>, inbox: &Receiver<Inbox>, counters: Arc<Counters>) -> Result<()> {
        let Host { setup, size, rule, listener, token, invitations } = self;
        // The other shards are the head's: it comes to them as a guest behind the last rank.
        let (head, is_head) = (size, rule.is_some());
        let expected: BTreeSet<usize> = match is_head {
            true => (0..size).collect(),
            false => (0..setup.workers).chain([head]).collect(),
        };
        let count = expected.len();
        let (arrivals, guests) = channel();
        let missing = gather(&listener, token, expected, move |stream, number| {
            let _ = arrivals.send((number, stream));
        });
        drop(listener);
        if let Some(rank) = missing.first() {
            return Err(Error::Environment(format!("rank {rank} did not come to the parameter server")));
        }
        // The senders end with the threads that let guests in.
        let mut streams: Vec<(usize, TcpStream)> = guests.iter().take(count).collect();
        if streams.len() < count {
            return Err(Error::Environment("a rank left before the parameter server began".into()));
        }
        streams.sort_by_key(|(number, _)| *number);
        let (to_head, streams): (Vec<_>, Vec<_>) =
            streams.into_iter().partition(|(number, _)| *number == head);
        let timeout = setup.timeout;
        let mut shard = Shard::new(&setup, streams, &sender, counters)?;
        let Some(rule) = rule else {
            let Some((_, stream)) = to_head.into_iter().next() else {
                return Err(Error::Internal("a shard without a head".into()));
            };
            let line = Outgoing::new(
                &stream,
                format!("server {} to the head", setup.index),
                timeout,
                Shutdown::Write,
            )?;
            spawn(format!("server {} from the head", setup.index), move || read_log(stream, &sender))?;
            let result = follow(&mut shard, &line, inbox);
            if let Err(error) = &result {
                let why = error.to_string();
                line.tell(&super::frame::FromShard::Failed { why })?;
            }
            shard.close();
            line.close();
            return result;
        };
        let mut others = Vec::new();
        for (index, invitation) in invitations.iter().enumerate().skip(1) {
            let stream = connect(invitation, head)?;
            others.push(Outgoing::new(&stream, format!("head to server {index}"), timeout, Shutdown::Write)?);
            let (slice, sender) = (setup.slices[index].clone(), sender.clone());
            spawn(format!("head from server {index}"), move || read_shard(index, &slice, stream, &sender))?;
        }
        let overseer = (rule.overseer)(Handle { inbox: sender })?;
        Head::new(setup, shard, others, rule.coordinator, overseer).serve(inbox)
    }
}
