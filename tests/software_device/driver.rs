//! Order, memory and errors of the driver.

use crate::software_device::{DRIVER, SoftwareDevice, is_inside};
use cudarc::driver::sys::{CUresult, cuMemcpyDtoDAsync_v2};
use cudarc::driver::{CudaContext, CudaStream, DriverError, PinnedHostSlice, result, sys};
use std::ffi::c_void;
use std::sync::{Arc, Condvar, Mutex};

/// Holds a stream up until it is opened.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn hold(stream: &CudaStream) -> Arc<Self> {
        unsafe extern "C" fn wait(gate: *mut c_void) {
            // SAFETY: made by `Arc::into_raw` below, for this one call.
            let gate = unsafe { Arc::from_raw(gate.cast::<Gate>()) };
            let mut open = gate.open.lock().unwrap();
            while !*open {
                open = gate.changed.wait(open).unwrap();
            }
        }
        let gate = Arc::<Self>::default();
        let argument = Arc::into_raw(Arc::clone(&gate)).cast_mut().cast();
        // SAFETY: `wait` takes what `argument` is, once.
        unsafe { result::stream::launch_host_function(stream.cu_stream(), wait, argument) }.unwrap();
        gate
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

/// A context whose streams are ordered by nothing but what the test says.
fn context(ordinal: usize) -> Arc<CudaContext> {
    let context = CudaContext::new(ordinal).unwrap();
    // SAFETY: the tests order what they share, or mean not to.
    unsafe { context.disable_event_tracking() };
    context
}

fn pinned(context: &Arc<CudaContext>, values: &[u32]) -> PinnedHostSlice<u32> {
    // SAFETY: filled before it is read.
    let mut pinned = unsafe { context.alloc_pinned_with_flags::<u32>(values.len(), 0) }.unwrap();
    pinned.as_mut_slice().unwrap().copy_from_slice(values);
    pinned
}

fn device() -> Option<SoftwareDevice> {
    SoftwareDevice::with_libraries(&[DRIVER])
}

#[test]
fn it_cannot_be_taken_for_a_gpu() {
    let Some(device) = device() else { return };
    let device = device.set("SOFTWARE_CUDA_DEVICES", 3).set("SOFTWARE_CUDA_CAPABILITY", "8.6");
    device.run("driver::it_cannot_be_taken_for_a_gpu", || {
        assert_eq!(CudaContext::device_count().unwrap(), 3);
        let contexts = [0, 1, 2].map(|ordinal| CudaContext::new(ordinal).unwrap());
        let uuids = contexts.each_ref().map(|context| context.uuid().unwrap().bytes);
        assert!(uuids[0] != uuids[1] && uuids[1] != uuids[2] && uuids[0] != uuids[2], "{uuids:?}");
        for context in contexts {
            assert_eq!(context.name().unwrap(), "software device (no GPU)");
            assert_eq!(context.compute_capability().unwrap(), (8, 6));
        }
        assert_eq!(CudaContext::new(3).unwrap_err(), DriverError(CUresult::CUDA_ERROR_INVALID_DEVICE));
    });
}

#[test]
fn copies_run_after_the_call_has_returned() {
    let Some(device) = device() else { return };
    device.run("driver::copies_run_after_the_call_has_returned", || {
        let context = context(0);
        let stream = context.new_stream().unwrap();
        let (source, mut target) = (pinned(&context, &[1, 2, 3]), pinned(&context, &[0; 3]));
        let on_device = stream.clone_htod(&source).unwrap();
        stream.synchronize().unwrap();

        let gate = Gate::hold(&stream);
        let address = target.as_mut_ptr().unwrap();
        // SAFETY: `target` lives until the stream is done, and is not touched before.
        let slice = unsafe { std::slice::from_raw_parts_mut(address, 3) };
        let source_on_device = cudarc::driver::DevicePtr::device_ptr(&on_device, &stream).0;
        // SAFETY: the same.
        unsafe { result::memcpy_dtoh_async(slice, source_on_device, stream.cu_stream()) }.unwrap();
        let event = stream.record_event(None).unwrap();
        assert!(!event.try_is_complete().unwrap());
        // SAFETY: the copy waits behind the gate.
        assert_eq!(unsafe { address.read_volatile() }, 0);
        gate.open();
        event.synchronize().unwrap();
        assert_eq!(target.as_slice().unwrap(), [1, 2, 3]);
    });
}

