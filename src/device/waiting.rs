//! Waiting for a GPU, with a deadline and without taking a core.

use super::Gpu;
use crate::error::{Error, Result};
use crate::transport::{Backoff, Peer, Wait};
use cudarc::driver::CudaEvent;

/// Waits until what was recorded is done. `ranks` is how many share the cores; `look` is asked now and then whether something
/// else went wrong; `late` makes the error if the deadline passes.
///
/// # Errors
/// What `look` and `late` say, and `Environment` if something failed on the GPU.
pub(crate) fn wait_for_event(
    gpu: &Gpu,
    event: &CudaEvent,
    ranks: usize,
    wait: &Wait<'_>,
    mut look: impl FnMut() -> Result<()>,
    late: impl FnOnce() -> Error,
) -> Result<()> {
    let mut backoff = Backoff::new(wait.patience, ranks, false);
    while !is_complete(gpu, event, wait)? {
        backoff.pass_time();
        if backoff.should_look_at_the_clock() {
            look()?;
            if wait.deadline.has_passed() {
                return Err(late());
            }
        }
    }
    Ok(())
}

/// Whether what was recorded is done.
///
/// # Errors
/// `Environment` if something failed on the GPU.
pub(crate) fn is_complete(gpu: &Gpu, event: &CudaEvent, wait: &Wait<'_>) -> Result<bool> {
    event.try_is_complete().map_err(|error| gpu.failed(format_args!("{} on", wait.operation), error))
}

/// The error of a GPU that does not end what it was given.
pub(crate) fn gpu_stalled(gpu: &Gpu, own: &Peer, wait: &Wait<'_>) -> Error {
    Error::Stalled {
        waiting: own.rank,
        missing: vec![own.clone()],
        operation: wait.operation.to_string(),
        seconds: wait.deadline.elapsed_seconds(),
        hint: format!(
            "its {gpu} has not ended what it was given; look at `nvidia-smi` and the kernel's messages, or raise --timeout"
        ),
    }
}
