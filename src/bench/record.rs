//! One line of results.

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
    /// Wrong elements on all ranks together; nothing if they were not checked.
    pub wrong: Option<u64>,
    /// Timed iterations.
    pub iterations: usize,
    /// A hash of the bits of the results of a fixed set of random numbers; nothing if results were not checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result_hash: Option<String>,
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
