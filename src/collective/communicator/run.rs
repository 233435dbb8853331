//! How a communicator carries out a call: through shared memory, over a narrow wire, by the back end, or by a schedule.

use super::Communicator;
use crate::collective::direct;
use crate::collective::entry::Header;
use crate::collective::executor;
use crate::collective::narrow::{self, Feedback, Narrow};
use crate::collective::plan::Plan;
use crate::collective::{
    Collective, CommunicatorOptions, Entry, Kind, Member, Native, Operation, ParameterServer, part, verify,
};
use crate::error::{Error, Result};
use crate::reduce::{Element, ElementType, Operator, scale_for_average};
use crate::transport::{Deadline, Patience, Rank, Wait};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub(super) type PlanKey = (Operation, usize, ElementType);

/// Names an operation in errors, without allocating while all is well.
pub(super) struct Label<'a> {
    operation: Option<Operation>,
    collective: &'a str,
    count: usize,
    element: ElementType,
    sequence: u64,
}

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.operation {
            None => write!(f, "barrier (operation {})", self.sequence),
            Some(operation) => write!(
                f,
                "{operation} of {} {} by `{}` (operation {})",
                self.count, self.element, self.collective, self.sequence
            ),
        }
    }
}

impl Communicator {
    pub(super) fn operation(&self, kind: Kind, root: Rank) -> Operation {
        Operation { kind, root, order: self.options.order }
    }

    /// Whether this call takes the two-shot form.
    pub(super) fn is_narrow(&self, operation: &Operation, element: ElementType) -> bool {
        operation.kind.reduces() && self.options.wire.narrows(element)
    }

