//! Device memory, and what is known of the host's.
//!
//! A device pointer is a number in a range of addresses that nobody may read. What it stands for lies `STORAGE_OFFSET` bytes
//! further, where the device's threads find it. So the host cannot read device memory by mistake, as it cannot on a GPU.
//! Each allocation ends at a page that nobody may touch, and is surrounded by bytes whose value is looked at when it is freed.

use crate::api::{CUresult, Outcome, complain};
use crate::settings::settings;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

const PAGE: u64 = 4096;
/// Where device pointers begin; far from where the kernel puts programs, libraries and heaps.
const FIRST_POINTER: u64 = 0x2000_0000_0000;
const DEVICE_SPAN: u64 = 1 << 40;
const MOST_DEVICES: u64 = 16;
const POINTERS: u64 = MOST_DEVICES * DEVICE_SPAN;
const STORAGE_OFFSET: u64 = POINTERS;
/// CUDA promises 256 bytes; its pools give 512.
const ALIGNMENT: u64 = 512;
/// Fresh memory: a NaN in every floating-point type.
const POISON: u8 = 0xff;
const CANARY: u8 = 0x5c;
/// From this size on, poison is a file that is mapped again and again, so that untouched memory takes no room.
const MAPPED_POISON_BYTES: usize = 16 << 20;

#[derive(Debug, Clone, Copy)]
struct Allocation {
    bytes: u64,
    device: usize,
    /// The pages that hold it.
    first_page: u64,
    page_bytes: u64,
    /// A free is on its way in a stream: who uses it now does so too late.
    freeing: bool,
}

#[derive(Debug, Default)]
struct Memory {
    allocations: BTreeMap<u64, Allocation>,
    /// Host memory that copies may use later than their call: start and bytes.
    pinned: BTreeMap<u64, u64>,
    next_page: Vec<u64>,
    used_bytes: Vec<u64>,
}

/// Where an address points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Of this device; the address is that of the storage.
    Device(usize, u64),
    Pinned(u64),
    Pageable(u64),
}

impl Place {
    /// What a device's thread may read and write.
    pub(crate) fn storage(self) -> *mut u8 {
        match self {
            Self::Device(_, address) | Self::Pinned(address) | Self::Pageable(address) => address as *mut u8,
        }
    }
}

fn memory() -> MutexGuard<'static, Memory> {
    static MEMORY: OnceLock<Mutex<Memory>> = OnceLock::new();
    let memory = MEMORY.get_or_init(|| {
        assert!(
            settings().devices.len() as u64 <= MOST_DEVICES,
            "software device: at most {MOST_DEVICES} devices"
        );
        for start in [FIRST_POINTER, FIRST_POINTER + STORAGE_OFFSET] {
            map(start, POINTERS, libc::PROT_NONE, libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE, -1);
        }
        Mutex::new(Memory {
            next_page: (0..MOST_DEVICES).map(|device| FIRST_POINTER + device * DEVICE_SPAN).collect(),
            used_bytes: vec![0; MOST_DEVICES as usize],
            ..Memory::default()
        })
    });
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

fn map(start: u64, bytes: u64, protection: i32, flags: i32, file: i32) {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    // SAFETY: only addresses of our own two ranges are mapped, and what lies there belongs to nobody else.
    let mapped = unsafe { libc::mmap(start as *mut _, bytes as usize, protection, flags, file, 0) };
    let error = std::io::Error::last_os_error();
    assert_eq!(
        mapped as u64, start,
        "software device: {bytes} bytes at {start:#x} cannot be mapped: {error}"
    );
}

/// A file full of poison.
fn poison_file() -> i32 {
    static FILE: OnceLock<i32> = OnceLock::new();
    *FILE.get_or_init(|| {
        use std::io::Write;
        use std::os::fd::IntoRawFd;
        let file = rustix::fs::memfd_create("poison", rustix::fs::MemfdFlags::CLOEXEC);
        let mut file = std::fs::File::from(file.expect("software device: memfd_create"));
        file.write_all(&vec![POISON; MAPPED_POISON_BYTES]).expect("software device: no memory for poison");
        file.into_raw_fd()
    })
}

