//! A schedule on GPUs over NCCL: everything is put into two streams at once, one of transfers and one of reductions.
//!
//! A stage's messages are cut into segments, and the segments of one number are one group of NCCL's, so that the reductions
//! of a group run beside the transfers of the next. Both ends of a message cut it alike, so that both put a segment into the
//! group of the same number.

use super::{Job, Memory, Room};
use crate::collective::plan::PlannedStage;
use crate::collective::{Kind, Operation, part};
use crate::device::wait_for_event;
use crate::error::Result;
use crate::transport::nccl::{DeviceMessage, Nccl};
use crate::transport::{Transport, Wait};

impl Room {
    pub(super) fn run_over_nccl(&mut self, nccl: &Nccl, job: &Job<'_>, wait: &Wait<'_>) -> Result<()> {
        let result = self.over_nccl(nccl, job, wait);
        self.end_over_nccl(nccl, result)
    }

    /// NCCL's own collective.
    ///
    /// # Errors
    /// As [`run`](Room::run).
    pub(in crate::collective) fn run_native_over_nccl(
        &mut self,
        nccl: &Nccl,
        operation: &Operation,
        count: usize,
        job: &Job<'_>,
        wait: &Wait<'_>,
    ) -> Result<()> {
        self.gpu.bind()?;
        let result = self.native_over_nccl(nccl, operation, count, job, wait);
        self.end_over_nccl(nccl, result)
    }

    fn end_over_nccl(&self, nccl: &Nccl, result: Result<()>) -> Result<()> {
        if result.is_err() {
            // NCCL's kernels wait for each other for ever; an aborted communicator's do not.
            nccl.abort_communicator();
            self.quiet();
        }
        result
    }

    fn over_nccl(&mut self, nccl: &Nccl, job: &Job<'_>, wait: &Wait<'_>) -> Result<()> {
        let groups = |stage: &PlannedStage| stage.messages.iter().map(|m| m.segment + 1).max().unwrap_or(0);
        self.make_events(job.plan.stages.iter().map(groups).max().unwrap_or(0))?;
        let memory = self.begin(job)?;
        for stage in &job.plan.stages {
            self.nccl_stage(nccl, stage, groups(stage), memory, job, wait)?;
        }
        self.finish_over_nccl(nccl, job, wait)
    }

    fn nccl_stage(
        &self,
        nccl: &Nccl,
        stage: &PlannedStage,
        groups: usize,
        memory: Memory,
        job: &Job<'_>,
        wait: &Wait<'_>,
    ) -> Result<()> {
        let (transfers, compute) = (&self.streams.outbound, &self.streams.compute);
        // What the stage before has reduced may be sent, and what it read may be overwritten; and the other way round.
        self.driver(self.events.computed.record(compute))?;
        self.driver(transfers.wait(&self.events.computed))?;
        self.driver(self.events.landed[0].record(transfers))?;
        self.driver(compute.wait(&self.events.landed[0]))?;
        for group in 0..groups {
            let messages = stage.messages.iter().filter(|message| message.segment == group);
            let messages = messages.map(|message| DeviceMessage {
                peer: message.peer,
                is_send: message.is_send,
                start: memory.at(message.region),
                bytes: message.region.len,
            });
            // SAFETY: the regions lie inside the caller's vector and the scratch space, which live until the end of the
            // operation; the two streams and their events keep local steps from what is in transfer.
            unsafe { nccl.transfer(messages, transfers, wait)? };
            self.driver(self.events.messages[group].record(transfers))?;
        }
        for local in &stage.locals {
            // Groups end in order, so the last one that is needed is enough.
            let last = local.needs.iter().map(|&needed| stage.messages[needed].segment).max();
            if let Some(last) = last {
                self.driver(compute.wait(&self.events.messages[last]))?;
            }
            self.enqueue(&local.work, memory, job)?;
        }
        Ok(())
    }

    fn native_over_nccl(
        &mut self,
        nccl: &Nccl,
        operation: &Operation,
        count: usize,
        job: &Job<'_>,
        wait: &Wait<'_>,
    ) -> Result<()> {
        self.begin(job)?;
        let (stream, size) = (&self.streams.outbound, nccl.size());
        let size_bytes = job.element.size() as u64;
        let parts = (0..size).map(|rank| part(count, size, rank));
        let parts = parts.map(|range| (job.buffer + range.start as u64 * size_bytes, range.len()));
        let (buffer, element, operator) = (job.buffer, job.element, job.operator);
        // SAFETY: the parts lie inside the caller's vector, which lives until the end of the operation and is used by nobody
        // else.
        unsafe {
            match operation.kind {
                Kind::AllReduce => nccl.all_reduce(buffer, count, element, operator, stream, wait)?,
                Kind::ReduceScatter => nccl.reduce_parts(parts, element, operator, stream, wait)?,
                Kind::AllGather => nccl.broadcast_parts(parts, element, stream, wait)?,
                Kind::Broadcast => nccl.broadcast(buffer, count, element, operation.root, stream, wait)?,
                Kind::Reduce => {
                    nccl.reduce(buffer, count, element, operator, operation.root, stream, wait)?
                }
            }
        }
        self.finish_over_nccl(nccl, job, wait)
    }

    /// Waits for the end of both streams, and looks at NCCL meanwhile.
    fn finish_over_nccl(&self, nccl: &Nccl, job: &Job<'_>, wait: &Wait<'_>) -> Result<()> {
        let (transfers, compute) = (&self.streams.outbound, &self.streams.compute);
        self.driver(self.events.landed[0].record(transfers))?;
        self.driver(compute.wait(&self.events.landed[0]))?;
        self.enqueue_average(job, nccl.size())?;
        self.driver(self.events.finished.record(compute))?;
        let (look, late) = (|| nccl.check(wait), || nccl.stalled(wait));
        wait_for_event(&self.gpu, &self.events.finished, nccl.size(), wait, look, late)?;
        nccl.check(wait)
    }
}
