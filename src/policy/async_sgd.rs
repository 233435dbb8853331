//! `--mode async`: asynchronous SGD. Every worker pushes each step to a parameter server and gets the newest parameters back
//! at once; nobody waits for anybody (Dean et al., *Large Scale Distributed Deep Networks*, NIPS 2012).
//!
//! The step is the local optimiser's, momentum included, and its delta is pushed. A push is as many versions old as others
//! were applied since its worker pulled: about K − 1 between K equal workers, and far more for a straggler.
//!
//! A push counts 1/K by default (`--push-scale mean`): K summed deltas with momentum are more than K times the learning rate,
//! and diverge at rates that suit one worker. `sum` is the textbook's rule, `staleness` divides by the age.
//!
//! If a worker dies, the others go on, and each of their pushes counts one of the remaining.

use super::pushing::{Cluster, PushingWorker, answer, discard, reply};
use super::{Coordinator, Directive, Job, PolicyOptions, PushRule, PushScale, Reply, Report, ServerReason};
use crate::transport::Rank;
use std::time::Duration;

/// The worker: one step, one push, one pull, and again.
pub fn worker() -> PushingWorker {
    PushingWorker::deltas("async")
}

/// The server's rule: add what arrives, answer at once.
///
/// ```
/// use esync::policy::async_sgd::AsyncServer;
/// use esync::policy::{Coordinator, Directive, LocalSteps, Payload, PushRule, PushScale, Report, Versions};
/// use std::time::Duration;
///
/// let mut server = AsyncServer::new(2, PushScale::Mean);
/// let directives = server.on(Duration::ZERO, 1, Report::Pushed {
///     payload: Payload::Delta, local_steps: LocalSteps(1), samples: 32, loss: 2.3, seconds_since_push: 0.1,
///     compute_seconds: 0.1, base: Versions(0), norm: 0.5,
/// });
/// let Directive::Apply { rule, reason, .. } = &directives[0] else { unreachable!() };
/// assert_eq!(*rule, PushRule::Add { scale: 0.5 });
/// assert_eq!(reason.to_string(), "computed 0 versions ago, and counts 0.500");
/// ```
#[derive(Debug, Clone)]
pub struct AsyncServer {
    scale: PushScale,
    cluster: Cluster,
}

impl AsyncServer {
    /// What a push counts if nothing else is chosen.
    pub const DEFAULT_SCALE: PushScale = PushScale::Mean;

    /// For `size` workers.
    pub fn new(size: usize, scale: PushScale) -> Self {
        AsyncServer { scale, cluster: Cluster::new(size) }
    }

    pub(super) fn from_options(options: &PolicyOptions, job: &Job) -> Self {
        AsyncServer::new(job.size, options.push_scale.unwrap_or(Self::DEFAULT_SCALE))
    }
}

impl Coordinator for AsyncServer {
    fn on(&mut self, _now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        if !self.cluster.is_live(from) {
            return Vec::new();
        }
        let applied = match report {
            Report::Pushed { loss, .. } if !loss.is_finite() => discard(from, loss),
            Report::Pushed { base, .. } => {
                let staleness = self.cluster.staleness(base);
                let scale = self.scale.factor(self.cluster.live_count(), staleness);
                self.cluster.apply(from, PushRule::Add { scale }, ServerReason::Added { staleness, scale })
            }
            other => return answer(from, &other),
        };
        vec![applied, reply(from, Reply::Pull, ServerReason::NobodyWaits)]
    }

    fn lost(&mut self, _now: Duration, rank: Rank) -> Vec<Directive> {
        self.cluster.leave(rank);
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Versions;
    use crate::policy::testing::{at, push, push_without_number, words};

    #[test]
    fn everybody_is_answered_at_once_and_a_push_counts_as_asked() {
        let mut server = AsyncServer::new(4, PushScale::Staleness);
        assert_eq!(words(&server.on(at(1), 2, push(0))), "add 2 × 1, 2: Pull");
        assert_eq!(words(&server.on(at(1), 0, push(0))), "add 0 × 0.5, 0: Pull");
        assert_eq!(words(&server.on(at(2), 1, push(2))), "add 1 × 1, 1: Pull");
        assert_eq!(words(&server.on(at(3), 3, push(0))), "add 3 × 0.25, 3: Pull");
        assert_eq!(words(&server.on(at(3), 3, Report::PullRequested)), "3: Pull");
        let mut server = AsyncServer::new(4, PushScale::Mean);
        assert_eq!(words(&server.on(at(1), 2, push(0))), "add 2 × 0.25, 2: Pull");
        assert_eq!(words(&server.lost(at(1), 3)) + &words(&server.lost(at(1), 0)), "");
        assert_eq!(words(&server.on(at(1), 2, push(0))), "add 2 × 0.5, 2: Pull");
        assert_eq!(words(&server.on(at(1), 3, push(0))), "", "the dead are not heard");
    }

    #[test]
    fn what_is_no_number_is_thrown_away() {
        let mut server = AsyncServer::new(1, PushScale::Sum);
        assert_eq!(words(&server.on(at(1), 0, push_without_number())), "discard 0, 0: Pull");
        assert_eq!(server.cluster.staleness(Versions(0)), Versions(0));
    }
}
