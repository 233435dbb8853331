//! Communicators: one rank's end, whose operations run one after the other, in whatever streams they were given to.

use super::group::Task;
use super::rendezvous::{self, Links};
use super::{Outcome, refuse};
use crate::api::complain;
use crate::completion::Completion;
use crate::device::Device;
use crate::handles::Handles;
use crate::settings::{Operation, Pauses, settings};
use cudarc::nccl::sys::{ncclResult_t, ncclUniqueId};
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

pub(super) static COMMUNICATORS: Handles<Communicator> = Handles::new();

#[derive(Debug)]
pub(super) struct Communicator {
    pub(super) rank: usize,
    pub(super) ranks: usize,
    pub(super) device: &'static Device,
    blocking: bool,
    links: OnceLock<Links>,
    /// What `ncclCommGetAsyncError` tells.
    state: Mutex<ncclResult_t>,
    state_changed: Condvar,
    /// Becomes readable with the abort.
    aborting: (UnixStream, UnixStream),
    aborted: AtomicBool,
    /// Held by the operation that runs.
    running: Mutex<()>,
    operations: AtomicU64,
    /// The end of the last operation.
    last: Mutex<Option<Arc<Completion>>>,
}

/// Why an operation ends early.
#[derive(Debug)]
pub(super) enum Stop {
    Aborted,
    Failed(ncclResult_t, String),
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Communicator {
    pub(super) fn new(
        rank: usize,
        ranks: usize,
        device: &'static Device,
        blocking: bool,
    ) -> Outcome<Arc<Self>> {
        let aborting = match UnixStream::pair() {
            Ok(pair) => pair,
            Err(error) => return refuse(ncclResult_t::ncclSystemError, format_args!("no socket: {error}")),
        };
        Ok(Arc::new(Self {
            rank,
            ranks,
            device,
            blocking,
            links: OnceLock::new(),
            state: Mutex::new(ncclResult_t::ncclInProgress),
            state_changed: Condvar::new(),
            aborting,
            aborted: AtomicBool::new(false),
            running: Mutex::default(),
            operations: AtomicU64::new(0),
            last: Mutex::default(),
        }))
    }

    pub(super) fn state(&self) -> ncclResult_t {
        *lock(&self.state)
    }

    fn set_state(&self, state: ncclResult_t) {
        *lock(&self.state) = state;
        self.state_changed.notify_all();
    }

    /// The state when it is no longer "in progress".
    pub(super) fn settled_state(&self) -> ncclResult_t {
        let mut state = lock(&self.state);
        while *state == ncclResult_t::ncclInProgress {
            state = self.state_changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state
    }

    /// Finds the other ranks, and returns when all are there.
    pub(super) fn join(&self, id: &ncclUniqueId) -> Outcome {
        let joined = rendezvous::join(id, self.rank, self.ranks, self.device.uuid(), self.abort_signal());
        match joined {
            Ok(links) => {
                self.links.set(links).expect("a communicator is joined once");
                self.set_state(ncclResult_t::ncclSuccess);
                Ok(())
            }
            Err(code) => {
                self.set_state(code);
                Err(code)
            }
        }
    }

    /// The same in a thread of its own: the state tells how far it is.
    pub(super) fn join_beside(self: &Arc<Self>, id: ncclUniqueId) {
        let communicator = Arc::clone(self);
        std::thread::spawn(move || {
            Pauses::of_thread(communicator.rank as u64).pause();
            // The state tells.
            let _ = communicator.join(&id);
        });
    }

    /// Whether operations may be given to it.
    pub(super) fn check_usable(&self) -> Outcome {
        match self.state() {
            ncclResult_t::ncclSuccess => Ok(()),
            ncclResult_t::ncclInProgress => refuse(
                ncclResult_t::ncclInvalidUsage,
                format_args!(
                    "rank {}: an operation while ncclCommGetAsyncError says ncclInProgress",
                    self.rank
                ),
            ),
            error => Err(error),
        }
    }

    pub(super) fn links(&self) -> &Links {
        self.links.get().expect("only joined communicators run operations")
    }

    pub(super) fn abort_signal(&self) -> RawFd {
        self.aborting.0.as_raw_fd()
    }

    /// Gives a group's work to its streams.
    ///
    /// A communicator that does not block may do so after the call, which then says "in progress": with delays it does.
    pub(super) fn launch(self: &Arc<Self>, tasks: Vec<Task>) -> Outcome {
        if self.blocking || settings().delays.is_none() {
            self.launch_now(tasks);
            return Ok(());
        }
        self.set_state(ncclResult_t::ncclInProgress);
        let communicator = Arc::clone(self);
        std::thread::spawn(move || {
            let operation = communicator.operations.load(Ordering::Relaxed);
            Pauses::of_thread(operation << 8 | communicator.rank as u64).pause();
            communicator.launch_now(tasks);
            // The operation may have failed already.
            if communicator.state() == ncclResult_t::ncclInProgress {
                communicator.set_state(ncclResult_t::ncclSuccess);
            }
        });
        Err(ncclResult_t::ncclInProgress)
    }

    fn launch_now(self: &Arc<Self>, tasks: Vec<Task>) {
        let Some(first) = tasks.first() else { return };
        let main = Arc::clone(&first.stream);
        let mut others: Vec<_> = Vec::new();
        for task in &tasks {
            if !Arc::ptr_eq(&task.stream, &main)
                && !others.iter().any(|other| Arc::ptr_eq(other, &task.stream))
            {
                others.push(Arc::clone(&task.stream));
            }
        }
        let mut last = lock(&self.last);
        for before in others.iter().map(|other| other.point()).chain(last.take()) {
            main.wait_for(before);
        }
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        let communicator = Arc::clone(self);
        main.submit("NCCL", move || communicator.run(number, &tasks));
        let done = main.point();
        for other in others {
            other.wait_for(Arc::clone(&done));
        }
        *last = Some(done);
    }

    /// Runs one group's work, in a stream's thread. After an error it does not end before the abort, as on a GPU.
    fn run(&self, number: u64, tasks: &[Task]) {
        let _running = lock(&self.running);
        if self.aborted.load(Ordering::Acquire) || self.device.check().is_err() {
            return;
        }
        let operation = Some(Operation { rank: self.rank, number });
        let result = match self.state() {
            _ if settings().nccl_error == operation => {
                Err(Stop::Failed(ncclResult_t::ncclRemoteError, "SOFTWARE_CUDA_NCCL_ERROR".to_owned()))
            }
            _ if settings().nccl_stall == operation => return self.wait_for_abort(),
            ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress => self.exchange_tasks(tasks),
            _ => return self.wait_for_abort(),
        };
        if let Err(Stop::Failed(code, why)) = result {
            complain!("NCCL: rank {}, operation {number}: {why}", self.rank);
            self.set_state(code);
            self.wait_for_abort();
        }
    }

    fn wait_for_abort(&self) {
        while rendezvous::wait_readable(self.abort_signal(), self.abort_signal()) {}
    }

    /// Waits for all operations, unless they can no longer end.
    pub(super) fn finish(self: &Arc<Self>) {
        let last = lock(&self.last).clone();
        match (self.settled_state(), last) {
            (ncclResult_t::ncclSuccess, Some(last)) => last.wait(),
            (ncclResult_t::ncclSuccess, None) => {}
            _ => self.abort(),
        }
    }

    /// Ends all operations, and returns when none runs any more.
    pub(super) fn abort(self: &Arc<Self>) {
        if !self.aborted.swap(true, Ordering::AcqRel) && !settings().tells_of_aborts {
            // The connections stay open as long as the process lives, so that the others see no end of them.
            std::mem::forget(Arc::clone(self));
        }
        // A full socket is readable too.
        let _ = (&self.aborting.1).write(&[1]);
        drop(lock(&self.running));
    }
}
