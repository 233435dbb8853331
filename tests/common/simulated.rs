//! Simulations of noisy quadratics, for tests.
#![allow(dead_code, reason = "not every test needs all of it")]

use esync::Result;
use esync::learner::{Learner, Quadratic, QuadraticOptions, SgdOptions};
use esync::sim::{Record, SimCluster, SimOptions, Simulation, Unwatched};

pub(crate) const BATCH_SIZE: usize = 8;
pub(crate) const DIMENSION: usize = 6;

/// A learner of the noisy quadratic, with a statistic or two.
pub(crate) fn quadratic(rank: usize, learning_rate: f64) -> Result<Box<dyn Learner>> {
    Ok(Box::new(Quadratic::new(QuadraticOptions {
        dimension: DIMENSION,
        statistics: 2,
        seed: 1,
        rank,
        batch_size: BATCH_SIZE,
        noise: 0.2,
        sgd: SgdOptions { learning_rate, momentum: 0.0, weight_decay: 0.0 },
    })?))
}

/// The options of a mode that ends after `rounds` exchanges, updates of the server or steps alone; every decision is kept.
pub(crate) fn options(mode: &str, rounds: u64) -> SimOptions {
    let mut options = SimOptions { batch_size: BATCH_SIZE, keeps_trace: true, ..SimOptions::new(mode) };
    options.limits.rounds = Some(rounds);
    // Some modes go by shares of a budget; nobody gets that far.
    options.limits.samples = Some(1_000_000);
    options
}

/// Runs it with quadratics.
pub(crate) fn simulate(cluster: SimCluster, options: SimOptions) -> Result<Record> {
    let rate = options.learning_rate;
    Simulation::new(cluster, options, |rank| quadratic(rank, rate))?.run(&mut Unwatched)
}
