//! `summary.json`, and the table that a person sees at the end.

use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::reduce::WireFormat;
use crate::runtime::server::WorkerFigures;
use crate::transport::Rank;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::path::Path;

/// Why training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoppedBy {
    /// The target was met.
    Target,
    /// The budget of samples (or epochs) is spent.
    Samples,
    /// The budget of seconds is spent.
    Seconds,
    /// Somebody asked for it (SIGUSR1).
    Request,
    /// Somebody interrupted it (Ctrl-C, SIGTERM).
    Interrupt,
}

/// One worker's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the documentation: `design` words with their units")]
pub struct WorkerSummary {
    pub rank: Rank,
    pub host: String,
    pub device: String,
    pub local_steps: u64,
    pub samples: u64,
    pub compute_seconds: f64,
    pub exchange_seconds: f64,
    pub wait_seconds: f64,
    pub evaluate_seconds: f64,
    pub slow_seconds: f64,
    /// Asking the state server, and the policy's own thinking.
    pub decide_seconds: f64,
    /// Writing metrics, printing.
    pub other_seconds: f64,
    /// From the start of training to its end: the sum of all of them.
    pub total_seconds: f64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// What the parameter server saw of it; absent for modes without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<WorkerFigures>,
}

/// One shard of a parameter server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the documentation: `design` words with their units")]
pub struct ServerSummary {
    pub rank: Rank,
    pub host: String,
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

/// A run's figures: the content of `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the documentation, and README.md explains the clocks")]
pub struct Summary {
    /// Of this format.
    pub version: u32,
    pub mode: String,
    pub collective: String,
    /// What the numbers of an exchange travelled as.
    pub wire: WireFormat,
    pub transport: String,
    pub ranks: usize,
    pub hosts: usize,
    pub network: String,
    pub dataset: String,
    pub seed: u64,
    /// How the state server was reached; absent for modes without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_server: Option<String>,
    pub final_accuracy: f64,
    pub final_loss: f64,
    pub target_accuracy: Option<f64>,
    pub target_loss: Option<f64>,
    pub reached_target: Option<bool>,
    pub time_to_target_seconds: Option<f64>,
    pub train_seconds: f64,
    pub samples: u64,
    pub samples_per_second: f64,
    pub exchanges: u64,
    pub bytes_sent: u64,
    pub stopped_by: StoppedBy,
    pub workers: Vec<WorkerSummary>,
    /// The parameter server's shards; absent for modes without one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<ServerSummary>,
}

impl Summary {
    /// Writes `summary.json` atomically.
    ///
    /// # Errors
    /// `File`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::Internal(format!("the summary cannot be written as JSON: {e}")))?;
        write_atomically(path, &[text.as_bytes()])
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let header =
            ["rank", "host", "steps", "samples", "compute", "exchange", "wait", "evaluate", "slow", "sent"];
        let row = |w: &WorkerSummary| {
            let seconds = |value: f64| format!("{value:.2} s");
            [
                w.rank.to_string(),
                w.host.clone(),
                w.local_steps.to_string(),
                w.samples.to_string(),
                seconds(w.compute_seconds),
                seconds(w.exchange_seconds),
                seconds(w.wait_seconds),
                seconds(w.evaluate_seconds),
                seconds(w.slow_seconds),
                bytes(w.bytes_sent),
            ]
        };
        let rows: Vec<[String; 10]> =
            std::iter::once(header.map(String::from)).chain(self.workers.iter().map(row)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 10] = std::array::from_fn(width);
        for row in &rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:>width$}"));
            let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  "));
        }
        let meetings = match self.servers.is_empty() {
            true => format!("{} exchanges", self.exchanges),
            false => {
                let figures = || self.workers.iter().flat_map(|worker| &worker.server);
                let pushes: u64 = figures().map(|figures| figures.pushes).sum();
                format!("{pushes} pushes, {} pulls", figures().map(|figures| figures.pulls).sum::<u64>())
            }
        };
        let _ = write!(
            text,
            "\naccuracy {:.2}%  loss {:.4}  {} samples in {:.2} s ({:.0} samples/s)  {meetings}, {} sent",
            100.0 * self.final_accuracy,
            self.final_loss,
            self.samples,
            self.train_seconds,
            self.samples_per_second,
            bytes(self.bytes_sent),
        );
        if let Some(seconds) = self.time_to_target_seconds {
            let _ = write!(text, "\ntarget reached after {seconds:.2} s of training");
        }
        text
    }
}

/// 1.5 MB and the like; decimal, as nccl-tests counts.
fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        _ if count < 1e3 => format!("{count} B"),
        _ if count < 1e6 => format!("{:.1} kB", count / 1e3),
        _ if count < 1e9 => format!("{:.1} MB", count / 1e6),
        _ => format!("{:.2} GB", count / 1e9),
    }
}
