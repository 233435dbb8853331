//! A few words of memory that the ranks of one host share.

use crate::error::{Error, Result};
use memmap2::MmapMut;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Zero-initialised words that several processes (or threads) of one host see.
///
/// ```
/// use esync::transport::SharedPage;
/// use std::sync::atomic::Ordering;
///
/// let (mine, name) = SharedPage::make(8)?;
/// let theirs = SharedPage::open(&name, 8)?;
/// drop(name); // from here on nothing can be left behind
/// mine.words()[3].store(7, Ordering::Release);
/// assert_eq!(theirs.words()[3].load(Ordering::Acquire), 7);
/// # Ok::<(), esync::Error>(())
/// ```
pub struct SharedPage {
    memory: MmapMut,
}

impl SharedPage {
    /// Makes a page of `words` words, and the name under which other processes of the host can open it. The name goes when
    /// the returned path is dropped.
    ///
    /// # Errors
    /// `File` if there is no room or no right to make one.
    pub fn make(words: usize) -> Result<(SharedPage, tempfile::TempPath)> {
        let folder =
            Some(PathBuf::from("/dev/shm")).filter(|path| path.is_dir()).unwrap_or_else(std::env::temp_dir);
        let file = tempfile::Builder::new()
            .prefix("esync-")
            .tempfile_in(&folder)
            .map_err(|e| Error::file(&folder, format!("cannot make a shared page: {e}")))?;
        let bytes = words * size_of::<u64>();
        // Allocating now turns a full /dev/shm into an error here instead of a SIGBUS later.
        rustix::fs::fallocate(file.as_file(), rustix::fs::FallocateFlags::empty(), 0, bytes as u64)
            .map_err(|e| Error::file(&folder, format!("no room for a shared page of {bytes} bytes: {e}")))?;
        let memory = map(file.as_file(), file.path(), bytes)?;
        Ok((SharedPage { memory }, file.into_temp_path()))
    }

    /// Opens a page of `words` words that another rank has made.
    ///
    /// # Errors
    /// `File` if there is none, or its length differs.
    pub fn open(path: &Path, words: usize) -> Result<SharedPage> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| Error::file(path, format!("cannot open the shared page: {e}")))?;
        Ok(SharedPage { memory: map(&file, path, words * size_of::<u64>())? })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        let start = self.memory.as_ptr().cast::<AtomicU64>();
        // SAFETY: the mapping is page-aligned, holds whole words, lives as long as `self`, and is only ever used as atomics.
        unsafe { std::slice::from_raw_parts(start, self.memory.len() / size_of::<u64>()) }
    }
}

fn map(file: &File, path: &Path, bytes: usize) -> Result<MmapMut> {
    let len = file.metadata().map_err(|e| Error::file(path, e))?.len();
    if len != bytes as u64 {
        return Err(Error::file(path, format!("the shared page has {len} bytes, expected {bytes}")));
    }
    // SAFETY: the file is this job's own, has its full length, and is never truncated; the memory is only used as atomics.
    unsafe { MmapMut::map_mut(file) }
        .map_err(|e| Error::file(path, format!("cannot map the shared page: {e}")))
}

/// The host's monotonic clock: the same for all its processes, and of no meaning on another host.
pub fn host_clock() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
