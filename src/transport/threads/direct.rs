//! `native` on threads: the direct sum. Each rank reduces one slice over all ranks' buffers, left to right by rank, and
//! stores the result to all of them (two rendezvous, every byte read once and written once).

use super::{SPINS, Threads, World, lock};
use crate::collective::part;
use crate::error::{Error, Result};
use crate::reduce::{ElementType, Operator, Target, reduce_into, scale_for_average};
use crate::transport::{Native, Rank, Transport, Wait, stalled};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

pub(super) struct DirectSum {
    buffers: Vec<AtomicPtr<u8>>,
    arrived: Mutex<Vec<bool>>,
    generation: AtomicU64,
    opened: Condvar,
    /// Ranks that are writing to others' buffers right now; a rank that gives up waits for them.
    writers: AtomicUsize,
    broken: AtomicBool,
}

/// The working set of one block stays in the first cache.
const BLOCK_BYTES: usize = 16 * 1024;

impl DirectSum {
    pub(super) fn new(size: usize) -> Self {
        DirectSum {
            buffers: (0..size).map(|_| AtomicPtr::new(std::ptr::null_mut())).collect(),
            arrived: Mutex::new(vec![false; size]),
            generation: AtomicU64::new(0),
            opened: Condvar::new(),
            writers: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        }
    }

    pub(super) fn wake(&self) {
        let _arrived = lock(&self.arrived);
        self.opened.notify_all();
    }

    /// Waits until all ranks are here.
    fn rendezvous(&self, world: &World, rank: Rank, wait: &Wait<'_>) -> Result<()> {
        let generation = self.generation.load(Ordering::Acquire);
        {
            let mut arrived = lock(&self.arrived);
            arrived[rank] = true;
            if arrived.iter().all(|&here| here) {
                arrived.fill(false);
                self.generation.fetch_add(1, Ordering::Release);
                self.opened.notify_all();
                return Ok(());
            }
        }
        let is_open = || self.generation.load(Ordering::Acquire) != generation;
        for look in 0..SPINS + 2 * self.buffers.len() as u32 {
            if is_open() {
                return Ok(());
            }
            if look < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let mut arrived = lock(&self.arrived);
        while !is_open() {
            let missing = || (0..arrived.len()).filter(|&r| !arrived[r]);
            if let Some(error) = world.lost_peer(missing(), wait) {
                return Err(error);
            }
            if wait.deadline.has_passed() {
                let missing = missing().map(|r| world.peers[r].clone()).collect();
                return Err(stalled(rank, missing, wait));
            }
            let limit = wait.deadline.remaining().min(super::LONGEST_SLEEP);
            arrived = self.opened.wait_timeout(arrived, limit).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// After an error nobody may write to this rank's buffer any more.
    fn give_up(&self, error: Error) -> Error {
        self.broken.store(true, Ordering::SeqCst);
        while self.writers.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        error
    }

    /// Reduces bytes `start..end` of all buffers into all buffers.
    ///
    /// # Safety
    /// All buffers hold at least `end` bytes and no one else touches that range.
    unsafe fn reduce_block(
        &self,
        element: ElementType,
        operator: Operator,
        start: usize,
        end: usize,
        block: &mut [u8],
    ) {
        let len = end - start;
        let block = &mut block[..len];
        let of = |rank: usize| self.buffers[rank].load(Ordering::Relaxed);
        // SAFETY: as promised by the caller; `block` is this rank's own memory.
        unsafe { std::ptr::copy_nonoverlapping(of(0).add(start), block.as_mut_ptr(), len) };
        for rank in 1..self.buffers.len() {
            // SAFETY: as promised by the caller.
            let right = unsafe { std::slice::from_raw_parts(of(rank).add(start), len) };
            reduce_into(element, operator, Target::Left { left: block, right });
        }
        if operator == Operator::Average {
            scale_for_average(element, block, self.buffers.len());
        }
        for rank in 0..self.buffers.len() {
            // SAFETY: as promised by the caller.
            unsafe { std::ptr::copy_nonoverlapping(block.as_ptr(), of(rank).add(start), len) };
        }
    }
}

impl Native for Threads {
    unsafe fn all_reduce(
        &self,
        buffer: *mut u8,
        count: usize,
        element: ElementType,
        operator: Operator,
        wait: &Wait<'_>,
    ) -> Result<()> {
        let direct = &self.world.direct;
        direct.buffers[self.rank].store(buffer, Ordering::Relaxed);
        direct.rendezvous(&self.world, self.rank, wait).map_err(|error| direct.give_up(error))?;
        let slice = part(count, self.size(), self.rank);
        let size = element.size();
        let mut block = [0u64; BLOCK_BYTES / 8];
        let block: &mut [u8] = bytemuck::cast_slice_mut(&mut block);
        let mut start = slice.start * size;
        while start < slice.end * size {
            let end = (start + BLOCK_BYTES).min(slice.end * size);
            direct.writers.fetch_add(1, Ordering::SeqCst);
            if !direct.broken.load(Ordering::SeqCst) {
                // SAFETY: every rank has published a buffer of `count` elements (the entry rendezvous compares the counts)
                // and waits in this call; the slices of different ranks are disjoint.
                unsafe { direct.reduce_block(element, operator, start, end, block) };
            }
            direct.writers.fetch_sub(1, Ordering::SeqCst);
            start = end;
        }
        direct.rendezvous(&self.world, self.rank, wait).map_err(|error| direct.give_up(error))
    }
}
