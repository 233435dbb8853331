//! One line of results.

use super::{Refresh, Timing};
use crate::collective::{Kind, Order};
use crate::reduce::WireFormat;
use serde::Serialize;

/// Microseconds of an iteration on its slowest rank, over all iterations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Times {
    /// The fastest iteration.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// 95 of 100 are not slower.
    pub p95: f64,
    /// 99 of 100 are not slower.
    pub p99: f64,
}

impl Times {
    /// The figures of iterations that took so many seconds. Percentiles are by nearest rank.
    ///
    /// ```
    /// let times = esync::bench::Times::of(&mut [3e-6, 1e-6, 2e-6]);
    /// assert_eq!((times.min, times.median), (1.0, 2.0));
    /// ```
    pub fn of(seconds: &mut [f64]) -> Times {
        seconds.sort_unstable_by(f64::total_cmp);
        let percentile = |percent: usize| {
            let nearest = (percent * seconds.len()).div_ceil(100).max(1) - 1;
            // Nanoseconds are all that the clock has.
            seconds.get(nearest).map_or(0.0, |seconds| (seconds * 1e9).round() / 1e3)
        };
        Times { min: percentile(0), median: percentile(50), p95: percentile(95), p99: percentile(99) }
    }
}

/// What was measured of one collective at one size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// The operation.
    pub op: String,
    /// The algorithm.
    pub collective: String,
    /// The transport.
    pub transport: String,
    /// Where the vectors lay: `cpu`, `cuda:N`, or all that ranks had, separated by commas.
    pub device: String,
    /// The number of ranks.
    pub ranks: usize,
    /// The order of summation that was asked for.
    pub order: Order,
    /// What the vectors travelled as.
    pub wire: WireFormat,
    /// Bytes of one rank's whole vector.
    pub bytes: usize,
    /// Its elements.
    pub count: usize,
    /// Their type.
    #[serde(rename = "type")]
    pub element: &'static str,
    /// The operator, `none` for operations that only move data.
    pub redop: &'static str,
    /// Whether the result replaces the input.
    pub in_place: bool,
    /// Whether the vectors lie in memory that the transport knows.
    pub registered: bool,
    /// Microseconds.
    pub time_us: Times,
    /// 10⁹ bytes per second: bytes / median time.
    pub algbw_gbps: f64,
    /// The same times the operation's factor.
    pub busbw_gbps: f64,
    /// Microseconds below which this host cannot do it; nothing if it was not measured.
    pub ceiling_us: Option<f64>,
    /// 10⁹ bytes that all cores together read and write in a second in the operation's direct form at this size.
    pub ceiling_gbps: Option<f64>,
    /// 10⁹ bytes per second that the own copy of rank 0's GPU reads and writes, if it has one.
    pub copy_gbps: Option<f64>,
    /// The share of the ceiling that was reached: `ceiling_us` / median time.
    pub ceiling_share: Option<f64>,
    /// Wrong elements on all ranks together; nothing if they were not checked.
    pub wrong: Option<u64>,
    /// Timed iterations.
    pub iterations: usize,
    /// A hash of the bits of the results of a fixed set of random numbers; nothing if results were not checked.
    pub result_hash: Option<String>,
    /// How many times were measured: `iterations`, or fewer where they are timed in batches.
    pub samples: usize,
    /// How iterations followed each other.
    pub timing: Timing,
    /// What happened to the vectors between them.
    pub refresh: Refresh,
    /// The share of the cores' time that other programs took while this size was measured, on the first rank's host;
    /// nothing if that was too short to say.
    pub foreign_cpu_share: Option<f64>,
    /// How often the size was measured again because that share was too large.
    pub repeats: u32,
    /// How many hosts there are.
    pub hosts: usize,
    /// The cores of the first rank's host that this program may use.
    pub cores: usize,
    /// The version of esync.
    pub version: &'static str,
}

/// A row is not to be trusted if other programs took more than this share of the cores' time.
pub(super) const CONTAMINATED: f64 = 0.10;

impl Record {
    /// Whether other programs disturbed it.
    ///
    /// With up to 10% of the cores' time taken by others a record counts as clean.
    pub fn is_contaminated(&self) -> bool {
        self.foreign_cpu_share.is_some_and(|share| share > CONTAMINATED)
    }

    /// Names and values, in the order of the columns of a CSV file.
    pub(super) fn columns(&self) -> Vec<(&'static str, String)> {
        fn known<T: ToString>(value: Option<T>) -> String {
            value.map_or_else(String::new, |value| value.to_string())
        }
        vec![
            ("op", self.op.clone()),
            ("collective", self.collective.clone()),
            ("transport", self.transport.clone()),
            ("ranks", self.ranks.to_string()),
            ("order", self.order.to_string()),
            ("bytes", self.bytes.to_string()),
            ("count", self.count.to_string()),
            ("type", self.element.to_string()),
            ("redop", self.redop.to_string()),
            ("in_place", self.in_place.to_string()),
            ("registered", self.registered.to_string()),
            ("time_us_min", self.time_us.min.to_string()),
            ("time_us_median", self.time_us.median.to_string()),
            ("time_us_p95", self.time_us.p95.to_string()),
            ("time_us_p99", self.time_us.p99.to_string()),
            ("algbw_gbps", self.algbw_gbps.to_string()),
            ("busbw_gbps", self.busbw_gbps.to_string()),
            ("ceiling_us", known(self.ceiling_us)),
            ("ceiling_gbps", known(self.ceiling_gbps)),
            ("ceiling_share", known(self.ceiling_share)),
            ("wrong", known(self.wrong)),
            ("iterations", self.iterations.to_string()),
            ("result_hash", known(self.result_hash.as_deref())),
            ("samples", self.samples.to_string()),
            ("timing", self.timing.to_string()),
            ("refresh", self.refresh.to_string()),
            ("wire", self.wire.to_string()),
            ("device", self.device.replace(',', " ")),
            ("copy_gbps", known(self.copy_gbps)),
            ("foreign_cpu_share", known(self.foreign_cpu_share)),
            ("repeats", self.repeats.to_string()),
            ("hosts", self.hosts.to_string()),
            ("cores", self.cores.to_string()),
            ("version", self.version.to_string()),
        ]
    }
}

/// What a link carries for each byte of the vector, as nccl-tests defines the bus bandwidth.
pub(super) fn bus_factor(kind: Kind, ranks: usize) -> f64 {
    let others = (ranks - 1) as f64 / ranks as f64;
    match kind {
        Kind::AllReduce => 2.0 * others,
        Kind::ReduceScatter | Kind::AllGather => others,
        Kind::Broadcast | Kind::Reduce => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut seconds: Vec<f64> = (1..=200).rev().map(|us| us as f64 * 1e-6).collect();
        let times = Times::of(&mut seconds);
        assert_eq!((times.min, times.median, times.p95, times.p99), (1.0, 100.0, 190.0, 198.0));
        let one = Times::of(&mut [5e-6]);
        assert_eq!((one.min, one.median, one.p95, one.p99), (5.0, 5.0, 5.0, 5.0));
    }

    #[test]
    fn bus_factors_are_those_of_nccl_tests() {
        let factors = Kind::ALL.map(|kind| bus_factor(kind, 4));
        assert_eq!(factors, [1.5, 0.75, 0.75, 1.0, 1.0]);
    }
}
