//! Exchanges, at once and beside steps.

use super::{ExchangeReport, Observer, Worker};
use crate::collective::Member;
use crate::error::{Error, Result};
use crate::learner::Model;
use crate::policy::{ExchangeId, Fragment, Install, LocalSteps, MemberReport, Payload, WorkerEvent, weights};
use crate::reduce::Operator;
use crate::runtime::channel::Flight;
use crate::runtime::exchange::ExchangeOptions;
use crate::runtime::stopwatch::Activity;
use crate::transport::Rank;
use std::sync::Arc;

/// An exchange that has begun.
pub(super) struct Pending {
    pub(super) exchange: ExchangeId,
    pub(super) fragment: Fragment,
    pub(super) payload: Payload,
    /// It runs beside steps; else it waits for the policy to want its result.
    pub(super) has_departed: bool,
}

impl Worker {
    /// Sends off an exchange that has begun, because the policy goes on before it wants the result.
    pub(super) fn depart<M: Model>(&mut self, model: &mut M, observer: &mut dyn Observer<M>) -> Result<()> {
        let Some(mut pending) = self.pending.take_if(|pending| !pending.has_departed) else {
            return Ok(());
        };
        let Payload::Delta = pending.payload else {
            return Err(self.cannot("exchange other things than deltas beside local steps"));
        };
        let own = self.own_figures(observer.stop_wish(), pending.fragment)?;
        let (rank, size) = (self.channel.rank(), self.channel.size());
        let count = self.exchange.count(pending.fragment)?;
        let loads = self.exchange.depart(model, pending.fragment, 1.0, size, true)?;
        let options = self.options.clone();
        let weigh = Box::new(move |members: &[Member]| weight(&options, members, rank));
        self.channel.depart(Flight { loads, count, own, weigh })?;
        pending.has_departed = true;
        self.pending = Some(pending);
        Ok(())
    }

    pub(super) fn finish<M: Model>(
        &mut self,
        exchange: ExchangeId,
        install: Install,
        model: &mut M,
        observer: &mut dyn Observer<M>,
    ) -> Result<WorkerEvent> {
        let Some(pending) = self.pending.take().filter(|pending| pending.exchange == exchange) else {
            return Err(self.cannot("finish an exchange that has not begun"));
        };
        let (members, wait_seconds) = match pending.has_departed {
            true => self.await_departed(&pending, install, model)?,
            false => self.run(&pending, install, model, observer.stop_wish())?,
        };
        let stop_wish = members.iter().map(|member| member.flags).max().unwrap_or_default();
        let least_transfer = members.iter().map(|member| member.transfer_seconds).fold(f64::MAX, f64::min);
        let members: Arc<[MemberReport]> = members.iter().enumerate().map(member_report).collect();
        self.totals.exchanges += 1;
        self.totals.global_samples += members.iter().map(|member| member.samples).sum::<u64>();
        let exchange_seconds = self.clock.switch(Activity::Other);
        if !pending.has_departed {
            self.transfer_seconds = exchange_seconds;
        }

        let report = ExchangeReport {
            exchange: self.totals.exchanges,
            members: members.clone(),
            wait_seconds,
            exchange_seconds,
            stop_wish,
        };
        // What all ranks have in common is looked at, not what each has done since.
        let differs = install != Install::Rebase || self.exchange.is_fragmented();
        if differs {
            self.exchange.swap_anchors(model)?;
        }
        let stop = observer.exchanged(&report, self.observed(model))?;
        if differs {
            self.exchange.swap_anchors(model)?;
        }
        self.clock.switch(Activity::Decide);
        Ok(WorkerEvent::Finished { exchange, transfer_seconds: least_transfer, wait_seconds, members, stop })
    }

    /// Carries out an exchange here and now. Answers all ranks' figures, and the seconds of waiting for them.
    fn run<M: Model>(
        &mut self,
        pending: &Pending,
        install: Install,
        model: &mut M,
        stop_wish: u64,
    ) -> Result<(Vec<Member>, f64)> {
        let own = self.own_figures(stop_wish, pending.fragment)?;
        let count = self.exchange.count(pending.fragment)?;
        self.clock.switch(Activity::Wait);
        let communicator = self.channel.communicator();
        let members = communicator.enter(count, Operator::Sum, own)?.members.to_vec();
        let wait_seconds = self.clock.switch(Activity::Exchange);
        let weight = weight(&self.options, &members, communicator.rank());
        match pending.payload {
            Payload::Delta => {
                let size = communicator.size();
                let mut loads = self.exchange.depart(model, pending.fragment, weight, size, false)?;
                loads.iter_mut().try_for_each(|load| load.sum(communicator))?;
                self.exchange.land(model, pending.fragment, loads, install)?;
            }
            Payload::Gradient => self.exchange.run_gradient(model, communicator, weight)?,
            Payload::Parameters => {
                return Err(Error::Internal("an exchange carries gradients or deltas".into()));
            }
        }
        Ok((members, wait_seconds))
    }

    /// The same for an exchange that ran beside steps: what is left of it is waited for.
    fn await_departed<M: Model>(
        &mut self,
        pending: &Pending,
        install: Install,
        model: &mut M,
    ) -> Result<(Vec<Member>, f64)> {
        self.clock.switch(Activity::Wait);
        let members = self.channel.wait_entered();
        let wait_seconds = self.clock.switch(Activity::Exchange);
        let arrival = self.channel.wait_arrival()?;
        self.transfer_seconds = arrival.transfer_seconds?;
        let Some(members) = members else {
            return Err(Error::Internal("an exchange ended that nobody has entered".into()));
        };
        self.exchange.land(model, pending.fragment, arrival.loads, install)?;
        Ok((members, wait_seconds))
    }

    /// This rank's figures, which begin anew with this exchange.
    fn own_figures(&mut self, stop_wish: u64, fragment: Fragment) -> Result<Member> {
        let round = std::mem::take(&mut self.round);
        let sent = self.exchange.figures(fragment)?;
        Ok(Member {
            local_steps: round.local_steps,
            samples: round.samples,
            step_seconds: self.step_seconds.get(),
            transfer_seconds: self.transfer_seconds,
            loss: round.loss_sum / round.local_steps.max(1) as f64,
            flags: stop_wish,
            extra: [sent.local_steps as f64, sent.samples as f64],
        })
    }
}

/// A rank's factor in the sum. Deltas are weighed by the steps and samples that they hold, which for a fragment are more
/// than those since the last exchange.
fn weight(options: &ExchangeOptions, members: &[Member], rank: Rank) -> f64 {
    let member = |(rank, member): (Rank, &Member)| {
        let [local_steps, samples] = member.extra;
        let report = member_report((rank, member));
        if local_steps == 0.0 {
            return report;
        }
        MemberReport { local_steps: LocalSteps(local_steps as u64), samples: samples as u64, ..report }
    };
    let members: Vec<MemberReport> = members.iter().enumerate().map(member).collect();
    weights(options.weighting, &members, &options.shard_samples)[rank]
}

fn member_report((rank, member): (Rank, &Member)) -> MemberReport {
    MemberReport {
        rank,
        local_steps: LocalSteps(member.local_steps),
        samples: member.samples,
        step_seconds: member.step_seconds,
        transfer_seconds: member.transfer_seconds,
        loss: member.loss,
    }
}
