//! The half of a worker that speaks to a parameter server.

use super::{Observer, Worker};
use crate::collective::Communicator;
use crate::error::{Error, Result};
use crate::learner::{FlatSlice, Model};
use crate::policy::{
    Action, Begun, Fragment, Install, LocalSteps, Payload, Replica, Reply, Report, Update, Versions,
    WorkerEvent, WorkerPolicy, norm,
};
use crate::runtime::exchange::Exchange;
use crate::runtime::server::{Answer, Finale, Link};
use crate::runtime::stopwatch::Activity;
use crate::transport::Deadline;
use std::time::{Duration, Instant};

/// A push whose answer has come.
#[derive(Debug, Clone, PartialEq)]
pub struct PushReport {
    /// Its number, from 1.
    pub push: u64,
    /// Steps that it summed up.
    pub local_steps: u64,
    /// Samples that it summed up.
    pub samples: u64,
    /// The mean training loss of its steps.
    pub loss: f64,
    /// The version that it started from.
    pub base: Versions,
    /// How many versions it was behind when it was applied, if it was applied before the answer.
    pub staleness: Option<u64>,
    /// Bytes of its values.
    pub bytes: u64,
    /// Seconds that the worker spent on it, from the push to the answer, without what the server held it back. An
    /// overlapped push costs the worker only what it waited for in the end.
    pub exchange_seconds: f64,
    /// Seconds that the server held the answer back while the worker waited.
    pub wait_seconds: f64,
}

/// The server's parameters were put in place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PullReport {
    /// Their version.
    pub version: Versions,
    /// Versions since the worker's last pull.
    pub versions_ahead: u64,
    /// Bytes of the parameters.
    pub bytes: u64,
    /// Seconds to put them in place, and to ask for them if they had not come with a reply.
    pub exchange_seconds: f64,
}

/// What a worker keeps for its server.
pub(super) struct Served {
    link: Link,
    replica: Replica<f32>,
    /// What is pushed.
    outgoing: Vec<f32>,
    /// The proof that a pull was asked for: by its own report, or by the push that is answered with one.
    request: Option<Begun>,
    /// Parameters that came with the last reply.
    delivered: Option<(Vec<f32>, Versions)>,
    /// The version that the anchor came from.
    base: Versions,
    last_push: Instant,
    pushes: u64,
    /// The push that was not answered yet.
    push: Option<PushReport>,
    /// Samples of steps that the server has not heard of.
    untold_samples: u64,
    has_told_wish: bool,
}

/// How long a worker waits before it looks whether somebody wishes to stop.
const GLANCE: Duration = Duration::from_millis(200);

const NO_SERVER: &str = "use a parameter server: there is none";

impl Worker {
    /// A worker at a parameter server. All ranks' models have the same parameters already.
    ///
    /// # Errors
    /// `Usage` if the model has other than one group of f32 parameters.
    pub fn served(
        policy: Box<dyn WorkerPolicy>,
        communicator: Communicator,
        link: Link,
        model: &mut impl Model,
    ) -> Result<Worker> {
        let trainable = model.trainable(0);
        let served = Served {
            link,
            replica: Replica::new(flat(model)?, trainable)?,
            outgoing: Vec::new(),
            request: None,
            delivered: None,
            base: Versions(0),
            last_push: Instant::now(),
            pushes: 0,
            push: None,
            untold_samples: 0,
            has_told_wish: false,
        };
        Ok(Worker { served: Some(served), ..Worker::over(policy, communicator, None, Exchange::none()) })
    }

    /// To be called at the beginning of training.
    pub(super) fn begin_served(&mut self) {
        if let Some(served) = &mut self.served {
            served.last_push = Instant::now();
        }
    }

    /// To be called after every step.
    pub(super) fn step_taken_served(&mut self, update: Update, samples: usize) {
        if let Some(served) = &mut self.served {
            served.untold_samples += samples as u64;
            if update == Update::Local {
                served.replica.step_taken();
            }
        }
    }

    /// Tells the server that this worker's failure makes the others' work useless.
    pub(super) fn fail_served(&mut self, error: &Error) {
        if let Some(served) = &mut self.served {
            served.link.fail(&error.to_string());
        }
    }

    /// Bytes of pushes and of pulls.
    pub fn served_bytes(&self) -> (u64, u64) {
        self.served.as_ref().map_or((0, 0), |served| (served.link.bytes_sent(), served.link.bytes_received()))
    }

