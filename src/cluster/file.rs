//! The topology file as serde sees it, and its way into a [`Cluster`].

use super::links::{LinkMatrix, LinkRule, links};
use super::simulated::{BehaviourEntry, ServerEntry, Simulated};
use super::{Cluster, Host, Measured, NetworkCard, Worker};
use crate::error::{Error, Result};
use crate::transport::Rank;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;
use toml::Spanned;

/// The version of the format that this library writes and reads.
pub(super) const VERSION: u32 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default)]
    transport: Option<String>,
    measured_at: Option<String>,
    measured_with: Option<String>,
    hosts: Vec<Spanned<HostEntry>>,
    #[serde(default)]
    network_cards: Vec<Spanned<CardEntry>>,
    #[serde(default)]
    links: Vec<Spanned<LinkRule>>,
    link_matrix: Option<LinkMatrix>,
    #[serde(default)]
    measured: Vec<MeasuredEntry>,
    // For the simulator only.
    #[serde(default)]
    workers: Vec<Spanned<BehaviourEntry>>,
    server: Option<Spanned<ServerEntry>>,
    exchange_seconds: Option<f64>,
    model_bytes: Option<u64>,
}

/// In which line of the text something begins.
struct Lines<'a>(&'a str);

impl Lines<'_> {
    fn of<T>(&self, entry: &Spanned<T>) -> usize {
        let before = self.0.get(..entry.span().start).unwrap_or(self.0);
        before.matches('\n').count() + 1
    }

    fn with<T>(&self, entry: Spanned<T>) -> (usize, T) {
        (self.of(&entry), entry.into_inner())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostEntry {
    name: String,
    cores: usize,
    ranks: RanksOf,
    #[serde(default)]
    switch_seconds: f64,
    reduce_seconds_per_byte: OneOrEach,
    copy_seconds_per_byte: Option<OneOrEach>,
    step_seconds: Option<OneOrEach>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`ranks` is a number of ranks, or a list of rank numbers")]
enum RanksOf {
    Count(usize),
    List(Vec<Rank>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number, or a list with a number for each rank of the host")]
enum OneOrEach {
    One(f64),
    Each(Vec<f64>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CardEntry {
    ranks: Vec<Rank>,
    bandwidth_bytes_per_second: Option<f64>,
    seconds_per_byte: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MeasuredEntry {
    operation: String,
    order: String,
    collective: String,
    bytes: Vec<u64>,
    seconds: Vec<f64>,
}

impl Cluster {
    /// Understands the text of a topology file; `path` is for errors.
    ///
    /// # Errors
    /// `Data`, as [`Cluster::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let wrong = |what: String| Error::data(path, what);
        let file: File = toml::from_str(text).map_err(|e| wrong(format!("no topology file: {e}")))?;
        if file.version != VERSION {
            return Err(wrong(format!(
                "its version is {}, and this program reads version {VERSION}: measure again with `esync probe`",
                file.version
            )));
        }
        file.into_cluster(&Lines(text)).map_err(wrong)
    }
}

impl File {
    fn into_cluster(self, lines: &Lines<'_>) -> Result<Cluster, String> {
        let (hosts, workers) = places(self.hosts, lines)?;
        let size = workers.len();
        let rules = self.links.into_iter().enumerate().map(|(number, rule)| {
            let (line, rule) = lines.with(rule);
            (format!("line {line}: link {}", number + 1), rule)
        });
        let links = links(&rules.collect::<Vec<_>>(), self.link_matrix.as_ref(), &hosts, &workers)?;
        let mut network_cards: Vec<NetworkCard> = Vec::new();
        for (number, entry) in self.network_cards.into_iter().enumerate() {
            let (line, entry) = lines.with(entry);
            let at = format!("line {line}: network card {}", number + 1);
            let seconds_per_byte =
                seconds_per_byte(&at, entry.seconds_per_byte, entry.bandwidth_bytes_per_second)?;
            for (place, &rank) in entry.ranks.iter().enumerate() {
                let Some(worker) = workers.get(rank) else {
                    return Err(format!("{at}: there is no rank {rank}, only 0 to {}", size - 1));
                };
                if worker.host != workers[entry.ranks[0]].host {
                    return Err(format!("{at}: ranks {} and {rank} are on different hosts", entry.ranks[0]));
                }
                let is_taken = network_cards.iter().any(|card| card.ranks.contains(&rank));
                if is_taken || entry.ranks[..place].contains(&rank) {
                    return Err(format!("{at}: rank {rank} has a card already"));
                }
            }
            network_cards.push(NetworkCard { ranks: entry.ranks, seconds_per_byte });
        }
        let behaviours = self.workers.into_iter().map(|entry| lines.with(entry)).collect();
        let server = self.server.map(|entry| lines.with(entry));
        Ok(Cluster {
            simulated: Simulated::new(behaviours, server, self.exchange_seconds, self.model_bytes)?,
            transport: self.transport.unwrap_or_else(|| "any".into()),
            measured_at: self.measured_at,
            measured_with: self.measured_with,
            hosts,
            workers,
            network_cards,
            links,
            measured: self.measured.into_iter().map(measured).collect::<Result<_, _>>()?,
        })
    }
}

/// The hosts, and every rank's place on one of them.
fn places(entries: Vec<Spanned<HostEntry>>, lines: &Lines<'_>) -> Result<(Vec<Host>, Vec<Worker>), String> {
    let mut hosts: Vec<Host> = Vec::new();
    let mut placed: Vec<(Rank, Worker)> = Vec::new();
    let mut is_placed: BTreeSet<Rank> = BTreeSet::new();
    for (host, entry) in entries.into_iter().enumerate() {
        let (line, entry) = lines.with(entry);
        let at = format!("line {line}: host {}", entry.name);
        if hosts.iter().any(|host| host.name == entry.name) {
            return Err(format!("{at} is there twice"));
        }
        if entry.cores == 0 {
            return Err(format!("{at}: cores is 0; it must be at least 1"));
        }
        let ranks: Vec<Rank> = match &entry.ranks {
            RanksOf::Count(count) => (placed.len()..placed.len() + count).collect(),
            RanksOf::List(ranks) => ranks.clone(),
        };
        let reduce = each(&at, "reduce_seconds_per_byte", &entry.reduce_seconds_per_byte, ranks.len())?;
        let copy = match &entry.copy_seconds_per_byte {
            Some(copy) => each(&at, "copy_seconds_per_byte", copy, ranks.len())?,
            None => reduce.clone(),
        };
        let step = match &entry.step_seconds {
            Some(step) => {
                each(&at, "step_seconds", step, ranks.len())?.into_iter().map(Some).collect::<Vec<_>>()
            }
            None => vec![None; ranks.len()],
        };
        for (index, &rank) in ranks.iter().enumerate() {
            if !is_placed.insert(rank) {
                return Err(format!("{at}: rank {rank} is on two hosts, or twice on one"));
            }
            let worker = Worker {
                host,
                reduce_seconds_per_byte: reduce[index],
                copy_seconds_per_byte: copy[index],
                step_seconds: step[index],
            };
            placed.push((rank, worker));
        }
        let switch_seconds = quantity(&at, "switch_seconds", entry.switch_seconds)?;
        hosts.push(Host { name: entry.name, cores: entry.cores, switch_seconds });
    }
    if placed.is_empty() {
        return Err("there are no ranks: a host's `ranks` is their number, or a list of them".into());
    }
    placed.sort_by_key(|(rank, _)| *rank);
    for (expected, (rank, _)) in placed.iter().enumerate() {
        if *rank != expected {
            return Err(format!("rank {expected} is on no host, though there is a rank {rank}"));
        }
    }
    Ok((hosts, placed.into_iter().map(|(_, worker)| worker).collect()))
}

fn measured(entry: MeasuredEntry) -> Result<Measured, String> {
    let at = format!("measured {} by {} ({})", entry.operation, entry.collective, entry.order);
    if entry.bytes.len() != entry.seconds.len() || entry.bytes.is_empty() {
        return Err(format!(
            "{at}: {} sizes and {} times; there must be one time for each size, and at least one",
            entry.bytes.len(),
            entry.seconds.len()
        ));
    }
    if !entry.bytes.is_sorted_by(|a, b| a < b) {
        return Err(format!("{at}: bytes do not increase"));
    }
    for &seconds in &entry.seconds {
        if quantity(&at, "seconds", seconds)? == 0.0 {
            return Err(format!("{at}: a time is 0; leave out what was not measured"));
        }
    }
    Ok(Measured {
        operation: entry.operation,
        order: entry.order,
        collective: entry.collective,
        times: entry.bytes.into_iter().zip(entry.seconds).collect(),
    })
}

fn each(at: &str, key: &str, values: &OneOrEach, ranks: usize) -> Result<Vec<f64>, String> {
    let values = match values {
        OneOrEach::One(value) => vec![*value; ranks],
        OneOrEach::Each(values) if values.len() == ranks => values.clone(),
        OneOrEach::Each(values) => {
            return Err(format!("{at}: {key} has {} values for {ranks} ranks", values.len()));
        }
    };
    values.into_iter().map(|value| quantity(at, key, value)).collect()
}

/// A quantity that is finite and not negative.
pub(super) fn quantity(at: &str, key: &str, value: f64) -> Result<f64, String> {
    match value.is_finite() && value >= 0.0 {
        true => Ok(value),
        false => Err(format!("{at}: {key} is {value}; it must be a finite number of at least 0")),
    }
}

/// Either of the two ways to say how fast bytes travel.
pub(super) fn seconds_per_byte(
    at: &str,
    seconds_per_byte: Option<f64>,
    bandwidth: Option<f64>,
) -> Result<f64, String> {
    match (seconds_per_byte, bandwidth) {
        (Some(seconds), None) => quantity(at, "seconds_per_byte", seconds),
        (None, Some(bandwidth)) if bandwidth > 0.0 => {
            Ok(1.0 / quantity(at, "bandwidth_bytes_per_second", bandwidth)?)
        }
        (None, Some(bandwidth)) => {
            Err(format!("{at}: bandwidth_bytes_per_second is {bandwidth}; it must be above 0"))
        }
        _ => Err(format!("{at}: give one of seconds_per_byte and bandwidth_bytes_per_second")),
    }
}
