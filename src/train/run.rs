//! One rank's run, from the data to the summary.

use super::config::Config;
use super::metrics::Metrics;
use super::report::{Reporter, say};
use super::summary::{StoppedBy, Summary, WorkerSummary};
use super::watcher::{Limits, Signals, Watcher};
use crate::collective::{Communicator, CommunicatorOptions, Member};
use crate::data::{Dataset, load, partition};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::learner::{Learner, Memory, TorchLearner, TorchOptions, set_threads, weights};
use crate::policy::bounded_delay::{DataSample, StalenessRule};
use crate::policy::esync::{Planning, Settings};
use crate::policy::{Job, LearningRate, Mode, PolicyOptions, Update};
use crate::runtime::{Activity, ExchangeOptions, Mechanism, Next, Observed, Step, Worker, establish};
use crate::transport::Transport;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The figures; on every rank.
    pub summary: Summary,
    /// Where the files are.
    pub out: PathBuf,
}

impl Outcome {
    /// 0, or 8 if a target was not reached, or 130 if the run was interrupted.
    pub fn exit_code(&self) -> i32 {
        match (self.summary.stopped_by, self.summary.reached_target) {
            (StoppedBy::Interrupt, _) => 130,
            (_, Some(false)) => 8,
            _ => 0,
        }
    }
}

/// Trains on this rank. All ranks call it with the same configuration; rank 0 prints and writes the results.
///
/// # Errors
/// Every error of the library; see [`Error::exit_code`].
pub fn train(config: &Config, transport: Arc<dyn Transport>, signals: &Signals) -> Result<Outcome> {
    let (rank, size) = (transport.rank(), transport.size());
    agree_on_configuration(config, transport.clone())?;
    config.check_for_size(size)?;
    let mut communicator = Communicator::new(transport, config.communicator_options()?)?;
    let threads = threads_per_rank(config, &communicator);
    set_threads(threads);

    let dataset = Arc::new(load(&config.dataset, config.data_dir.as_deref())?);
    let shards = partition(&dataset.train.labels, config.split, size, config.seed)?;
    let shard_samples: Vec<u64> = shards.iter().map(|shard| shard.len() as u64).collect();
    let shard = shards.into_iter().nth(rank).unwrap_or_default();
    let mut learner: Box<dyn Learner> = Box::new(TorchLearner::new_in(
        Memory::Shared(&communicator),
        &config.network,
        dataset.clone(),
        shard,
        TorchOptions {
            batch_size: config.batch_size,
            learning_rate: config.learning_rate,
            momentum: config.momentum,
            weight_decay: config.weight_decay,
            seed: config.seed,
            rank,
        },
    )?);

    let out = prepare_out(config, &mut communicator)?;
    let is_local = communicator.transport().peer(rank).host == communicator.transport().peer(0).host;
    let metrics = Metrics::open(&out.join("metrics.jsonl"), rank, is_local)?;

    let step_seconds = warm_up(config, &mut *learner, &mut communicator)?;
    let mut notice = None;
    let mut state_server = None;
    if config.mode == "esync" && size > 1 {
        let settings = Settings { max_local_steps: config.policy.max_local_steps, ..Settings::default() };
        let established = establish(&mut communicator, &settings, &step_seconds, Mechanism::Auto)?;
        (state_server, notice) = (established.state_server, established.notice);
    }
    let planning = if state_server.is_some() { Planning::StateServer } else { Planning::Ahead };
    let mode = Mode::by_name(&config.mode)?;
    let policy = PolicyOptions {
        planning: Some(planning),
        data_sample: data_sample(config, &dataset)?,
        ..config.policy.clone()
    };
    let job = Job {
        size,
        step_seconds: step_seconds.clone(),
        shard_samples: shard_samples.clone().into(),
        batch_size: config.batch_size,
        learning_rate: config.learning_rate,
        budget_samples: config.sample_budget(dataset.train.len()),
    };
    let options = ExchangeOptions {
        weighting: config.weighting,
        outer: config.outer,
        global_learning_rate: config.global_lr,
        shard_samples,
        fragments: config.fragments(),
        error_feedback: config.error_feedback,
    };
    let mut worker =
        Worker::new(mode.worker(&policy, &job, rank)?, communicator, state_server, options, &mut learner)?;

    let limits = Limits::new(config, dataset.train.len());
    let reporter = Reporter::new(config.progress, config.report_every.0, rank == 0, limits.samples);
    let mut watcher = Watcher::new(limits, metrics, reporter, signals.clone(), config.mode == "local");
    if rank == 0 {
        print_first_lines(config, &mut worker, &dataset, threads, &out);
        if let Some(notice) = &notice {
            say(&format!("note: {notice}"));
            watcher.metrics().event("warning", json!({ "text": notice }))?;
        }
    }
    let rates = config.learning_rates(dataset.train.len());
    run_steps(config, rates.as_ref(), &mut worker, &mut learner, &mut watcher, step_seconds)?;
    watcher.finish();
    conclude(config, worker, learner, watcher, out)
}

