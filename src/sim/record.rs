//! What a simulation leaves behind: figures, and every message counted.

use crate::policy::{Action, Reason};
use crate::train::StoppedBy;
use crate::transport::Rank;
use std::collections::BTreeMap;

/// One worker's figures.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WorkerRecord {
    /// Steps.
    pub local_steps: u64,
    /// Samples in them.
    pub samples: u64,
    /// Reports to a coordinator that are neither pushes nor pulls.
    pub reports: u64,
    /// Exchanges that it took part in.
    pub exchanges: u64,
    /// Pushes.
    pub pushes: u64,
    /// Of them, those that the server threw away.
    pub discarded: u64,
    /// Times that it put a server's parameters in place.
    pub pulls: u64,
    /// Bytes of exchanges and pushes.
    pub bytes_sent: u64,
    /// Bytes of exchanges and pulls.
    pub bytes_received: u64,
    /// Steps between two exchanges, or two pushes, one after the other.
    pub steps_per_round: Vec<u32>,
    /// For each staleness in versions how many pushes had it: updates that others had made since this worker's pull.
    pub staleness: BTreeMap<u64, u64>,
    /// Seconds of steps, pauses within them included.
    pub compute_seconds: f64,
    /// Seconds of exchanges, pushes and pulls, while the worker did nothing else.
    pub exchange_seconds: f64,
    /// Seconds of waiting for other workers, or for a server that holds its answer.
    pub wait_seconds: f64,
    /// Seconds of evaluating on held-out data because the policy asked for it.
    pub evaluate_seconds: f64,
    /// Seconds of asking the state server.
    pub decide_seconds: f64,
    /// When it stopped or died, in seconds since training began.
    pub ended_seconds: f64,
    /// It died.
    pub is_dead: bool,
}

impl WorkerRecord {
    /// Seconds of none of these, such as after the last step until all have stopped; below 0 by rounding at most.
    pub fn other_seconds(&self) -> f64 {
        self.ended_seconds
            - self.compute_seconds
            - self.exchange_seconds
            - self.wait_seconds
            - self.evaluate_seconds
            - self.decide_seconds
    }
}

/// A measurement of the global parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EvaluationRecord {
    /// When, in seconds since training began.
    pub seconds: f64,
    /// After so many samples of all workers.
    pub global_samples: u64,
    /// After so many bytes that all workers had sent and been sent by a server.
    pub global_bytes: u64,
    /// Test accuracy, 0 to 1.
    pub accuracy: f64,
    /// Test loss.
    pub loss: f64,
}

/// One decision.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceEntry {
    /// When, in seconds since training began.
    pub seconds: f64,
    /// Whose.
    pub rank: Rank,
    /// What was decided.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}

/// The whole simulation.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The policy's name.
    pub mode: String,
    /// By rank.
    pub workers: Vec<WorkerRecord>,
    /// From the start of training to its end.
    pub seconds: f64,
    /// Samples that exchanges and pushes brought together.
    pub global_samples: u64,
    /// Exchanges.
    pub exchanges: u64,
    /// Updates that the server has applied.
    pub versions: u64,
    /// Pushes that the server has thrown away.
    pub discarded: u64,
    /// Why it ended.
    pub stopped_by: StoppedBy,
    /// When the target was met, in seconds since training began.
    pub time_to_target_seconds: Option<f64>,
    /// All measurements, the last one of the final parameters.
    pub evaluations: Vec<EvaluationRecord>,
    /// Every decision, if it was asked for.
    pub trace: Vec<TraceEntry>,
    /// The final global parameters, with the statistics.
    pub parameters: Vec<f32>,
}

impl Record {
    /// Steps of all workers.
    pub fn local_steps(&self) -> u64 {
        self.workers.iter().map(|worker| worker.local_steps).sum()
    }

    /// Bytes that all workers sent, and that a server sent them.
    pub fn bytes(&self) -> u64 {
        let is_served = self.versions + self.discarded > 0;
        let bytes =
            |worker: &WorkerRecord| worker.bytes_sent + if is_served { worker.bytes_received } else { 0 };
        self.workers.iter().map(bytes).sum()
    }

    /// The share of all workers' time that they spent computing.
    pub fn computing_share(&self) -> f64 {
        let computing: f64 = self.workers.iter().map(|worker| worker.compute_seconds).sum();
        let all: f64 = self.workers.iter().map(|worker| worker.ended_seconds).sum();
        computing / all.max(1e-9)
    }

    /// The staleness of all pushes together.
    pub fn staleness(&self) -> BTreeMap<u64, u64> {
        let mut all = BTreeMap::new();
        for (&staleness, &pushes) in self.workers.iter().flat_map(|worker| &worker.staleness) {
            *all.entry(staleness).or_insert(0) += pushes;
        }
        all
    }

    /// The last measurement.
    pub fn final_evaluation(&self) -> Option<&EvaluationRecord> {
        self.evaluations.last()
    }
}
