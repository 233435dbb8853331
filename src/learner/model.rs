//! What an exchange needs of a model: its flat buffers.

use super::{Evaluation, Learner, TensorLayout};
#[cfg(feature = "cuda")]
use crate::device::DeviceSliceMut;
use crate::error::{Error, Result};
use crate::reduce::ElementType;
use half::{bf16, f16};

/// A flat buffer of one of the types that parameters have.
pub enum FlatSlice<'a> {
    /// `f32`.
    F32(&'a mut [f32]),
    /// `f64`.
    F64(&'a mut [f64]),
    /// `f16`.
    F16(&'a mut [f16]),
    /// `bf16`.
    BF16(&'a mut [bf16]),
    /// `f32` in a GPU's memory.
    #[cfg(feature = "cuda")]
    Gpu(DeviceSliceMut<'a, f32>),
}

impl FlatSlice<'_> {
    /// The element type.
    pub fn element(&self) -> ElementType {
        match self {
            FlatSlice::F32(_) => ElementType::F32,
            FlatSlice::F64(_) => ElementType::F64,
            FlatSlice::F16(_) => ElementType::F16,
            FlatSlice::BF16(_) => ElementType::BF16,
            #[cfg(feature = "cuda")]
            FlatSlice::Gpu(_) => ElementType::F32,
        }
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        match self {
            FlatSlice::F32(values) => values.len(),
            FlatSlice::F64(values) => values.len(),
            FlatSlice::F16(values) => values.len(),
            FlatSlice::BF16(values) => values.len(),
            #[cfg(feature = "cuda")]
            FlatSlice::Gpu(values) => values.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A model as the runtime sees it: one group of parameters for each element type.
pub trait Model {
    /// How many groups there are.
    fn groups(&self) -> usize;

    /// How many elements at the beginning of the group are trained; the rest are statistics (batch-norm running mean and
    /// variance).
    fn trainable(&self, group: usize) -> usize;

    /// Where the group's tensors lie, in the order of their ranges: fragments are made of whole layers.
    fn tensors(&self, group: usize) -> &[TensorLayout];

    /// The group's parameters and statistics.
    fn parameters(&mut self, group: usize) -> FlatSlice<'_>;

    /// The group's gradient, `trainable` elements, if the model lets the runtime see it.
    fn gradient(&mut self, group: usize) -> Option<FlatSlice<'_>>;

    /// One step of the local optimiser on the gradient.
    ///
    /// # Errors
    /// As [`Learner::apply_gradient`].
    fn apply_gradient(&mut self) -> Result<()>;

    /// [`Learner::held_out`], for policies that gate their pushes by it.
    ///
    /// # Errors
    /// `Usage` for models that the library does not evaluate itself.
    fn held_out(&mut self) -> Result<Evaluation> {
        Err(Error::Usage(
            "this policy measures a held-out loss, and this model has no data of its own".into(),
        ))
    }

    /// [`Learner::set_batch`], for policies that size mini-batches.
    ///
    /// # Errors
    /// `Usage` for models that the library does not feed itself.
    fn set_batch(&mut self, batch_size: usize, data_budget: Option<usize>) -> Result<()> {
        let _ = (batch_size, data_budget);
        Err(Error::Usage("this policy sizes mini-batches, and this model has no data of its own".into()))
    }
}

impl<L: Learner + ?Sized> Model for Box<L> {
    fn groups(&self) -> usize {
        1
    }

    fn trainable(&self, _group: usize) -> usize {
        self.layout().trainable
    }

    fn tensors(&self, _group: usize) -> &[TensorLayout] {
        &self.layout().tensors
    }

    fn parameters(&mut self, _group: usize) -> FlatSlice<'_> {
        #[cfg(feature = "cuda")]
        if self.is_on_gpu() {
            // A learner on a GPU that shows no parameters has none.
            return (**self).device_parameters().map_or(FlatSlice::F32(&mut []), FlatSlice::Gpu);
        }
        FlatSlice::F32((**self).parameters())
    }

    fn gradient(&mut self, _group: usize) -> Option<FlatSlice<'_>> {
        #[cfg(feature = "cuda")]
        if self.is_on_gpu() {
            return (**self).device_gradient().map(FlatSlice::Gpu);
        }
        Some(FlatSlice::F32((**self).gradient()))
    }

    fn apply_gradient(&mut self) -> Result<()> {
        (**self).apply_gradient()
    }

    fn held_out(&mut self) -> Result<Evaluation> {
        (**self).held_out()
    }

    fn set_batch(&mut self, batch_size: usize, data_budget: Option<usize>) -> Result<()> {
        (**self).set_batch(batch_size, data_budget)
    }
}
