//! Transport `shm`: the ranks are processes of one host, and share memory.
//!
//! Collectives called `native` work directly on that memory ([`Domain`]). Messages go through a ring for each ordered pair
//! of ranks. The processes were started by an MPI launcher ([`Shm::over`]), whose MPI then only begins and ends the job, or
//! by esync itself ([`Shm::join`]).

mod messages;
mod ring;

use super::shared::{Opened, Segment};
use super::{Deadline, Domain, Patience, Peer, Rank, Tag, Ticket, Transport, Wait};
use crate::error::{Error, Result};
use messages::Messages;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One process's handle on all processes of the job.
pub struct Shm {
    messages: Mutex<Messages>,
    domain: Domain,
    underneath: Option<Arc<dyn Transport>>,
}

/// All processes of a job start together.
const LONGEST_START: Duration = Duration::from_secs(60);

/// A rank that only lost another one lets that one speak first.
const AFTER_YOU: Duration = Duration::from_millis(250);

impl Shm {
    /// Shares memory between the ranks of another transport, which must be processes of one host. All ranks call it. The
    /// other transport ends the job when a rank [aborts](Transport::abort).
    ///
    /// # Errors
    /// `Usage` if the ranks are on several hosts, `Environment` or `File` if the system does not let them share memory. All
    /// ranks fail alike.
    pub fn over(underneath: Arc<dyn Transport>) -> Result<Shm> {
        let (rank, size) = (underneath.rank(), underneath.size());
        let host = |rank: Rank| &underneath.peer(rank).host;
        if let Some(other) = (0..size).find(|&rank| host(rank) != host(0)) {
            return Err(Error::Usage(format!(
                "--transport shm is for ranks of one host, but {} is not on the host of {}: use --transport mpi",
                underneath.peer(other),
                underneath.peer(0)
            )));
        }
        // Names in /dev/shm only where processes may not open each other's files.
        let opened = match exchange(&*underneath, Segment::anonymous)? {
            Ok(opened) => opened,
            Err(_) => exchange(&*underneath, Segment::named)??,
        };
        let domain = opened.meet(rank, size, LONGEST_START)?;
        Ok(Shm::new(domain, Some(underneath)))
    }

    /// Joins the segment at `segment` as one of `size` processes that esync has started.
    ///
    /// # Errors
    /// `File` or `Environment` if it cannot be opened, `Stalled` if the others do not come.
    pub fn join(segment: &Path, rank: Rank, size: usize) -> Result<Shm> {
        Ok(Shm::new(Opened::open(segment, size)?.meet(rank, size, LONGEST_START)?, None))
    }

    fn new(domain: Domain, underneath: Option<Arc<dyn Transport>>) -> Shm {
        // SAFETY: both go together, the messages first; nobody else uses this rank's ends of the rings.
        let messages = Mutex::new(unsafe { Messages::new(&domain) });
        Shm { messages, domain, underneath }
    }

