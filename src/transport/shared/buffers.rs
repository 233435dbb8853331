//! Registered buffers: a rank's own, and those of others that it has mapped.

use super::layout::{Place, TABLE_ENTRIES};
use super::memory::{self, Mapping};
use super::{Domain, Scope};
use crate::error::{Error, Result};
use crate::transport::Rank;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

/// The lowest bits of a buffer's number are its place in the owner's table, the others its generation.
const INDEX_BITS: u32 = TABLE_ENTRIES.trailing_zeros();
/// One less than all ones, which with the last index would be [`Place::NOWHERE`].
const GENERATIONS: u32 = (1 << (32 - INDEX_BITS)) - 1;

/// Each rank's buffers begin so many bytes further into a page than its predecessor's, so that n vectors at one position do
/// not all compete for the same set of a cache.
const STAGGER_BYTES: usize = 256;

/// The buffers that this rank has registered.
#[derive(Default)]
pub(super) struct OwnBuffers {
    entries: Vec<Option<Own>>,
    generations: Vec<u32>,
    /// After a failure nothing is registered any more.
    pub(super) is_closed: bool,
}

struct Own {
    mapping: Arc<Mapping>,
    /// Open as long as others may want to map it.
    _file: OwnedFd,
}

/// A registered buffer. Dropping it takes it off the table.
pub(crate) struct Region {
    mapping: Arc<Mapping>,
    /// Where it begins in its memory.
    offset: usize,
    index: usize,
    owner: Arc<Mutex<OwnBuffers>>,
}

impl Region {
    /// The first byte, aligned to [`STAGGER_BYTES`]; it stays the same for the region's life.
    pub(crate) fn start(&self) -> *mut u8 {
        self.mapping.start().wrapping_add(self.offset)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner).entries[self.index] = None;
    }
}

impl OwnBuffers {
    /// The place of `bytes` from `start` on, if they lie in one registered buffer.
    pub(super) fn place(&self, start: *const u8, bytes: usize) -> Option<Place> {
        self.entries.iter().enumerate().find_map(|(index, own)| {
            let mapping = &own.as_ref()?.mapping;
            let offset = (start as usize).checked_sub(mapping.start() as usize)?;
            let inside = offset.checked_add(bytes)? <= mapping.bytes();
            let buffer = self.generations[index] << INDEX_BITS | index as u32;
            inside.then_some(Place { offset: offset as u64, buffer })
        })
    }

    /// Takes all buffers out of the others' reach; see [`Mapping::detach`].
    pub(super) fn detach(&mut self) -> Result<()> {
        self.is_closed = true;
        self.entries.iter().flatten().try_for_each(|own| own.mapping.detach())
    }
}

/// Another rank's buffer, mapped here.
pub(super) struct Seen {
    buffer: u32,
    mapping: Mapping,
}

/// What this rank has mapped: a table for each rank.
pub(super) type SeenBuffers = Vec<Vec<Option<Seen>>>;

pub(super) fn none_seen(ranks: usize) -> SeenBuffers {
    (0..ranks).map(|_| (0..TABLE_ENTRIES).map(|_| None).collect()).collect()
}

impl Domain {
    /// Memory of `bytes` bytes, all zero, that the other processes can address; `None` where they cannot, and when this
    /// rank has as many as the table holds. Needs no other rank.
    ///
    /// # Errors
    /// `Environment` if there is no memory left.
    pub(crate) fn register(&self, bytes: usize) -> Result<Option<Region>> {
        if self.scope() != Scope::Processes
            || bytes == 0
            || self.header().unreachable.load(Ordering::Relaxed) != 0
        {
            return Ok(None);
        }
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if own.is_closed {
            return Ok(None);
        }
        let index = own.entries.iter().position(Option::is_none).unwrap_or(own.entries.len());
        if index == TABLE_ENTRIES {
            return Ok(None);
        }
        let offset = self.rank * STAGGER_BYTES % 4096;
        let bytes = (bytes + offset).next_multiple_of(4096);
        let file = memory::anonymous_file("esync-buffer", bytes)?;
        let mapping = Arc::new(Mapping::new(&file, bytes)?);
        if index == own.entries.len() {
            own.entries.push(None);
            own.generations.push(0);
        }
        own.generations[index] = (own.generations[index] + 1) % GENERATIONS;
        let entry = self.table_entry(self.rank, index);
        entry.file.store(file.as_raw_fd() as u32, Ordering::Relaxed);
        entry.bytes.store(bytes as u64, Ordering::Relaxed);
        entry.generation.store(own.generations[index], Ordering::Release);
        own.entries[index] = Some(Own { mapping: mapping.clone(), _file: file });
        Ok(Some(Region { mapping, offset, index, owner: self.own.clone() }))
    }

    /// The address here of a buffer of `rank`, mapped at first sight. To be called only while `rank` is inside the
    /// operation in which it named the place: then the buffer lives.
    pub(super) fn address(&self, seen: &mut SeenBuffers, rank: Rank, place: Place) -> Result<*mut u8> {
        let index = (place.buffer & ((1 << INDEX_BITS) - 1)) as usize;
        if let Some(seen) = &seen[rank][index]
            && seen.buffer == place.buffer
        {
            return Ok(seen.mapping.start().wrapping_add(place.offset as usize));
        }
        self.forget_old(&mut seen[rank], rank);
        let entry = self.table_entry(rank, index);
        let generation = entry.generation.load(Ordering::Acquire);
        if generation != place.buffer >> INDEX_BITS {
            return Err(Error::Internal(format!("{} named a buffer that it has not", self.peer(rank))));
        }
        let file = entry.file.load(Ordering::Relaxed);
        let bytes = entry.bytes.load(Ordering::Relaxed) as usize;
        let file = memory::open(&memory::path_of(self.peer(rank).pid, file))?;
        let mapping = Mapping::new(&file, bytes)?;
        let start = mapping.start().wrapping_add(place.offset as usize);
        seen[rank][index] = Some(Seen { buffer: place.buffer, mapping });
        Ok(start)
    }

    /// Unmaps what the owner has replaced, so that its memory becomes free.
    fn forget_old(&self, seen: &mut [Option<Seen>], rank: Rank) {
        for (index, seen) in seen.iter_mut().enumerate() {
            let generation = self.table_entry(rank, index).generation.load(Ordering::Relaxed);
            if seen.as_ref().is_some_and(|seen| seen.buffer >> INDEX_BITS != generation) {
                *seen = None;
            }
        }
    }
}
