//! The simulation itself: takes events from the queue and carries out what policies answer.

use super::cluster::SimCluster;
use super::exchange::Exchange;
use super::network::Network;
use super::options::SimOptions;
use super::progress::Progress;
use super::queue::{Nanoseconds, Phase, Queue, nanoseconds, seconds};
use super::record::{Record, TraceEntry};
use super::service::{Message, Service};
use super::watch::{SimStep, Unwatched, Watch};
use super::wire::{Feedback, Scale, Wire};
use super::worker::{Delivery, Doing, Worker};
use crate::error::{Error, Result};
use crate::learner::Learner;
use crate::policy::esync::EsyncCoordinator;
use crate::policy::{
    Action, Coordinator, ExchangeId, Fragment, Job, Mode, Payload, Reason, Report, Scheme, Store,
    WorkerEvent, WorkerPolicy, streaming_diloco,
};
use crate::train::StoppedBy;
use crate::transport::{Peer, Rank};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What happens at a moment; the rank that it concerns is in the queue's key.
pub(super) enum Event {
    StepDone,
    EvaluationDone,
    ExchangeDone(ExchangeId),
    Arrives(Message),
    Deadline,
    Delivered(Delivery),
    Dies,
    TimeIsUp,
}

/// A measured evaluation of a worker's held-out data costs this share of a step: the backward pass is left out.
const EVALUATION_SHARE: f64 = 1.0 / 3.0;

/// Policies, learners and a cluster on a virtual clock.
///
/// Every learner computes when its step ends, in the order of the events, so that a simulation is the same, bit for bit,
/// whenever it is run with the same arguments. Nothing in it looks at a real clock.
///
/// ```
/// use esync::learner::{Quadratic, QuadraticOptions, SgdOptions};
/// use esync::sim::{SimCluster, SimOptions, Simulation, Unwatched};
///
/// let mut options = SimOptions::new("esync");
/// options.limits.rounds = Some(2);
/// let sgd = SgdOptions { learning_rate: 0.05, momentum: 0.0, weight_decay: 0.0 };
/// let learner = |rank| {
///     let options = QuadraticOptions { dimension: 8, statistics: 0, seed: 1, rank, batch_size: 32, noise: 0.1, sgd };
///     Ok(Box::new(Quadratic::new(options)?) as Box<dyn esync::learner::Learner>)
/// };
/// let simulation = Simulation::new(SimCluster::of_steps(&[1.0, 1.0, 3.0]), options, learner)?;
/// let record = simulation.run(&mut Unwatched)?;
/// assert_eq!(record.seconds, 6.0);
/// assert_eq!(record.workers[0].steps_per_round, [3, 3]);
/// assert_eq!(record.workers[2].steps_per_round, [1, 1]);
/// # Ok::<(), esync::Error>(())
/// ```
pub struct Simulation {
    pub(super) cluster: SimCluster,
    pub(super) options: SimOptions,
    scheme: Scheme,
    pub(super) job: Job,
    pub(super) workers: Vec<Worker>,
    pub(super) network: Network,
    pub(super) wire: Wire,
    pub(super) queue: Queue<Event>,
    pub(super) now: Nanoseconds,
    pub(super) exchanges: BTreeMap<ExchangeId, Exchange>,
    /// Memory of exchanges that are over.
    pub(super) spare: Vec<Vec<f32>>,
    /// Who takes part in exchanges.
    pub(super) participants: Vec<Rank>,
    pub(super) exchange_count: u64,
    /// What a narrow wire has rounded off, for each kind of exchange.
    pub(super) feedback: HashMap<Fragment, Feedback>,
    pub(super) last_payload: Option<Payload>,
    pub(super) service: Option<Service>,
    pub(super) progress: Progress,
    pub(super) trace: Vec<TraceEntry>,
    /// Workers that neither stopped nor died.
    pub(super) active: usize,
    pub(super) dead: Vec<Rank>,
}