#[test]
fn events_order_streams_and_nothing_else_does() {
    let Some(device) = device() else { return };
    device.run("driver::events_order_streams_and_nothing_else_does", || {
        let context = context(0);
        let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let source = pinned(&context, &[7; 8]);
        for ordered in [true, false] {
            // SAFETY: written before it is read, or poison.
            let mut buffer = unsafe { first.alloc::<u32>(8) }.unwrap();
            let gate = Gate::hold(&first);
            first.memcpy_htod(&source, &mut buffer).unwrap();
            if ordered {
                second.wait(&first.record_event(None).unwrap()).unwrap();
                let result = std::thread::scope(|scope| {
                    let copy = scope.spawn(|| second.clone_dtoh(&buffer).unwrap());
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    assert!(!copy.is_finished());
                    gate.open();
                    copy.join().unwrap()
                });
                assert_eq!(result, [7; 8]);
            } else {
                assert_eq!(second.clone_dtoh(&buffer).unwrap(), [u32::MAX; 8], "fresh memory is poison");
                gate.open();
            }
            first.synchronize().unwrap();
        }
    });
}

/// Passes numbers through a buffer from one stream to another, and counts those that arrived wrong.
fn relayed_wrongly(ordered: bool) -> usize {
    let context = context(0);
    let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let mut buffer = first.alloc_zeros::<u32>(1).unwrap();
    first.synchronize().unwrap();
    let sources: Vec<_> = (0..50).map(|round| pinned(&context, &[round])).collect();
    let mut wrong = 0;
    for (round, source) in sources.iter().enumerate() {
        first.memcpy_htod(source, &mut buffer).unwrap();
        if ordered {
            second.join(&first).unwrap();
        }
        wrong += usize::from(second.clone_dtoh(&buffer).unwrap() != [round as u32]);
        first.join(&second).unwrap();
    }
    wrong
}

#[test]
fn with_delays_a_missing_event_shows() {
    for seed in 0..3 {
        let Some(device) = device() else { return };
        device.delays(seed, 300).run("driver::with_delays_a_missing_event_shows", || {
            assert_eq!(relayed_wrongly(true), 0);
            assert!(relayed_wrongly(false) > 0);
        });
        if is_inside() {
            return;
        }
    }
}

#[test]
fn the_legacy_stream_waits_for_blocking_streams_and_they_for_it() {
    let Some(device) = device() else { return };
    device.run("driver::the_legacy_stream_waits_for_blocking_streams_and_they_for_it", || {
        let context = context(0);
        let legacy = context.default_stream();
        let blocking = result::stream::create(result::stream::StreamKind::Default).unwrap();
        // SAFETY: destroyed below, after its last use.
        let blocking_stream = unsafe { context.wrap_borrowed_stream(blocking) };
        let free = context.new_stream().unwrap();
        for (held, waits) in [(&blocking_stream, &legacy), (&legacy, &blocking_stream)] {
            let gate = Gate::hold(held);
            let event = waits.record_event(None).unwrap();
            let elsewhere = free.record_event(None).unwrap();
            elsewhere.synchronize().unwrap();
            assert!(!event.try_is_complete().unwrap());
            gate.open();
            event.synchronize().unwrap();
        }
        // SAFETY: nothing uses it any more.
        unsafe { result::stream::destroy(blocking) }.unwrap();
    });
}

#[test]
fn copies_and_frees_outside_of_allocations_are_refused() {
    let Some(device) = device() else { return };
    device.run("driver::copies_and_frees_outside_of_allocations_are_refused", || {
        let context = context(0);
        let stream = context.new_stream().unwrap();
        let refused = Err(DriverError(CUresult::CUDA_ERROR_INVALID_VALUE));
        // SAFETY: addresses are the device's own affair; host memory is as long as said.
        unsafe {
            let pointer = result::malloc_sync(8).unwrap();
            let other = result::malloc_sync(64).unwrap();
            assert_eq!(result::memcpy_htod_async(pointer, &[0_u8; 9], stream.cu_stream()), refused);
            assert_eq!(result::memcpy_htod_async(pointer + 4, &[0_u8; 5], stream.cu_stream()), refused);
            assert_eq!(result::memcpy_htod_async(pointer + 4, &[0_u8; 4], stream.cu_stream()), Ok(()));
            let to_device = cuMemcpyDtoDAsync_v2(other, pointer, 9, stream.cu_stream());
            assert_eq!(to_device, CUresult::CUDA_ERROR_INVALID_VALUE);
            assert_eq!(result::memset_d8_async(pointer, 0, 9, stream.cu_stream()), refused);
            assert_eq!(result::free_sync(pointer + 4), refused);
            assert_eq!(result::free_sync(pointer), Ok(()));
            assert_eq!(result::free_sync(pointer), refused);
            assert_eq!(result::memcpy_dtoh_async(&mut [0_u8; 4], pointer, stream.cu_stream()), refused);
            result::free_async(other, stream.cu_stream()).unwrap();
            assert_eq!(result::memset_d8_async(other, 0, 1, stream.cu_stream()), refused);
        }
    });
}