/// What the policy wants to see of the training data.
fn data_sample(config: &Config, dataset: &Dataset) -> Result<Option<Arc<DataSample>>> {
    if !config.policy.staleness_rule.is_some_and(StalenessRule::needs_data) {
        return Ok(None);
    }
    let pixels = dataset.train.draw(dataset.image_len(), DataSample::PUBLISHED_ROWS, config.seed).pixels;
    Ok(Some(Arc::new(DataSample::new(dataset.image_len(), pixels)?)))
}

/// The training loop.
fn run_steps(
    config: &Config,
    rates: Option<&LearningRate>,
    worker: &mut Worker,
    learner: &mut Box<dyn Learner>,
    watcher: &mut Watcher,
    step_seconds: Arc<[f64]>,
) -> Result<()> {
    let (rank, size) = (worker.communicator().rank(), worker.communicator().size());
    let slowness = config.slow.of(rank, size)?;
    // What all ranks know is the last exchange's count; this step's samples are the least that will be added to it.
    let samples_per_step = (config.batch_size * size) as u64;
    let mut next = worker.begin(step_seconds, learner, watcher)?;
    while let Next::Step { update } = next {
        if let Some(rates) = rates {
            learner.set_learning_rate(rates.after(worker.totals().global_samples + samples_per_step));
        }
        worker.clock().switch(Activity::Compute);
        let outcome = learner.step(update)?;
        let mut seconds = worker.clock().switch(Activity::Slow);
        if let Some(slowness) = slowness {
            std::thread::sleep(slowness.pause(seconds));
            seconds += worker.clock().switch(Activity::Other);
        }
        let step = Step { seconds, samples: outcome.samples, loss: outcome.loss };
        next = worker.stepped(step, update, learner, watcher)?;
    }
    Ok(())
}

/// The last evaluation, the figures of all ranks, the files.
fn conclude(
    config: &Config,
    mut worker: Worker,
    mut learner: Box<dyn Learner>,
    mut watcher: Watcher,
    out: PathBuf,
) -> Result<Outcome> {
    let train_seconds = watcher.train_seconds();
    let totals = worker.totals();
    let mut clock = worker.clock().clone();
    let (mode, state_server) = (worker.mode(), worker.state_server());
    let communicator = worker.communicator();
    let score = match watcher.last_score {
        Some((score, at)) if at == totals.global_samples => score,
        _ => {
            let mut observed = Observed { model: &mut learner, communicator, clock: &mut clock, totals };
            watcher.evaluate(&mut observed)?
        }
    };
    // With the evaluation above, which is in the clock too.
    let total_seconds = clock.total_seconds();
    let own = worker_summary(&clock, totals.local_steps, totals.samples, total_seconds, communicator);
    let own =
        serde_json::to_vec(&own).map_err(|e| Error::Internal(format!("a summary cannot be sent: {e}")))?;
    let read = |bytes: &Vec<u8>| {
        serde_json::from_slice::<WorkerSummary>(bytes)
            .map_err(|e| Error::Internal(format!("a rank's summary cannot be read: {e}")))
    };
    let workers: Vec<WorkerSummary> =
        communicator.gather_bytes(&own)?.iter().map(read).collect::<Result<_>>()?;
    let remote = watcher.metrics().take_remote()?;
    let remote = communicator.gather_bytes(&remote)?;

    let has_target = config.target_accuracy.is_some() || config.target_loss.is_some();
    let stopped_by = watcher.stopped_by.unwrap_or(StoppedBy::Samples);
    let summary = Summary {
        version: 1,
        mode: mode.into(),
        collective: config.collective.clone(),
        wire: config.wire,
        transport: communicator.transport().name().into(),
        ranks: communicator.size(),
        hosts: communicator.topology().host_count(),
        network: config.network.clone(),
        dataset: config.dataset.clone(),
        seed: config.seed,
        state_server: state_server.map(String::from),
        final_accuracy: score.accuracy,
        final_loss: score.loss,
        target_accuracy: config.target_accuracy,
        target_loss: config.target_loss,
        reached_target: has_target.then_some(watcher.time_to_target_seconds.is_some()),
        time_to_target_seconds: watcher.time_to_target_seconds,
        train_seconds,
        samples: totals.global_samples,
        samples_per_second: totals.global_samples as f64 / train_seconds.max(1e-9),
        exchanges: totals.exchanges,
        bytes_sent: workers.iter().map(|worker| worker.bytes_sent).sum(),
        stopped_by,
        workers,
    };
    let mut written = Ok(());
    if communicator.rank() == 0 {
        written = write_results(config, &summary, &mut learner, &mut watcher, &remote, &out);
    }
    // Nobody leaves before the results are on the disk, and everybody knows if they are not.
    agree(communicator, written)?;
    Ok(Outcome { summary, out })
}

