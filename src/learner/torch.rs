//! A worker that trains a network of libtorch's layers.

#[cfg(feature = "cuda")]
mod on_gpu;
#[cfg(any(test, feature = "cuda"))]
mod tensor_sgd;

use super::flat::{FlatStore, Group, elements, elements_mut, failed, zeros};
use super::models::{is_normalised, network};
use super::{Evaluation, Layout, Learner, LearnerState, Memory, Sgd, SgdOptions, StepOutcome, share};
use crate::data::{Batches, Dataset, Samples};
#[cfg(feature = "cuda")]
use crate::device::DeviceSliceMut;
use crate::error::{Error, Result};
use crate::policy::Update;
use crate::reduce::ElementType;
use std::ops::Range;
use std::sync::{Arc, Once};
use tch::nn::{ModuleT, SequentialT, VarStore};
use tch::{Device, Kind, Reduction, TchError, Tensor};

/// The settings of [`TorchLearner`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TorchOptions {
    /// Samples per mini-batch.
    pub batch_size: usize,
    /// Of the local optimiser.
    pub learning_rate: f64,
    /// Of the local optimiser, from 0 to below 1.
    pub momentum: f64,
    /// Of the local optimiser.
    pub weight_decay: f64,
    /// Makes the starting parameters and, with the rank, the order of the samples.
    pub seed: u64,
    /// This worker.
    pub rank: usize,
}

/// Trains a network on one worker's shard with the mean cross-entropy and [`Sgd`].
///
/// The parameters of all ranks with the same seed start equal. Nothing is drawn from libtorch's global generator, and with
/// one thread ([`set_threads`]) the same calls give the same bits.
#[derive(Debug)]
pub struct TorchLearner {
    /// Parameters and gradient, of which the network's variables are views.
    model: Group,
    network: SequentialT,
    dataset: Arc<Dataset>,
    batches: Batches,
    /// Training samples that were set aside, as a data set of their own.
    held_out: Samples,
    /// Whether the network normalises over the mini-batch.
    is_normalised: bool,
    sgd: Sgd,
    /// The mini-batch, filled anew in every step: batch × channels × height × width.
    images: Tensor,
    labels: Tensor,
    #[cfg(feature = "cuda")]
    on_gpu: Option<on_gpu::OnGpu>,
}

/// Test images in one forward pass. Enough to make its overhead vanish, few enough to stay in the caches.
const EVALUATION_BATCH: usize = 256;

/// What libtorch leaves out of the loss by default; no class has this number.
const NO_CLASS: i64 = -100;

impl TorchLearner {
    /// A worker with a new network, one of [`NETWORK_NAMES`](super::NETWORK_NAMES), that trains on the images `shard` of
    /// `dataset.train`.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for an unknown network, images or mini-batches that are too small for it, an empty shard or a batch
    /// size of 0; [`Error::Internal`] if the shard has an index that the data set does not.
    pub fn new(
        network_name: &str,
        dataset: Arc<Dataset>,
        shard: Vec<u32>,
        options: TorchOptions,
    ) -> Result<Self> {
        Self::new_in(Memory::Private, network_name, dataset, shard, options)
    }

