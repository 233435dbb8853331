//! Reading another process's private memory, where the kernel allows it. Only reading: a process that was stopped in the
//! middle of a copy and goes on after the others have given up then spoils nothing but its own memory.

use super::{Domain, Local, Scope, Session};
use crate::error::{Error, Result};
use crate::transport::{Rank, Wait};
use std::io;

/// What a rank writes into its window so that the others can try to read from it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Trial {
    /// Where the word is, in the writer's process.
    address: u64,
    /// What is there. Random, so that another process of the same number (in another name space) is not taken for it.
    word: u64,
}

impl Session<'_> {
    /// Whether every rank can read every other's memory: tried at the first call, at which all ranks take part. Uses the
    /// windows, and leaves them free.
    ///
    /// # Errors
    /// As [`meet`](Self::meet).
    pub(crate) fn can_read_peers(&mut self, wait: &Wait<'_>) -> Result<bool> {
        if let Local { can_read_peers: Some(known), .. } = *self.local {
            return Ok(known);
        }
        let domain = self.domain;
        let word = Box::new(u64::from_ne_bytes(random()?));
        let trial = Trial { address: std::ptr::from_ref(&*word).addr() as u64, word: *word };
        // SAFETY: this rank's own windows, which nobody else uses between operations and before all ranks meet.
        unsafe { domain.window(domain.rank, 0).cast::<Trial>().write(trial) };
        self.meet(wait)?;
        let reads = (0..domain.size()).all(|rank| {
            // SAFETY: written before the rendezvous, and not again before the last one below.
            let trial = unsafe { domain.window(rank, 0).cast::<Trial>().read() };
            let mut found = [0u8; size_of::<u64>()];
            // SAFETY: `found` has the bytes that are asked for.
            let read =
                unsafe { read_from(domain.peer(rank).pid, trial.address, found.as_mut_ptr(), found.len()) };
            read.is_ok() && u64::from_ne_bytes(found) == trial.word
        });
        // SAFETY: as for the first window.
        unsafe { domain.window(domain.rank, 1).write(u8::from(reads)) };
        self.meet(wait)?;
        // SAFETY: written before the rendezvous; the next one keeps everybody from writing until all have read.
        let all_read = (0..domain.size()).all(|rank| unsafe { domain.window(rank, 1).read() } == 1);
        self.meet(wait)?;
        self.local.can_read_peers = Some(all_read);
        Ok(all_read)
    }
}

impl Domain {
    /// Copies `bytes` from `address` in the process of `rank`.
    ///
    /// # Errors
    /// `PeerLost` if the process is gone, `Environment` if the kernel refuses.
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
            if error.raw_os_error() == Some(libc::ESRCH) {
                return Error::PeerLost {
                    peer: peer.clone(),
                    operation,
                    what: "its process no longer exists".into(),
                };
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
