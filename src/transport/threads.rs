//! Transport `threads`: the ranks are threads of one process.
//!
//! A message is one copy, from the sender's memory to the receiver's, made by whichever of the two comes second. Nothing
//! is allocated in the steady state. Waiting spins briefly, yields, then sleeps on a condition variable.

mod lanes;

use super::shared::Domain;
use super::tickets::{Outcome, Slots};
use super::{Peer, Rank, Tag, Ticket, Transport, Wait, stalled};
use crate::error::{Error, Result};
use lanes::{Lane, Posted};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What all ranks of one group share.
struct World {
    peers: Vec<Peer>,
    endpoints: Vec<Endpoint>,
    failure: Mutex<Option<(Rank, String)>>,
    failed: AtomicBool,
}

/// One rank's side.
struct Endpoint {
    mailbox: Mutex<Mailbox>,
    completed: Condvar,
    /// Counts completions, so that a waiter can look without taking the lock.
    completions: AtomicU64,
    /// This rank has dropped its transport.
    left: AtomicBool,
}

#[derive(Default)]
struct Mailbox {
    /// One lane for each source.
    lanes: Vec<Lane>,
    slots: Slots,
    sleeping: bool,
}

/// One rank's handle on a group of threads. See [`group`].
pub struct Threads {
    world: Arc<World>,
    rank: Rank,
    domain: Domain,
}

/// Makes the transports of `size` ranks; give one to each thread.
///
/// ```
/// use esync::transport::{Transport, threads};
/// let ranks = threads::group(3);
/// assert_eq!(ranks[2].rank(), 2);
/// assert_eq!(ranks[2].size(), 3);
/// ```
pub fn group(size: usize) -> Vec<Threads> {
    let endpoints = (0..size).map(|_| Endpoint::new(size)).collect();
    let world = Arc::new(World {
        peers: (0..size).map(Peer::this_process).collect(),
        endpoints,
        failure: Mutex::new(None),
        failed: AtomicBool::new(false),
    });
    let domains = Domain::of_threads(size).into_iter().enumerate();
    domains.map(|(rank, domain)| Threads { world: world.clone(), rank, domain }).collect()
}

/// Runs `body` once for each of `size` ranks, each on a thread of its own, and returns the results in rank order.
///
/// A rank that panics poisons the group, so that the others' waits end with `PeerLost`; its result is an `Err` with the
/// panic's message.
///
/// ```
/// use esync::transport::{Transport, threads};
/// let doubled = threads::run(4, |transport| Ok(2 * transport.rank()));
/// assert_eq!(doubled.into_iter().collect::<esync::Result<Vec<_>>>()?, [0, 2, 4, 6]);
/// # Ok::<(), esync::Error>(())
/// ```
pub fn run<R: Send>(size: usize, body: impl Fn(Threads) -> Result<R> + Sync) -> Vec<Result<R>> {
    std::thread::scope(|scope| {
        let body = &body;
        let spawn = |transport: Threads| {
            let name = format!("rank {}", transport.rank);
            std::thread::Builder::new().name(name).spawn_scoped(scope, move || body(transport))
        };
        let threads: Vec<_> = group(size).into_iter().map(spawn).collect();
        let join = |(rank, thread): (Rank, std::io::Result<std::thread::ScopedJoinHandle<'_, Result<R>>>)| {
            let thread = thread
                .map_err(|e| Error::Environment(format!("cannot start the thread of rank {rank}: {e}")))?;
            thread.join().unwrap_or_else(|panic| {
                Err(Error::Training(format!("rank {rank} panicked: {}", panic_text(&*panic))))
            })
        };
        threads.into_iter().enumerate().map(join).collect()
    })
}

