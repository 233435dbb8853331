//! Thousands of workers. The figures of a release build are in the README; here only that it is feasible at all.

use esync::learner::{Learner, Quadratic, QuadraticOptions, SgdOptions};
use esync::sim::{Record, SimCluster, SimOptions, Simulation, Unwatched};
use std::time::Instant;

/// Workers whose step times lie between 1 s and 10 s by equal ratios.
fn run(workers: usize, rounds: u64) -> Record {
    let steps: Vec<f64> = (0..workers).map(|rank| 10_f64.powf(rank as f64 / (workers - 1) as f64)).collect();
    let mut options = SimOptions { batch_size: 32, ..SimOptions::new("esync") };
    options.limits.rounds = Some(rounds);
    let sgd = SgdOptions { learning_rate: 0.05, momentum: 0.0, weight_decay: 0.0 };
    let learner = |rank| {
        let options =
            QuadraticOptions { dimension: 8, statistics: 0, seed: 1, rank, batch_size: 32, noise: 1.0, sgd };
        Ok(Box::new(Quadratic::new(options)?) as Box<dyn Learner>)
    };
    Simulation::new(SimCluster::of_steps(&steps), options, learner).unwrap().run(&mut Unwatched).unwrap()
}

#[test]
fn a_thousand_workers() {
    let started = Instant::now();
    let record = run(1000, 20);
    assert_eq!(record.exchanges, 20);
    assert!(record.local_steps() > 3 * 20 * 1000, "{} steps", record.local_steps());
    eprintln!("1,000 workers, 20 rounds, {} steps: {:.1?}", record.local_steps(), started.elapsed());
}

/// `cargo test --release --test sim_scale -- --ignored --nocapture --test-threads 1`
#[test]
#[ignore = "half a minute in a release build, minutes in another"]
fn a_thousand_workers_for_a_thousand_rounds() {
    let started = Instant::now();
    let record = run(1000, 1000);
    let elapsed = started.elapsed();
    eprintln!("1,000 workers, 1,000 rounds, {} steps: {elapsed:.1?}", record.local_steps());
    assert!(elapsed.as_secs() < 30, "{elapsed:?}");
}

#[test]
#[ignore = "for its memory"]
fn ten_thousand_workers() {
    let started = Instant::now();
    let record = run(10_000, 3);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("unknown");
    eprintln!("10,000 workers, 3 rounds, {} steps: {:.1?}, {peak}", record.local_steps(), started.elapsed());
    let kilobytes: Option<u64> = peak.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    assert!(kilobytes.is_none_or(|kilobytes| kilobytes < 2 << 20), "{peak}");
}
