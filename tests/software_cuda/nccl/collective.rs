//! Native collectives: every rank talks with every other, and sums go from the first rank to the last.

use super::communicator::{Communicator, Stop};
use super::exchange::Message;
use super::numbers;
use cudarc::nccl::sys::{ncclDataType_t, ncclRedOp_t};
use std::ops::Range;

/// Addresses are device pointers; `count` is in elements, as NCCL's.
#[derive(Debug, Clone, Copy)]
pub(super) enum Collective {
    AllReduce { from: u64, to: u64, count: usize, of: ncclDataType_t, with: ncclRedOp_t },
    ReduceScatter { from: u64, to: u64, count: usize, of: ncclDataType_t, with: ncclRedOp_t },
    Reduce { from: u64, to: u64, count: usize, of: ncclDataType_t, with: ncclRedOp_t, root: usize },
    AllGather { from: u64, to: u64, bytes: usize },
    Broadcast { from: u64, to: u64, bytes: usize, root: usize },
}

/// A rank's part in a reduction: the bytes of each rank's share, and who gets which.
struct Reduction<'a> {
    communicator: &'a Communicator,
    from: *mut u8,
    shares: Vec<Range<usize>>,
    of: ncclDataType_t,
    with: ncclRedOp_t,
    kind: u64,
}

impl Reduction<'_> {
    /// This rank's share of the result.
    fn run(&self) -> Result<Vec<u8>, Stop> {
        let Communicator { rank, ranks, .. } = *self.communicator;
        let mine = &self.shares[rank];
        let mut contributions = vec![vec![0_u8; mine.len()]; ranks];
        let mut messages = Vec::new();
        for (peer, contribution) in contributions.iter_mut().enumerate() {
            let theirs = &self.shares[peer];
            if peer == rank {
                if !mine.is_empty() {
                    // SAFETY: the share lies in the buffer.
                    let own = unsafe { std::slice::from_raw_parts(self.from.add(mine.start), mine.len()) };
                    contribution.copy_from_slice(own);
                }
                continue;
            }
            let storage = self.from.wrapping_add(theirs.start);
            messages.push(Message { peer, sends: true, storage, bytes: theirs.len(), kind: self.kind });
            let (storage, bytes) = (contribution.as_mut_ptr(), contribution.len());
            messages.push(Message { peer, sends: false, storage, bytes, kind: self.kind });
        }
        self.communicator.exchange(&messages)?;
        let mut contributions = contributions.into_iter();
        let mut result = contributions.next().unwrap_or_default();
        for contribution in contributions {
            numbers::combine(self.of, self.with, &mut result, &contribution);
        }
        numbers::finish(self.of, self.with, &mut result, ranks);
        Ok(result)
    }
}

/// # Safety
///
/// There are as many bytes at `to`, unless there are none.
unsafe fn store(to: *mut u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        // SAFETY: the caller's promise.
        unsafe { to.copy_from(bytes.as_ptr(), bytes.len()) };
    }
}

impl Collective {
    /// What both ends of a message must agree in.
    fn kind(&self) -> u64 {
        let (number, of, with, root) = match *self {
            Self::AllReduce { of, with, .. } => (1, of as u64, with as u64, 0),
            Self::ReduceScatter { of, with, .. } => (2, of as u64, with as u64, 0),
            Self::Reduce { of, with, root, .. } => (3, of as u64, with as u64, root),
            Self::AllGather { .. } => (4, 0, 0, 0),
            Self::Broadcast { root, .. } => (5, 0, 0, root),
        };
        number | of << 8 | with << 16 | (root as u64) << 24
    }

    pub(super) fn run(&self, communicator: &Communicator) -> Result<(), Stop> {
        let Communicator { rank, ranks, .. } = *communicator;
        let kind = self.kind();
        match *self {
            Self::AllReduce { from, to, count, of, with } => {
                let element = numbers::bytes(of).unwrap_or(0);
                let from = communicator.storage(from, count * element)?;
                let to = communicator.storage(to, count * element)?;
                let share = |rank: usize| count * rank / ranks * element;
                let shares: Vec<_> = (0..ranks).map(|rank| share(rank)..share(rank + 1)).collect();
                let mine = shares[rank].clone();
                let result =
                    Reduction { communicator, from, shares: shares.clone(), of, with, kind }.run()?;
                // SAFETY: this rank's share of the result's place.
                unsafe { store(to.wrapping_add(mine.start), &result) };
                let mut messages = Vec::new();
                for (peer, theirs) in shares.into_iter().enumerate().filter(|(peer, _)| *peer != rank) {
                    let kind = kind | 1 << 63;
                    let own = to.wrapping_add(mine.start);
                    messages.push(Message { peer, sends: true, storage: own, bytes: mine.len(), kind });
                    let place = to.wrapping_add(theirs.start);
                    messages.push(Message { peer, sends: false, storage: place, bytes: theirs.len(), kind });
                }
                communicator.exchange(&messages)
            }
            Self::ReduceScatter { from, to, count, of, with } => {
                let bytes = count * numbers::bytes(of).unwrap_or(0);
                let from = communicator.storage(from, bytes * ranks)?;
                let to = communicator.storage(to, bytes)?;
                let shares = (0..ranks).map(|rank| rank * bytes..(rank + 1) * bytes).collect();
                let result = Reduction { communicator, from, shares, of, with, kind }.run()?;
                // SAFETY: `bytes` bytes.
                unsafe { store(to, &result) };
                Ok(())
            }
            Self::Reduce { from, to, count, of, with, root } => {
                let bytes = count * numbers::bytes(of).unwrap_or(0);
                let from = communicator.storage(from, bytes)?;
                let shares = (0..ranks).map(|rank| if rank == root { 0..bytes } else { 0..0 }).collect();
                let result = Reduction { communicator, from, shares, of, with, kind }.run()?;
                if rank == root {
                    // SAFETY: `bytes` bytes.
                    unsafe { store(communicator.storage(to, bytes)?, &result) };
                }
                Ok(())
            }
            Self::AllGather { from, to, bytes } => {
                let from = communicator.storage(from, bytes)?;
                let to = communicator.storage(to, bytes * ranks)?;
                let place = |rank: usize| to.wrapping_add(rank * bytes);
                let mut messages = Vec::new();
                for peer in (0..ranks).filter(|&peer| peer != rank) {
                    messages.push(Message { peer, sends: true, storage: from, bytes, kind });
                    messages.push(Message { peer, sends: false, storage: place(peer), bytes, kind });
                }
                communicator.exchange(&messages)?;
                if bytes > 0 {
                    // SAFETY: `bytes` bytes each; they may be the same.
                    unsafe { std::ptr::copy(from, place(rank), bytes) };
                }
                Ok(())
            }
            Self::Broadcast { from, to, bytes, root } => {
                let to = communicator.storage(to, bytes)?;
                if rank != root {
                    return communicator.exchange(&[Message {
                        peer: root,
                        sends: false,
                        storage: to,
                        bytes,
                        kind,
                    }]);
                }
                let from = communicator.storage(from, bytes)?;
                let peers = (0..ranks).filter(|&peer| peer != rank);
                let messages: Vec<_> =
                    peers.map(|peer| Message { peer, sends: true, storage: from, bytes, kind }).collect();
                communicator.exchange(&messages)?;
                if bytes > 0 {
                    // SAFETY: `bytes` bytes each; they may be the same.
                    unsafe { std::ptr::copy(from, to, bytes) };
                }
                Ok(())
            }
        }
    }
}