    /// The end: waits until all workers are done, and puts the result in place. `None` for a worker without a server.
    ///
    /// # Errors
    /// `PeerLost`, `Stalled`.
    pub fn conclude_served(&mut self, model: &mut impl Model) -> Result<Option<Finale>> {
        self.clock.switch(Activity::Wait);
        let Some(served) = &mut self.served else { return Ok(None) };
        served.link.goodbye()?;
        let finale = served.link.finale(Some(served.link.timeout()))?;
        flat(model)?.copy_from_slice(&finale.parameters);
        self.clock.switch(Activity::Other);
        Ok(Some(finale))
    }

    /// Carries out an action that concerns a server.
    pub(super) fn serve<M: Model>(
        &mut self,
        action: Action,
        model: &mut M,
        observer: &mut dyn Observer<M>,
    ) -> Result<WorkerEvent> {
        match action {
            Action::Push { payload, fragment } => {
                self.push(payload, fragment, model, observer)?;
                self.replied(None, observer)
            }
            Action::BeginPush { payload, fragment } => {
                self.push(payload, fragment, model, observer)?;
                self.clock.switch(Activity::Decide);
                Ok(WorkerEvent::PushBegun)
            }
            Action::FinishPush { wait: true } | Action::Wait => self.replied(None, observer),
            Action::FinishPush { wait: false } => self.replied(Some(Duration::ZERO), observer),
            Action::Report(report) => {
                self.ask(report, observer)?;
                self.replied(None, observer)
            }
            Action::Pull { install } => self.pull(install, model, observer),
            other => Err(self.cannot(&format!("carry out {other:?} at a parameter server"))),
        }
    }

    fn push<M: Model>(
        &mut self,
        payload: Payload,
        fragment: Fragment,
        model: &mut M,
        observer: &mut dyn Observer<M>,
    ) -> Result<()> {
        if fragment != Fragment::Whole {
            return Err(self.cannot("push a fragment: servers take whole parameters"));
        }
        self.clock.switch(Activity::Exchange);
        let round = std::mem::take(&mut self.round);
        let loss = round.loss_sum / round.local_steps.max(1) as f64;
        let Some(served) = &mut self.served else { return Err(self.cannot(NO_SERVER)) };
        if served.push.is_some() {
            return Err(self.cannot("push again before the last push was answered"));
        }
        served.fill_outgoing(payload, model)?;
        let trainable = served.replica.trainable();
        let report = Report::Pushed {
            payload,
            local_steps: LocalSteps(round.local_steps),
            samples: round.samples,
            loss,
            norm: norm(&served.outgoing[..trainable]),
            seconds_since_push: served.last_push.elapsed().as_secs_f64(),
            compute_seconds: round.step_seconds,
            base: served.base,
        };
        served.last_push = Instant::now();
        served.request = Some(served.replica.request());
        let before = served.link.bytes_sent();
        let samples = std::mem::take(&mut served.untold_samples);
        served.link.push(payload, &served.outgoing, report, samples, observer.stop_wish())?;
        served.pushes += 1;
        let exchange_seconds = self.clock.switch(Activity::Exchange);
        served.push = Some(PushReport {
            push: served.pushes,
            local_steps: round.local_steps,
            samples: round.samples,
            loss,
            base: served.base,
            staleness: None,
            bytes: served.link.bytes_sent() - before,
            exchange_seconds,
            wait_seconds: 0.0,
        });
        Ok(())
    }

    fn ask<M: Model>(&mut self, report: Report, observer: &mut dyn Observer<M>) -> Result<()> {
        self.clock.switch(Activity::Exchange);
        let Some(served) = &mut self.served else { return Err(self.cannot(NO_SERVER)) };
        served.request = Some(served.replica.request());
        let samples = std::mem::take(&mut served.untold_samples);
        served.link.report(report, samples, observer.stop_wish())
    }

    /// The event of the next answer, or of none within `patience`.
    fn replied<M: Model>(
        &mut self,
        patience: Option<Duration>,
        observer: &mut dyn Observer<M>,
    ) -> Result<WorkerEvent> {
        match self.next_answer(patience, observer)? {
            Some(reply) => Ok(WorkerEvent::Replied(reply)),
            None => Ok(WorkerEvent::NotYet),
        }
    }

