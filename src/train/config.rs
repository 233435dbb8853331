//! The resolved configuration: every value known, checked against each other.

use super::flags::{Flags, Progress, Seconds, TransportChoice};
use super::heterogeneity::{SlowLinks, SlowRanks};
use crate::collective::{
    Auto, COLLECTIVE_CHOICES, Collective, CommunicatorOptions, Order, collective_by_name,
};
use crate::data::{DATASET_NAMES, Split};
use crate::device::DeviceChoices;
use crate::error::{Error, Result};
use crate::learner::NETWORK_NAMES;
use crate::policy::streaming_diloco::{self, Settings};
use crate::policy::{LearningRate, Mode, Outer, PolicyOptions, Schedule, Scheme, Weighting};
use crate::reduce::WireFormat;
use crate::runtime::Fragments;
use crate::runtime::server::{Placement, ServerOptions};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What runs. The fields are the flags of the same names.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each field is the flag of the same name, documented there")]
pub struct Config {
    pub mode: String,
    #[serde(flatten)]
    pub policy: PolicyOptions,
    pub weighting: Weighting,
    pub outer: Outer,
    pub global_lr: f64,
    pub collective: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<PathBuf>,
    pub order: Order,
    pub wire: WireFormat,
    pub error_feedback: bool,
    pub transport: TransportChoice,
    pub device: DeviceChoices,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub servers: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_placement: Option<Placement>,
    pub timeout: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranks: Option<usize>,
    pub network: String,
    pub batch_size: usize,
    pub learning_rate: f64,
    pub lr_schedule: Schedule,
    pub warmup: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    pub seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_samples: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_loss: Option<f64>,
    pub eval_every: u64,
    pub dataset: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    pub split: Split,
    pub slow: SlowRanks,
    pub slow_link: SlowLinks,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    pub progress: Progress,
    pub report_every: Seconds,
}

/// Ten passes, if no budget is given at all.
const DEFAULT_EPOCHS: f64 = 10.0;

