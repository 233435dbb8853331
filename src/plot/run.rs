//! A run, as pictures need it.

use super::read;
use super::record::{Config, Evaluate, Event, Exchange, Line, Push, Summary};
use crate::error::Result;
use crate::transport::Rank;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A run's figures.
pub(super) struct Run {
    /// Its name in pictures; see [`name_runs`].
    pub(super) label: String,
    pub(super) folder: PathBuf,
    pub(super) mode: String,
    /// Whether its workers push to a parameter server.
    pub(super) is_served: bool,
    /// Whether it has written its summary.
    pub(super) is_finished: bool,
    pub(super) target_accuracy: Option<f64>,
    pub(super) target_loss: Option<f64>,
    pub(super) time_to_target_seconds: Option<f64>,
    /// In the order of time.
    pub(super) evaluations: Vec<Evaluation>,
    /// In the order of ranks.
    pub(super) workers: Vec<Shares>,
    /// How many local steps each worker did in each of its rounds.
    pub(super) rounds: Vec<Round>,
    /// How many pushes had which staleness.
    pub(super) staleness: BTreeMap<u64, u64>,
    /// Of all workers.
    pub(super) samples: u64,
    /// Without evaluations.
    pub(super) train_seconds: f64,
    /// Of all workers; `None` if the files do not tell.
    pub(super) bytes_sent: Option<u64>,
    pub(super) exchanges: u64,
    /// What a reader of the pictures has to know.
    pub(super) notes: Vec<String>,
}

/// An evaluation, and what had been done by then.
pub(super) struct Evaluation {
    pub(super) accuracy: f64,
    pub(super) loss: f64,
    pub(super) train_seconds: f64,
    pub(super) global_samples: u64,
    /// Of all workers; `None` if the files do not tell.
    pub(super) bytes_sent: Option<u64>,
}

/// Where a worker's seconds went.
#[derive(Debug, Clone, Default)]
pub(super) struct Shares {
    pub(super) rank: Rank,
    pub(super) compute_seconds: f64,
    pub(super) slow_seconds: f64,
    pub(super) exchange_seconds: f64,
    pub(super) wait_seconds: f64,
    pub(super) evaluate_seconds: f64,
    /// With what is none of the above: deciding, writing metrics.
    pub(super) total_seconds: f64,
}

/// A round of one worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    pub(super) rank: Rank,
    /// From 1.
    pub(super) round: u64,
    pub(super) local_steps: u64,
    /// When it ended, in seconds since training began, on the worker's own clock.
    pub(super) ended: f64,
    /// When all had arrived in the exchange that ended it: one moment, as each worker's clock showed it.
    pub(super) arrived: Option<f64>,
}

impl Run {
    /// Reads the files of a run; one that goes on, or was killed, has no summary.
    ///
    /// # Errors
    /// `Data` with file and line.
    pub(super) fn read(folder: &Path) -> Result<Run> {
        let config = read::config(folder)?;
        let summary = read::summary(folder)?;
        let mut gathered = Gathered::default();
        let torn = read::each_line(folder, summary.is_some(), |line| {
            gathered.add(line);
            Ok(())
        })?;
        Ok(gathered.run(folder, config, summary, torn))
    }

    /// Of all workers' time, how much was computing, simulated slowness included; 0 to 1.
    pub(super) fn busy_share(&self) -> f64 {
        let total: f64 = self.workers.iter().map(|worker| worker.total_seconds).sum();
        let busy: f64 = self.workers.iter().map(|worker| worker.compute_seconds + worker.slow_seconds).sum();
        busy / total.max(1e-12)
    }

    pub(super) fn samples_per_second(&self) -> f64 {
        self.samples as f64 / self.train_seconds.max(1e-9)
    }
}

/// Gives every run a name: its mode, or its directory's name where modes are not unique, or the whole path.
pub(super) fn name_runs(runs: &mut [Run]) {
    let directory = |run: &Run| {
        let folder = run.folder.canonicalize().unwrap_or_else(|_| run.folder.clone());
        folder.file_name().map_or_else(|| run.mode.clone(), |name| name.to_string_lossy().into_owned())
    };
    let candidates: [&dyn Fn(&Run) -> String; 3] =
        [&|run| run.mode.clone(), &directory, &|run| run.folder.display().to_string()];
    for (number, candidate) in candidates.iter().enumerate() {
        let names: Vec<String> = runs.iter().map(|run| printable(&candidate(run))).collect();
        let unique: BTreeSet<&String> = names.iter().collect();
        if unique.len() == names.len() || number + 1 == candidates.len() {
            runs.iter_mut().zip(names).for_each(|(run, name)| run.label = name);
            return;
        }
    }
}

