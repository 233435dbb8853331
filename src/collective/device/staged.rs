//! A schedule on a GPU over a transport that carries host memory: each message passes through page-locked memory.
//!
//! What is sent is copied out segment by segment, and a segment is posted as soon as its copy is there; meanwhile what
//! arrives is copied in and reduced. So three things happen at once: a copy out, a copy in, and a reduction. The locked
//! memory is as long as a stage's messages: all receives of a stage are posted at once, as the contract of schedules says,
//! since a window that fills up could leave ranks waiting for each other in a circle.

use super::{Job, Memory, Room, grown};
use crate::collective::plan::{Local, Message, PlannedStage};
use crate::device::{gpu_stalled, is_complete, wait_for_event};
use crate::error::Result;
use crate::transport::{Backoff, Tag, Transport, Wait};
use cudarc::driver::result;

/// Where a message of the current stage is.
#[derive(Clone, Copy)]
pub(super) struct Progress {
    /// In the locked memory of its direction.
    offset: usize,
    /// A send was posted; a received message was given to the stream of copies.
    is_done: bool,
}

/// Messages begin at cache lines.
const ALIGNMENT: usize = 64;

impl Room {
    pub(super) fn run_staged(
        &mut self,
        transport: &dyn Transport,
        job: &Job<'_>,
        wait: &Wait<'_>,
    ) -> Result<()> {
        let result = self.staged(transport, job, wait);
        if let Err(error) = &result {
            // Whatever of the message memory is still in use stays where it is, until the process ends or gives it up.
            if !transport.abandon(&mut self.tickets) {
                transport.abort(error);
            }
            self.quiet();
        }
        result
    }

    fn staged(&mut self, transport: &dyn Transport, job: &Job<'_>, wait: &Wait<'_>) -> Result<()> {
        self.tickets.clear();
        self.make_events(job.plan.most_messages)?;
        let memory = self.begin(job)?;
        for (number, stage) in job.plan.stages.iter().enumerate() {
            self.stage(transport, number, stage, memory, job, wait)?;
        }
        let (compute, finished) = (&self.streams.compute, &self.events.finished);
        if let Some(last) = job.plan.stages.len().checked_sub(1) {
            self.driver(compute.wait(&self.events.landed[last % 2]))?;
        }
        self.enqueue_average(job, transport.size())?;
        self.driver(finished.record(compute))?;
        let late = || gpu_stalled(&self.gpu, transport.peer(transport.rank()), wait);
        wait_for_event(&self.gpu, finished, transport.size(), wait, || Ok(()), late)
    }

    fn stage(
        &mut self,
        transport: &dyn Transport,
        number: usize,
        stage: &PlannedStage,
        memory: Memory,
        job: &Job<'_>,
        wait: &Wait<'_>,
    ) -> Result<()> {
        let parity = number % 2;
        self.lay_out(stage, parity)?;
        if number > 0 {
            // What the stage before has received and reduced is there for this one, and what it read is free.
            let before = &self.events.landed[1 - parity];
            self.driver(self.streams.outbound.wait(&self.events.computed))?;
            self.driver(self.streams.outbound.wait(before))?;
            self.driver(self.streams.inbound.wait(&self.events.computed))?;
            self.driver(self.streams.compute.wait(before))?;
        }
        if number > 1 {
            // The locked memory that this stage receives into has been copied to the GPU.
            let late = || gpu_stalled(&self.gpu, transport.peer(transport.rank()), wait);
            wait_for_event(&self.gpu, &self.events.landed[parity], transport.size(), wait, || Ok(()), late)?;
        }
        self.post_receives(transport, stage, parity)?;
        self.copy_out(stage, memory)?;

        let mut locals = stage.locals.iter();
        self.send_as_copies_end(transport, stage, &mut locals, parity, memory, job, wait)?;
        // All sends are posted, so from here on a wait for a message ends by itself, or with the transport's own error.
        for local in locals {
            for &needed in &local.needs {
                self.receive(transport, stage, needed, parity, memory, wait)?;
            }
            self.start_local(local, memory, job)?;
        }
        for index in 0..stage.messages.len() {
            self.receive(transport, stage, index, parity, memory, wait)?;
        }
        transport.wait(&mut self.tickets, wait)?;
        self.tickets.clear();
        self.driver(self.events.landed[parity].record(&self.streams.inbound))?;
        self.driver(self.events.computed.record(&self.streams.compute))
    }

    /// Gives each message its place.
    fn lay_out(&mut self, stage: &PlannedStage, parity: usize) -> Result<()> {
        let (mut sent, mut received) = (0, 0);
        self.messages.clear();
        for message in &stage.messages {
            let end = if message.is_send { &mut sent } else { &mut received };
            self.messages.push(Progress { offset: *end, is_done: false });
            *end += message.region.len.next_multiple_of(ALIGNMENT);
        }
        grown(&self.gpu, &mut self.outgoing, sent)?;
        grown(&self.gpu, &mut self.incoming[parity], received)?;
        Ok(())
    }

    fn post_receives(
        &mut self,
        transport: &dyn Transport,
        stage: &PlannedStage,
        parity: usize,
    ) -> Result<()> {
        for (message, progress) in stage.messages.iter().zip(&self.messages) {
            self.tickets.push(match &mut self.incoming[parity] {
                Some(memory) if !message.is_send => {
                    let into = memory.as_mut_ptr().wrapping_add(progress.offset);
                    // SAFETY: the locked memory lives as long as the communicator, and has this place for this message
                    // alone; the copy to the GPU begins when it has arrived.
                    Some(unsafe { transport.post_recv(message.peer, Tag::DATA, into, message.region.len)? })
                }
                _ => None,
            });
        }
        Ok(())
    }

