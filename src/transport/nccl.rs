//! Transport `nccl`: messages between GPUs by NCCL, everything else by the transport under it.
//!
//! The transport under it (the bootstrap: `mpi`, `threads` or `shm`) carries the start, the entry of every operation, and
//! vectors in host memory. NCCL's communicator does not block the host: what it has not settled yet is looked at until the
//! deadline, and then the communicator is aborted, so that its kernels end too.

use super::deadline::Backoff;
use super::peer::ProcessState;
use super::{Deadline, Domain, Native, Patience, Peer, Rank, Tag, Ticket, Transport, Wait, stalled};
use crate::device::Gpu;
use crate::device::parts::{self, MULTI_RANK_NCCL, MULTI_RANK_VARIABLE, Version};
use crate::error::{Error, Result};
use crate::reduce::{ElementType, Operator};
use cudarc::driver::CudaStream;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::nccl::sys::{self, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t};
use std::ffi::CStr;
use std::fmt;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One rank's handle on a group of ranks that each have a GPU.
pub struct Nccl {
    bootstrap: Arc<dyn Transport>,
    gpu: Arc<Gpu>,
    version: Version,
    /// `None` when it was aborted.
    communicator: Mutex<Option<Handle>>,
}

#[derive(Clone, Copy)]
struct Handle(ncclComm_t);

// SAFETY: NCCL allows a communicator to be used by any thread, by one at a time, which the lock around it makes sure of.
unsafe impl Send for Handle {}

/// A message between two GPUs.
pub(crate) struct DeviceMessage {
    pub(crate) peer: Rank,
    pub(crate) is_send: bool,
    pub(crate) start: CUdeviceptr,
    pub(crate) bytes: usize,
}

/// The start of the wait that an error of [`Nccl::connect`] names.
const START: &str = "the start of NCCL";

/// How long the end of a communicator may take before it is aborted.
const LONGEST_END: Duration = Duration::from_secs(10);

/// What ranks tell each other before NCCL starts.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Greeting {
    unique_id: [u8; 128],
    gpu: [u8; 16],
    /// 0: could not make what it should say.
    version: u32,
    allows_sharing: u32,
    /// What went wrong, zeros behind it.
    error: [u8; 360],
}

impl Nccl {
    /// Joins all ranks of `bootstrap`, each with its GPU. To be called by all of them.
    ///
    /// # Errors
    /// `Environment` on every rank if one of them lacks NCCL or has another version, or if two have the same GPU and this NCCL
    /// cannot share it; `Stalled` and `PeerLost` if ranks do not come within `timeout`.
    pub fn connect(bootstrap: Arc<dyn Transport>, gpu: Arc<Gpu>, timeout: Duration) -> Result<Nccl> {
        let wait =
            Wait { deadline: Deadline::after(timeout), patience: Patience::Straggler, operation: &START };
        let greetings = exchange(&*bootstrap, &Greeting::own(bootstrap.rank(), &gpu), &wait)?;
        let peers: Vec<&Peer> = (0..bootstrap.size()).map(|rank| bootstrap.peer(rank)).collect();
        let version = check_greetings(&greetings, &peers, &gpu)?;
        gpu.bind()?;
        let mut config = configuration(version);
        let mut raw = std::ptr::null_mut();
        let unique_id = sys::ncclUniqueId { internal: greetings[0].unique_id.map(|byte| byte as _) };
        let (size, rank) = (bootstrap.size() as i32, bootstrap.rank() as i32);
        // SAFETY: the addresses are good for the call; the configuration says what it is.
        let result = unsafe { sys::ncclCommInitRankConfig(&mut raw, size, unique_id, rank, &mut config) };
        let communicator = Mutex::new(Some(Handle(raw)).filter(|handle| !handle.0.is_null()));
        let nccl = Nccl { bootstrap, gpu, version, communicator };
        nccl.settle(result, "ncclCommInitRankConfig", &wait).inspect_err(|_| nccl.abort_communicator())?;
        Ok(nccl)
    }

    /// NCCL's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// This rank's GPU.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// The transport that carries what is not on GPUs.
    pub fn bootstrap(&self) -> &Arc<dyn Transport> {
        &self.bootstrap
    }