#[test]
fn memory_runs_out_and_comes_back() {
    let Some(device) = device() else { return };
    device.set("SOFTWARE_CUDA_MEMORY", 1 << 20).run("driver::memory_runs_out_and_comes_back", || {
        let context = context(0);
        assert_eq!(context.mem_get_info().unwrap(), (1 << 20, 1 << 20));
        // SAFETY: never read.
        unsafe {
            let all = result::malloc_sync(1 << 20).unwrap();
            assert_eq!(result::malloc_sync(1), Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)));
            result::free_sync(all).unwrap();
            result::free_sync(result::malloc_sync(1).unwrap()).unwrap();
        }
    });
}

#[test]
fn a_buffer_that_is_freed_under_a_copy_breaks_the_context() {
    let Some(device) = device() else { return };
    device.run("driver::a_buffer_that_is_freed_under_a_copy_breaks_the_context", || {
        let context = context(0);
        let (stream, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let source = pinned(&context, &[1; 4]);
        // SAFETY: never read.
        let mut buffer = unsafe { other.alloc::<u32>(4) }.unwrap();
        let gate = Gate::hold(&stream);
        stream.memcpy_htod(&source, &mut buffer).unwrap();
        drop(buffer);
        other.synchronize().unwrap();
        gate.open();
        let broken = Err(DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
        assert_eq!(stream.synchronize(), broken);
        assert_eq!(stream.alloc_zeros::<u8>(1).map(drop), broken, "and stays so");
        // Dropping what is left would complain of the same.
        std::process::exit(0);
    });
}

#[test]
fn the_host_cannot_read_device_memory() {
    const NAME: &str = "driver::the_host_cannot_read_device_memory";
    let Some(device) = device() else { return };
    if is_inside() {
        let _context = context(0);
        // SAFETY: it is meant to end the program.
        unsafe { (result::malloc_sync(4).unwrap() as *const u32).read_volatile() };
        return;
    }
    let finished = device.start(NAME);
    assert_eq!(finished.code, 128 + libc::SIGSEGV, "{finished:?}");
    assert_eq!(finished.lines_with("host code touched the device pointer 0x"), 1, "{finished:?}");
}

#[test]
fn what_is_not_there_is_named() {
    const NAME: &str = "driver::what_is_not_there_is_named";
    let Some(device) = device() else { return };
    if is_inside() {
        let mut graph = std::ptr::null_mut();
        // SAFETY: it is meant to end the test.
        unsafe { sys::cuGraphCreate(&mut graph, 0) };
        return;
    }
    let finished = device.start(NAME);
    assert_eq!(finished.code, 101, "{finished:?}");
    assert!(finished.lines_with("cuGraphCreate") > 0, "{finished:?}");
}

#[test]
fn a_trace_tells_what_was_asked_for() {
    let Some(device) = device() else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    let device = device.set("SOFTWARE_CUDA_TRACE", file.path().display());
    device.run("driver::a_trace_tells_what_was_asked_for", || {
        let context = context(0);
        let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let buffer = first.alloc_zeros::<u32>(1).unwrap();
        second.join(&first).unwrap();
        assert_eq!(second.clone_dtoh(&buffer).unwrap(), [0]);
    });
    if !is_inside() {
        let text = std::fs::read_to_string(file.path()).unwrap();
        let has = |wanted: &str| text.lines().any(|line| line.ends_with(wanted));
        assert!(has("submit 0 cuMemsetD8Async") && has("submit 1 cuMemcpyDtoHAsync_v2"), "{text}");
        assert!(has("wait cuMemcpyDtoHAsync_v2") && !has("wait cuStreamSynchronize"), "{text}");
    }
}

#[test]
fn work_without_a_current_context_is_refused() {
    let Some(device) = device() else { return };
    device.run("driver::work_without_a_current_context_is_refused", || {
        let context = context(0);
        let stream = context.new_stream().unwrap();
        let buffer = stream.alloc_zeros::<u8>(1).unwrap();
        let address = cudarc::driver::DevicePtr::device_ptr(&buffer, &stream).0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: the buffer has a byte.
                let fill = || unsafe { result::memset_d8_async(address, 1, 1, stream.cu_stream()) };
                assert_eq!(fill(), Err(DriverError(CUresult::CUDA_ERROR_INVALID_CONTEXT)));
                context.bind_to_thread().unwrap();
                assert_eq!(fill(), Ok(()));
            });
        });
    });
}