    fn messages(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves what can be moved, and takes the tickets that are complete; says whether any is left.
    fn collect(
        &self,
        messages: &mut Messages,
        tickets: &mut [Option<Ticket>],
        wait: &Wait<'_>,
    ) -> Result<bool> {
        messages.progress(&self.domain);
        messages.collect(tickets).map_err(|(peer, sent, expected)| Error::Mismatch {
            operation: wait.operation.to_string(),
            what: format!(
                "{sent} bytes were sent and {expected} bytes expected between ranks {} and {peer}",
                self.rank()
            ),
        })
    }

    fn post(&self, peer: Rank, tag: Tag, start: *mut u8, len: usize, is_send: bool) -> Result<Ticket> {
        let mut messages = self.messages();
        if messages.is_broken {
            return Err(Error::Internal("a transport that has failed was used again".into()));
        }
        let ticket = messages.post(peer, tag, start, len, is_send);
        if is_send {
            messages.progress_with(peer, &self.domain);
        }
        Ok(ticket)
    }
}

/// Rank 0 makes a segment, all open it, and all know whether all could: then it is `Ok(Ok(_))`.
fn exchange(
    transport: &dyn Transport,
    make: impl FnOnce(usize) -> Result<Segment>,
) -> Result<Result<Opened>> {
    const RECORD: usize = 4096;
    let (rank, size) = (transport.rank(), transport.size());
    let others = || (0..size).filter(|&other| other != 0);
    let made = (rank == 0).then(|| make(size));
    let mut record = [0u8; RECORD];
    if let Some(Ok(segment)) = &made {
        let path = segment.path().as_os_str().as_encoded_bytes();
        record[..path.len().min(RECORD)].copy_from_slice(&path[..path.len().min(RECORD)]);
    }
    for other in others().filter(|&other| rank == 0 || rank == other) {
        pass(transport, rank == 0, if rank == 0 { other } else { 0 }, &mut record)?;
    }
    let opened = match made {
        Some(Err(error)) => Err(error),
        _ => {
            let end = record.iter().position(|&byte| byte == 0).unwrap_or(RECORD);
            match std::str::from_utf8(&record[..end]) {
                Ok(path) if !path.is_empty() => Opened::open(&PathBuf::from(path), size),
                _ => Err(Error::Environment("rank 0 could not make shared memory".into())),
            }
        }
    };
    // Rank 0 hears from all how it went, and tells all.
    let mut went = [u8::from(opened.is_ok())];
    if rank == 0 {
        let mut all = went[0];
        for other in others() {
            pass(transport, false, other, &mut went)?;
            all &= went[0];
        }
        went[0] = all;
        for other in others() {
            pass(transport, true, other, &mut went)?;
        }
    } else {
        pass(transport, true, 0, &mut went)?;
        pass(transport, false, 0, &mut went)?;
    }
    Ok(match (opened, went[0]) {
        (Ok(_), 0) => Err(Error::Environment("another rank cannot open this job's shared memory".into())),
        (opened, _) => opened,
    })
}

/// One message.
fn pass(transport: &dyn Transport, sends: bool, peer: Rank, bytes: &mut [u8]) -> Result<()> {
    let wait = Wait {
        deadline: Deadline::after(LONGEST_START),
        patience: Patience::Straggler,
        operation: &"the start over shared memory",
    };
    // SAFETY: the bytes outlive the wait; if it fails and the transport cannot give them back, the job is ended.
    let ticket = unsafe {
        match sends {
            true => transport.post_send(peer, Tag::ENTRY, bytes.as_ptr(), bytes.len())?,
            false => transport.post_recv(peer, Tag::ENTRY, bytes.as_mut_ptr(), bytes.len())?,
        }
    };
    let mut tickets = [Some(ticket)];
    transport.wait(&mut tickets, &wait).inspect_err(|error| {
        if !transport.abandon(&mut tickets) {
            transport.abort(error);
        }
    })
}

impl Transport for Shm {
    fn name(&self) -> &'static str {
        "shm"
    }

    fn rank(&self) -> Rank {
        self.domain.rank()
    }

    fn size(&self) -> usize {
        self.domain.size()
    }

    fn peer(&self, rank: Rank) -> &Peer {
        self.domain.peer(rank)
    }

    fn reserve(&self, messages: usize) {
        self.messages().reserve(messages + 1);
    }

    unsafe fn post_send(&self, to: Rank, tag: Tag, bytes: *const u8, len: usize) -> Result<Ticket> {
        self.post(to, tag, bytes.cast_mut(), len, true)
    }

    unsafe fn post_recv(&self, from: Rank, tag: Tag, into: *mut u8, len: usize) -> Result<Ticket> {
        self.post(from, tag, into, len, false)
    }

    fn wait(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<()> {
        let mut messages = self.messages();
        let mut lost = Ok(());
        loop {
            let seen = self.domain.doorbell();
            if !self.collect(&mut messages, tickets, wait)? {
                return Ok(());
            }
            // What a peer sent before it left counts.
            lost?;
            lost = self.domain.wait_for_doorbell(seen, |rank| messages.missing[rank], wait);
        }
    }

    fn poll(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<bool> {
        Ok(!self.collect(&mut self.messages(), tickets, wait)?)
    }

    fn abandon(&self, tickets: &mut [Option<Ticket>]) -> bool {
        self.messages().abandon(tickets);
        true
    }

    fn shared(&self) -> Option<&Domain> {
        Some(&self.domain)
    }

    fn poison(&self, why: &str) {
        self.domain.poison(why);
        if let Some(underneath) = &self.underneath {
            underneath.poison(why);
        }
    }

    fn abort(&self, error: &Error) -> ! {
        if let Some(underneath) = &self.underneath {
            underneath.abort(error);
        }
        if error.is_secondary() {
            std::thread::sleep(AFTER_YOU);
        }
        if self.domain.may_speak() {
            eprintln!("esync: {}: {error}", self.peer(self.rank()));
        }
        std::process::exit(error.exit_code())
    }
}
