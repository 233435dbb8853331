//! `esync sim --compare`: modes side by side, with one target, one budget and one grid of learning rates for all.

use super::command::{Done, Run, free_folder};
use super::flags::Flags;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::policy::Mode;
use crate::train;
use crate::train::report::say;
use crate::train::{Config, Progress};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What everything is measured against, if it is among the modes.
const REFERENCE: &str = "sync";

/// One simulation of the comparison.
#[derive(Debug, Clone)]
struct Trial {
    mode: &'static str,
    learning_rate: f64,
    seed: u64,
    folder: PathBuf,
}

/// How a trial ended.
#[derive(Debug, Clone, Serialize)]
struct Figures {
    seed: u64,
    /// Where its files are.
    run: PathBuf,
    time_to_target_seconds: Option<f64>,
    train_seconds: f64,
    samples: u64,
    samples_per_second: f64,
    computing_share: f64,
    bytes_per_sample: f64,
    final_accuracy: f64,
    final_loss: f64,
    mean_staleness: Option<f64>,
    /// Why there are no figures: training diverged, or a worker died.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

/// A median over seeds, with the least and the greatest.
#[derive(Debug, Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    least: f64,
    greatest: f64,
}

/// One mode at the learning rate that was chosen for it.
#[derive(Debug, Serialize)]
struct Row {
    mode: &'static str,
    learning_rate: f64,
    reached_target: usize,
    seeds: usize,
    time_to_target_seconds: Option<Spread>,
    /// How many times as fast as `sync` by the medians.
    speed_up: Option<f64>,
    samples_per_second: Option<Spread>,
    computing_share: Option<Spread>,
    bytes_per_sample: Option<Spread>,
    final_accuracy: Option<Spread>,
    final_loss: Option<Spread>,
    staleness_versions: Option<Spread>,
    /// For every learning rate of the grid: the median time to the target, if half of the seeds reached it.
    grid: Vec<GridPoint>,
    runs: Vec<Figures>,
}

#[derive(Debug, Clone, Serialize)]
struct GridPoint {
    learning_rate: f64,
    reached_target: usize,
    median_time_to_target_seconds: Option<f64>,
    median_final_loss: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Comparison<'a> {
    version: u32,
    cluster: &'a str,
    target_accuracy: Option<f64>,
    target_loss: Option<f64>,
    budget_samples: Option<u64>,
    learning_rates: &'a [f64],
    seeds: Vec<u64>,
    modes: Vec<Row>,
}

/// Compares, prints the table and writes `comparison.json`. Answers the exit code: 8 if nobody reached the target.
pub(super) fn compare(flags: &Flags) -> Result<i32> {
    check(flags)?;
    let modes = modes(flags)?;
    let out = flags.train.out.clone().unwrap_or_else(|| free_folder("comparison"));
    let trials = trials(flags, &modes, &out);
    for mode in &modes {
        // What is wrong with a mode's options is said before anything runs.
        config(flags, &Trial { mode, learning_rate: flags.learning_rates[0], seed: 1, folder: out.clone() })?;
    }
    say(&format!(
        "{} simulations on cluster {}: {} modes, learning rates {:?}, {} seeds; results go to {}",
        trials.len(),
        flags.cluster,
        modes.len(),
        flags.learning_rates,
        flags.seeds,
        out.display()
    ));
    let figures = run_all(flags, &trials)?;
    let mut rows: Vec<Row> = modes.iter().map(|mode| row(flags, mode, &trials, &figures)).collect();
    speed_ups(&mut rows);
    say(&table(flags, &rows));
    let first = config(flags, &trials[0])?;
    let comparison = Comparison {
        version: 1,
        cluster: &flags.cluster,
        target_accuracy: first.target_accuracy,
        target_loss: first.target_loss,
        budget_samples: Run::new(flags, first)?.budget_samples(),
        learning_rates: &flags.learning_rates,
        seeds: seeds(flags).collect(),
        modes: rows,
    };
    let text = serde_json::to_string_pretty(&comparison)
        .map_err(|error| Error::Internal(format!("the comparison cannot be written as JSON: {error}")))?;
    let path = out.join("comparison.json");
    write_atomically(&path, &[text.as_bytes()])?;
    say(&format!("\n{} holds all figures; every run's files are beside it", path.display()));
    let is_reached = comparison.modes.iter().any(|row| row.reached_target > 0);
    Ok(if is_reached { 0 } else { 8 })
}

fn check(flags: &Flags) -> Result<()> {
    let train = &flags.train;
    if train.target_accuracy.is_none() && train.target_loss.is_none() {
        return Err(Error::Usage(
            "--compare needs one target for all modes: give --target-accuracy or --target-loss".into(),
        ));
    }
    if train.mode.is_some() || train.learning_rate.is_some() {
        return Err(Error::Usage(
            "--compare takes its modes from its list and their learning rates from --learning-rates; leave out --mode and \
             --learning-rate"
                .into(),
        ));
    }
    if flags.learning_rates.is_empty() {
        return Err(Error::Usage("--learning-rates is an empty grid".into()));
    }
    if let Some(out) = &train.out
        && std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some())
    {
        return Err(Error::Usage(format!("--out {} exists and is not empty", out.display())));
    }
    Ok(())
}

