//! The flags of `esync sim`.

use super::options::Deaths;
use crate::error::{Error, Result};
use crate::train;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// What `--on-death` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OnDeath {
    /// The run ends when somebody needs the dead worker, as a real one does (a parameter server goes on).
    #[default]
    End,
    /// The others exchange among themselves.
    GoOn,
}

impl From<OnDeath> for Deaths {
    fn from(on_death: OnDeath) -> Deaths {
        match on_death {
            OnDeath::End => Deaths::EndRun,
            OnDeath::GoOn => Deaths::LeaveSurvivors,
        }
    }
}

/// The flags of a simulation: those of `esync-train`, and the cluster's.
#[derive(Debug, Clone, Default, Args)]
// Those of `esync-train` are a group of the same name.
#[group(id = "simulation")]
pub struct Flags {
    /// The cluster: a file, or homogeneous, 1:1:3, esync-12, wbsp-10, edge-18, async-diloco-4
    #[arg(long, value_name = "NAME|FILE", default_value = "homogeneous", help_heading = "Simulation")]
    pub cluster: String,
    /// Print the cluster's file and exit
    #[arg(long, help_heading = "Simulation")]
    pub show_cluster: bool,
    /// Multiply all step times of the cluster by this
    #[arg(long, value_name = "FACTOR", help_heading = "Simulation")]
    pub step_seconds: Option<f64>,
    /// What happens when a worker dies and the others exchange with it
    #[arg(long, value_enum, default_value = "end", help_heading = "Simulation")]
    pub on_death: OnDeath,
    /// Train a noisy quadratic instead of a network: no libtorch, and thousands of workers
    #[arg(long, help_heading = "Simulation")]
    pub surrogate: bool,
    /// Parameters of the surrogate
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = "Simulation")]
    pub dimension: usize,
    /// Standard deviation of one sample's gradient of the surrogate, in each dimension
    #[arg(long, value_name = "DEVIATION", default_value_t = 1.0, help_heading = "Simulation")]
    pub noise: f64,
    /// Compare these modes: one target, one budget, one grid of learning rates for all
    #[arg(long, value_name = "MODE,…", value_delimiter = ',', help_heading = "Comparison")]
    pub compare: Vec<String>,
    /// Run every choice with so many seeds, from --seed on
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Comparison")]
    pub seeds: u64,
    /// The grid: every mode takes the one with the least median time to the target
    #[arg(
        long,
        value_name = "RATE,…",
        value_delimiter = ',',
        default_value = "0.01,0.02,0.05,0.1",
        help_heading = "Comparison"
    )]
    pub learning_rates: Vec<f64>,
    /// Simulations at a time
    #[arg(long, value_name = "THREADS", default_value_t = 1, help_heading = "Comparison")]
    pub jobs: usize,
    /// Read flags of esync-train from a TOML file; flags and environment win over it
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub config: Option<PathBuf>,
    /// What trains.
    #[command(flatten)]
    pub train: train::Flags,
}

/// The keys with which a simulation's `config.toml` says more than `esync-train`'s.
const OWN_KEYS: [&str; 5] = ["cluster", "step-seconds", "surrogate", "dimension", "noise"];

impl Flags {
    /// With the file of `--config` where the flags say nothing. Of a simulation's own `config.toml` the cluster and the
    /// surrogate are left out: those are flags.
    ///
    /// # Errors
    /// `Usage` with the place.
    pub fn with_file(mut self) -> Result<Flags> {
        if let Some(path) = &self.config {
            self.train = self.train.over(read(path)?)?;
        }
        Ok(self)
    }

    /// Refuses what has no meaning on a virtual clock.
    ///
    /// # Errors
    /// `Usage` with the flag, and what to use instead.
    pub fn check(&self) -> Result<()> {
        let train = &self.train;
        let given = [
            ("--ranks", train.ranks.is_some(), "the cluster says how many workers there are"),
            ("--transport", train.transport.is_some(), "nothing travels"),
            ("--timeout", train.timeout.is_some(), "nobody waits"),
            ("--slow", train.slow.is_some(), "the cluster says how fast workers are"),
            ("--slow-link", train.slow_link.is_some(), "the cluster says how fast links are"),
            ("--topology", train.topology.is_some(), "the cluster is the topology"),
            (
                "--server-placement",
                train.server_placement.is_some(),
                "the server is where the cluster's [server] says, on none of the workers' hosts",
            ),
        ];
        if let Some((flag, _, why)) = given.into_iter().find(|(_, is_given, _)| *is_given) {
            return Err(Error::Usage(format!("{flag} has no meaning in a simulation: {why}")));
        }
        if self.surrogate {
            let given = [
                ("--network", train.network.is_some()),
                ("--dataset", train.dataset.is_some()),
                ("--data-dir", train.data_dir.is_some()),
                ("--split", train.split.is_some()),
                ("--target-accuracy", train.target_accuracy.is_some()),
            ];
            if let Some((flag, _)) = given.into_iter().find(|(_, is_given)| *is_given) {
                return Err(Error::Usage(format!(
                    "{flag} has no meaning with --surrogate, which has no data and classifies nothing"
                )));
            }
            if !(self.noise >= 0.0 && self.noise.is_finite()) {
                return Err(Error::Usage(format!("--noise is {}; it must not be negative", self.noise)));
            }
        }
        if self.jobs == 0 || self.seeds == 0 {
            return Err(Error::Usage("--jobs and --seeds must be at least 1".into()));
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<train::Flags> {
    let wrong = |error: String| Error::Usage(format!("--config {}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let own = |line: &str| {
        let key = line.split('=').next().unwrap_or_default().trim();
        OWN_KEYS.contains(&key)
    };
    // Lines stay where they are, so that errors name the right ones.
    let text: Vec<&str> = text.lines().map(|line| if own(line) { "" } else { line }).collect();
    toml::from_str(&text.join("\n")).map_err(|error| wrong(error.to_string()))
}
