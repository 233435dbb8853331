//! Says what happened when a thread does what ends a program or a kernel, and then lets the program end.

use crate::memory;
use std::cell::Cell;
use std::io::Write;
use std::sync::Once;

thread_local! {
    /// What the device's thread runs.
    static RUNNING: Cell<&'static str> = const { Cell::new("") };
}

/// Notes what this thread of the device runs from now on.
pub(crate) fn note(operation: &'static str) {
    RUNNING.set(operation);
}

/// Explains segmentation faults, and the illegal instructions that the compiler puts into kernels' wrong turns, from now on.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: all zeros is a valid sigaction; the handler does only what a handler may.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            // On the alternative stack, which Rust's threads have.
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
            for signal in [libc::SIGSEGV, libc::SIGILL] {
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
    });
}

extern "C" fn handle(signal: i32, information: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel fills it in for this signal.
    let address = unsafe { (*information).si_addr() } as u64;
    let running = RUNNING.get();
    let [pointers, storage] = memory::ranges();
    // Nothing is allocated here: the text is put together on the stack.
    let mut text = [0_u8; 400];
    let capacity = text.len();
    let mut rest = &mut text[..];
    let _ = if signal == libc::SIGILL {
        writeln!(
            rest,
            "software device: {running}: an access that is not aligned to its size, an index outside of an array, a shift by too \
             many bits or a division by zero"
        )
    } else if pointers.contains(&address) && running.is_empty() {
        writeln!(rest, "software device: host code touched the device pointer {address:#x}")
    } else if pointers.contains(&address) {
        writeln!(
            rest,
            "software device: {running} touched the device pointer {address:#x}, which was not one of its parameters"
        )
    } else if storage.contains(&address) {
        let pointer = address - (storage.start - pointers.start);
        writeln!(rest, "software device: {running} touched {pointer:#x}, where nothing is allocated")
    } else {
        writeln!(rest, "software device: segmentation fault at {address:#x} {running}")
    };
    let written = capacity - rest.len();
    // SAFETY: a system call on memory of this function.
    unsafe { libc::write(2, text.as_ptr().cast(), written) };
    // SA_RESETHAND: the instruction faults again, and now the program ends.
}