    /// The name of what carries out the operation.
    fn label_of(&self, operation: &Operation, element: ElementType) -> &'static str {
        if self.is_narrow(operation, element) { narrow::TWO_SHOT } else { self.chosen.label }
    }

    /// How errors name an operation that was entered.
    pub(super) fn label(&self, operation: Operation, count: usize, element: ElementType) -> Label<'static> {
        let collective = self.label_of(&operation, element);
        Label { operation: Some(operation), collective, count, element, sequence: self.sequence }
    }

    /// Over NCCL, a rank with its vector on a GPU and one with its vector on the host would wait for each other for ever: their
    /// headers differ. What is narrowed, the host carries out in any case.
    #[cfg(feature = "cuda")]
    fn header_of_place(&self, header: Header<'static>) -> Header<'static> {
        let is_narrow = header.operation.is_some_and(|operation| self.is_narrow(&operation, header.element));
        if !self.enter_on_gpu || self.transport.nccl().is_none() || is_narrow {
            return header;
        }
        Header {
            collective: self.chosen.label_over_nccl(),
            segment_bytes: self.nccl_segment_bytes(),
            ..header
        }
    }

    pub(super) fn is_native(&self) -> bool {
        self.chosen.collective.name() == "native"
    }

    /// Whether this call works in the memory that all ranks share.
    pub(super) fn is_direct(&self, operation: &Operation, element: ElementType) -> bool {
        self.is_native()
            && !self.has_gpus
            && self.transport.shared().is_some()
            && !self.is_narrow(operation, element)
    }

    pub(super) fn call<T: Element>(
        &mut self,
        kind: Kind,
        root: Rank,
        buffer: &mut [T],
        operator: Operator,
    ) -> Result<()> {
        if root >= self.size() {
            return Err(Error::Usage(format!("root {root} does not exist: there are {} ranks", self.size())));
        }
        let operation = self.choose(self.operation(kind, root), buffer.len(), T::TYPE)?;
        if self.is_direct(&operation, T::TYPE) {
            let (output, count) = (buffer.as_mut_ptr(), buffer.len());
            // SAFETY: the slice is ours for the call.
            return unsafe { self.run_direct(operation, output, output, count, operator, true) };
        }
        self.enter_as(Some(operation), T::TYPE, operator, buffer.len(), Member::default())?;
        let result = self.run(operation, T::TYPE, operator, bytemuck::cast_slice_mut(buffer));
        self.remember(result)
    }

    pub(super) fn enter_as(
        &mut self,
        operation: Option<Operation>,
        element: ElementType,
        operator: Operator,
        count: usize,
        member: Member,
    ) -> Result<Entry<'_>> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.sequence += 1;
        let header = self.header(operation, element, operator, count);
        #[cfg(feature = "cuda")]
        let header = self.header_of_place(header);
        let sequence = header.sequence;
        let collective = operation.map_or(header.collective, |operation| self.label_of(&operation, element));
        let label = Label { operation, collective, count, element, sequence };
        let deadline = Deadline::after(self.options.timeout);
        let wait = Wait { deadline, patience: Patience::Straggler, operation: &label };
        let started = Instant::now();
        let members = self
            .entry
            .enter(&*self.transport, header, member, &wait)
            .inspect_err(|error| self.failed = Some(error.clone()))?;
        Ok(Entry { members, wait_seconds: started.elapsed().as_secs_f64() })
    }

    fn header(
        &self,
        operation: Option<Operation>,
        element: ElementType,
        operator: Operator,
        count: usize,
    ) -> Header<'static> {
        Header {
            operation,
            element,
            operator,
            count,
            sequence: self.sequence,
            collective: self.chosen.label,
            segment_bytes: self.options.segment_bytes,
            wire: self.options.wire,
        }
    }

    /// A call through shared memory: entry and operation are one rendezvous, which is a call of its own if it `is_new`.
    ///
    /// # Safety
    /// `input` is good for reading and `output` for writing `count` elements, and nobody else uses them during the call.
    /// They are the same or do not overlap.
    pub(super) unsafe fn run_direct<T: Element>(
        &mut self,
        operation: Operation,
        input: *const T,
        output: *mut T,
        count: usize,
        operator: Operator,
        is_new: bool,
    ) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.sequence += u64::from(is_new);
        let header = self.header(Some(operation), T::TYPE, operator, count);
        let Header { collective, sequence, .. } = header;
        let label = Label { operation: Some(operation), collective, count, element: T::TYPE, sequence };
        let deadline = Deadline::of_each_wait(self.options.timeout);
        let wait = Wait { deadline, patience: Patience::Straggler, operation: &label };
        let (input, output) = (input.cast(), output.cast());
        let call = direct::Call { operation, element: T::TYPE, operator, input, output, count };
        let domain =
            self.transport.shared().ok_or_else(|| Error::Internal("shared memory vanished".into()))?;
        let agreed = self.said.agreed(header);
        // SAFETY: the caller's promise.
        let result = unsafe { direct::run(domain, &call, agreed, &mut self.room, &wait) };
        self.remember(result)?;
        let bytes = (count * size_of::<T>()) as u64;
        let bytes = direct::bytes_as_a_ring(operation.kind, bytes, self.size() as u64);
        self.bytes_sent += bytes;
        self.bytes_received += bytes;
        Ok(())
    }

    pub(super) fn remember(&mut self, result: Result<()>) -> Result<()> {
        result.inspect_err(|error| {
            // A refusal happens before anything is sent, on all ranks alike.
            if !matches!(error, Error::Refused { .. }) {
                self.failed = Some(error.clone());
            }
        })
    }

    pub(super) fn run(
        &mut self,
        operation: Operation,
        element: ElementType,
        operator: Operator,
        bytes: &mut [u8],
    ) -> Result<()> {
        let count = bytes.len() / element.size();
        let label = self.label(operation, count, element);
        let deadline = Deadline::after(self.options.timeout);
        let wait = Wait { deadline, patience: Patience::Transfer, operation: &label };
        if self.is_narrow(&operation, element) {
            narrow::check(self.options.wire, &operation, element, operator)?;
            return self.run_narrow(operator, bytemuck::cast_slice_mut(bytes), None, &wait);
        }
        if self.is_native() && self.transport.native().is_some() && operation.kind == Kind::AllReduce {
            Native.check(&operation, &*self.transport)?;
            return self.run_native(element, operator, bytes, count, &wait);
        }
        let plan = match self.plans.get(&(operation, count, element)) {
            Some(plan) => plan.clone(),
            None => {
                let plan = Arc::new(self.plan(&operation, count, element, self.options.segment_bytes)?);
                self.transport.reserve(plan.most_from_one);
                self.plans.insert((operation, count, element), plan.clone());
                plan
            }
        };
        executor::run(&*self.transport, &plan, &mut self.workspace, bytes, element, operator, &wait)?;
        self.bytes_sent += plan.bytes_sent;
        self.bytes_received += plan.bytes_received;
        if operator == Operator::Average && operation.kind.reduces() {
            let size = self.size();
            let own = match operation.kind {
                Kind::ReduceScatter => part(count, size, self.rank()),
                _ => 0..count,
            };
            scale_for_average(
                element,
                &mut bytes[own.start * element.size()..own.end * element.size()],
                size,
            );
        }
        Ok(())
    }

    pub(super) fn run_narrow(
        &mut self,
        operator: Operator,
        values: &mut [f32],
        feedback: Option<&mut Feedback>,
        wait: &Wait<'_>,
    ) -> Result<()> {
        let CommunicatorOptions { wire, order, segment_bytes, .. } = self.options;
        let narrow = Narrow { format: wire, order, operator, segment_bytes };
        let traffic = narrow.all_reduce(&*self.transport, &mut self.narrow_room, values, feedback, wait)?;
        self.bytes_sent += traffic.sent;
        self.bytes_received += traffic.received;
        Ok(())
    }

    /// An all-reduce over a narrow wire whose rounding errors are made up for the next time.
    pub(super) fn run_with_feedback(
        &mut self,
        operation: Operation,
        values: &mut [f32],
        operator: Operator,
        feedback: &mut Feedback,
    ) -> Result<()> {
        narrow::check(self.options.wire, &operation, ElementType::F32, operator)?;
        let label = self.label(operation, values.len(), ElementType::F32);
        let deadline = Deadline::after(self.options.timeout);
        let wait = Wait { deadline, patience: Patience::Transfer, operation: &label };
        self.run_narrow(operator, values, Some(feedback), &wait)
    }

    pub(super) fn run_native(
        &mut self,
        element: ElementType,
        operator: Operator,
        bytes: &mut [u8],
        count: usize,
        wait: &Wait<'_>,
    ) -> Result<()> {
        let native =
            self.transport.native().ok_or_else(|| Error::Internal("native was checked before".into()))?;
        // SAFETY: the slice holds `count` elements and is ours for the call.
        unsafe { native.all_reduce(bytes.as_mut_ptr(), count, element, operator, wait)? };
        self.count_as_a_ring(&Operation::new(Kind::AllReduce), bytes.len());
        Ok(())
    }

    /// A back end's own collective is counted as a ring would send.
    pub(super) fn count_as_a_ring(&mut self, operation: &Operation, bytes: usize) {
        let bytes = direct::bytes_as_a_ring(operation.kind, bytes as u64, self.size() as u64);
        self.bytes_sent += bytes;
        self.bytes_received += bytes;
    }

    pub(super) fn plan(
        &self,
        operation: &Operation,
        count: usize,
        element: ElementType,
        segment_bytes: usize,
    ) -> Result<Plan> {
        let schedule =
            |collective: &dyn Collective| collective.schedule(operation, &self.topology, self.rank(), count);
        let schedule = match schedule(&*self.chosen.collective) {
            // `native` where memory is shared but hidden behind a delay: the same bits by messages.
            Err(Error::Refused { .. })
                if operation.kind != Kind::AllReduce
                    || self.is_native() && self.transport.native().is_none() =>
            {
                schedule(&ParameterServer { servers: None })
            }
            other => other,
        }?;
        // The executor works with raw pointers, so a schedule of a user's own must be sound before it runs: ranges inside
        // their places, no two writers of one range. What needs the other ranks' schedules is the verifier's.
        let collective = self.chosen.label;
        verify::check_stages(&schedule, self.rank(), self.size(), count).map_err(|flaw| {
            Error::Internal(format!(
                "the schedule of `{collective}` for {operation} of {count} elements: {flaw}"
            ))
        })?;
        Ok(Plan::new(&schedule, element.size(), segment_bytes))
    }
}