pub(crate) fn is_device_pointer(address: u64) -> bool {
    (FIRST_POINTER..FIRST_POINTER + POINTERS).contains(&address)
}

/// Whose memory a device pointer can only be.
pub(crate) fn device_of(pointer: u64) -> usize {
    ((pointer - FIRST_POINTER) / DEVICE_SPAN) as usize
}

/// What a kernel gets for a device pointer.
pub(crate) fn storage_of(pointer: u64) -> u64 {
    pointer + STORAGE_OFFSET
}

/// The ranges of pointers and of storage, for the explanation of a fault.
pub(crate) fn ranges() -> [std::ops::Range<u64>; 2] {
    [FIRST_POINTER, FIRST_POINTER + STORAGE_OFFSET].map(|start| start..start + POINTERS)
}

pub(crate) fn allocate(device: usize, bytes: usize) -> Outcome<u64> {
    let bytes = bytes as u64;
    let page_bytes = (bytes.next_multiple_of(ALIGNMENT)).next_multiple_of(PAGE);
    let first_page = {
        let mut memory = memory();
        if memory.used_bytes[device] + bytes > settings().memory_bytes as u64 {
            complain!("{bytes} bytes are more than device {device} has left");
            return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        }
        let first_page = memory.next_page[device];
        // A page between two allocations stays forbidden.
        memory.next_page[device] = first_page + page_bytes + PAGE;
        assert!(
            memory.next_page[device] <= FIRST_POINTER + (device as u64 + 1) * DEVICE_SPAN,
            "software device: addresses used up: more than {DEVICE_SPAN} bytes were allocated in all"
        );
        memory.used_bytes[device] += bytes;
        first_page
    };
    let storage = storage_of(first_page);
    let (protection, mut mapped) = (libc::PROT_READ | libc::PROT_WRITE, 0);
    while page_bytes - mapped >= MAPPED_POISON_BYTES as u64 {
        map(storage + mapped, MAPPED_POISON_BYTES as u64, protection, libc::MAP_FIXED, poison_file());
        mapped += MAPPED_POISON_BYTES as u64;
    }
    if page_bytes > mapped {
        let rest = page_bytes - mapped;
        map(storage + mapped, rest, protection, libc::MAP_ANONYMOUS | libc::MAP_FIXED, -1);
        // SAFETY: these pages were mapped just now.
        unsafe { ((storage + mapped) as *mut u8).write_bytes(POISON, rest as usize) };
    }
    let pointer = first_page + page_bytes - bytes.next_multiple_of(ALIGNMENT);
    let allocation = Allocation { bytes, device, first_page, page_bytes, freeing: false };
    for around in surroundings(pointer, &allocation) {
        // SAFETY: the surroundings lie in the pages of the allocation.
        unsafe { around.as_mut_ptr_range().start.write_bytes(CANARY, around.len()) };
    }
    memory().allocations.insert(pointer, allocation);
    Ok(pointer)
}

/// The bytes before and behind an allocation in its pages.
fn surroundings(pointer: u64, allocation: &Allocation) -> [&'static mut [u8]; 2] {
    let Allocation { bytes, first_page, page_bytes, .. } = *allocation;
    let before = (storage_of(first_page), pointer - first_page);
    let behind = (storage_of(pointer + bytes), first_page + page_bytes - pointer - bytes);
    // SAFETY: mapped as long as the allocation lives, and nobody else's.
    [before, behind]
        .map(|(start, bytes)| unsafe { std::slice::from_raw_parts_mut(start as *mut u8, bytes as usize) })
}

/// Says that a free of `pointer` is on its way. Only the start of an allocation can be freed, and once.
pub(crate) fn begin_free(pointer: u64) -> Outcome<usize> {
    let mut memory = memory();
    match memory.allocations.get_mut(&pointer) {
        Some(allocation) if !allocation.freeing => {
            allocation.freeing = true;
            Ok(allocation.device)
        }
        Some(_) => {
            complain!("{pointer:#x} is freed twice");
            Err(CUresult::CUDA_ERROR_INVALID_VALUE)
        }
        None => {
            complain!("free of {pointer:#x}, where no allocation begins");
            Err(CUresult::CUDA_ERROR_INVALID_VALUE)
        }
    }
}