/// Without control characters, which no picture can hold.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || c == '\u{fffe}' || c == '\u{ffff}' { '?' } else { c }).collect()
}

/// Bytes that were sent.
#[derive(Clone, Copy)]
enum Sent {
    /// By this rank, so far.
    InAll(u64),
    /// By this rank, or to it by the server.
    More(u64),
}

/// What the lines of metrics add up to.
#[derive(Default)]
struct Gathered {
    workers: BTreeMap<Rank, Shares>,
    evaluations: Vec<(f64, Evaluate)>,
    rounds: Vec<Round>,
    pushes: BTreeMap<Rank, u64>,
    staleness: BTreeMap<u64, u64>,
    /// When, whose, what. Exchanges and evaluations have the samples of all workers in common; workers of a server only
    /// the seconds of training.
    traffic: Vec<(f64, Rank, Sent)>,
    exchanges: u64,
    step_samples: u64,
    global_samples: u64,
    warnings: BTreeSet<String>,
}

impl Gathered {
    fn add(&mut self, Line { t, rank, event }: Line) {
        let worker = self.workers.entry(rank).or_insert_with(|| Shares { rank, ..Shares::default() });
        worker.total_seconds = worker.total_seconds.max(t);
        match event {
            Event::Step(step) => {
                worker.compute_seconds += step.step_seconds - step.slow_seconds;
                worker.slow_seconds += step.slow_seconds;
                self.step_samples += step.samples;
            }
            Event::Exchange(exchange) => {
                worker.wait_seconds += exchange.wait_seconds;
                worker.exchange_seconds += exchange.exchange_seconds;
                self.exchanged(t, rank, &exchange);
            }
            Event::Push(push) => {
                worker.wait_seconds += push.wait_seconds;
                worker.exchange_seconds += push.exchange_seconds;
                self.pushed(t, rank, &push);
            }
            Event::Pull(pull) => {
                worker.exchange_seconds += pull.exchange_seconds;
                self.traffic.push((t, rank, Sent::More(pull.bytes)));
            }
            Event::Evaluate(evaluate) => self.evaluations.push((t, evaluate)),
            Event::Warning(message) => {
                self.warnings.insert(message.text);
            }
            Event::Error(message) => {
                self.warnings.insert(format!("rank {rank} failed: {}", message.text));
            }
            Event::Decision(_) | Event::Unknown => {}
        }
    }

    fn exchanged(&mut self, t: f64, rank: Rank, exchange: &Exchange) {
        self.exchanges = self.exchanges.max(exchange.exchange);
        self.global_samples = self.global_samples.max(exchange.global_samples);
        let after = exchange.global_samples as f64;
        self.traffic.extend(exchange.bytes_sent.map(|bytes| (after, rank, Sent::InAll(bytes))));
        let (round, local_steps) = (exchange.exchange, exchange.local_steps);
        let arrived = Some(t - exchange.exchange_seconds);
        self.rounds.push(Round { rank, round, local_steps, ended: t, arrived });
    }

    fn pushed(&mut self, t: f64, rank: Rank, push: &Push) {
        let round = self.pushes.entry(rank).or_default();
        *round += 1;
        self.rounds.push(Round {
            rank,
            round: *round,
            local_steps: push.local_steps,
            ended: t,
            arrived: None,
        });
        self.traffic.push((t, rank, Sent::More(push.bytes)));
        if let Some(staleness) = push.staleness {
            *self.staleness.entry(staleness).or_default() += 1;
        }
    }

