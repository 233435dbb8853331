//! One rank's run, from the data to the summary.

use super::config::Config;
use super::devices::Placed;
use super::flags::TransportChoice;
use super::metrics::Metrics;
use super::report::{Reporter, say};
use super::served;
use super::summary::{ServerSummary, StoppedBy, Summary, WorkerSummary};
use super::supervisor::Verdict;
use super::watcher::{Limits, Signals, Watcher};
use crate::collective::{Communicator, CommunicatorOptions, Member};
use crate::data::{Dataset, load, partition};
use crate::device::{Device, DeviceChoice, DeviceChoices};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::learner::{Learner, Memory, TorchLearner, TorchOptions, set_threads, weights};
use crate::policy::bounded_delay::{DataSample, StalenessRule};
use crate::policy::esync::{Planning, Settings};
use crate::policy::{Job, LearningRate, Mode, PolicyOptions, Scheme, Update};
use crate::runtime::{
    Activity, ExchangeOptions, Mechanism, Next, Observed, Step, Stopwatch, Totals, Worker, establish,
};
use crate::transport::Transport;
use serde::{Deserialize, Serialize};
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
    let placed = place(config, transport)?;
    let mut communicator = Communicator::new(placed.transport.clone(), config.communicator_options()?)?;
    communicator.agree_devices(&placed.device)?;
    let threads = threads_per_rank(config, &communicator);
    set_threads(threads);

    let mode = Mode::by_name(&config.mode)?;
    let workers = config.workers(size);
    let dataset = Arc::new(load(&config.dataset, config.data_dir.as_deref())?);
    let mut shards = partition(&dataset.train.labels, config.split, workers, config.seed)?;
    let held_out = set_aside(&mut shards, mode);
    let shard_samples: Vec<u64> = shards.iter().map(|shard| shard.len() as u64).collect();
    let blueprint = Blueprint::new(config, &dataset);
    // A rank that only serves has a worker's shard: it never steps but for the warm-up, and evaluates like the others.
    let own = rank % workers;
    let memory = match &placed.device {
        Device::Cpu => Memory::Shared(&communicator),
        #[cfg(feature = "cuda")]
        Device::Gpu(gpu) => Memory::Gpu(gpu),
    };
    let mut learner = blueprint.learner(memory, shards[own].clone(), &held_out[own], own)?;

    let step_seconds = warm_up(config, &mut *learner, &mut communicator)?;
    let mut notice = None;
    let mut state_server = None;
    if config.mode == "esync" && size > 1 {
        let settings = Settings { max_local_steps: config.policy.max_local_steps, ..Settings::default() };
        let established = establish(&mut communicator, &settings, &step_seconds, Mechanism::Auto)?;
        (state_server, notice) = (established.state_server, established.notice);
    }
    let planning = if state_server.is_some() { Planning::StateServer } else { Planning::Ahead };
    let policy = PolicyOptions {
        planning: Some(planning),
        data_sample: data_sample(config, &dataset)?,
        ..config.policy.clone()
    };
    let job = Job {
        size: workers,
        step_seconds: step_seconds[..workers].into(),
        shard_samples: shard_samples.clone().into(),
        batch_size: config.batch_size,
        learning_rate: config.learning_rate,
        budget_samples: config.sample_budget(dataset.train.len()),
    };
    let limits = Arc::new(Limits::new(config, dataset.train.len()));
    let rates = config.learning_rates(dataset.train.len());
    if mode.scheme == Scheme::Server {
        let server_data = server_samples(&shards, &held_out);
        let setup = Setup {
            config,
            dataset,
            communicator,
            learner,
            signals,
            limits,
            rates,
            job,
            policy,
            mode,
            threads,
        };
        return served::train(setup, blueprint, server_data);
    }
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

    let (out, metrics) = prepare_out(config, worker.communicator())?;
    let reporter = Reporter::new(config.progress, config.report_every.0, rank == 0, limits.samples);
    let mut watcher = Watcher::new(limits, metrics, reporter, signals.clone(), config.mode == "local");
    if rank == 0 {
        let (mode, state_server) = (worker.mode(), worker.state_server());
        let state_server = state_server.map(|name| format!("state server: {name}"));
        let communicator = worker.communicator();
        print_first_lines(config, communicator, mode, state_server, &dataset, threads, &out);
        if let Some(notice) = &placed.notice {
            say(notice);
        }
        if let Some(notice) = &notice {
            say(&format!("note: {notice}"));
            watcher.metrics().event("warning", json!({ "text": notice }))?;
        }
    }
    run_steps(config, rates.as_ref(), &mut worker, &mut learner, &mut watcher, step_seconds)?;
    watcher.finish();
    let end = End {
        clock: worker.clock().clone(),
        totals: worker.totals(),
        mode: worker.mode(),
        state_server: worker.state_server(),
        communicator: worker.into_communicator(),
        learner,
        watcher,
        out,
        served: None,
        device: placed.device.to_string(),
    };
    conclude(config, end)
}