impl Simulation {
    /// A simulation of the mode that the options name. `learner` makes a worker's learner; it is called for every rank, and
    /// once more with the number of ranks, for one that measures parameters.
    ///
    /// # Errors
    /// `Usage` for options that do not fit; those of `learner`.
    pub fn new(
        cluster: SimCluster,
        options: SimOptions,
        learner: impl FnMut(Rank) -> Result<Box<dyn Learner>>,
    ) -> Result<Simulation> {
        cluster.check()?;
        let mode = Mode::by_name(&options.mode)?;
        let size = cluster.size();
        if mode.scheme == Scheme::Alone && size > 1 {
            return Err(Error::Usage(format!(
                "--mode {} is one worker alone, and the cluster has {size}; use another mode, or a cluster of one",
                mode.name
            )));
        }
        let job = job(&cluster, &options);
        let policies: Result<Vec<_>> =
            (0..size).map(|rank| mode.worker(&options.policy, &job, rank)).collect();
        let coordinator = match mode.coordinator(&options.policy, &job)? {
            None if mode.name == "esync" => Some(state_server(&options, &job)),
            coordinator => coordinator,
        };
        let mut simulation =
            Self::with_policies(cluster, options, mode.scheme, policies?, coordinator, learner)?;
        if mode.name == "streaming-diloco" {
            let policy = &simulation.options.policy;
            let count = streaming_diloco::Settings::from_options(policy)?.fragments;
            simulation.workers.iter_mut().try_for_each(|worker| worker.cut(count, policy.fragment_map))?;
        }
        Ok(simulation)
    }

    /// A simulation of policies of one's own: one for each worker, and their coordinator. Under [`Scheme::Server`] the
    /// coordinator rules a parameter server, else it is a state server.
    ///
    /// # Errors
    /// As [`new`](Simulation::new).
    pub fn with_policies(
        cluster: SimCluster,
        options: SimOptions,
        scheme: Scheme,
        policies: Vec<Box<dyn WorkerPolicy>>,
        coordinator: Option<Box<dyn Coordinator>>,
        mut learner: impl FnMut(Rank) -> Result<Box<dyn Learner>>,
    ) -> Result<Simulation> {
        cluster.check()?;
        options.limits.check()?;
        let size = cluster.size();
        if policies.len() != size {
            return Err(Error::Usage(format!("{} policies for {size} workers", policies.len())));
        }
        let job = job(&cluster, &options);
        let outer = (options.outer, options.global_learning_rate);
        let mut workers = Vec::with_capacity(size);
        for (rank, policy) in policies.into_iter().enumerate() {
            workers.push(Worker::new(policy, learner(rank)?, outer, job.step_seconds[rank])?);
        }
        let service = match (scheme, coordinator) {
            (Scheme::Server, None) => {
                return Err(Error::Usage(format!("mode `{}` has no rule for its server", options.mode)));
            }
            (_, None) => None,
            (scheme, Some(coordinator)) => {
                let store = (scheme == Scheme::Server).then(|| store(&options, &mut workers)).transpose()?;
                Some(Service::new(coordinator, store, size))
            }
        };
        let elements = workers.first().map_or(0, |worker| worker.learner.layout().len);
        let scale = Scale::new(cluster.model_bytes, elements);
        Ok(Simulation {
            network: Network::new(&cluster, &options.collective, options.servers, options.wire, scale)?,
            wire: Wire::new(options.wire, scale),
            progress: Progress::new(options.limits.clone(), learner(size)?),
            scheme,
            job,
            workers,
            queue: Queue::new(),
            now: 0,
            exchanges: BTreeMap::new(),
            spare: Vec::new(),
            participants: (0..size).collect(),
            exchange_count: 0,
            feedback: HashMap::new(),
            last_payload: None,
            service,
            trace: Vec::new(),
            active: size,
            dead: Vec::new(),
            cluster,
            options,
        })
    }