impl Config {
    /// Fills in the defaults and checks every value.
    ///
    /// # Errors
    /// `Usage` with the flag, its value and what it must be.
    pub fn resolve(flags: Flags) -> Result<Config> {
        let no_budget = flags.epochs.is_none() && flags.max_samples.is_none() && flags.max_seconds.is_none();
        let mode = Mode::by_name(flags.mode.as_deref().unwrap_or("esync"))?;
        let wire = flags.wire.unwrap_or(mode.default_wire());
        let outer = flags.outer.unwrap_or(mode.default_outer());
        let global_lr = flags.global_lr.unwrap_or(outer.default_learning_rate());
        let lr_schedule = flags.lr_schedule.unwrap_or_default();
        let config = Config {
            mode: mode.name.into(),
            policy: PolicyOptions {
                preset: flags.preset,
                max_local_steps: flags.max_local_steps,
                local_steps: flags.local_steps,
                switch_at: flags.switch_at,
                adapt_seconds: flags.adapt_seconds,
                fragments: flags.fragments,
                fragment_map: flags.fragment_map,
                overlap_steps: flags.overlap_steps,
                mix: flags.mix,
                overlap: flags.overlap.unwrap_or(false),
                grace_period: flags.grace_period.map(|seconds| seconds.0),
                global_learning_rate: mode.has_outer_server().then_some(global_lr),
                gate_threshold: flags.gate_threshold,
                gate_decay: flags.gate_decay,
                gate_idle: flags.gate_idle,
                gate_window: flags.gate_window,
                memory_samples: flags.memory_samples,
                patience: flags.patience,
                check_period: flags.check_period.map(|seconds| seconds.0),
                commit_period: flags.commit_period.map(|seconds| seconds.0),
                search_period: flags.search_period.map(|seconds| seconds.0),
                server_momentum: flags.server_momentum,
                target_loss: flags.target_loss,
                schedule: Some(lr_schedule.clone()),
                warmup: flags.warmup.unwrap_or(0.0),
                push_scale: flags.push_scale,
                staleness: flags.staleness,
                staleness_rule: flags.staleness_rule,
                staleness_step: flags.staleness_step,
                staleness_factor: flags.staleness_factor,
                batch_tuning: flags.batch_tuning,
                dc_lambda: flags.dc_lambda,
                dc_mean_square_decay: flags.dc_mean_square_decay,
                elastic_beta: flags.elastic_beta,
                ..PolicyOptions::default()
            },
            weighting: flags.weighting.unwrap_or_default(),
            outer,
            global_lr,
            collective: flags.collective.unwrap_or_else(|| "auto".into()),
            topology: flags.topology,
            order: flags.order.unwrap_or_default(),
            wire,
            error_feedback: flags.error_feedback.unwrap_or(wire == WireFormat::Int8 && averages_deltas(mode)),
            transport: flags.transport.unwrap_or_default(),
            device: flags.device.unwrap_or_default(),
            servers: flags.servers,
            server_placement: flags.server_placement,
            timeout: flags.timeout.unwrap_or(Seconds(Duration::from_secs(300))),
            ranks: flags.ranks,
            network: flags.network.unwrap_or_else(|| "mlp".into()),
            batch_size: flags.batch_size.unwrap_or(32),
            learning_rate: flags.learning_rate.unwrap_or(0.05),
            lr_schedule,
            warmup: flags.warmup.unwrap_or(0.0),
            momentum: flags.momentum.unwrap_or(if mode.name == "dc-asgd" { 0.0 } else { 0.9 }),
            weight_decay: flags.weight_decay.unwrap_or(0.0),
            seed: flags.seed.unwrap_or(1),
            threads: flags.threads,
            epochs: flags.epochs.or(no_budget.then_some(DEFAULT_EPOCHS)),
            max_samples: flags.max_samples,
            max_seconds: flags.max_seconds,
            target_accuracy: flags.target_accuracy,
            target_loss: flags.target_loss,
            eval_every: flags.eval_every.unwrap_or(1024),
            dataset: flags.dataset.unwrap_or_else(|| "digits".into()),
            data_dir: flags.data_dir,
            split: flags.split.unwrap_or(Split::Iid),
            slow: flags.slow.unwrap_or_default(),
            slow_link: flags.slow_link.unwrap_or_default(),
            out: flags.out,
            progress: flags.progress.unwrap_or_default(),
            report_every: flags.report_every.unwrap_or(Seconds(Duration::from_secs(1))),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let positive = |flag: &str, value: Option<f64>| match value {
            Some(value) if !(value > 0.0 && value.is_finite()) => {
                Err(Error::Usage(format!("--{flag} is {value}; it must be a positive number")))
            }
            _ => Ok(()),
        };
        // The command line has checked its own; a file holds any text.
        let known = |flag: &str, value: &str, names: &[&str]| match names.contains(&value) {
            true => Ok(()),
            false => {
                Err(Error::Usage(format!("--{flag} is `{value}`; it must be one of: {}", names.join(", "))))
            }
        };
        known("collective", &self.collective, COLLECTIVE_CHOICES)?;
        known("network", &self.network, &NETWORK_NAMES)?;
        known("dataset", &self.dataset, &DATASET_NAMES)?;
        positive("learning-rate", Some(self.learning_rate))?;
        positive("global-lr", Some(self.global_lr))?;
        positive("epochs", self.epochs)?;
        positive("max-seconds", self.max_seconds)?;
        positive("max-samples", self.max_samples.map(|n| n as f64))?;
        positive("max-local-steps", self.policy.max_local_steps.map(|n| n as f64))?;
        positive("adapt-seconds", self.policy.adapt_seconds)?;
        positive("local-steps", self.policy.local_steps.map(|n| n as f64))?;
        positive("gate-idle", self.policy.gate_idle.map(|n| n as f64))?;
        positive("memory-samples", self.policy.memory_samples.map(|n| n as f64))?;
        positive("patience", self.policy.patience.map(|n| n as f64))?;
        positive("batch-size", Some(self.batch_size as f64))?;
        positive("eval-every", Some(self.eval_every as f64))?;
        positive("ranks", self.ranks.map(|n| n as f64))?;
        positive("threads", self.threads.map(|n| n as f64))?;
        positive("target-loss", self.target_loss)?;
        let share = |flag: &str, value: f64, upper: &str, is_fine: bool| match is_fine {
            true => Ok(()),
            false => Err(Error::Usage(format!("--{flag} is {value}; it must be from 0 to {upper}"))),
        };
        share("momentum", self.momentum, "below 1", (0.0..1.0).contains(&self.momentum))?;
        let decay = self.weight_decay;
        share("weight-decay", decay, "any number", decay >= 0.0 && decay.is_finite())?;
        let switch_at = self.policy.switch_at.unwrap_or(0.0);
        let accuracy = self.target_accuracy.unwrap_or(1.0);
        share("target-accuracy", accuracy, "1", (0.0..=1.0).contains(&accuracy))?;
        if self.mode == "sync" && (self.outer != Outer::Sgd || self.global_lr != 1.0) {
            return Err(Error::Usage(
                "--mode sync averages gradients: --outer and --global-lr change how deltas are applied; use --learning-rate, \
                 or --mode esync"
                    .into(),
            ));
        }
        let server_momentum = self.policy.server_momentum.unwrap_or(0.0);
        share("server-momentum", server_momentum, "below 1", (0.0..1.0).contains(&server_momentum))?;
        let gate_decay = self.policy.gate_decay.unwrap_or(0.0);
        share("gate-decay", gate_decay, "1", (0.0..=1.0).contains(&gate_decay))?;
        if let Some(threshold) =
            self.policy.gate_threshold.filter(|&score| !(score < 0.0 && score.is_finite()))
        {
            return Err(Error::Usage(format!(
                "--gate-threshold is {threshold}; it must be below 0, or worse losses would count as better"
            )));
        }
        if let Some(window) = self.policy.gate_window.filter(|&window| window < 2) {
            return Err(Error::Usage(format!(
                "--gate-window is {window}; it must be at least 2: one loss has nothing to be compared with"
            )));
        }
        if self.mode == "dc-asgd" && (self.momentum != 0.0 || self.weight_decay != 0.0) {
            return Err(Error::Usage(
                "--mode dc-asgd takes plain SGD steps on the server: --momentum and --weight-decay must be 0 there, or take --mode \
                 async"
                    .into(),
            ));
        }
        share("switch-at", switch_at, "1", (0.0..=1.0).contains(&switch_at))?;
        share("warmup", self.warmup, "1", (0.0..=1.0).contains(&self.warmup))?;
        let is_scheduled = self.lr_schedule != Schedule::Constant || self.warmup > 0.0;
        if is_scheduled && self.epochs.is_none() && self.max_samples.is_none() {
            return Err(Error::Usage(
                "--lr-schedule and --warmup go by shares of the sample budget, and there is none: give --epochs or --max-samples"
                    .into(),
            ));
        }
        self.policy.check_for(&self.mode)?;
        if self.error_feedback
            && (self.wire == WireFormat::F32 || !averages_deltas(Mode::by_name(&self.mode)?))
        {
            return Err(Error::Usage(format!(
                "--error-feedback makes up for what a narrow wire rounds off deltas; here are --wire {} and --mode {}",
                self.wire, self.mode
            )));
        }
        if self.mode == "streaming-diloco" {
            Settings::from_options(&self.policy)?;
        }
        self.check_server()?;
        if self.transport == TransportChoice::Mpi && self.ranks.is_some() {
            return Err(Error::Usage(
                "--ranks makes threads of one process; with --transport mpi the launcher says how many: mpirun -n N".into(),
            ));
        }
        Ok(())
    }

    /// What depends on the number of ranks.
    ///
    /// # Errors
    /// `Usage`; `Refused` if the collective cannot do what is asked.
    pub fn check_for_size(&self, size: usize) -> Result<()> {
        self.slow.of(0, size)?;
        self.slow_link.delays(size)?;
        if self.mode == "local" && size > 1 {
            return Err(Error::Usage(format!(
                "--mode local is one worker alone, and here are {size} ranks; use sync or esync, or one rank"
            )));
        }
        if let Some(servers) = self.servers.filter(|servers| !(1..=size).contains(servers)) {
            return Err(Error::Usage(format!(
                "--servers is {servers}; with {size} ranks it must be 1 to {size}"
            )));
        }
        let workers = self.workers(size);
        if workers == 0 {
            return Err(Error::Usage(format!(
                "--server-placement dedicated with {} of {size} ranks as servers leaves none to train",
                self.server_options().servers
            )));
        }
        if let Some((rank, _)) = self.slow.0.iter().find(|(rank, _)| *rank >= workers) {
            return Err(Error::Usage(format!(
                "--slow names rank {rank}, which serves and does not train (--server-placement dedicated)"
            )));
        }
        Ok(())
    }

    /// What belongs to parameter servers alone, or not to them.
    fn check_server(&self) -> Result<()> {
        let mode = Mode::by_name(&self.mode)?;
        if mode.scheme == Scheme::Server {
            let refuse = |flag: &str, why: &str| {
                Err(Error::Usage(format!("--{flag} has no meaning in --mode {}, {why}", self.mode)))
            };
            if self.collective != "auto" {
                return refuse("collective", "whose workers meet at a parameter server, not in collectives");
            }
            if self.outer != mode.default_outer() {
                return refuse("outer", "where the server's rule says how a push is applied");
            }
            if !mode.has_outer_server() && self.global_lr != 1.0 {
                return refuse("global-lr", "where the server's rule says how a push is applied");
            }
            if self.weighting != Weighting::Uniform {
                return refuse("weighting", "where the server's rule says how much a push counts");
            }
            if self.wire == WireFormat::Int8 {
                return refuse("wire int8", "whose parameters travel too: use f16 or bf16");
            }
            if mode.needs_whole_parameters() && self.servers.is_some_and(|servers| servers > 1) {
                return Err(Error::Usage(format!(
                    "--mode {} measures the loss of whole parameters at the server: use --servers 1",
                    self.mode
                )));
            }
            return Ok(());
        }
        if self.servers.is_some() && self.collective != "parameter-server" {
            return Err(Error::Usage(format!(
                "--servers belongs to modes with a parameter server and to --collective parameter-server; here it is --mode {} and --collective {}",
                self.mode, self.collective
            )));
        }
        if self.server_placement.is_some() {
            return Err(Error::Usage(format!(
                "--server-placement belongs to modes with a parameter server, and --mode {} has none",
                self.mode
            )));
        }
        Ok(())
    }

    /// The parameter server's options.
    pub fn server_options(&self) -> ServerOptions {
        let mode = Mode::by_name(&self.mode);
        ServerOptions {
            // One shard: small models gain nothing from more, and some rules need whole parameters.
            servers: self.servers.unwrap_or(1),
            placement: self.server_placement.unwrap_or_default(),
            wire: self.wire,
            keeps_backups: mode.is_ok_and(Mode::needs_backups),
        }
    }

    /// Whether the workers meet at a parameter server.
    pub fn has_server(&self) -> bool {
        Mode::by_name(&self.mode).is_ok_and(|mode| mode.scheme == Scheme::Server)
    }

    /// How many of `size` ranks train.
    pub fn workers(&self, size: usize) -> usize {
        let options = self.server_options();
        if self.has_server() { options.placement.workers(size, options.servers) } else { size }
    }

    /// The communicator's options.
    ///
    /// # Errors
    /// `Usage` for an unknown collective.
    pub fn communicator_options(&self) -> Result<CommunicatorOptions> {
        let collective: Arc<dyn Collective> = match self.collective.as_str() {
            "auto" => Arc::new(Auto { topology: self.topology.clone() }),
            name => collective_by_name(name, self.servers)?,
        };
        Ok(CommunicatorOptions {
            collective,
            order: self.order,
            // A parameter server narrows for itself.
            wire: if self.has_server() { WireFormat::F32 } else { self.wire },
            timeout: self.timeout.0,
            ..CommunicatorOptions::default()
        })
    }

    /// The learning rate over the job, if it changes.
    pub fn learning_rates(&self, training_samples: usize) -> Option<LearningRate> {
        let budget_samples = self.sample_budget(training_samples)?;
        let changes = self.lr_schedule != Schedule::Constant || self.warmup > 0.0;
        changes.then(|| LearningRate {
            base: self.learning_rate,
            schedule: self.lr_schedule.clone(),
            warmup: self.warmup,
            budget_samples,
        })
    }

    /// The fragments of the exchanges, if the mode has them.
    pub fn fragments(&self) -> Option<Fragments> {
        let PolicyOptions { fragments, fragment_map, .. } = self.policy;
        let (count, map) =
            (fragments.unwrap_or(streaming_diloco::FRAGMENTS), fragment_map.unwrap_or_default());
        (self.mode == "streaming-diloco").then_some(Fragments { count, map })
    }

    /// The budget in samples of all workers, if there is one.
    pub fn sample_budget(&self, training_samples: usize) -> Option<u64> {
        let by_epochs = self.epochs.map(|epochs| (epochs * training_samples as f64).ceil() as u64);
        match (by_epochs, self.max_samples) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// As a configuration file that gives this run again. Values that are not the default are marked.
    ///
    /// # Errors
    /// `Training` if a value cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String> {
        let table = |config: &Config| {
            toml::Table::try_from(config)
                .map_err(|e| Error::Training(format!("cannot write the configuration: {e}")))
        };
        let defaults = table(&Config::resolve(Flags::default())?)?;
        let mut text = String::from("# What ran. Give it again with --config.\n");
        for (key, value) in table(self)? {
            let note =
                if defaults.get(&key) == Some(&value) { "" } else { "  # set by flag, environment or file" };
            if value.as_str() != Some("") {
                text.push_str(&format!("{key} = {value}{note}\n"));
            }
        }
        Ok(text)
    }
}

/// Whether the mode's exchanges are of deltas.
fn averages_deltas(mode: Mode) -> bool {
    mode.scheme == Scheme::Rounds && mode.name != "sync"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_configuration_can_be_given_again() {
        let flags = Flags { slow: Some("7:4x".parse().unwrap()), epochs: Some(2.0), ..Flags::default() };
        let config = Config::resolve(flags).unwrap();
        let text = config.to_toml().unwrap();
        assert!(text.contains("slow = \"7:4x\"  # set by"), "{text}");
        let again: Flags = toml::from_str(&text).unwrap();
        assert_eq!(Config::resolve(again).unwrap().to_toml().unwrap(), text);
    }

    #[test]
    fn flags_win_over_the_file() {
        let file: Flags = toml::from_str("mode = \"sync\"\nseed = 7").unwrap();
        let merged = Flags { seed: Some(9), ..Flags::default() }.over(file).unwrap();
        assert_eq!((merged.mode.as_deref(), merged.seed), (Some("sync"), Some(9)));
    }

    #[test]
    fn unknown_keys_are_refused_with_their_place() {
        let error = toml::from_str::<Flags>("mode = \"sync\"\nlocal-step = 7").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("local-step"), "{error}");
    }

