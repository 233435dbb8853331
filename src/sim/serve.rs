//! Messages to and from the server.

use super::queue::{Phase, seconds};
use super::service::{MOST_IDLE_DEADLINES, Message, Open, Push};
use super::simulation::{Event, Simulation};
use super::watch::{SimPull, SimPush, Watch};
use super::worker::{Delivery, Doing, Parcel};
use crate::error::{Error, Result};
use crate::policy::{
    Directive, Fragment, Install, LocalSteps, Payload, PushRule, Reason, Reply, Report, WorkerEvent, norm,
};
use crate::transport::Rank;
use std::time::Duration;

const NO_SERVER: &str = "asks a server, and there is none";

impl Simulation {
    /// A message leaves a worker.
    pub(super) fn send(&mut self, rank: Rank, report: Report, values: Option<Vec<f32>>) -> Result<()> {
        if self.service.is_none() {
            return Err(self.broken(rank, NO_SERVER));
        }
        let trainable = self.workers[rank].learner.layout().trainable;
        let bytes = values.as_ref().map_or(0, |values| self.wire.bytes(values.len(), trainable));
        self.workers[rank].record.bytes_sent += bytes;
        let at = self.network.reach_server(self.now, rank, bytes);
        let message = Message { report, values, sent: self.now };
        self.queue.push(at, Phase::Arrival, rank, Event::Arrives(message));
        Ok(())
    }

    pub(super) fn push(&mut self, rank: Rank, payload: Payload, fragment: Fragment) -> Result<()> {
        let worker = &mut self.workers[rank];
        let mut values = worker.take_push(payload, fragment)?;
        worker.request();
        let round = worker.take_round();
        worker.record.pushes += 1;
        let trainable = worker.learner.layout().trainable;
        self.wire.round(&mut values[..trainable], None);
        worker.pushed = SimPush {
            push: worker.record.pushes,
            local_steps: round.local_steps,
            samples: round.samples,
            loss: round.mean_loss(),
            base: worker.base.0,
            bytes: self.wire.bytes(values.len(), trainable),
            ..SimPush::default()
        };
        let report = Report::Pushed {
            payload,
            local_steps: LocalSteps(round.local_steps),
            samples: round.samples,
            loss: round.mean_loss(),
            seconds_since_push: seconds(self.now - worker.last_push),
            compute_seconds: round.compute_seconds,
            base: worker.base,
            norm: norm(&values[..trainable]),
        };
        worker.last_push = self.now;
        self.send(rank, report, Some(values))
    }

    /// A message is with the server.
    pub(super) fn arrived(&mut self, from: Rank, message: Message, watch: &mut dyn Watch) -> Result<()> {
        let Message { report, values, sent } = message;
        let Some(service) = &mut self.service else { return Err(self.broken(from, NO_SERVER)) };
        service.idle_deadlines = 0;
        service.open[from].push_back(Open { report: report.clone(), sent, arrived: self.now });
        if service.is_stopping {
            return self.reply(from, Reply::Stop, Reason::StopRequested, watch);
        }
        if let (&Report::Pushed { payload, samples, base, .. }, Some(values)) = (&report, values) {
            if service.pushes[from].is_some() {
                return Err(self.broken(from, "pushed again before its last push was applied"));
            }
            service.pushes[from] = Some(Push { payload, values, base });
            if service.store.is_some() {
                self.progress.global_samples += samples;
            }
        }
        let now = Duration::from_nanos(self.now);
        let directives = service.coordinator.on(now, from, report);
        self.serve(directives, watch)?;
        self.check_served_limits(watch)
    }

    /// Carries out what the coordinator wants.
    fn serve(&mut self, directives: Vec<Directive>, watch: &mut dyn Watch) -> Result<()> {
        for directive in directives {
            if let Some(store) = self.service.as_ref().and_then(|service| service.store.as_ref()) {
                watch.served(seconds(self.now), &directive, store.version().0)?;
            }
            match directive {
                Directive::Reply { to, reply, reason } => self.reply(to, reply, reason, watch)?,
                Directive::Apply { from, rule, .. } => self.apply(from, rule)?,
                Directive::Publish { .. } => {
                    match self.service.as_mut().and_then(|service| service.store.as_mut()) {
                        Some(store) => store.publish()?,
                        None => return Err(Error::Internal("a state server has nothing to publish".into())),
                    }
                }
                Directive::Evaluate => {
                    let Some(service) = &mut self.service else { continue };
                    let Some(store) = &service.store else {
                        return Err(Error::Internal("a state server has nothing to measure".into()));
                    };
                    let loss = self.progress.loss(store.parameters())?;
                    let now = Duration::from_nanos(self.now);
                    let directives = service.coordinator.on(now, 0, Report::GlobalLoss { loss });
                    self.serve(directives, watch)?;
                }
            }
        }
        self.plan_deadline();
        Ok(())
    }

