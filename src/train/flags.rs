//! The flags of `esync-train`. The same names are the keys of `--config` files and, with `ESYNC_`, environment variables.

use super::heterogeneity::{SlowLinks, SlowRanks};
use crate::collective::{COLLECTIVE_CHOICES, Order};
use crate::data::{DATASET_NAMES, Split};
use crate::device::DeviceChoices;
use crate::error::{Error, Result};
use crate::learner::NETWORK_NAMES;
use crate::policy::bounded_delay::StalenessRule;
use crate::policy::streaming_diloco::FragmentMap;
use crate::policy::{MODE_NAMES, Outer, Preset, PushScale, Schedule, Weighting};
use crate::reduce::WireFormat;
use crate::runtime::server::Placement;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What `--transport` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportChoice {
    /// `threads` with --ranks; under a launcher `shm` if all ranks are on one host, else `mpi`.
    #[default]
    Auto,
    /// Ranks are threads of one process.
    Threads,
    /// Ranks are processes of one host that share memory: a launcher's, or with --ranks started by esync itself.
    Shm,
    /// Ranks are processes of an MPI job.
    Mpi,
    /// Ranks as for `auto`, each with a GPU, between which vectors travel by NCCL.
    Nccl,
}

/// What `--progress` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// A bar on a terminal, lines under a launcher or into a file.
    #[default]
    Auto,
    /// A progress bar on standard error.
    Bar,
    /// One plain line per report interval.
    Line,
    /// Neither.
    None,
}

/// A duration with a unit, as flags and files write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Seconds(pub Duration);

impl std::str::FromStr for Seconds {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let duration = humantime::parse_duration(text).map_err(|_| {
            Error::Usage(format!("`{text}` is no duration: write a unit, such as 30s or 500ms"))
        })?;
        if duration.is_zero() {
            return Err(Error::Usage("a duration of zero would end at once".into()));
        }
        Ok(Seconds(duration))
    }
}

impl TryFrom<String> for Seconds {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Seconds> for String {
    fn from(seconds: Seconds) -> String {
        seconds.to_string()
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_duration(self.0))
    }
}

fn names(names: &'static [&'static str]) -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(names)
}

/// The short help has no room for all modes.
fn mode_help() -> String {
    format!(
        "When workers exchange: `esync` fills the waiting time with local steps, `sync` exchanges after every step, `local` is \
         one worker alone [default: esync]\n\nAll modes: {}.",
        MODE_NAMES.join(", ")
    )
}

fn order(text: &str) -> Result<Order> {
    let all = [Order::Auto, Order::Canonical, Order::Rank, Order::Fastest];
    all.into_iter().find(|order| order.to_string() == text).ok_or_else(|| {
        Error::Usage(format!("unknown order `{text}`; choose one of: auto, canonical, rank, fastest"))
    })
}

