//! What transports usually do, for clusters that nobody has measured.

use crate::cluster::{Cluster, Host, Link, Worker};

/// Between threads of a process.
const THREADS: Link = Link { latency_seconds: 2e-6, message_seconds: 1e-6, seconds_per_byte: 1.2e-10 };
/// Between processes of a host.
const PROCESSES: Link = Link { latency_seconds: 2e-6, message_seconds: 1e-6, seconds_per_byte: 2e-10 };
/// Between hosts: a network of 10 Gbit/s.
const NETWORK: Link = Link { latency_seconds: 3e-5, message_seconds: 5e-6, seconds_per_byte: 9e-10 };

/// To add, and to copy, a byte.
const REDUCE_SECONDS_PER_BYTE: f64 = 1e-10;
const COPY_SECONDS_PER_BYTE: f64 = 8e-11;
/// To hand a core on.
const SWITCH_SECONDS: f64 = 2e-6;

/// Ranks on these hosts (one name for each rank), each host with so many cores.
pub(super) fn cluster(transport: &str, hosts: &[&str], cores: usize) -> Cluster {
    let local = if transport == "threads" { THREADS } else { PROCESSES };
    let mut cluster = Cluster::homogeneous(hosts.len(), NETWORK, REDUCE_SECONDS_PER_BYTE);
    cluster.transport = transport.into();
    cluster.hosts.clear();
    for (rank, name) in hosts.iter().enumerate() {
        let known = cluster.hosts.iter().position(|host| host.name == *name);
        let host = known.unwrap_or_else(|| {
            cluster.hosts.push(Host { name: (*name).into(), cores, switch_seconds: SWITCH_SECONDS });
            cluster.hosts.len() - 1
        });
        let worker = Worker {
            host,
            reduce_seconds_per_byte: REDUCE_SECONDS_PER_BYTE,
            copy_seconds_per_byte: COPY_SECONDS_PER_BYTE,
            step_seconds: None,
        };
        cluster.workers[rank] = worker;
    }
    for from in 0..hosts.len() {
        for to in (0..hosts.len()).filter(|&to| to != from && hosts[to] == hosts[from]) {
            cluster.set_link(from, to, local);
        }
    }
    // All ranks of a host share one card of the network's speed.
    for host in 0..cluster.hosts.len() {
        let ranks: Vec<usize> = cluster.ranks_of(host).collect();
        if ranks.len() > 1 && cluster.hosts.len() > 1 {
            let seconds_per_byte = NETWORK.seconds_per_byte;
            cluster.network_cards.push(crate::cluster::NetworkCard { ranks, seconds_per_byte });
        }
    }
    cluster
}
