//! What a GPU's own copy reads and writes, beside which the rates of collectives on it stand.

use crate::device::{DeviceBuffer, Gpu};
use crate::error::Result;
use cudarc::driver::result;
use cudarc::driver::sys::CUevent_flags;
use std::sync::Arc;

/// Longer vectors are copied at no other rate.
const MOST_BYTES: usize = 256 << 20;
const COPIES: usize = 10;
const ROUNDS: usize = 5;

/// 10⁹ bytes that the GPU reads and writes in a second when it copies a vector of `bytes` bytes, or of the most that makes a
/// difference: the median over rounds, by the GPU's own clock.
///
/// # Errors
/// `Environment` if the driver refuses.
pub(super) fn copy_gbps(gpu: &Arc<Gpu>, bytes: usize) -> Result<f64> {
    let bytes = bytes.clamp(4096, MOST_BYTES).next_multiple_of(4096);
    let from = DeviceBuffer::<i32>::new(gpu, bytes / 4)?;
    let into = DeviceBuffer::<i32>::new(gpu, bytes / 4)?;
    let stream = gpu.stream()?;
    let failed = |error| gpu.failed("timing a copy on", error);
    let event = || gpu.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(failed);
    let (began, ended) = (event()?, event()?);
    let mut rates = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        began.record(&stream).map_err(failed)?;
        for _ in 0..COPIES {
            // SAFETY: both buffers are so long, and live until the stream is done, which the clock waits for.
            unsafe { result::memcpy_dtod_async(into.address(), from.address(), bytes, stream.cu_stream()) }
                .map_err(failed)?;
        }
        ended.record(&stream).map_err(failed)?;
        stream.synchronize().map_err(failed)?;
        let seconds = f64::from(began.elapsed_ms(&ended).map_err(failed)?) / 1e3;
        rates.push((2 * bytes * COPIES) as f64 / seconds.max(1e-9) / 1e9);
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates[ROUNDS / 2])
}