/// Every flag, each only if it was given. A configuration file holds the same.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Flags {
    /// When workers exchange: `esync` fills the waiting time with local steps, `sync` exchanges after every step, `local` is one worker alone; --help names all [default: esync]
    #[arg(
        short,
        long,
        env = "ESYNC_MODE",
        value_parser = names(&MODE_NAMES),
        hide_possible_values = true,
        long_help = mode_help(),
        help_heading = "Synchronisation"
    )]
    pub mode: Option<String>,
    /// Upper bound of local steps in a round [default: none]
    #[arg(
        long,
        env = "ESYNC_MAX_LOCAL_STEPS",
        value_name = "STEPS",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub max_local_steps: Option<u64>,
    /// Local steps between two exchanges, for modes that fix them [default: the mode's]
    #[arg(
        long,
        env = "ESYNC_LOCAL_STEPS",
        value_name = "STEPS",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub local_steps: Option<u64>,
    /// Mode post-local-sgd: the share of the sample budget with one step a round [default: until the first decay, or 0.5]
    #[arg(
        long,
        env = "ESYNC_SWITCH_AT",
        value_name = "SHARE",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub switch_at: Option<f64>,
    /// Mode async-diloco: how long the server waits for further pushes after one [default: 0.15 of the slowest worker's step]
    #[arg(
        long,
        env = "ESYNC_GRACE_PERIOD",
        value_name = "TIME",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub grace_period: Option<Seconds>,
    /// Mode hermes: the z-score of the held-out loss that a push needs, below 0 [default: -1.3]
    #[arg(
        long,
        env = "ESYNC_GATE_THRESHOLD",
        value_name = "SCORE",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub gate_threshold: Option<f64>,
    /// Mode hermes: by how much it comes closer to 0 in an idle epoch [default: 0.3; the paper's is 0.1]
    #[arg(
        long,
        env = "ESYNC_GATE_DECAY",
        value_name = "SHARE",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub gate_decay: Option<f64>,
    /// Mode hermes: epochs without a push after which it begins to [default: 2; the paper's is 5]
    #[arg(
        long,
        env = "ESYNC_GATE_IDLE",
        value_name = "EPOCHS",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub gate_idle: Option<u64>,
    /// Mode hermes: held-out losses that are compared [default: 10]
    #[arg(
        long,
        env = "ESYNC_GATE_WINDOW",
        value_name = "LOSSES",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub gate_window: Option<usize>,
    /// Mode hermes: the most samples that a worker may hold [default: its shard]
    #[arg(
        long,
        env = "ESYNC_MEMORY_SAMPLES",
        value_name = "SAMPLES",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub memory_samples: Option<u64>,
    /// Mode hermes: stop after so many pushes without a new best loss (the paper: 25) [default: never]
    #[arg(
        long,
        env = "ESYNC_PATIENCE",
        value_name = "PUSHES",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub patience: Option<u64>,
    /// Mode adsp: how long a check period lasts (the paper: 60s) [default: 4 of the slowest worker's steps]
    #[arg(
        long,
        env = "ESYNC_CHECK_PERIOD",
        value_name = "TIME",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub check_period: Option<Seconds>,
    /// Mode adsp: the shortest computing time between two commits [default: a sixth of the check period]
    #[arg(
        long,
        env = "ESYNC_COMMIT_PERIOD",
        value_name = "TIME",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub commit_period: Option<Seconds>,
    /// Mode adsp: time between two searches for the rate of commits [default: 20 check periods]
    #[arg(
        long,
        env = "ESYNC_SEARCH_PERIOD",
        value_name = "TIME",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub search_period: Option<Seconds>,
    /// Mode adsp: Nesterov momentum at the server [default: 0]
    #[arg(
        long,
        env = "ESYNC_SERVER_MOMENTUM",
        value_name = "MOMENTUM",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub server_momentum: Option<f64>,
    /// How much a push counts at the server: sum, mean, staleness [default: mean; sum with dc-asgd]
    #[arg(long, env = "ESYNC_PUSH_SCALE", help_heading = "Synchronisation", hide_short_help = true)]
    pub push_scale: Option<PushScale>,
    /// Modes ssp and bounded-delay: the most steps or versions that a worker may be behind [default: 4, or twice the workers]
    ///
    /// In bounded-delay it is the bound of --staleness-rule fixed, the first bound of epoch (0), and the largest of the others.
    #[arg(
        long,
        env = "ESYNC_STALENESS",
        value_name = "BOUND",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub staleness: Option<u64>,
    /// Mode bounded-delay: where the bound comes from: fixed, epoch, weight-delta, spectral, gmm [default: fixed]
    #[arg(long, env = "ESYNC_STALENESS_RULE", help_heading = "Synchronisation", hide_short_help = true)]
    pub staleness_rule: Option<StalenessRule>,
    /// Rule epoch: by how many versions the bound grows with every pass over the data [default: the number of workers]
    #[arg(
        long,
        env = "ESYNC_STALENESS_STEP",
        value_name = "VERSIONS",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub staleness_step: Option<u64>,
    /// Rules weight-delta, spectral, gmm: what their figure is multiplied by [default: 100 for weight-delta, else 1]
    #[arg(
        long,
        env = "ESYNC_STALENESS_FACTOR",
        value_name = "FACTOR",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub staleness_factor: Option<f64>,
    /// Mode r2sp: whether mini-batches follow the workers' speeds [default: true]
    #[arg(
        long,
        env = "ESYNC_BATCH_TUNING",
        value_name = "BOOL",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub batch_tuning: Option<bool>,
    /// Mode dc-asgd: how strongly late gradients are corrected [default: 0.04, or 2 in the adaptive form]
    #[arg(
        long,
        env = "ESYNC_DC_LAMBDA",
        value_name = "LAMBDA",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub dc_lambda: Option<f64>,
    /// Mode dc-asgd: decay of the mean square, which chooses the adaptive form [default: none; the paper's is 0.95]
    #[arg(
        long,
        env = "ESYNC_DC_MEAN_SQUARE_DECAY",
        value_name = "DECAY",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub dc_mean_square_decay: Option<f64>,
    /// Mode easgd: how far the centre moves towards the workers while each exchanges once [default: 0.9]
    #[arg(
        long,
        env = "ESYNC_ELASTIC_BETA",
        value_name = "BETA",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub elastic_beta: Option<f64>,
    /// Mode adacomm: seconds after which the number of local steps is chosen again [default: 16 of the slowest worker's steps]
    #[arg(
        long,
        env = "ESYNC_ADAPT_SECONDS",
        value_name = "SECONDS",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub adapt_seconds: Option<f64>,
    /// Mode streaming-diloco: into how many fragments the parameters are cut [default: 2]
    #[arg(
        long,
        env = "ESYNC_FRAGMENTS",
        value_name = "COUNT",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub fragments: Option<u16>,
    /// Mode streaming-diloco: which layers make up a fragment: strided, or contiguous, which cuts through layers [default: strided]
    #[arg(
        long,
        env = "ESYNC_FRAGMENT_MAP",
        value_name = "MAP",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub fragment_map: Option<FragmentMap>,
    /// Mode streaming-diloco: steps during the exchange of a fragment [default: 1]
    #[arg(
        long,
        env = "ESYNC_OVERLAP_STEPS",
        value_name = "STEPS",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub overlap_steps: Option<u64>,
    /// Mode streaming-diloco: the share that a worker's own parameters keep when an exchange ends [default: 0.5]
    #[arg(
        long,
        env = "ESYNC_MIX",
        value_name = "SHARE",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub mix: Option<f64>,
    /// Exchange beside the next round's local steps, and apply the result one round late
    #[arg(
        long,
        env = "ESYNC_OVERLAP",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub overlap: Option<bool>,
    /// Where a mode's defaults come from: scaled to the job, or the paper's own numbers [default: scaled]
    #[arg(long, env = "ESYNC_PRESET", help_heading = "Synchronisation", hide_short_help = true)]
    pub preset: Option<Preset>,
    /// How deltas are weighed: uniform, samples, shard, steps [default: uniform]
    #[arg(long, env = "ESYNC_WEIGHTING", help_heading = "Synchronisation", hide_short_help = true)]
    pub weighting: Option<Weighting>,
    /// How their mean is applied: sgd, nesterov [default: the mode's; mostly sgd]
    #[arg(long, env = "ESYNC_OUTER", help_heading = "Synchronisation", hide_short_help = true)]
    pub outer: Option<Outer>,
    /// Learning rate of the exchange, or of the server in mode async-diloco [default: 1.0, or 0.7 with nesterov]
    #[arg(
        long,
        env = "ESYNC_GLOBAL_LR",
        value_name = "RATE",
        help_heading = "Synchronisation",
        hide_short_help = true
    )]
    pub global_lr: Option<f64>,

    /// The algorithm of an exchange [default: auto]
    #[arg(long, env = "ESYNC_COLLECTIVE", value_parser = names(COLLECTIVE_CHOICES), help_heading = "Communication")]
    pub collective: Option<String>,
    /// What `--collective auto` is to know of the cluster [default: what `esync probe` left in the cache]
    #[arg(
        long,
        env = "ESYNC_TOPOLOGY",
        value_name = "FILE",
        help_heading = "Communication",
        hide_short_help = true
    )]
    pub topology: Option<PathBuf>,
    /// The order of summation: auto, canonical, rank, fastest [default: auto]
    #[arg(long, env = "ESYNC_ORDER", value_parser = order, help_heading = "Communication", hide_short_help = true)]
    pub order: Option<Order>,
    /// What an exchange's numbers travel as: f32, f16, bf16, int8
    ///
    /// All but f32 round them, and are summed by the owner of each part, whatever --collective is [default: f32].
    #[arg(long, env = "ESYNC_WIRE", value_name = "FORMAT", help_heading = "Communication")]
    pub wire: Option<WireFormat>,
    /// Add what a narrow wire has rounded off deltas to the next ones [default: true with int8]
    #[arg(
        long,
        env = "ESYNC_ERROR_FEEDBACK",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        help_heading = "Communication",
        hide_short_help = true
    )]
    pub error_feedback: Option<bool>,
    /// Where the bytes travel [default: auto]
    #[arg(long, env = "ESYNC_TRANSPORT", value_enum, help_heading = "Communication")]
    pub transport: Option<TransportChoice>,
    /// How many ranks hold shards: of a mode's parameter server [default: 1], of the collective `parameter-server` [default: all]
    #[arg(
        long,
        env = "ESYNC_SERVERS",
        value_name = "RANKS",
        help_heading = "Communication",
        hide_short_help = true
    )]
    pub servers: Option<usize>,
    /// Where a mode's parameter server runs: shared (beside the first workers) or dedicated (the last ranks serve and do not train) [default: shared]
    #[arg(long, env = "ESYNC_SERVER_PLACEMENT", help_heading = "Communication", hide_short_help = true)]
    pub server_placement: Option<Placement>,
    /// Longest single wait for another rank [default: 5m]
    #[arg(long, env = "ESYNC_TIMEOUT", value_name = "TIME", help_heading = "Communication")]
    pub timeout: Option<Seconds>,

    /// Run as threads of one process, or processes with --transport shm
    #[arg(long, env = "ESYNC_RANKS", value_name = "N", help_heading = "Run")]
    pub ranks: Option<usize>,
    /// The model [default: mlp]
    #[arg(long, visible_alias = "model", env = "ESYNC_NETWORK", value_parser = names(&NETWORK_NAMES), help_heading = "Run")]
    pub network: Option<String>,
    /// Samples per mini-batch and worker [default: 32]
    #[arg(short, long, env = "ESYNC_BATCH_SIZE", value_name = "SAMPLES", help_heading = "Run")]
    pub batch_size: Option<usize>,
    /// Learning rate of the local optimiser [default: 0.05]
    #[arg(short, long, visible_aliases = ["lr", "local-lr"], env = "ESYNC_LEARNING_RATE", value_name = "RATE", help_heading = "Run")]
    pub learning_rate: Option<f64>,
    /// How it changes with the samples of all workers: constant, cosine, or steps:0.5,0.75:0.1 [default: constant]
    ///
    /// `steps` multiplies it by the last number at each of these shares of the sample budget.
    #[arg(
        long,
        env = "ESYNC_LR_SCHEDULE",
        value_name = "SCHEDULE",
        help_heading = "Run",
        hide_short_help = true
    )]
    pub lr_schedule: Option<Schedule>,
    /// The share of the sample budget over which it rises from 0 [default: 0]
    #[arg(long, env = "ESYNC_WARMUP", value_name = "SHARE", help_heading = "Run", hide_short_help = true)]
    pub warmup: Option<f64>,
    /// Momentum of the local optimiser [default: 0.9]
    #[arg(long, env = "ESYNC_MOMENTUM", help_heading = "Run", hide_short_help = true)]
    pub momentum: Option<f64>,
    /// Weight decay of the local optimiser [default: 0]
    #[arg(long, env = "ESYNC_WEIGHT_DECAY", help_heading = "Run", hide_short_help = true)]
    pub weight_decay: Option<f64>,
    /// Decides initial parameters, partition and shuffling [default: 1]
    #[arg(long, env = "ESYNC_SEED", help_heading = "Run", hide_short_help = true)]
    pub seed: Option<u64>,
    /// Where ranks compute: auto, cpu, cuda, cuda:N; or one for each rank, separated by commas [default: auto]
    ///
    /// `auto` is a GPU if there is one that can be used, and `cuda` the one of the rank's number on its host, modulo the number
    /// of GPUs. Ranks of one job may work on different devices.
    #[arg(long, env = "ESYNC_DEVICE", value_name = "DEVICE", help_heading = "Run", hide_short_help = true)]
    pub device: Option<DeviceChoices>,
    /// Threads of a rank's arithmetic [default: cores / ranks of the host, at least 1]
    #[arg(long, env = "ESYNC_THREADS", value_name = "N", help_heading = "Run", hide_short_help = true)]
    pub threads: Option<usize>,

    /// Budget: this many times the training set's samples, counted over all workers [default: 10]
    #[arg(long, env = "ESYNC_EPOCHS", help_heading = "Budget and target")]
    pub epochs: Option<f64>,
    /// Budget: this many samples over all workers
    #[arg(
        long,
        env = "ESYNC_MAX_SAMPLES",
        value_name = "SAMPLES",
        help_heading = "Budget and target",
        hide_short_help = true
    )]
    pub max_samples: Option<u64>,
    /// Budget: seconds of training
    #[arg(
        long,
        env = "ESYNC_MAX_SECONDS",
        value_name = "SECONDS",
        help_heading = "Budget and target",
        hide_short_help = true
    )]
    pub max_seconds: Option<f64>,
    /// Stop at this test accuracy (0 to 1); exit code 8 if the budget does not reach it
    #[arg(long, env = "ESYNC_TARGET_ACCURACY", value_name = "SHARE", help_heading = "Budget and target")]
    pub target_accuracy: Option<f64>,
    /// Stop at this test loss; exit code 8 if the budget does not reach it
    #[arg(
        long,
        env = "ESYNC_TARGET_LOSS",
        value_name = "LOSS",
        help_heading = "Budget and target",
        hide_short_help = true
    )]
    pub target_loss: Option<f64>,
    /// Evaluate every so many samples over all workers [default: 1024]
    #[arg(
        long,
        env = "ESYNC_EVAL_EVERY",
        value_name = "SAMPLES",
        help_heading = "Budget and target",
        hide_short_help = true
    )]
    pub eval_every: Option<u64>,

    /// The data set [default: digits]
    #[arg(long, env = "ESYNC_DATASET", value_parser = names(&DATASET_NAMES), help_heading = "Data")]
    pub dataset: Option<String>,
    /// Where its files are (`digits` is built in)
    ///
    /// `tinyshakespeare` is any text file, or input.txt in a directory.
    #[arg(long, env = "ESYNC_DATA_DIR", value_name = "DIR", help_heading = "Data")]
    pub data_dir: Option<PathBuf>,
    /// How workers share it: iid, by-class, contiguous, dirichlet:ALPHA [default: iid]
    #[arg(long, env = "ESYNC_SPLIT", help_heading = "Data", hide_short_help = true)]
    pub split: Option<Split>,

    /// Make ranks slower by sleeping: 3:4x (four times its step's time), 7:200ms (more each step)
    #[arg(
        long,
        env = "ESYNC_SLOW",
        value_name = "RANK:AMOUNT,…",
        help_heading = "Heterogeneity on one machine"
    )]
    pub slow: Option<SlowRanks>,
    /// Delay every message that a rank sends or receives: 2:5ms
    #[arg(
        long,
        env = "ESYNC_SLOW_LINK",
        value_name = "RANK:TIME,…",
        help_heading = "Heterogeneity on one machine",
        hide_short_help = true
    )]
    pub slow_link: Option<SlowLinks>,

    /// Directory for the results, never overwritten [default: runs/TIME-MODE]
    #[arg(long, env = "ESYNC_OUT", value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// How progress is shown [default: auto]
    #[arg(long, env = "ESYNC_PROGRESS", value_enum, help_heading = "Output", hide_short_help = true)]
    pub progress: Option<Progress>,
    /// Time between two progress lines [default: 1s]
    #[arg(
        long,
        env = "ESYNC_REPORT_EVERY",
        value_name = "TIME",
        help_heading = "Output",
        hide_short_help = true
    )]
    pub report_every: Option<Seconds>,
}

impl Flags {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// `Usage` with line and column for unknown keys and unusable values.
    pub fn read(path: &std::path::Path) -> Result<Flags> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::Usage(format!("--config {}: {e}", path.display())))?;
        toml::from_str(&text).map_err(|e| Error::Usage(format!("--config {}: {e}", path.display())))
    }

    /// These flags, and those of `file` where these say nothing.
    ///
    /// # Errors
    /// `Training` never; the result is `Usage` if the two cannot be merged.
    pub fn over(self, file: Flags) -> Result<Flags> {
        // Both as tables: a field that is added cannot be forgotten here.
        let table = |flags: &Flags| {
            toml::Table::try_from(flags)
                .map_err(|e| Error::Usage(format!("the flags cannot be written as TOML: {e}")))
        };
        let mut merged = table(&file)?;
        merged.extend(table(&self)?);
        merged
            .try_into()
            .map_err(|e| Error::Usage(format!("flags and configuration file do not fit together: {e}")))
    }
}
