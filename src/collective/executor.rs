//! Runs schedules: the one loop behind every algorithm on every transport.

use super::plan::{Plan, PlannedStage, Region, Work};
use super::scratch::Scratch;
use crate::error::Result;
use crate::reduce::{ElementType, Operator, Target, reduce_into};
use crate::transport::{Tag, Ticket, Transport, Wait};

/// Memory that lives as long as the communicator, so that the steady state allocates nothing.
#[derive(Default)]
pub(super) struct Workspace {
    scratch: Scratch,
    tickets: Vec<Option<Ticket>>,
}

/// The two places of a running schedule.
#[derive(Clone, Copy)]
struct Memory {
    buffer: *mut u8,
    scratch: *mut u8,
}

impl Memory {
    fn at(&self, region: Region) -> *mut u8 {
        let base = if region.in_scratch { self.scratch } else { self.buffer };
        base.wrapping_add(region.start)
    }
}

/// Runs `plan` on `buffer`.
///
/// # Errors
/// Those of the transport. If the transport cannot give the buffers back, this does not return: the job is ended with
/// [`Transport::abort`], because returning would let the caller free memory that is still being written.
pub(super) fn run(
    transport: &dyn Transport,
    plan: &Plan,
    workspace: &mut Workspace,
    buffer: &mut [u8],
    element: ElementType,
    operator: Operator,
    wait: &Wait<'_>,
) -> Result<()> {
    workspace.tickets.clear();
    workspace.tickets.reserve(plan.most_messages);
    let memory = Memory { buffer: buffer.as_mut_ptr(), scratch: workspace.scratch.room(plan.scratch_bytes)? };
    for stage in &plan.stages {
        let tickets = &mut workspace.tickets;
        tickets.clear();
        let result = run_stage(transport, stage, memory, tickets, element, operator, wait);
        if let Err(error) = result {
            if !transport.abandon(tickets) {
                transport.abort(&error);
            }
            return Err(error);
        }
    }
    Ok(())
}

fn run_stage(
    transport: &dyn Transport,
    stage: &PlannedStage,
    memory: Memory,
    tickets: &mut Vec<Option<Ticket>>,
    element: ElementType,
    operator: Operator,
    wait: &Wait<'_>,
) -> Result<()> {
    for message in &stage.messages {
        let (start, len) = (memory.at(message.region), message.region.len);
        // SAFETY: the regions lie inside the buffer and the scratch space, which outlive the stage: it ends only when all
        // tickets are complete or abandoned. A local step touches a receive's region only after waiting for it, and never
        // writes what the stage sends (checked by the verifier for every schedule of this crate).
        let ticket = unsafe {
            if message.is_send {
                transport.post_send(message.peer, Tag::DATA, start, len)?
            } else {
                transport.post_recv(message.peer, Tag::DATA, start, len)?
            }
        };
        tickets.push(Some(ticket));
    }
    for local in &stage.locals {
        for &message in &local.needs {
            transport.wait(&mut tickets[message..=message], wait)?;
        }
        // SAFETY: the regions lie inside the buffer and the scratch space; what they read has arrived, what they write
        // nobody else uses (see above).
        unsafe { work(&local.work, memory, element, operator) };
    }
    transport.wait(tickets, wait)
}

/// # Safety
/// The work's regions lie inside `memory`, and nobody else uses them.
unsafe fn work(work: &Work, memory: Memory, element: ElementType, operator: Operator) {
    // SAFETY: the caller's promise, for each region below.
    let read = |region: Region| unsafe { std::slice::from_raw_parts(memory.at(region), region.len) };
    // SAFETY: the same.
    let write = |region: Region| unsafe { std::slice::from_raw_parts_mut(memory.at(region), region.len) };
    match *work {
        // SAFETY: the same; `copy` allows the regions to overlap.
        Work::Copy { into, from } => unsafe {
            std::ptr::copy(memory.at(from).cast_const(), memory.at(into), into.len);
        },
        Work::Reduce { into, left, right } => {
            let target = if into == left {
                Target::Left { left: write(left), right: read(right) }
            } else if into == right {
                Target::Right { left: read(left), right: write(right) }
            } else {
                Target::Separate { into: write(into), left: read(left), right: read(right) }
            };
            reduce_into(element, operator, target);
        }
    }
}
