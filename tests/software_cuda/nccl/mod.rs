//! The functions of `libnccl`.

mod collective;
mod communicator;
mod exchange;
mod group;
mod numbers;
mod rendezvous;

use crate::api::{complain, put};
use crate::device;
use crate::memory::{self, Place};
use crate::settings::settings;
use crate::stream::stream_of;
use collective::Collective;
use communicator::{COMMUNICATORS, Communicator};
use cudarc::nccl::sys::{
    cudaStream_t, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId,
};
use group::{Task, Work};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};

type Outcome<T = ()> = Result<T, ncclResult_t>;

fn code(body: impl FnOnce() -> Outcome) -> ncclResult_t {
    match body() {
        Ok(()) => ncclResult_t::ncclSuccess,
        Err(code) => code,
    }
}

/// Says why, here and in `ncclGetLastError`.
fn refuse<T>(code: ncclResult_t, why: std::fmt::Arguments<'_>) -> Outcome<T> {
    complain!("NCCL: {why}");
    LAST_ERROR.with_borrow_mut(|last| *last = CString::new(why.to_string()).unwrap_or_default());
    Err(code)
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

fn answer<T>(to: *mut T, value: T) -> Outcome {
    put(to, value).map_err(|_| ncclResult_t::ncclInvalidArgument)
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetVersion(version: *mut c_int) -> ncclResult_t {
    let nccl = settings().nccl;
    code(|| answer(version, nccl.major * 10_000 + nccl.minor * 100 + nccl.patch))
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetErrorString(result: ncclResult_t) -> *const c_char {
    static TEXTS: Mutex<Option<HashMap<u32, &'static CStr>>> = Mutex::new(None);
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let text = texts.get_or_insert_default().entry(result as u32).or_insert_with(|| {
        let mut words = String::new();
        for letter in format!("{result:?}").trim_start_matches("nccl").chars() {
            words.extend(letter.is_uppercase().then_some(' '));
            words.extend(letter.to_lowercase());
        }
        Box::leak(CString::new(words.trim_start()).expect("no zeros").into_boxed_c_str())
    });
    text.as_ptr()
}

/// Valid until the next error in this thread.
#[unsafe(no_mangle)]
extern "C" fn ncclGetLastError(_communicator: ncclComm_t) -> *const c_char {
    LAST_ERROR.with_borrow(|last| last.as_ptr())
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetUniqueId(id: *mut ncclUniqueId) -> ncclResult_t {
    code(|| answer(id, rendezvous::new_id()?))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommInitRank(
    communicator: *mut ncclComm_t,
    ranks: c_int,
    id: ncclUniqueId,
    rank: c_int,
) -> ncclResult_t {
    code(|| start(communicator, ranks, id, rank, true, current_device()?))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommInitRankConfig(
    communicator: *mut ncclComm_t,
    ranks: c_int,
    id: ncclUniqueId,
    rank: c_int,
    config: *mut ncclConfig_t,
) -> ncclResult_t {
    /// What NCCL_CONFIG_INITIALIZER puts into every configuration.
    const MAGIC: u32 = 0xcafe_beef;
    code(|| {
        let mut blocking = true;
        if !config.is_null() {
            // SAFETY: callers give a whole structure.
            let config = unsafe { &*config };
            if config.magic != MAGIC {
                return refuse(
                    ncclResult_t::ncclInvalidArgument,
                    format_args!(
                        "a configuration without NCCL_CONFIG_INITIALIZER (magic {:#x})",
                        config.magic
                    ),
                );
            }
            blocking = match config.blocking {
                0 => false,
                1 | c_int::MIN => true,
                other => {
                    return refuse(
                        ncclResult_t::ncclInvalidArgument,
                        format_args!("blocking is {other}: 0 or 1"),
                    );
                }
            };
        }
        start(communicator, ranks, id, rank, blocking, current_device()?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommInitAll(
    communicators: *mut ncclComm_t,
    ranks: c_int,
    ordinals: *const c_int,
) -> ncclResult_t {
    code(|| {
        let id = rendezvous::new_id()?;
        group::start();
        for rank in 0..ranks {
            let ordinal = match ordinals.is_null() {
                true => rank,
                // SAFETY: callers give one for each rank.
                false => unsafe { ordinals.add(rank as usize).read() },
            };
            let device = device::device(ordinal).map_err(|_| ncclResult_t::ncclInvalidArgument);
            let started = device.and_then(|device| {
                start(communicators.wrapping_add(rank as usize), ranks, id, rank, true, device)
            });
            group::note(started);
        }
        group::end()
    })
}

fn current_device() -> Outcome<&'static device::Device> {
    device::current().map_err(|_| ncclResult_t::ncclUnhandledCudaError)
}

fn start(
    to: *mut ncclComm_t,
    ranks: c_int,
    id: ncclUniqueId,
    rank: c_int,
    blocking: bool,
    device: &'static device::Device,
) -> Outcome {
    if ranks < 1 || !(0..ranks).contains(&rank) {
        return refuse(ncclResult_t::ncclInvalidArgument, format_args!("rank {rank} of {ranks}"));
    }
    let communicator = Communicator::new(rank as usize, ranks as usize, device, blocking)?;
    answer(to, COMMUNICATORS.add(Arc::clone(&communicator)))?;
    let in_group = group::is_open();
    if blocking && !in_group {
        return communicator.join(&id);
    }
    communicator.join_beside(id);
    if in_group {
        group::await_start(communicator);
        return Ok(());
    }
    Err(ncclResult_t::ncclInProgress)
}

fn communicator(handle: ncclComm_t) -> Outcome<Arc<Communicator>> {
    match COMMUNICATORS.get(handle) {
        Some(communicator) => Ok(communicator),
        None => refuse(ncclResult_t::ncclInvalidArgument, format_args!("{handle:?} is no communicator")),
    }
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommCount(handle: ncclComm_t, count: *mut c_int) -> ncclResult_t {
    code(|| answer(count, communicator(handle)?.ranks as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommUserRank(handle: ncclComm_t, rank: *mut c_int) -> ncclResult_t {
    code(|| answer(rank, communicator(handle)?.rank as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommCuDevice(handle: ncclComm_t, device: *mut c_int) -> ncclResult_t {
    code(|| answer(device, communicator(handle)?.device.ordinal as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommGetAsyncError(handle: ncclComm_t, error: *mut ncclResult_t) -> ncclResult_t {
    code(|| answer(error, communicator(handle)?.state()))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommFinalize(handle: ncclComm_t) -> ncclResult_t {
    code(|| {
        communicator(handle)?.finish();
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommDestroy(handle: ncclComm_t) -> ncclResult_t {
    code(|| {
        communicator(handle)?.finish();
        COMMUNICATORS.remove(handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommAbort(handle: ncclComm_t) -> ncclResult_t {
    code(|| {
        communicator(handle)?.abort();
        COMMUNICATORS.remove(handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupStart() -> ncclResult_t {
    group::start();
    ncclResult_t::ncclSuccess
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupEnd() -> ncclResult_t {
    code(group::end)
}

fn element_bytes(of: ncclDataType_t) -> Outcome<usize> {
    match numbers::bytes(of) {
        Some(bytes) => Ok(bytes),
        None => refuse(ncclResult_t::ncclInvalidArgument, format_args!("{of:?} is not supported")),
    }
}

/// A device pointer of the communicator's device, with so many bytes behind it.
fn buffer(communicator: &Communicator, what: &str, address: *const c_void, bytes: usize) -> Outcome<u64> {
    let address = address.addr() as u64;
    if bytes == 0 {
        return Ok(address);
    }
    match memory::locate(address, bytes, false) {
        Ok(Place::Device(ordinal, _)) if ordinal == communicator.device.ordinal => Ok(address),
        Ok(Place::Device(ordinal, _)) => refuse(
            ncclResult_t::ncclInvalidArgument,
            format_args!(
                "{what}: memory of device {ordinal} on a communicator of device {}",
                communicator.device.ordinal
            ),
        ),
        _ => refuse(
            ncclResult_t::ncclInvalidArgument,
            format_args!("{what}: {bytes} bytes at {address:#x} are not the device's"),
        ),
    }
}

/// Checks what all operations have in common, and hands the work to the group.
fn enqueue(
    handle: ncclComm_t,
    stream: cudaStream_t,
    peer: Option<c_int>,
    work: impl FnOnce(&Communicator) -> Outcome<Work>,
) -> ncclResult_t {
    code(|| {
        let result = (|| {
            let communicator = communicator(handle)?;
            communicator.check_usable()?;
            let Ok(stream) = stream_of(stream) else { return Err(ncclResult_t::ncclInvalidArgument) };
            if stream.device.ordinal != communicator.device.ordinal {
                return refuse(
                    ncclResult_t::ncclInvalidArgument,
                    format_args!(
                        "a stream of device {} for another device's communicator",
                        stream.device.ordinal
                    ),
                );
            }
            if let Some(peer) = peer.filter(|peer| !(0..communicator.ranks as c_int).contains(peer)) {
                return refuse(
                    ncclResult_t::ncclInvalidArgument,
                    format_args!("rank {peer} of {}", communicator.ranks),
                );
            }
            let work = work(&communicator)?;
            group::add(Task { communicator, stream, work })
        })();
        // InProgress is no failure of the group.
        if !matches!(result, Err(ncclResult_t::ncclInProgress)) {
            group::note(result);
        }
        result
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclSend(
    from: *const c_void,
    count: usize,
    of: ncclDataType_t,
    peer: c_int,
    handle: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    enqueue(handle, stream, Some(peer), |communicator| {
        let bytes = count * element_bytes(of)?;
        Ok(Work::Send { peer: peer as usize, from: buffer(communicator, "ncclSend", from, bytes)?, bytes })
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclRecv(
    to: *mut c_void,
    count: usize,
    of: ncclDataType_t,
    peer: c_int,
    handle: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    enqueue(handle, stream, Some(peer), |communicator| {
        let bytes = count * element_bytes(of)?;
        Ok(Work::Receive { peer: peer as usize, to: buffer(communicator, "ncclRecv", to, bytes)?, bytes })
    })
}

/// The sum of ranks' numbers, or the like; an operator of the caller's own is not supported.
fn operator(of: ncclRedOp_t) -> Outcome<ncclRedOp_t> {
    use ncclRedOp_t::*;
    match of {
        ncclSum | ncclProd | ncclMax | ncclMin | ncclAvg => Ok(of),
        other => refuse(ncclResult_t::ncclInvalidArgument, format_args!("{other:?} is not supported")),
    }
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllReduce(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    of: ncclDataType_t,
    with: ncclRedOp_t,
    handle: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    enqueue(handle, stream, None, |communicator| {
        let bytes = count * element_bytes(of)?;
        let from = buffer(communicator, "ncclAllReduce", from, bytes)?;
        let to = buffer(communicator, "ncclAllReduce", to, bytes)?;
        Ok(Work::Collective(Collective::AllReduce { from, to, count, of, with: operator(with)? }))
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclReduceScatter(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    of: ncclDataType_t,
    with: ncclRedOp_t,
    handle: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    enqueue(handle, stream, None, |communicator| {
        let bytes = count * element_bytes(of)?;
        let from = buffer(communicator, "ncclReduceScatter", from, bytes * communicator.ranks)?;
        let to = buffer(communicator, "ncclReduceScatter", to, bytes)?;
        Ok(Work::Collective(Collective::ReduceScatter { from, to, count, of, with: operator(with)? }))
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclReduce(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    of: ncclDataType_t,
    with: ncclRedOp_t,
    root: c_int,
    handle: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    enqueue(handle, stream, Some(root), |communicator| {
        let (root, bytes) = (root as usize, count * element_bytes(of)?);
        let from = buffer(communicator, "ncclReduce", from, bytes)?;
        // Other ranks may give anything.
        let to = if communicator.rank == root { buffer(communicator, "ncclReduce", to, bytes)? } else { 0 };
        Ok(Work::Collective(Collective::Reduce { from, to, count, of, with: operator(with)?, root }))
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllGather(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    of: ncclDataType_t,
    handle: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    enqueue(handle, stream, None, |communicator| {
        let bytes = count * element_bytes(of)?;
        let from = buffer(communicator, "ncclAllGather", from, bytes)?;
        let to = buffer(communicator, "ncclAllGather", to, bytes * communicator.ranks)?;
        Ok(Work::Collective(Collective::AllGather { from, to, bytes }))
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclBroadcast(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    of: ncclDataType_t,
    root: c_int,
    handle: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    enqueue(handle, stream, Some(root), |communicator| {
        let (root, bytes) = (root as usize, count * element_bytes(of)?);
        let from =
            if communicator.rank == root { buffer(communicator, "ncclBroadcast", from, bytes)? } else { 0 };
        let to = buffer(communicator, "ncclBroadcast", to, bytes)?;
        Ok(Work::Collective(Collective::Broadcast { from, to, bytes, root }))
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclBcast(
    buffer: *mut c_void,
    count: usize,
    of: ncclDataType_t,
    root: c_int,
    handle: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    ncclBroadcast(buffer, buffer, count, of, root, handle, stream)
}