    /// Puts messages into a stream, as one group: they travel together.
    ///
    /// # Safety
    /// The memory stays valid, and in the order of the stream nobody else uses it, until the stream has done the transfer or
    /// the communicator is aborted.
    pub(crate) unsafe fn transfer(
        &self,
        messages: impl Iterator<Item = DeviceMessage>,
        stream: &CudaStream,
        wait: &Wait<'_>,
    ) -> Result<()> {
        self.group("ncclSend and ncclRecv", wait, |communicator| {
            let stream = stream.cu_stream().cast();
            let mut first_error = ncclResult_t::ncclSuccess;
            for DeviceMessage { peer, is_send, start, bytes } in messages {
                let (memory, peer) = (start as *mut std::ffi::c_void, peer as i32);
                let element = ncclDataType_t::ncclUint8;
                // SAFETY: the caller's promise; the communicator is alive.
                let result = unsafe {
                    if is_send {
                        sys::ncclSend(memory, bytes, element, peer, communicator, stream)
                    } else {
                        sys::ncclRecv(memory, bytes, element, peer, communicator, stream)
                    }
                };
                first_error = first(first_error, result);
            }
            first_error
        })
    }

    /// Replaces the vector by the reduction over all ranks. An average is added only.
    ///
    /// # Safety
    /// As [`transfer`](Self::transfer), for `count` elements at `buffer`; so for all that follow.
    pub(crate) unsafe fn all_reduce(
        &self,
        buffer: CUdeviceptr,
        count: usize,
        element: ElementType,
        operator: Operator,
        stream: &CudaStream,
        wait: &Wait<'_>,
    ) -> Result<()> {
        self.call("ncclAllReduce", wait, |communicator| {
            let (memory, stream) = (buffer as *mut std::ffi::c_void, stream.cu_stream().cast());
            let (element, operator) = (data_type(element), reduction(operator));
            // SAFETY: the caller's promise; the communicator is alive.
            unsafe { sys::ncclAllReduce(memory, memory, count, element, operator, communicator, stream) }
        })
    }

    /// Replaces each rank's part by the reduction of that part: parts of equal length by `ncclReduceScatter`, others by a
    /// reduction each.
    pub(crate) unsafe fn reduce_parts(
        &self,
        parts: impl Iterator<Item = (CUdeviceptr, usize)> + Clone,
        element: ElementType,
        operator: Operator,
        stream: &CudaStream,
        wait: &Wait<'_>,
    ) -> Result<()> {
        let (element, operator, stream) =
            (data_type(element), reduction(operator), stream.cu_stream().cast());
        if let Some((start, count)) = equal(parts.clone()) {
            return self.call("ncclReduceScatter", wait, |communicator| {
                let own = parts.clone().nth(self.rank()).map_or(start, |(start, _)| start);
                let (from, into) = (start as *const std::ffi::c_void, own as *mut std::ffi::c_void);
                // SAFETY: the caller's promise; this is the form in place.
                unsafe { sys::ncclReduceScatter(from, into, count, element, operator, communicator, stream) }
            });
        }
        self.group("ncclReduce of each part", wait, |communicator| {
            let mut first_error = ncclResult_t::ncclSuccess;
            for (root, (start, count)) in parts.enumerate().filter(|(_, (_, count))| *count > 0) {
                let (memory, root) = (start as *mut std::ffi::c_void, root as i32);
                // SAFETY: the caller's promise.
                let result = unsafe {
                    sys::ncclReduce(memory, memory, count, element, operator, root, communicator, stream)
                };
                first_error = first(first_error, result);
            }
            first_error
        })
    }

    /// Gives each rank's part to all: parts of equal length by `ncclAllGather`, others by a broadcast each.
    pub(crate) unsafe fn broadcast_parts(
        &self,
        parts: impl Iterator<Item = (CUdeviceptr, usize)> + Clone,
        element: ElementType,
        stream: &CudaStream,
        wait: &Wait<'_>,
    ) -> Result<()> {
        let (element, stream) = (data_type(element), stream.cu_stream().cast());
        if let Some((start, count)) = equal(parts.clone()) {
            return self.call("ncclAllGather", wait, |communicator| {
                let own = parts.clone().nth(self.rank()).map_or(start, |(start, _)| start);
                let (from, into) = (own as *const std::ffi::c_void, start as *mut std::ffi::c_void);
                // SAFETY: the caller's promise; this is the form in place.
                unsafe { sys::ncclAllGather(from, into, count, element, communicator, stream) }
            });
        }
        self.group("ncclBroadcast of each part", wait, |communicator| {
            let mut first_error = ncclResult_t::ncclSuccess;
            for (root, (start, count)) in parts.enumerate().filter(|(_, (_, count))| *count > 0) {
                let (memory, root) = (start as *mut std::ffi::c_void, root as i32);
                // SAFETY: the caller's promise.
                let result =
                    unsafe { sys::ncclBroadcast(memory, memory, count, element, root, communicator, stream) };
                first_error = first(first_error, result);
            }
            first_error
        })
    }

