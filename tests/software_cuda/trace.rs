//! A record of what programs ask for, for tests of what they do not ask for: a host that waits between stages, say.
//!
//! Each line of `SOFTWARE_CUDA_TRACE`'s file is a thread, `submit`, a stream and an operation, or a thread, `wait` and a function.

use crate::settings::settings;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

fn line(text: std::fmt::Arguments<'_>) {
    static FILE: OnceLock<Option<File>> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let path = settings().trace.as_ref()?;
        let file = File::options().create(true).append(true).open(path);
        Some(file.unwrap_or_else(|error| panic!("software device: {}: {error}", path.display())))
    });
    if let Some(mut file) = file.as_ref() {
        // One write for a line, so that those of several threads and processes do not mix.
        let text = format!("{:?} {text}\n", std::thread::current().id());
        file.write_all(text.as_bytes()).expect("software device: the trace cannot be written");
    }
}

/// An operation was given to a stream.
pub(crate) fn submit(stream: u64, operation: &str) {
    line(format_args!("submit {stream} {operation}"));
}

/// The host waits for the device.
pub(crate) fn wait(function: &str) {
    line(format_args!("wait {function}"));
}