/// This rank's device, and the transport between those of all ranks.
fn place(config: &Config, transport: Arc<dyn Transport>) -> Result<Placed> {
    let mode = Mode::by_name(&config.mode)?;
    if mode.scheme == Scheme::Server {
        // Pushes and pulls are the host's.
        let is_asked_for = (0..transport.size()).try_fold(false, |found, rank| {
            Ok::<_, Error>(found | matches!(config.device.of(rank, transport.size())?, DeviceChoice::Cuda(_)))
        })?;
        if is_asked_for || config.transport == TransportChoice::Nccl {
            return Err(Error::Usage(format!(
                "--mode {} works at a parameter server, which only ranks on the CPU can do so far: use --device cpu",
                config.mode
            )));
        }
        let cpu = DeviceChoice::Cpu.into();
        return Placed::agree(transport, &cpu, config.transport, config.timeout.0, || Ok(()));
    }
    Placed::agree(transport, &config.device, config.transport, config.timeout.0, || {
        if tch::Cuda::is_available() {
            return Ok(());
        }
        Err(Error::Environment(
            "the libtorch of this program has no CUDA, or cannot use this driver: run `launch/bootstrap --cuda` and build \
             again, or use --device cpu"
                .into(),
        ))
    })
}

/// All that a run at a parameter server begins with.
pub(super) struct Setup<'a> {
    pub(super) config: &'a Config,
    pub(super) dataset: Arc<Dataset>,
    pub(super) communicator: Communicator,
    pub(super) learner: Box<dyn Learner>,
    pub(super) signals: &'a Signals,
    pub(super) limits: Arc<Limits>,
    pub(super) rates: Option<LearningRate>,
    pub(super) job: Job,
    pub(super) policy: PolicyOptions,
    pub(super) mode: Mode,
    pub(super) threads: usize,
}

/// Makes learners: this rank's, and those of a parameter server.
#[derive(Clone)]
pub(super) struct Blueprint {
    network: String,
    dataset: Arc<Dataset>,
    options: TorchOptions,
}

impl Blueprint {
    fn new(config: &Config, dataset: &Arc<Dataset>) -> Self {
        let options = TorchOptions {
            batch_size: config.batch_size,
            learning_rate: config.learning_rate,
            momentum: config.momentum,
            weight_decay: config.weight_decay,
            seed: config.seed,
            rank: 0,
        };
        Blueprint { network: config.network.clone(), dataset: dataset.clone(), options }
    }

    /// The learner of worker `rank`.
    pub(super) fn learner(
        &self,
        memory: Memory<'_>,
        shard: Vec<u32>,
        held_out: &[u32],
        rank: usize,
    ) -> Result<Box<dyn Learner>> {
        let options = TorchOptions { rank, ..self.options };
        let learner = TorchLearner::new_in(memory, &self.network, self.dataset.clone(), shard, options)?;
        Ok(Box::new(learner.with_held_out(held_out)?))
    }
}

/// The share of a shard that is set aside, one in so many.
const HELD_OUT_SHARE: f64 = 0.15;
/// What a server measures losses on: enough for a steady figure, few enough to be measured at every push.
const SERVER_SAMPLES: usize = 512;

/// Takes each worker's held-out samples out of its shard, if the mode measures on them. Evenly over the shard, whose samples
/// may lie in the order of their classes.
pub(crate) fn set_aside(shards: &mut [Vec<u32>], mode: Mode) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    for shard in shards {
        let mut held_out = Vec::new();
        if mode.needs_held_out() {
            let count = ((shard.len() as f64 * HELD_OUT_SHARE) as usize).max(1);
            held_out = spread(shard, count);
            shard.retain(|index| held_out.binary_search(index).is_err());
        }
        all.push(held_out);
    }
    all
}

/// `count` of the samples, evenly spread and in rising order.
fn spread(samples: &[u32], count: usize) -> Vec<u32> {
    let mut samples = samples.to_vec();
    samples.sort_unstable();
    let count = count.min(samples.len());
    (0..count).map(|index| samples[index * samples.len() / count]).collect()
}

