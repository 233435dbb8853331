//! `--mode r2sp`: round-robin synchronous parallel (Chen, Wang, Li, *Round-Robin Synchronization: Mitigating Communication
//! Bottlenecks in Parameter Servers*, INFOCOM 2019).
//!
//! Workers push in a fixed order, one after another, so that never more than one of them talks to the server. Who comes before
//! its turn is held, and nobody overtakes; in its turn a worker is answered at once. Between two pushes of a worker there is
//! exactly one of each other, so that every push is K − 1 versions old.
//!
//! # Batch tuning
//!
//! A cycle lasts as long as the slowest worker's step. So the server measures every worker's samples per second v_k, and from
//! time to time gives it the mini-batch `K · b₀ · v_k / Σ v` with which its step takes as long as the others' (K · b₀ samples
//! a cycle in all). `--batch-tuning false` turns that off. A push counts by its share of a cycle's samples, 1/K between equal
//! batches (`--push-scale`).
//!
//! # Where this differs from the published codes
//!
//! - STrain's mode of this name has no round-robin: it is a barrier with batch tuning.
//! - Its formula takes the time of a step with the present batch for a speed, so that batches oscillate; a speed is samples
//!   per second.
//! - It averages unequal batches with equal weights.
//! - Speeds are medians, a batch changes only by more than an eighth, and never below an eighth of b₀: where a step has costs
//!   that no batch can shrink, the formula would go down to nothing.
//!
//! If a worker dies, its turn is skipped.

use super::pushing::{Cluster, PushingWorker, answer, discard, reply};
use super::{
    Coordinator, Directive, Job, PolicyOptions, PushRule, PushScale, Reply, Report, ServerReason, Smoothed,
    Versions,
};
use crate::transport::Rank;
use std::time::Duration;

/// The worker: one step, one push in its turn, a new mini-batch if the server says so, one pull, and again.
pub fn worker() -> PushingWorker {
    PushingWorker::deltas("r2sp")
}

/// Pushes of a worker between two looks at its mini-batch: as many as make a median follow a change.
const PUSHES_PER_TUNING: u64 = 5;

/// The server's rule: turns, and mini-batches that make turns equally long.
///
/// ```
/// use esync::policy::r2sp::R2spServer;
/// use esync::policy::{Coordinator, Directive, LocalSteps, Payload, PushScale, Report, Versions};
/// use std::time::Duration;
///
/// let mut server = R2spServer::new(&[1000, 1000], 32, PushScale::Mean);
/// let push = Report::Pushed {
///     payload: Payload::Delta, local_steps: LocalSteps(1), samples: 32, loss: 2.3, seconds_since_push: 0.1,
///     compute_seconds: 0.1, base: Versions(0), norm: 0.5,
/// };
/// assert!(server.on(Duration::ZERO, 1, push.clone()).is_empty(), "it is rank 0's turn");
/// let directives = server.on(Duration::ZERO, 0, push);
/// assert!(matches!(directives[0], Directive::Apply { from: 0, .. }));
/// assert!(matches!(directives[2], Directive::Apply { from: 1, .. }));
/// ```
#[derive(Debug, Clone)]
pub struct R2spServer {
    scale: PushScale,
    tunes: bool,
    first_batch: usize,
    cluster: Cluster,
    turn: Rank,
    workers: Vec<Row>,
}

#[derive(Debug, Clone)]
struct Row {
    /// What arrived before its turn.
    pending: Option<Pending>,
    batch_size: usize,
    shard_samples: u64,
    /// Samples of its newest push.
    samples: u64,
    sample_seconds: Smoothed,
    pushes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    base: Versions,
    loss: f64,
}

impl R2spServer {
    /// What a push counts, beside its share of the samples, if nothing else is chosen.
    pub const DEFAULT_SCALE: PushScale = PushScale::Mean;

    /// With batch tuning, for workers with shards of these sizes, who begin with mini-batches of `batch_size`.
    pub fn new(shard_samples: &[u64], batch_size: usize, scale: PushScale) -> Self {
        let row = |&shard_samples: &u64| Row {
            pending: None,
            batch_size,
            shard_samples,
            samples: batch_size as u64,
            sample_seconds: Smoothed::default(),
            pushes: 0,
        };
        R2spServer {
            scale,
            tunes: true,
            first_batch: batch_size,
            cluster: Cluster::new(shard_samples.len()),
            turn: 0,
            workers: shard_samples.iter().map(row).collect(),
        }
    }

