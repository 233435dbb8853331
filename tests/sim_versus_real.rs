//! The simulator against a clock: ranks that sleep 20, 20, 20 and 60 ms after each step, run and simulated. (The long form, with
//! a target and more modes, is `benches/sim_versus_real.py`.)
#![cfg(feature = "torch")]

mod launcher;

use launcher::Ranks::Threads;
use launcher::{Folder, train};
use serde_json::Value;
use std::fs;
use std::process::Command;

const CLUSTER: &str = r#"version = 1
exchange_seconds = 0.0

[[hosts]]
name = "here"
ranks = 4
cores = 4
reduce_seconds_per_byte = 1e-10

[[links]]
hosts = "same"
latency_seconds = 1e-5
bandwidth_bytes_per_second = 5e9

[[workers]]
ranks = [0, 1, 2]
step_seconds = 0.02

[[workers]]
ranks = [3]
step_seconds = 0.06
"#;

fn simulate(flags: &str) -> Folder {
    let folder = Folder::new();
    let cluster = folder.path("cluster.toml");
    fs::write(&cluster, CLUSTER).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_esync"));
    command.args(["sim", "--cluster"]).arg(cluster);
    command.args(format!("{flags} {}", folder.out()).split_whitespace());
    launcher::run(command).assert_done();
    folder
}

fn seconds(summary: &Value) -> f64 {
    summary["train_seconds"].as_f64().unwrap()
}

fn local_steps(summary: &Value) -> Vec<u64> {
    let workers = summary["workers"].as_array().unwrap();
    workers.iter().map(|worker| worker["local_steps"].as_u64().unwrap()).collect()
}

fn differ(real: f64, simulated: f64) -> bool {
    (simulated / real - 1.0).abs() > 0.1
}

/// Twenty-five rounds. On a machine that is busy for a moment sleeps last longer: one run of three must agree.
fn agrees(mode: &str, samples: u64) -> (Folder, Folder) {
    let flags = format!("--mode {mode} --max-samples {samples} --learning-rate 0.01 --progress none");
    let simulated = simulate(&flags);
    let expected = simulated.summary();
    let mut differences = Vec::new();
    for _ in 0..3 {
        let real = train(Threads(4), &format!("{flags} --slow 0:20ms,1:20ms,2:20ms,3:60ms"));
        let found = real.summary();
        let steps: Vec<(u64, u64)> = local_steps(&found).into_iter().zip(local_steps(&expected)).collect();
        let times = (seconds(&found), seconds(&expected));
        if !differ(times.0, times.1) && !steps.iter().any(|&(real, sim)| differ(real as f64, sim as f64)) {
            return (real, simulated);
        }
        differences.push((times, steps));
    }
    panic!("{mode}: seconds and local steps, real and simulated: {differences:?}");
}

#[test]
fn sync_takes_as_long_as_simulated_and_learns_the_same() {
    let (real, simulated) = agrees("sync", 25 * 4 * 32);
    assert_eq!(local_steps(&simulated.summary()), [25; 4]);
    // The same batches, and sums in the same order.
    assert!(real.parameters().relative_l2(&simulated.parameters()) < 1e-5);
    assert_eq!(real.summary()["final_accuracy"], simulated.summary()["final_accuracy"]);
}

#[test]
fn esync_takes_as_long_and_as_many_steps_as_simulated() {
    let (_, simulated) = agrees("esync", 25 * 10 * 32);
    assert_eq!(local_steps(&simulated.summary()), [75, 75, 75, 25]);
}
