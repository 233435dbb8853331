//! A stream of bytes from one process to another, in shared memory: one writer, one reader, no locks.

use std::sync::atomic::{AtomicU64, Ordering};

#[repr(C, align(128))]
struct Count(AtomicU64);

/// The first words of a ring's memory; the bytes follow.
#[repr(C)]
struct Head {
    /// Bytes written and read since the beginning; they never go back.
    written: Count,
    read: Count,
}

/// One end of a ring.
pub(super) struct Ring {
    head: *const Head,
    data: *mut u8,
    capacity: usize,
}

// SAFETY: a ring points into the control segment, which its transport keeps; one process writes, one reads.
unsafe impl Send for Ring {}

impl Ring {
    /// # Safety
    /// `start` points to `bytes` of memory, zero at first and 128-aligned, that is used as a ring between two ranks only and
    /// outlives this value.
    pub(super) unsafe fn new(start: *mut u8, bytes: usize) -> Ring {
        let data = start.wrapping_add(size_of::<Head>());
        Ring { head: start.cast(), data, capacity: bytes - size_of::<Head>() }
    }

    fn counts(&self) -> (u64, u64) {
        // SAFETY: the head lives as long as the ring, and holds nothing but atomics.
        let head = unsafe { &*self.head };
        (head.written.0.load(Ordering::Acquire), head.read.0.load(Ordering::Acquire))
    }

    /// How many bytes can be read now.
    pub(super) fn filled(&self) -> usize {
        let (written, read) = self.counts();
        (written - read) as usize
    }

    /// How many bytes can be written now.
    pub(super) fn room(&self) -> usize {
        self.capacity - self.filled()
    }

    /// Writes as many of the bytes as there is room for; answers how many.
    ///
    /// # Safety
    /// `from` is good for `len` bytes, and this is the ring's one writer.
    pub(super) unsafe fn write(&self, from: *const u8, len: usize) -> usize {
        let (written, read) = self.counts();
        let len = len.min(self.capacity - (written - read) as usize);
        let at = (written % self.capacity as u64) as usize;
        let first = len.min(self.capacity - at);
        // SAFETY: the range is inside the data, and the reader leaves it alone until `written` covers it.
        unsafe {
            std::ptr::copy_nonoverlapping(from, self.data.add(at), first);
            std::ptr::copy_nonoverlapping(from.add(first), self.data, len - first);
            (*self.head).written.0.store(written + len as u64, Ordering::Release);
        }
        len
    }

    /// Reads as many bytes as there are, at most `len`; answers how many.
    ///
    /// # Safety
    /// `into` is good for `len` bytes, or null to skip them, and this is the ring's one reader.
    pub(super) unsafe fn read(&self, into: *mut u8, len: usize) -> usize {
        let (written, read) = self.counts();
        let len = len.min((written - read) as usize);
        let at = (read % self.capacity as u64) as usize;
        let first = len.min(self.capacity - at);
        if !into.is_null() {
            // SAFETY: the range is inside the data, and the writer leaves it alone until `read` covers it.
            unsafe {
                std::ptr::copy_nonoverlapping(self.data.add(at), into, first);
                std::ptr::copy_nonoverlapping(self.data, into.add(first), len - first);
            }
        }
        // SAFETY: the head lives as long as the ring.
        unsafe { (*self.head).read.0.store(read + len as u64, Ordering::Release) };
        len
    }
}
