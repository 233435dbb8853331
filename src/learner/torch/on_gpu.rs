//! What a learner on a GPU has there besides its model.

use super::image_sizes;
use crate::data::Dataset;
use crate::device::{DeviceBuffer, DeviceSliceMut, Gpu};
use crate::error::{Error, Result};
use crate::learner::flat::{Group, failed, zeros_on};
use crate::reduce::ElementType;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// A mini-batch's place on the GPU, the optimiser's velocity, and the flat buffers as others see them.
#[derive(Debug)]
pub(super) struct OnGpu {
    pub(super) device: Device,
    images: Tensor,
    labels: Tensor,
    /// Empty without momentum.
    pub(super) velocity: Tensor,
    parameters: DeviceBuffer<f32>,
    gradient: DeviceBuffer<f32>,
}

impl OnGpu {
    /// `velocity` is how many values the optimiser keeps.
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        model: &Group,
        dataset: &Dataset,
        batch_size: usize,
        velocity: usize,
    ) -> Result<OnGpu> {
        let device = Device::Cuda(gpu.ordinal());
        let gradients = model
            .gradients
            .as_ref()
            .ok_or_else(|| Error::Internal("a learner without a buffer for its gradient".into()))?;
        let address = |tensor: &Tensor| tensor.data_ptr().addr() as u64;
        let (values, trainable) = (address(&model.values), model.layout.trainable);
        // SAFETY: libtorch's tensors on this GPU, which the model keeps as long as the learner lives; libtorch uses them only
        // in calls of the learner's own methods, whose work and ours meet in one stream.
        let (parameters, gradient) = unsafe {
            (
                DeviceBuffer::borrowed(gpu, values, model.layout.len),
                DeviceBuffer::borrowed(gpu, address(gradients), trainable),
            )
        };
        let (images, labels) = batch_places(device, dataset, batch_size)?;
        let velocity = zeros_on(velocity, ElementType::F32, device)?;
        Ok(OnGpu { device, images, labels, velocity, parameters, gradient })
    }

    pub(super) fn parameters(&mut self) -> DeviceSliceMut<'_, f32> {
        self.parameters.as_mut_slice()
    }

    pub(super) fn gradient(&mut self) -> DeviceSliceMut<'_, f32> {
        self.gradient.as_mut_slice()
    }

    /// The mini-batch, copied to the GPU.
    pub(super) fn batch(&mut self, images: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor)> {
        tch::no_grad(|| {
            self.images.f_copy_(images)?;
            self.labels.f_copy_(labels)
        })
        .map_err(failed)?;
        Ok((self.images.shallow_clone(), self.labels.shallow_clone()))
    }

    pub(super) fn resize(&mut self, dataset: &Dataset, batch_size: usize) -> Result<()> {
        (self.images, self.labels) = batch_places(self.device, dataset, batch_size)?;
        Ok(())
    }
}

fn batch_places(device: Device, dataset: &Dataset, batch_size: usize) -> Result<(Tensor, Tensor)> {
    let images = zeros_on(batch_size * dataset.image_len(), ElementType::F32, device)?;
    let images = images.f_view(image_sizes(dataset, batch_size)).map_err(failed)?;
    Ok((images, zeros_on(batch_size, ElementType::I64, device)?))
}

/// A tensor's elements, on the host.
pub(super) fn to_host(tensor: &Tensor) -> Result<Vec<f32>> {
    let mut values = vec![0.0; tensor.numel()];
    let len = values.len();
    tensor.f_to_device(Device::Cpu).and_then(|host| host.f_copy_data(&mut values, len)).map_err(failed)?;
    Ok(values)
}

/// The other way.
pub(super) fn from_host(values: &[f32], tensor: &mut Tensor) -> Result<()> {
    // SAFETY: the slice outlives the tensor made of it, which does not leave this function, and is only read.
    let host = unsafe {
        Tensor::f_from_blob(values.as_ptr().cast(), &[values.len() as i64], &[1], Kind::Float, Device::Cpu)
    };
    tch::no_grad(|| tensor.f_copy_(&host?)).map_err(failed)
}
