//! The directory of a comparison stands for one run of each of its modes.

use super::read;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What `esync sim --compare` writes beside the runs; more than this is in it.
pub(super) const FILE_NAME: &str = "comparison.json";

#[derive(Deserialize)]
struct Comparison {
    modes: Vec<Mode>,
}

#[derive(Deserialize)]
struct Mode {
    mode: String,
    /// The one that was chosen for it.
    learning_rate: f64,
    /// At that rate, one for each seed.
    runs: Vec<Trial>,
}

#[derive(Deserialize)]
struct Trial {
    seed: u64,
    time_to_target_seconds: Option<f64>,
    failure: Option<String>,
}

/// The directories to draw: each that is given, or, for one of a comparison, the run of every mode at its learning rate whose
/// time to the target is the median of its seeds. Also what was left out, and why.
///
/// # Errors
/// `Data` with file and line for a comparison that cannot be read; `Usage` for one in which every run failed.
pub(super) fn runs(given: &[PathBuf]) -> Result<(Vec<PathBuf>, Vec<String>)> {
    let (mut folders, mut notes) = (Vec::new(), Vec::new());
    for folder in given {
        let path = folder.join(FILE_NAME);
        if !path.is_file() {
            folders.push(folder.clone());
            continue;
        }
        let before = folders.len();
        for mode in read::json::<Comparison>(&path)?.modes {
            match mode.median() {
                Some(trial) => folders.push(mode.folder(folder, trial)),
                None => notes.push(format!("{}: all runs of {} failed", path.display(), mode.mode)),
            }
        }
        if folders.len() == before {
            return Err(Error::Usage(format!("{} has no run that can be drawn", path.display())));
        }
    }
    Ok((folders, notes))
}

impl Mode {
    /// The run in the middle, by time to the target; the lower one of two. What never came counts as last.
    fn median(&self) -> Option<&Trial> {
        let mut trials: Vec<&Trial> = self.runs.iter().filter(|trial| trial.failure.is_none()).collect();
        let seconds = |trial: &Trial| trial.time_to_target_seconds.unwrap_or(f64::INFINITY);
        trials.sort_by(|a, b| seconds(a).total_cmp(&seconds(b)));
        trials.get(trials.len().saturating_sub(1) / 2).copied()
    }

    /// Beside the file, wherever the comparison has been moved.
    fn folder(&self, comparison: &Path, trial: &Trial) -> PathBuf {
        let rate = format!("rate-{}", self.learning_rate);
        comparison.join(&self.mode).join(rate).join(format!("seed-{}", trial.seed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_in_the_middle_stands_for_its_mode() {
        let trial = |(seed, seconds): (u64, Option<f64>)| Trial {
            seed,
            time_to_target_seconds: seconds,
            failure: (seed == 9).then(|| "diverged".into()),
        };
        let median = |trials: &[(u64, Option<f64>)]| {
            let runs = trials.iter().copied().map(trial).collect();
            let mode = Mode { mode: "esync".into(), learning_rate: 0.05, runs };
            mode.median().map(|trial| mode.folder("all".as_ref(), trial))
        };
        let is = |seed: u64| Some(PathBuf::from(format!("all/esync/rate-0.05/seed-{seed}")));
        assert_eq!(median(&[(1, Some(3.0)), (2, Some(1.0)), (3, Some(2.0))]), is(3));
        assert_eq!(median(&[(1, None), (2, Some(1.0)), (3, Some(2.0))]), is(3));
        assert_eq!(median(&[(1, None), (2, Some(1.0)), (9, Some(0.5))]), is(2));
        assert_eq!(median(&[(9, None)]), None);
    }
}