/// The message of a caught panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown panic".into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panicking rank is reported by its own handle; the data behind these locks stays consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Endpoint {
    fn new(size: usize) -> Self {
        Endpoint {
            mailbox: Mutex::new(Mailbox {
                lanes: (0..size).map(|_| Lane::new()).collect(),
                ..Mailbox::default()
            }),
            completed: Condvar::new(),
            completions: AtomicU64::new(0),
            left: AtomicBool::new(false),
        }
    }

    fn complete(&self, slot: u32, outcome: Outcome) {
        let mut mailbox = lock(&self.mailbox);
        mailbox.slots.finish(slot, outcome);
        self.completions.fetch_add(1, Ordering::Release);
        if mailbox.sleeping {
            self.completed.notify_all();
        }
    }

    fn wake(&self) {
        let _mailbox = lock(&self.mailbox);
        self.completions.fetch_add(1, Ordering::Release);
        self.completed.notify_all();
    }

    /// Sleeps until the count of completions differs from `seen`, at most for `limit`.
    fn sleep(&self, seen: u64, limit: Duration) {
        let mut mailbox = lock(&self.mailbox);
        if self.completions.load(Ordering::Acquire) == seen {
            mailbox.sleeping = true;
            let (mut mailbox, _) =
                self.completed.wait_timeout(mailbox, limit).unwrap_or_else(PoisonError::into_inner);
            mailbox.sleeping = false;
        }
    }
}

impl World {
    fn fail(&self, rank: Rank, why: &str) {
        lock(&self.failure).get_or_insert_with(|| (rank, why.to_string()));
        self.failed.store(true, Ordering::Release);
        self.endpoints.iter().for_each(Endpoint::wake);
    }

    /// The error of a rank that finds the group failed, or a peer that it waits for gone.
    fn lost_peer(&self, waits_for: impl Iterator<Item = Rank>, wait: &Wait<'_>) -> Option<Error> {
        let lost = |rank: Rank, what: String| Error::PeerLost {
            peer: self.peers[rank].clone(),
            operation: wait.operation.to_string(),
            what,
        };
        if self.failed.load(Ordering::Acquire)
            && let Some((rank, why)) = lock(&self.failure).clone()
        {
            return Some(lost(rank, why));
        }
        let mut waits_for = waits_for;
        waits_for
            .find(|&rank| self.endpoints[rank].left.load(Ordering::Acquire))
            .map(|rank| lost(rank, "it has ended".into()))
    }
}

impl Threads {
    fn post(&self, receiver: Rank, sender: Rank, peer: Rank, tag: Tag, start: *mut u8, len: usize) -> Ticket {
        let own = lock(&self.world.endpoints[self.rank].mailbox).slots.take(peer);
        let posted = Posted { tag, start, len, slot: own };
        let sends = self.rank == sender;
        let matched = lock(&self.world.endpoints[receiver].mailbox).lanes[sender].post(posted, sends);
        if let Some(other) = matched {
            let (from, into) = if sends { (posted, other) } else { (other, posted) };
            let outcome = if from.len == into.len {
                // SAFETY: both ranges were promised valid and untouched by others until their tickets complete, which
                // happens below; they belong to different ranks, or to two buffers of one.
                unsafe { std::ptr::copy_nonoverlapping(from.start, into.start, from.len) };
                Outcome::Done
            } else {
                Outcome::WrongLength { sent: from.len, expected: into.len }
            };
            self.world.endpoints[peer].complete(other.slot, outcome);
            self.world.endpoints[self.rank].complete(own, outcome);
        }
        Ticket(own)
    }

    /// Takes the tickets that are complete; says whether any is left.
    fn collect(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<bool> {
        let mut mailbox = lock(&self.world.endpoints[self.rank].mailbox);
        let mut left = false;
        for ticket in tickets.iter_mut() {
            let Some(Ticket(slot)) = *ticket else { continue };
            match mailbox.slots.outcome(slot) {
                None => left = true,
                Some(outcome) => {
                    let peer = mailbox.slots.release(slot);
                    *ticket = None;
                    if let Outcome::WrongLength { sent, expected } = outcome {
                        return Err(Error::Mismatch {
                            operation: wait.operation.to_string(),
                            what: format!(
                                "{sent} bytes were sent and {expected} bytes expected between ranks {} and {peer}",
                                self.rank
                            ),
                        });
                    }
                }
            }
        }
        Ok(left)
    }

    /// The peers of the tickets that are not complete, one for each ticket: without a list, because a wait must not
    /// allocate.
    fn pending_peers(&self, tickets: &[Option<Ticket>]) -> impl Iterator<Item = Rank> {
        let slots = tickets.iter().flatten().map(|ticket| ticket.0);
        slots.filter_map(|slot| {
            let mailbox = lock(&self.world.endpoints[self.rank].mailbox);
            mailbox.slots.outcome(slot).is_none().then(|| mailbox.slots.peer(slot))
        })
    }
}

impl Transport for Threads {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn rank(&self) -> Rank {
        self.rank
    }

