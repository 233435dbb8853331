//! Collectives on vectors in a GPU's memory.

use super::Communicator;
use super::run::PlanKey;
use crate::collective::device::{Job, Room};
use crate::collective::narrow::{self, Feedback};
use crate::collective::plan::Plan;
use crate::collective::{Kind, Member, Native, Operation, part};
use crate::device::{DeviceSliceMut, Gpu};
use crate::error::{Error, Result};
use crate::reduce::cuda::Kernels;
use crate::reduce::{Element, ElementType, Operator};
use crate::transport::{Deadline, Patience, Rank, Transport, Wait};
use cudarc::driver::sys::CUdeviceptr;
use std::collections::HashMap;
use std::sync::Arc;

/// What a communicator keeps for its rank's GPU.
pub(super) struct OnGpu {
    room: Room,
    /// Over NCCL segments are of another length than the host's.
    plans: HashMap<PlanKey, Arc<Plan>>,
}

/// A vector on a GPU, of any type.
#[derive(Clone, Copy)]
struct Vector {
    buffer: CUdeviceptr,
    count: usize,
    element: ElementType,
}

impl Vector {
    fn of<T: Element>(slice: &DeviceSliceMut<'_, T>) -> Vector {
        Vector { buffer: slice.address(), count: slice.len(), element: T::TYPE }
    }
}

/// Over NCCL a group of transfers costs some microseconds, and what is reduced beside it should take longer.
const NCCL_SEGMENT_BYTES: usize = 4 << 20;

impl OnGpu {
    pub(super) fn new(gpu: &Arc<Gpu>, transport: &dyn Transport) -> Result<OnGpu> {
        if let Some(nccl) = transport.nccl().filter(|nccl| !Arc::ptr_eq(nccl.gpu(), gpu)) {
            return Err(Error::Usage(format!(
                "the transport nccl was connected with {}, not with {gpu}",
                nccl.gpu()
            )));
        }
        Ok(OnGpu { room: Room::new(gpu)?, plans: HashMap::new() })
    }
}