    /// The same with parameters and gradient in memory of the caller's choice.
    ///
    /// # Errors
    ///
    /// As [`new`](TorchLearner::new), and [`Error::Environment`] if there is no such memory left.
    pub fn new_in(
        memory: Memory<'_>,
        network_name: &str,
        dataset: Arc<Dataset>,
        shard: Vec<u32>,
        options: TorchOptions,
    ) -> Result<Self> {
        if let Some(index) = shard.iter().find(|&&index| index as usize >= dataset.train.len()) {
            return Err(Error::Internal(format!("sample {index} of a data set of {}", dataset.train.len())));
        }
        if is_normalised(network_name) && options.batch_size == 1 {
            return Err(Error::Usage(format!(
                "`{network_name}` normalises over the mini-batch and needs at least 2 samples in it"
            )));
        }
        let batches = Batches::new(shard, options.batch_size, options.seed, options.rank as u64)?;
        let mut variables = VarStore::new(Device::Cpu);
        let network = network(network_name, &variables.root(), &dataset, options.seed)?;
        let mut flat = FlatStore::adopt_in(&mut variables, memory)?;
        flat.adopt_gradients_in(memory)?;
        let Some(model) = flat.into_only_group(ElementType::F32) else {
            return Err(Error::Internal(format!("`{network_name}` is not of f32 alone")));
        };
        let sgd = SgdOptions {
            learning_rate: options.learning_rate,
            momentum: options.momentum,
            weight_decay: options.weight_decay,
        };
        let images = zeros(options.batch_size * dataset.image_len(), ElementType::F32)?;
        #[cfg(feature = "cuda")]
        let (on_gpu, host_velocity) = match memory {
            Memory::Gpu(gpu) => {
                let velocity = if sgd.momentum == 0.0 { 0 } else { model.layout.trainable };
                (Some(on_gpu::OnGpu::new(gpu, &model, &dataset, options.batch_size, velocity)?), 0)
            }
            _ => (None, model.layout.trainable),
        };
        #[cfg(not(feature = "cuda"))]
        let host_velocity = model.layout.trainable;
        Ok(TorchLearner {
            #[cfg(feature = "cuda")]
            on_gpu,
            images: images.f_view(image_sizes(&dataset, options.batch_size)).map_err(failed)?,
            labels: zeros(options.batch_size, ElementType::I64)?,
            sgd: Sgd::new(sgd, host_velocity),
            model,
            network,
            dataset,
            batches,
            held_out: Samples::default(),
            is_normalised: is_normalised(network_name),
        })
    }

    /// Sets these images of `dataset.train` aside for [`held_out`](Learner::held_out). The caller leaves them out of the
    /// shard.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if there is no such image.
    pub fn with_held_out(mut self, images: &[u32]) -> Result<Self> {
        let train = &self.dataset.train;
        if let Some(index) = images.iter().find(|&&index| index as usize >= train.len()) {
            return Err(Error::Internal(format!("sample {index} of a data set of {}", train.len())));
        }
        self.held_out = train.select(images, self.dataset.image_len());
        Ok(self)
    }

    /// The data that it trains and is tested on.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    fn fetch_batch(&mut self) {
        let image_len = self.dataset.image_len();
        let train = &self.dataset.train;
        let images = elements_mut::<f32>(&mut self.images).chunks_exact_mut(image_len);
        let classes = elements_mut::<i64>(&mut self.labels);
        for ((&index, image), class) in self.batches.next_batch().iter().zip(images).zip(classes) {
            let index = index as usize;
            image.copy_from_slice(train.image(index, image_len));
            *class = train.labels[index];
        }
    }

    /// Loss and gradient of the mini-batch that was fetched.
    fn compute_gradient(&mut self) -> Result<f64> {
        // Backward passes add to the gradient.
        if let Some(gradients) = &mut self.model.gradients {
            let _ = gradients.f_zero_().map_err(failed)?;
        }
        let (images, labels) = (self.images.shallow_clone(), self.labels.shallow_clone());
        #[cfg(feature = "cuda")]
        let (images, labels) = match &mut self.on_gpu {
            Some(on_gpu) => on_gpu.batch(&images, &labels)?,
            None => (images, labels),
        };
        let compute = || {
            let scores = self.network.forward_t(&images, true);
            let loss = cross_entropy(&scores, &labels, Reduction::Mean)?;
            loss.f_backward()?;
            loss.f_double_value(&[])
        };
        tch::with_grad(compute).map_err(failed)
    }

    fn evaluate_on(&self, samples: &Samples, range: Range<usize>) -> Result<Evaluation> {
        let mut total = Evaluation::default();
        tch::no_grad(|| {
            for start in range.clone().step_by(EVALUATION_BATCH) {
                total += self.evaluate_batch(samples, start..range.end.min(start + EVALUATION_BATCH))?;
            }
            Ok(total)
        })
        .map_err(failed)
    }

    /// Loss and right answers on some images, without touching the statistics.
    fn evaluate_batch(&self, samples: &Samples, range: Range<usize>) -> Result<Evaluation, TchError> {
        let image_len = self.dataset.image_len();
        let stride = samples.stride(image_len);
        let pixels = &samples.pixels[range.start * stride..(range.end - 1) * stride + image_len];
        let classes = &samples.labels[range.clone()];
        let sizes = image_sizes(&self.dataset, range.len());
        let strides = strides(sizes, stride);
        // SAFETY: `pixels` begins with the first image and ends with the last, which begin `stride` apart; it outlives the
        // tensor, which does not leave this function: an evaluation keeps no graph. Nothing writes into it.
        let images =
            unsafe { Tensor::from_blob(pixels.as_ptr().cast(), &sizes, &strides, Kind::Float, Device::Cpu) };
        // SAFETY: the same, with as many i64 as there are images.
        let labels = unsafe {
            Tensor::from_blob(classes.as_ptr().cast(), &[range.len() as i64], &[1], Kind::Int64, Device::Cpu)
        };
        #[cfg(feature = "cuda")]
        let (images, labels) = match &self.on_gpu {
            Some(on_gpu) => (images.f_to_device(on_gpu.device)?, labels.f_to_device(on_gpu.device)?),
            None => (images, labels),
        };
        let scores = self.network.forward_t(&images, false);
        let loss = cross_entropy(&scores, &labels, Reduction::Sum)?;
        let right = scores.f_argmax(-1, false)?.f_eq_tensor(&labels)?.f_sum(Kind::Int64)?;
        Ok(Evaluation {
            loss_sum: loss.f_double_value(&[])?,
            correct: right.f_int64_value(&[])? as u64,
            samples: range.len() as u64,
        })
    }
}