/// What the parameter server measures losses on: some of what the workers have set aside, or of what they train on.
pub(crate) fn server_samples(shards: &[Vec<u32>], held_out: &[Vec<u32>]) -> Vec<u32> {
    let aside = held_out.concat();
    let samples = if aside.is_empty() { shards.concat() } else { aside };
    spread(&samples, SERVER_SAMPLES)
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
pub(super) fn run_steps(
    config: &Config,
    rates: Option<&LearningRate>,
    worker: &mut Worker,
    learner: &mut Box<dyn Learner>,
    watcher: &mut Watcher,
    step_seconds: Arc<[f64]>,
) -> Result<()> {
    let (rank, size) = (worker.communicator().rank(), worker.communicator().size());
    let slowness = config.slow.of(rank, size)?;
    let workers = config.workers(size);
    // What all ranks know is the last exchange's count; this step's samples are the least that will be added to it.
    let samples_per_step = (config.batch_size * workers) as u64;
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

/// What is left of a run on this rank.
pub(super) struct End {
    pub(super) communicator: Communicator,
    pub(super) learner: Box<dyn Learner>,
    pub(super) watcher: Watcher,
    pub(super) clock: Stopwatch,
    pub(super) totals: Totals,
    pub(super) mode: &'static str,
    pub(super) state_server: Option<&'static str>,
    pub(super) out: PathBuf,
    pub(super) served: Option<ServedEnd>,
    /// What this rank computed on.
    pub(super) device: String,
}

/// The same of a parameter server's run.
pub(super) struct ServedEnd {
    pub(super) verdict: Verdict,
    /// Bytes of this rank's pushes and pulls, if it is a worker.
    pub(super) worker_bytes: Option<(u64, u64)>,
    /// Bytes that the shard of this rank has sent and received, if it has one.
    pub(super) service_bytes: Option<(u64, u64)>,
}

/// A rank's part of the summary.
#[derive(Serialize, Deserialize)]
struct RankSummary {
    worker: Option<WorkerSummary>,
    server: Option<ServerSummary>,
}

/// The last evaluation, the figures of all ranks, the files.
pub(super) fn conclude(config: &Config, end: End) -> Result<Outcome> {
    let End {
        mut communicator,
        mut learner,
        mut watcher,
        mut clock,
        totals,
        mode,
        state_server,
        out,
        served,
        device,
    } = end;
    let communicator = &mut communicator;
    let verdict = served.as_ref().map(|served| &served.verdict);
    let train_seconds = verdict.map_or(watcher.train_seconds(), |verdict| verdict.train_seconds);
    let score = match watcher.last_score {
        Some((score, at)) if at == totals.global_samples => score,
        _ => {
            let mut observed = Observed { model: &mut learner, communicator, clock: &mut clock, totals };
            let score = watcher.evaluate(&mut observed)?;
            if let Some(verdict) = verdict {
                watcher.adopt_last_score(&score, verdict);
            }
            score
        }
    };
    clock.switch(Activity::Other);
    let own = rank_summary(&clock, totals, served.as_ref(), communicator, device);
    let own =
        serde_json::to_vec(&own).map_err(|e| Error::Internal(format!("a summary cannot be sent: {e}")))?;
    let read = |bytes: &Vec<u8>| {
        serde_json::from_slice::<RankSummary>(bytes)
            .map_err(|e| Error::Internal(format!("a rank's summary cannot be read: {e}")))
    };
    let ranks: Vec<RankSummary> = communicator.gather_bytes(&own)?.iter().map(read).collect::<Result<_>>()?;
    let (workers, servers): (Vec<_>, Vec<_>) =
        ranks.into_iter().map(|rank| (rank.worker, rank.server)).unzip();
    let workers: Vec<WorkerSummary> = workers.into_iter().flatten().collect();
    let servers: Vec<ServerSummary> = servers.into_iter().flatten().collect();
    let samples = match verdict {
        // Steps that came too late to be counted there were computed all the same.
        Some(_) => workers.iter().map(|worker| worker.samples).sum(),
        None => totals.global_samples,
    };
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
        samples,
        samples_per_second: samples as f64 / train_seconds.max(1e-9),
        exchanges: totals.exchanges,
        bytes_sent: workers.iter().map(|worker| worker.bytes_sent).sum::<u64>()
            + servers.iter().map(|server| server.bytes_sent).sum::<u64>(),
        stopped_by,
        workers,
        servers,
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
    let parameters = learner.parameters_on_host()?;
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

fn rank_summary(
    clock: &Stopwatch,
    totals: Totals,
    served: Option<&ServedEnd>,
    communicator: &Communicator,
    device: String,
) -> RankSummary {
    let rank = communicator.rank();
    let host = communicator.transport().peer(rank).host.clone();
    let server = served.and_then(|served| served.service_bytes).map(|(bytes_sent, bytes_received)| {
        ServerSummary { rank, host: host.clone(), bytes_sent, bytes_received }
    });
    let bytes = match served {
        None => Some((communicator.bytes_sent(), communicator.bytes_received())),
        Some(served) => served.worker_bytes,
    };
    let worker = bytes.map(|(bytes_sent, bytes_received)| WorkerSummary {
        rank,
        host,
        device,
        local_steps: totals.local_steps,
        samples: totals.samples,
        compute_seconds: clock.seconds(Activity::Compute),
        exchange_seconds: clock.seconds(Activity::Exchange),
        wait_seconds: clock.seconds(Activity::Wait),
        evaluate_seconds: clock.seconds(Activity::Evaluate),
        slow_seconds: clock.seconds(Activity::Slow),
        decide_seconds: clock.seconds(Activity::Decide),
        other_seconds: clock.seconds(Activity::Other),
        total_seconds: clock.total_seconds(),
        bytes_sent,
        bytes_received,
        server: served.and_then(|served| served.verdict.workers.get(rank).cloned()),
    });
    RankSummary { worker, server }
}

/// Steps of the warm-up that are timed.
const MEASURED_STEPS: u32 = 3;

/// Steps that leave no trace: the first pays for lazy initialisation, which takes a hundred times as long as a small model's
/// step; the others measure every rank for the first plan, and for the times that policies take as multiples of the slowest
/// rank's step. The least counts: one step during which another program has the core can last fifty times as long.
fn warm_up(
    config: &Config,
    learner: &mut dyn Learner,
    communicator: &mut Communicator,
) -> Result<Arc<[f64]>> {
    let state = learner.save_state()?;
    learner.step(Update::Local)?;
    let mut step_seconds = f64::INFINITY;
    for _ in 0..MEASURED_STEPS {
        let started = Instant::now();
        learner.step(Update::Local)?;
        step_seconds = step_seconds.min(started.elapsed().as_secs_f64());
    }
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
    // Threads, files and devices belong to a rank's own host.
    let common = Config { threads: None, data_dir: None, device: DeviceChoices::default(), ..config.clone() }
        .to_toml()?;
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

/// Rank 0 makes the directory of the results, and writes `config.toml` into it; every rank opens the metrics there.
pub(super) fn prepare_out(config: &Config, communicator: &mut Communicator) -> Result<(PathBuf, Metrics)> {
    // Everybody has data, a model and a policy by now: what is refused leaves no empty directory behind.
    communicator.barrier()?;
    let mut made = Ok(PathBuf::new());
    if communicator.rank() == 0 {
        made = make_out(config);
    }
    let path = made.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let path = communicator.gather_bytes(path.as_bytes())?.swap_remove(0);
    agree(communicator, made.map(drop))?;
    let out = PathBuf::from(String::from_utf8_lossy(&path).into_owned());
    let (rank, transport) = (communicator.rank(), communicator.transport());
    let is_local = transport.peer(rank).host == transport.peer(0).host;
    let metrics = Metrics::open(&out.join("metrics.jsonl"), rank, is_local)?;
    Ok((out, metrics))
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

pub(super) fn print_first_lines(
    config: &Config,
    communicator: &Communicator,
    mode: &str,
    server: Option<String>,
    dataset: &Dataset,
    threads: usize,
    out: &Path,
) {
    let server = server.map_or(String::new(), |server| format!(" ({server})"));
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let collective =
        if config.has_server() { String::new() } else { format!(" collective {},", config.collective) };
    say(&format!(
        "esync {}: {} on {}, transport {},{collective} {} of arithmetic each",
        env!("CARGO_PKG_VERSION"),
        plural(communicator.size(), "rank"),
        plural(communicator.topology().host_count(), "host"),
        communicator.transport().name(),
        plural(threads, "thread"),
    ));
    say(&format!(
        "mode {mode}{server}, network {}, batch {}, learning rate {}, seed {}",
        config.network, config.batch_size, config.learning_rate, config.seed
    ));
    say(&format!("data: {}", dataset.description));
    say(&format!("results go to {}", out.display()));
}
