//! What messages and local work compete for: ports, links, network cards, cores.

use crate::cluster::{Cluster, Link};
use crate::transport::Rank;
use std::collections::HashMap;

/// The best that a rank's port does for messages of one class.
#[derive(Clone, Copy)]
struct Port {
    message_seconds: f64,
    seconds_per_byte: f64,
}

/// When a message has left its sender's port, and when it has arrived.
pub(super) struct Passage {
    pub(super) port_free: f64,
    pub(super) arrival: f64,
}

/// The state of everything that is shared, in seconds since the operation began.
pub(super) struct Resources<'a> {
    cluster: &'a Cluster,
    /// Of each rank, for messages on its own host and to others; each the better direction.
    ports: Vec<[Port; 2]>,
    in_free: Vec<f64>,
    /// Of those links that were used.
    link_free: HashMap<(Rank, Rank), f64>,
    card_of: Vec<Option<usize>>,
    card_out_free: Vec<f64>,
    card_in_free: Vec<f64>,
    /// Of each host; `None` where every rank has a core.
    cores_free: Vec<Option<f64>>,
    /// Of each host: what a stage costs because ranks wait for a core.
    turn_seconds: Vec<f64>,
}

impl<'a> Resources<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        let size = cluster.size();
        let mut card_of = vec![None; size];
        for (number, card) in cluster.network_cards.iter().enumerate() {
            card.ranks.iter().for_each(|&rank| card_of[rank] = Some(number));
        }
        let counts: Vec<usize> =
            (0..cluster.hosts.len()).map(|host| cluster.ranks_of(host).count()).collect();
        let hosts = || cluster.hosts.iter().zip(&counts);
        Resources {
            cluster,
            ports: (0..size).map(|rank| [true, false].map(|same| port(cluster, rank, same))).collect(),
            in_free: vec![0.0; size],
            link_free: HashMap::new(),
            card_of,
            card_out_free: vec![0.0; cluster.network_cards.len()],
            card_in_free: vec![0.0; cluster.network_cards.len()],
            cores_free: hosts().map(|(host, &ranks)| (ranks > host.cores).then_some(0.0)).collect(),
            turn_seconds: hosts()
                .map(|(host, &ranks)| {
                    host.switch_seconds * ranks.div_ceil(host.cores).saturating_sub(1) as f64
                })
                .collect(),
        }
    }

    fn host(&self, rank: Rank) -> usize {
        self.cluster.workers[rank].host
    }

    /// For how long a message occupies its receiver's port.
    pub(super) fn occupied_seconds(&self, from: Rank, to: Rank, bytes: usize, segments: usize) -> f64 {
        let port = self.ports[to][usize::from(self.host(from) != self.host(to))];
        segments as f64 * port.message_seconds + bytes as f64 * port.seconds_per_byte
    }

    /// A message of so many bytes in so many pieces begins at `now`, when its sender's port is free. Calls come in the
    /// order of their times.
    pub(super) fn pass(&mut self, now: f64, from: Rank, to: Rank, bytes: usize, pieces: usize) -> Passage {
        let Link { latency_seconds, message_seconds, seconds_per_byte } = self.cluster.link(from, to);
        let (length, segments) = (bytes as f64, pieces as f64);
        let is_local = self.host(from) == self.host(to);
        let mut port_free = now + self.occupied_seconds(to, from, bytes, pieces);
        let occupied = self.occupied_seconds(from, to, bytes, pieces);
        let in_free = &mut self.in_free[to];
        *in_free = in_free.max(now) + occupied;
        let link_free = self.link_free.entry((from, to)).or_default();
        let travelling = length * seconds_per_byte;
        *link_free = link_free.max(now) + segments * message_seconds + travelling;
        // The last message's flight comes on top of what each stretch of the way is occupied for.
        let flight = latency_seconds - message_seconds;
        let mut passed = in_free.max(*link_free);
        if is_local {
            passed = passed.max(self.take_cores(now, self.host(from), travelling));
        } else {
            let cards = &self.cluster.network_cards;
            for (rank, free) in [(from, &mut self.card_out_free), (to, &mut self.card_in_free)] {
                if let Some(card) = self.card_of[rank] {
                    free[card] = free[card].max(now) + length * cards[card].seconds_per_byte;
                    passed = passed.max(free[card]);
                }
            }
            if let Some(card) = self.card_of[from] {
                port_free = port_free.max(self.card_out_free[card]);
            }
        }
        Passage { port_free, arrival: passed.max(port_free) + flight }
    }

    /// When work of so many core-seconds, begun at `now`, is done.
    fn take_cores(&mut self, now: f64, host: usize, seconds: f64) -> f64 {
        let alone = now + seconds;
        match &mut self.cores_free[host] {
            None => alone,
            Some(free) => {
                *free = free.max(now) + seconds / self.cluster.hosts[host].cores as f64;
                free.max(alone)
            }
        }
    }

    /// When a rank that begins to reduce (or copy) so many bytes at `now` has done it.
    pub(super) fn work(&mut self, now: f64, rank: Rank, bytes: usize, is_reduction: bool) -> f64 {
        let worker = &self.cluster.workers[rank];
        let speed = match is_reduction {
            true => worker.reduce_seconds_per_byte,
            false => worker.copy_seconds_per_byte,
        };
        self.take_cores(now, worker.host, bytes as f64 * speed)
    }

    /// What a rank waits for its turn on a core when its messages have come.
    pub(super) fn turn_seconds(&self, rank: Rank) -> f64 {
        self.turn_seconds[self.host(rank)]
    }
}

fn port(cluster: &Cluster, rank: Rank, same_host: bool) -> Port {
    if let Some(Link { message_seconds, seconds_per_byte, .. }) = cluster.class_link(same_host) {
        return Port { message_seconds, seconds_per_byte };
    }
    let host = |rank: Rank| cluster.workers[rank].host;
    let others =
        (0..cluster.size()).filter(|&other| other != rank && (host(other) == host(rank)) == same_host);
    let links = others.flat_map(|other| [cluster.link(rank, other), cluster.link(other, rank)]);
    let none = Port { message_seconds: f64::INFINITY, seconds_per_byte: f64::INFINITY };
    links.fold(none, |best, link| Port {
        message_seconds: best.message_seconds.min(link.message_seconds),
        seconds_per_byte: best.seconds_per_byte.min(link.seconds_per_byte),
    })
}
