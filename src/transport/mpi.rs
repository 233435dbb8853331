//! Transport `mpi`: the ranks are processes that an MPI launcher started.
//!
//! Messages are `MPI_Isend` and `MPI_Irecv` on a communicator of our own, whose errors are returned and become this
//! library's errors. MPI cannot block without spinning, so a wait tests, yields, and then sleeps with a growing pause.
//!
//! A transfer that timed out cannot be taken back: its buffers may be in use until the process ends, and the process
//! should end by [`abort`].

mod cores;
mod native;
mod speaker;

use super::deadline::Backoff;
use super::launcher::announced_ranks;
use super::peer::ProcessState;
use super::{Native, Peer, Rank, Tag, Ticket, Transport, Wait, stalled};
use crate::error::{Error, Result};
use mpi::ffi;
use mpi::topology::{AsCommunicator, Communicator, SimpleCommunicator};
use mpi::traits::{AsRaw, CommunicatorCollectives};
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One process's handle on all processes of the job.
pub struct Mpi {
    peers: Vec<Peer>,
    rank: Rank,
    requests: Mutex<Requests>,
    native: native::NativeMpi,
    speaker: speaker::Speaker,
    /// Each rank of this host has a core of its own.
    cores_suffice: bool,
    communicator: SimpleCommunicator,
    // Dropped last: ends MPI.
    _universe: mpi::environment::Universe,
}

/// The requests in flight, by ticket.
#[derive(Default)]
struct Requests {
    slots: Vec<Request>,
    free: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Request {
    raw: ffi::MPI_Request,
    peer: Rank,
    /// The length that must arrive; `None` for a send.
    expected: Option<usize>,
}

// SAFETY: MPI was initialised for use from several threads, one at a time at least, and every call after initialisation
// happens under the lock around `requests`.
unsafe impl Send for Mpi {}
// SAFETY: as above.
unsafe impl Sync for Mpi {}

/// Ends all processes of the job with this exit code, as far as MPI can.
pub fn abort(code: i32) -> ! {
    // SAFETY: MPI_Abort may be called at any time between initialisation and finalisation, and both checks are always
    // legal.
    unsafe {
        let (mut initialised, mut finalised) = (0, 0);
        ffi::MPI_Initialized(&mut initialised);
        ffi::MPI_Finalized(&mut finalised);
        if initialised != 0 && finalised == 0 {
            ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code);
        }
    }
    std::process::exit(code)
}

impl Mpi {
    /// Starts MPI. To be called once in a process, early.
    ///
    /// # Errors
    /// `Environment` if MPI was started before, grants too little, or does not see the ranks that the launcher announced
    /// (the program is linked to another MPI than the launcher's).
    pub fn initialize() -> Result<Mpi> {
        // MPI_Init waits for all ranks and knows no deadline.
        let _watchdog = Watchdog::start();
        let (universe, threading) = mpi::initialize_with_threading(mpi::Threading::Multiple)
            .ok_or_else(|| Error::Environment("MPI was initialised before in this process".into()))?;
        if threading < mpi::Threading::Serialized {
            return Err(Error::Environment(format!(
                "this MPI grants only {threading:?}; esync needs MPI_THREAD_SERIALIZED or more"
            )));
        }
        let communicator = universe.world().duplicate();
        let size = communicator.size() as usize;
        if let Some((announced, launcher)) = announced_ranks()
            && announced != size
        {
            let library = mpi::environment::library_version().unwrap_or_default();
            let library = library.split([',', '\n']).next().unwrap_or_default();
            return Err(Error::Environment(format!(
                "started by {launcher} with {announced} ranks, but this program is linked to {library} and sees {size}: use \
                 the launcher of that MPI (`launch/train` does), or rebuild with the launcher's MPI"
            )));
        }
        // SAFETY: the communicator is valid.
        let code = unsafe { ffi::MPI_Comm_set_errhandler(communicator.as_raw(), ffi::RSMPI_ERRORS_RETURN) };
        check(code, "MPI_Comm_set_errhandler")?;
        let rank = communicator.rank() as Rank;
        let peers = gather_peers(&communicator, rank, size);
        let native = native::NativeMpi::new(&communicator)?;
        let speaker = speaker::Speaker::establish(&communicator, &peers, rank);
        let cores_suffice = cores::suffice(&communicator, &peers, rank);
        Ok(Mpi {
            peers,
            rank,
            requests: Mutex::default(),
            native,
            speaker,
            cores_suffice,
            communicator,
            _universe: universe,
        })
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the transfer is complete; frees its slot if so.
    fn test(&self, ticket: &Ticket, wait: &Wait<'_>) -> Result<bool> {
        let mut requests = self.requests();
        let request = &mut requests.slots[ticket.0 as usize];
        let (mut done, mut status) = (0, MaybeUninit::uninit());
        // SAFETY: the request is one that `post_send` or `post_recv` started and that has not completed before.
        let code = unsafe { ffi::MPI_Test(&mut request.raw, &mut done, status.as_mut_ptr()) };
        let request = *request;
        let mismatch = |what: String| Error::Mismatch {
            operation: wait.operation.to_string(),
            what: format!("rank {}, message of rank {}: {what}", self.rank, request.peer),
        };
        if code != ffi::MPI_SUCCESS as i32 {
            return Err(mismatch(format!(
                "{} ({} bytes were expected)",
                error_text(code),
                request.expected.unwrap_or_default()
            )));
        }
        if done == 0 {
            return Ok(false);
        }
        requests.free.push(ticket.0);
        if let Some(expected) = request.expected {
            let mut count = 0;
            // SAFETY: a completed receive has filled its status.
            unsafe { ffi::MPI_Get_count(status.as_ptr(), ffi::RSMPI_UINT8_T, &mut count) };
            if count as usize != expected {
                return Err(mismatch(format!("{count} bytes were sent and {expected} expected")));
            }
        }
        Ok(true)
    }

    /// Who has not arrived. A ticket that nobody has tested yet may be complete, so each is looked at.
    fn pending_peers(&self, tickets: &[Option<Ticket>]) -> Vec<Peer> {
        let requests = self.requests();
        let is_pending = |request: &Request| {
            let mut done = 0;
            // SAFETY: the request belongs to a ticket that was not yet completed; this looks at it and leaves it as it is.
            let code =
                unsafe { ffi::MPI_Request_get_status(request.raw, &mut done, ffi::RSMPI_STATUS_IGNORE) };
            code != ffi::MPI_SUCCESS as i32 || done == 0
        };
        let left = tickets.iter().flatten().map(|ticket| &requests.slots[ticket.0 as usize]);
        let mut ranks: Vec<Rank> =
            left.filter(|request| is_pending(request)).map(|request| request.peer).collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks.into_iter().map(|rank| self.peers[rank].clone()).collect()
    }
}

impl Requests {
    fn keep(&mut self, raw: ffi::MPI_Request, peer: Rank, expected: Option<usize>) -> Ticket {
        let request = Request { raw, peer, expected };
        Ticket(match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = request;
                slot
            }
            None => {
                self.slots.push(request);
                self.slots.len() as u32 - 1
            }
        })
    }
}