    /// Runs until every worker has stopped or died.
    ///
    /// # Errors
    /// What would end a real run: `PeerLost` when workers exchange and one of them dies, `Diverged`; `Stalled` if all wait for
    /// each other, which no policy of this library does; those of `watch`.
    pub fn run(mut self, watch: &mut dyn Watch) -> Result<Record> {
        for rank in 0..self.workers.len() {
            if let Some(at) = self.cluster.workers[rank].dies_at_seconds {
                self.queue.push(nanoseconds(at), Phase::Death, rank, Event::Dies);
            }
        }
        if let Some(limit) = self.options.limits.seconds.filter(|_| self.scheme == Scheme::Server) {
            self.queue.push(nanoseconds(limit), Phase::Death, 0, Event::TimeIsUp);
        }
        for rank in 0..self.workers.len() {
            let step_seconds = self.job.step_seconds.clone();
            self.drive(rank, WorkerEvent::Started { rank, step_seconds }, watch)?;
        }
        while self.active > 0 {
            let Some((now, rank, event)) = self.queue.pop() else {
                return Err(self.stalled());
            };
            self.now = now;
            self.happen(rank, event, watch)?;
        }
        self.conclude(watch)
    }

    fn happen(&mut self, rank: Rank, event: Event, watch: &mut dyn Watch) -> Result<()> {
        match event {
            Event::ExchangeDone(exchange) => self.exchange_done(exchange, watch),
            Event::Deadline => self.deadline(watch),
            Event::TimeIsUp => self.time_is_up(watch),
            _ if !self.workers[rank].is_active() => Ok(()),
            Event::StepDone => self.step_done(rank, watch),
            Event::EvaluationDone => self.evaluation_done(rank, watch),
            Event::Arrives(message) => self.arrived(rank, message, watch),
            Event::Delivered(delivery) => self.delivered(rank, delivery, watch),
            Event::Dies => self.dies(rank, watch),
        }
    }

    /// Tells a worker's policy what happened, and carries out what it answers until that takes time.
    pub(super) fn drive(&mut self, rank: Rank, event: WorkerEvent, watch: &mut dyn Watch) -> Result<()> {
        let mut event = event;
        loop {
            let (action, reason) = self.workers[rank].policy.next(event);
            if let Reason::Unexpected { .. } = reason {
                return Err(Error::Internal(format!("policy `{}`: {reason}", self.options.mode)));
            }
            self.note(rank, &action, reason, watch)?;
            let since = self.now;
            event = match action {
                Action::Step { update } => {
                    self.begin_step(rank);
                    self.workers[rank].doing = Doing::Step { update, began: since };
                    return Ok(());
                }
                Action::Stop => return self.stop(rank, watch),
                Action::Report(report) => {
                    self.workers[rank].record.reports += 1;
                    self.workers[rank].request();
                    self.send(rank, report, None)?;
                    self.workers[rank].doing = Doing::Report { since };
                    return Ok(());
                }
                Action::Begin { exchange, fragment, payload } => {
                    self.begin_exchange(rank, exchange, fragment, payload)?;
                    WorkerEvent::Begun { exchange }
                }
                Action::Finish { exchange, install, .. } => {
                    match self.finish_exchange(rank, exchange, install, watch)? {
                        Some(event) => event,
                        None => return Ok(()),
                    }
                }
                Action::Push { payload, fragment } => {
                    self.push(rank, payload, fragment)?;
                    self.workers[rank].doing = Doing::Push { since };
                    return Ok(());
                }
                Action::BeginPush { payload, fragment } => {
                    self.push(rank, payload, fragment)?;
                    WorkerEvent::PushBegun
                }
                Action::FinishPush { wait } => match (self.workers[rank].inbox.pop_front(), wait) {
                    (Some(delivery), _) => self.take_delivery(rank, delivery),
                    (None, _) if !self.workers[rank].is_push_open => {
                        return Err(self.broken(rank, "asks for the verdict of a push that it has not begun"));
                    }
                    (None, false) => WorkerEvent::NotYet,
                    (None, true) => {
                        self.workers[rank].doing = Doing::Push { since };
                        return Ok(());
                    }
                },
                Action::Pull { install } => match self.workers[rank].parcel.take() {
                    Some(parcel) => self.install(rank, &parcel, install, 0.0, watch)?,
                    None => {
                        self.workers[rank].request();
                        self.send(rank, Report::PullRequested, None)?;
                        self.workers[rank].doing = Doing::Pull { install, since };
                        return Ok(());
                    }
                },
                Action::Evaluate => {
                    let work = EVALUATION_SHARE * self.work_seconds(rank);
                    let end = self.cluster.workers[rank].ends_at(seconds(since), work);
                    self.queue.push(
                        nanoseconds(end).max(since + 1),
                        Phase::Done,
                        rank,
                        Event::EvaluationDone,
                    );
                    self.workers[rank].doing = Doing::Evaluate { began: since };
                    return Ok(());
                }
                Action::SetBatch { batch_size, data_budget } => {
                    self.set_batch(rank, batch_size, data_budget)?;
                    WorkerEvent::BatchSet
                }
                Action::Wait => match self.workers[rank].inbox.pop_front() {
                    Some(delivery) => self.take_delivery(rank, delivery),
                    None => {
                        self.workers[rank].doing = Doing::Wait { since };
                        return Ok(());
                    }
                },
            };
        }
    }

