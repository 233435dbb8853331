//! Between C and Rust: results, pointers to write to, and complaints on the standard error output.

pub(crate) use cudarc::driver::sys::CUresult;

pub(crate) type Outcome<T = ()> = Result<T, CUresult>;

/// One line that says why a call failed: the code alone seldom does.
macro_rules! complain {
    ($($text:tt)*) => { eprintln!("software device: {}", format_args!($($text)*)) };
}
pub(crate) use complain;

/// The code of what `body` answers.
pub(crate) fn code(body: impl FnOnce() -> Outcome) -> CUresult {
    match body() {
        Ok(()) => CUresult::CUDA_SUCCESS,
        Err(code) => code,
    }
}

/// Writes an answer where the caller wants it.
pub(crate) fn put<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: CUDA's functions are given pointers to memory for one answer.
    unsafe { to.write(value) };
    Ok(())
}

/// An answer that is not wanted where the pointer is null.
pub(crate) fn put_if_wanted<T>(to: *mut T, value: T) {
    if !to.is_null() {
        // SAFETY: as in `put`.
        unsafe { to.write(value) };
    }
}
