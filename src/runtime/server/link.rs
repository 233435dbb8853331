//! A worker's line to all shards.

use super::frame::{self, FromWorker, Slice, ToWorker, Told};
use super::outgoing::Outgoing;
use crate::error::{Error, Result};
use crate::policy::{Payload, Reply, Report, Versions};
use crate::reduce::WireFormat;
use crate::transport::{Deadline, Patience, Peer, Rank, Wait, stalled};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What the server answers to a push or a report.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What to do.
    pub reply: Reply,
    /// Why, as a sentence.
    pub reason: String,
    /// Seconds that the server held the reply back, out of those that the worker waited.
    pub held_seconds: f64,
    /// The server's version when it replied.
    pub version: Versions,
    /// Samples of all workers so far.
    pub global_samples: u64,
    /// How many versions the worker's last push was behind when it was applied, if it was applied before this reply.
    pub staleness: Option<u64>,
    /// The parameters of this version, with [`Reply::Pull`].
    pub parameters: Option<Vec<f32>>,
}

/// How training at the server ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finale {
    /// What the [`Overseer`](super::Overseer) says.
    pub verdict: String,
    /// The result.
    pub parameters: Vec<f32>,
}

enum Incoming {
    Answer(Answer),
    Finale(Finale),
}

/// What went wrong on a connection: at which shard, and the words for it.
type Trouble = (usize, String);

/// One rank's line to the parameter server. Frames are written and read by threads of its own, so that a push travels while
/// the worker computes.
pub struct Link {
    rank: Rank,
    /// Who holds which shard.
    servers: Vec<Peer>,
    slices: Vec<Slice>,
    wire: WireFormat,
    timeout: Duration,
    outgoing: Vec<Outgoing>,
    incoming: Receiver<Result<Incoming, Trouble>>,
    /// Room for parameters goes back to the reader.
    spare: Arc<Mutex<Vec<Vec<f32>>>>,
    /// Which shard the reader is reading from.
    reading: Arc<AtomicUsize>,
    pushes: u64,
    bytes_sent: u64,
    bytes_received: u64,
}

impl Link {
    /// Over the connections to all shards, the head's first. A rank that does not train has one to the head alone.
    pub(super) fn new(
        rank: Rank,
        servers: Vec<Peer>,
        slices: Vec<Slice>,
        streams: Vec<TcpStream>,
        wire: WireFormat,
        timeout: Duration,
    ) -> Result<Link> {
        let mut outgoing = Vec::new();
        for (shard, stream) in streams.iter().enumerate() {
            let name = format!("rank {rank} to server {shard}");
            // Both sides, so that this link's reader ends too.
            outgoing.push(Outgoing::new(stream, name, timeout, Shutdown::Both)?);
        }
        let (sender, incoming) = channel();
        let (spare, reading) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
        let reader = Reader {
            streams,
            slices: slices.clone(),
            wire,
            timeout,
            spare: Arc::clone(&spare),
            reading: Arc::clone(&reading),
        };
        super::shard::spawn(format!("rank {rank} from servers"), move || reader.run(&sender))?;
        Ok(Link {
            rank,
            servers,
            slices,
            wire,
            timeout,
            outgoing,
            incoming,
            spare,
            reading,
            pushes: 0,
            bytes_sent: 0,
            bytes_received: 0,
        })
    }

    /// Sends a push: each shard its part of `values`, and the head the report. Returns when it is on its way; the answer is
    /// fetched by [`answer`](Self::answer). `samples` are those of the worker's steps since it told
    /// something last; `wish` above 0 asks for all to stop.
    ///
    /// # Errors
    /// `Internal` for another number of values than the server has.
    pub fn push(
        &mut self,
        payload: Payload,
        values: &[f32],
        report: Report,
        samples: u64,
        wish: u64,
    ) -> Result<()> {
        let expected: usize = self.slices.iter().map(Slice::len).sum();
        if values.len() != expected {
            return Err(Error::Internal(format!(
                "a push of {} values to a server of {expected}",
                values.len()
            )));
        }
        let number = self.pushes;
        self.pushes += 1;
        // The head last: when it decides, the others' parts are usually there.
        let mut told = Some(Told { report, samples, wish });
        for (shard, (slice, outgoing)) in self.slices.iter().zip(&self.outgoing).enumerate().rev() {
            let body = frame::encode(self.wire, &slice.of(values), slice.trainable());
            self.bytes_sent += body.len() as u64;
            let told = if shard == 0 { told.take() } else { None };
            outgoing.send(&FromWorker::Push { number, payload, told }, Arc::new(body))?;
        }
        Ok(())
    }