    /// Seconds of a worker's next step.
    fn work_seconds(&self, rank: Rank) -> f64 {
        let worker = &self.workers[rank];
        let number = worker.record.local_steps;
        worker.batch_factor * self.cluster.workers[rank].work_seconds(self.options.seed, rank, number)
    }

    fn begin_step(&mut self, rank: Rank) {
        let end = self.cluster.workers[rank].ends_at(seconds(self.now), self.work_seconds(rank));
        self.queue.push(nanoseconds(end).max(self.now + 1), Phase::Done, rank, Event::StepDone);
    }

    fn step_done(&mut self, rank: Rank, watch: &mut dyn Watch) -> Result<()> {
        let worker = &mut self.workers[rank];
        let Doing::Step { update, began } = worker.doing else {
            return Err(Error::Internal("a step ended that had not begun".into()));
        };
        if let Some(rates) = &self.options.learning_rates {
            // As the runtime does: this round's steps are the least that will be added to what all know.
            let samples = self.progress.global_samples + (self.job.batch_size * self.job.size) as u64;
            worker.learner.set_learning_rate(rates.after(samples));
        }
        let outcome = worker.learner.step(update)?;
        if update == crate::policy::Update::Local {
            worker.step_taken(outcome.samples as u64);
        }
        let step_seconds = seconds(self.now - began);
        worker.step_seconds.add(step_seconds);
        worker.record.local_steps += 1;
        worker.record.samples += outcome.samples as u64;
        worker.record.compute_seconds += step_seconds;
        worker.round.local_steps += 1;
        worker.round.samples += outcome.samples as u64;
        worker.round.loss_sum += outcome.loss;
        worker.round.compute_seconds += step_seconds;
        let local_step = worker.record.local_steps;
        if !outcome.loss.is_finite() {
            return Err(Error::Diverged { rank, step: local_step, loss: outcome.loss });
        }
        let (samples, loss) = (outcome.samples, outcome.loss);
        watch.stepped(
            seconds(self.now),
            rank,
            &SimStep { local_step, seconds: step_seconds, samples, loss },
        )?;
        if self.scheme == Scheme::Alone {
            self.progress.global_samples = self.workers[rank].record.samples;
            if self.progress.is_due() {
                let parameters = self.workers[rank].learner.parameters().to_vec();
                self.evaluate(&parameters, watch)?;
            }
            if self.progress.should_stop(seconds(self.now), local_step) {
                return self.drive(rank, WorkerEvent::StopRequested, watch);
            }
        }
        self.drive(rank, WorkerEvent::Stepped { step_seconds, samples, loss }, watch)
    }

    fn stop(&mut self, rank: Rank, watch: &mut dyn Watch) -> Result<()> {
        self.leave(rank, Doing::Stopped);
        self.lost(rank, watch)
    }

    /// A worker is gone: what it had begun is nobody's any more.
    pub(super) fn leave(&mut self, rank: Rank, doing: Doing) {
        let worker = &mut self.workers[rank];
        worker.doing = doing;
        worker.record.ended_seconds = seconds(self.now);
        self.active -= 1;
        for exchange in std::mem::take(&mut worker.open) {
            self.release(exchange);
        }
    }

    /// Measures the global parameters. It takes no virtual time, as a real run does not count it.
    pub(super) fn evaluate(&mut self, parameters: &[f32], watch: &mut dyn Watch) -> Result<()> {
        let mut bytes: u64 = self.workers.iter().map(|worker| worker.record.bytes_sent).sum();
        bytes += self.service.as_ref().map_or(0, |service| service.bytes_sent);
        let evaluation = self.progress.evaluate(seconds(self.now), bytes, parameters)?;
        watch.evaluated(&evaluation)
    }

