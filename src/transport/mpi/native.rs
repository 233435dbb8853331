//! `native` on MPI: `MPI_Iallreduce` and a test, so that it has a deadline too.

use super::{Mpi, Vigil, check};
use crate::error::{Error, Result};
use crate::reduce::{ElementType, Operator, scale_for_average};
use crate::transport::{Native, Transport, Wait};
use mpi::ffi;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::AsRaw;
use std::ffi::c_void;
use std::mem::MaybeUninit;

pub(super) struct NativeMpi {
    /// A communicator of its own: exchanges never share one with schedules.
    communicator: SimpleCommunicator,
    in_place: Option<*const c_void>,
}

impl NativeMpi {
    pub(super) fn new(world: &SimpleCommunicator) -> Result<Self> {
        let communicator = world.duplicate();
        // SAFETY: the communicator is valid.
        let code = unsafe { ffi::MPI_Comm_set_errhandler(communicator.as_raw(), ffi::RSMPI_ERRORS_RETURN) };
        check(code, "MPI_Comm_set_errhandler")?;
        // The bindings do not carry MPI_IN_PLACE, a cast in every mpi.h: 1 in Open MPI, −1 in MPICH and its kin.
        let library = mpi::environment::library_version().unwrap_or_default();
        let in_place = if library.contains("Open MPI") {
            Some(std::ptr::without_provenance(1))
        } else if ["MPICH", "Intel(R) MPI", "MVAPICH"].iter().any(|name| library.contains(name)) {
            Some(std::ptr::without_provenance(usize::MAX))
        } else {
            None
        };
        Ok(NativeMpi { communicator, in_place })
    }
}

impl Native for Mpi {
    unsafe fn all_reduce(
        &self,
        buffer: *mut u8,
        count: usize,
        element: ElementType,
        operator: Operator,
        wait: &Wait<'_>,
    ) -> Result<()> {
        let refuse = |reason: String| Error::Refused {
            collective: "native",
            operation: wait.operation.to_string(),
            reason,
        };
        // SAFETY: reading MPI's constants.
        let datatype = unsafe {
            match element {
                ElementType::F32 => ffi::RSMPI_FLOAT,
                ElementType::F64 => ffi::RSMPI_DOUBLE,
                ElementType::I32 => ffi::RSMPI_INT32_T,
                ElementType::I64 => ffi::RSMPI_INT64_T,
                ElementType::F16 | ElementType::BF16 => {
                    return Err(refuse(format!(
                        "MPI has no type {element}; every schedule has (try `ring`)"
                    )));
                }
            }
        };
        // SAFETY: reading MPI's constants.
        let mpi_operator = unsafe {
            match operator {
                Operator::Sum | Operator::Average => ffi::RSMPI_SUM,
                Operator::Min => ffi::RSMPI_MIN,
                Operator::Max => ffi::RSMPI_MAX,
                Operator::Product => ffi::RSMPI_PROD,
            }
        };
        let mpi_count = i32::try_from(count)
            .map_err(|_| refuse(format!("MPI counts end at {}, here are {count}", i32::MAX)))?;
        let bytes = count * element.size();
        let copy: Vec<u8>;
        let from = match self.native.in_place {
            Some(in_place) => in_place,
            None => {
                // SAFETY: the caller promised `count` valid elements.
                copy = unsafe { std::slice::from_raw_parts(buffer, bytes) }.to_vec();
                copy.as_ptr().cast()
            }
        };
        let mut raw = MaybeUninit::uninit();
        let guard = self.requests();
        // SAFETY: the caller keeps the buffer valid; type and operator are MPI's own.
        let code = unsafe {
            ffi::MPI_Iallreduce(
                from,
                buffer.cast(),
                mpi_count,
                datatype,
                mpi_operator,
                self.native.communicator.as_raw(),
                raw.as_mut_ptr(),
            )
        };
        drop(guard);
        check(code, "MPI_Iallreduce")?;
        // SAFETY: a successful call has made the request.
        let mut raw = unsafe { raw.assume_init() };
        let mut vigil = Vigil::new(wait, self);
        loop {
            let mut done = 0;
            let guard = self.requests();
            // SAFETY: the request is active until `done`.
            let code = unsafe { ffi::MPI_Test(&mut raw, &mut done, ffi::RSMPI_STATUS_IGNORE) };
            drop(guard);
            check(code, "MPI_Test of MPI_Iallreduce")?;
            if done != 0 {
                break;
            }
            let others = || self.peers.iter().filter(|peer| peer.rank != self.rank).cloned().collect();
            if let Err(error) = vigil.pass_time(self, wait, others) {
                // MPI may still write to the caller's buffer: it must not be freed while the process lives.
                self.abort(&error);
            }
        }
        if operator == Operator::Average {
            // SAFETY: the caller promised `count` valid elements, and the operation is complete.
            let bytes = unsafe { std::slice::from_raw_parts_mut(buffer, bytes) };
            scale_for_average(element, bytes, self.size());
        }
        Ok(())
    }
}
