//! `--mode bounded-delay`: staleness bounded in versions of the server, as in the public code of FALCON (Zhou et al., *Falcon:
//! Addressing Stragglers in Heterogeneous Parameter Server via Multiple Parallelism*, IEEE Transactions on Computers 2020) and
//! its derivative with dynamic bounds.
//!
//! Every worker pushes after each step and waits for the server's parameters. The server adds each push and counts versions.
//! If a worker that still computes does so with parameters more than S versions old, everybody who arrives is held, until
//! the late ones have pushed; then all that were held get the same parameters. S = 0 is a barrier after every step, and an S
//! beyond all delays is asynchronous SGD. While workers are held, each other worker pushes at most once, so that a push is
//! never more than S + K − 1 versions old.
//!
//! A bound of `s` clocks in [`ssp`](super::ssp) is about `s · K` versions here.
//!
//! # The bound
//!
//! `--staleness-rule` says where it comes from, [`Bound`] how:
//!
//! | rule | bound | options |
//! |---|---|---|
//! | `fixed` | `--staleness`, 2 K by default: nobody is held while the slowest is less than about twice as slow | |
//! | `epoch` | begins at `--staleness` (0), and grows with every pass over the data | `--staleness-step` (K) |
//! | `weight-delta` | T · the norm of the newest push | `--staleness-factor` T (100), `--staleness` as the largest (4 K) |
//! | `spectral` | factor · K · the mean small eigenvalue of the samples' similarity graph, per sample | the same, factor 1 |
//! | `gmm` | factor · the samples' variance / that within their clusters | the same, factor 1 |
//!
//! # Where this differs from the published code
//!
//! - Pushes count 1/K (`--push-scale mean`); the code sums them, which with `--momentum 0.9` diverges at common rates.
//! - When a worker leaves, those that wait are looked at again. In the code they may wait for ever.
//! - The dynamic rules are normalised and limited, because as published they depend on the number of samples, on the scale of
//!   the pixels, or on a sign.

mod mixture;
mod rules;
mod sample;
mod spectral;

pub(super) use rules::check;
pub use rules::{Bound, StalenessRule};
pub use sample::DataSample;

use super::pushing::{Cluster, PushingWorker, answer, discard, reply};
use super::{
    Coordinator, Directive, Job, PolicyOptions, PushRule, PushScale, Reply, Report, ServerReason, Versions,
};
use crate::error::Result;
use crate::transport::Rank;
use std::collections::BTreeSet;
use std::time::Duration;

/// The worker: one step, one push, the server's parameters when it is released, and again.
pub fn worker() -> PushingWorker {
    PushingWorker::deltas("bounded-delay")
}

/// The server's rule: hold everybody while somebody is too far behind.
///
/// ```
/// use esync::policy::bounded_delay::{Bound, BoundedDelayServer};
/// use esync::policy::{Coordinator, Directive, LocalSteps, Payload, PushScale, Reply, Report, Versions};
/// use std::time::Duration;
///
/// let mut server = BoundedDelayServer::new(2, Bound::fixed(Versions(1)), PushScale::Mean);
/// let push = Report::Pushed {
///     payload: Payload::Delta, local_steps: LocalSteps(1), samples: 32, loss: 2.3, seconds_since_push: 0.1,
///     compute_seconds: 0.1, base: Versions(0), norm: 0.5,
/// };
/// let now = Duration::ZERO;
/// let directives = server.on(now, 0, push.clone());
/// let Directive::Reply { to: 0, reply: Reply::Pull, reason } = &directives[1] else { unreachable!() };
/// assert_eq!(reason.to_string(), "the oldest parameters in use, those of rank 1, are 1 versions old: the bound is 1");
/// assert_eq!(server.on(now, 0, push.clone()).len(), 1, "rank 1 is two versions behind");
/// assert_eq!(server.on(now, 1, push).len(), 3, "both are answered");
/// ```
#[derive(Debug, Clone)]
pub struct BoundedDelayServer {
    scale: PushScale,
    bound: Bound,
    cluster: Cluster,
    /// The version that each worker pulled last.
    pulled: Vec<u64>,
    /// Who computes, the oldest parameters first.
    computing: BTreeSet<(u64, Rank)>,
    waiting: BTreeSet<Rank>,
}

impl BoundedDelayServer {
    /// What a push counts if nothing else is chosen.
    pub const DEFAULT_SCALE: PushScale = PushScale::Mean;

    /// For `size` workers.
    pub fn new(size: usize, bound: Bound, scale: PushScale) -> Self {
        BoundedDelayServer {
            scale,
            bound,
            cluster: Cluster::new(size),
            pulled: vec![0; size],
            computing: (0..size).map(|rank| (0, rank)).collect(),
            waiting: BTreeSet::new(),
        }
    }

