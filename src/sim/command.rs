//! `esync sim`: one simulation with the flags, the output and the files of a real run.

use super::builtin::text_of;
use super::cluster::SimCluster;
use super::flags::Flags;
use super::metrics::Metrics;
use super::options::{Limits, SimOptions};
use super::record::Record;
use super::setting::Setting;
use super::simulation::Simulation;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::learner::weights;
use crate::policy::{Mode, Scheme};
use crate::runtime::server::WorkerFigures;
use crate::train::report::{Reporter, say};
use crate::train::{Config, ServerSummary, Summary, WorkerSummary};
use std::path::{Path, PathBuf};

/// Runs what the flags ask for, and answers the exit code: 0, or 8 if a target was not reached.
///
/// # Errors
/// Those of a real run; `Usage` for flags and clusters that cannot be simulated.
pub fn command(flags: Flags) -> Result<i32> {
    if flags.show_cluster {
        print!("{}", cluster_file(&flags.cluster)?);
        return Ok(0);
    }
    // Before the file, which holds every flag's value.
    flags.check()?;
    let flags = flags.with_file()?;
    if !flags.compare.is_empty() {
        return super::compare::compare(&flags);
    }
    let run = Run::new(&flags, Config::resolve(flags.train.clone())?)?;
    let out = run.config.out.clone().unwrap_or_else(|| free_folder(&run.config.mode));
    run.print_first_lines(&out);
    // Workers compute one after the other, most of them too little for more than one thread.
    #[cfg(feature = "torch")]
    crate::learner::set_threads(run.config.threads.unwrap_or(1));
    let summary = run.carry_out(&out, true)?.summary;
    say(&format!("\n{}", summary.table()));
    if summary.reached_target == Some(false) {
        say(&format!(
            "the target was not reached: accuracy {:.2}%, loss {:.4} after {} samples; raise the budget or change \
             --learning-rate",
            100.0 * summary.final_accuracy,
            summary.final_loss,
            summary.samples
        ));
    }
    say(&format!("results in {}", out.display()));
    Ok(if summary.reached_target == Some(false) { 8 } else { 0 })
}

/// A simulation that is ready to begin.
pub(super) struct Run<'a> {
    flags: &'a Flags,
    pub(super) config: Config,
    cluster: SimCluster,
    setting: Setting,
}

/// A simulation that has ended.
pub(super) struct Done {
    pub(super) summary: Summary,
    pub(super) record: Record,
}