/// Ends the process if start-up takes longer than [`LONGEST_START`]. Dropping it calls it off.
struct Watchdog {
    _called_off: std::sync::mpsc::Sender<()>,
}

/// All processes of a job start together; slow file systems take seconds, not minutes.
const LONGEST_START: Duration = Duration::from_secs(120);

impl Watchdog {
    fn start() -> Self {
        let (sender, receiver) = std::sync::mpsc::channel();
        let watch = move || {
            if receiver.recv_timeout(LONGEST_START) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let rank = super::announced_rank();
                eprintln!(
                    "esync: rank {rank}: MPI has not started after {} s: a process of this job is stopped or cannot be \
                     reached; look at all hosts, and start again",
                    LONGEST_START.as_secs()
                );
                std::process::exit(6);
            }
        };
        // Without the thread there is only no limit.
        let _ = std::thread::Builder::new().name("start-up watchdog".into()).spawn(watch);
        Watchdog { _called_off: sender }
    }
}

/// Passes the time of a wait that MPI cannot block in; ends it at the deadline, or when a peer's process is gone.
struct Vigil {
    backoff: Backoff,
    looked_for_the_dead: Instant,
}

impl Vigil {
    const BETWEEN_LOOKS: Duration = Duration::from_millis(250);

    fn new(wait: &Wait<'_>, transport: &Mpi) -> Self {
        let backoff = Backoff::new(wait.patience, transport.size(), transport.cores_suffice);
        Vigil { backoff, looked_for_the_dead: Instant::now() }
    }

    fn pass_time(
        &mut self,
        transport: &Mpi,
        wait: &Wait<'_>,
        missing: impl FnOnce() -> Vec<Peer>,
    ) -> Result<()> {
        self.backoff.pass_time();
        if !self.backoff.should_look_at_the_clock() {
            return Ok(());
        }
        if wait.deadline.has_passed() {
            // Whoever is missing may itself wait for a process that somebody stopped.
            let mut missing = missing();
            if missing.is_empty() {
                // The last one came while we looked.
                return Ok(());
            }
            let is_stopped = |peer: &Peer| peer.process_state() == ProcessState::Stopped;
            if !missing.iter().any(is_stopped) {
                missing.extend(transport.peers.iter().filter(|peer| is_stopped(peer)).cloned());
            }
            return Err(stalled(transport.rank, missing, wait));
        }
        if self.looked_for_the_dead.elapsed() > Self::BETWEEN_LOOKS {
            self.looked_for_the_dead = Instant::now();
            let gone = missing().into_iter().find(|peer| peer.process_state() == ProcessState::Gone);
            if let Some(peer) = gone {
                return Err(Error::PeerLost {
                    peer,
                    operation: wait.operation.to_string(),
                    what: "its process no longer exists".into(),
                });
            }
        }
        Ok(())
    }
}