fn write_results(
    config: &Config,
    summary: &Summary,
    learner: &mut Box<dyn Learner>,
    watcher: &mut Watcher,
    remote: &[Vec<u8>],
    out: &Path,
) -> Result<()> {
    for lines in remote {
        watcher.metrics().append(lines)?;
    }
    let parameters = learner.parameters().to_vec();
    let info = weights::WeightsInfo { network: config.network.clone(), dataset: config.dataset.clone() };
    weights::save(&out.join("model.safetensors"), learner.layout(), &parameters, &info)?;
    summary.write(&out.join("summary.json"))?;
    say(&format!("\n{}", summary.table()));
    if let (Some(false), Some(target)) = (summary.reached_target, config.target_accuracy) {
        say(&format!(
            "the target of {:.2}% was not reached: {:.2}% after {} samples; raise --epochs or change --learning-rate",
            100.0 * target,
            100.0 * summary.final_accuracy,
            summary.samples
        ));
    } else if let (Some(false), Some(target)) = (summary.reached_target, config.target_loss) {
        say(&format!(
            "the target loss of {target} was not reached: {:.4} after {} samples",
            summary.final_loss, summary.samples
        ));
    }
    say(&format!("results in {}", out.display()));
    Ok(())
}

fn worker_summary(
    clock: &crate::runtime::Stopwatch,
    local_steps: u64,
    samples: u64,
    total_seconds: f64,
    communicator: &Communicator,
) -> WorkerSummary {
    let rank = communicator.rank();
    WorkerSummary {
        rank,
        host: communicator.transport().peer(rank).host.clone(),
        device: "cpu".into(),
        local_steps,
        samples,
        compute_seconds: clock.seconds(Activity::Compute),
        exchange_seconds: clock.seconds(Activity::Exchange),
        wait_seconds: clock.seconds(Activity::Wait),
        evaluate_seconds: clock.seconds(Activity::Evaluate),
        slow_seconds: clock.seconds(Activity::Slow),
        decide_seconds: clock.seconds(Activity::Decide),
        total_seconds,
        bytes_sent: communicator.bytes_sent(),
        bytes_received: communicator.bytes_received(),
    }
}

/// Two steps that leave no trace: the first pays for lazy initialisation, which takes a hundred times as long as a small
/// model's step; the second measures every rank for the first plan.
fn warm_up(
    config: &Config,
    learner: &mut dyn Learner,
    communicator: &mut Communicator,
) -> Result<Arc<[f64]>> {
    let state = learner.save_state();
    learner.step(Update::Local)?;
    let started = Instant::now();
    learner.step(Update::Local)?;
    let mut step_seconds = started.elapsed().as_secs_f64();
    learner.load_state(&state)?;
    if let Some(slowness) = config.slow.of(communicator.rank(), communicator.size())? {
        step_seconds += slowness.pause(step_seconds).as_secs_f64();
    }
    let entry = communicator.gather(Member { step_seconds, ..Member::default() })?;
    Ok(entry.members.iter().map(|member| member.step_seconds).collect())
}

