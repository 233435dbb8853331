//! How long messages and exchanges take.

use super::cluster::SimCluster;
use super::queue::{Nanoseconds, nanoseconds};
use super::wire::Scale;
use crate::cluster::{Cluster, Link};
use crate::collective::auto::{Knowledge, Origin, Question};
use crate::collective::{
    Auto, Collective, Kind, Operation, SEGMENT_BYTES, Schedule, Step, collective_by_name, cost,
};
use crate::error::{Error, Result};
use crate::reduce::wire::{BLOCK, WireFormat};
use crate::transport::Rank;
use std::collections::HashMap;
use std::sync::Arc;

/// What one exchange costs.
#[derive(Debug, Clone)]
pub(super) struct ExchangeCost {
    pub(super) duration: Nanoseconds,
    /// Bytes that each of its ranks sends; each receives as many in all.
    pub(super) bytes_sent: Arc<[u64]>,
    pub(super) bytes_received: Arc<[u64]>,
}

/// The network with what was worked out about it.
pub(super) struct Network {
    /// Of the ranks that take part now.
    cluster: Cluster,
    collective: Arc<dyn Collective>,
    fixed_seconds: Option<f64>,
    element_bytes: usize,
    scale: Scale,
    costs: HashMap<usize, ExchangeCost>,
    entry_seconds: Option<f64>,
    servers: Vec<Link>,
    card_seconds_per_byte: f64,
    card_in_free: f64,
    card_out_free: f64,
}

/// More ranks than this send so many messages in an entry rendezvous that the formula takes the replay's place, and `auto`
/// chooses among algorithms of few messages.
const MOST_REPLAYED: usize = 64;

/// What `auto` chooses among when there are many ranks.
const OF_FEW_MESSAGES: [&str; 2] = ["recursive-doubling", "binary-blocks"];

impl Network {
    pub(super) fn new(
        cluster: &SimCluster,
        collective: &str,
        servers: Option<usize>,
        wire: WireFormat,
        scale: Scale,
    ) -> Result<Self> {
        let collective: Arc<dyn Collective> = match (collective, wire) {
            // What the transport does by itself has no schedule to be simulated.
            ("auto" | "native", WireFormat::F32) => Arc::new(Auto::default()),
            (name, WireFormat::F32) => collective_by_name(name, servers)?,
            // Whatever is asked for, each part of a narrow vector is summed by its owner.
            _ => collective_by_name("parameter-server", None)?,
        };
        // A scale for each block of int8 is left out.
        let element_bytes = wire.encoded_bytes(BLOCK) / BLOCK;
        let links: Vec<Link> = (0..cluster.size()).map(|rank| cluster.server_link(rank)).collect();
        let best = links.iter().map(|link| link.seconds_per_byte).fold(f64::INFINITY, f64::min);
        let card_seconds_per_byte = cluster.server.card_seconds_per_byte.unwrap_or(best);
        Ok(Network {
            cluster: cluster.network.clone(),
            collective,
            fixed_seconds: cluster.exchange_seconds,
            element_bytes,
            scale,
            costs: HashMap::new(),
            entry_seconds: None,
            servers: links,
            // Each of several servers holds a share of every push, behind a card of its own.
            card_seconds_per_byte: card_seconds_per_byte / servers.unwrap_or(1).max(1) as f64,
            card_in_free: 0.0,
            card_out_free: 0.0,
        })
    }

    /// From now on only these ranks exchange.
    pub(super) fn restrict(&mut self, cluster: &SimCluster, ranks: &[Rank]) {
        self.cluster = cluster.network.restricted(ranks);
        self.costs.clear();
        self.entry_seconds = None;
    }

    /// An all-reduce of `count` elements among the ranks that take part.
    pub(super) fn exchange(&mut self, count: usize) -> Result<ExchangeCost> {
        if let Some(cost) = self.costs.get(&count) {
            return Ok(cost.clone());
        }
        let cost = self.work_out(self.scale.apply(count as u64) as usize)?;
        self.costs.insert(count, cost.clone());
        Ok(cost)
    }

    fn work_out(&mut self, count: usize) -> Result<ExchangeCost> {
        let size = self.cluster.size();
        if size == 1 || count == 0 {
            let none: Arc<[u64]> = vec![0; size].into();
            let duration = nanoseconds(self.fixed_seconds.unwrap_or(0.0));
            return Ok(ExchangeCost { duration, bytes_sent: none.clone(), bytes_received: none });
        }
        let operation = Operation::new(Kind::AllReduce);
        let collective = self.choose(&operation, count)?;
        let topology = cost::topology_of(&self.cluster);
        let (mut sent, mut received) = (vec![0; size], vec![0; size]);
        for rank in 0..size {
            let schedule = collective.schedule(&operation, &topology, rank, count)?;
            (sent[rank], received[rank]) = traffic(&schedule, self.element_bytes);
        }
        let seconds = match self.fixed_seconds {
            Some(seconds) => seconds,
            None => {
                let (cluster, bytes) = (&self.cluster, self.element_bytes);
                let entry = *self.entry_seconds.get_or_insert_with(|| entry_seconds(cluster));
                entry + cost::predict(cluster, &*collective, &operation, count, bytes, SEGMENT_BYTES)?
            }
        };
        if !seconds.is_finite() {
            return Err(Error::Usage(format!("an exchange of {count} elements would take {seconds} s")));
        }
        let duration = nanoseconds(seconds);
        Ok(ExchangeCost { duration, bytes_sent: sent.into(), bytes_received: received.into() })
    }