fn modes(flags: &Flags) -> Result<Vec<&'static str>> {
    let mut modes = Vec::new();
    for name in &flags.compare {
        let name = Mode::by_name(name.trim())?.name;
        if modes.contains(&name) {
            return Err(Error::Usage(format!("--compare names {name} twice")));
        }
        modes.push(name);
    }
    Ok(modes)
}

fn seeds(flags: &Flags) -> impl Iterator<Item = u64> + use<> {
    let first = flags.train.seed.unwrap_or(1);
    first..first + flags.seeds
}

fn trials(flags: &Flags, modes: &[&'static str], out: &Path) -> Vec<Trial> {
    let mut trials = Vec::new();
    for &mode in modes {
        for &learning_rate in &flags.learning_rates {
            for seed in seeds(flags) {
                let folder =
                    out.join(mode).join(format!("rate-{learning_rate}")).join(format!("seed-{seed}"));
                trials.push(Trial { mode, learning_rate, seed, folder });
            }
        }
    }
    trials
}

fn config(flags: &Flags, trial: &Trial) -> Result<Config> {
    Config::resolve(train::Flags {
        mode: Some(trial.mode.into()),
        learning_rate: Some(trial.learning_rate),
        seed: Some(trial.seed),
        out: Some(trial.folder.clone()),
        progress: Some(Progress::None),
        ..flags.train.clone()
    })
}

/// Runs the trials on `--jobs` threads, and answers their figures in the same order.
fn run_all(flags: &Flags, trials: &[Trial]) -> Result<Vec<Figures>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Result<Figures>>>> = Mutex::new(trials.iter().map(|_| None).collect());
    let work = || {
        #[cfg(feature = "torch")]
        crate::learner::set_threads(1);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(trial) = trials.get(number) else { return };
            let figures = run(flags, trial);
            if figures.is_err() {
                // Nothing that follows would be shown.
                next.store(trials.len(), Ordering::Relaxed);
            }
            done.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(figures);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..flags.jobs.min(trials.len()) {
            scope.spawn(work);
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    // After a failure the rest was not run.
    done.into_iter().flatten().collect()
}

fn run(flags: &Flags, trial: &Trial) -> Result<Figures> {
    let done = Run::new(flags, config(flags, trial)?)?.carry_out(&trial.folder, false);
    let (seed, run) = (trial.seed, trial.folder.clone());
    match done {
        Ok(Done { summary, record }) => {
            let staleness = record.staleness();
            let pushes: u64 = staleness.values().sum();
            let versions: u64 = staleness.iter().map(|(versions, pushes)| versions * pushes).sum();
            Ok(Figures {
                seed,
                run,
                time_to_target_seconds: summary.time_to_target_seconds,
                train_seconds: summary.train_seconds,
                samples: summary.samples,
                samples_per_second: summary.samples_per_second,
                computing_share: record.computing_share(),
                bytes_per_sample: summary.bytes_sent as f64 / summary.samples.max(1) as f64,
                final_accuracy: summary.final_accuracy,
                final_loss: summary.final_loss,
                mean_staleness: (pushes > 0).then(|| versions as f64 / pushes as f64),
                failure: None,
            })
        }
        // A learning rate that is too high for a mode is a result.
        Err(error @ (Error::Diverged { .. } | Error::PeerLost { .. })) => Ok(Figures {
            seed,
            run,
            time_to_target_seconds: None,
            train_seconds: 0.0,
            samples: 0,
            samples_per_second: 0.0,
            computing_share: 0.0,
            bytes_per_sample: 0.0,
            final_accuracy: 0.0,
            final_loss: f64::INFINITY,
            mean_staleness: None,
            failure: Some(error.to_string()),
        }),
        Err(error) => Err(error),
    }
}

/// The median; of an even number the lower middle one. What is missing counts as the greatest.
fn median(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let mut values: Vec<f64> = values.map(|value| value.unwrap_or(f64::INFINITY)).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().filter(|value| value.is_finite())
}

fn spread(values: impl Iterator<Item = Option<f64>> + Clone) -> Option<Spread> {
    let known = || values.clone().flatten();
    Some(Spread {
        median: median(values.clone())?,
        least: known().fold(f64::INFINITY, f64::min),
        greatest: known().fold(f64::NEG_INFINITY, f64::max),
    })
}

/// The runs of one mode, and the learning rate that suits it.
fn row(flags: &Flags, mode: &'static str, trials: &[Trial], figures: &[Figures]) -> Row {
    let of = |learning_rate: f64| {
        let all = trials.iter().zip(figures);
        let own = all.filter(move |(trial, _)| trial.mode == mode && trial.learning_rate == learning_rate);
        own.map(|(_, figures)| figures)
    };
    let reached =
        |learning_rate| of(learning_rate).filter(|run| run.time_to_target_seconds.is_some()).count();
    let grid: Vec<GridPoint> = flags
        .learning_rates
        .iter()
        .map(|&learning_rate| GridPoint {
            learning_rate,
            reached_target: reached(learning_rate),
            median_time_to_target_seconds: median(of(learning_rate).map(|run| run.time_to_target_seconds)),
            median_final_loss: median(of(learning_rate).map(|run| Some(run.final_loss))),
        })
        .collect();
    let cost = |point: &GridPoint| {
        let order = |value: Option<f64>| value.unwrap_or(f64::INFINITY);
        (order(point.median_time_to_target_seconds), order(point.median_final_loss))
    };
    let best = grid
        .iter()
        .map(cost)
        .enumerate()
        .min_by(|(_, a), (_, b)| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    let learning_rate = flags.learning_rates[best.map_or(0, |(place, _)| place)];
    let runs: Vec<Figures> = of(learning_rate).cloned().collect();
    let over = |figure: fn(&Figures) -> Option<f64>| {
        spread(runs.iter().map(move |run| figure(run).filter(|_| run.failure.is_none())))
    };
    Row {
        mode,
        learning_rate,
        reached_target: reached(learning_rate),
        seeds: runs.len(),
        time_to_target_seconds: over(|run| run.time_to_target_seconds),
        speed_up: None,
        samples_per_second: over(|run| Some(run.samples_per_second)),
        computing_share: over(|run| Some(run.computing_share)),
        bytes_per_sample: over(|run| Some(run.bytes_per_sample)),
        final_accuracy: over(|run| Some(run.final_accuracy)),
        final_loss: over(|run| Some(run.final_loss)),
        staleness_versions: over(|run| run.mean_staleness),
        grid,
        runs,
    }
}

fn speed_ups(rows: &mut [Row]) {
    let time = |row: &Row| row.time_to_target_seconds.map(|spread| spread.median);
    let Some(reference) = rows.iter().find(|row| row.mode == REFERENCE).and_then(time) else { return };
    for row in rows {
        row.speed_up = time(row).map(|seconds| reference / seconds);
    }
}

/// The table for people: medians, and in brackets the least and the greatest.
fn table(flags: &Flags, rows: &[Row]) -> String {
    let known = |spread: Option<Spread>, show: &dyn Fn(f64) -> String| match spread {
        None => "-".to_string(),
        Some(Spread { median, least, greatest }) if least == greatest => show(median),
        Some(Spread { median, least, greatest }) => {
            format!("{} [{}, {}]", show(median), show(least), show(greatest))
        }
    };
    let seconds = |value: f64| format!("{value:.1} s");
    let percent = |value: f64| format!("{:.1}%", 100.0 * value);
    let quality = |row: &Row| match flags.surrogate {
        true => known(row.final_loss, &|value| format!("{value:.4}")),
        false => known(row.final_accuracy, &percent),
    };
    let header = [
        "mode",
        "rate",
        "reached",
        "time to target",
        "speed-up",
        "computing",
        "bytes/sample",
        if flags.surrogate { "final loss" } else { "final accuracy" },
        "staleness",
    ]
    .map(String::from);
    let cells = rows.iter().map(|row| {
        [
            row.mode.to_string(),
            row.learning_rate.to_string(),
            format!("{}/{}", row.reached_target, row.seeds),
            known(row.time_to_target_seconds, &seconds),
            row.speed_up.map_or("-".into(), |times| format!("{times:.2}x")),
            known(row.computing_share, &percent),
            known(row.bytes_per_sample, &|value| format!("{value:.0}")),
            quality(row),
            known(row.staleness_versions, &|value| format!("{value:.1}")),
        ]
    });
    let all: Vec<[String; 9]> = std::iter::once(header).chain(cells).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut text = String::from("\n");
    for row in &all {
        let padded = row.iter().enumerate().map(|(column, cell)| format!("{cell:>0$}", width(column)));
        let _ = writeln!(text, "{}", padded.collect::<Vec<_>>().join("  "));
    }
    let _ = write!(
        text,
        "\nMedians of {} seeds [least, greatest]; the learning rate of each mode is the one of {:?} with the least median \
         time to the target. Speed-up is over {REFERENCE}.",
        flags.seeds, flags.learning_rates
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_counts_what_never_came_as_late() {
        assert_eq!(median([Some(3.0), None, Some(1.0)].into_iter()), Some(3.0));
        assert_eq!(median([None, None, Some(1.0)].into_iter()), None);
        assert_eq!(median([Some(4.0), Some(2.0)].into_iter()), Some(2.0));
        assert_eq!(median(std::iter::empty()), None);
    }
}
