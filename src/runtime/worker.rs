//! One rank's side of training: carries out what its policy says.

mod exchanging;
mod served;

pub use served::{PullReport, PushReport};

use super::channel::Channel;
use super::control::StateServer;
use super::exchange::{Exchange, ExchangeOptions};
use super::stopwatch::{Activity, Stopwatch};
use crate::collective::Communicator;
use crate::error::{Error, Result};
use crate::learner::Model;
use crate::policy::{Action, MemberReport, Reason, Smoothed, Update, WorkerEvent, WorkerPolicy};
use exchanging::Pending;
use std::sync::Arc;

/// A mini-batch that the training loop has run.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Wall seconds, simulated slowness included, exchanges not.
    pub seconds: f64,
    /// Samples in it.
    pub samples: usize,
    /// Its mean training loss.
    pub loss: f64,
}

/// What the training loop does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Run a mini-batch, and tell [`Worker::stepped`].
    Step {
        /// Whether the local optimiser applies the gradient now, or the exchange hands it the mean.
        update: Update,
    },
    /// Training is over.
    Stop,
}

/// What this rank and all ranks have done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Steps of this rank.
    pub local_steps: u64,
    /// Samples of this rank.
    pub samples: u64,
    /// Samples of all ranks, up to the last exchange.
    pub global_samples: u64,
    /// Exchanges.
    pub exchanges: u64,
}

/// An exchange that has just ended.
#[derive(Debug, Clone)]
pub struct ExchangeReport {
    /// Its number, from 1.
    pub exchange: u64,
    /// All ranks' figures of the round.
    pub members: Arc<[MemberReport]>,
    /// Seconds that this rank waited for the others to arrive.
    pub wait_seconds: f64,
    /// Seconds from everybody's arrival to the result in place; if the exchange ran beside steps, only those of them that
    /// this rank's training waited for.
    pub exchange_seconds: f64,
    /// The greatest of all ranks' [`stop_wish`](Observer::stop_wish)es.
    pub stop_wish: u64,
}

impl ExchangeReport {
    /// The mean training loss over the samples of all ranks' rounds.
    pub fn mean_loss(&self) -> f64 {
        let samples: u64 = self.members.iter().map(|member| member.samples).sum();
        let sum: f64 = self.members.iter().map(|member| member.loss * member.samples as f64).sum();
        sum / samples.max(1) as f64
    }
}

/// What an observer works with.
pub struct Observed<'a, M> {
    /// The model, after the exchange.
    pub model: &'a mut M,
    /// For collective work such as evaluation; all ranks are here.
    pub communicator: &'a mut Communicator,
    /// The clock, to account for what the observer does.
    pub clock: &'a mut Stopwatch,
    /// So far.
    pub totals: Totals,
}

/// Looks on: writes metrics, evaluates, and says when to stop.
pub trait Observer<M> {
    /// Whether this rank wishes to stop at the next exchange: 0 for no, else the observer's own number for why (a signal, a
    /// time limit). All ranks learn the greatest.
    fn stop_wish(&mut self) -> u64 {
        0
    }

    /// Training begins now: all ranks have arrived.
    fn began(&mut self) {}

    /// A decision was taken.
    fn decided(&mut self, action: &Action, reason: &Reason) {
        let _ = (action, reason);
    }

    /// A step was done. For a policy without exchanges this is the place to evaluate, and to answer whether to stop.
    ///
    /// # Errors
    /// Whatever ends training.
    fn stepped(&mut self, step: &Step, observed: Observed<'_, M>) -> Result<bool> {
        let _ = (step, observed);
        Ok(false)
    }

    /// A step was done while an exchange runs beside it: the communicator is in use, so that nothing can be evaluated.
    ///
    /// # Errors
    /// Whatever ends training.
    fn stepped_beside_exchange(&mut self, step: &Step, clock: &Stopwatch, totals: Totals) -> Result<()> {
        let _ = (step, clock, totals);
        Ok(())
    }

    /// The answer to a push is here.
    ///
    /// # Errors
    /// Whatever ends training.
    fn pushed(&mut self, report: &PushReport) -> Result<()> {
        let _ = report;
        Ok(())
    }

    /// A server's parameters are in place.
    ///
    /// # Errors
    /// Whatever ends training.
    fn pulled(&mut self, report: &PullReport) -> Result<()> {
        let _ = report;
        Ok(())
    }

