//! `--mode ssp`: stale synchronous parallel (Ho et al., *More Effective Distributed ML via a Stale Synchronous Parallel
//! Parameter Server*, NIPS 2013).
//!
//! Every worker has a clock: the steps that it has completed. It pushes after each of them and goes on with its own
//! parameters, which hold its own updates (read-my-writes). Only when they are too old, it reads the server's: a worker at
//! clock q with the bound s needs everybody's first q − s steps, and waits at the server until the slowest has done them. So
//! nobody is more than s clocks ahead while it computes; a bound of 0 is synchronous SGD.
//!
//! The server knows what each worker read last, so that it decides with the answer to the push: `Continue`, or the parameters,
//! at once or when the bound allows it. That is one message where the paper has a push and a read.
//!
//! # Defaults
//!
//! - The bound (`--staleness`) is 4. A worker reads about once per bound, and in between trains alone: ADSP's and WBSP's
//!   code take 40, which in short jobs means two or three readings in all.
//! - A push counts 1/K (`--push-scale mean`), as in their code. With `sum`, the paper's rule, the learning rate must shrink with
//!   the number of workers and the bound.
//!
//! If a worker dies, its clock holds nobody any more.

use super::pushing::{Cluster, PushingWorker, answer, discard, reply};
use super::{
    Clocks, Coordinator, Directive, Job, PolicyOptions, PushRule, PushScale, Reply, Report, ServerReason,
};
use crate::transport::Rank;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The worker: one step, one push, the server's parameters when it says so, and again.
pub fn worker() -> PushingWorker {
    PushingWorker::deltas("ssp")
}

/// The server's rule: clocks, and readings that wait for the slowest.
///
/// ```
/// use esync::policy::ssp::SspServer;
/// use esync::policy::{Clocks, Coordinator, Directive, LocalSteps, Payload, PushScale, Reply, Report, Versions};
/// use std::time::Duration;
///
/// let mut server = SspServer::new(2, Clocks(1), PushScale::Mean);
/// let push = Report::Pushed {
///     payload: Payload::Delta, local_steps: LocalSteps(1), samples: 32, loss: 2.3, seconds_since_push: 0.1,
///     compute_seconds: 0.1, base: Versions(0), norm: 0.5,
/// };
/// let now = Duration::ZERO;
/// assert!(matches!(server.on(now, 0, push.clone())[1], Directive::Reply { to: 0, reply: Reply::Continue, .. }));
/// assert_eq!(server.on(now, 0, push.clone()).len(), 1, "two clocks ahead: held");
/// let directives = server.on(now, 1, push);
/// let Directive::Reply { to: 0, reply: Reply::Pull, reason } = &directives[2] else { unreachable!() };
/// assert_eq!(
///     reason.to_string(),
///     "at clock 2 it needs newer parameters, and everybody has completed 1 steps: the bound is 1"
/// );
/// ```
#[derive(Debug, Clone)]
pub struct SspServer {
    scale: PushScale,
    bound: u64,
    cluster: Cluster,
    workers: Vec<Row>,
    /// How many live workers are at each clock; the first is the slowest's.
    clocks: BTreeMap<u64, usize>,
    /// Who waits for parameters, by clock.
    held: BTreeSet<(u64, Rank)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Row {
    clock: u64,
    /// The clock that everybody had completed at its last reading.
    cached: u64,
}

impl SspServer {
    /// How far ahead of the slowest a worker may compute if nothing else is chosen.
    pub const DEFAULT_BOUND: Clocks = Clocks(4);
    /// What a push counts if nothing else is chosen.
    pub const DEFAULT_SCALE: PushScale = PushScale::Mean;

    /// For `size` workers.
    pub fn new(size: usize, bound: Clocks, scale: PushScale) -> Self {
        SspServer {
            scale,
            bound: bound.0,
            cluster: Cluster::new(size),
            workers: vec![Row::default(); size],
            clocks: BTreeMap::from([(0, size)]),
            held: BTreeSet::new(),
        }
    }

    pub(super) fn from_options(options: &PolicyOptions, job: &Job) -> Self {
        let bound = options.staleness.map_or(Self::DEFAULT_BOUND, Clocks);
        SspServer::new(job.size, bound, options.push_scale.unwrap_or(Self::DEFAULT_SCALE))
    }

    /// Takes a worker's clock out of the count.
    fn forget_clock(&mut self, rank: Rank) {
        let clock = self.workers[rank].clock;
        if let Some(count) = self.clocks.get_mut(&clock) {
            *count -= 1;
            if *count == 0 {
                self.clocks.remove(&clock);
            }
        }
    }

