//! A slow link on a fast machine: delays the messages of chosen ranks, as `--slow-link` asks.

use super::{Native, Peer, Rank, Tag, Ticket, Transport, Wait};
use crate::error::{Error, Result};
use crate::transport::stalled;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Wraps a transport so that every message which a slow rank sends or receives starts late.
///
/// The sender holds a message back until its delay is over; messages in flight together are delayed together, as on a link
/// with a long latency. A message between two slow ranks waits for both delays. The transport's `native` collective sends
/// its messages out of sight: it is delayed once as a whole. Memory that ranks share is hidden, so that everything goes by
/// messages.
pub struct Delayed<T> {
    inner: T,
    /// Seconds by rank.
    delays: Vec<Duration>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    waiting: VecDeque<Message>,
    /// What became of the messages that were held, by slot.
    slots: Vec<Option<Ticket>>,
    free: Vec<u32>,
}

struct Message {
    due: Instant,
    to: Rank,
    tag: Tag,
    bytes: *const u8,
    len: usize,
    slot: u32,
}

// SAFETY: the pointer is handed to the inner transport only, under the promise made to `post_send`.
unsafe impl Send for Message {}

/// Marks the tickets of messages that were held.
const HELD: u32 = 1 << 31;

impl<T: Transport> Delayed<T> {
    /// `delays` holds one entry for each rank, zero for the fast ones.
    pub fn new(inner: T, delays: Vec<Duration>) -> Self {
        Delayed { inner, delays, held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn delay(&self, to: Rank) -> Duration {
        self.delays[self.inner.rank()] + self.delays[to]
    }

    /// Sends what was held, each message when it is due.
    fn flush(&self, wait: &Wait<'_>) -> Result<()> {
        loop {
            let Some((due, to)) = self.held().waiting.front().map(|message| (message.due, message.to)) else {
                return Ok(());
            };
            let pause = due.saturating_duration_since(Instant::now());
            std::thread::sleep(pause.min(wait.deadline.remaining()));
            if wait.deadline.has_passed() && Instant::now() < due {
                return Err(stalled(self.rank(), vec![self.peer(to).clone()], wait));
            }
            self.send_what_is_due()?;
        }
    }

    /// Sends what was held long enough.
    fn send_what_is_due(&self) -> Result<()> {
        let mut held = self.held();
        let now = Instant::now();
        while held.waiting.front().is_some_and(|message| message.due <= now) {
            let Some(message) = held.waiting.pop_front() else { break };
            // SAFETY: the promise made to our `post_send` covers this one: the message's ticket is not complete.
            let ticket =
                unsafe { self.inner.post_send(message.to, message.tag, message.bytes, message.len)? };
            held.slots[message.slot as usize] = Some(ticket);
        }
        Ok(())
    }

    /// Replaces tickets of held messages by those of the inner transport.
    fn resolve(&self, tickets: &mut [Option<Ticket>]) {
        let mut held = self.held();
        for ticket in tickets.iter_mut() {
            if let Some(Ticket(number)) = *ticket
                && number & HELD != 0
            {
                let slot = number & !HELD;
                if let Some(inner) = held.slots[slot as usize].take() {
                    held.free.push(slot);
                    *ticket = Some(inner);
                }
            }
        }
    }
}

impl<T: Transport> Transport for Delayed<T> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn peer(&self, rank: Rank) -> &Peer {
        self.inner.peer(rank)
    }

    fn reserve(&self, messages: usize) {
        self.inner.reserve(messages);
    }

    unsafe fn post_send(&self, to: Rank, tag: Tag, bytes: *const u8, len: usize) -> Result<Ticket> {
        let delay = self.delay(to);
        if delay.is_zero() {
            // SAFETY: the caller's promise is passed on.
            return unsafe { self.inner.post_send(to, tag, bytes, len) };
        }
        let mut held = self.held();
        let slot = match held.free.pop() {
            Some(slot) => slot,
            None => {
                held.slots.push(None);
                held.slots.len() as u32 - 1
            }
        };
        // Kept in the order of their time, so that one message's long delay holds up no other; equal pairs keep their order.
        let due = Instant::now() + delay;
        let position = held.waiting.partition_point(|message| message.due <= due);
        held.waiting.insert(position, Message { due, to, tag, bytes, len, slot });
        Ok(Ticket(HELD | slot))
    }

    unsafe fn post_recv(&self, from: Rank, tag: Tag, into: *mut u8, len: usize) -> Result<Ticket> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.inner.post_recv(from, tag, into, len) }
    }

    fn wait(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<()> {
        self.flush(wait)?;
        self.resolve(tickets);
        self.inner.wait(tickets, wait)
    }

    fn poll(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<bool> {
        self.send_what_is_due()?;
        self.resolve(tickets);
        // The inner transport does not know the tickets of messages that are still held.
        let is_held = |ticket: &Ticket| ticket.0 & HELD != 0;
        let mut is_left = false;
        for entry in tickets.iter_mut() {
            match entry {
                Some(ticket) if is_held(ticket) => is_left = true,
                Some(_) => is_left |= !self.inner.poll(std::slice::from_mut(entry), wait)?,
                None => {}
            }
        }
        Ok(!is_left)
    }

    fn abandon(&self, tickets: &mut [Option<Ticket>]) -> bool {
        self.resolve(tickets);
        let mut held = self.held();
        for ticket in tickets.iter_mut() {
            if let Some(Ticket(number)) = *ticket
                && number & HELD != 0
            {
                held.waiting.retain(|message| message.slot != number & !HELD);
                held.free.push(number & !HELD);
                *ticket = None;
            }
        }
        drop(held);
        self.inner.abandon(tickets)
    }

    fn native(&self) -> Option<&dyn Native> {
        self.inner.native().map(|_| self as &dyn Native)
    }

    fn poison(&self, why: &str) {
        self.inner.poison(why);
    }

    fn abort(&self, error: &Error) -> ! {
        self.inner.abort(error)
    }
}

impl<T: Transport> Native for Delayed<T> {
    unsafe fn all_reduce(
        &self,
        buffer: *mut u8,
        count: usize,
        element: crate::reduce::ElementType,
        operator: crate::reduce::Operator,
        wait: &Wait<'_>,
    ) -> Result<()> {
        std::thread::sleep(self.delays[self.rank()]);
        let native =
            self.inner.native().ok_or_else(|| Error::Internal("a native collective vanished".into()))?;
        // SAFETY: the caller's promise is passed on.
        unsafe { native.all_reduce(buffer, count, element, operator, wait) }
    }
}
