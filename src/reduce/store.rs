//! Stores that go past the caches.

/// How the results of a reduction are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Store {
    /// Through the caches, for results that are read again soon.
    #[default]
    Ordinary,
    /// Past the caches (non-temporal stores), for results that are larger than they are; ordinary stores where the
    /// architecture has no such instruction.
    Streaming,
}

/// Copies `from` to `into` as `store` says. Streaming stores need a [`fence`] before another core is told of them.
///
/// # Safety
/// `into` must be valid for writes of `from.len()` bytes, and must not overlap `from`.
pub(super) unsafe fn copy(from: &[u8], into: *mut u8, store: Store) {
    #[cfg(target_arch = "x86_64")]
    if store == Store::Streaming {
        // SAFETY: the caller's promise is passed on.
        return unsafe { stream(from, into) };
    }
    let _ = store;
    // SAFETY: the caller's promise is passed on.
    unsafe { into.copy_from_nonoverlapping(from.as_ptr(), from.len()) }
}

/// Makes streaming stores visible before whatever is stored after.
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this architecture has SSE.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

/// Whole cache lines past the caches, the ragged ends through them.
///
/// # Safety
/// As [`copy`].
#[cfg(target_arch = "x86_64")]
unsafe fn stream(from: &[u8], into: *mut u8) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};

    const LINE: usize = 64;
    let head = into.align_offset(LINE).min(from.len());
    let lines = (from.len() - head) / LINE;
    let tail = head + lines * LINE;
    // SAFETY: head, lines and tail are the range that the caller vouches for; the lines are aligned. Quarters of a line
    // are joined by the write-combining buffers, and every machine of this architecture has the instruction.
    unsafe {
        into.copy_from_nonoverlapping(from.as_ptr(), head);
        for line in 0..lines {
            let at = head + line * LINE;
            let (from, into) = (from.as_ptr().add(at).cast::<__m128i>(), into.add(at).cast::<__m128i>());
            let quarters = [0, 1, 2, 3].map(|quarter| _mm_loadu_si128(from.add(quarter)));
            for (quarter, value) in quarters.into_iter().enumerate() {
                _mm_stream_si128(into.add(quarter), value);
            }
        }
        into.add(tail).copy_from_nonoverlapping(from.as_ptr().add(tail), from.len() - tail);
    }
}
