//! What can be chosen about the policies. The names are those of the flags.

use super::Schedule;
use super::bounded_delay::{self, DataSample, StalenessRule};
use super::esync::Planning;
use super::streaming_diloco::FragmentMap;
use super::{PushScale, by_name};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize, Serializer};
use std::{fmt, str::FromStr, sync::Arc, time::Duration};

/// Where defaults come from that papers fix in seconds or steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Seconds are multiples of the straggler's measured step, and steps fit jobs of some dozens: small jobs work too.
    #[default]
    Scaled,
    /// The papers' own numbers.
    Paper,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Preset; 2] = [Self::Scaled, Self::Paper];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scaled => "scaled",
            Self::Paper => "paper",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        by_name("preset", text, &Self::ALL, Self::name)
    }
}

/// The policies' options, each only if it was given: a mode has defaults of its own, and refuses what has no meaning in it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyOptions {
    /// Where defaults come from; the scaled ones, if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    // Rounds.
    /// `esync`: the most local steps in a round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_local_steps: Option<u64>,
    /// `esync`: who decides. Not a flag: the runtime says whether there is a state server.
    #[serde(skip)]
    pub planning: Option<Planning>,
    /// `local-sgd` and its kin, `diloco` and its kin, `easgd`: local steps between two exchanges or pushes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_steps: Option<u64>,
    /// `post-local-sgd`: the share of the sample budget at which rounds become longer than one step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switch_at: Option<f64>,
    /// The loss that ends training, if one does. Not a flag of the policies: `adsp` compares its probes down to it.
    #[serde(skip)]
    pub target_loss: Option<f64>,
    /// How the learning rate changes. Not a flag of the policies: the job has one, and some policies go by it.
    #[serde(skip)]
    pub schedule: Option<Schedule>,
    /// The share of the sample budget over which the learning rate rises from 0. Not a flag of the policies either.
    #[serde(skip)]
    pub warmup: f64,
    /// `adacomm`: seconds after which the number of local steps is chosen again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapt_seconds: Option<f64>,
    /// `streaming-diloco`: into how many fragments the parameters are cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragments: Option<u16>,
    /// `streaming-diloco`: which parameters make up a fragment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragment_map: Option<FragmentMap>,
    /// `streaming-diloco`: steps during the exchange of a fragment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap_steps: Option<u64>,
    /// `streaming-diloco`: the share that a worker's own parameters keep when an exchange ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<f64>,
    /// Rounds of deltas: the exchange of a round runs beside the next round's steps.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub overlap: bool,
    // Servers.
    /// `async`, `dc-asgd`, `ssp`, `bounded-delay`, `r2sp`: how much a push counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push_scale: Option<PushScale>,
    /// `ssp`: the bound in clocks. `bounded-delay`: the bound in versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staleness: Option<u64>,
    /// `bounded-delay`: where the bound comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staleness_rule: Option<StalenessRule>,
    /// `bounded-delay` with the rule `epoch`: by how many versions the bound grows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staleness_step: Option<u64>,
    /// `bounded-delay` with the rules `weight-delta`, `spectral` and `gmm`: their figure is multiplied by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staleness_factor: Option<f64>,
    /// `bounded-delay`: for the rules that need one ([`StalenessRule::needs_data`]). Not a flag: the driver draws it.
    #[serde(skip)]
    pub data_sample: Option<Arc<DataSample>>,
    /// `r2sp`: whether mini-batches follow speeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_tuning: Option<bool>,
    /// `dc-asgd`: λ, or λ₀ of the adaptive form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dc_lambda: Option<f64>,
    /// `dc-asgd`: decay of the mean square, which chooses the adaptive form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dc_mean_square_decay: Option<f64>,
    /// `easgd`: β, by which the centre moves towards the workers' mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elastic_beta: Option<f64>,
    /// `async-diloco`: how long the server waits for further pushes after one has arrived.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub grace_period: Option<Duration>,
    /// `async-diloco`: the outer learning rate. In modes of rounds that is an option of the exchange, under the same flag.
    #[serde(skip)]
    pub global_learning_rate: Option<f64>,
    /// `hermes`: the z-score that a loss must not exceed to be pushed (α).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate_threshold: Option<f64>,
    /// `hermes`: the share by which it comes closer to 0 in an idle epoch (β).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate_decay: Option<f64>,
    /// `hermes`: epochs without a push after which it begins to (λ).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate_idle: Option<u64>,
    /// `hermes`: losses that are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate_window: Option<usize>,
    /// `hermes`: the most samples that a worker may hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_samples: Option<u64>,
    /// `hermes`: pushes without a new best loss after which training ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
    /// `adsp`: how long a check period lasts (Γ).
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub check_period: Option<Duration>,
    /// `adsp`: the shortest time of computing between two commits (T_min).
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub commit_period: Option<Duration>,
    /// `adsp`: the time between two searches for the rate of commits.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub search_period: Option<Duration>,
    /// `adsp`: explicit momentum at the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_momentum: Option<f64>,
}

