//! Where kernels are checked: a GPU, or whatever else can start them.

use crate::device::Gpu;
use crate::error::{Error, Result};
use crate::reduce::cuda::{Call, Kernels, Launch};
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaEvent, CudaStream, result};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// No kernel here takes a hundredth of it.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Starts kernels in one stream, and has memory for them.
pub trait Machine: Launch {
    /// Memory of the device.
    type Memory: Memory;

    /// The stream.
    fn stream(&self) -> &Self::Stream;

    /// Memory whose address is a multiple of 256.
    ///
    /// # Errors
    /// `Environment` if there is none left.
    fn allocate(&self, bytes: usize) -> Result<Self::Memory>;

    /// Waits until the stream has done everything.
    ///
    /// # Errors
    /// `Environment` if something in the stream failed, or takes more than a minute.
    fn wait(&self) -> Result<()>;
}

/// Memory of a device.
pub trait Memory {
    /// Where it begins, for kernels.
    fn address(&self) -> CUdeviceptr;

    /// Copies bytes of the host to its beginning.
    ///
    /// # Errors
    /// `Environment` if the device refuses.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Copies its beginning to the host.
    ///
    /// # Errors
    /// `Environment` if the device refuses.
    fn read(&self, bytes: &mut [u8]) -> Result<()>;
}

/// A GPU with a stream.
pub struct GpuMachine {
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
    done: CudaEvent,
}

impl GpuMachine {
    /// With the kernels of a GPU, and a stream of its own.
    ///
    /// # Errors
    /// `Environment` if the driver refuses.
    pub fn new(kernels: &Arc<Kernels>) -> Result<Self> {
        let (stream, done) = (kernels.gpu().stream()?, kernels.gpu().event()?);
        Ok(GpuMachine { kernels: kernels.clone(), stream, done })
    }

    /// The kernels.
    pub fn kernels(&self) -> &Arc<Kernels> {
        &self.kernels
    }
}

impl Launch for GpuMachine {
    type Stream = CudaStream;

    fn multiprocessors(&self) -> u32 {
        self.kernels.multiprocessors()
    }

    unsafe fn launch(&self, stream: &CudaStream, call: Call<'_>) -> Result<()> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.kernels.launch(stream, call) }
    }
}

impl Machine for GpuMachine {
    type Memory = GpuMemory;

    fn stream(&self) -> &CudaStream {
        &self.stream
    }

    fn allocate(&self, bytes: usize) -> Result<GpuMemory> {
        let gpu = self.kernels.gpu().clone();
        gpu.bind()?;
        // SAFETY: the context is bound, and the size above zero.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }
            .map_err(|error| gpu.failed(format_args!("allocating {bytes} bytes on"), error))?;
        Ok(GpuMemory { gpu, address, bytes })
    }

    fn wait(&self) -> Result<()> {
        let gpu = self.kernels.gpu();
        let failed = |error| gpu.failed("waiting for a kernel on", error);
        self.done.record(&self.stream).map_err(failed)?;
        let began = Instant::now();
        while !self.done.try_is_complete().map_err(failed)? {
            if began.elapsed() > LONGEST_WAIT {
                let seconds = LONGEST_WAIT.as_secs();
                return Err(Error::Environment(format!("a kernel on {gpu} has not ended in {seconds} s")));
            }
            thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }
}

/// Memory of a GPU.
pub struct GpuMemory {
    gpu: Arc<Gpu>,
    address: CUdeviceptr,
    bytes: usize,
}

impl Memory for GpuMemory {
    fn address(&self) -> CUdeviceptr {
        self.address
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= self.bytes);
        self.gpu.bind()?;
        // SAFETY: the memory is long enough, and whoever checks kernels waits for them before.
        unsafe { result::memcpy_htod_sync(self.address, bytes) }
            .map_err(|error| self.gpu.failed("copying to", error))?;
        // Such a copy may return before it has arrived, and other streams do not wait for it.
        self.gpu.settle("copying to")
    }

    fn read(&self, bytes: &mut [u8]) -> Result<()> {
        assert!(bytes.len() <= self.bytes);
        self.gpu.bind()?;
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_sync(bytes, self.address) }
            .map_err(|error| self.gpu.failed("copying from", error))
    }
}

impl Drop for GpuMemory {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: it came from `malloc_sync`, and is freed here only. Nothing can be done about a refusal.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}