    /// Sends a report without numbers; the answer is fetched by [`answer`](Self::answer).
    ///
    /// # Errors
    /// `Internal` if it cannot be written.
    pub fn report(&mut self, report: Report, samples: u64, wish: u64) -> Result<()> {
        self.outgoing[0].tell(&FromWorker::Report(Told { report, samples, wish }))
    }

    /// Asks for all to stop, between two reports.
    ///
    /// # Errors
    /// `Internal` if it cannot be written.
    pub fn wish(&mut self, wish: u64) -> Result<()> {
        self.outgoing[0].tell(&FromWorker::Wish { wish })
    }

    /// Tells the server that this worker has failed in a way that ends everybody's training.
    pub fn fail(&mut self, why: &str) {
        // The error itself is this rank's to report.
        let _ = self.outgoing[0].tell(&FromWorker::Failed { why: why.into() });
    }

    /// The next answer, if it is there or comes within `patience`.
    ///
    /// # Errors
    /// `PeerLost` if the server is gone, naming the rank of the shard.
    pub fn answer_within(&mut self, patience: Duration, operation: &str) -> Result<Option<Answer>> {
        match self.incoming.recv_timeout(patience) {
            Ok(Ok(Incoming::Answer(answer))) => {
                if answer.parameters.is_some() {
                    self.bytes_received += self.pull_bytes();
                }
                Ok(Some(answer))
            }
            Ok(Ok(Incoming::Finale(_))) => {
                Err(Error::Internal("the parameter server ended while a worker still trains".into()))
            }
            Ok(Err((shard, why))) => Err(self.lost(shard, why, operation)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(self.lost(0, "its connection has ended".into(), operation))
            }
        }
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// As [`answer_within`](Self::answer_within), and `Stalled` at the deadline.
    pub fn answer(&mut self, operation: &str) -> Result<Answer> {
        let deadline = Deadline::after(self.timeout);
        match self.answer_within(self.timeout, operation)? {
            Some(answer) => Ok(answer),
            None => Err(self.stalled(deadline, operation)),
        }
    }

    /// The error of a wait for the server whose deadline has passed.
    pub fn stalled(&self, deadline: Deadline, operation: &str) -> Error {
        let server = self.servers[self.reading.load(Ordering::Relaxed).min(self.servers.len() - 1)].clone();
        let wait = Wait { deadline, patience: Patience::Straggler, operation: &operation };
        stalled(self.rank, vec![server], &wait)
    }

    /// How long a single wait may last.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Says that this worker has done its last step.
    ///
    /// # Errors
    /// `Internal` if it cannot be written.
    pub fn goodbye(&mut self) -> Result<()> {
        self.outgoing[0].tell(&FromWorker::Goodbye)
    }

    /// Waits until all workers are done, and returns the result. `patience` is `None` for a rank that does not train: it waits
    /// as long as the others do.
    ///
    /// # Errors
    /// `PeerLost`, `Stalled`.
    pub fn finale(&mut self, patience: Option<Duration>) -> Result<Finale> {
        const OPERATION: &str = "the end of training at the parameter server";
        let deadline = Deadline::after(patience.unwrap_or(Duration::MAX));
        loop {
            let next = match patience {
                None => self.incoming.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(_) => self.incoming.recv_timeout(deadline.remaining()),
            };
            match next {
                Ok(Ok(Incoming::Finale(finale))) => return Ok(finale),
                // An answer that nobody needs any more.
                Ok(Ok(Incoming::Answer(_))) => {}
                Ok(Err((shard, why))) => return Err(self.lost(shard, why, OPERATION)),
                Err(RecvTimeoutError::Timeout) => return Err(self.stalled(deadline, OPERATION)),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.lost(0, "its connection has ended".into(), OPERATION));
                }
            }
        }
    }

    /// Gives the room of an answer's parameters back, to be used again.
    pub fn recycle(&mut self, parameters: Vec<f32>) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(parameters);
    }

    /// Bytes of one pull.
    pub fn pull_bytes(&self) -> u64 {
        let bytes = |slice: &Slice| frame::encoded_bytes(self.wire, slice.len(), slice.trainable()) as u64;
        self.slices.iter().map(bytes).sum()
    }

    /// Bytes of pushes.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    /// Bytes of pulls.
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received
    }

    fn lost(&self, shard: usize, what: String, operation: &str) -> Error {
        let peer = self.servers[shard.min(self.servers.len() - 1)].clone();
        Error::PeerLost { peer, operation: operation.into(), what }
    }
}