    /// Replaces all ranks' vectors by the root's.
    pub(crate) unsafe fn broadcast(
        &self,
        buffer: CUdeviceptr,
        count: usize,
        element: ElementType,
        root: Rank,
        stream: &CudaStream,
        wait: &Wait<'_>,
    ) -> Result<()> {
        self.call("ncclBroadcast", wait, |communicator| {
            let (memory, stream) = (buffer as *mut std::ffi::c_void, stream.cu_stream().cast());
            let (element, root) = (data_type(element), root as i32);
            // SAFETY: the caller's promise.
            unsafe { sys::ncclBroadcast(memory, memory, count, element, root, communicator, stream) }
        })
    }

    /// Replaces the root's vector by the reduction over all ranks.
    #[allow(clippy::too_many_arguments)]
    pub(crate) unsafe fn reduce(
        &self,
        buffer: CUdeviceptr,
        count: usize,
        element: ElementType,
        operator: Operator,
        root: Rank,
        stream: &CudaStream,
        wait: &Wait<'_>,
    ) -> Result<()> {
        self.call("ncclReduce", wait, |communicator| {
            let (memory, stream) = (buffer as *mut std::ffi::c_void, stream.cu_stream().cast());
            let (element, operator, root) = (data_type(element), reduction(operator), root as i32);
            // SAFETY: the caller's promise.
            unsafe { sys::ncclReduce(memory, memory, count, element, operator, root, communicator, stream) }
        })
    }

    /// Whether something went wrong since the last look, here or on another rank.
    ///
    /// # Errors
    /// `PeerLost` if a rank's process is gone, else `Environment` with what NCCL says.
    pub(crate) fn check(&self, wait: &Wait<'_>) -> Result<()> {
        match self.state(wait)? {
            ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress => Ok(()),
            result => Err(self.failed(result, "a transfer", wait)),
        }
    }

    /// The error of a wait that was too long.
    pub(crate) fn stalled(&self, wait: &Wait<'_>) -> Error {
        let others = (0..self.size()).filter(|&rank| rank != self.rank());
        let stopped = |rank: &Rank| self.peer(*rank).process_state() == ProcessState::Stopped;
        let mut missing: Vec<Peer> =
            others.clone().filter(stopped).map(|rank| self.peer(rank).clone()).collect();
        if missing.is_empty() {
            // NCCL does not say whom it waits for.
            missing = others.map(|rank| self.peer(rank).clone()).collect();
        }
        stalled(self.rank(), missing, wait)
    }

    /// Ends all of the communicator's work on this rank. What is done with it afterwards is an error.
    pub(crate) fn abort_communicator(&self) {
        if let Some(Handle(communicator)) = self.handle().take() {
            // SAFETY: the communicator is alive and not used again. There is an error to report already.
            let _ = unsafe { sys::ncclCommAbort(communicator) };
        }
    }

