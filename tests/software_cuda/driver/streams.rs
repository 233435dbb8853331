//! Streams.

use super::unsupported;
use crate::api::{CUresult, code, complain, put};
use crate::device;
use crate::driver::events::EVENTS;
use crate::stream::{STREAMS, stream_for_work, stream_of};
use crate::trace;
use cudarc::driver::sys::{CUcontext, CUevent, CUhostFn, CUstream, CUstream_flags};
use std::ffi::{c_int, c_uint, c_void};

pub(crate) const LEAST_PRIORITY: c_int = 0;
pub(crate) const GREATEST_PRIORITY: c_int = -5;

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(stream: *mut CUstream, flags: c_uint) -> CUresult {
    cuStreamCreateWithPriority(stream, flags, LEAST_PRIORITY)
}

/// Priorities are kept within CUDA's range, and change nothing here.
#[unsafe(no_mangle)]
extern "C" fn cuStreamCreateWithPriority(stream: *mut CUstream, flags: c_uint, priority: c_int) -> CUresult {
    code(|| {
        let device = device::current()?;
        let blocking = match flags {
            flags if flags == CUstream_flags::CU_STREAM_DEFAULT as c_uint => true,
            flags if flags == CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint => false,
            other => return unsupported(format_args!("stream flags {other}")),
        };
        let priority = priority.clamp(GREATEST_PRIORITY, LEAST_PRIORITY);
        put(stream, STREAMS.add(device.new_stream(blocking, priority)))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: CUstream) -> CUresult {
    code(|| {
        let Some(stream) = STREAMS.remove(stream) else {
            complain!("cuStreamDestroy: {stream:?} is no stream");
            return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
        };
        stream.device.end_stream(&stream);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: CUstream) -> CUresult {
    code(|| {
        let stream = stream_of(stream)?;
        trace::wait("cuStreamSynchronize");
        stream.point().wait();
        stream.device.check()
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: CUstream) -> CUresult {
    code(|| {
        let stream = stream_of(stream)?;
        stream.device.check()?;
        if stream.mark().is_passed() { Ok(()) } else { Err(CUresult::CUDA_ERROR_NOT_READY) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: CUstream, event: CUevent, _flags: c_uint) -> CUresult {
    code(|| {
        let stream = stream_for_work(stream)?;
        let event = EVENTS.get(event).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        // An event that was never recorded is no reason to wait.
        if let Some(point) = event.recorded() {
            stream.wait_for(point);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetCtx(stream: CUstream, context: *mut CUcontext) -> CUresult {
    code(|| put(context, stream_of(stream)?.device.handle()))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetPriority(stream: CUstream, priority: *mut c_int) -> CUresult {
    code(|| put(priority, stream_of(stream)?.priority))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetFlags(stream: CUstream, flags: *mut c_uint) -> CUresult {
    code(|| put(flags, c_uint::from(!stream_of(stream)?.blocking)))
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchHostFunc(stream: CUstream, function: CUhostFn, argument: *mut c_void) -> CUresult {
    code(|| {
        let (stream, function) = (stream_of(stream)?, function.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?);
        let argument = argument.expose_provenance();
        stream.submit("a host function", move || {
            // SAFETY: the caller promises that the function may be called with this argument, in any thread.
            unsafe { function(std::ptr::with_exposed_provenance_mut(argument)) };
        });
        Ok(())
    })
}