    /// Starts the copies of everything that this stage sends.
    fn copy_out(&mut self, stage: &PlannedStage, memory: Memory) -> Result<()> {
        let outbound = self.streams.outbound.clone();
        for (index, message) in stage.messages.iter().enumerate().filter(|(_, message)| message.is_send) {
            let into = self.outgoing_of(message, index);
            // SAFETY: the place in the locked memory is this message's alone until it was sent; the region on the GPU is not
            // written in this stage.
            let copied = unsafe {
                result::memcpy_dtoh_async(
                    std::slice::from_raw_parts_mut(into, message.region.len),
                    memory.at(message.region),
                    outbound.cu_stream(),
                )
            };
            self.driver(copied)?;
            self.driver(self.events.messages[index].record(&outbound))?;
        }
        Ok(())
    }

    fn outgoing_of(&mut self, message: &Message, index: usize) -> *mut u8 {
        let start = match &mut self.outgoing {
            Some(memory) => memory.as_mut_ptr(),
            None => unreachable!("`lay_out` has made room for {} bytes", message.region.len),
        };
        start.wrapping_add(self.messages[index].offset)
    }

    /// Posts each send when its copy is there, in order; looks meanwhile at what arrives.
    #[allow(clippy::too_many_arguments)]
    fn send_as_copies_end<'s>(
        &mut self,
        transport: &dyn Transport,
        stage: &'s PlannedStage,
        locals: &mut std::slice::Iter<'s, Local>,
        parity: usize,
        memory: Memory,
        job: &Job<'_>,
        wait: &Wait<'_>,
    ) -> Result<()> {
        for (index, message) in stage.messages.iter().enumerate().filter(|(_, message)| message.is_send) {
            let mut backoff = Backoff::new(wait.patience, transport.size(), false);
            while !is_complete(&self.gpu, &self.events.messages[index], wait)? {
                if self.take_arrived(transport, stage, locals, parity, memory, job, wait)? {
                    backoff = Backoff::new(wait.patience, transport.size(), false);
                    continue;
                }
                backoff.pass_time();
                if backoff.should_look_at_the_clock() && wait.deadline.has_passed() {
                    return Err(gpu_stalled(&self.gpu, transport.peer(transport.rank()), wait));
                }
            }
            let from = self.outgoing_of(message, index);
            // SAFETY: the copy into this place is complete, and nobody writes it before the stage has ended.
            let ticket = unsafe { transport.post_send(message.peer, Tag::DATA, from, message.region.len)? };
            self.tickets[index] = Some(ticket);
            self.messages[index].is_done = true;
        }
        Ok(())
    }

    /// Goes on with what has arrived, without waiting for more; says whether there was anything.
    #[allow(clippy::too_many_arguments)]
    fn take_arrived<'s>(
        &mut self,
        transport: &dyn Transport,
        stage: &'s PlannedStage,
        locals: &mut std::slice::Iter<'s, Local>,
        parity: usize,
        memory: Memory,
        job: &Job<'_>,
        wait: &Wait<'_>,
    ) -> Result<bool> {
        transport.poll(&mut self.tickets, wait)?;
        let mut is_new = false;
        for (index, message) in stage.messages.iter().enumerate() {
            if !message.is_send && self.tickets[index].is_none() && !self.messages[index].is_done {
                self.copy_in(message, index, parity, memory)?;
                is_new = true;
            }
        }
        while let Some(local) = locals.as_slice().first() {
            if !local.needs.iter().all(|&needed| self.messages[needed].is_done) {
                break;
            }
            self.start_local(local, memory, job)?;
            locals.next();
        }
        Ok(is_new)
    }

    /// Waits for a message, if it is one to be received that has not been looked at yet.
    fn receive(
        &mut self,
        transport: &dyn Transport,
        stage: &PlannedStage,
        index: usize,
        parity: usize,
        memory: Memory,
        wait: &Wait<'_>,
    ) -> Result<()> {
        let message = &stage.messages[index];
        if message.is_send || self.messages[index].is_done {
            return Ok(());
        }
        transport.wait(&mut self.tickets[index..=index], wait)?;
        self.copy_in(message, index, parity, memory)
    }

    /// Starts the copy of a message that has arrived.
    fn copy_in(&mut self, message: &Message, index: usize, parity: usize, memory: Memory) -> Result<()> {
        let inbound = &self.streams.inbound;
        if let Some(incoming) = &mut self.incoming[parity] {
            let from = incoming.as_mut_ptr().wrapping_add(self.messages[index].offset);
            // SAFETY: the message lies there complete, and the place is used again only when `landed` says that this copy was
            // made; nothing else touches the region on the GPU before the event below.
            let copied = unsafe {
                result::memcpy_htod_async(
                    memory.at(message.region),
                    std::slice::from_raw_parts(from.cast_const(), message.region.len),
                    inbound.cu_stream(),
                )
            };
            self.driver(copied)?;
        }
        self.driver(self.events.messages[index].record(&self.streams.inbound))?;
        self.messages[index].is_done = true;
        Ok(())
    }

    /// Puts a local step behind the copies that it needs.
    fn start_local(&self, local: &Local, memory: Memory, job: &Job<'_>) -> Result<()> {
        for &needed in &local.needs {
            self.driver(self.streams.compute.wait(&self.events.messages[needed]))?;
        }
        self.enqueue(&local.work, memory, job)
    }
}
