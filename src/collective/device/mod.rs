//! Runs schedules on vectors in a GPU's memory.
//!
//! The plans are those of the host's [executor](super::executor), segments included, so that a rank with its vector on a GPU
//! and one with its vector on the host can be in one operation. Over NCCL nothing leaves the GPUs ([`over_nccl`]); over any
//! other transport each message passes through page-locked host memory ([`staged`]). Copies, transfers and reductions are
//! put into streams that are ordered by events: the host waits for messages, and for the end, but never for a reduction.

mod over_nccl;
mod staged;

use super::plan::{Plan, Region, Work};
use crate::device::{DeviceBuffer, Gpu, PinnedBuffer};
use crate::error::Result;
use crate::reduce::cuda::{Kernels, Launch, Module};
use crate::reduce::{ElementType, Operator};
use crate::transport::{Ticket, Transport, Wait};
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaEvent, CudaStream, result};
use std::ops::Range;
use std::sync::Arc;

/// What one rank needs to work on a GPU. It lives as long as the communicator, and the steady state allocates nothing.
pub(super) struct Room {
    pub(super) gpu: Arc<Gpu>,
    pub(super) kernels: Arc<Kernels>,
    streams: Streams,
    events: Events,
    scratch: Option<DeviceBuffer<i64>>,
    /// Scratch space that became too short in the middle of an operation.
    outgrown: Vec<DeviceBuffer<i64>>,
    /// What is sent, and what is received in even and odd stages.
    outgoing: Option<PinnedBuffer>,
    incoming: [Option<PinnedBuffer>; 2],
    messages: Vec<staged::Progress>,
    tickets: Vec<Option<Ticket>>,
}

/// Each does its work in order, beside the others.
struct Streams {
    /// Copies to the host, or all transfers of NCCL.
    outbound: Arc<CudaStream>,
    /// Copies from the host.
    inbound: Arc<CudaStream>,
    /// Reductions and copies on the GPU.
    compute: Arc<CudaStream>,
}

struct Events {
    /// What the caller had given to the default stream.
    begun: CudaEvent,
    /// The last reduction of a stage.
    computed: CudaEvent,
    /// The last copy from the host of an even and an odd stage.
    landed: [CudaEvent; 2],
    finished: CudaEvent,
    /// One for each message, or group of messages, of a stage.
    messages: Vec<CudaEvent>,
}

/// What is to be done.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) plan: &'a Plan,
    pub(super) buffer: CUdeviceptr,
    pub(super) element: ElementType,
    pub(super) operator: Operator,
    /// The elements to be scaled at the end of an average.
    pub(super) averaged: Option<&'a Range<usize>>,
}

/// The two places of a running schedule.
#[derive(Clone, Copy)]
struct Memory {
    buffer: CUdeviceptr,
    scratch: CUdeviceptr,
}

impl Memory {
    fn at(&self, region: Region) -> CUdeviceptr {
        (if region.in_scratch { self.scratch } else { self.buffer }) + region.start as CUdeviceptr
    }
}

impl Room {
    /// # Errors
    /// `Environment` if the driver refuses, or there is no compiler of kernels.
    pub(super) fn new(gpu: &Arc<Gpu>) -> Result<Room> {
        Ok(Room {
            kernels: Kernels::load(gpu)?,
            streams: Streams { outbound: gpu.stream()?, inbound: gpu.stream()?, compute: gpu.stream()? },
            events: Events {
                begun: gpu.event()?,
                computed: gpu.event()?,
                landed: [gpu.event()?, gpu.event()?],
                finished: gpu.event()?,
                messages: Vec::new(),
            },
            scratch: None,
            outgrown: Vec::new(),
            outgoing: None,
            incoming: [None, None],
            messages: Vec::new(),
            tickets: Vec::new(),
            gpu: gpu.clone(),
        })
    }

    /// Makes room for a plan and loads its kernels. To be called before an operation is entered: to free memory, the driver waits
    /// for everything on the GPU, also for another rank's transfers there, which may wait for this rank.
    ///
    /// # Errors
    /// `Environment` if the GPU has no memory left, or kernels cannot be compiled.
    pub(super) fn reserve(&mut self, plan: &Plan, element: ElementType) -> Result<()> {
        self.outgrown.clear();
        let words = words(plan);
        if self.scratch.as_ref().is_none_or(|scratch| scratch.len() < words) {
            // The old memory goes first: both need not fit.
            self.scratch = None;
            self.scratch = Some(DeviceBuffer::new(&self.gpu, words)?);
        }
        self.kernels.prepare(Module::Reduce(element))
    }

    /// Runs a plan on a vector, and returns when the result is there.
    ///
    /// # Errors
    /// Those of the transport and of the driver. If the transport cannot give memory back, this does not return: the job is
    /// ended with [`Transport::abort`].
    pub(super) fn run(&mut self, transport: &dyn Transport, job: &Job<'_>, wait: &Wait<'_>) -> Result<()> {
        self.gpu.bind()?;
        match transport.nccl() {
            Some(nccl) => self.run_over_nccl(nccl, job, wait),
            None => self.run_staged(transport, job, wait),
        }
    }