impl Communicator {
    /// As [`all_reduce`](Self::all_reduce), on a vector in GPU memory. Begins when what the default stream of the GPU was
    /// given before is done, and returns when the result is there. Other ranks may call `all_reduce`, unless the transport is
    /// `nccl`.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce); `Usage` if the vector is not on the GPU that this rank told
    /// [`agree_devices`](Self::agree_devices).
    pub fn all_reduce_device<'b, T: Element>(
        &mut self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        operator: Operator,
    ) -> Result<()> {
        self.call_device(Kind::AllReduce, 0, &buffer.into(), operator)
    }

    /// As [`reduce_scatter`](Self::reduce_scatter), on a vector in GPU memory: this rank's [`part`] is the result, the rest is
    /// left undefined.
    ///
    /// # Errors
    /// As [`all_reduce_device`](Self::all_reduce_device).
    pub fn reduce_scatter_device<'b, T: Element>(
        &mut self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        operator: Operator,
    ) -> Result<()> {
        self.call_device(Kind::ReduceScatter, 0, &buffer.into(), operator)
    }

    /// As [`all_gather`](Self::all_gather), on a vector in GPU memory.
    ///
    /// # Errors
    /// As [`all_reduce_device`](Self::all_reduce_device).
    pub fn all_gather_device<'b, T: Element>(
        &mut self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
    ) -> Result<()> {
        self.call_device(Kind::AllGather, 0, &buffer.into(), Operator::Sum)
    }

    /// As [`broadcast`](Self::broadcast), on a vector in GPU memory.
    ///
    /// # Errors
    /// As [`all_reduce_device`](Self::all_reduce_device).
    pub fn broadcast_device<'b, T: Element>(
        &mut self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        root: Rank,
    ) -> Result<()> {
        self.call_device(Kind::Broadcast, root, &buffer.into(), Operator::Sum)
    }

    /// As [`reduce`](Self::reduce), on a vector in GPU memory.
    ///
    /// # Errors
    /// As [`all_reduce_device`](Self::all_reduce_device).
    pub fn reduce_device<'b, T: Element>(
        &mut self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        operator: Operator,
        root: Rank,
    ) -> Result<()> {
        self.call_device(Kind::Reduce, root, &buffer.into(), operator)
    }

    /// As [`all_reduce_entered`](Self::all_reduce_entered), on a vector in GPU memory.
    ///
    /// # Errors
    /// As [`all_reduce_device`](Self::all_reduce_device).
    pub fn all_reduce_entered_device<'b, T: Element>(
        &mut self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        operator: Operator,
    ) -> Result<()> {
        let buffer = buffer.into();
        self.check_gpu(buffer.gpu())?;
        let operation = self.choose(self.operation(Kind::AllReduce, 0), buffer.len(), T::TYPE)?;
        let result = self.run_device(operation, Vector::of(&buffer), operator, None);
        self.remember(result)
    }

    /// As [`all_reduce_entered_exact`](Self::all_reduce_entered_exact), on a vector in GPU memory.
    ///
    /// # Errors
    /// As [`all_reduce_device`](Self::all_reduce_device).
    pub fn all_reduce_entered_exact_device<'b, T: Element>(
        &mut self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        operator: Operator,
    ) -> Result<()> {
        let wire = std::mem::take(&mut self.options.wire);
        let result = self.all_reduce_entered_device(buffer, operator);
        self.options.wire = wire;
        result
    }

    /// As [`all_reduce_entered_with_feedback`](Self::all_reduce_entered_with_feedback), on a vector in GPU memory. What is
    /// narrowed is narrowed on the host.
    ///
    /// # Errors
    /// As [`all_reduce_device`](Self::all_reduce_device).
    pub fn all_reduce_entered_with_feedback_device<'b>(
        &mut self,
        buffer: impl Into<DeviceSliceMut<'b, f32>>,
        operator: Operator,
        feedback: &mut Feedback,
    ) -> Result<()> {
        let buffer = buffer.into();
        self.check_gpu(buffer.gpu())?;
        let operation = self.choose(self.operation(Kind::AllReduce, 0), buffer.len(), ElementType::F32)?;
        let result = self.run_device(operation, Vector::of(&buffer), operator, Some(feedback));
        self.remember(result)
    }

    /// The GPU that this rank has told the others of.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        self.on_gpu.as_ref().map(|on_gpu| &on_gpu.room.gpu)
    }

    /// The kernels of this rank's GPU, if it has told that it has one.
    pub(crate) fn kernels(&self) -> Option<Arc<Kernels>> {
        self.on_gpu.as_ref().map(|on_gpu| on_gpu.room.kernels.clone())
    }

    fn check_gpu(&self, gpu: &Arc<Gpu>) -> Result<()> {
        match &self.on_gpu {
            Some(on_gpu) if Arc::ptr_eq(&on_gpu.room.gpu, gpu) => Ok(()),
            Some(on_gpu) => Err(Error::Usage(format!(
                "a vector on {gpu} was given to the communicator of a rank on {}",
                on_gpu.room.gpu
            ))),
            None => Err(Error::Usage(format!(
                "a vector on {gpu} was given to a communicator that knows of no GPU; call agree_devices on all ranks first"
            ))),
        }
    }

    fn call_device<T: Element>(
        &mut self,
        kind: Kind,
        root: Rank,
        buffer: &DeviceSliceMut<'_, T>,
        operator: Operator,
    ) -> Result<()> {
        if root >= self.size() {
            return Err(Error::Usage(format!("root {root} does not exist: there are {} ranks", self.size())));
        }
        self.check_gpu(buffer.gpu())?;
        let operation = self.choose(self.operation(kind, root), buffer.len(), T::TYPE)?;
        self.prepare_device(&operation, buffer.len(), T::TYPE)?;
        self.enter_on_gpu = true;
        let entered =
            self.enter_as(Some(operation), T::TYPE, operator, buffer.len(), Member::default()).map(drop);
        self.enter_on_gpu = false;
        entered?;
        let result = self.run_device(operation, Vector::of(buffer), operator, None);
        self.remember(result)
    }

    /// What had better be done before others wait for this rank.
    fn prepare_device(&mut self, operation: &Operation, count: usize, element: ElementType) -> Result<()> {
        if self.failed.is_some() || self.is_narrow(operation, element) || self.is_back_ends(operation) {
            return Ok(());
        }
        let mut on_gpu = self.take_gpu()?;
        let result = self
            .device_plan(&mut on_gpu, operation, count, element)
            .and_then(|plan| on_gpu.room.reserve(&plan, element));
        self.on_gpu = Some(on_gpu);
        result
    }

    fn take_gpu(&mut self) -> Result<OnGpu> {
        self.on_gpu.take().ok_or_else(|| Error::Internal("the GPU of a communicator vanished".into()))
    }

    /// Whether a back end does it in its own way, without a plan.
    fn is_back_ends(&self, operation: &Operation) -> bool {
        let has_own = self.transport.native().is_some() && operation.kind == Kind::AllReduce;
        self.is_native() && (self.transport.nccl().is_some() || has_own)
    }

    fn device_plan(
        &self,
        on_gpu: &mut OnGpu,
        operation: &Operation,
        count: usize,
        element: ElementType,
    ) -> Result<Arc<Plan>> {
        let key = (*operation, count, element);
        if let Some(plan) = on_gpu.plans.get(&key) {
            return Ok(plan.clone());
        }
        let segment_bytes = match self.transport.nccl() {
            Some(_) => self.nccl_segment_bytes(),
            None => self.options.segment_bytes,
        };
        let plan = Arc::new(self.plan(operation, count, element, segment_bytes)?);
        self.transport.reserve(plan.most_from_one);
        on_gpu.plans.insert(key, plan.clone());
        Ok(plan)
    }

    /// Into what messages between GPUs are cut.
    pub(super) fn nccl_segment_bytes(&self) -> usize {
        let asked = self.options.segment_bytes;
        if asked == super::SEGMENT_BYTES { NCCL_SEGMENT_BYTES } else { asked }
    }

    /// Runs an operation that all have entered.
    fn run_device(
        &mut self,
        operation: Operation,
        vector: Vector,
        operator: Operator,
        feedback: Option<&mut Feedback>,
    ) -> Result<()> {
        let mut on_gpu = self.take_gpu()?;
        let result = self.run_on(&mut on_gpu, operation, vector, operator, feedback);
        self.on_gpu = Some(on_gpu);
        result
    }

    fn run_on(
        &mut self,
        on_gpu: &mut OnGpu,
        operation: Operation,
        vector: Vector,
        operator: Operator,
        feedback: Option<&mut Feedback>,
    ) -> Result<()> {
        let Vector { buffer, count, element } = vector;
        let label = self.label(operation, count, element);
        let deadline = Deadline::after(self.options.timeout);
        let wait = Wait { deadline, patience: Patience::Transfer, operation: &label };
        let transport = self.transport.clone();
        let bytes = count * element.size();
        if self.is_narrow(&operation, element) {
            // A narrow wire's codec and arithmetic are the host's.
            narrow::check(self.options.wire, &operation, element, operator)?;
            return on_gpu.room.run_on_host(buffer, bytes, |bytes| {
                self.run_narrow(operator, bytemuck::cast_slice_mut(bytes), feedback, &wait)
            });
        }
        let size = self.size();
        let averaged =
            (operator == Operator::Average && operation.kind.reduces() && size > 1).then(|| match operation
                .kind
            {
                Kind::ReduceScatter => part(count, size, self.rank()),
                Kind::Reduce if self.rank() != operation.root => 0..0,
                _ => 0..count,
            });
        if self.is_back_ends(&operation) {
            Native.check(&operation, &*transport)?;
            let Some(nccl) = transport.nccl() else {
                return on_gpu.room.run_on_host(buffer, bytes, |bytes| {
                    self.run_native(element, operator, bytes, count, &wait)
                });
            };
            let job = Job { plan: &Plan::empty(), buffer, element, operator, averaged: averaged.as_ref() };
            on_gpu.room.run_native_over_nccl(nccl, &operation, count, &job, &wait)?;
            self.count_as_a_ring(&operation, bytes);
            return Ok(());
        }
        let plan = self.device_plan(on_gpu, &operation, count, element)?;
        let job = Job { plan: &plan, buffer, element, operator, averaged: averaged.as_ref() };
        on_gpu.room.run(&*transport, &job, &wait)?;
        self.bytes_sent += plan.bytes_sent;
        self.bytes_received += plan.bytes_received;
        Ok(())
    }
}
