//! Copies and fills. Bounds are checked at the call, and again when a stream comes to them.

use crate::api::{CUresult, Outcome, code, complain};
use crate::device;
use crate::memory::{self, Place};
use crate::stream::{Stream, stream_for_work};
use crate::trace;
use cudarc::driver::sys::{CUcontext, CUdeviceptr, CUstream};
use std::ffi::{c_uchar, c_uint, c_ushort, c_void};
use std::sync::Arc;

/// Copies in the order of the stream. `Ok(true)`: the caller's pageable memory is a part of it.
fn copy(stream: &Arc<Stream>, name: &'static str, to: u64, from: u64, bytes: usize) -> Outcome<bool> {
    stream.device.check()?;
    if bytes == 0 {
        return Ok(false);
    }
    let (target, source) = (memory::locate(to, bytes, false)?, memory::locate(from, bytes, false)?);
    let host = |place| matches!(place, Place::Pageable(_) | Place::Pinned(_));
    let pageable = |place| matches!(place, Place::Pageable(_));
    let device = stream.device;
    if pageable(source) && !host(target) {
        // CUDA too copies pageable memory aside before the call returns.
        // SAFETY: the caller's memory, which lives as long as the call.
        let aside = unsafe { std::slice::from_raw_parts(source.storage(), bytes) }.to_vec();
        stream.submit(name, move || {
            if let Some(target) = still_there(device, name, to, target, bytes) {
                // SAFETY: `bytes` bytes of a living allocation, which nothing but the device's threads touches.
                unsafe { std::ptr::copy(aside.as_ptr(), target.storage(), bytes) };
            }
        });
        return Ok(false);
    }
    stream.submit(name, move || {
        let source = still_there(device, name, from, source, bytes);
        let target = still_there(device, name, to, target, bytes);
        if let (Some(source), Some(target)) = (source, target) {
            // SAFETY: `bytes` bytes each, of living allocations, of pinned memory, or of the caller, who waits.
            unsafe { std::ptr::copy(source.storage(), target.storage(), bytes) };
        }
    });
    Ok(pageable(source) || pageable(target))
}

/// The place again, now that the stream has come to it; none, and a broken context, if it was freed meanwhile.
fn still_there(
    device: &device::Device,
    name: &str,
    address: u64,
    then: Place,
    bytes: usize,
) -> Option<Place> {
    if device.check().is_err() {
        return None;
    }
    match memory::locate(address, bytes, true) {
        Ok(now) if now == then => Some(now),
        _ => {
            complain!("{name}: the {bytes} bytes at {address:#x} were freed before the stream came to them");
            device.break_with(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            None
        }
    }
}

/// In the order of a stream. Where pageable memory is written, the call waits, as CUDA's does.
fn later(name: &'static str, to: u64, from: u64, bytes: usize, stream: CUstream) -> CUresult {
    code(|| {
        let stream = stream_for_work(stream)?;
        if copy(&stream, name, to, from, bytes)? {
            trace::wait(name);
            stream.mark().wait();
            stream.device.check()?;
        }
        Ok(())
    })
}

/// In the order of the legacy stream. Between host and device the call waits; on the device it does not.
fn now(name: &'static str, to: u64, from: u64, bytes: usize) -> CUresult {
    code(|| {
        let device = device::current()?;
        let stream = device.legacy_stream();
        copy(&stream, name, to, from, bytes)?;
        if !(memory::is_device_pointer(to) && memory::is_device_pointer(from)) {
            trace::wait(name);
            stream.mark().wait();
        }
        device.check()
    })
}

macro_rules! copies {
    ($($now:ident, $later:ident: $to:ty, $from:ty, $to_u64:expr, $from_u64:expr;)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $now(to: $to, from: $from, bytes: usize) -> CUresult {
            now(stringify!($now), $to_u64(to), $from_u64(from), bytes)
        }

        #[unsafe(no_mangle)]
        extern "C" fn $later(to: $to, from: $from, bytes: usize, stream: CUstream) -> CUresult {
            later(stringify!($later), $to_u64(to), $from_u64(from), bytes, stream)
        }
    )*};
}

fn of_host<T>(pointer: *const T) -> u64 {
    pointer.addr() as u64
}

copies! {
    cuMemcpyHtoD_v2, cuMemcpyHtoDAsync_v2: CUdeviceptr, *const c_void, u64::from, of_host;
    cuMemcpyDtoH_v2, cuMemcpyDtoHAsync_v2: *mut c_void, CUdeviceptr, of_host, u64::from;
    cuMemcpyDtoD_v2, cuMemcpyDtoDAsync_v2: CUdeviceptr, CUdeviceptr, u64::from, u64::from;
    cuMemcpy, cuMemcpyAsync: CUdeviceptr, CUdeviceptr, u64::from, u64::from;
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyPeerAsync(
    to: CUdeviceptr,
    to_context: CUcontext,
    from: CUdeviceptr,
    from_context: CUcontext,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    for (pointer, context) in [(to, to_context), (from, from_context)] {
        let lies_on = memory::allocation_of(pointer).map(|(_, _, ordinal)| ordinal);
        if device::device_of(context).ok().map(|device| device.ordinal) != lies_on {
            complain!("cuMemcpyPeerAsync: {pointer:#x} is not of the context that is named for it");
            return CUresult::CUDA_ERROR_INVALID_VALUE;
        }
    }
    later("cuMemcpyPeerAsync", to, from, bytes, stream)
}

fn fill(name: &'static str, to: u64, pattern: &[u8], count: usize, stream: &Arc<Stream>) -> Outcome {
    stream.device.check()?;
    let bytes = count.checked_mul(pattern.len()).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    if bytes == 0 {
        return Ok(());
    }
    let target = memory::locate(to, bytes, false)?;
    if !matches!(target, Place::Device(..)) || !to.is_multiple_of(pattern.len() as u64) {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let (device, pattern) = (stream.device, pattern.to_vec());
    stream.submit(name, move || {
        if let Some(target) = still_there(device, name, to, target, bytes) {
            // SAFETY: `bytes` bytes of a living allocation, which nothing but the device's threads touches.
            let target = unsafe { std::slice::from_raw_parts_mut(target.storage(), bytes) };
            target.chunks_exact_mut(pattern.len()).for_each(|element| element.copy_from_slice(&pattern));
        }
    });
    Ok(())
}

macro_rules! fills {
    ($($now:ident, $later:ident: $value:ty;)*) => {$(
        /// As CUDA's, it does not wait.
        #[unsafe(no_mangle)]
        extern "C" fn $now(to: CUdeviceptr, value: $value, count: usize) -> CUresult {
            $later(to, value, count, std::ptr::null_mut())
        }

        #[unsafe(no_mangle)]
        extern "C" fn $later(to: CUdeviceptr, value: $value, count: usize, stream: CUstream) -> CUresult {
            code(|| fill(stringify!($later), to, &value.to_ne_bytes(), count, &stream_for_work(stream)?))
        }
    )*};
}

fills! {
    cuMemsetD8_v2, cuMemsetD8Async: c_uchar;
    cuMemsetD16_v2, cuMemsetD16Async: c_ushort;
    cuMemsetD32_v2, cuMemsetD32Async: c_uint;
}
