//! Memory that processes share: anonymous files, opened through their owner's `/proc` entry.

use crate::buffer::FlatBuffer;
use crate::error::{Error, Result};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, MremapFlags, ProtFlags};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

const PAGE: usize = 4096;

/// A huge page of most systems. Where they are larger, or there are none, the memory is as good as any other.
const HUGE_PAGE: usize = 2 << 20;

/// A mapped range, shared with whoever maps the same file.
pub(super) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; what is stored in it is its users' concern.
unsafe impl Send for Mapping {}
// SAFETY: as above; this type itself never reads or writes the memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of a file that has as many.
    pub(super) fn new(file: impl AsFd, bytes: usize) -> Result<Mapping> {
        let size = rustix::fs::fstat(&file).map_err(|e| environment("look at", bytes, e))?.st_size;
        if size < 0 || (size as u64) < bytes as u64 {
            // Touching what a file does not have would be a SIGBUS.
            return Err(Error::Environment(format!(
                "shared memory has {size} bytes where {bytes} are needed"
            )));
        }
        let reserved = Mapping::reserve(bytes)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
        let place = reserved.start.as_ptr().cast();
        // SAFETY: the range is reserved for this, and nobody has seen it.
        unsafe { rustix::mm::mmap(place, bytes, protection, flags | MapFlags::FIXED, file, 0) }
            .map_err(|e| environment("map", bytes, e))?;
        Ok(reserved)
    }

    /// Addresses without memory, from a huge page's bound on if they are as many.
    fn reserve(bytes: usize) -> Result<Mapping> {
        let spare = if bytes >= HUGE_PAGE { HUGE_PAGE } else { 0 };
        let (protection, flags) = (ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes + spare, protection, flags) }
                .map_err(|e| environment("map", bytes, e))?
                .cast::<u8>();
        let before = if spare > 0 { start.align_offset(HUGE_PAGE) } else { 0 };
        let pages = bytes.next_multiple_of(PAGE);
        for (from, unused) in [(0, before), (before + pages, spare - before)] {
            if unused > 0 {
                // SAFETY: a part of the new mapping that is not kept.
                let _ = unsafe { rustix::mm::munmap(start.wrapping_add(from).cast(), unused) };
            }
        }
        NonNull::new(start.wrapping_add(before))
            .map(|start| Mapping { start, bytes })
            .ok_or_else(|| Error::Internal("memory was mapped at address 0".into()))
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts ordinary memory with the same contents in its place, at the same address: what others still write into the
    /// file is not seen here any more.
    pub(super) fn detach(&self) -> Result<()> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let copy = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), self.bytes, protection, flags) }
            .map_err(|e| environment("copy", self.bytes, e))?;
        // SAFETY: both ranges are mapped and have `bytes`; the new one is known to nobody else. It then takes the old one's
        // place in one step, so that the address is valid all the time and pointers to it stay good.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.as_ptr(), copy.cast::<u8>(), self.bytes);
            let place = self.start.as_ptr().cast();
            rustix::mm::mremap_fixed(copy, self.bytes, self.bytes, MremapFlags::MAYMOVE, place)
                .map_err(|e| environment("copy", self.bytes, e))?;
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's own, and whoever used it has borrowed or outlived it.
        // An error would mean that it is not mapped any more, which is what is wanted.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// The control segment's memory.
pub(super) enum Control {
    /// Of threads.
    Heap {
        /// Owns it; reached through the pointer only.
        _memory: FlatBuffer<i64>,
        start: NonNull<u8>,
    },
    /// Of processes.
    Mapped(Mapping),
}

// SAFETY: it is reached through the pointer only, as atomics or under the protocol's rules.
unsafe impl Send for Control {}
// SAFETY: as above.
unsafe impl Sync for Control {}

impl Control {
    /// Zeroed memory of this process.
    pub(super) fn heap(bytes: usize) -> Control {
        let mut memory = FlatBuffer::new(bytes.div_ceil(8).max(1));
        let start = NonNull::from(&mut memory[..]).cast();
        Control::Heap { _memory: memory, start }
    }

    pub(super) fn start(&self) -> *mut u8 {
        match self {
            Control::Heap { start, .. } => start.as_ptr(),
            Control::Mapped(mapping) => mapping.start(),
        }
    }
}

/// An anonymous file of a fixed size, all of it allocated: a full memory is an error here and never a SIGBUS later.
pub(super) fn anonymous_file(name: &str, bytes: usize) -> Result<OwnedFd> {
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|e| environment("make", bytes, e))?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes as u64)
        .map_err(|e| environment("allocate", bytes, e))?;
    if bytes >= HUGE_PAGE {
        ask_for_huge_pages(&file, bytes)?;
    }
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(|e| environment("seal", bytes, e))?;
    Ok(file)
}

/// Asks for huge pages in place of a file's ordinary ones: with them a sum over many vectors is not held up by looking up
/// addresses. Systems that give none to shared memory by themselves do on request (Linux 6.1), if there are pages to be
/// replaced (since about 6.17 an empty file is refused); where they do not, nothing is lost.
fn ask_for_huge_pages(file: &OwnedFd, bytes: usize) -> Result<()> {
    let reserved = Mapping::reserve(bytes)?;
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
    let place = reserved.start.as_ptr().cast();
    // SAFETY: the range is reserved for this, and nobody has seen it; whole huge pages inside it are asked for.
    unsafe {
        rustix::mm::mmap(place, bytes, protection, flags, file, 0)
            .map_err(|e| environment("map", bytes, e))?;
        libc::madvise(place, bytes / HUGE_PAGE * HUGE_PAGE, libc::MADV_COLLAPSE);
    }
    Ok(())
}

/// A file in `/dev/shm`, for systems that do not let processes open each other's anonymous files. Goes with the path.
pub(super) fn named_file(bytes: usize) -> Result<(File, tempfile::TempPath)> {
    let folder = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(folder).map_err(|e| Error::file(folder, e))?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if free < bytes as u64 {
        return Err(Error::file(
            folder,
            format!("{free} bytes are free and {bytes} are needed; make it larger (docker run --shm-size)"),
        ));
    }
    let file = tempfile::Builder::new().prefix("esync-").tempfile_in(folder);
    let file = file.map_err(|e| Error::file(folder, format!("cannot make shared memory: {e}")))?;
    rustix::fs::fallocate(file.as_file(), FallocateFlags::empty(), 0, bytes as u64)
        .map_err(|e| Error::file(folder, format!("no room for {bytes} bytes of shared memory: {e}")))?;
    Ok(file.into_parts())
}

/// The path under which other processes of this user can open a file of process `pid`.
pub(super) fn path_of(pid: u32, file: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/fd/{file}"))
}

/// Opens memory of another process.
pub(super) fn open(path: &Path) -> Result<File> {
    let file = File::options().read(true).write(true).open(path);
    file.map_err(|e| Error::file(path, format!("cannot open another rank's memory: {e}")))
}

fn environment(what: &str, bytes: usize, error: rustix::io::Errno) -> Error {
    Error::Environment(format!("cannot {what} {bytes} bytes of shared memory: {error}; free some memory"))
}
