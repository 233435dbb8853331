//! The scratch space of schedules, in huge pages where the system has them.

use crate::error::{Error, Result};
use memmap2::MmapMut;

/// A huge page of most systems. Where they are larger, or there are none, the memory is as good as any other.
const HUGE_PAGE: usize = 2 << 20;

/// Shorter scratch space is not worth a huge page, which is given whole.
const WORTH_A_HUGE_PAGE: usize = HUGE_PAGE / 4;

/// Memory of the process's own that only grows. What is received into it is often sent on from it, and an MPI that copies
/// out of another process's memory lets the kernel look up every page: of 512 times fewer pages, it copies up to three
/// times as fast.
#[derive(Default)]
pub(super) struct Scratch {
    memory: Option<MmapMut>,
    /// What the memory has room for; 0 without it.
    bytes: usize,
}

impl Scratch {
    /// At least `bytes` bytes, at the beginning of a page. What was there before is lost where they have to grow.
    ///
    /// # Errors
    /// `Environment` if the system has no memory left.
    pub(super) fn room(&mut self, bytes: usize) -> Result<*mut u8> {
        if self.bytes < bytes {
            // The old memory goes first: both need not fit. Should the new one fail, there is room for nothing.
            (self.memory, self.bytes) = (None, 0);
            self.memory = Some(map(bytes)?);
            self.bytes = bytes;
        }
        let Some(memory) = &mut self.memory else {
            return Ok(std::ptr::NonNull::<u64>::dangling().as_ptr().cast());
        };
        let start = memory.as_mut_ptr();
        let is_huge = memory.len() > HUGE_PAGE;
        Ok(if is_huge { start.wrapping_add(start.align_offset(HUGE_PAGE)) } else { start })
    }
}

fn map(bytes: usize) -> Result<MmapMut> {
    let is_huge = bytes >= WORTH_A_HUGE_PAGE;
    // Addresses of which only what is touched costs memory: one more, so that a huge page can begin inside.
    let mapped = if is_huge { bytes.next_multiple_of(HUGE_PAGE) + HUGE_PAGE } else { bytes };
    let memory = MmapMut::map_anon(mapped).map_err(|e| {
        Error::Environment(format!("no {bytes} bytes for the scratch space of a schedule: {e}"))
    })?;
    #[cfg(target_os = "linux")]
    if is_huge {
        // A system without huge pages refuses, which is no loss.
        let _ = memory.advise(memmap2::Advice::HugePage);
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_of_every_size_is_aligned_and_writable() {
        let mut scratch = Scratch::default();
        for bytes in [0, 1, 5000, WORTH_A_HUGE_PAGE - 1, WORTH_A_HUGE_PAGE, HUGE_PAGE, 2 * HUGE_PAGE + 1] {
            let start = scratch.room(bytes).unwrap();
            if bytes == 0 {
                continue;
            }
            let alignment = if bytes >= WORTH_A_HUGE_PAGE { HUGE_PAGE } else { 64 };
            assert_eq!(start.align_offset(alignment), 0, "{bytes} bytes");
            // SAFETY: `room` gave that many bytes, which nobody else knows.
            let memory = unsafe { std::slice::from_raw_parts_mut(start, bytes) };
            assert!(memory.iter().all(|&byte| byte == 0));
            memory.fill(1);
            assert_eq!(scratch.room(bytes / 2).unwrap(), start);
        }
    }
}
