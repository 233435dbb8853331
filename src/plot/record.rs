//! What the files of a run hold, as far as pictures need it. Fields that are not known are ignored: adding is free.

use crate::transport::Rank;
use serde::Deserialize;

/// What every line of `metrics.jsonl` begins with.
#[derive(Debug, Deserialize)]
pub(super) struct Head<'a> {
    /// Seconds since training began, on this rank's own clock.
    pub(super) t: f64,
    pub(super) rank: Rank,
    #[serde(borrow)]
    pub(super) kind: std::borrow::Cow<'a, str>,
}

/// A line of `metrics.jsonl`.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) t: f64,
    pub(super) rank: Rank,
    pub(super) event: Event,
}

/// What the line tells.
#[derive(Debug)]
pub(super) enum Event {
    Step(Step),
    Decision(Decision),
    Exchange(Exchange),
    Push(Push),
    Pull(Pull),
    Evaluate(Evaluate),
    Warning(Message),
    Error(Message),
    /// A kind that this program does not know.
    Unknown,
}

/// A mini-batch.
#[derive(Debug, Deserialize)]
pub(super) struct Step {
    /// Sleep included.
    pub(super) step_seconds: f64,
    /// How many of them were sleep.
    #[serde(default)]
    pub(super) slow_seconds: f64,
    pub(super) samples: u64,
}

/// A decision of the policy, or of its coordinator.
#[derive(Debug, Deserialize)]
pub(super) struct Decision {
    /// The round that the worker was in, from 1.
    pub(super) round: Option<u64>,
    pub(super) action: String,
    pub(super) reason: String,
    /// About whom the server decided; absent for a worker's own decisions.
    pub(super) worker: Option<Rank>,
    /// `server` for the server's decisions, which stand among the lines of the rank it runs on.
    #[serde(default)]
    pub(super) by: String,
}

/// The end of an exchange.
#[derive(Debug, Deserialize)]
pub(super) struct Exchange {
    /// Its number, from 1.
    pub(super) exchange: u64,
    pub(super) local_steps: u64,
    pub(super) samples: u64,
    pub(super) global_samples: u64,
    pub(super) loss: f64,
    pub(super) wait_seconds: f64,
    pub(super) exchange_seconds: f64,
    /// Of this rank, so far.
    pub(super) bytes_sent: Option<u64>,
}

/// The answer to a push to the parameter server.
#[derive(Debug, Deserialize)]
pub(super) struct Push {
    pub(super) local_steps: u64,
    pub(super) samples: u64,
    pub(super) loss: f64,
    /// From the push to the answer, without `wait_seconds`.
    pub(super) exchange_seconds: f64,
    /// Held by the server.
    pub(super) wait_seconds: f64,
    /// Versions that the server had gone on when it applied the push; not known if that was after the answer.
    pub(super) staleness: Option<u64>,
    /// Of its values.
    pub(super) bytes: u64,
}

/// The server's parameters were put in place.
#[derive(Debug, Deserialize)]
pub(super) struct Pull {
    pub(super) exchange_seconds: f64,
    /// Of the parameters.
    pub(super) bytes: u64,
}

/// An evaluation of the common model.
#[derive(Debug, Deserialize)]
pub(super) struct Evaluate {
    pub(super) accuracy: f64,
    pub(super) loss: f64,
    pub(super) global_samples: u64,
    /// Seconds of training, without those of evaluation.
    pub(super) train_seconds: f64,
    pub(super) evaluate_seconds: f64,
}

/// A warning or an error.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    pub(super) text: String,
}

/// `config.toml`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Config {
    pub(super) mode: String,
    pub(super) target_accuracy: Option<f64>,
    pub(super) target_loss: Option<f64>,
}

/// The only `summary.json` that this program reads.
pub(super) const SUMMARY_VERSION: u32 = 1;

/// `summary.json`: its version alone, which is looked at before anything else.
#[derive(Debug, Deserialize)]
pub(super) struct Version {
    pub(super) version: u32,
}

/// `summary.json`.
#[derive(Debug, Deserialize)]
pub(super) struct Summary {
    pub(super) mode: String,
    pub(super) final_accuracy: f64,
    pub(super) final_loss: f64,
    pub(super) time_to_target_seconds: Option<f64>,
    pub(super) train_seconds: f64,
    pub(super) samples: u64,
    pub(super) exchanges: u64,
    pub(super) bytes_sent: u64,
    pub(super) workers: Vec<WorkerSummary>,
}

/// One worker in `summary.json`.
#[derive(Debug, Deserialize)]
pub(super) struct WorkerSummary {
    pub(super) rank: Rank,
    pub(super) compute_seconds: f64,
    pub(super) exchange_seconds: f64,
    pub(super) wait_seconds: f64,
    pub(super) evaluate_seconds: f64,
    pub(super) slow_seconds: f64,
    pub(super) total_seconds: f64,
}