    #[test]
    fn impossible_values_and_combinations_are_refused() {
        let check = |flags: Flags, words: &str| {
            let error = Config::resolve(flags).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.exit_code(), 2);
        };
        check(Flags { learning_rate: Some(f64::NAN), ..Flags::default() }, "--learning-rate is NaN");
        check(Flags { momentum: Some(1.0), ..Flags::default() }, "--momentum is 1");
        check(Flags { batch_size: Some(0), ..Flags::default() }, "--batch-size is 0");
        check(Flags { servers: Some(2), ..Flags::default() }, "--collective parameter-server");
        check(
            Flags { server_placement: Some(Placement::Dedicated), ..Flags::default() },
            "modes with a parameter server",
        );
        check(Flags { target_accuracy: Some(95.0), ..Flags::default() }, "--target-accuracy is 95");
        check(
            Flags { mode: Some("sync".into()), global_lr: Some(2.0), ..Flags::default() },
            "averages gradients",
        );
        check(
            Flags { mode: Some("wbsp".into()), global_lr: Some(2.0), ..Flags::default() },
            "--global-lr has no meaning in --mode wbsp",
        );
        check(
            Flags { mode: Some("adsp".into()), outer: Some(Outer::Nesterov), ..Flags::default() },
            "--outer has no meaning in --mode adsp",
        );
    }

    #[test]
    fn the_outer_rate_of_async_diloco_is_that_of_the_flag() {
        let rate = |mode: &str, global_lr| {
            let config =
                Config::resolve(Flags { mode: Some(mode.into()), global_lr, ..Flags::default() }).unwrap();
            config.policy.global_learning_rate
        };
        assert_eq!(rate("async-diloco", None), Some(0.7));
        assert_eq!(rate("async-diloco", Some(0.1)), Some(0.1));
        assert_eq!(rate("diloco", Some(0.1)), None);
    }
}