    fn size(&self) -> usize {
        self.world.peers.len()
    }

    fn peer(&self, rank: Rank) -> &Peer {
        &self.world.peers[rank]
    }

    fn reserve(&self, messages: usize) {
        // One more for the entry record of a rank that is already in the next operation.
        lock(&self.world.endpoints[self.rank].mailbox)
            .lanes
            .iter_mut()
            .for_each(|lane| lane.reserve(messages + 1));
    }

    unsafe fn post_send(&self, to: Rank, tag: Tag, bytes: *const u8, len: usize) -> Result<Ticket> {
        Ok(self.post(to, self.rank, to, tag, bytes.cast_mut(), len))
    }

    unsafe fn post_recv(&self, from: Rank, tag: Tag, into: *mut u8, len: usize) -> Result<Ticket> {
        Ok(self.post(self.rank, from, from, tag, into, len))
    }

    fn wait(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<()> {
        let endpoint = &self.world.endpoints[self.rank];
        let mut looks = 0;
        let yields = 2 * self.size() as u32;
        loop {
            let seen = endpoint.completions.load(Ordering::Acquire);
            if !self.collect(tickets, wait)? {
                return Ok(());
            }
            while endpoint.completions.load(Ordering::Acquire) == seen {
                looks += 1;
                if looks <= SPINS {
                    std::hint::spin_loop();
                } else if looks <= SPINS + yields {
                    std::thread::yield_now();
                } else {
                    if let Some(error) = self.world.lost_peer(self.pending_peers(tickets), wait) {
                        // What completed in the meantime counts: a peer may send its last message and leave.
                        return if self.collect(tickets, wait)? { Err(error) } else { Ok(()) };
                    }
                    if wait.deadline.has_passed() {
                        let mut missing: Vec<Rank> = self.pending_peers(tickets).collect();
                        missing.sort_unstable();
                        missing.dedup();
                        if missing.is_empty() {
                            continue; // The last one came while we looked.
                        }
                        let missing = missing.iter().map(|&rank| self.peer(rank).clone()).collect();
                        return Err(stalled(self.rank, missing, wait));
                    }
                    endpoint.sleep(seen, wait.deadline.remaining().min(LONGEST_SLEEP));
                }
            }
        }
    }

    fn poll(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<bool> {
        Ok(!self.collect(tickets, wait)?)
    }

    fn abandon(&self, tickets: &mut [Option<Ticket>]) -> bool {
        for ticket in tickets.iter_mut().filter_map(Option::take) {
            let slot = ticket.0;
            let peer = lock(&self.world.endpoints[self.rank].mailbox).slots.peer(slot);
            // Withdraw what nobody has matched; a copy that has begun ends soon.
            let receive = lock(&self.world.endpoints[self.rank].mailbox).lanes[peer].withdraw(slot, false);
            let withdrawn =
                receive || lock(&self.world.endpoints[peer].mailbox).lanes[self.rank].withdraw(slot, true);
            while !withdrawn && lock(&self.world.endpoints[self.rank].mailbox).slots.outcome(slot).is_none() {
                std::thread::yield_now();
            }
            lock(&self.world.endpoints[self.rank].mailbox).slots.release(slot);
        }
        true
    }

    fn shared(&self) -> Option<&Domain> {
        Some(&self.domain)
    }

    fn poison(&self, why: &str) {
        self.world.fail(self.rank, why);
        self.domain.poison(why);
    }
}

/// Looks without giving up the core; more only takes it from the rank that is waited for.
const SPINS: u32 = 32;

/// A sleeper looks around at least this often, for a peer that left without a word.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

impl Drop for Threads {
    fn drop(&mut self) {
        self.world.endpoints[self.rank].left.store(true, Ordering::Release);
        if std::thread::panicking() {
            self.poison("it panicked");
        } else {
            self.world.endpoints.iter().for_each(Endpoint::wake);
        }
    }
}

#[cfg(test)]
mod tests;