    fn apply(&mut self, from: Rank, rule: PushRule) -> Result<()> {
        let Some(service) = &mut self.service else { return Ok(()) };
        let Some(store) = &mut service.store else {
            return Err(Error::Internal("a state server has nothing to apply a push to".into()));
        };
        let Some(push) = service.pushes[from].take() else {
            // What a dead worker had pushed is dropped.
            return match self.workers[from].is_active() {
                true => Err(self.broken(from, "has no push to be applied")),
                false => Ok(()),
            };
        };
        let version = store.version().0;
        let progress = &mut self.progress;
        store.apply(from, push.payload, &push.values, rule, &mut |parameters| progress.loss(parameters))?;
        let staleness = version.saturating_sub(push.base.0);
        let worker = &mut self.workers[from];
        worker.pushed.staleness = Some(staleness);
        match rule {
            PushRule::Discard => {
                service.discarded += 1;
                worker.record.discarded += 1;
            }
            _ => *worker.record.staleness.entry(staleness).or_insert(0) += 1,
        }
        Ok(())
    }

    fn reply(&mut self, to: Rank, reply: Reply, reason: Reason, watch: &mut dyn Watch) -> Result<()> {
        let Some(service) = &mut self.service else { return Ok(()) };
        let Some(open) = service.open[to].pop_front() else {
            return match self.workers[to].is_active() {
                true => Err(Error::Internal(format!(
                    "the coordinator of `{}` answers rank {to}, which has not asked: {reply:?}",
                    self.options.mode
                ))),
                false => Ok(()),
            };
        };
        let answers_push = matches!(open.report, Report::Pushed { .. });
        let parcel = match (&reply, &mut service.store) {
            (Reply::Pull, Some(store)) => {
                let trainable = store.trainable();
                let (parameters, version) = store.pull(to);
                let mut parameters = parameters.to_vec();
                self.wire.round(&mut parameters[..trainable], None);
                let bytes = self.wire.bytes(parameters.len(), trainable);
                Some(Parcel { parameters: parameters.into(), version, bytes })
            }
            _ => None,
        };
        let bytes = parcel.as_ref().map_or(0, |parcel| parcel.bytes);
        service.bytes_sent += bytes;
        self.workers[to].record.bytes_received += bytes;
        let at = self.network.leave_server(self.now, to, bytes);
        let travel_seconds = seconds(open.arrived - open.sent + (at - self.now));
        let delivery = Delivery { reply, parcel, answers_push, sent: open.sent, travel_seconds };
        let is_state_server = service.store.is_none();
        self.queue.push(at, Phase::Answer, to, Event::Delivered(delivery));
        // As the runtime does: what a state server decides stands with the worker, what a parameter server does with its own.
        self.note_reply(to, open.report, reason, is_state_server, watch)
    }

