//! How a rank passes the time until another has done something: it spins briefly, lets the others run, then sleeps.

use super::Domain;
use super::layout::{GAVE_UP, LEFT};
use super::protocol::{Bell, Sleep};
use super::{REASON_BYTES, Scope};
use crate::error::{Error, Result};
use crate::transport::peer::ProcessState;
use crate::transport::{Rank, Wait, stalled};
use rustix::thread::futex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Looks without giving up the core, where each rank has one.
const SPINS: u32 = 32;

/// The same where ranks take turns: more would only take the core from the rank that is waited for.
const SPINS_IN_TURN: u32 = 4;

/// How long ranks that have a core each yield before they sleep.
const YIELDS_ALONE: Duration = Duration::from_micros(100);

/// A sleeper looks around at least this often, for a peer that left without a word.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// Asking the system about processes costs some microseconds each.
const BETWEEN_LOOKS_FOR_THE_DEAD: Duration = Duration::from_millis(200);

/// Futexes, with a limit to how long they sleep.
pub(super) struct Futex {
    flags: futex::Flags,
    limit: Duration,
}

impl Sleep for Futex {
    fn sleep_while(&self, word: &AtomicU32, value: u32) {
        let limit = rustix::time::Timespec {
            tv_sec: self.limit.as_secs() as i64,
            tv_nsec: i64::from(self.limit.subsec_nanos()),
        };
        // However it ends, the caller looks again.
        let _ = futex::wait(word, self.flags, value, Some(&limit));
    }

    fn wake_all(&self, word: &AtomicU32) {
        // Cannot fail on a valid address.
        let _ = futex::wake(word, self.flags, i32::MAX as u32);
    }
}

impl Domain {
    /// Futexes that sleep for at most `limit`, or for the longest sleep that there is.
    pub(super) fn sleep(&self, limit: Option<Duration>) -> Futex {
        let flags = match self.scope {
            Scope::Threads => futex::Flags::PRIVATE,
            Scope::Processes => futex::Flags::empty(),
        };
        Futex { flags, limit: limit.map_or(LONGEST_SLEEP, |limit| limit.min(LONGEST_SLEEP)) }
    }

    /// Waits until `is_ready`, which `bell` rings for. `is_missing` says whom this rank waits for.
    pub(super) fn wait_until(
        &self,
        is_ready: impl Fn() -> bool,
        bell: &Bell,
        is_missing: impl Fn(Rank) -> bool,
        wait: &Wait<'_>,
    ) -> Result<()> {
        let has_a_core = self.size() <= self.cores;
        for _ in 0..if has_a_core { SPINS } else { SPINS_IN_TURN } {
            if is_ready() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        let begun = Instant::now();
        let wait = &Wait { deadline: wait.deadline.begin(), ..*wait };
        // After about 2n yields every rank that could run has run. With a core for each, yields cost little, and waking a
        // core that has gone to sleep costs tens of microseconds.
        let most = if has_a_core { YIELDS_ALONE } else { Duration::ZERO };
        let mut yields = 0;
        while yields < 2 * self.size() || begun.elapsed() < most {
            std::thread::yield_now();
            if is_ready() {
                return Ok(());
            }
            yields += 1;
        }
        let mut looked_for_the_dead = Instant::now();
        loop {
            let seen = bell.seen();
            if is_ready() {
                return Ok(());
            }
            let may_be_dead = looked_for_the_dead.elapsed() > BETWEEN_LOOKS_FOR_THE_DEAD;
            if may_be_dead {
                looked_for_the_dead = Instant::now();
            }
            let missing = || (0..self.size()).filter(|&rank| is_missing(rank));
            let lost = self.lost(missing(), may_be_dead, wait);
            let over = wait.deadline.has_passed();
            if (lost.is_some() || over) && is_ready() {
                // What was done in the meantime counts: a peer may do its last work and leave.
                return Ok(());
            }
            if let Some(error) = lost {
                return Err(error);
            }
            if over {
                return Err(self.stalled(missing(), wait));
            }
            bell.doze(seen, &is_ready, &self.sleep(Some(wait.deadline.remaining())));
        }
    }

    /// The error of a rank that finds the group failed, or a peer that it waits for gone.
    fn lost(
        &self,
        mut missing: impl Iterator<Item = Rank>,
        look_for_the_dead: bool,
        wait: &Wait<'_>,
    ) -> Option<Error> {
        let lost = |rank: Rank, what: String| Error::PeerLost {
            peer: self.peer(rank).clone(),
            operation: wait.operation.to_string(),
            what,
        };
        if let Some((rank, why)) = self.failure() {
            return Some(lost(rank, why));
        }
        let is_gone = |rank: Rank| {
            let what = match self.member(rank).words.0.state.load(Ordering::Acquire) {
                LEFT => "it has ended",
                GAVE_UP => "it gave up an operation after an error of its own",
                _ if look_for_the_dead
                    && self.scope == Scope::Processes
                    && self.peer(rank).process_state() == ProcessState::Gone =>
                {
                    "its process no longer exists"
                }
                _ => return None,
            };
            Some(lost(rank, what.into()))
        };
        let mut nobody_is_missing = true;
        let found = missing.find_map(|rank| {
            nobody_is_missing = false;
            is_gone(rank)
        });
        // A rank may die between its last word and the ringing of the bell: then nobody is missing.
        found.or_else(|| if nobody_is_missing { (0..self.size()).find_map(is_gone) } else { None })
    }

    /// The error of a wait that was too long.
    fn stalled(&self, missing: impl Iterator<Item = Rank>, wait: &Wait<'_>) -> Error {
        let mut missing: Vec<_> = missing.map(|rank| self.peer(rank).clone()).collect();
        let is_stopped = |rank: &Rank| self.peer(*rank).process_state() == ProcessState::Stopped;
        if self.scope == Scope::Processes
            && !missing.iter().any(|peer| peer.process_state() == ProcessState::Stopped)
        {
            // Whoever is missing may itself wait for a process that somebody stopped.
            missing.extend((0..self.size()).filter(is_stopped).map(|rank| self.peer(rank).clone()));
        }
        stalled(self.rank, missing, wait)
    }

    /// Who failed first, and why.
    pub(super) fn failure(&self) -> Option<(Rank, String)> {
        let header = self.header();
        let failed = header.failed.load(Ordering::Acquire);
        let rank = (failed as usize).checked_sub(1).filter(|&rank| rank < self.size())?;
        let mut reason = vec![0; (header.reason_bytes.load(Ordering::Acquire) as usize).min(REASON_BYTES)];
        // SAFETY: the length is set when the reason is complete, and nobody writes it again.
        unsafe {
            std::ptr::copy_nonoverlapping(self.at(self.layout.reason()), reason.as_mut_ptr(), reason.len())
        };
        let reason = if reason.is_empty() {
            "it failed".into()
        } else {
            String::from_utf8_lossy(&reason).into_owned()
        };
        Some((rank, reason))
    }

    /// Ends all sleeps, so that everybody looks around.
    pub(super) fn wake_all(&self) {
        let (rendezvous, sleep) = (&self.header().rendezvous, self.sleep(None));
        rendezvous.gate().nudge(&sleep);
        rendezvous.finished().nudge(&sleep);
        for rank in 0..self.size() {
            let member = self.member(rank);
            member.progress.0.bell.nudge(&sleep);
            member.doorbell.0.bell.nudge(&sleep);
        }
    }
}
