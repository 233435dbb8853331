//! Modules and functions.

use super::{text, unsupported};
use crate::api::{CUresult, code, complain, put};
use crate::device;
use crate::handles::Handles;
use crate::module::{Function, Module};
use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUjit_option, CUmodule};
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::Arc;

static MODULES: Handles<Module> = Handles::new();
pub(super) static FUNCTIONS: Handles<Function> = Handles::new();

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadData(module: *mut CUmodule, image: *const c_void) -> CUresult {
    code(|| {
        let device = device::current()?.ordinal;
        // SAFETY: callers give what NVRTC gave them, or a text.
        put(module, MODULES.add(unsafe { Module::load(image.cast(), device) }?))
    })
}

/// Options are for PTX, which is never translated here.
#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadDataEx(
    module: *mut CUmodule,
    image: *const c_void,
    _count: c_uint,
    _options: *mut CUjit_option,
    _values: *mut *mut c_void,
) -> CUresult {
    cuModuleLoadData(module, image)
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoad(module: *mut CUmodule, path: *const c_char) -> CUresult {
    code(|| {
        let device = device::current()?.ordinal;
        let mut image = std::fs::read(text(path)?).map_err(|_| CUresult::CUDA_ERROR_FILE_NOT_FOUND)?;
        // The header of a file that is too short must not be looked for behind it.
        image.resize(image.len().max(64), 0);
        image.push(0);
        // SAFETY: a zero ends it.
        put(module, MODULES.add(unsafe { Module::load(image.as_ptr(), device) }?))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: CUmodule) -> CUresult {
    code(|| MODULES.remove(module).map(drop).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunction(
    function: *mut CUfunction,
    module: CUmodule,
    name: *const c_char,
) -> CUresult {
    code(|| {
        let module = MODULES.get(module).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        put(function, FUNCTIONS.add(Arc::new(module.function(text(name)?)?)))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetAttribute(
    answer: *mut c_int,
    attribute: CUfunction_attribute,
    function: CUfunction,
) -> CUresult {
    use CUfunction_attribute::*;
    code(|| {
        FUNCTIONS.get(function).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        match attribute {
            CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK => put(answer, device::MOST_THREADS_PER_BLOCK as c_int),
            other => unsupported(format_args!("{other:?}")),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: *mut c_int,
    function: CUfunction,
    block_threads: c_int,
    _dynamic_shared_bytes: usize,
) -> CUresult {
    code(|| {
        FUNCTIONS.get(function).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        if block_threads < 1 {
            complain!("the occupancy of blocks of {block_threads} threads was asked for");
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        put(blocks, device::THREADS_PER_MULTIPROCESSOR / block_threads)
    })
}