    /// Bytes of all workers at the times of the evaluations, which are in the order of time; and at the end. `None` if no
    /// line tells of bytes.
    fn bytes_at_evaluations(&mut self) -> Option<(Vec<u64>, u64)> {
        // Ranks write whole blocks of lines, so the file is in order for each rank only.
        self.traffic.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut sent: BTreeMap<Rank, u64> = BTreeMap::new();
        let mut total = 0_u64;
        let mut next = self.traffic.iter().peekable();
        let mut until = |limit: f64| {
            while let Some(&(_, rank, bytes)) = next.next_if(|(when, ..)| *when <= limit) {
                let of_rank = sent.entry(rank).or_default();
                let more = match bytes {
                    Sent::InAll(bytes) => bytes.saturating_sub(*of_rank),
                    Sent::More(bytes) => bytes,
                };
                *of_rank += more;
                total += more;
            }
            total
        };
        let is_served = !self.pushes.is_empty();
        let when = |(_, evaluate): &(f64, Evaluate)| match is_served {
            true => evaluate.train_seconds,
            false => evaluate.global_samples as f64,
        };
        let at_evaluations = self.evaluations.iter().map(|evaluation| until(when(evaluation))).collect();
        let at_end = until(f64::MAX);
        (!self.traffic.is_empty()).then_some((at_evaluations, at_end))
    }

    fn run(mut self, folder: &Path, config: Config, summary: Option<Summary>, torn: bool) -> Run {
        self.evaluations.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (bytes, bytes_sent) = match self.bytes_at_evaluations() {
            Some((bytes, at_end)) => (bytes.into_iter().map(Some).collect(), Some(at_end)),
            None => (vec![None; self.evaluations.len()], None),
        };
        let is_served = !self.pushes.is_empty();
        let evaluate_seconds: f64 = self.evaluations.iter().map(|(_, e)| e.evaluate_seconds).sum();
        let mut workers: Vec<Shares> = self.workers.into_values().collect();
        if !is_served {
            // All ranks take part in an evaluation, and rank 0 writes the line. A server is measured beside training.
            workers.iter_mut().for_each(|worker| worker.evaluate_seconds = evaluate_seconds);
        }
        let last = workers.iter().map(|worker| worker.total_seconds).fold(0.0, f64::max);
        let mut notes: Vec<String> = self.warnings.into_iter().collect();
        if torn {
            notes.push("the last line of metrics.jsonl is not whole and was left out".into());
        }
        let evaluations: Vec<Evaluation> = self
            .evaluations
            .iter()
            .zip(bytes)
            .map(|((_, evaluate), bytes_sent)| Evaluation {
                accuracy: evaluate.accuracy,
                loss: evaluate.loss,
                train_seconds: evaluate.train_seconds,
                global_samples: evaluate.global_samples,
                bytes_sent,
            })
            .collect();
        let mut run = Run {
            label: config.mode.clone(),
            folder: folder.into(),
            mode: config.mode,
            is_finished: summary.is_some(),
            target_accuracy: config.target_accuracy,
            target_loss: config.target_loss,
            time_to_target_seconds: None,
            evaluations,
            workers,
            rounds: self.rounds,
            staleness: self.staleness,
            samples: if self.global_samples > 0 { self.global_samples } else { self.step_samples },
            train_seconds: if is_served { last } else { (last - evaluate_seconds).max(0.0) },
            is_served,
            bytes_sent,
            exchanges: self.exchanges,
            notes,
        };
        match summary {
            Some(summary) => run.take_summary(summary),
            None => run.notes.push(format!(
                "not finished: it has no summary.json, and is drawn as far as its metrics go ({:.1} s)",
                last
            )),
        }
        run
    }
}

impl Run {
    /// A run's own account is better than what its lines add up to.
    fn take_summary(&mut self, summary: Summary) {
        self.mode = summary.mode;
        self.time_to_target_seconds = summary.time_to_target_seconds;
        self.samples = summary.samples;
        self.train_seconds = summary.train_seconds;
        self.bytes_sent = Some(summary.bytes_sent);
        self.exchanges = summary.exchanges;
        if self.evaluations.is_empty() {
            self.evaluations.push(Evaluation {
                accuracy: summary.final_accuracy,
                loss: summary.final_loss,
                train_seconds: summary.train_seconds,
                global_samples: summary.samples,
                bytes_sent: Some(summary.bytes_sent),
            });
        }
        let shares = summary.workers.iter().map(|worker| Shares {
            rank: worker.rank,
            compute_seconds: worker.compute_seconds,
            slow_seconds: worker.slow_seconds,
            exchange_seconds: worker.exchange_seconds,
            wait_seconds: worker.wait_seconds,
            evaluate_seconds: worker.evaluate_seconds,
            total_seconds: worker.total_seconds,
        });
        self.workers = shares.collect();
    }
}
