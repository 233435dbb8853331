//! Host memory that a GPU copies to and from by itself.

use super::Gpu;
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes of page-locked host memory, all zero at first. Copies to and from a GPU run beside the program.
pub struct PinnedBuffer {
    gpu: Arc<Gpu>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the buffer owns its memory, as a `Vec<u8>` does.
unsafe impl Send for PinnedBuffer {}
// SAFETY: as above; a shared buffer can only be read.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// `bytes` bytes, which begin at a page.
    ///
    /// # Errors
    /// `Environment` if the system has no memory left that may be locked.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self> {
        gpu.bind()?;
        // SAFETY: the context is bound; all contexts of the process may use the memory.
        let start = unsafe { result::malloc_host(bytes.max(1), sys::CU_MEMHOSTALLOC_PORTABLE) }
            .map_err(|error| gpu.failed(format_args!("locking {bytes} bytes of host memory for"), error))?;
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(|| {
            crate::Error::Environment(format!(
                "the CUDA driver gave no address for {bytes} bytes of host memory"
            ))
        })?;
        // SAFETY: as many bytes were allocated.
        unsafe { start.as_ptr().write_bytes(0, bytes) };
        Ok(PinnedBuffer { gpu: gpu.clone(), start, bytes })
    }

    /// How many bytes it holds.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Where it begins.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The bytes, to change.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as many bytes were allocated and written; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: the memory came from `malloc_host`, and nothing uses it any more.
            let _ = unsafe { result::free_host(self.start.as_ptr().cast()) };
        }
    }
}