    /// The same with all mini-batches as they are.
    pub fn without_tuning(self) -> Self {
        R2spServer { tunes: false, ..self }
    }

    pub(super) fn from_options(options: &PolicyOptions, job: &Job) -> Self {
        let scale = options.push_scale.unwrap_or(Self::DEFAULT_SCALE);
        let server = Self::new(&job.shard_samples, job.batch_size, scale);
        if options.batch_tuning.unwrap_or(true) { server } else { server.without_tuning() }
    }

    fn live(&self) -> impl Iterator<Item = &Row> {
        let is_live = move |&(rank, _): &(Rank, &Row)| self.cluster.is_live(rank);
        self.workers.iter().enumerate().filter(is_live).map(|(_, row)| row)
    }

    /// Whose turn it is after `rank`: its own if nobody else lives.
    fn after(&self, rank: Rank) -> Rank {
        let size = self.workers.len();
        (1..=size).map(|step| (rank + step) % size).find(|&next| self.cluster.is_live(next)).unwrap_or(rank)
    }

    /// Takes turns while the worker whose turn it is has arrived.
    fn take_turns(&mut self) -> Vec<Directive> {
        let mut directives = Vec::new();
        while let Some(pending) = self.workers.get_mut(self.turn).and_then(|row| row.pending.take()) {
            let from = self.turn;
            self.turn = self.after(from);
            directives.push(self.apply(from, pending));
            directives.push(self.answer(from));
        }
        directives
    }

    fn apply(&mut self, from: Rank, Pending { base, loss }: Pending) -> Directive {
        if !loss.is_finite() {
            return discard(from, loss);
        }
        let staleness = self.cluster.staleness(base);
        let live_count = self.cluster.live_count();
        let cycle_samples: u64 = self.live().map(|row| row.samples).sum();
        let share = self.workers[from].samples as f64 / cycle_samples.max(1) as f64;
        let scale = self.scale.factor(live_count, staleness) * live_count as f64 * share;
        let reason = ServerReason::Turn { next: self.turn, staleness, scale };
        self.cluster.apply(from, PushRule::Add { scale }, reason)
    }

    /// A worker's turn ends with the newest parameters; a new mini-batch comes first, and the worker then asks for them.
    fn answer(&mut self, from: Rank) -> Directive {
        let row = &mut self.workers[from];
        row.pushes += 1;
        let is_due = self.tunes && row.pushes.is_multiple_of(PUSHES_PER_TUNING);
        if is_due && let Some((batch_size, samples_per_second)) = self.tuned(from) {
            self.workers[from].batch_size = batch_size;
            let change = Reply::SetBatch { batch_size, data_budget: None };
            return reply(from, change, ServerReason::BatchTuned { batch_size, samples_per_second });
        }
        reply(from, Reply::Pull, ServerReason::TurnTaken)
    }

    /// The mini-batch that fits this worker's speed, if all speeds are known and it is worth a change.
    fn tuned(&self, rank: Rank) -> Option<(usize, f64)> {
        let speeds: Vec<f64> = self.live().map(|row| row.sample_seconds.get().recip()).collect();
        if speeds.iter().any(|speed| !speed.is_finite()) {
            return None;
        }
        let row = &self.workers[rank];
        let speed = row.sample_seconds.get().recip();
        let share = speed / speeds.iter().sum::<f64>();
        let least = (self.first_batch / 8).max(1);
        let most = usize::try_from(row.shard_samples).unwrap_or(usize::MAX).max(least);
        let fitting = (speeds.len() as f64 * self.first_batch as f64 * share).floor() as usize;
        let batch_size = fitting.clamp(least, most);
        (batch_size.abs_diff(row.batch_size) > row.batch_size / 8).then_some((batch_size, speed))
    }
}

impl Coordinator for R2spServer {
    fn on(&mut self, _now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        if !self.cluster.is_live(from) {
            return Vec::new();
        }
        match report {
            Report::Pushed { base, loss, samples, compute_seconds, .. } => {
                let row = &mut self.workers[from];
                row.samples = samples;
                row.sample_seconds.add(compute_seconds / samples as f64);
                row.pending = Some(Pending { base, loss });
                self.take_turns()
            }
            other => answer(from, &other),
        }
    }

