//! Links in a topology file: rules from the general to the particular, or a matrix.

use super::file::{quantity, seconds_per_byte};
use super::{Host, Link, Links, MANY, Worker};
use crate::transport::Rank;
use serde::Deserialize;
use std::collections::BTreeSet;

/// An entry of `[[links]]`: exactly one of `hosts` and `ranks` says for whom.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinkRule {
    hosts: Option<HostsOf>,
    ranks: Option<[Rank; 2]>,
    /// From the first to the second only.
    #[serde(default)]
    one_way: bool,
    latency_seconds: f64,
    message_seconds: Option<f64>,
    bandwidth_bytes_per_second: Option<f64>,
    seconds_per_byte: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`hosts` is \"same\", \"different\", or a list of two host names")]
enum HostsOf {
    Class(HostClass),
    Pair([String; 2]),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum HostClass {
    Same,
    Different,
}

/// `[link_matrix]`: row r, column s is the way from rank r to rank s; the diagonal is not looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinkMatrix {
    latency_seconds: Vec<Vec<f64>>,
    message_seconds: Option<Vec<Vec<f64>>>,
    bandwidth_bytes_per_second: Option<Vec<Vec<f64>>>,
    seconds_per_byte: Option<Vec<Vec<f64>>>,
}

/// Of several rules for one pair the most particular counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Precision {
    Class,
    Hosts,
    Matrix,
    Ranks,
}

/// Whether a rule is meant for the way from one rank to another.
type Applies<'a> = Box<dyn Fn(Rank, Rank) -> bool + 'a>;

/// From each rank to each rank.
pub(super) fn links(
    rules: &[(String, LinkRule)],
    matrix: Option<&LinkMatrix>,
    hosts: &[Host],
    workers: &[Worker],
) -> Result<Links, String> {
    let size = workers.len();
    if size >= MANY
        && matrix.is_none()
        && let Some(links) = by_class(rules, workers)?
    {
        return Ok(links);
    }
    if size > MOST_ONE_BY_ONE {
        return Err(format!(
            "there are {size} ranks; for more than {MOST_ONE_BY_ONE}, links must be exactly two, one with hosts = \"same\" and \
             one with hosts = \"different\""
        ));
    }
    let mut found: Vec<Option<(Precision, Link)>> = vec![None; size * size];
    if let Some(matrix) = matrix {
        for (index, slot) in found.iter_mut().enumerate() {
            let (from, to) = (index / size, index % size);
            if from != to {
                *slot = Some((Precision::Matrix, matrix.link(from, to, size)?));
            }
        }
    }
    for (at, rule) in rules {
        let link = rule.link(at)?;
        let (weight, applies) = rule.applies(at, hosts, workers)?;
        for (index, slot) in found.iter_mut().enumerate() {
            let (from, to) = (index / size, index % size);
            if from == to || !applies(from, to) {
                continue;
            }
            match slot {
                Some((other, _)) if *other > weight => {}
                Some((other, _)) if *other == weight => {
                    return Err(format!(
                        "{at}: an earlier link covers ranks {from} and {to} just as exactly"
                    ));
                }
                _ => *slot = Some((weight, link)),
            }
        }
    }
    let own = Link { latency_seconds: 0.0, message_seconds: 0.0, seconds_per_byte: 0.0 };
    let all = found.into_iter().enumerate().map(|(index, slot)| {
        let (from, to) = (index / size, index % size);
        match slot {
            Some((_, link)) => Ok(link),
            None if from == to => Ok(own),
            None => Err(format!(
                "no link from rank {from} (host {}) to rank {to} (host {})",
                hosts[workers[from].host].name, hosts[workers[to].host].name
            )),
        }
    });
    all.collect::<Result<_, _>>().map(Links::Each)
}

/// With more ranks than that, a link for each pair would take gigabytes.
const MOST_ONE_BY_ONE: usize = 8192;

/// Two rules for the two classes of pairs, or one if there are no others, if that is all there is.
fn by_class(rules: &[(String, LinkRule)], workers: &[Worker]) -> Result<Option<Links>, String> {
    let of = |rule: &LinkRule| match (&rule.hosts, rule.one_way) {
        (Some(HostsOf::Class(class)), false) => Some(matches!(class, HostClass::Same)),
        _ => None,
    };
    let hosts_in_use = || workers.iter().map(|worker| worker.host).collect::<BTreeSet<_>>().len();
    let is_all = |is_same: bool| hosts_in_use() == if is_same { 1 } else { workers.len() };
    match rules {
        [(at, rule)] if of(rule).is_some_and(is_all) => {
            let link = rule.link(at)?;
            Ok(Some(Links::Classes { same_host: link, other_host: link }))
        }
        [(at_a, a), (at_b, b)] => Ok(match (of(a), of(b)) {
            (Some(true), Some(false)) => {
                Some(Links::Classes { same_host: a.link(at_a)?, other_host: b.link(at_b)? })
            }
            (Some(false), Some(true)) => {
                Some(Links::Classes { same_host: b.link(at_b)?, other_host: a.link(at_a)? })
            }
            _ => None,
        }),
        _ => Ok(None),
    }
}