    fn handle(&self) -> MutexGuard<'_, Option<Handle>> {
        self.communicator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self, wait: &Wait<'_>) -> Result<ncclComm_t> {
        self.handle()
            .map(|handle| handle.0)
            .ok_or_else(|| Error::Internal(format!("NCCL was used after an error, in {}", wait.operation)))
    }

    /// One call that takes the communicator.
    fn call(&self, what: &str, wait: &Wait<'_>, body: impl FnOnce(ncclComm_t) -> ncclResult_t) -> Result<()> {
        let result = body(self.alive(wait)?);
        self.settle(result, what, wait)
    }

    /// Several calls that NCCL takes as one.
    fn group(
        &self,
        what: &str,
        wait: &Wait<'_>,
        body: impl FnOnce(ncclComm_t) -> ncclResult_t,
    ) -> Result<()> {
        let communicator = self.alive(wait)?;
        // SAFETY: begins a group of this thread's calls, which is ended below whatever happens between.
        let begun = unsafe { sys::ncclGroupStart() };
        let inside = body(communicator);
        // SAFETY: as above.
        let ended = unsafe { sys::ncclGroupEnd() };
        self.settle(first(first(begun, inside), ended), what, wait)
    }

    /// Waits until NCCL has taken what it was given (not until it is done).
    fn settle(&self, result: ncclResult_t, what: &str, wait: &Wait<'_>) -> Result<()> {
        let mut backoff = Backoff::new(wait.patience, self.size(), false);
        let mut result = result;
        while result == ncclResult_t::ncclInProgress {
            backoff.pass_time();
            if backoff.should_look_at_the_clock() && wait.deadline.has_passed() {
                return Err(self.stalled(wait));
            }
            result = self.state(wait)?;
        }
        match result {
            ncclResult_t::ncclSuccess => Ok(()),
            result => Err(self.failed(result, what, wait)),
        }
    }

    fn state(&self, wait: &Wait<'_>) -> Result<ncclResult_t> {
        let mut state = ncclResult_t::ncclSuccess;
        // SAFETY: the communicator is alive, and one number is written.
        let result = unsafe { sys::ncclCommGetAsyncError(self.alive(wait)?, &mut state) };
        Ok(first(result, state))
    }

    fn failed(&self, result: ncclResult_t, what: &str, wait: &Wait<'_>) -> Error {
        if result == ncclResult_t::ncclRemoteError {
            let gone = (0..self.size()).find(|&rank| self.peer(rank).process_state() == ProcessState::Gone);
            if let Some(rank) = gone {
                return Error::PeerLost {
                    peer: self.peer(rank).clone(),
                    operation: wait.operation.to_string(),
                    what: "its process no longer exists".into(),
                };
            }
        }
        let handle = *self.handle();
        // SAFETY: NCCL's texts are static, or live as long as the communicator; a null communicator has the thread's last.
        let [meaning, last] = unsafe {
            let communicator = handle.map_or(std::ptr::null_mut(), |handle| handle.0);
            [sys::ncclGetErrorString(result), sys::ncclGetLastError(communicator)].map(|text| {
                if text.is_null() {
                    String::new()
                } else {
                    CStr::from_ptr(text).to_string_lossy().into_owned()
                }
            })
        };
        let last = last.trim();
        let detail = if last.is_empty() { String::new() } else { format!(" ({last})") };
        Error::Environment(format!(
            "NCCL {}: {what} failed on rank {} in {}: {meaning}{detail}; NCCL_DEBUG=WARN says more",
            self.version,
            self.rank(),
            wait.operation
        ))
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        let Some(Handle(communicator)) = *self.handle() else { return };
        if std::thread::panicking() || self.gpu.bind().is_err() {
            return self.abort_communicator();
        }
        let deadline = Deadline::after(LONGEST_END);
        let wait = Wait { deadline, patience: Patience::Transfer, operation: &"the end of NCCL" };
        // SAFETY: the communicator is alive.
        let result = unsafe { sys::ncclCommFinalize(communicator) };
        if self.settle(result, "ncclCommFinalize", &wait).is_err() {
            return self.abort_communicator();
        }
        *self.handle() = None;
        // SAFETY: it was finalised, and is not used again. Nothing can be done about a refusal.
        let _ = unsafe { sys::ncclCommDestroy(communicator) };
    }
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NCCL {} on {}", self.version, self.gpu)
    }
}

impl Greeting {
    fn own(rank: Rank, gpu: &Gpu) -> Greeting {
        let mut greeting: Greeting = bytemuck::Zeroable::zeroed();
        greeting.gpu = gpu.uuid();
        greeting.allows_sharing =
            u32::from(std::env::var(MULTI_RANK_VARIABLE).is_ok_and(|value| value == "1"));
        if let Err(error) = greeting.introduce(rank) {
            greeting.version = 0;
            greeting.error.iter_mut().zip(error.to_string().bytes()).for_each(|(to, byte)| *to = byte);
        }
        greeting
    }

    fn introduce(&mut self, rank: Rank) -> Result<()> {
        let Version { major, minor, patch } = parts::nccl()?.version;
        self.version = major * 10_000 + minor * 100 + patch;
        if rank == 0 {
            let id = cudarc::nccl::result::get_uniqueid();
            let id =
                id.map_err(|error| Error::Environment(format!("ncclGetUniqueId failed: {:?}", error.0)))?;
            self.unique_id = id.internal.map(|byte| byte as u8);
        }
        Ok(())
    }