    fn note(&mut self, rank: Rank, action: &Action, reason: Reason, watch: &mut dyn Watch) -> Result<()> {
        watch.decided(seconds(self.now), rank, action, &reason)?;
        if self.options.keeps_trace {
            let (seconds, action) = (seconds(self.now), action.clone());
            self.trace.push(TraceEntry { seconds, rank, action, reason });
        }
        Ok(())
    }

    /// A coordinator's answer to a report, as the runtime notes it.
    pub(super) fn note_reply(
        &mut self,
        rank: Rank,
        report: Report,
        reason: Reason,
        is_watched: bool,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let action = Action::Report(report);
        match is_watched {
            true => self.note(rank, &action, reason, watch),
            false => self.note(rank, &action, reason, &mut Unwatched),
        }
    }

    pub(super) fn broken(&self, rank: Rank, what: &str) -> Error {
        Error::Internal(format!("policy `{}` on rank {rank} {what}", self.options.mode))
    }

    pub(super) fn peer(&self, rank: Rank) -> Peer {
        // Nothing simulated has a process.
        Peer { rank, host: self.cluster.network.host_name(rank).into(), pid: 0 }
    }

    /// Everybody waits, and nothing will happen any more.
    pub(super) fn stalled(&self) -> Error {
        let waiting = self.workers.iter().position(|worker| worker.is_active()).unwrap_or_default();
        let (operation, since, missing) = match self.workers[waiting].doing {
            Doing::Finish { exchange, since, .. } => {
                let there = |rank: &Rank| self.exchanges.get(&exchange).is_some_and(|found| found.has(*rank));
                let missing = (0..self.workers.len()).filter(|rank| !there(rank)).collect();
                (format!("exchange {}", exchange.0), since, missing)
            }
            Doing::Report { since } => ("a report to the coordinator".into(), since, Vec::new()),
            Doing::Push { since } => ("a push to the server".into(), since, Vec::new()),
            Doing::Pull { since, .. } => ("a pull from the server".into(), since, Vec::new()),
            Doing::Wait { since } => ("waiting for the coordinator".into(), since, Vec::new()),
            _ => ("training".to_string(), self.now, Vec::new()),
        };
        let missing: Vec<Rank> = missing;
        let state = |rank: Rank| match self.workers[rank].doing {
            Doing::Stopped => format!("rank {rank} has stopped"),
            Doing::Dead => format!("rank {rank} is dead"),
            _ => format!("rank {rank} waits as well"),
        };
        let states: Vec<String> = missing.iter().map(|&rank| state(rank)).collect();
        let hint = match states.as_slice() {
            [] => "the coordinator never answers, though nothing else will happen".to_string(),
            states => states.join(", "),
        };
        Error::Stalled {
            waiting,
            missing: missing.into_iter().map(|rank| self.peer(rank)).collect(),
            operation,
            seconds: seconds(self.now - since),
            hint,
        }
    }

    /// The global parameters: the server's, else those that the last exchange left everybody with.
    pub(super) fn global_parameters(&mut self) -> Vec<f32> {
        if let Some(store) = self.service.as_ref().and_then(|service| service.store.as_ref()) {
            return store.parameters().to_vec();
        }
        let living = self.workers.iter().position(|worker| worker.doing != Doing::Dead).unwrap_or_default();
        match self.last_payload {
            Some(Payload::Delta) => self.workers[living].anchor(),
            _ => self.workers[living].learner.parameters().to_vec(),
        }
    }

