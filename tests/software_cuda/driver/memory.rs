//! Allocation, of the device and of pinned host memory.

use super::unsupported;
use crate::api::{CUresult, Outcome, code, complain, put, put_if_wanted};
use crate::device;
use crate::memory::{self, Place};
use crate::stream::stream_of;
use crate::trace;
use cudarc::driver::sys::{CUdeviceptr, CUmemorytype, CUpointer_attribute, CUstream};
use std::alloc::Layout;
use std::ffi::{c_uint, c_void};

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(pointer: *mut CUdeviceptr, bytes: usize) -> CUresult {
    code(|| {
        let device = device::current()?;
        if bytes == 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        put(pointer, memory::allocate(device.ordinal, bytes)?)
    })
}

/// Waits for all work of the device first, as `cudaFree` does: it hangs where a kernel or an exchange hangs.
#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(pointer: CUdeviceptr) -> CUresult {
    code(|| {
        device::current()?;
        if pointer == 0 {
            return Ok(());
        }
        let ordinal = memory::begin_free(pointer)?;
        trace::wait("cuMemFree");
        device::devices()[ordinal].synchronize();
        memory::finish_free(pointer);
        Ok(())
    })
}

/// Of no bytes, it gives the null pointer.
#[unsafe(no_mangle)]
extern "C" fn cuMemAllocAsync(pointer: *mut CUdeviceptr, bytes: usize, stream: CUstream) -> CUresult {
    code(|| {
        let stream = stream_of(stream)?;
        stream.device.check()?;
        put(pointer, if bytes == 0 { 0 } else { memory::allocate(stream.device.ordinal, bytes)? })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(pointer: CUdeviceptr, stream: CUstream) -> CUresult {
    code(|| {
        let stream = stream_of(stream)?;
        if pointer == 0 {
            return Ok(());
        }
        memory::begin_free(pointer)?;
        stream.submit("cuMemFreeAsync", move || memory::finish_free(pointer));
        Ok(())
    })
}

const HOST_ALIGNMENT: usize = 4096;

#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, _flags: c_uint) -> CUresult {
    code(|| {
        device::current()?;
        if bytes == 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let layout = host_layout(bytes)?;
        // SAFETY: not of size 0.
        let host = unsafe { std::alloc::alloc(layout) };
        if host.is_null() {
            return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        }
        // Poison here too: who reads what was never copied sees it.
        // SAFETY: as many bytes were allocated.
        unsafe { host.write_bytes(0xff, bytes) };
        memory::pin(host.addr() as u64, bytes)?;
        put(pointer, host.cast())
    })
}

fn host_layout(bytes: usize) -> Outcome<Layout> {
    Layout::from_size_align(bytes, HOST_ALIGNMENT).map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize) -> CUresult {
    cuMemHostAlloc(pointer, bytes, 0)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(pointer: *mut c_void) -> CUresult {
    code(|| {
        let Some(bytes) = memory::unpin(pointer.addr() as u64) else {
            complain!("cuMemFreeHost of {pointer:?}, which is not pinned memory");
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        };
        // SAFETY: allocated in `cuMemHostAlloc` with this layout, and forgotten just now.
        unsafe { std::alloc::dealloc(pointer.cast(), host_layout(bytes as usize)?) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(pointer: *mut c_void, bytes: usize, _flags: c_uint) -> CUresult {
    code(|| {
        device::current()?;
        memory::pin(pointer.addr() as u64, bytes)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(pointer: *mut c_void) -> CUresult {
    code(|| {
        memory::unpin(pointer.addr() as u64).map(drop).ok_or(CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetAddressRange_v2(
    start: *mut CUdeviceptr,
    bytes: *mut usize,
    pointer: CUdeviceptr,
) -> CUresult {
    code(|| {
        let (first, length, _) = memory::allocation_of(pointer).ok_or(CUresult::CUDA_ERROR_NOT_FOUND)?;
        put_if_wanted(start, first);
        put_if_wanted(bytes, length as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuPointerGetAttribute(
    answer: *mut c_void,
    attribute: CUpointer_attribute,
    pointer: CUdeviceptr,
) -> CUresult {
    code(|| {
        let device = memory::allocation_of(pointer).map(|(_, _, ordinal)| &device::devices()[ordinal]);
        let pinned = matches!(memory::locate(pointer, 1, false), Ok(Place::Pinned(_)));
        if device.is_none() && !pinned {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        match (attribute, device) {
            (CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, Some(_)) => {
                put(answer.cast(), CUmemorytype::CU_MEMORYTYPE_DEVICE)
            }
            (CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, None) => {
                put(answer.cast(), CUmemorytype::CU_MEMORYTYPE_HOST)
            }
            (CUpointer_attribute::CU_POINTER_ATTRIBUTE_CONTEXT, Some(device)) => {
                put(answer.cast(), device.handle())
            }
            (CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, Some(device)) => {
                put(answer.cast(), device.ordinal as i32)
            }
            (other, _) => unsupported(format_args!("{other:?}")),
        }
    })
}