    fn version(&self) -> Version {
        Version::new(self.version / 10_000, self.version % 10_000 / 100, self.version % 100)
    }

    fn error(&self) -> String {
        let end = self.error.iter().position(|&byte| byte == 0).unwrap_or(self.error.len());
        String::from_utf8_lossy(&self.error[..end]).into_owned()
    }
}

/// What all ranks conclude from what all have said: the same on each.
fn check_greetings(greetings: &[Greeting], peers: &[&Peer], gpu: &Gpu) -> Result<Version> {
    if let Some(failed) = greetings.iter().position(|greeting| greeting.version == 0) {
        return Err(Error::Environment(format!("{}: {}", peers[failed], greetings[failed].error())));
    }
    let version = greetings[0].version();
    if let Some(other) = greetings.iter().position(|greeting| greeting.version() != version) {
        return Err(Error::Environment(format!(
            "{} has NCCL {version}, and {} has {}: all ranks need the same version",
            peers[0],
            peers[other],
            greetings[other].version()
        )));
    }
    let sharing = (0..greetings.len()).find_map(|second| {
        let first = greetings[..second].iter().position(|first| first.gpu == greetings[second].gpu)?;
        Some((first, second))
    });
    let Some((first, second)) = sharing else { return Ok(version) };
    if version >= MULTI_RANK_NCCL && greetings.iter().all(|greeting| greeting.allows_sharing == 1) {
        return Ok(version);
    }
    let remedy = if version >= MULTI_RANK_NCCL {
        format!("set {MULTI_RANK_VARIABLE}=1 for all ranks")
    } else {
        format!("NCCL {MULTI_RANK_NCCL} and newer can, with {MULTI_RANK_VARIABLE}=1")
    };
    Err(Error::Environment(format!(
        "{} and {} have the same GPU (one like {}), which NCCL {version} does not allow: {remedy}; or use --transport mpi or \
         threads, or fewer ranks",
        peers[first],
        peers[second],
        gpu.name()
    )))
}

/// A record from each rank to each other.
fn exchange(transport: &dyn Transport, own: &Greeting, wait: &Wait<'_>) -> Result<Vec<Greeting>> {
    let (rank, size, len) = (transport.rank(), transport.size(), size_of::<Greeting>());
    let mut greetings = vec![*own; size];
    let mut tickets = Vec::with_capacity(2 * size);
    let mut run = || {
        for (other, greeting) in greetings.iter_mut().enumerate().filter(|(other, _)| *other != rank) {
            let into = std::ptr::from_mut(greeting).cast();
            // SAFETY: the records live until the end of this function, which is left only when the transport has given them
            // back.
            tickets.push(Some(unsafe { transport.post_recv(other, Tag::START, into, len)? }));
        }
        for other in (0..size).filter(|other| *other != rank) {
            let from = std::ptr::from_ref(own).cast();
            // SAFETY: the same.
            tickets.push(Some(unsafe { transport.post_send(other, Tag::START, from, len)? }));
        }
        transport.wait(&mut tickets, wait)
    };
    if let Err(error) = run() {
        if !transport.abandon(&mut tickets) {
            transport.abort(&error);
        }
        return Err(error);
    }
    Ok(greetings)
}

/// NCCL's own defaults, but that no call blocks.
fn configuration(version: Version) -> sys::ncclConfig_t {
    const UNDEFINED: i32 = i32::MIN;
    const MAGIC: u32 = 0xCAFE_BEEF;
    /// What the structure of these bindings is: a newer library adds its own defaults, an older one reads its part of it.
    const BINDINGS: u32 = 22_800;
    let known = version.major * 10_000 + version.minor * 100 + version.patch;
    // SAFETY: a structure of numbers and addresses, of which zero is a value.
    let mut config: sys::ncclConfig_t = unsafe { MaybeUninit::zeroed().assume_init() };
    config.size = size_of::<sys::ncclConfig_t>();
    config.magic = MAGIC;
    config.version = known.min(BINDINGS);
    config.blocking = 0;
    for field in [
        &mut config.cgaClusterSize,
        &mut config.minCTAs,
        &mut config.maxCTAs,
        &mut config.splitShare,
        &mut config.trafficClass,
        &mut config.collnetEnable,
        &mut config.CTAPolicy,
        &mut config.shrinkShare,
        &mut config.nvlsCTAs,
        &mut config.nChannelsPerNetPeer,
        &mut config.nvlinkCentricSched,
    ] {
        *field = UNDEFINED;
    }
    config
}