    /// An exchange has ended; all ranks are called with the same figures and must give the same answer: whether to stop.
    ///
    /// # Errors
    /// Whatever ends training.
    fn exchanged(&mut self, report: &ExchangeReport, observed: Observed<'_, M>) -> Result<bool> {
        let _ = observed;
        Ok(report.stop_wish != 0)
    }
}

/// An observer that does nothing.
pub struct Silent;
impl<M> Observer<M> for Silent {}

/// Drives one rank's policy. See the [module](super).
pub struct Worker {
    policy: Box<dyn WorkerPolicy>,
    channel: Channel,
    state_server: Option<Box<dyn StateServer>>,
    state_server_name: Option<&'static str>,
    options: Arc<ExchangeOptions>,
    exchange: Exchange,
    clock: Stopwatch,
    totals: Totals,
    round: Round,
    step_seconds: Smoothed,
    transfer_seconds: f64,
    pending: Option<Pending>,
    /// What it keeps for a parameter server, if it has one.
    served: Option<served::Served>,
    stopped: bool,
}

/// This rank's figures since the last exchange.
#[derive(Default)]
struct Round {
    local_steps: u64,
    samples: u64,
    loss_sum: f64,
    /// Of its steps, simulated slowness included.
    step_seconds: f64,
}

impl Worker {
    /// A worker over `communicator`. The model's parameters become those of rank 0 on every rank.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn new(
        policy: Box<dyn WorkerPolicy>,
        mut communicator: Communicator,
        state_server: Option<Box<dyn StateServer>>,
        options: ExchangeOptions,
        model: &mut impl Model,
    ) -> Result<Worker> {
        let mut exchange = Exchange::new(model, &communicator, &options)?;
        exchange.synchronise_start(model, &mut communicator, &options)?;
        Ok(Worker {
            options: Arc::new(options),
            ..Worker::over(policy, communicator, state_server, exchange)
        })
    }

    fn over(
        policy: Box<dyn WorkerPolicy>,
        communicator: Communicator,
        state_server: Option<Box<dyn StateServer>>,
        exchange: Exchange,
    ) -> Worker {
        Worker {
            policy,
            channel: Channel::new(communicator),
            state_server_name: state_server.as_ref().map(|server| server.name()),
            state_server,
            options: Arc::default(),
            exchange,
            clock: Stopwatch::start(Activity::Other),
            totals: Totals::default(),
            round: Round::default(),
            step_seconds: Smoothed::default(),
            transfer_seconds: 0.0,
            pending: None,
            served: None,
            stopped: false,
        }
    }

    /// Begins training: the clock starts. `step_seconds` are all ranks' seconds for one warm-up step.
    ///
    /// # Errors
    /// Those of the policy's first actions.
    pub fn begin<M: Model>(
        &mut self,
        step_seconds: Arc<[f64]>,
        model: &mut M,
        observer: &mut dyn Observer<M>,
    ) -> Result<Next> {
        self.communicator().barrier()?;
        self.clock = Stopwatch::start(Activity::Decide);
        self.begin_served();
        observer.began();
        let rank = self.channel.rank();
        self.drive(WorkerEvent::Started { rank, step_seconds }, model, observer)
    }

    /// Tells the policy about a step, and carries out what it says until the next one.
    ///
    /// # Errors
    /// `Diverged` if a loss is not a number; those of the communicator, the state server and the observer.
    pub fn stepped<M: Model>(
        &mut self,
        step: Step,
        update: Update,
        model: &mut M,
        observer: &mut dyn Observer<M>,
    ) -> Result<Next> {
        self.totals.local_steps += 1;
        self.totals.samples += step.samples as u64;
        self.round.local_steps += 1;
        self.round.samples += step.samples as u64;
        self.round.loss_sum += step.loss;
        self.round.step_seconds += step.seconds;
        self.step_seconds.add(step.seconds);
        if update == Update::Local {
            self.exchange.step_taken(step.samples as u64);
        }
        self.step_taken_served(update, step.samples);
        if self.channel.size() == 1 {
            self.totals.global_samples = self.totals.samples;
        }
        if !step.loss.is_finite() {
            let (rank, step_number) = (self.channel.rank(), self.totals.local_steps);
            let error = Error::Diverged { rank, step: step_number, loss: step.loss };
            self.fail_served(&error);
            return Err(error);
        }
        self.clock.switch(Activity::Other);
        let stop = match self.channel.is_away() {
            true => observer.stepped_beside_exchange(&step, &self.clock, self.totals).map(|()| false)?,
            false => observer.stepped(&step, self.observed(model))?,
        };
        self.clock.switch(Activity::Decide);
        if stop {
            return self.drive(WorkerEvent::StopRequested, model, observer);
        }
        let event =
            WorkerEvent::Stepped { step_seconds: step.seconds, samples: step.samples, loss: step.loss };
        self.drive(event, model, observer)
    }

    /// The clock: the training loop switches it to `Compute` and `Slow`, and reads it at the end.
    pub fn clock(&mut self) -> &mut Stopwatch {
        &mut self.clock
    }

    /// What was done so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The communicator. While an exchange runs beside steps this waits for its end.
    pub fn communicator(&mut self) -> &mut Communicator {
        self.channel.communicator()
    }

    /// The communicator alone: the end of the worker, and of its lines to services.
    pub fn into_communicator(self) -> Communicator {
        self.channel.into_communicator()
    }

    /// The policy's name.
    pub fn mode(&self) -> &'static str {
        self.policy.name()
    }

    /// How the state server is reached, if there is one.
    pub fn state_server(&self) -> Option<&'static str> {
        self.state_server_name
    }

    /// Whether training is over.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    fn observed<'a, M>(&'a mut self, model: &'a mut M) -> Observed<'a, M> {
        Observed {
            model,
            communicator: self.channel.communicator(),
            clock: &mut self.clock,
            totals: self.totals,
        }
    }

    fn drive<M: Model>(
        &mut self,
        event: WorkerEvent,
        model: &mut M,
        observer: &mut dyn Observer<M>,
    ) -> Result<Next> {
        let mut event = event;
        loop {
            let (action, reason) = self.policy.next(event);
            if let Reason::Unexpected { .. } = reason {
                return Err(Error::Internal(format!("policy `{}`: {reason}", self.policy.name())));
            }
            observer.decided(&action, &reason);
            if !matches!(action, Action::Begin { .. } | Action::Finish { .. } | Action::Stop) {
                self.depart(model, observer)?;
            }
            event = match action {
                Action::Step { update } => {
                    self.clock.switch(Activity::Other);
                    return Ok(Next::Step { update });
                }
                Action::Stop => {
                    self.communicator();
                    self.stopped = true;
                    self.state_server = None;
                    self.clock.switch(Activity::Other);
                    return Ok(Next::Stop);
                }
                Action::Report(report) if self.served.is_none() => match &mut self.state_server {
                    Some(server) => {
                        let (reply, reason) = server.ask(&report)?;
                        observer.decided(&Action::Report(report), &reason);
                        WorkerEvent::Replied(reply)
                    }
                    None => return Err(self.cannot("ask a state server: none was set up")),
                },
                Action::Begin { exchange, fragment, payload } => {
                    if self.pending.is_some() {
                        return Err(self.cannot("begin an exchange before the last one is finished"));
                    }
                    let has_departed = false;
                    let pending = Pending { exchange, fragment, payload, has_departed };
                    self.pending = Some(pending);
                    WorkerEvent::Begun { exchange }
                }
                Action::Finish { exchange, install, .. } => {
                    self.finish(exchange, install, model, observer)?
                }
                action @ (Action::Report(_)
                | Action::Push { .. }
                | Action::BeginPush { .. }
                | Action::FinishPush { .. }
                | Action::Pull { .. }
                | Action::Wait) => self.serve(action, model, observer)?,
                Action::Evaluate => {
                    self.clock.switch(Activity::Evaluate);
                    let held_out = model.held_out()?;
                    self.clock.switch(Activity::Decide);
                    WorkerEvent::Evaluated { loss: held_out.loss(), accuracy: held_out.accuracy() }
                }
                Action::SetBatch { batch_size, data_budget } => {
                    self.clock.switch(Activity::Compute);
                    model.set_batch(batch_size, data_budget)?;
                    self.clock.switch(Activity::Decide);
                    WorkerEvent::BatchSet
                }
            };
        }
    }

    fn cannot(&self, what: &str) -> Error {
        Error::Internal(format!("policy `{}` wants to {what}", self.policy.name()))
    }
}
