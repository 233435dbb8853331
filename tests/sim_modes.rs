//! What every mode keeps to in the simulator: nobody waits for ever, also when somebody dies, and nothing depends on luck.

#[path = "common/simulated.rs"]
mod simulated;

use esync::policy::{MODES, Mode, Scheme, Weighting};
use esync::sim::{Deaths, Jitter, SimCluster, SimOptions};
use simulated::{options, quadratic, simulate};

fn cluster(mode: Mode) -> SimCluster {
    let all = [0.5, 0.8, 1.1, 2.3];
    let mut cluster = SimCluster::of_steps(if mode.scheme == Scheme::Alone { &all[..1] } else { &all });
    cluster.workers.iter_mut().for_each(|worker| worker.jitter = Jitter::Uniform { share: 0.1 });
    cluster
}

#[test]
fn every_mode_makes_progress_and_ends() {
    let initial = quadratic(0, 0.05).unwrap().evaluate(0, 1).unwrap().loss();
    for &mode in MODES {
        let record = simulate(cluster(mode), options(mode.name, 40)).unwrap_or_else(|error| {
            panic!("{}: {error}", mode.name);
        });
        assert!(record.local_steps() > 20, "{}: {} steps", mode.name, record.local_steps());
        let loss = record.final_evaluation().unwrap().loss;
        assert!(loss < initial, "{}: from a loss of {initial} to {loss}", mode.name);
        assert_eq!(record, simulate(cluster(mode), options(mode.name, 40)).unwrap(), "{}", mode.name);
    }
}

#[test]
fn every_mode_goes_on_after_a_death() {
    for mode in MODES.iter().copied().filter(|mode| mode.scheme != Scheme::Alone) {
        for dying in 0..4 {
            let mut cluster = cluster(mode);
            cluster.workers[dying].dies_at_seconds = Some(7.3);
            let options = SimOptions { deaths: Deaths::LeaveSurvivors, ..options(mode.name, 200) };
            let record = simulate(cluster, options)
                .unwrap_or_else(|error| panic!("{} without rank {dying}: {error}", mode.name));
            assert!(record.seconds > 9.0, "{} without rank {dying}: {} s", mode.name, record.seconds);
            for (rank, worker) in record.workers.iter().enumerate() {
                assert_eq!(worker.is_dead, rank == dying);
            }
        }
    }
}

#[test]
fn empty_shards_are_no_division_by_zero() {
    for &mode in MODES {
        for shard_samples in [vec![0, 64, 0, 64], vec![0; 4]] {
            let weighting = match mode.scheme {
                Scheme::Rounds => Weighting::Shard,
                _ => Weighting::Uniform,
            };
            let options = SimOptions { shard_samples, weighting, ..options(mode.name, 40) };
            let record = simulate(cluster(mode), options)
                .unwrap_or_else(|error| panic!("{} with empty shards: {error}", mode.name));
            assert!(record.parameters.iter().all(|parameter| parameter.is_finite()), "{}", mode.name);
            assert!(record.workers.iter().all(|worker| worker.local_steps > 0), "{}", mode.name);
        }
    }
}
