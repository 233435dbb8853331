//! Deadlines, and how to wait without taking a core from the ranks that are waited for.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// The moment at which a wait gives up, and how long it was meant to last.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    /// `None` until the wait begins.
    at: Option<Instant>,
    limit: Duration,
}

impl Deadline {
    /// A deadline `limit` from now.
    ///
    /// ```
    /// use std::time::Duration;
    /// let deadline = esync::transport::Deadline::after(Duration::from_secs(3600));
    /// assert!(!deadline.has_passed());
    /// ```
    pub fn after(limit: Duration) -> Self {
        // A limit that overflows the clock means "never"; thirty years is never enough here.
        let now = Instant::now();
        let at = now.checked_add(limit).unwrap_or(now + Duration::from_secs(1_000_000_000));
        Deadline { at: Some(at), limit }
    }

    /// A deadline `limit` after the moment at which the wait turns out to be one: reading the clock costs as much as a short
    /// operation. Whoever waits must call [`begin`](Self::begin) first.
    pub(crate) fn of_each_wait(limit: Duration) -> Self {
        Deadline { at: None, limit }
    }

    /// The deadline of a wait that begins now, if it had not begun before.
    pub(crate) fn begin(self) -> Self {
        if self.at.is_some() { self } else { Deadline::after(self.limit) }
    }

    /// Whether it is over.
    pub fn has_passed(&self) -> bool {
        self.at.is_some_and(|at| Instant::now() >= at)
    }

    /// What is left, zero if nothing.
    pub fn remaining(&self) -> Duration {
        self.at.map_or(self.limit, |at| at.saturating_duration_since(Instant::now()))
    }

    /// How long ago the wait began, in seconds.
    pub fn elapsed_seconds(&self) -> f64 {
        self.limit.saturating_sub(self.remaining()).as_secs_f64()
    }
}

/// What a wait is for, which decides how it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// A transfer between ranks that have all arrived: microseconds to milliseconds, so yield the core but do not sleep
    /// at once.
    Transfer,
    /// A rank that is still computing: sleep with a growing pause, the core is better used by others.
    Straggler,
}

/// One wait: until when, how, and in which operation (for the error text).
#[derive(Clone, Copy)]
pub struct Wait<'a> {
    /// When to give up.
    pub deadline: Deadline,
    /// How to pass the time.
    pub patience: Patience,
    /// The operation, as the error shall name it.
    pub operation: &'a dyn Display,
}

#[cfg(any(feature = "mpi", feature = "cuda"))]
/// Passes the time between two looks at something that no one will signal: a few spins, some yields, then sleeps that
/// grow up to a millisecond.
pub(crate) struct Backoff {
    looks: u32,
    spins: u32,
    yields: u32,
    pause: Duration,
}

#[cfg(any(feature = "mpi", feature = "cuda"))]
impl Backoff {
    const LONGEST_PAUSE: Duration = Duration::from_millis(1);
    const FIRST_PAUSE: Duration = Duration::from_micros(20);
    const SPINS: u32 = 16;
    /// A look at MPI takes about 0.1 µs, another rank's copy of a segment 20 to 60 µs.
    const SPINS_ALONE: u32 = 1000;
    /// About 100 µs, as in shared memory: waking a core that has gone to sleep takes tens of microseconds.
    const YIELDS_ALONE: u32 = 300;

    /// `size` is the number of ranks: after about 2·size yields everyone who could run has run. With `cores_suffice` each
    /// rank has a core of its own: those that it waits for in a transfer are at work, and giving the core to another
    /// program would cost more than the transfer.
    pub(crate) fn new(patience: Patience, size: usize, cores_suffice: bool) -> Self {
        let size = size as u32;
        // A transfer in progress is worth many more yields: a pause there costs more than it saves.
        let (spins, yields) = match patience {
            Patience::Transfer if cores_suffice => (Self::SPINS_ALONE, 400 * size.max(2)),
            Patience::Transfer => (Self::SPINS, 400 * size.max(2)),
            Patience::Straggler if cores_suffice => (Self::SPINS, Self::YIELDS_ALONE.max(2 * size)),
            Patience::Straggler => (Self::SPINS, 2 * size),
        };
        Backoff { looks: 0, spins, yields, pause: Self::FIRST_PAUSE }
    }

    pub(crate) fn pass_time(&mut self) {
        self.looks += 1;
        if self.looks <= self.spins {
            std::hint::spin_loop();
        } else if self.looks <= self.spins + self.yields {
            std::thread::yield_now();
        } else {
            std::thread::sleep(self.pause);
            self.pause = (self.pause * 3 / 2).min(Self::LONGEST_PAUSE);
        }
    }

    /// Whether the wait has been so long that reading the clock no longer costs anything that matters.
    pub(crate) fn should_look_at_the_clock(&self) -> bool {
        self.looks > self.spins && (self.looks.is_multiple_of(16) || self.looks > self.spins + self.yields)
    }
}