/// The end of a free that was begun. Ends the program if something was written around the allocation.
pub(crate) fn finish_free(pointer: u64) {
    let mut memory = memory();
    let Some(allocation) = memory.allocations.remove(&pointer) else { return };
    memory.used_bytes[allocation.device] -= allocation.bytes;
    for (side, around) in ["before", "behind"].iter().zip(surroundings(pointer, &allocation)) {
        if let Some(at) = around.iter().position(|&byte| byte != CANARY) {
            complain!(
                "something wrote {side} the {} bytes at {pointer:#x} (byte {at} of {} there)",
                allocation.bytes,
                around.len()
            );
            std::process::abort();
        }
    }
    let storage = storage_of(allocation.first_page);
    map(storage, allocation.page_bytes, libc::PROT_NONE, libc::MAP_ANONYMOUS | libc::MAP_FIXED, -1);
}

/// Frees all that a device holds, as its context ends.
pub(crate) fn free_all(device: usize) {
    let of_device = |memory: &Memory| -> Vec<u64> {
        memory.allocations.iter().filter(|(_, it)| it.device == device).map(|(&pointer, _)| pointer).collect()
    };
    let pointers = of_device(&memory());
    pointers.into_iter().for_each(finish_free);
}

/// Bytes of the device that are free.
pub(crate) fn free_bytes(device: usize) -> usize {
    settings().memory_bytes - memory().used_bytes[device] as usize
}

/// The allocation that holds an address: its start, bytes and device.
pub(crate) fn allocation_of(pointer: u64) -> Option<(u64, u64, usize)> {
    let memory = memory();
    let (&start, allocation) = memory.allocations.range(..=pointer).next_back()?;
    (pointer < start + allocation.bytes).then_some((start, allocation.bytes, allocation.device))
}

/// Where `bytes` bytes at an address lie. Those of a device must be of one living allocation.
///
/// `late`: asked by a stream that was given the work earlier, when a free may have been called since.
pub(crate) fn locate(address: u64, bytes: usize, late: bool) -> Outcome<Place> {
    let memory = memory();
    let end = address.checked_add(bytes as u64).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    if !is_device_pointer(address) {
        let pinned = memory.pinned.range(..=address).next_back();
        let is_pinned = pinned.is_some_and(|(start, bytes)| end <= start + bytes);
        return Ok(if is_pinned { Place::Pinned(address) } else { Place::Pageable(address) });
    }
    match memory.allocations.range(..=address).next_back() {
        Some((start, it)) if end <= start + it.bytes && (late || !it.freeing) => {
            Ok(Place::Device(it.device, storage_of(address)))
        }
        Some((start, it)) if address < start + it.bytes && end > start + it.bytes => {
            complain!(
                "{bytes} bytes at {address:#x} reach beyond the {} bytes allocated at {start:#x}",
                it.bytes
            );
            Err(CUresult::CUDA_ERROR_INVALID_VALUE)
        }
        Some((start, it)) if address < start + it.bytes => {
            complain!("{address:#x} is used after its free was called");
            Err(CUresult::CUDA_ERROR_INVALID_VALUE)
        }
        _ => {
            complain!("{bytes} bytes at {address:#x} are in no allocation");
            Err(CUresult::CUDA_ERROR_INVALID_VALUE)
        }
    }
}

pub(crate) fn pin(address: u64, bytes: usize) -> Outcome {
    let mut memory = memory();
    let overlaps = memory
        .pinned
        .range(..address + bytes as u64)
        .next_back()
        .is_some_and(|(start, len)| start + len > address);
    if overlaps {
        return Err(CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    }
    memory.pinned.insert(address, bytes as u64);
    Ok(())
}

/// The bytes that were pinned at an address.
pub(crate) fn unpin(address: u64) -> Option<u64> {
    memory().pinned.remove(&address)
}
