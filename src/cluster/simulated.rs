//! The part of a topology file that only the simulator looks at, as it is written. What it means is the simulator's.

use super::Link;
use super::file::quantity;
use super::links::link_of;
use serde::Deserialize;
use std::path::PathBuf;

/// Everything that only the simulator looks at.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Simulated {
    /// How workers behave, with the line of each entry.
    pub(crate) workers: Vec<(usize, BehaviourEntry)>,
    /// The way to the parameter server, if it is not that to another host.
    pub(crate) server_link: Option<Link>,
    /// Seconds for each byte that passes the server's network card in one direction.
    pub(crate) server_card_seconds_per_byte: Option<f64>,
    /// Seconds of every exchange, instead of what the algorithm's schedule needs.
    pub(crate) exchange_seconds: Option<f64>,
    /// Bytes that the model counts as where it travels, in f32.
    pub(crate) model_bytes: Option<u64>,
}

/// An entry of `[[workers]]`: for the ranks of a list, or for the next so many ranks.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BehaviourEntry {
    pub(crate) ranks: Option<Vec<usize>>,
    pub(crate) count: Option<usize>,
    pub(crate) step_seconds: Option<f64>,
    /// The last worker's of the entry; those between are spaced by equal ratios.
    pub(crate) step_seconds_to: Option<f64>,
    /// `uniform:SHARE`, `normal:SHARE` or `log-normal:SIGMA`.
    pub(crate) jitter: Option<String>,
    pub(crate) trace: Option<Vec<f64>>,
    pub(crate) trace_file: Option<PathBuf>,
    #[serde(default)]
    pub(crate) pauses: Vec<PauseEntry>,
    pub(crate) dies_at_seconds: Option<f64>,
    pub(crate) memory_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PauseEntry {
    pub(crate) at_seconds: f64,
    pub(crate) seconds: f64,
}

/// `[server]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServerEntry {
    latency_seconds: f64,
    bandwidth_bytes_per_second: Option<f64>,
    seconds_per_byte: Option<f64>,
    card_bandwidth_bytes_per_second: Option<f64>,
}

impl Simulated {
    pub(super) fn new(
        workers: Vec<(usize, BehaviourEntry)>,
        server: Option<(usize, ServerEntry)>,
        exchange_seconds: Option<f64>,
        model_bytes: Option<u64>,
    ) -> Result<Self, String> {
        let mut simulated = Simulated { workers, exchange_seconds, model_bytes, ..Simulated::default() };
        if let Some(seconds) = exchange_seconds {
            quantity("the file", "exchange_seconds", seconds)?;
        }
        if let Some((line, server)) = server {
            let at = format!("line {line}: server");
            let (bandwidth, seconds) = (server.bandwidth_bytes_per_second, server.seconds_per_byte);
            simulated.server_link = Some(link_of(&at, server.latency_seconds, seconds, bandwidth)?);
            simulated.server_card_seconds_per_byte = match server.card_bandwidth_bytes_per_second {
                Some(bandwidth) if bandwidth > 0.0 && bandwidth.is_finite() => Some(1.0 / bandwidth),
                Some(bandwidth) => {
                    return Err(format!(
                        "{at}: card_bandwidth_bytes_per_second is {bandwidth}; it must be above 0"
                    ));
                }
                None => None,
            };
        }
        Ok(simulated)
    }
}
