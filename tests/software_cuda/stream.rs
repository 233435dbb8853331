//! Streams: queues with a thread each, which sleeps when there is nothing to do.

use crate::api::{CUresult, Outcome, complain};
use crate::completion::Completion;
use crate::device::Device;
use crate::fault;
use crate::handles::Handles;
use crate::settings::Pauses;
use crate::trace;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub(crate) static STREAMS: Handles<Stream> = Handles::new();

type Operation = (&'static str, Box<dyn FnOnce() + Send>);

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) device: &'static Device,
    /// Ordered with the legacy stream: all that were not made CU_STREAM_NON_BLOCKING.
    pub(crate) blocking: bool,
    pub(crate) legacy: bool,
    pub(crate) priority: i32,
    number: u64,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    operations: VecDeque<Operation>,
    busy: bool,
    /// Destroyed: the thread ends when nothing is left to do.
    closed: bool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.operations.iter().map(|(name, _)| name).collect();
        f.debug_struct("Queue").field("operations", &names).field("busy", &self.busy).finish()
    }
}

impl Stream {
    pub(crate) fn start(device: &'static Device, blocking: bool, legacy: bool, priority: i32) -> Arc<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (queue, changed) = Default::default();
        let stream = Arc::new(Self { device, blocking, legacy, priority, number, queue, changed });
        let queue = Arc::clone(&stream);
        std::thread::Builder::new()
            .name(format!("stream {number}"))
            .spawn(move || queue.run(Pauses::of_thread(number)))
            .expect("software device: no thread for a stream");
        stream
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut pauses: Pauses) {
        let mut queue = self.lock();
        loop {
            if let Some((name, operation)) = queue.operations.pop_front() {
                queue.busy = true;
                drop(queue);
                pauses.pause();
                fault::note(name);
                operation();
                queue = self.lock();
                queue.busy = false;
            } else if queue.closed {
                return;
            } else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn push(&self, name: &'static str, operation: impl FnOnce() + Send + 'static) {
        self.lock().operations.push_back((name, Box::new(operation)));
        self.changed.notify_one();
    }

    /// What is passed when all that was given to the stream so far is done. Never waits on a stream that has ended.
    pub(crate) fn mark(&self) -> Arc<Completion> {
        let mark = Completion::new();
        let mut queue = self.lock();
        if queue.operations.is_empty() && !queue.busy {
            mark.pass();
        } else {
            let passed = Arc::clone(&mark);
            queue.operations.push_back(("mark", Box::new(move || passed.pass())));
        }
        mark
    }

    /// Gives work to the stream, in the order that CUDA promises between it and the legacy stream.
    pub(crate) fn submit(&self, name: &'static str, operation: impl FnOnce() + Send + 'static) {
        trace::submit(self.number, name);
        let others = self.device.streams_before(self);
        // Held until all is queued, so that two threads' submissions do not mix.
        let _order = self.device.order();
        for other in others {
            let mark = other.mark();
            if !mark.is_passed() {
                self.push("a wait for the legacy stream's order", move || mark.wait());
            }
        }
        self.push(name, operation);
    }

    /// A point behind all that was given to the stream, and to those that the legacy order puts before it.
    pub(crate) fn point(&self) -> Arc<Completion> {
        let point = Completion::new();
        let passed = Arc::clone(&point);
        self.submit("a point", move || passed.pass());
        point
    }

    pub(crate) fn wait_for(&self, point: Arc<Completion>) {
        if !point.is_passed() {
            self.submit("a wait for an event", move || point.wait());
        }
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }
}

/// The same for a call that also wants a current context, whichever stream it names: copies, launches, events.
pub(crate) fn stream_for_work<H>(handle: *mut H) -> Outcome<Arc<Stream>> {
    crate::device::current()?;
    stream_of(handle)
}

/// The stream that a handle stands for. Null, and 1, are the legacy stream of the current context.
pub(crate) fn stream_of<H>(handle: *mut H) -> Outcome<Arc<Stream>> {
    match handle.addr() {
        0 | 1 => Ok(crate::device::current()?.legacy_stream()),
        2 => {
            complain!("the per-thread stream is not supported");
            Err(CUresult::CUDA_ERROR_NOT_SUPPORTED)
        }
        _ => STREAMS.get(handle).ok_or_else(|| {
            complain!("{handle:?} is no stream");
            CUresult::CUDA_ERROR_INVALID_HANDLE
        }),
    }
}
