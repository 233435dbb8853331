//! How fast each kernel goes through memory, beside the device's own copy.

use super::machine::{GpuMachine, Machine, Memory};
use crate::error::{Error, Result};
use crate::reduce::cuda::{AnchorStep, DequantiseReduce, Kernels, Launch, OuterUpdate, ParameterStep};
use crate::reduce::{ElementType, Operator, Tree, WireFormat};
use cudarc::driver::sys::{CUdeviceptr, CUevent_flags};
use cudarc::driver::{CudaStream, result};
use serde::Serialize;

/// How fast one kernel is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bandwidth {
    /// What was measured: `reduce f32 sum`, `copy`.
    pub kernel: String,
    /// Bytes that one start reads and writes.
    pub bytes: u64,
    /// Of one start: the median over rounds.
    pub seconds: f64,
    /// The bytes per second, in units of the copy's.
    pub share_of_copy: f64,
}

impl Bandwidth {
    /// 10⁹ bytes per second, read and written.
    pub fn gigabytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds / 1e9
    }
}

/// Starts before the clock runs, and starts between two looks at it, of which there are as many as rounds.
const WARM_UP: usize = 2;
const STARTS: usize = 10;
const ROUNDS: usize = 7;

/// Operands of the reductions of many vectors.
const SOURCES: usize = 4;
const CONTRIBUTIONS: usize = 8;

/// Times every kernel on vectors of `vector_bytes` bytes (of f32, or of the type that is named), with the device's clock
/// (events in the stream). The first row is the device's own copy. All is measured in one stream, with nothing else on the GPU.
///
/// # Errors
/// `Environment` if the GPU has too little memory (six such vectors) or the driver refuses.
pub fn bandwidth(machine: &GpuMachine, vector_bytes: usize) -> Result<Vec<Bandwidth>> {
    let bytes = vector_bytes.max(4096).next_multiple_of(4096);
    let vectors: Vec<_> = (0..SOURCES + 2).map(|_| machine.allocate(bytes)).collect::<Result<_>>()?;
    let gpu = machine.kernels().gpu();
    gpu.bind()?;
    for vector in &vectors {
        // Numbers that stay what they are under every kernel: zeros.
        // SAFETY: the memory is so long, and nothing else uses it.
        unsafe { result::memset_d8_async(vector.address(), 0, bytes, machine.stream().cu_stream()) }
            .map_err(|error| gpu.failed("clearing memory on", error))?;
    }
    let at: Vec<CUdeviceptr> = vectors.iter().map(Memory::address).collect();
    let clock = Clock { machine, bytes: bytes as u64 };

    let copy = clock.time("copy", 2.0, |_, stream| {
        // SAFETY: both vectors are so long, and nothing else uses them.
        unsafe { result::memcpy_dtod_async(at[1], at[0], bytes, stream.cu_stream()) }
            .map_err(|error| gpu.failed("copying on", error))
    })?;
    let mut rows = vec![copy];
    for element in ElementType::ALL {
        let count = bytes / element.size();
        rows.push(clock.time(&format!("reduce {element} sum"), 3.0, |kernels, stream| {
            // SAFETY: as above, as for all kernels below.
            unsafe { kernels.reduce(stream, element, Operator::Sum, at[0], at[0], at[1], count) }
        })?);
    }
    let f32s = bytes / 4;
    rows.push(clock.time("reduce f32 max", 3.0, |kernels, stream| unsafe {
        // SAFETY: as above.
        kernels.reduce(stream, ElementType::F32, Operator::Max, at[2], at[0], at[1], f32s)
    })?);
    for element in [ElementType::F32, ElementType::F16, ElementType::BF16] {
        let (name, passes) = (format!("reduce_many {element} sum of {SOURCES}"), SOURCES as f64 + 1.0);
        let (sources, count) = (&at[..SOURCES], bytes / element.size());
        rows.push(clock.time(&name, passes, |kernels, stream| {
            let (operator, tree) = (Operator::Sum, Tree::Canonical);
            // SAFETY: as above.
            unsafe { kernels.reduce_many(stream, element, operator, tree, sources, at[SOURCES], count) }
        })?);
        rows.push(clock.time(&format!("scale_for_average {element}"), 2.0, |kernels, stream| {
            // SAFETY: as above.
            unsafe { kernels.scale_for_average(stream, element, at[0], count, 8) }
        })?);
    }
    rows.extend(updates(&clock, &at)?);
    rows.extend(wires(&clock, &at)?);

    let copied = rows[0].bytes as f64 / rows[0].seconds;
    for row in &mut rows {
        row.share_of_copy = row.bytes as f64 / row.seconds / copied;
    }
    Ok(rows)
}