    /// Answers everybody whose reading the slowest worker's clock allows.
    fn release(&mut self) -> Vec<Directive> {
        let mut directives = Vec::new();
        let Some((&slowest, _)) = self.clocks.first_key_value() else { return directives };
        while let Some(&(clock, rank)) = self.held.first()
            && clock <= slowest.saturating_add(self.bound)
        {
            self.held.pop_first();
            self.workers[rank].cached = slowest;
            let (clock, slowest, bound) = (Clocks(clock), Clocks(slowest), Clocks(self.bound));
            directives.push(reply(rank, Reply::Pull, ServerReason::CacheIsRenewed { clock, slowest, bound }));
        }
        directives
    }
}

impl Coordinator for SspServer {
    fn on(&mut self, _now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        if !self.cluster.is_live(from) {
            return Vec::new();
        }
        let mut directives = Vec::new();
        match report {
            Report::Pushed { loss, base, .. } => {
                self.forget_clock(from);
                let row = &mut self.workers[from];
                row.clock += 1;
                *self.clocks.entry(row.clock).or_default() += 1;
                let Row { clock, cached } = *row;
                if !loss.is_finite() {
                    directives.push(discard(from, loss));
                    self.held.insert((clock, from));
                } else {
                    let staleness = self.cluster.staleness(base);
                    let scale = self.scale.factor(self.cluster.live_count(), staleness);
                    let reason = ServerReason::Added { staleness, scale };
                    directives.push(self.cluster.apply(from, PushRule::Add { scale }, reason));
                    if clock <= cached.saturating_add(self.bound) {
                        let (clock, cached, bound) = (Clocks(clock), Clocks(cached), Clocks(self.bound));
                        let reason = ServerReason::CacheIsFresh { clock, cached, bound };
                        directives.push(reply(from, Reply::Continue, reason));
                    } else {
                        self.held.insert((clock, from));
                    }
                }
            }
            Report::PullRequested => {
                self.held.insert((self.workers[from].clock, from));
            }
            other => return answer(from, &other),
        }
        directives.extend(self.release());
        directives
    }

    fn lost(&mut self, _now: Duration, rank: Rank) -> Vec<Directive> {
        if !self.cluster.leave(rank) {
            return Vec::new();
        }
        self.forget_clock(rank);
        self.held.remove(&(self.workers[rank].clock, rank));
        self.release()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{at, push, words};

    #[test]
    fn a_bound_of_zero_is_a_barrier() {
        let mut server = SspServer::new(3, Clocks(0), PushScale::Mean);
        for round in 0..2 {
            let third = 1.0 / 3.0;
            assert_eq!(words(&server.on(at(round), 2, push(0))), format!("add 2 × {third}"));
            assert_eq!(words(&server.on(at(round), 0, push(0))), format!("add 0 × {third}"));
            let last = words(&server.on(at(round), 1, push(0)));
            assert_eq!(last, format!("add 1 × {third}, 0: Pull, 1: Pull, 2: Pull"));
        }
    }

    #[test]
    fn only_who_is_too_far_ahead_waits_and_reads() {
        let mut server = SspServer::new(2, Clocks(2), PushScale::Sum);
        let mut seen = Vec::new();
        for from in [0, 0, 0, 1, 0, 1, 1, 1] {
            seen.push(words(&server.on(at(1), from, push(0))));
        }
        let expected = [
            "add 0 × 1, 0: Continue",
            "add 0 × 1, 0: Continue",
            "add 0 × 1",
            // The slow worker's own cache is fresh: it has read clock 0, and is at 1.
            "add 1 × 1, 1: Continue, 0: Pull",
            "add 0 × 1",
            "add 1 × 1, 1: Continue, 0: Pull",
            // At clock 3 its cache is too old; everybody has completed three.
            "add 1 × 1, 1: Pull",
            "add 1 × 1, 1: Continue",
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_dead_worker_holds_nobody_and_a_plain_reading_waits_like_any() {
        let mut server = SspServer::new(3, Clocks(0), PushScale::Mean);
        server.on(at(1), 0, push(0));
        assert_eq!(words(&server.on(at(1), 1, Report::PullRequested)), "1: Pull");
        server.on(at(1), 1, push(0));
        assert_eq!(words(&server.lost(at(2), 2)), "0: Pull, 1: Pull");
        assert_eq!(words(&server.lost(at(2), 2)), "", "only once");
        server.on(at(3), 0, push(0));
        assert_eq!(words(&server.lost(at(3), 0)), "", "the dead are not answered");
        assert_eq!(words(&server.on(at(3), 1, push(0))), "add 1 × 1, 1: Pull");
    }
}