impl<'a> Run<'a> {
    pub(super) fn new(flags: &'a Flags, config: Config) -> Result<Run<'a>> {
        let mut cluster = SimCluster::find(&flags.cluster)?;
        if let Some(factor) = flags.step_seconds {
            cluster = cluster.scaled(factor)?;
        }
        let setting = Setting::new(flags, &config, cluster.size())?;
        Ok(Run { flags, config, cluster, setting })
    }

    pub(super) fn budget_samples(&self) -> Option<u64> {
        self.config.sample_budget(self.setting.training_samples)
    }

    fn options(&self) -> SimOptions {
        let config = &self.config;
        let mut policy = config.policy.clone();
        let memory = self.cluster.workers.iter().filter_map(|worker| worker.memory_bytes).min();
        let memory_samples = memory.map(|bytes| (bytes / self.setting.sample_bytes.max(1)).max(1));
        policy.memory_samples = policy.memory_samples.or(memory_samples);
        // As a real run cuts them. The surrogate is one layer, through which its fragments cut if nothing is said.
        let fragments = config.fragments().filter(|_| !self.flags.surrogate);
        policy.fragment_map = policy.fragment_map.or(fragments.map(|fragments| fragments.map));
        SimOptions {
            policy,
            weighting: config.weighting,
            outer: config.outer,
            global_learning_rate: config.global_lr,
            collective: config.collective.clone(),
            servers: config.servers,
            wire: config.wire,
            error_feedback: config.error_feedback,
            batch_size: config.batch_size,
            learning_rate: config.learning_rate,
            learning_rates: config.learning_rates(self.setting.training_samples),
            shard_samples: self.setting.shard_samples.clone(),
            seed: config.seed,
            limits: Limits {
                samples: self.budget_samples(),
                seconds: config.max_seconds,
                rounds: None,
                target_accuracy: config.target_accuracy,
                target_loss: config.target_loss,
                evaluate_every_samples: Some(config.eval_every),
            },
            deaths: self.flags.on_death.into(),
            ..SimOptions::new(&config.mode)
        }
    }

    /// Simulates, and writes the files of a run into `out`.
    pub(super) fn carry_out(&self, out: &Path, is_shown: bool) -> Result<Done> {
        let config = &self.config;
        let options = self.options();
        let reporter =
            Reporter::new(config.progress, config.report_every.0, is_shown, options.limits.samples);
        let learner = |rank| self.setting.learner(config, rank);
        let simulation = Simulation::new(self.cluster.clone(), options, learner)?;
        self.prepare(out)?;
        let mut metrics = Metrics::create(&out.join("metrics.jsonl"), self.cluster.size(), reporter)?;
        let record = simulation.run(&mut metrics);
        metrics.finish()?;
        let record = record?;
        let summary = self.summary(&record);
        let mut learner = self.setting.learner(config, 0)?;
        learner.parameters().copy_from_slice(&record.parameters);
        let info = weights::WeightsInfo {
            network: self.setting.network.clone(),
            dataset: self.setting.dataset.clone(),
        };
        let parameters = learner.parameters().to_vec();
        weights::save(&out.join("model.safetensors"), learner.layout(), &parameters, &info)?;
        summary.write(&out.join("summary.json"))?;
        Ok(Done { summary, record })
    }

    /// Makes the folder, with the configuration and the cluster in it.
    fn prepare(&self, out: &Path) -> Result<()> {
        if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Error::Usage(format!(
                "--out {} exists and is not empty: results are never overwritten, choose another directory",
                out.display()
            )));
        }
        std::fs::create_dir_all(out).map_err(|error| {
            Error::file(
                out,
                format!("cannot make the directory of the results: {error}; choose another --out"),
            )
        })?;
        let mut text = Config { out: None, ..self.config.clone() }.to_toml()?;
        let quoted = toml::Value::String(self.flags.cluster.clone());
        text.push_str(&format!("cluster = {quoted}  # see cluster.toml\n"));
        if let Some(factor) = self.flags.step_seconds {
            text.push_str(&format!("step-seconds = {factor:?}\n"));
        }
        if self.flags.surrogate {
            let Flags { dimension, noise, .. } = self.flags;
            text.push_str(&format!("surrogate = true\ndimension = {dimension}\nnoise = {noise:?}\n"));
        }
        write_atomically(&out.join("config.toml"), &[text.as_bytes()])?;
        write_atomically(&out.join("cluster.toml"), &[cluster_file(&self.flags.cluster)?.as_bytes()])
    }

    fn print_first_lines(&self, out: &Path) {
        let config = &self.config;
        let meeting = match self.is_served() {
            true => format!("servers {}", config.servers.unwrap_or(1)),
            false => format!("collective {}", config.collective),
        };
        say(&format!(
            "esync {}: {} simulated workers on {} hosts (cluster {}), {meeting}",
            env!("CARGO_PKG_VERSION"),
            self.cluster.size(),
            self.cluster.network.hosts.len(),
            self.flags.cluster,
        ));
        say(&format!(
            "mode {}, network {}, batch {}, learning rate {}, seed {}",
            config.mode, self.setting.network, config.batch_size, config.learning_rate, config.seed
        ));
        say(&format!("data: {}", self.setting.description));
        say(&format!("results go to {}", out.display()));
    }

    fn summary(&self, record: &Record) -> Summary {
        let config = &self.config;
        let has_target = config.target_accuracy.is_some() || config.target_loss.is_some();
        let (accuracy, loss) =
            record.final_evaluation().map_or((0.0, f64::NAN), |last| (last.accuracy, last.loss));
        Summary {
            version: 1,
            mode: record.mode.clone(),
            collective: config.collective.clone(),
            wire: config.wire,
            transport: "simulated".into(),
            ranks: self.cluster.size(),
            hosts: self.cluster.network.hosts.len(),
            network: self.setting.network.clone(),
            dataset: self.setting.dataset.clone(),
            seed: config.seed,
            state_server: (config.mode == "esync").then(|| "simulated".into()),
            final_accuracy: accuracy,
            final_loss: loss,
            target_accuracy: config.target_accuracy,
            target_loss: config.target_loss,
            reached_target: has_target.then_some(record.time_to_target_seconds.is_some()),
            time_to_target_seconds: record.time_to_target_seconds,
            train_seconds: record.seconds,
            samples: record.global_samples,
            samples_per_second: record.global_samples as f64 / record.seconds.max(1e-9),
            exchanges: record.exchanges,
            bytes_sent: record.bytes(),
            stopped_by: record.stopped_by,
            workers: (0..record.workers.len()).map(|rank| self.worker_summary(record, rank)).collect(),
            servers: self.is_served().then(|| server_summary(record)).into_iter().collect(),
        }
    }

    fn is_served(&self) -> bool {
        Mode::by_name(&self.config.mode).is_ok_and(|mode| mode.scheme == Scheme::Server)
    }

    fn worker_summary(&self, record: &Record, rank: usize) -> WorkerSummary {
        let worker = &record.workers[rank];
        WorkerSummary {
            rank,
            host: self.cluster.network.host_name(rank).into(),
            device: "simulated".into(),
            local_steps: worker.local_steps,
            samples: worker.samples,
            compute_seconds: worker.compute_seconds,
            exchange_seconds: worker.exchange_seconds,
            wait_seconds: worker.wait_seconds,
            evaluate_seconds: worker.evaluate_seconds,
            slow_seconds: 0.0,
            decide_seconds: worker.decide_seconds,
            other_seconds: worker.other_seconds(),
            total_seconds: worker.ended_seconds,
            bytes_sent: worker.bytes_sent,
            bytes_received: worker.bytes_received,
            server: self.is_served().then(|| WorkerFigures {
                pushes: worker.pushes,
                discarded_pushes: worker.discarded,
                pulls: worker.pulls,
                staleness: worker.staleness.clone(),
            }),
        }
    }
}

/// All shards together: they move the same bytes as one.
fn server_summary(record: &Record) -> ServerSummary {
    let workers = record.workers.iter();
    let (received, sent) = workers.fold((0, 0), |(received, sent), worker| {
        (received + worker.bytes_sent, sent + worker.bytes_received)
    });
    ServerSummary { rank: 0, host: "server".into(), bytes_sent: sent, bytes_received: received }
}

fn cluster_file(name: &str) -> Result<String> {
    match text_of(name) {
        Some(text) => Ok(text.into()),
        None => {
            // Says what is wrong with a name or a file.
            SimCluster::find(name)?;
            std::fs::read_to_string(name).map_err(|error| Error::file(name, error))
        }
    }
}

/// `runs/sim-MODE`, or the next that is free.
pub(super) fn free_folder(name: &str) -> PathBuf {
    let runs = Path::new("runs");
    let names =
        std::iter::once(format!("sim-{name}")).chain((2..).map(|number| format!("sim-{name}-{number}")));
    let mut folders = names.map(|name| runs.join(name));
    folders.find(|folder| !folder.exists()).unwrap_or_else(|| runs.join("sim"))
}
