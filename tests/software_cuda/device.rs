//! Devices and their primary contexts. Other contexts there are none.

use crate::api::{CUresult, Outcome, complain};
use crate::memory;
use crate::settings::settings;
use crate::stream::{STREAMS, Stream};
use cudarc::driver::sys::CUcontext;
use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

pub(crate) const NAME: &str = "software device (no GPU)";
/// Few, so that kernels that fill the device stay quick.
pub(crate) const MULTIPROCESSORS: i32 = 4;
pub(crate) const MOST_THREADS_PER_BLOCK: u32 = 1024;
pub(crate) const THREADS_PER_MULTIPROCESSOR: i32 = 2048;
pub(crate) const SHARED_BYTES_PER_BLOCK: u32 = 48 << 10;

#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) ordinal: usize,
    /// Its number on the host.
    pub(crate) host_ordinal: usize,
    context: Mutex<Context>,
    order: Mutex<()>,
    /// The code of an error that makes the context unusable; 0: none.
    broken: AtomicU32,
}

#[derive(Debug, Default)]
struct Context {
    retained: usize,
    legacy: Option<Arc<Stream>>,
    streams: Vec<Arc<Stream>>,
}

/// All devices.
pub(crate) fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let device = |(ordinal, &host_ordinal)| Device {
            ordinal,
            host_ordinal,
            context: Mutex::default(),
            order: Mutex::default(),
            broken: AtomicU32::new(0),
        };
        settings().devices.iter().enumerate().map(device).collect()
    })
}

pub(crate) fn device(ordinal: i32) -> Outcome<&'static Device> {
    let device = usize::try_from(ordinal).ok().and_then(|ordinal| devices().get(ordinal));
    device.ok_or(CUresult::CUDA_ERROR_INVALID_DEVICE)
}

thread_local! {
    static CURRENT: Cell<Option<&'static Device>> = const { Cell::new(None) };
}

/// The device whose context is current in this thread.
pub(crate) fn current() -> Outcome<&'static Device> {
    let device = CURRENT.get().ok_or_else(|| {
        complain!("no context is current in this thread");
        CUresult::CUDA_ERROR_INVALID_CONTEXT
    })?;
    if device.context().retained == 0 {
        complain!("the current context, of device {}, was released", device.ordinal);
        return Err(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
    }
    device.check()?;
    Ok(device)
}

pub(crate) fn current_handle() -> CUcontext {
    CURRENT.get().map_or(std::ptr::null_mut(), Device::handle)
}

pub(crate) fn set_current(handle: CUcontext) -> Outcome {
    if handle.is_null() {
        CURRENT.set(None);
        return Ok(());
    }
    CURRENT.set(Some(device_of(handle)?));
    Ok(())
}

/// The device of a context.
pub(crate) fn device_of(handle: CUcontext) -> Outcome<&'static Device> {
    devices().iter().find(|device| device.handle() == handle).ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)
}

impl Device {
    pub(crate) fn handle(&self) -> CUcontext {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    fn context(&self) -> MutexGuard<'_, Context> {
        self.context.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn order(&self) -> MutexGuard<'_, ()> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same on every process of this host, so that ranks can tell whether they share it.
    pub(crate) fn uuid(&self) -> [u8; 16] {
        let mut uuid = *b"software-device\0";
        uuid[15] = self.host_ordinal as u8;
        uuid
    }

    pub(crate) fn retain(&self) {
        self.context().retained += 1;
    }

    pub(crate) fn is_active(&self) -> bool {
        self.context().retained > 0
    }

    /// Ends the context with its last user: work is waited for, streams and memory go.
    pub(crate) fn release(&'static self) -> Outcome {
        let mut context = self.context();
        match context.retained {
            0 => return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT),
            1 => {}
            _ => {
                context.retained -= 1;
                return Ok(());
            }
        }
        drop(context);
        self.synchronize();
        let ended = {
            let mut context = self.context();
            context.retained -= 1;
            if context.retained > 0 {
                return Ok(());
            }
            std::mem::take(&mut *context)
        };
        ended.streams.iter().chain(&ended.legacy).for_each(|stream| stream.close());
        STREAMS.remove_all(|stream| stream.device.ordinal == self.ordinal);
        memory::free_all(self.ordinal);
        self.broken.store(0, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn new_stream(&'static self, blocking: bool, priority: i32) -> Arc<Stream> {
        let stream = Stream::start(self, blocking, false, priority);
        self.context().streams.push(Arc::clone(&stream));
        stream
    }

    /// What was given to the stream is still done, as CUDA says of a stream that is destroyed.
    pub(crate) fn end_stream(&'static self, stream: &Arc<Stream>) {
        let last = Arc::clone(stream);
        stream.submit("the stream's end", move || {
            self.context().streams.retain(|other| !Arc::ptr_eq(other, &last));
        });
        stream.close();
    }

    pub(crate) fn legacy_stream(&'static self) -> Arc<Stream> {
        let mut context = self.context();
        Arc::clone(context.legacy.get_or_insert_with(|| Stream::start(self, true, true, 0)))
    }

    /// Those streams whose work so far comes before new work of `stream`: between the legacy stream and the blocking ones.
    pub(crate) fn streams_before(&self, stream: &Stream) -> Vec<Arc<Stream>> {
        let context = self.context();
        match (stream.legacy, stream.blocking) {
            (true, _) => context.streams.iter().filter(|other| other.blocking).cloned().collect(),
            (false, true) => context.legacy.iter().cloned().collect(),
            (false, false) => Vec::new(),
        }
    }

    /// Waits for all work of all streams.
    pub(crate) fn synchronize(&self) {
        let context = self.context();
        let streams: Vec<_> = context.streams.iter().chain(&context.legacy).cloned().collect();
        drop(context);
        let marks: Vec<_> = streams.iter().map(|stream| stream.mark()).collect();
        marks.iter().for_each(|mark| mark.wait());
    }

    /// Makes the context unusable, as a GPU does after an illegal access.
    pub(crate) fn break_with(&self, code: CUresult) {
        self.broken.store(code as u32, Ordering::Relaxed);
    }

    /// The error that made the context unusable.
    pub(crate) fn check(&self) -> Outcome {
        match self.broken.load(Ordering::Relaxed) {
            0 => Ok(()),
            code if code == CUresult::CUDA_ERROR_ILLEGAL_ADDRESS as u32 => {
                Err(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)
            }
            _ => Err(CUresult::CUDA_ERROR_LAUNCH_FAILED),
        }
    }
}