fn updates(clock: &Clock<'_>, at: &[CUdeviceptr]) -> Result<Vec<Bandwidth>> {
    let count = clock.bytes as usize / 4;
    let (learning_rate, momentum) = (0.7, 0.9);
    let update = OuterUpdate {
        anchor: at[0],
        sum: at[1],
        ranks: 1,
        params: at[2],
        count,
        anchor_step: AnchorStep::Sgd { learning_rate },
        parameter_step: ParameterStep::Rebase,
    };
    let nesterov = AnchorStep::Nesterov { learning_rate, momentum, velocity: at[3] };
    let merge = ParameterStep::Merge { submitted: at[4] };
    let cases = [
        ("outer_update f32 sgd rebase", 4.0, update),
        ("outer_update f32 nesterov rebase", 6.0, OuterUpdate { anchor_step: nesterov, ..update }),
        (
            "outer_update f32 nesterov merge",
            8.0,
            OuterUpdate { anchor_step: nesterov, parameter_step: merge, ..update },
        ),
    ];
    let mut rows = Vec::new();
    for (name, passes, update) in cases {
        rows.push(clock.time(name, passes, |kernels, stream| {
            // SAFETY: all vectors are so long, and nothing else uses them.
            unsafe { kernels.outer_update(stream, ElementType::F32, &update) }
        })?);
    }
    rows.push(clock.time("delta f32", 3.0, |kernels, stream| {
        // SAFETY: as above.
        unsafe { kernels.delta(stream, ElementType::F32, at[0], at[1], Some(at[2]), 0.5, count) }
    })?);
    Ok(rows)
}

fn wires(clock: &Clock<'_>, at: &[CUdeviceptr]) -> Result<Vec<Bandwidth>> {
    let count = clock.bytes as usize / 4;
    let mut rows = Vec::new();
    for element in [ElementType::F16, ElementType::BF16] {
        let wide = ElementType::F32;
        rows.push(clock.time(&format!("cast f32 to {element}"), 1.5, |kernels, stream| {
            // SAFETY: the vectors are long enough, and nothing else uses them.
            unsafe { kernels.cast(stream, (wide, at[0]), (element, at[1]), count) }
        })?);
        rows.push(clock.time(&format!("cast {element} to f32"), 1.5, |kernels, stream| {
            // SAFETY: as above.
            unsafe { kernels.cast(stream, (element, at[1]), (wide, at[0]), count) }
        })?);
    }
    for format in [WireFormat::F16, WireFormat::Bf16, WireFormat::Int8] {
        let encoded = format.encoded_bytes(count) as f64 / clock.bytes as f64;
        if format == WireFormat::Int8 {
            rows.push(clock.time("quantise int8", 1.0 + encoded, |kernels, stream| {
                // SAFETY: as above.
                unsafe { kernels.quantise(stream, format, at[0], None, at[1], count) }
            })?);
            rows.push(clock.time("dequantise int8", 1.0 + encoded, |kernels, stream| {
                // SAFETY: as above.
                unsafe { kernels.dequantise(stream, format, at[1], at[0], count) }
            })?);
        }
        // As many elements as make all contributions one vector long.
        let part = count / CONTRIBUTIONS / 256 * 256;
        let stride = format.encoded_bytes(part);
        let reduction = DequantiseReduce {
            format,
            tree: Tree::Canonical,
            contributions: at[0],
            stride,
            ranks: CONTRIBUTIONS,
            factor: None,
            left: None,
            result: at[1],
            values: at[2],
            count: part,
        };
        let moved = ((CONTRIBUTIONS + 1) * stride + 4 * part) as f64 / clock.bytes as f64;
        let name = format!("dequantise_reduce {format} of {CONTRIBUTIONS}");
        if part > 0 {
            rows.push(clock.time(&name, moved, |kernels, stream| {
                // SAFETY: as above.
                unsafe { kernels.dequantise_reduce(stream, &reduction) }
            })?);
        }
    }
    Ok(rows)
}

struct Clock<'a> {
    machine: &'a GpuMachine,
    bytes: u64,
}

impl Clock<'_> {
    /// `passes` is how often a vector's bytes are read or written by one start.
    fn time(
        &self,
        kernel: &str,
        passes: f64,
        start: impl Fn(&Kernels, &CudaStream) -> Result<()>,
    ) -> Result<Bandwidth> {
        let (kernels, stream) = (self.machine.kernels(), self.machine.stream());
        let gpu = kernels.gpu();
        let event = || {
            gpu.context()
                .new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
                .map_err(|error| gpu.failed("making an event on", error))
        };
        let (began, ended) = (event()?, event()?);
        let recording = |error| gpu.failed("recording an event on", error);
        for _ in 0..WARM_UP {
            start(kernels, stream)?;
        }
        let mut seconds = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            began.record(stream).map_err(recording)?;
            for _ in 0..STARTS {
                start(kernels, stream)?;
            }
            ended.record(stream).map_err(recording)?;
            self.machine.wait()?;
            let milliseconds =
                began.elapsed_ms(&ended).map_err(|error| gpu.failed("reading the clock of", error))?;
            seconds.push(f64::from(milliseconds) / 1e3 / STARTS as f64);
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds[ROUNDS / 2];
        if median <= 0.0 {
            return Err(Error::Environment(format!("the clock of {gpu} says that {kernel} takes no time")));
        }
        let bytes = (passes * self.bytes as f64) as u64;
        Ok(Bandwidth { kernel: kernel.into(), bytes, seconds: median, share_of_copy: 1.0 })
    }
}