/// Ranks that were started with different flags stop here, with both values named.
fn agree_on_configuration(config: &Config, transport: Arc<dyn Transport>) -> Result<()> {
    // Over the default collective: the one that was asked for is among what may differ.
    let options = CommunicatorOptions { timeout: config.timeout.0, ..CommunicatorOptions::default() };
    let mut communicator = Communicator::new(transport, options)?;
    // Threads and files belong to a rank's own host.
    let common = Config { threads: None, data_dir: None, ..config.clone() }.to_toml()?;
    let table = |bytes: &Vec<u8>| {
        toml::from_str::<toml::Table>(&String::from_utf8_lossy(bytes))
            .map_err(|e| Error::Internal(format!("a rank's configuration cannot be read: {e}")))
    };
    let all: Vec<toml::Table> =
        communicator.gather_bytes(common.as_bytes())?.iter().map(table).collect::<Result<_>>()?;
    let value =
        |rank: usize, key: &str| all[rank].get(key).map_or("not given".to_string(), toml::Value::to_string);
    for rank in 1..all.len() {
        let mut keys: Vec<&String> = all[0].keys().chain(all[rank].keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let differing: Vec<String> = keys
            .into_iter()
            .filter(|key| value(0, key) != value(rank, key))
            .map(|key| {
                format!("{key} is {} on rank 0 and {} on rank {rank}", value(0, key), value(rank, key))
            })
            .collect();
        if !differing.is_empty() {
            return Err(Error::Usage(format!(
                "ranks were started with different flags: {}",
                differing.join("; ")
            )));
        }
    }
    Ok(())
}

/// Every rank returns rank 0's error, if it has one.
fn agree(communicator: &mut Communicator, own: Result<()>) -> Result<()> {
    let complaint =
        own.as_ref().err().map(|error| format!("{}\n{error}", error.exit_code())).unwrap_or_default();
    let complaint = communicator.gather_bytes(complaint.as_bytes())?.swap_remove(0);
    own?;
    // Whichever rank speaks first, the job ends with rank 0's exit code.
    match String::from_utf8_lossy(&complaint).split_once('\n') {
        None => Ok(()),
        Some(("2", text)) => Err(Error::Usage(text.into())),
        Some((_, text)) => Err(Error::Environment(text.into())),
    }
}

/// Rank 0 makes the directory of the results, and writes `config.toml` into it.
fn prepare_out(config: &Config, communicator: &mut Communicator) -> Result<PathBuf> {
    // Everybody has data and a model by now: a rank that has not leaves no empty directory behind.
    communicator.barrier()?;
    let mut made = Ok(PathBuf::new());
    if communicator.rank() == 0 {
        made = make_out(config);
    }
    let path = made.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let path = communicator.gather_bytes(path.as_bytes())?.swap_remove(0);
    agree(communicator, made.map(drop))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&path).into_owned()))
}

fn make_out(config: &Config) -> Result<PathBuf> {
    let out = config.out.clone().unwrap_or_else(|| {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + seconds).to_string();
        let time: String = time.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
        let name = format!("{time}-{}", config.mode);
        let runs = Path::new("runs");
        let free = |name: &String| !runs.join(name).exists();
        // Two runs within one second get a number.
        let mut names = std::iter::once(name.clone()).chain((2..).map(|n| format!("{name}-{n}")));
        runs.join(names.find(free).unwrap_or(name))
    });
    let is_taken = std::fs::read_dir(&out).is_ok_and(|mut entries| entries.next().is_some());
    if is_taken {
        return Err(Error::Usage(format!(
            "--out {} exists and is not empty: results are never overwritten, choose another directory",
            out.display()
        )));
    }
    std::fs::create_dir_all(&out).map_err(|e| {
        Error::file(&out, format!("cannot make the directory of the results: {e}; choose another --out"))
    })?;
    // Without the directory, so that the file can be given again as it is.
    let again = Config { out: None, ..config.clone() };
    write_atomically(&out.join("config.toml"), &[again.to_toml()?.as_bytes()])?;
    Ok(out)
}

/// All cores of the host, shared between its ranks.
fn threads_per_rank(config: &Config, communicator: &Communicator) -> usize {
    let asked = std::env::var("OMP_NUM_THREADS").ok().and_then(|threads| threads.parse().ok());
    config.threads.or(asked).unwrap_or_else(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let topology = communicator.topology();
        let own = topology.host(communicator.rank());
        let neighbours = (0..topology.size()).filter(|&rank| topology.host(rank) == own).count();
        (cores / neighbours).max(1)
    })
}

fn print_first_lines(config: &Config, worker: &mut Worker, dataset: &Dataset, threads: usize, out: &Path) {
    let state_server = worker.state_server().map_or(String::new(), |name| format!(" (state server: {name})"));
    let mode = worker.mode();
    let communicator = worker.communicator();
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    say(&format!(
        "esync {}: {} on {}, transport {}, collective {}, {} of arithmetic each",
        env!("CARGO_PKG_VERSION"),
        plural(communicator.size(), "rank"),
        plural(communicator.topology().host_count(), "host"),
        communicator.transport().name(),
        config.collective,
        plural(threads, "thread"),
    ));
    say(&format!(
        "mode {mode}{state_server}, network {}, batch {}, learning rate {}, seed {}",
        config.network, config.batch_size, config.learning_rate, config.seed
    ));
    say(&format!("data: {}", dataset.description));
    say(&format!("results go to {}", out.display()));
}
