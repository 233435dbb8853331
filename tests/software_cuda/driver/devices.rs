//! Devices and contexts.

use super::unsupported;
use crate::api::{CUresult, code, put, put_if_wanted};
use crate::device::{self, Device};
use crate::memory;
use crate::settings::settings;
use crate::trace;
use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute, CUuuid};
use std::ffi::{c_char, c_int, c_uint};

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: *mut c_int) -> CUresult {
    code(|| put(count, device::devices().len() as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int) -> CUresult {
    code(|| put(device, device::device(ordinal)?.ordinal as CUdevice))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(name: *mut c_char, capacity: c_int, device: CUdevice) -> CUresult {
    put_text(name, capacity, device, |_| device::NAME.to_owned())
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetPCIBusId(name: *mut c_char, capacity: c_int, device: CUdevice) -> CUresult {
    put_text(name, capacity, device, |device| format!("0000:{:02X}:00.0", device.host_ordinal + 1))
}

fn put_text(
    to: *mut c_char,
    capacity: c_int,
    device: CUdevice,
    text: impl FnOnce(&Device) -> String,
) -> CUresult {
    code(|| {
        let text = text(device::device(device)?);
        for (index, byte) in text.bytes().take(capacity.max(1) as usize - 1).chain([0]).enumerate() {
            put(to.wrapping_add(index), byte as c_char)?;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid(uuid: *mut CUuuid, device: CUdevice) -> CUresult {
    code(|| put(uuid, CUuuid { bytes: device::device(device)?.uuid().map(|byte| byte as c_char) }))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid_v2(uuid: *mut CUuuid, device: CUdevice) -> CUresult {
    cuDeviceGetUuid(uuid, device)
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice) -> CUresult {
    code(|| {
        device::device(device)?;
        put(bytes, settings().memory_bytes)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    attribute: CUdevice_attribute,
    device: CUdevice,
) -> CUresult {
    use CUdevice_attribute::*;
    code(|| {
        let host_ordinal = device::device(device)?.host_ordinal as c_int;
        let capability = settings().capability;
        let answer = match attribute {
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => capability.major,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR => capability.minor,
            CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT => device::MULTIPROCESSORS,
            CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK | CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X => {
                device::MOST_THREADS_PER_BLOCK as c_int
            }
            CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X => c_int::MAX,
            CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR => device::THREADS_PER_MULTIPROCESSOR,
            CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK => device::SHARED_BYTES_PER_BLOCK as c_int,
            CU_DEVICE_ATTRIBUTE_WARP_SIZE => 32,
            CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED
            | CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING
            | CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS
            | CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY
            | CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED => 1,
            CU_DEVICE_ATTRIBUTE_INTEGRATED
            | CU_DEVICE_ATTRIBUTE_COMPUTE_MODE
            | CU_DEVICE_ATTRIBUTE_ECC_ENABLED
            | CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY
            | CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID
            | CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID => 0,
            CU_DEVICE_ATTRIBUTE_PCI_BUS_ID => host_ordinal + 1,
            CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT => 2,
            other => return unsupported(format_args!("{other:?}")),
        };
        put(value, answer)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceCanAccessPeer(answer: *mut c_int, device: CUdevice, peer: CUdevice) -> CUresult {
    code(|| put(answer, c_int::from(device::device(device)?.ordinal != device::device(peer)?.ordinal)))
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice) -> CUresult {
    code(|| {
        let device = device::device(device)?;
        device.retain();
        put(context, device.handle())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) -> CUresult {
    code(|| device::device(device)?.release())
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxGetState(
    device: CUdevice,
    flags: *mut c_uint,
    active: *mut c_int,
) -> CUresult {
    code(|| {
        put(active, c_int::from(device::device(device)?.is_active()))?;
        put(flags, 0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: CUcontext) -> CUresult {
    code(|| device::set_current(context))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(context: *mut CUcontext) -> CUresult {
    code(|| put(context, device::current_handle()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetDevice(device: *mut CUdevice) -> CUresult {
    code(|| put(device, device::current()?.ordinal as CUdevice))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> CUresult {
    code(|| {
        let device = device::current()?;
        trace::wait("cuCtxSynchronize");
        device.synchronize();
        device.check()
    })
}

/// Whether the host spins, yields or sleeps: here it always sleeps.
#[unsafe(no_mangle)]
extern "C" fn cuCtxSetFlags(_flags: c_uint) -> CUresult {
    code(|| device::current().map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> CUresult {
    put_if_wanted(least, super::streams::LEAST_PRIORITY);
    put_if_wanted(greatest, super::streams::GREATEST_PRIORITY);
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> CUresult {
    code(|| {
        put(free, memory::free_bytes(device::current()?.ordinal))?;
        put(total, settings().memory_bytes)
    })
}