    fn lost(&mut self, _now: Duration, rank: Rank) -> Vec<Directive> {
        if !self.cluster.leave(rank) {
            return Vec::new();
        }
        self.workers[rank].pending = None;
        if self.turn == rank {
            self.turn = self.after(rank);
        }
        self.take_turns()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{at, push, words};
    use crate::policy::{Action, WorkerEvent, WorkerPolicy};

    fn timed(base: u64, pushed: u64, seconds: f64) -> Report {
        let mut report = push(base);
        if let Report::Pushed { samples, compute_seconds, .. } = &mut report {
            (*samples, *compute_seconds) = (pushed, seconds);
        }
        report
    }

    #[test]
    fn nobody_overtakes() {
        let mut server = R2spServer::new(&[100; 3], 32, PushScale::Sum);
        let mut seen = Vec::new();
        for from in [2, 1, 0, 0, 2, 1] {
            seen.push(words(&server.on(at(1), from, push(0))));
        }
        let expected = [
            "",
            "",
            "add 0 × 1, 0: Pull, add 1 × 1, 1: Pull, add 2 × 1, 2: Pull",
            "add 0 × 1, 0: Pull",
            "",
            "add 1 × 1, 1: Pull, add 2 × 1, 2: Pull",
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_dead_workers_turn_is_skipped() {
        let mut server = R2spServer::new(&[100; 3], 32, PushScale::Mean);
        server.on(at(1), 2, push(0));
        server.on(at(1), 1, push(0));
        assert_eq!(words(&server.lost(at(2), 0)), "add 1 × 0.5, 1: Pull, add 2 × 0.5, 2: Pull");
        server.on(at(3), 2, push(0));
        assert_eq!(words(&server.lost(at(3), 2)), "", "what it had pushed is not applied");
        assert_eq!(words(&server.on(at(4), 1, push(0))), "add 1 × 1, 1: Pull");
        assert_eq!(words(&server.on(at(5), 1, push(0))), "add 1 × 1, 1: Pull");
        assert_eq!(words(&server.lost(at(5), 1)), "");
    }

    #[test]
    fn batches_follow_speeds_and_pushes_count_by_their_samples() {
        let mut server = R2spServer::new(&[1000; 2], 32, PushScale::Mean);
        // Rank 1 takes three times as long for a sample.
        let mut batches = [32_u64, 32];
        let mut changes = Vec::new();
        for _ in 0..20 {
            for from in [0, 1] {
                let seconds = batches[from] as f64 * [0.001, 0.003][from];
                for directive in server.on(at(1), from, timed(0, batches[from], seconds)) {
                    if let Directive::Reply { reply: Reply::SetBatch { batch_size, .. }, reason, .. } =
                        directive
                    {
                        batches[from] = batch_size as u64;
                        changes.push(format!("{from}: {reason}"));
                    }
                }
            }
        }
        assert_eq!(batches, [48, 16]);
        let expected = [
            "0: at 1000 samples per second, 48 samples take as long as the others' steps",
            "1: at 333 samples per second, 16 samples take as long as the others' steps",
        ];
        assert_eq!(changes, expected, "and then they stay");
        assert_eq!(words(&server.on(at(1), 0, timed(0, 48, 0.048))), "add 0 × 0.75, 0: Pull");
        assert_eq!(words(&server.on(at(1), 1, timed(0, 16, 0.048))), "add 1 × 0.25, 1: Pull");
        assert_eq!(words(&server.on(at(1), 1, Report::PullRequested)), "1: Pull");
    }

    #[test]
    fn a_step_that_no_batch_makes_shorter_does_not_drive_the_batch_to_nothing() {
        let mut server = R2spServer::new(&[1000; 2], 32, PushScale::Mean);
        let mut batches = [32_u64, 32];
        for _ in 0..40 {
            for from in [0, 1] {
                let seconds = [batches[0] as f64 * 1e-5, 0.040][from];
                for directive in server.on(at(1), from, timed(0, batches[from], seconds)) {
                    if let Directive::Reply { reply: Reply::SetBatch { batch_size, .. }, .. } = directive {
                        batches[from] = batch_size as u64;
                    }
                }
            }
        }
        assert_eq!(batches[1], 4);
    }

    #[test]
    fn a_worker_sets_its_batch_and_then_asks_for_the_parameters() {
        let mut policy = worker();
        policy.next(WorkerEvent::Started { rank: 0, step_seconds: [1.0].into() });
        policy.next(WorkerEvent::Stepped { step_seconds: 1.0, samples: 32, loss: 1.0 });
        let change = Reply::SetBatch { batch_size: 48, data_budget: None };
        let (action, _) = policy.next(WorkerEvent::Replied(change));
        assert_eq!(action, Action::SetBatch { batch_size: 48, data_budget: None });
        assert!(matches!(policy.next(WorkerEvent::BatchSet).0, Action::Pull { .. }));
    }
}
