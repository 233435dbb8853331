//! Events.

use crate::api::{CUresult, code, complain, put};
use crate::completion::Completion;
use crate::device::{self, Device};
use crate::handles::Handles;
use crate::stream::stream_for_work;
use crate::trace;
use cudarc::driver::sys::{CUevent, CUevent_flags, CUstream};
use std::ffi::c_uint;
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) static EVENTS: Handles<Event> = Handles::new();

#[derive(Debug)]
pub(crate) struct Event {
    device: &'static Device,
    timing: bool,
    recorded: Mutex<Option<Arc<Completion>>>,
}

impl Event {
    /// The point that the last record stands for.
    pub(crate) fn recorded(&self) -> Option<Arc<Completion>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn event_of(handle: CUevent) -> Result<Arc<Event>, CUresult> {
    EVENTS.get(handle).ok_or_else(|| {
        complain!("{handle:?} is no event");
        CUresult::CUDA_ERROR_INVALID_HANDLE
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: *mut CUevent, flags: c_uint) -> CUresult {
    code(|| {
        let device = device::current()?;
        let timing = flags & CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint == 0;
        put(event, EVENTS.add(Arc::new(Event { device, timing, recorded: Mutex::default() })))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: CUevent) -> CUresult {
    code(|| EVENTS.remove(event).map(drop).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: CUevent, stream: CUstream) -> CUresult {
    code(|| {
        let (event, stream) = (event_of(event)?, stream_for_work(stream)?);
        if event.device.ordinal != stream.device.ordinal {
            complain!(
                "an event of device {} is recorded in a stream of device {}",
                event.device.ordinal,
                stream.device.ordinal
            );
            return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
        let point = stream.point();
        *event.recorded.lock().unwrap_or_else(PoisonError::into_inner) = Some(point);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: CUevent) -> CUresult {
    code(|| {
        let event = event_of(event)?;
        event.device.check()?;
        match event.recorded() {
            Some(point) if !point.is_passed() => Err(CUresult::CUDA_ERROR_NOT_READY),
            _ => Ok(()),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: CUevent) -> CUresult {
    code(|| {
        let event = event_of(event)?;
        if let Some(point) = event.recorded() {
            trace::wait("cuEventSynchronize");
            point.wait();
        }
        event.device.check()
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: CUevent, end: CUevent) -> CUresult {
    code(|| {
        let (start, end) = (event_of(start)?, event_of(end)?);
        if !start.timing || !end.timing {
            complain!("the time between events that do not take the time was asked for");
            return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
        let (Some(start), Some(end)) = (start.recorded(), end.recorded()) else {
            return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
        };
        let (Some(start), Some(end)) = (start.passed_at(), end.passed_at()) else {
            return Err(CUresult::CUDA_ERROR_NOT_READY);
        };
        let seconds = if end >= start { (end - start).as_secs_f32() } else { -(start - end).as_secs_f32() };
        put(milliseconds, seconds * 1e3)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent) -> CUresult {
    cuEventElapsedTime_v2(milliseconds, start, end)
}
