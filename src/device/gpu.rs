//! One graphics card.

use super::parts::{self, driver_error};
use crate::error::{Error, Result};
use cudarc::driver::result::DriverError;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The oldest cards that CUDA 13 compiles for (Turing, `sm_75`).
pub const OLDEST_COMPUTE_CAPABILITY: (u32, u32) = (7, 5);

/// A GPU: the primary context of one device, which libtorch uses too, so that addresses mean the same to both.
pub struct Gpu {
    context: Arc<CudaContext>,
    ordinal: usize,
    name: String,
    compute_capability: (u32, u32),
    uuid: [u8; 16],
    memory_bytes: usize,
}

impl Gpu {
    /// The GPU of that number. All who open it share one.
    ///
    /// # Errors
    /// `Environment` if there is no driver, no such GPU, or it is too old.
    pub fn open(ordinal: usize) -> Result<Arc<Gpu>> {
        static OPEN: Mutex<Option<HashMap<usize, Weak<Gpu>>>> = Mutex::new(None);
        let count = parts::device_count()?;
        if ordinal >= count {
            return Err(Error::Environment(format!(
                "there is no GPU {ordinal}: this process sees {count}, numbered from 0"
            )));
        }
        // A panic while it was held leaves nothing half done.
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let open = open.get_or_insert_default();
        if let Some(gpu) = open.get(&ordinal).and_then(Weak::upgrade) {
            return Ok(gpu);
        }
        let gpu = Arc::new(Self::new(ordinal)?);
        open.insert(ordinal, Arc::downgrade(&gpu));
        Ok(gpu)
    }

    fn new(ordinal: usize) -> Result<Gpu> {
        let failed = |what: &str| {
            let what = format!("{what} GPU {ordinal}");
            move |error| driver_error(&what, error)
        };
        let context = CudaContext::new(ordinal).map_err(failed("opening"))?;
        // SAFETY: no `CudaSlice` is ever made of this context; who shares a buffer between streams orders them by events.
        unsafe { context.disable_event_tracking() };
        let name = context.name().map_err(failed("asking for the name of"))?;
        let (major, minor) = context.compute_capability().map_err(failed("asking for the capability of"))?;
        let compute_capability = (major.unsigned_abs(), minor.unsigned_abs());
        if compute_capability < OLDEST_COMPUTE_CAPABILITY {
            return Err(Error::Environment(format!(
                "GPU {ordinal} ({name}) is too old: its compute capability is {major}.{minor}, and {}.{} or newer is needed; \
                 use another one, or --device cpu",
                OLDEST_COMPUTE_CAPABILITY.0, OLDEST_COMPUTE_CAPABILITY.1
            )));
        }
        let uuid = context.uuid().map_err(failed("asking for the identity of"))?;
        let memory_bytes = context.total_mem().map_err(failed("asking for the memory of"))?;
        Ok(Gpu {
            context,
            ordinal,
            name,
            compute_capability,
            uuid: uuid.bytes.map(|byte| byte as u8),
            memory_bytes,
        })
    }

    /// Its number.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// What it calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Major and minor number: `(9, 0)` is `sm_90`.
    pub fn compute_capability(&self) -> (u32, u32) {
        self.compute_capability
    }

    /// What tells it from all other GPUs, on all hosts.
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// Bytes of memory on it.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// The primary context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// A new stream, which waits for no other one.
    ///
    /// # Errors
    /// `Environment` if the driver refuses.
    pub fn stream(&self) -> Result<Arc<CudaStream>> {
        self.context.new_stream().map_err(|error| self.failed("making a stream on", error))
    }

    /// The stream in which libtorch works, if nobody told it otherwise.
    pub fn default_stream(&self) -> Arc<CudaStream> {
        self.context.default_stream()
    }

    /// A new event, which keeps no time.
    ///
    /// # Errors
    /// `Environment` if the driver refuses.
    pub fn event(&self) -> Result<CudaEvent> {
        self.context.new_event(None).map_err(|error| self.failed("making an event on", error))
    }

    /// Makes it the current GPU of this thread, for calls of the driver that mean the current one.
    pub(crate) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|error| self.failed("turning to", error))
    }

    /// Waits until the default stream has done what it was given. A copy from memory that is not locked, or a fill, may return
    /// before, and streams of our own do not wait for it.
    pub(crate) fn settle(&self, what: &str) -> Result<()> {
        self.default_stream().synchronize().map_err(|error| self.failed(what, error))
    }

    /// The error of a call of the driver: `what` ends with "on" or the like.
    pub(crate) fn failed(&self, what: impl fmt::Display, error: DriverError) -> Error {
        driver_error(format_args!("{what} {self}"), error)
    }
}

/// `GPU 0 (its name)`.
impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {} ({})", self.ordinal, self.name)
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