impl LinkRule {
    fn link(&self, at: &str) -> Result<Link, String> {
        let seconds_per_byte = seconds_per_byte(at, self.seconds_per_byte, self.bandwidth_bytes_per_second)?;
        checked(at, self.latency_seconds, self.message_seconds, seconds_per_byte)
    }

    /// How particular the rule is, and for which pairs it is meant.
    fn applies<'a>(
        &'a self,
        at: &str,
        hosts: &[Host],
        workers: &'a [Worker],
    ) -> Result<(Precision, Applies<'a>), String> {
        let one_way = self.one_way;
        Ok(match (&self.hosts, self.ranks) {
            (Some(HostsOf::Class(class)), None) => {
                let same = matches!(class, HostClass::Same);
                if one_way {
                    return Err(format!("{at}: one_way needs two ranks, or the names of two hosts"));
                }
                (Precision::Class, Box::new(move |a, b| (workers[a].host == workers[b].host) == same))
            }
            (Some(HostsOf::Pair(names)), None) => {
                let number = |name: &String| {
                    let found = hosts.iter().position(|host| host.name == *name);
                    found.ok_or_else(|| format!("{at}: there is no host `{name}`"))
                };
                let pair = (number(&names[0])?, number(&names[1])?);
                let is = move |a: Rank, b: Rank| (workers[a].host, workers[b].host) == pair;
                (Precision::Hosts, Box::new(move |a, b| is(a, b) || !one_way && is(b, a)))
            }
            (None, Some(ranks)) => {
                for rank in ranks {
                    if rank >= workers.len() {
                        return Err(format!(
                            "{at}: there is no rank {rank}, only 0 to {}",
                            workers.len() - 1
                        ));
                    }
                }
                (Precision::Ranks, Box::new(move |a, b| [a, b] == ranks || !one_way && [b, a] == ranks))
            }
            _ => return Err(format!("{at}: give one of `hosts` and `ranks`")),
        })
    }
}

impl LinkMatrix {
    fn link(&self, from: Rank, to: Rank, size: usize) -> Result<Link, String> {
        let at = format!("link_matrix, row {from}, column {to}");
        let pick = |key: &str, rows: &Vec<Vec<f64>>| {
            let row = rows.get(from).filter(|row| rows.len() == size && row.len() == size);
            row.map(|row| row[to])
                .ok_or_else(|| format!("link_matrix: {key} must have {size} rows of {size} numbers"))
        };
        let optional =
            |key, rows: &Option<Vec<Vec<f64>>>| rows.as_ref().map(|rows| pick(key, rows)).transpose();
        let seconds_per_byte = seconds_per_byte(
            &at,
            optional("seconds_per_byte", &self.seconds_per_byte)?,
            optional("bandwidth_bytes_per_second", &self.bandwidth_bytes_per_second)?,
        )?;
        let latency_seconds = pick("latency_seconds", &self.latency_seconds)?;
        checked(&at, latency_seconds, optional("message_seconds", &self.message_seconds)?, seconds_per_byte)
    }
}

/// A link as the server's entry gives it.
pub(super) fn link_of(
    at: &str,
    latency_seconds: f64,
    per_byte: Option<f64>,
    bandwidth: Option<f64>,
) -> Result<Link, String> {
    checked(at, latency_seconds, None, seconds_per_byte(at, per_byte, bandwidth)?)
}

fn checked(at: &str, latency: f64, message: Option<f64>, seconds_per_byte: f64) -> Result<Link, String> {
    let latency_seconds = quantity(at, "latency_seconds", latency)?;
    let message_seconds = quantity(at, "message_seconds", message.unwrap_or(latency))?;
    if message_seconds > latency_seconds {
        return Err(format!(
            "{at}: message_seconds is {message_seconds}, more than latency_seconds, of which it is a part"
        ));
    }
    Ok(Link { latency_seconds, message_seconds, seconds_per_byte })
}