/// Reads from the head and, where it says so, from the other shards.
struct Reader {
    streams: Vec<TcpStream>,
    slices: Vec<Slice>,
    wire: WireFormat,
    timeout: Duration,
    spare: Arc<Mutex<Vec<Vec<f32>>>>,
    reading: Arc<AtomicUsize>,
}

impl Reader {
    fn run(mut self, answers: &Sender<Result<Incoming, Trouble>>) {
        // The head may be silent for long; a part that it has announced may not.
        for stream in &self.streams[1..] {
            let _ = stream.set_read_timeout(Some(self.timeout));
        }
        let mut body = Vec::new();
        loop {
            let incoming = self.read_one(&mut body);
            let is_last = !matches!(incoming, Ok(Incoming::Answer(_)));
            if answers.send(incoming).is_err() || is_last {
                return;
            }
        }
    }

    fn read_one(&mut self, body: &mut Vec<u8>) -> Result<Incoming, Trouble> {
        let trouble = |shard: usize| move |error: std::io::Error| (shard, describe(&error));
        self.reading.store(0, Ordering::Relaxed);
        let whole: usize = self.slices.iter().map(Slice::len).sum();
        let lengths = [self.part_bytes(0), 4 * whole];
        let message = frame::read_one_of(&mut self.streams[0], body, &lengths);
        match message.map_err(trouble(0))? {
            ToWorker::Reply {
                reply,
                reason,
                held_seconds,
                version,
                staleness,
                global_samples,
                with_parameters,
            } => {
                let mut parameters = None;
                if with_parameters {
                    let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
                    let mut values = spare.unwrap_or_default();
                    values.resize(whole, 0.0);
                    self.put(0, body, &mut values)?;
                    for shard in 1..self.slices.len() {
                        self.reading.store(shard, Ordering::Relaxed);
                        self.read_part(shard, version, body)?;
                        self.put(shard, body, &mut values)?;
                    }
                    parameters = Some(values);
                }
                let version = Versions(version);
                Ok(Incoming::Answer(Answer {
                    reply,
                    reason,
                    held_seconds,
                    version,
                    global_samples,
                    staleness,
                    parameters,
                }))
            }
            ToWorker::Finale { verdict } => {
                let mut parameters = vec![0.0; whole];
                if body.len() != 4 * whole {
                    return Err((0, "it sent a result of another length".into()));
                }
                WireFormat::F32.decode(body, &mut parameters);
                Ok(Incoming::Finale(Finale { verdict, parameters }))
            }
            ToWorker::Failed { why } => Err((0, why)),
            ToWorker::Parameters { .. } => Err((0, "it sent parameters that nobody asked for".into())),
        }
    }

    fn part_bytes(&self, shard: usize) -> usize {
        let slice = &self.slices[shard];
        frame::encoded_bytes(self.wire, slice.len(), slice.trainable())
    }

    fn read_part(&mut self, shard: usize, version: u64, body: &mut Vec<u8>) -> Result<(), Trouble> {
        let expected = self.part_bytes(shard);
        match frame::read(&mut self.streams[shard], body, expected) {
            Ok(ToWorker::Parameters { version: own }) if own == version => Ok(()),
            Ok(ToWorker::Parameters { version: own }) => {
                Err((shard, format!("it sent version {own} where the first shard sent version {version}")))
            }
            Ok(ToWorker::Failed { why }) => Err((shard, why)),
            Ok(_) => Err((shard, "it sent something else than its part of a pull".into())),
            Err(error) => Err((shard, describe(&error))),
        }
    }

    fn put(&self, shard: usize, body: &[u8], whole: &mut [f32]) -> Result<(), Trouble> {
        if body.len() != self.part_bytes(shard) {
            return Err((shard, "it announced parameters and sent none".into()));
        }
        let slice = &self.slices[shard];
        let mut part = vec![0.0; slice.len()];
        frame::decode(self.wire, body, &mut part, slice.trainable());
        slice.put(&part, whole);
        Ok(())
    }
}

fn describe(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "its connection was closed".into(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
            "it announced parameters and did not send them in time".into()
        }
        _ => error.to_string(),
    }
}