/// The start of the first part and the length of each, if all have the same length.
fn equal(mut parts: impl Iterator<Item = (CUdeviceptr, usize)>) -> Option<(CUdeviceptr, usize)> {
    let first = parts.next()?;
    parts.all(|(_, count)| count == first.1).then_some(first)
}

/// The first of two results that is an error, or else what is not settled.
fn first(one: ncclResult_t, other: ncclResult_t) -> ncclResult_t {
    match one {
        ncclResult_t::ncclSuccess => other,
        ncclResult_t::ncclInProgress if other != ncclResult_t::ncclSuccess => other,
        _ => one,
    }
}

fn data_type(element: ElementType) -> ncclDataType_t {
    match element {
        ElementType::F32 => ncclDataType_t::ncclFloat32,
        ElementType::F64 => ncclDataType_t::ncclFloat64,
        ElementType::I32 => ncclDataType_t::ncclInt32,
        ElementType::I64 => ncclDataType_t::ncclInt64,
        ElementType::F16 => ncclDataType_t::ncclFloat16,
        ElementType::BF16 => ncclDataType_t::ncclBfloat16,
    }
}

/// An average is a sum that is scaled afterwards, by the same kernel as everywhere.
fn reduction(operator: Operator) -> ncclRedOp_t {
    match operator {
        Operator::Sum | Operator::Average => ncclRedOp_t::ncclSum,
        Operator::Min => ncclRedOp_t::ncclMin,
        Operator::Max => ncclRedOp_t::ncclMax,
        Operator::Product => ncclRedOp_t::ncclProd,
    }
}

/// Host memory travels by the transport below.
impl Transport for Nccl {
    fn name(&self) -> &'static str {
        "nccl"
    }

    fn rank(&self) -> Rank {
        self.bootstrap.rank()
    }

    fn size(&self) -> usize {
        self.bootstrap.size()
    }

    fn peer(&self, rank: Rank) -> &Peer {
        self.bootstrap.peer(rank)
    }

    fn reserve(&self, messages: usize) {
        self.bootstrap.reserve(messages);
    }

    unsafe fn post_send(&self, to: Rank, tag: Tag, bytes: *const u8, len: usize) -> Result<Ticket> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.bootstrap.post_send(to, tag, bytes, len) }
    }

    unsafe fn post_recv(&self, from: Rank, tag: Tag, into: *mut u8, len: usize) -> Result<Ticket> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.bootstrap.post_recv(from, tag, into, len) }
    }

    fn wait(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<()> {
        self.bootstrap.wait(tickets, wait)
    }

    fn poll(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<bool> {
        self.bootstrap.poll(tickets, wait)
    }

    fn abandon(&self, tickets: &mut [Option<Ticket>]) -> bool {
        self.bootstrap.abandon(tickets)
    }

    fn native(&self) -> Option<&dyn Native> {
        self.bootstrap.native()
    }

    fn shared(&self) -> Option<&Domain> {
        self.bootstrap.shared()
    }

    fn nccl(&self) -> Option<&Nccl> {
        Some(self)
    }

    fn poison(&self, why: &str) {
        self.abort_communicator();
        self.bootstrap.poison(why);
    }

    fn abort(&self, error: &Error) -> ! {
        self.bootstrap.abort(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_comes_before_what_is_not_settled() {
        use ncclResult_t::{ncclInProgress, ncclRemoteError, ncclSuccess, ncclSystemError};
        assert_eq!(first(ncclSuccess, ncclInProgress), ncclInProgress);
        assert_eq!(first(ncclInProgress, ncclSuccess), ncclInProgress);
        assert_eq!(first(ncclInProgress, ncclRemoteError), ncclRemoteError);
        assert_eq!(first(ncclSystemError, ncclRemoteError), ncclSystemError);
    }

    #[test]
    fn parts_of_equal_length_are_known() {
        let parts = |counts: [usize; 3]| counts.into_iter().map(|count| (64, count));
        assert_eq!(equal(parts([4, 4, 4])), Some((64, 4)));
        assert_eq!(equal(parts([4, 4, 3])), None);
    }
}