    fn choose(&self, operation: &Operation, count: usize) -> Result<Arc<dyn Collective>> {
        if self.collective.as_auto().is_none() {
            return Ok(self.collective.clone());
        }
        if self.cluster.size() <= MOST_REPLAYED {
            let origin = Origin::Usual { why: "the simulated cluster".into() };
            let knowledge = Knowledge::new(self.cluster.clone(), origin);
            return Ok(knowledge.decide(&Question::new(*operation, count, self.element_bytes))?.collective);
        }
        if self.fixed_seconds.is_some() {
            // Nothing to choose by: only the bytes are of interest.
            return collective_by_name(OF_FEW_MESSAGES[1], None);
        }
        let mut best: Option<(f64, Arc<dyn Collective>)> = None;
        for name in OF_FEW_MESSAGES {
            let collective = collective_by_name(name, None)?;
            let seconds = cost::predict(
                &self.cluster,
                &*collective,
                operation,
                count,
                self.element_bytes,
                SEGMENT_BYTES,
            )?;
            if best.as_ref().is_none_or(|(least, _)| seconds < *least) {
                best = Some((seconds, collective));
            }
        }
        best.map(|(_, collective)| collective)
            .ok_or_else(|| Error::Internal("no collective to choose".into()))
    }

    /// When a message of `bytes` that a worker sends at `now` is with the server.
    pub(super) fn reach_server(&mut self, now: Nanoseconds, from: Rank, bytes: u64) -> Nanoseconds {
        passed(&mut self.card_in_free, self.card_seconds_per_byte, self.servers[from], now, bytes)
    }

    /// When a message of `bytes` that the server sends at `now` is with a worker.
    pub(super) fn leave_server(&mut self, now: Nanoseconds, to: Rank, bytes: u64) -> Nanoseconds {
        passed(&mut self.card_out_free, self.card_seconds_per_byte, self.servers[to], now, bytes)
    }
}

/// Through the worker's own link and the server's card, which takes one message after the other.
fn passed(card_free: &mut f64, card: f64, link: Link, now: Nanoseconds, bytes: u64) -> Nanoseconds {
    let now = now as f64;
    let bytes = bytes as f64;
    *card_free = card_free.max(now) + 1e9 * bytes * card;
    let through_link = now + 1e9 * bytes * link.seconds_per_byte;
    (card_free.max(through_link) + 1e9 * link.latency_seconds).round() as Nanoseconds
}

/// Bytes that a schedule sends and receives.
fn traffic(schedule: &Schedule, element_bytes: usize) -> (u64, u64) {
    let (mut sent, mut received) = (0, 0);
    for step in schedule.steps() {
        match step {
            Step::Send { from, .. } => sent += from.len() * element_bytes,
            Step::Recv { into, .. } => received += into.len() * element_bytes,
            Step::Copy { .. } | Step::Reduce { .. } => {}
        }
    }
    (sent as u64, received as u64)
}

/// The rendezvous with which every exchange begins.
fn entry_seconds(cluster: &Cluster) -> f64 {
    let size = cluster.size();
    if size <= MOST_REPLAYED {
        return cost::entry_seconds(cluster);
    }
    // A short message from each rank to each other, one after the other from every port.
    let slowest = (1..size).map(|rank| cluster.link(0, rank)).fold((0.0_f64, 0.0_f64), |slowest, link| {
        (slowest.0.max(link.latency_seconds), slowest.1.max(link.message_seconds))
    });
    slowest.0 + (size - 1) as f64 * slowest.1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each element counts as itself.
    fn own() -> Scale {
        Scale::new(None, 1)
    }

    #[test]
    fn a_servers_card_takes_one_message_after_the_other() {
        let link = Link { latency_seconds: 1e-3, message_seconds: 0.0, seconds_per_byte: 1e-6 };
        let cluster = SimCluster::of_steps(&[1.0, 1.0]).with_link(link);
        let mut network = Network::new(&cluster, "ring", None, WireFormat::F32, own()).unwrap();
        assert_eq!(network.reach_server(0, 0, 1000), 2_000_000);
        assert_eq!(network.reach_server(0, 1, 1000), 3_000_000, "behind the first");
        assert_eq!(network.leave_server(0, 1, 1000), 2_000_000, "the other direction is free");
        let mut two = Network::new(&cluster, "ring", Some(2), WireFormat::F32, own()).unwrap();
        two.reach_server(0, 0, 1000);
        assert_eq!(two.reach_server(0, 1, 1000), 2_000_000, "each of two servers takes half");
    }

    #[test]
    fn an_exchange_costs_what_the_schedule_sends() {
        let cluster = SimCluster::of_steps(&[1.0; 4]);
        let mut network = Network::new(&cluster, "ring", None, WireFormat::F32, own()).unwrap();
        let cost = network.exchange(100).unwrap();
        assert_eq!(cost.bytes_sent[..], [600; 4], "2·3/4 of the vector");
        assert_eq!(cost.duration, 0, "a network that costs nothing");
        network.restrict(&cluster, &[0, 2]);
        assert_eq!(network.exchange(100).unwrap().bytes_sent[..], [400; 2]);
        let scale = Scale::new(Some(400_000), 100);
        let mut larger = Network::new(&cluster, "ring", None, WireFormat::F32, scale).unwrap();
        assert_eq!(larger.exchange(100).unwrap().bytes_sent[..], [600_000; 4], "a larger model");
    }
}
