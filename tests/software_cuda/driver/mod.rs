//! The functions of `libcuda`, by what they are about.

mod copies;
mod devices;
mod events;
mod launch;
mod memory;
mod modules;
mod streams;

use crate::api::{CUresult, Outcome, code, complain, put};
use crate::device;
use crate::fault;
use crate::settings::settings;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint};
use std::sync::{Mutex, PoisonError};

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> CUresult {
    code(|| {
        fault::install();
        if device::devices().is_empty() { Err(CUresult::CUDA_ERROR_NO_DEVICE) } else { Ok(()) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: *mut c_int) -> CUresult {
    let driver = settings().driver;
    code(|| put(version, driver.major * 1000 + driver.minor * 10))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(error: CUresult, text: *mut *const c_char) -> CUresult {
    code(|| put(text, kept(format!("{error:?}"))?.as_ptr()))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(error: CUresult, text: *mut *const c_char) -> CUresult {
    let name = format!("{error:?}");
    let words =
        name.trim_start_matches("CUDA_").trim_start_matches("ERROR_").to_lowercase().replace('_', " ");
    code(|| put(text, kept(words)?.as_ptr()))
}

/// Texts that callers may keep for ever.
fn kept(text: String) -> Outcome<&'static CStr> {
    static TEXTS: Mutex<Option<HashMap<String, &'static CStr>>> = Mutex::new(None);
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let texts = texts.get_or_insert_default();
    if let Some(kept) = texts.get(&text) {
        return Ok(kept);
    }
    let c_text = CString::new(text.clone()).map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)?;
    Ok(texts.entry(text).or_insert(Box::leak(c_text.into_boxed_c_str())))
}

/// A text that a caller gave.
fn text<'a>(from: *const c_char) -> Outcome<&'a str> {
    if from.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: callers give texts that end with a zero and live longer than the call.
    unsafe { CStr::from_ptr(from) }.to_str().map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)
}

/// What is known of CUDA but not played here.
fn unsupported<T>(what: std::fmt::Arguments<'_>) -> Outcome<T> {
    complain!("not supported: {what}");
    Err(CUresult::CUDA_ERROR_NOT_SUPPORTED)
}
