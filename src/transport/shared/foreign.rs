//! Reading another process's private memory, where the kernel allows it. Only reading: a process that was stopped in the
//! middle of a copy and goes on after the others have given up then spoils nothing but its own memory.

use super::{Domain, Local, Scope, Session};
use crate::buffer::FlatBuffer;
use crate::error::{Error, Result};
use crate::transport::{Rank, Wait};
use std::io;
use std::time::Instant;

/// What a rank writes into its window so that the others can try to read from it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Trial {
    /// Where the memory to read begins, in the writer's process.
    address: u64,
    /// What is there first. Random, so that another process of the same number (in another name space) is not taken for it.
    word: u64,
}

/// Read on trial.
const TRIAL_BYTES: usize = 64 * 1024;
const TRIALS: usize = 5;

/// How many times as long as an ordinary copy a read may take. The form in windows that takes its place makes as many
/// ordinary copies, of which it fetches as many lines from another core's cache.
const LONGEST_READ: f64 = 1.0;

impl Session<'_> {
    /// Whether every rank can read every other's memory, and fast enough to pay: tried at the first call, at which all ranks
    /// take part. Uses the windows, and leaves them free.
    ///
    /// # Errors
    /// As [`meet`](Self::meet).
    pub(crate) fn reading_pays(&mut self, wait: &Wait<'_>) -> Result<bool> {
        if let Local { reading_pays: Some(known), .. } = *self.local {
            return Ok(known);
        }
        let domain = self.domain;
        let mut memory = FlatBuffer::<i64>::new(TRIAL_BYTES / size_of::<i64>());
        memory[0] = i64::from_ne_bytes(random()?);
        let trial = Trial { address: memory.as_mut_ptr().expose_provenance() as u64, word: memory[0] as u64 };
        // SAFETY: this rank's own windows, which nobody else uses between operations and before all ranks meet.
        unsafe { domain.window(domain.rank, 0).cast::<Trial>().write(trial) };
        self.meet(wait)?;
        let pays = (0..domain.size()).all(|rank| {
            // SAFETY: written before the rendezvous, and not again before the last one below.
            let trial = unsafe { domain.window(rank, 0).cast::<Trial>().read() };
            reads_fast(domain.peer(rank).pid, trial, &memory)
        });
        // SAFETY: as for the first window.
        unsafe { domain.window(domain.rank, 1).write(u8::from(pays)) };
        self.meet(wait)?;
        // SAFETY: written before the rendezvous; the next one keeps everybody from writing until all have read.
        let pays = (0..domain.size()).all(|rank| unsafe { domain.window(rank, 1).read() } == 1);
        // Only now may this rank free the memory that the others read.
        self.meet(wait)?;
        self.local.reading_pays = Some(pays);
        Ok(pays)
    }
}

/// Whether the memory of a trial can be read, in little more time than `own` memory of the same length can be copied.
fn reads_fast(pid: u32, trial: Trial, own: &FlatBuffer<i64>) -> bool {
    let mut found = FlatBuffer::<i64>::new(own.len());
    let (mut read_seconds, mut copy_seconds) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..TRIALS {
        let begin = Instant::now();
        found.copy_from_slice(std::hint::black_box(own));
        copy_seconds = copy_seconds.min(begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        // SAFETY: `found` has as many bytes.
        let read = unsafe { read_from(pid, trial.address, found.as_mut_ptr().cast(), TRIAL_BYTES) };
        read_seconds = read_seconds.min(begin.elapsed().as_secs_f64());
        if read.is_err() || found[0] as u64 != trial.word {
            return false;
        }
    }
    read_seconds <= LONGEST_READ * copy_seconds
}

impl Domain {
    /// Copies `bytes` from `address` in the process of `rank`.
    ///
    /// # Errors
    /// `PeerLost` if the process or its buffer is gone, `Environment` if the kernel refuses.
    ///
    /// # Safety
    /// `into` must be valid for writes of `bytes` bytes. What lies at the address is the other rank's affair: nonsense is
    /// read if it changes meanwhile.
    pub(crate) unsafe fn read_peer(
        &self,
        rank: Rank,
        address: u64,
        into: *mut u8,
        bytes: usize,
        wait: &Wait<'_>,
    ) -> Result<()> {
        debug_assert!(self.scope == Scope::Processes, "threads have no memory of their own");
        let peer = self.peer(rank);
        // SAFETY: the caller's promise is passed on.
        unsafe { read_from(peer.pid, address, into, bytes) }.map_err(|error| {
            let operation = wait.operation.to_string();
            let lost = match error.raw_os_error() {
                Some(libc::ESRCH) => Some("its process no longer exists"),
                // A rank keeps its buffer until all have read it, unless it has given up.
                Some(libc::EFAULT) => Some("it gave up the operation, and its buffer is gone"),
                _ => None,
            };
            if let Some(what) = lost {
                return Error::PeerLost { peer: peer.clone(), operation, what: what.into() };
            }
            Error::Environment(format!(
                "{operation}: rank {} could not read {bytes} bytes of the memory of {peer}: {error}; allocate \
                 the buffers with `Communicator::alloc`, which needs no such permission",
                self.rank
            ))
        })
    }
}

fn random() -> Result<[u8; 8]> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::Environment(format!("no random numbers: {e}")))?;
    Ok(bytes)
}

/// `process_vm_readv`, until everything is read.
///
/// # Safety
/// `into` must be valid for writes of `bytes` bytes.
unsafe fn read_from(pid: u32, address: u64, into: *mut u8, bytes: usize) -> io::Result<()> {
    let mut done = 0;
    while done < bytes {
        let local = libc::iovec { iov_base: into.wrapping_add(done).cast(), iov_len: bytes - done };
        let remote = libc::iovec {
            iov_base: std::ptr::without_provenance_mut(address as usize + done),
            iov_len: bytes - done,
        };
        // SAFETY: the local range is the caller's; the kernel checks the remote one.
        let read = unsafe { libc::process_vm_readv(pid as libc::pid_t, &local, 1, &remote, 1, 0) };
        match read {
            1.. => done += read as usize,
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}