    pub(super) fn from_options(options: &PolicyOptions, job: &Job) -> Result<Self> {
        let bound = Bound::from_options(options, job)?;
        Ok(Self::new(job.size, bound, options.push_scale.unwrap_or(Self::DEFAULT_SCALE)))
    }

    /// Answers everybody who waits, unless somebody who computes is too far behind.
    fn release(&mut self) -> Vec<Directive> {
        let bound = self.bound.versions();
        let oldest =
            self.computing.first().map(|&(pulled, rank)| (rank, self.cluster.staleness(Versions(pulled))));
        if oldest.is_some_and(|(_, age)| age > bound) {
            return Vec::new();
        }
        let version = self.cluster.version();
        let waiting = std::mem::take(&mut self.waiting);
        let release = |rank| {
            self.pulled[rank] = version;
            self.computing.insert((version, rank));
            reply(rank, Reply::Pull, ServerReason::WithinBound { oldest, bound })
        };
        waiting.into_iter().map(release).collect()
    }
}

impl Coordinator for BoundedDelayServer {
    fn on(&mut self, _now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        if !self.cluster.is_live(from) {
            return Vec::new();
        }
        let mut directives = match report {
            Report::Pushed { loss, .. } if !loss.is_finite() => vec![discard(from, loss)],
            Report::Pushed { base, samples, norm, .. } => {
                self.bound.pushed(samples, norm);
                let staleness = self.cluster.staleness(base);
                let scale = self.scale.factor(self.cluster.live_count(), staleness);
                let reason = ServerReason::Added { staleness, scale };
                vec![self.cluster.apply(from, PushRule::Add { scale }, reason)]
            }
            Report::PullRequested => Vec::new(),
            other => return answer(from, &other),
        };
        self.computing.remove(&(self.pulled[from], from));
        self.waiting.insert(from);
        directives.extend(self.release());
        directives
    }

    fn lost(&mut self, _now: Duration, rank: Rank) -> Vec<Directive> {
        if !self.cluster.leave(rank) {
            return Vec::new();
        }
        self.computing.remove(&(self.pulled[rank], rank));
        self.waiting.remove(&rank);
        self.release()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{at, push, words};

    fn server(size: usize, bound: u64) -> BoundedDelayServer {
        BoundedDelayServer::new(size, Bound::fixed(Versions(bound)), PushScale::Sum)
    }

    #[test]
    fn a_bound_of_zero_is_a_barrier() {
        let mut server = server(3, 0);
        for round in 0..2 {
            let base = 3 * round;
            assert_eq!(words(&server.on(at(1), 1, push(base))), "add 1 × 1");
            assert_eq!(words(&server.on(at(1), 2, push(base))), "add 2 × 1");
            assert_eq!(words(&server.on(at(1), 0, push(base))), "add 0 × 1, 0: Pull, 1: Pull, 2: Pull");
        }
    }

    #[test]
    fn who_is_behind_holds_all_others_until_it_pushes() {
        let mut server = server(3, 2);
        let mut seen = Vec::new();
        for (from, base) in [(0, 0), (1, 0), (0, 1), (1, 2), (2, 0)] {
            seen.push(words(&server.on(at(1), from, push(base))));
        }
        let expected = [
            "add 0 × 1, 0: Pull",
            "add 1 × 1, 1: Pull",
            "add 0 × 1",
            "add 1 × 1",
            "add 2 × 1, 0: Pull, 1: Pull, 2: Pull",
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn those_who_wait_are_looked_at_again_when_somebody_leaves() {
        let mut server = server(3, 0);
        server.on(at(1), 0, push(0));
        assert_eq!(words(&server.lost(at(1), 1)), "", "rank 2 still computes");
        assert_eq!(words(&server.lost(at(1), 2)), "0: Pull");
        assert_eq!(words(&server.lost(at(1), 2)), "");
        assert_eq!(words(&server.on(at(2), 0, push(1))), "add 0 × 1, 0: Pull");
    }

    #[test]
    fn dynamic_bounds_are_used() {
        let bound = Bound::epoch(Versions(0), Versions(100), 64);
        let mut server = BoundedDelayServer::new(3, bound, PushScale::Mean);
        assert!(words(&server.on(at(1), 0, push(0))).ends_with("0.3333333333333333"));
        assert!(
            words(&server.on(at(1), 1, push(0))).ends_with("0: Pull, 1: Pull"),
            "the first epoch is over"
        );
    }
}