impl Learner for TorchLearner {
    fn layout(&self) -> &Layout {
        &self.model.layout
    }

    fn parameters(&mut self) -> &mut [f32] {
        if self.is_on_gpu() {
            return &mut [];
        }
        elements_mut(&mut self.model.values)
    }

    fn gradient(&mut self) -> &mut [f32] {
        if self.is_on_gpu() {
            return &mut [];
        }
        self.model.gradients.as_mut().map_or(&mut [], elements_mut)
    }

    #[cfg(feature = "cuda")]
    fn is_on_gpu(&self) -> bool {
        self.on_gpu.is_some()
    }

    #[cfg(feature = "cuda")]
    fn device_parameters(&mut self) -> Option<DeviceSliceMut<'_, f32>> {
        self.on_gpu.as_mut().map(on_gpu::OnGpu::parameters)
    }

    #[cfg(feature = "cuda")]
    fn device_gradient(&mut self) -> Option<DeviceSliceMut<'_, f32>> {
        self.on_gpu.as_mut().map(on_gpu::OnGpu::gradient)
    }

    fn step(&mut self, update: Update) -> Result<StepOutcome> {
        self.fetch_batch();
        let loss = self.compute_gradient()?;
        if update == Update::Local {
            self.apply_gradient()?;
        }
        Ok(StepOutcome { loss, samples: self.batches.batch_size() })
    }

    fn apply_gradient(&mut self) -> Result<()> {
        let model = &mut self.model;
        #[cfg(feature = "cuda")]
        if let (Some(on_gpu), Some(gradients)) = (&mut self.on_gpu, &model.gradients) {
            let trained = model.values.f_narrow(0, 0, model.layout.trainable as i64);
            let mut trained = trained.map_err(failed)?;
            return tensor_sgd::step(&self.sgd, &mut trained, gradients, &mut on_gpu.velocity);
        }
        let trained = &mut elements_mut(&mut model.values)[..model.layout.trainable];
        if let Some(gradients) = &model.gradients {
            self.sgd.step(trained, elements(gradients));
        }
        Ok(())
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.sgd.set_learning_rate(learning_rate);
    }

    fn evaluate(&mut self, part: usize, parts: usize) -> Result<Evaluation> {
        let range = share(self.dataset.test.len(), part, parts)?;
        self.evaluate_on(&self.dataset.test, range)
    }

    fn held_out(&mut self) -> Result<Evaluation> {
        if self.held_out.is_empty() {
            return Err(Error::Usage("no samples of this worker's shard were set aside".into()));
        }
        self.evaluate_on(&self.held_out, 0..self.held_out.len())
    }

    fn set_batch(&mut self, batch_size: usize, data_budget: Option<usize>) -> Result<()> {
        if self.is_normalised && batch_size == 1 {
            return Err(Error::Usage(
                "this network normalises over the mini-batch and needs at least 2 samples in it".into(),
            ));
        }
        let is_new = batch_size != self.batches.batch_size();
        self.batches.resize(batch_size, data_budget)?;
        if is_new {
            let images = zeros(batch_size * self.dataset.image_len(), ElementType::F32)?;
            self.images = images.f_view(image_sizes(&self.dataset, batch_size)).map_err(failed)?;
            self.labels = zeros(batch_size, ElementType::I64)?;
            #[cfg(feature = "cuda")]
            if let Some(on_gpu) = &mut self.on_gpu {
                on_gpu.resize(&self.dataset, batch_size)?;
            }
        }
        Ok(())
    }

    fn save_state(&self) -> Result<LearnerState> {
        #[cfg(feature = "cuda")]
        if let Some(on_gpu) = &self.on_gpu {
            return Ok(LearnerState {
                parameters: on_gpu::to_host(&self.model.values)?,
                gradient: self.model.gradients.as_ref().map_or(Ok(Vec::new()), on_gpu::to_host)?,
                optimizer: on_gpu::to_host(&on_gpu.velocity)?,
                position: self.batches.position(),
            });
        }
        Ok(LearnerState {
            parameters: elements(&self.model.values).to_vec(),
            gradient: self.model.gradients.as_ref().map_or(&[][..], elements).to_vec(),
            optimizer: self.sgd.state().to_vec(),
            position: self.batches.position(),
        })
    }

    fn load_state(&mut self, state: &LearnerState) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(on_gpu) = &mut self.on_gpu {
            state.check(&self.model.layout, on_gpu.velocity.numel())?;
            self.batches.seek(state.position)?;
            on_gpu::from_host(&state.parameters, &mut self.model.values)?;
            if let Some(gradients) = &mut self.model.gradients {
                on_gpu::from_host(&state.gradient, gradients)?;
            }
            return on_gpu::from_host(&state.optimizer, &mut on_gpu.velocity);
        }
        state.check(&self.model.layout, self.sgd.state().len())?;
        self.batches.seek(state.position)?;
        self.parameters().copy_from_slice(&state.parameters);
        self.gradient().copy_from_slice(&state.gradient);
        self.sgd.state_mut().copy_from_slice(&state.optimizer);
        Ok(())
    }
}

fn cross_entropy(scores: &Tensor, labels: &Tensor, reduction: Reduction) -> Result<Tensor, TchError> {
    scores.f_cross_entropy_loss(labels, None::<&Tensor>, reduction, NO_CLASS, 0.0)
}

fn image_sizes(dataset: &Dataset, images: usize) -> [i64; 4] {
    [images, dataset.channels, dataset.height, dataset.width].map(|size| size as i64)
}

/// Row-major, of images that begin `between` values apart.
fn strides([_, _, height, width]: [i64; 4], between: usize) -> [i64; 4] {
    [between as i64, height * width, width, 1]
}

/// How many threads libtorch may use for one operation when called from this thread. Call it on every thread that trains:
/// libtorch's default is all cores for each, which is slower than one where ranks share cores.
pub fn set_threads(threads: usize) {
    static BETWEEN_OPERATIONS: Once = Once::new();
    // Threads *between* operations are of no use here, and libtorch allows this to be said only once.
    BETWEEN_OPERATIONS.call_once(|| {
        if tch::get_num_interop_threads() != 1 {
            tch::set_num_interop_threads(1);
        }
    });
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
}
