//! Exchanges that all ranks enter.

use super::exchange::{Closed, Exchange, State};
use super::options::Deaths;
use super::queue::{Phase, seconds};
use super::simulation::{Event, Simulation};
use super::watch::{SimExchange, Watch};
use super::worker::Doing;
use crate::error::{Error, Result};
use crate::policy::{ExchangeId, Fragment, Install, Payload, WorkerEvent, weights};
use crate::transport::Rank;

impl Simulation {
    /// A rank brings its share to an exchange and goes on.
    pub(super) fn begin_exchange(
        &mut self,
        rank: Rank,
        id: ExchangeId,
        fragment: Fragment,
        payload: Payload,
    ) -> Result<()> {
        self.refuse_the_dead(id)?;
        let exchange = self
            .exchanges
            .entry(id)
            .or_insert_with(|| Exchange::new(fragment, payload, self.spare.pop().unwrap_or_default()));
        if (exchange.fragment, exchange.payload) != (fragment, payload) {
            return Err(Error::Mismatch {
                operation: format!("exchange {}", id.0),
                what: format!(
                    "rank {rank} brings {payload:?} of {fragment:?}, and others {:?} of {:?}",
                    exchange.payload, exchange.fragment
                ),
            });
        }
        let worker = &mut self.workers[rank];
        let round = worker.take_round();
        let member = worker.member(rank, &round);
        let held = worker.holds(fragment, member)?;
        let before = exchange.values.len();
        exchange.trainable = worker.begin_exchange(fragment, payload, &mut exchange.values)?;
        exchange.len = exchange.values.len() - before;
        exchange.arrive(member, held);
        worker.open.push(id);
        if exchange.present == self.participants.len() {
            self.close(id)?;
        }
        Ok(())
    }

    /// All are here: the exchange runs.
    fn close(&mut self, id: ExchangeId) -> Result<()> {
        let Some(exchange) = self.exchanges.get_mut(&id) else { return Ok(()) };
        let members = exchange.members();
        let weights = weights(self.options.weighting, &exchange.held(), &self.job.shard_samples);
        let has_feedback = self.options.error_feedback && exchange.payload == Payload::Delta;
        let feedback = has_feedback.then(|| self.feedback.entry(exchange.fragment).or_default());
        exchange.reduce(&weights, &mut self.wire, feedback);
        let cost = self.network.exchange(exchange.len)?;
        self.exchange_count += 1;
        let (since, duration, number) = (self.now, cost.duration, self.exchange_count);
        exchange.state = State::Running(Closed { since, duration, members, stop: None, number });
        for (place, &rank) in self.participants.iter().enumerate() {
            let record = &mut self.workers[rank].record;
            record.exchanges += 1;
            record.bytes_sent += cost.bytes_sent[place];
            record.bytes_received += cost.bytes_received[place];
        }
        self.queue.push(self.now + duration, Phase::Answer, 0, Event::ExchangeDone(id));
        Ok(())
    }

    pub(super) fn exchange_done(&mut self, id: ExchangeId, watch: &mut dyn Watch) -> Result<()> {
        let Some(exchange) = self.exchanges.get_mut(&id) else { return Ok(()) };
        let State::Running(closed) = &exchange.state else { return Ok(()) };
        self.progress.global_samples += closed.members.iter().map(|member| member.samples).sum::<u64>();
        exchange.state = State::Done(closed.clone());
        for rank in 0..self.workers.len() {
            if let Doing::Finish { exchange, install, .. } = self.workers[rank].doing
                && exchange == id
            {
                let event = self.complete(rank, id, install, watch)?;
                self.drive(rank, event, watch)?;
            }
        }
        Ok(())
    }

    /// A rank wants the result: answers the event if it is there, else the rank waits.
    pub(super) fn finish_exchange(
        &mut self,
        rank: Rank,
        id: ExchangeId,
        install: Install,
        watch: &mut dyn Watch,
    ) -> Result<Option<WorkerEvent>> {
        if !self.workers[rank].open.contains(&id) {
            return Err(self.broken(rank, "finishes an exchange that it has not begun"));
        }
        self.workers[rank].doing = Doing::Finish { exchange: id, install, since: self.now };
        match self.exchanges.get(&id).map(|exchange| &exchange.state) {
            Some(State::Done(_)) => self.complete(rank, id, install, watch).map(Some),
            _ => {
                self.refuse_the_dead(id)?;
                Ok(None)
            }
        }
    }

