//! What was measured, for people.

use crate::bench::ByteSize;
use crate::cluster::{Cluster, Link};
use crate::collective::auto::{Knowledge, Origin, Question};
use crate::collective::{Kind, Operation, Order};
use std::fmt::Write;

/// More ranks than this make no readable matrix.
const MOST_RANKS: usize = 16;

pub(super) fn text(cluster: &Cluster) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(cluster, &mut out);
    out
}

fn write_text(cluster: &Cluster, out: &mut String) -> std::fmt::Result {
    let hosts = cluster.hosts.len();
    writeln!(out, "{} ranks on {hosts} host(s), transport {}", cluster.size(), cluster.transport)?;
    if cluster.size() > 1 && cluster.size() <= MOST_RANKS {
        let latency = |link: Link| format!("{:.1}", link.latency_seconds * 1e6);
        write_matrix(cluster, "latency, µs", latency, out)?;
        let bandwidth = |link: Link| match link.seconds_per_byte > 0.0 {
            true => format!("{:.2}", 1e-9 / link.seconds_per_byte),
            false => "-".into(),
        };
        write_matrix(cluster, "bandwidth, GB/s", bandwidth, out)?;
    }
    writeln!(out, "\nrank  host          add, GB/s  copy, GB/s")?;
    for (rank, worker) in cluster.workers.iter().enumerate() {
        let (add, copy) = (1e-9 / worker.reduce_seconds_per_byte, 1e-9 / worker.copy_seconds_per_byte);
        writeln!(out, "{rank:>4}  {:<12}  {add:>9.2}  {copy:>10.2}", cluster.host_name(rank))?;
    }
    if !cluster.measured.is_empty() {
        write_choices(cluster, out)?;
    }
    Ok(())
}

fn write_matrix(
    cluster: &Cluster,
    title: &str,
    cell: impl Fn(Link) -> String,
    out: &mut String,
) -> std::fmt::Result {
    let heads = (0..cluster.size()).map(|to| format!("{to:>8}")).collect::<String>();
    writeln!(out, "\n{title}\n    to{heads}")?;
    for from in 0..cluster.size() {
        let cells = (0..cluster.size()).map(|to| match from == to {
            true => format!("{:>8}", "."),
            false => format!("{:>8}", cell(cluster.link(from, to))),
        });
        writeln!(out, "{from:>6}{}", cells.collect::<String>())?;
    }
    Ok(())
}

fn write_choices(cluster: &Cluster, out: &mut String) -> std::fmt::Result {
    let origin = Origin::File { path: "this measurement".into() };
    let knowledge = Knowledge::new(cluster.clone(), origin);
    let sizes: Vec<u64> = cluster.measured[0].times.iter().map(|(bytes, _)| *bytes).collect();
    for order in [Order::Canonical, Order::Fastest] {
        writeln!(out, "\nall-reduce of f32, order {order}, by `auto`:")?;
        for &bytes in &sizes {
            let operation = Operation::new(Kind::AllReduce).with_order(order);
            if let Ok(decision) = knowledge.decide(&Question::new(operation, bytes as usize / 4, 4)) {
                writeln!(out, "  {:>9}  {decision}", ByteSize(bytes as usize).to_string())?;
            }
        }
    }
    Ok(())
}