    /// Runs something on a copy of the vector in host memory, and copies the result back.
    ///
    /// # Errors
    /// Those of `body` and of the driver.
    pub(super) fn run_on_host(
        &mut self,
        buffer: CUdeviceptr,
        bytes: usize,
        body: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.gpu.bind()?;
        let gpu = self.gpu.clone();
        let host = &mut grown(&gpu, &mut self.outgoing, bytes)?.as_mut_slice()[..bytes];
        let stream = &self.streams.outbound;
        let copied = |what: &'static str| move |error| gpu.failed(what, error);
        self.events.begun.record(&self.gpu.default_stream()).map_err(copied.clone()("copying from"))?;
        stream.wait(&self.events.begun).map_err(copied.clone()("copying from"))?;
        // SAFETY: both are `bytes` long, and live until the stream has done the copy, which is waited for.
        unsafe { result::memcpy_dtoh_async(host, buffer, stream.cu_stream()) }
            .and_then(|()| stream.synchronize())
            .map_err(copied.clone()("copying from"))?;
        body(host)?;
        // SAFETY: the same.
        unsafe { result::memcpy_htod_async(buffer, host, stream.cu_stream()) }
            .and_then(|()| stream.synchronize())
            .map_err(copied("copying to"))
    }

    /// The places of the plan. All streams go on when the caller's work in the default stream is done.
    fn begin(&mut self, job: &Job<'_>) -> Result<Memory> {
        let words = words(job.plan);
        if self.scratch.as_ref().is_none_or(|scratch| scratch.len() < words) {
            // Not freed here, as `reserve` says.
            self.outgrown.extend(self.scratch.take());
            self.scratch = Some(DeviceBuffer::new(&self.gpu, words)?);
        }
        let scratch = self.scratch.as_ref().map_or(0, DeviceBuffer::address);
        let begun = &self.events.begun;
        self.driver(begun.record(&self.gpu.default_stream()))?;
        for stream in self.streams.all() {
            self.driver(stream.wait(begun))?;
        }
        Ok(Memory { buffer: job.buffer, scratch })
    }

    /// Makes events for `count` messages, if there are not so many yet.
    fn make_events(&mut self, count: usize) -> Result<()> {
        while self.events.messages.len() < count {
            self.events.messages.push(self.gpu.event()?);
        }
        Ok(())
    }

    /// Puts a local step into the stream of reductions.
    fn enqueue(&self, work: &Work, memory: Memory, job: &Job<'_>) -> Result<()> {
        let stream = &self.streams.compute;
        match *work {
            Work::Copy { into, from } => {
                let (to, from, len) = (memory.at(into), memory.at(from), into.len);
                // SAFETY: the regions lie inside the caller's vector and the scratch space, which live until the end of the
                // operation; the stream's order, and the events that it waits for, keep others from them.
                self.driver(unsafe { result::memcpy_dtod_async(to, from, len, stream.cu_stream()) })
            }
            Work::Reduce { into, left, right } => {
                let count = into.len / job.element.size();
                let [into, left, right] = [into, left, right].map(|region| memory.at(region));
                // SAFETY: the same; `into` equals an operand or overlaps none, as every schedule's check makes sure.
                unsafe { self.kernels.reduce(stream, job.element, job.operator, into, left, right, count) }
            }
        }
    }

    /// Ends an average, when the stream of reductions has come there.
    fn enqueue_average(&self, job: &Job<'_>, ranks: usize) -> Result<()> {
        let Some(range) = job.averaged else { return Ok(()) };
        let start = job.buffer + (range.start * job.element.size()) as CUdeviceptr;
        let stream = &self.streams.compute;
        // SAFETY: the range lies inside the caller's vector, which nobody else uses before the end of the operation.
        unsafe { self.kernels.scale_for_average(stream, job.element, start, range.len(), ranks) }
    }

    /// After an error: nothing of ours may be at work on memory that the caller gets back. Copies and reductions end by
    /// themselves.
    fn quiet(&self) {
        for stream in self.streams.all() {
            // There is an error to report already.
            let _ = stream.synchronize();
        }
    }

    fn driver<T>(&self, result: Result<T, result::DriverError>) -> Result<T> {
        result.map_err(|error| self.gpu.failed("a collective on", error))
    }
}

fn words(plan: &Plan) -> usize {
    plan.scratch_bytes.div_ceil(size_of::<i64>())
}

impl Streams {
    fn all(&self) -> [&Arc<CudaStream>; 3] {
        [&self.outbound, &self.inbound, &self.compute]
    }
}

/// Locked memory of at least `bytes` bytes. What was there before is lost where it has to grow.
fn grown<'a>(
    gpu: &Arc<Gpu>,
    place: &'a mut Option<PinnedBuffer>,
    bytes: usize,
) -> Result<&'a mut PinnedBuffer> {
    if place.as_ref().is_none_or(|buffer| buffer.len() < bytes) {
        *place = None;
    }
    match place {
        Some(buffer) => Ok(buffer),
        None => Ok(place.insert(PinnedBuffer::new(gpu, bytes)?)),
    }
}