    /// Puts the result in place.
    fn complete(
        &mut self,
        rank: Rank,
        id: ExchangeId,
        install: Install,
        watch: &mut dyn Watch,
    ) -> Result<WorkerEvent> {
        let (Some(exchange), Doing::Finish { since, .. }) =
            (self.exchanges.get(&id), self.workers[rank].doing)
        else {
            return Err(Error::Internal("an exchange ended that nobody waits for".into()));
        };
        let State::Done(closed) = &exchange.state else {
            return Err(Error::Internal("an exchange's result was taken before its end".into()));
        };
        let mut closed = closed.clone();
        let worker = &mut self.workers[rank];
        worker.finish_exchange(exchange.fragment, exchange.payload, install, exchange.result())?;
        let wait_seconds = seconds(closed.since.saturating_sub(since));
        let exchange_seconds = seconds(self.now - since.max(closed.since));
        worker.record.wait_seconds += wait_seconds;
        worker.record.exchange_seconds += exchange_seconds;
        worker.transfer_seconds = seconds(closed.duration);
        worker.open.retain(|open| *open != id);
        self.last_payload = Some(exchange.payload);
        let stop = match closed.stop {
            Some(stop) => stop,
            None => self.decide_stop(rank, closed.number, watch)?,
        };
        closed.stop = Some(stop);
        let report = SimExchange {
            exchange: closed.number,
            members: closed.members.clone(),
            global_samples: self.progress.global_samples,
            wait_seconds,
            exchange_seconds,
            bytes_sent: self.workers[rank].record.bytes_sent,
        };
        watch.exchanged(seconds(self.now), rank, &report)?;
        let (transfer_seconds, members) = (seconds(closed.duration), closed.members.clone());
        if let Some(exchange) = self.exchanges.get_mut(&id) {
            exchange.state = State::Done(closed);
        }
        self.release(id);
        Ok(WorkerEvent::Finished { exchange: id, transfer_seconds, wait_seconds, members, stop })
    }

    /// The first rank that has the result decides for all, so that all decide alike.
    fn decide_stop(&mut self, rank: Rank, number: u64, watch: &mut dyn Watch) -> Result<bool> {
        if self.progress.is_due() {
            let parameters = match self.last_payload {
                Some(Payload::Delta) => self.workers[rank].anchor(),
                _ => self.workers[rank].learner.parameters().to_vec(),
            };
            self.evaluate(&parameters, watch)?;
        }
        Ok(self.progress.should_stop(seconds(self.now), number))
    }

    /// One rank fewer needs this exchange.
    pub(super) fn release(&mut self, id: ExchangeId) {
        if let Some(exchange) = self.exchanges.get_mut(&id) {
            exchange.present -= 1;
            if exchange.present == 0
                && let Some(exchange) = self.exchanges.remove(&id)
            {
                let mut values = exchange.values;
                values.clear();
                self.spare.push(values);
            }
        }
    }

    /// A rank has died, and `leave` has taken it out of what it had entered.
    pub(super) fn exchange_without(&mut self, rank: Rank) -> Result<()> {
        if self.options.deaths == Deaths::EndRun {
            let waits = |worker: &super::worker::Worker| matches!(worker.doing, Doing::Finish { .. });
            return match self.exchanges.keys().next() {
                Some(&id) if self.workers.iter().any(waits) => self.refuse_the_dead(id),
                _ => Ok(()),
            };
        }
        self.participants.retain(|&other| other != rank);
        if self.participants.is_empty() {
            return Ok(());
        }
        self.network.restrict(&self.cluster, &self.participants);
        let gathering = |exchange: &Exchange| matches!(exchange.state, State::Gathering);
        let complete: Vec<ExchangeId> = self
            .exchanges
            .iter()
            .filter(|(_, exchange)| gathering(exchange) && exchange.present == self.participants.len())
            .map(|(&id, _)| id)
            .collect();
        complete.into_iter().try_for_each(|id| self.close(id))
    }

    /// As in a real run, an exchange that a dead rank belongs to ends the run.
    fn refuse_the_dead(&self, id: ExchangeId) -> Result<()> {
        match self.dead.first() {
            Some(&dead) if self.options.deaths == Deaths::EndRun => Err(Error::PeerLost {
                peer: self.peer(dead),
                operation: format!("exchange {}", id.0),
                what: format!("it died after {} s", self.workers[dead].record.ended_seconds),
            }),
            _ => Ok(()),
        }
    }
}
