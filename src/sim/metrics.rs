//! `metrics.jsonl` of a simulation: the events of a real run, with virtual times.

use super::record::EvaluationRecord;
use super::watch::{SimExchange, SimPull, SimPush, SimStep, Watch};
use crate::error::{Error, Result};
use crate::policy::{Action, Directive, Reason};
use crate::train::report::{Line, Reporter};
use crate::transport::Rank;
use serde::Serialize;
use serde_json::json;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes every event, and shows rank 0's progress.
pub(super) struct Metrics {
    path: PathBuf,
    file: BufWriter<File>,
    reporter: Reporter,
    /// The round that each worker is in, from 1: of exchanges or of pushes.
    rounds: Vec<u64>,
    accuracy: Option<f64>,
    /// Rank 0's waiting so far.
    wait_seconds: f64,
}

#[derive(Serialize)]
struct Event<'a, F> {
    t: f64,
    rank: Rank,
    kind: &'a str,
    #[serde(flatten)]
    fields: F,
}

#[derive(Serialize)]
struct StepFields {
    local_step: u64,
    step_seconds: f64,
    samples: usize,
    loss: f64,
}

impl Metrics {
    pub(super) fn create(path: &Path, workers: usize, reporter: Reporter) -> Result<Metrics> {
        let file = File::create_new(path)
            .map_err(|error| Error::file(path, format!("cannot write metrics: {error}")))?;
        let file = BufWriter::new(file);
        let rounds = vec![1; workers];
        Ok(Metrics { path: path.into(), file, reporter, rounds, accuracy: None, wait_seconds: 0.0 })
    }

    fn event(&mut self, t: f64, rank: Rank, kind: &str, fields: impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.file, &Event { t, rank, kind, fields })
            .map_err(std::io::Error::from)
            .and_then(|()| self.file.write_all(b"\n"))
            .map_err(|error| Error::file(&self.path, format!("cannot write metrics: {error}")))
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.reporter.finish();
        self.file.flush().map_err(|error| Error::file(&self.path, format!("cannot write metrics: {error}")))
    }

    /// A worker's round is closed.
    fn next_round(&mut self, rank: Rank) {
        self.rounds[rank] += 1;
    }
}

impl Watch for Metrics {
    fn decided(&mut self, seconds: f64, rank: Rank, action: &Action, reason: &Reason) -> Result<()> {
        let fields =
            json!({ "round": self.rounds[rank], "action": action.name(), "reason": reason.to_string() });
        self.event(seconds, rank, "decision", fields)
    }

    fn served(&mut self, seconds: f64, directive: &Directive, version: u64) -> Result<()> {
        let (action, worker, reason) = match directive {
            Directive::Reply { to, reason, .. } => ("reply", Some(*to), reason.to_string()),
            Directive::Apply { from, reason, .. } => ("apply", Some(*from), reason.to_string()),
            Directive::Publish { reason } => ("publish", None, reason.to_string()),
            Directive::Evaluate => ("evaluate", None, "the rule goes by the loss of the parameters".into()),
        };
        let mut fields = json!({ "by": "server", "action": action, "reason": reason, "version": version });
        if let Some(worker) = worker {
            fields["worker"] = worker.into();
        }
        match directive {
            Directive::Reply { reply, .. } => fields["reply"] = json!(reply),
            Directive::Apply { rule, .. } => fields["rule"] = json!(rule),
            Directive::Publish { .. } | Directive::Evaluate => {}
        }
        self.event(seconds, 0, "decision", fields)
    }

    fn stepped(&mut self, seconds: f64, rank: Rank, step: &SimStep) -> Result<()> {
        let &SimStep { local_step, seconds: step_seconds, samples, loss } = step;
        self.event(seconds, rank, "step", StepFields { local_step, step_seconds, samples, loss })
    }

    fn exchanged(&mut self, seconds: f64, rank: Rank, exchange: &SimExchange) -> Result<()> {
        let own = exchange.members.iter().find(|member| member.rank == rank);
        self.event(
            seconds,
            rank,
            "exchange",
            json!({
                "exchange": exchange.exchange,
                "local_steps": own.map(|own| own.local_steps.0),
                "samples": own.map(|own| own.samples),
                "global_samples": exchange.global_samples,
                "loss": own.map(|own| own.loss),
                "wait_seconds": exchange.wait_seconds,
                "exchange_seconds": exchange.exchange_seconds,
                "bytes_sent": exchange.bytes_sent,
            }),
        )?;
        self.next_round(rank);
        if rank == 0 {
            self.wait_seconds += exchange.wait_seconds;
            let samples: u64 = exchange.members.iter().map(|member| member.samples).sum();
            let loss: f64 = exchange.members.iter().map(|member| member.loss * member.samples as f64).sum();
            let local_steps: Vec<u64> = exchange.members.iter().map(|member| member.local_steps.0).collect();
            self.reporter.show(&Line {
                elapsed: seconds,
                what: "round",
                number: exchange.exchange,
                loss: loss / samples.max(1) as f64,
                accuracy: self.accuracy,
                global_samples: exchange.global_samples,
                counts: ("steps", &local_steps),
                wait_share: Some(self.wait_seconds / seconds.max(1e-9)),
                exchange_seconds: Some(exchange.exchange_seconds),
            });
        }
        Ok(())
    }

    fn pushed(&mut self, seconds: f64, rank: Rank, push: &SimPush) -> Result<()> {
        self.event(
            seconds,
            rank,
            "push",
            json!({
                "push": push.push,
                "local_steps": push.local_steps,
                "samples": push.samples,
                "loss": push.loss,
                "base": push.base,
                "staleness": push.staleness,
                "bytes": push.bytes,
                "wait_seconds": push.wait_seconds,
                "exchange_seconds": push.exchange_seconds,
            }),
        )?;
        self.next_round(rank);
        Ok(())
    }

    fn pulled(&mut self, seconds: f64, rank: Rank, pull: &SimPull) -> Result<()> {
        self.event(
            seconds,
            rank,
            "pull",
            json!({ "version": pull.version, "bytes": pull.bytes, "exchange_seconds": pull.exchange_seconds }),
        )
    }

    fn evaluated(&mut self, evaluation: &EvaluationRecord) -> Result<()> {
        self.accuracy = (evaluation.accuracy > 0.0).then_some(evaluation.accuracy);
        self.event(
            evaluation.seconds,
            0,
            "evaluate",
            json!({
                "accuracy": evaluation.accuracy,
                "loss": evaluation.loss,
                "global_samples": evaluation.global_samples,
                "global_bytes": evaluation.global_bytes,
                "train_seconds": evaluation.seconds,
                "evaluate_seconds": 0.0,
            }),
        )
    }

    fn died(&mut self, seconds: f64, rank: Rank) -> Result<()> {
        self.event(seconds, rank, "warning", json!({ "text": format!("rank {rank} died") }))
    }
}
