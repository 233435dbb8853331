//! Where a model's flat buffers lie.

#[cfg(feature = "cuda")]
use super::flat::zeros_on;
use super::flat::{failed, zeros};
use crate::collective::Communicator;
#[cfg(feature = "cuda")]
use crate::device::Gpu;
use crate::error::Result;
use crate::reduce::{Element, ElementType};
use half::{bf16, f16};
#[cfg(feature = "cuda")]
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Where a model's flat buffers lie.
#[derive(Clone, Copy)]
pub enum Memory<'a> {
    /// In libtorch's own memory, given back with its last tensor.
    Private,
    /// Where the processes of this host that take part in the communicator can address them, so that a collective moves
    /// every byte once (see [`Communicator::alloc`]). Where the ranks are threads, or share no memory, this is the same as
    /// `Private`.
    ///
    /// Tensors cannot own such memory, and may outlive whoever made them, so that it is kept until the process ends.
    Shared(&'a Communicator),
    /// On a GPU, in libtorch's own memory there.
    #[cfg(feature = "cuda")]
    Gpu(&'a Arc<Gpu>),
}

impl Memory<'_> {
    /// A new contiguous tensor of zeros.
    pub(super) fn zeros(self, len: usize, element_type: ElementType) -> Result<Tensor> {
        let shared = match self {
            // Threads can address all memory, so that nothing is gained.
            Memory::Shared(communicator) if communicator.is_of_processes() && len > 0 => communicator,
            #[cfg(feature = "cuda")]
            Memory::Gpu(gpu) => return zeros_on(len, element_type, Device::Cuda(gpu.ordinal())),
            _ => return zeros(len, element_type),
        };
        match element_type {
            ElementType::F32 => mapped::<f32>(shared, len, Kind::Float),
            ElementType::F64 => mapped::<f64>(shared, len, Kind::Double),
            ElementType::F16 => mapped::<f16>(shared, len, Kind::Half),
            ElementType::BF16 => mapped::<bf16>(shared, len, Kind::BFloat16),
            // Only floats are exchanged.
            ElementType::I32 | ElementType::I64 => zeros(len, element_type),
        }
    }
}

fn mapped<T: Element>(communicator: &Communicator, len: usize, kind: Kind) -> Result<Tensor> {
    let buffer = communicator.alloc::<T>(len)?;
    if !buffer.is_registered() {
        return zeros(len, T::TYPE);
    }
    let start = Box::leak(Box::new(buffer)).as_mut_ptr();
    // SAFETY: `len` zeros of this type begin at `start`, and are never given back; the tensor is the only one to use them.
    unsafe { Tensor::f_from_blob(start.cast(), &[len as i64], &[1], kind, Device::Cpu) }.map_err(failed)
}