    fn conclude(mut self, watch: &mut dyn Watch) -> Result<Record> {
        let parameters = self.global_parameters();
        if !self.progress.is_measured() {
            self.evaluate(&parameters, watch)?;
        }
        let ended = self.workers.iter().map(|worker| worker.record.ended_seconds);
        Ok(Record {
            mode: self.options.mode,
            seconds: ended.fold(0.0, f64::max),
            global_samples: self.progress.global_samples,
            exchanges: self.exchange_count,
            versions: self.service.as_ref().map_or(0, Service::versions),
            discarded: self.service.as_ref().map_or(0, |service| service.discarded),
            stopped_by: self.progress.stopped_by.unwrap_or(StoppedBy::Samples),
            time_to_target_seconds: self.progress.time_to_target_seconds,
            evaluations: self.progress.evaluations,
            trace: self.trace,
            parameters,
            workers: self.workers.into_iter().map(|worker| worker.record).collect(),
        })
    }

    fn evaluation_done(&mut self, rank: Rank, watch: &mut dyn Watch) -> Result<()> {
        let worker = &mut self.workers[rank];
        let Doing::Evaluate { began } = worker.doing else {
            return Err(Error::Internal("an evaluation ended that had not begun".into()));
        };
        worker.record.evaluate_seconds += seconds(self.now - began);
        let score = worker.learner.held_out()?;
        let (loss, accuracy) = (score.loss(), score.accuracy());
        self.drive(rank, WorkerEvent::Evaluated { loss, accuracy }, watch)
    }

    fn set_batch(&mut self, rank: Rank, batch_size: usize, data_budget: Option<usize>) -> Result<()> {
        self.workers[rank].learner.set_batch(batch_size, data_budget)?;
        self.workers[rank].batch_factor = batch_size as f64 / self.job.batch_size as f64;
        Ok(())
    }

    /// Takes what a reply brought, and tells it as an event.
    pub(super) fn take_delivery(&mut self, rank: Rank, delivery: Delivery) -> WorkerEvent {
        let worker = &mut self.workers[rank];
        worker.is_push_open &= !delivery.answers_push;
        if delivery.parcel.is_some() {
            worker.parcel = delivery.parcel;
        }
        WorkerEvent::Replied(delivery.reply)
    }

    /// The time limit of a served run: exchanges have theirs checked when all meet.
    fn time_is_up(&mut self, watch: &mut dyn Watch) -> Result<()> {
        match self.progress.should_stop(seconds(self.now), 0) {
            true => self.stop_serving(watch),
            false => Ok(()),
        }
    }

    fn dies(&mut self, rank: Rank, watch: &mut dyn Watch) -> Result<()> {
        watch.died(seconds(self.now), rank)?;
        self.workers[rank].record.is_dead = true;
        self.leave(rank, Doing::Dead);
        self.dead.push(rank);
        if self.scheme != Scheme::Server {
            self.exchange_without(rank)?;
        }
        self.lost(rank, watch)
    }
}

/// What policies are told: the step times of a warm-up step, drawn like any other.
fn job(cluster: &SimCluster, options: &SimOptions) -> Job {
    let step_seconds: Arc<[f64]> = (0..cluster.size())
        .map(|rank| cluster.workers[rank].work_seconds(options.seed, rank, WARM_UP))
        .collect();
    let shard_samples = match options.shard_samples.as_slice() {
        [] => vec![1; cluster.size()],
        samples => samples.to_vec(),
    };
    Job {
        size: cluster.size(),
        step_seconds,
        shard_samples: shard_samples.into(),
        batch_size: options.batch_size,
        learning_rate: options.learning_rate,
        budget_samples: options.limits.samples,
    }
}

/// The number of the warm-up step: no other step has it.
const WARM_UP: u64 = u64::MAX;

fn state_server(options: &SimOptions, job: &Job) -> Box<dyn Coordinator> {
    let settings = crate::policy::esync::Settings {
        max_local_steps: options.policy.max_local_steps,
        ..Default::default()
    };
    Box::new(EsyncCoordinator::new(job.size, settings).with_step_seconds(&job.step_seconds))
}

fn store(options: &SimOptions, workers: &mut [Worker]) -> Result<Store> {
    let size = workers.len();
    let learner = &mut workers[0].learner;
    let trainable = learner.layout().trainable;
    let store = Store::new(learner.parameters(), trainable, size)?;
    // Only its rule needs a copy of the parameters for every worker.
    let needs_backups = Mode::by_name(&options.mode).is_ok_and(Mode::needs_backups);
    Ok(if needs_backups { store.with_backups() } else { store })
}
