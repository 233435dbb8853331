//! Runs schedules: the one loop behind every algorithm on every transport.
//!
//! Stages follow each other, but messages need not wait for that where nothing can tell the difference: the receives of a
//! stage are posted while the stage before it is at work, and sends complete while the stage after it is. So a rank that
//! is given the core moves what its neighbours have ready, and they need not wait for its next turn.

use super::plan::{Message, Plan, PlannedStage, Region, Work};
use super::scratch::Scratch;
use crate::error::Result;
use crate::reduce::{ElementType, Operator, Target, reduce_into};
use crate::transport::{Tag, Ticket, Transport, Wait};

/// Memory that lives as long as the communicator, so that the steady state allocates nothing.
#[derive(Default)]
pub(super) struct Workspace {
    scratch: Scratch,
    flights: Flights,
}

/// The messages in flight; those of one stage are numbered as in its plan.
#[derive(Default)]
struct Flights {
    /// Sends of the stage before the one at work.
    before: Vec<Option<Ticket>>,
    now: Vec<Option<Ticket>>,
    /// Receives of the stage after it.
    next: Vec<Option<Ticket>>,
}

impl Flights {
    /// All empty, with room for `messages` each.
    fn reset(&mut self, messages: usize) {
        for tickets in [&mut self.before, &mut self.now, &mut self.next] {
            tickets.clear();
            tickets.reserve(messages);
        }
    }

    /// Whether all memory is free again; see [`Transport::abandon`].
    fn abandon(&mut self, transport: &dyn Transport) -> bool {
        // Each is given up, whatever became of the ones before it.
        [&mut self.before, &mut self.now, &mut self.next]
            .map(|tickets| transport.abandon(tickets))
            .into_iter()
            .all(|is_free| is_free)
    }
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
    let Workspace { scratch, flights } = workspace;
    flights.reset(plan.most_messages);
    let memory = Memory { buffer: buffer.as_mut_ptr(), scratch: scratch.room(plan.scratch_bytes)? };
    let mut stages = plan.stages.iter().peekable();
    while let Some(stage) = stages.next() {
        let next = stages.peek().copied();
        if let Err(error) = run_stage(transport, (stage, next), memory, flights, element, operator, wait) {
            if !flights.abandon(transport) {
                transport.abort(&error);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Starts the wanted messages of a stage, but for those that are in flight already.
fn post(
    transport: &dyn Transport,
    stage: &PlannedStage,
    memory: Memory,
    tickets: &mut Vec<Option<Ticket>>,
    is_wanted: impl Fn(&Message) -> bool,
) -> Result<()> {
    tickets.resize_with(stage.messages.len(), || None);
    for (ticket, message) in tickets.iter_mut().zip(&stage.messages) {
        if ticket.is_some() || !is_wanted(message) {
            continue;
        }
        let (start, len) = (memory.at(message.region), message.region.len);
        // SAFETY: the regions lie inside the buffer and the scratch space, which outlive the schedule's run: it ends only when
        // all tickets are complete or abandoned. A local step touches a receive's region only after waiting for it, and never
        // writes what its stage sends (checked by the verifier for every schedule of this crate); what is in flight beside
        // another stage is not touched by that (checked by the plan).
        *ticket = Some(unsafe {
            if message.is_send {
                transport.post_send(message.peer, Tag::DATA, start, len)?
            } else {
                transport.post_recv(message.peer, Tag::DATA, start, len)?
            }
        });
    }
    Ok(())
}

fn run_stage(
    transport: &dyn Transport,
    (stage, next): (&PlannedStage, Option<&PlannedStage>),
    memory: Memory,
    flights: &mut Flights,
    element: ElementType,
    operator: Operator,
    wait: &Wait<'_>,
) -> Result<()> {
    post(transport, stage, memory, &mut flights.now, |_| true)?;
    if let Some(next) = next.filter(|next| next.receives_early) {
        post(transport, next, memory, &mut flights.next, |message| !message.is_send)?;
    }
    for local in &stage.locals {
        for &message in &local.needs {
            transport.wait(&mut flights.now[message..=message], wait)?;
        }
        // SAFETY: the regions lie inside the buffer and the scratch space; what they read has arrived, what they write
        // nobody else uses (see above).
        unsafe { work(&local.work, memory, element, operator) };
    }
    transport.wait(&mut flights.before, wait)?;
    flights.before.clear();
    if stage.sends_late {
        let sends = flights.now.iter_mut().zip(&stage.messages).filter(|(_, message)| message.is_send);
        flights.before.extend(sends.map(|(ticket, _)| ticket.take()));
    }
    transport.wait(&mut flights.now, wait)?;
    flights.now.clear();
    std::mem::swap(&mut flights.now, &mut flights.next);
    Ok(())
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