    /// Waits for the next answer and keeps what came with it. What the server held back counts as waiting, the rest as
    /// exchange.
    fn next_answer<M: Model>(
        &mut self,
        patience: Option<Duration>,
        observer: &mut dyn Observer<M>,
    ) -> Result<Option<Reply>> {
        self.clock.switch(Activity::Exchange);
        let Some(served) = &mut self.served else { return Err(self.cannot(NO_SERVER)) };
        let answer = served.await_answer(patience, observer)?;
        let seconds = self.clock.switch(Activity::Decide);
        let Some(Answer { reply, held_seconds, version, global_samples, staleness, parameters, .. }) = answer
        else {
            return Ok(None);
        };
        self.totals.global_samples = global_samples;
        let wait_seconds = held_seconds.min(seconds);
        self.clock.reassign(Activity::Exchange, Activity::Wait, wait_seconds);
        if let Some(push) = served.push.take() {
            let exchange_seconds = push.exchange_seconds + seconds - wait_seconds;
            observer.pushed(&PushReport { staleness, exchange_seconds, wait_seconds, ..push })?;
        }
        if let Some(parameters) = parameters
            && let Some((old, _)) = served.delivered.replace((parameters, version))
        {
            served.link.recycle(old);
        }
        Ok(Some(reply))
    }

    fn pull<M: Model>(
        &mut self,
        install: Install,
        model: &mut M,
        observer: &mut dyn Observer<M>,
    ) -> Result<WorkerEvent> {
        let asked_at = Instant::now();
        let is_delivered = self.served.as_ref().is_some_and(|served| served.delivered.is_some());
        if !is_delivered {
            self.ask(Report::PullRequested, observer)?;
            match self.next_answer(None, observer)? {
                Some(Reply::Pull) => {}
                Some(other) => return Ok(WorkerEvent::Replied(other)),
                None => return Err(self.cannot("pull, and was told nothing")),
            }
        }
        self.clock.switch(Activity::Exchange);
        let Some(served) = &mut self.served else { return Err(self.cannot(NO_SERVER)) };
        let Some((parameters, version)) = served.delivered.take() else {
            return Err(self.cannot("pull, and no parameters came with the reply"));
        };
        let request = served.request.take().unwrap_or_else(|| served.replica.request());
        served.replica.install(request, flat(model)?, &parameters, install)?;
        let report = PullReport {
            version,
            versions_ahead: version.0.saturating_sub(served.base.0),
            bytes: served.link.pull_bytes(),
            exchange_seconds: asked_at.elapsed().as_secs_f64(),
        };
        served.base = version;
        served.link.recycle(parameters);
        self.clock.switch(Activity::Decide);
        observer.pulled(&report)?;
        Ok(WorkerEvent::Pulled { version })
    }
}

impl Served {
    /// Writes what is pushed; the statistics follow the trained part by value.
    fn fill_outgoing(&mut self, payload: Payload, model: &mut impl Model) -> Result<()> {
        let len = self.replica.anchor().len();
        self.outgoing.resize(len, 0.0);
        let trainable = self.replica.trainable();
        match payload {
            Payload::Delta => self.replica.take_delta(flat(model)?, &mut self.outgoing),
            Payload::Parameters => {
                self.outgoing.copy_from_slice(flat(model)?);
                Ok(())
            }
            Payload::Gradient => {
                self.outgoing[trainable..].copy_from_slice(&flat(model)?[trainable..]);
                match model.gradient(0) {
                    Some(FlatSlice::F32(gradient)) if gradient.len() == trainable => {
                        self.outgoing[..trainable].copy_from_slice(gradient);
                        Ok(())
                    }
                    _ => Err(Error::Internal("this model does not show its gradient; push deltas".into())),
                }
            }
        }
    }

    /// Waits, and passes on a wish to stop that comes up meanwhile.
    fn await_answer<M>(
        &mut self,
        patience: Option<Duration>,
        observer: &mut dyn Observer<M>,
    ) -> Result<Option<Answer>> {
        let operation = match &self.push {
            Some(push) => format!("push {} to the parameter server", push.push),
            None => "a question to the parameter server".to_string(),
        };
        if let Some(patience) = patience {
            return self.link.answer_within(patience, &operation);
        }
        let deadline = Deadline::after(self.link.timeout());
        loop {
            let answer = self.link.answer_within(GLANCE.min(deadline.remaining()), &operation)?;
            if answer.is_some() {
                return Ok(answer);
            }
            if deadline.has_passed() {
                return Err(self.link.stalled(deadline, &operation));
            }
            let wish = observer.stop_wish();
            if wish > 0 && !self.has_told_wish {
                self.has_told_wish = true;
                self.link.wish(wish)?;
            }
        }
    }
}

/// The parameters and statistics.
fn flat(model: &mut impl Model) -> Result<&mut [f32]> {
    let groups = model.groups();
    match model.parameters(0) {
        FlatSlice::F32(values) if groups == 1 => Ok(values),
        _ => Err(Error::Usage("a parameter server holds f32 parameters, in one group".into())),
    }
}