impl Transport for Mpi {
    fn name(&self) -> &'static str {
        "mpi"
    }

    fn rank(&self) -> Rank {
        self.rank
    }

    fn size(&self) -> usize {
        self.peers.len()
    }

    fn peer(&self, rank: Rank) -> &Peer {
        &self.peers[rank]
    }

    unsafe fn post_send(&self, to: Rank, tag: Tag, bytes: *const u8, len: usize) -> Result<Ticket> {
        let count = message_count(len)?;
        let mut requests = self.requests();
        let mut raw = MaybeUninit::uninit();
        // SAFETY: the caller keeps the bytes valid; rank and tag are in range.
        let code = unsafe {
            ffi::MPI_Isend(
                bytes.cast(),
                count,
                ffi::RSMPI_UINT8_T,
                to as i32,
                i32::from(tag.0),
                self.communicator.as_raw(),
                raw.as_mut_ptr(),
            )
        };
        check(code, "MPI_Isend")?;
        // SAFETY: a successful call has made the request.
        Ok(requests.keep(unsafe { raw.assume_init() }, to, None))
    }

    unsafe fn post_recv(&self, from: Rank, tag: Tag, into: *mut u8, len: usize) -> Result<Ticket> {
        let count = message_count(len)?;
        let mut requests = self.requests();
        let mut raw = MaybeUninit::uninit();
        // SAFETY: the caller keeps the bytes valid; rank and tag are in range.
        let code = unsafe {
            ffi::MPI_Irecv(
                into.cast(),
                count,
                ffi::RSMPI_UINT8_T,
                from as i32,
                i32::from(tag.0),
                self.communicator.as_raw(),
                raw.as_mut_ptr(),
            )
        };
        check(code, "MPI_Irecv")?;
        // SAFETY: a successful call has made the request.
        Ok(requests.keep(unsafe { raw.assume_init() }, from, Some(len)))
    }

    fn wait(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<()> {
        // Every test makes progress on all transfers, so looking at the first one that is left is enough.
        for index in 0..tickets.len() {
            let mut vigil = Vigil::new(wait, self);
            while let Some(ticket) = &tickets[index] {
                if self.test(ticket, wait)? {
                    tickets[index] = None;
                } else {
                    vigil.pass_time(self, wait, || self.pending_peers(&tickets[index..]))?;
                }
            }
        }
        Ok(())
    }

    fn poll(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<bool> {
        let mut is_left = false;
        for entry in tickets {
            match entry {
                Some(ticket) if self.test(ticket, wait)? => *entry = None,
                Some(_) => is_left = true,
                None => {}
            }
        }
        Ok(!is_left)
    }

    fn abandon(&self, tickets: &mut [Option<Ticket>]) -> bool {
        let none = tickets.iter().all(Option::is_none);
        tickets.fill_with(|| None);
        none
    }

    fn native(&self) -> Option<&dyn Native> {
        Some(self)
    }

    fn poison(&self, _why: &str) {
        // MPI has no word for it: the program ends the job with `abort`, and the launcher tells the others.
    }

    fn abort(&self, error: &Error) -> ! {
        if self.speaker.may_speak(error) {
            eprintln!("esync: {}: {error}", self.peers[self.rank]);
        }
        abort(error.exit_code())
    }
}

fn message_count(len: usize) -> Result<i32> {
    i32::try_from(len)
        .map_err(|_| Error::Internal(format!("a message of {len} bytes was not cut into segments")))
}

fn check(code: i32, call: &str) -> Result<()> {
    if code == ffi::MPI_SUCCESS as i32 {
        return Ok(());
    }
    Err(Error::Environment(format!("{call} failed: {}", error_text(code))))
}

fn error_text(code: i32) -> String {
    let mut text = vec![0u8; 1024];
    let mut len = 0;
    // SAFETY: the buffer is longer than MPI_MAX_ERROR_STRING of the known MPIs (256 to 1024).
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut len) };
    text.truncate(len.max(0) as usize);
    String::from_utf8_lossy(&text).into_owned()
}

/// Everybody's host and process, at start.
fn gather_peers(communicator: &SimpleCommunicator, rank: Rank, size: usize) -> Vec<Peer> {
    const RECORD: usize = 256;
    let own = Peer::this_process(rank);
    let mut record = [0u8; RECORD];
    record[..4].copy_from_slice(&own.pid.to_le_bytes());
    let host = own.host.as_bytes();
    let host = &host[..host.len().min(RECORD - 4)];
    record[4..4 + host.len()].copy_from_slice(host);
    let mut records = vec![0u8; RECORD * size];
    communicator.as_communicator().all_gather_into(&record[..], &mut records[..]);
    let peer = |(rank, record): (Rank, &[u8])| {
        let pid = u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
        let end = record[4..].iter().position(|&b| b == 0).map_or(RECORD, |end| end + 4);
        Peer { rank, host: String::from_utf8_lossy(&record[4..end]).into_owned(), pid }
    };
    records.chunks(RECORD).enumerate().map(peer).collect()
}