/// A duration with its unit, as flags and files write it.
fn as_text<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(duration.unwrap_or_default()))
}

/// An option: its flag, whether it was given, and the modes in which it has a meaning.
struct Use {
    flag: &'static str,
    given: bool,
    modes: &'static [&'static str],
}

impl PolicyOptions {
    /// The preset in force.
    pub fn preset(&self) -> Preset {
        self.preset.unwrap_or_default()
    }

    /// Refuses options that have no meaning in `mode`.
    ///
    /// # Errors
    /// `Usage` with the option and the modes that it belongs to.
    pub fn check_for(&self, mode: &str) -> Result<()> {
        if self.overlap && mode == "sync" {
            return Err(Error::Usage(
                "--overlap applies deltas a round late, and --mode sync averages gradients: use --mode local-sgd \
                 --local-steps 1, which averages the deltas of single steps"
                    .into(),
            ));
        }
        match self.uses().iter().find(|used| used.given && !used.modes.contains(&mode)) {
            None => bounded_delay::check(self),
            Some(used) => Err(Error::Usage(format!(
                "--{} has no meaning in --mode {mode}; it belongs to {}",
                used.flag,
                used.modes.join(", ")
            ))),
        }
    }

    /// One line for each option that not every mode has.
    fn uses(&self) -> Vec<Use> {
        let of = |flag, given, modes| Use { flag, given, modes };
        vec![
            of("max-local-steps", self.max_local_steps.is_some(), &["esync"]),
            of(
                "local-steps",
                self.local_steps.is_some(),
                &[
                    "local-sgd",
                    "post-local-sgd",
                    "adacomm",
                    "diloco",
                    "streaming-diloco",
                    "async-diloco",
                    "easgd",
                ],
            ),
            of("switch-at", self.switch_at.is_some(), &["post-local-sgd"]),
            of(
                "preset",
                self.preset.is_some(),
                &[
                    "post-local-sgd",
                    "adacomm",
                    "diloco",
                    "streaming-diloco",
                    "async-diloco",
                    "hermes",
                    "adsp",
                ],
            ),
            of("grace-period", self.grace_period.is_some(), &["async-diloco"]),
            of("gate-threshold", self.gate_threshold.is_some(), &["hermes"]),
            of("gate-decay", self.gate_decay.is_some(), &["hermes"]),
            of("gate-idle", self.gate_idle.is_some(), &["hermes"]),
            of("gate-window", self.gate_window.is_some(), &["hermes"]),
            of("memory-samples", self.memory_samples.is_some(), &["hermes"]),
            of("patience", self.patience.is_some(), &["hermes"]),
            of("check-period", self.check_period.is_some(), &["adsp"]),
            of("commit-period", self.commit_period.is_some(), &["adsp"]),
            of("search-period", self.search_period.is_some(), &["adsp"]),
            of("server-momentum", self.server_momentum.is_some(), &["adsp"]),
            of(
                "push-scale",
                self.push_scale.is_some(),
                &["async", "dc-asgd", "ssp", "bounded-delay", "r2sp"],
            ),
            of("staleness", self.staleness.is_some(), &["ssp", "bounded-delay"]),
            of("staleness-rule", self.staleness_rule.is_some(), &["bounded-delay"]),
            of("staleness-step", self.staleness_step.is_some(), &["bounded-delay"]),
            of("staleness-factor", self.staleness_factor.is_some(), &["bounded-delay"]),
            of("batch-tuning", self.batch_tuning.is_some(), &["r2sp"]),
            of("dc-lambda", self.dc_lambda.is_some(), &["dc-asgd"]),
            of("dc-mean-square-decay", self.dc_mean_square_decay.is_some(), &["dc-asgd"]),
            of("elastic-beta", self.elastic_beta.is_some(), &["easgd"]),
            of("adapt-seconds", self.adapt_seconds.is_some(), &["adacomm"]),
            of("fragments", self.fragments.is_some(), &["streaming-diloco"]),
            of("fragment-map", self.fragment_map.is_some(), &["streaming-diloco"]),
            of("overlap-steps", self.overlap_steps.is_some(), &["streaming-diloco"]),
            of("mix", self.mix.is_some(), &["streaming-diloco"]),
            of("overlap", self.overlap, &["esync", "local-sgd", "post-local-sgd", "adacomm", "diloco"]),
        ]
    }
}