    /// A reply is with its worker.
    pub(super) fn delivered(&mut self, rank: Rank, delivery: Delivery, watch: &mut dyn Watch) -> Result<()> {
        if delivery.answers_push {
            let held = seconds(self.now - delivery.sent) - delivery.travel_seconds;
            let (wait_seconds, exchange_seconds) = (held.max(0.0), delivery.travel_seconds);
            let push = SimPush { wait_seconds, exchange_seconds, ..self.workers[rank].pushed };
            watch.pushed(seconds(self.now), rank, &push)?;
        }
        let doing = self.workers[rank].doing;
        let (since, pull) = match doing {
            Doing::Report { since } | Doing::Push { since } | Doing::Wait { since } => (since, None),
            Doing::Pull { since, install } => (since, Some(install)),
            _ => {
                self.workers[rank].inbox.push_back(delivery);
                return Ok(());
            }
        };
        let total = seconds(self.now - since);
        let travelled = delivery.travel_seconds.min(total);
        let record = &mut self.workers[rank].record;
        record.wait_seconds += total - travelled;
        match doing {
            Doing::Report { .. } => record.decide_seconds += travelled,
            _ => record.exchange_seconds += travelled,
        }
        let event = match (pull, delivery) {
            (Some(install), Delivery { parcel: Some(parcel), travel_seconds, .. }) => {
                self.install(rank, &parcel, install, travel_seconds, watch)?
            }
            (Some(_), Delivery { reply, .. }) if reply != Reply::Stop => {
                return Err(self.broken(rank, &format!("asked for parameters and was answered {reply:?}")));
            }
            (_, delivery) => self.take_delivery(rank, delivery),
        };
        self.drive(rank, event, watch)
    }

    pub(super) fn install(
        &mut self,
        rank: Rank,
        parcel: &Parcel,
        install: Install,
        exchange_seconds: f64,
        watch: &mut dyn Watch,
    ) -> Result<WorkerEvent> {
        self.workers[rank].install(parcel, install)?;
        let pull = SimPull { version: parcel.version.0, bytes: parcel.bytes, exchange_seconds };
        watch.pulled(seconds(self.now), rank, &pull)?;
        Ok(WorkerEvent::Pulled { version: parcel.version })
    }

    /// A worker is gone: nobody may be held because of it.
    pub(super) fn lost(&mut self, rank: Rank, watch: &mut dyn Watch) -> Result<()> {
        let Some(service) = &mut self.service else { return Ok(()) };
        service.forget(rank);
        let directives = service.coordinator.lost(Duration::from_nanos(self.now), rank);
        if service.is_stopping { Ok(()) } else { self.serve(directives, watch) }
    }

    /// Sees that the coordinator is called when it wants to be.
    fn plan_deadline(&mut self) {
        let Some(service) = &mut self.service else { return };
        let Some(deadline) = service.coordinator.next_deadline() else { return };
        let at = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX).max(self.now);
        // A later one that was planned before does no harm: it finds nothing to do.
        if service.deadline.is_none_or(|planned| at < planned) {
            service.deadline = Some(at);
            self.queue.push(at, Phase::Deadline, 0, Event::Deadline);
        }
    }

    pub(super) fn deadline(&mut self, watch: &mut dyn Watch) -> Result<()> {
        let now = Duration::from_nanos(self.now);
        let Some(service) = &mut self.service else { return Ok(()) };
        service.deadline = None;
        if service.is_stopping {
            return Ok(());
        }
        service.idle_deadlines += 1;
        if service.idle_deadlines > MOST_IDLE_DEADLINES {
            return Err(self.stalled());
        }
        match service.coordinator.next_deadline() {
            Some(deadline) if deadline <= now => {
                let directives = service.coordinator.tick(now);
                self.serve(directives, watch)?;
                self.check_served_limits(watch)
            }
            _ => {
                self.plan_deadline();
                Ok(())
            }
        }
    }

    fn check_served_limits(&mut self, watch: &mut dyn Watch) -> Result<()> {
        let Some(service) = self.service.as_ref().filter(|service| service.store.is_some()) else {
            return Ok(());
        };
        let versions = service.versions();
        if self.progress.is_due() && !self.progress.is_measured() {
            let parameters = self.global_parameters();
            self.evaluate(&parameters, watch)?;
        }
        match self.progress.should_stop(seconds(self.now), versions) {
            true => self.stop_serving(watch),
            false => Ok(()),
        }
    }

    /// From now on every report is answered by `Stop`, and those that are held are answered at once.
    pub(super) fn stop_serving(&mut self, watch: &mut dyn Watch) -> Result<()> {
        let Some(service) = self.service.as_mut().filter(|service| !service.is_stopping) else {
            return Ok(());
        };
        service.is_stopping = true;
        for rank in 0..self.workers.len() {
            let open = self.service.as_ref().map_or(0, |service| service.open[rank].len());
            for _ in 0..open {
                self.reply(rank, Reply::Stop, Reason::StopRequested, watch)?;
            }
        }
        Ok(())
    }
}
