//! What holds for every mode over random clusters.

#[path = "common/scenes.rs"]
mod scenes;
#[path = "common/simulated.rs"]
mod simulated;

use esync::policy::{Action, MODES, Mode, Scheme};
use esync::sim::{Deaths, Record, SimOptions};
use proptest::prelude::*;
use scenes::{Scene, scenes};
use simulated::{options, simulate};

fn run(scene: &Scene, mode: Mode) -> Record {
    let options = SimOptions { deaths: Deaths::LeaveSurvivors, ..options(mode.name, 60) };
    simulate(scene.cluster(mode), options).unwrap_or_else(|error| panic!("{}: {error}", mode.name))
}

fn check(mode: Mode, record: &Record) {
    let name = mode.name;
    for (rank, worker) in record.workers.iter().enumerate() {
        let closed: u64 = worker.steps_per_round.iter().map(|&steps| u64::from(steps)).sum();
        assert!(
            closed <= worker.local_steps,
            "{name}: rank {rank} brought {closed} of {}",
            worker.local_steps
        );
        assert!(worker.other_seconds() > -1e-6, "{name}: rank {rank} lived longer than it did");
        // Every push is applied once or thrown away once; the last may have been on its way when training ended.
        let consumed = worker.staleness.values().sum::<u64>() + worker.discarded;
        assert!(
            (0..=1).contains(&(worker.pushes - consumed)),
            "{name}: rank {rank} pushed {} and {consumed} were consumed",
            worker.pushes
        );
    }
    let workers = record.workers.iter();
    let (pushes, applied) = workers.fold((0, 0), |(pushes, applied), worker| {
        (pushes + worker.pushes, applied + worker.staleness.values().sum::<u64>())
    });
    let living = record.workers.iter().filter(|worker| !worker.is_dead);
    assert!(living.clone().all(|worker| worker.local_steps > 0), "{name}: somebody never worked");
    match mode.scheme {
        Scheme::Server => {
            assert_eq!(record.exchanges, 0, "{name}");
            assert!(
                record.versions <= 2 * applied + record.workers.len() as u64,
                "{name}: versions without pushes"
            );
        }
        Scheme::Rounds | Scheme::Alone => assert_eq!((pushes, record.versions), (0, 0), "{name}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// No deadlock, no lost or doubled push, and the same again from the same arguments.
    #[test]
    fn every_mode_keeps_its_promises(scene in scenes(2..6, 0.1..3.0)) {
        for &mode in MODES {
            let record = run(&scene, mode);
            check(mode, &record);
            prop_assert_eq!(record, run(&scene, mode), "{}", mode.name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// Whatever is delayed and whoever dies: all others still work at the end.
    #[test]
    fn everybody_who_lives_goes_on(scene in scenes(2..6, 0.5..3.0)) {
        // Sixteen steps of the slowest are the longest round, with jitter and a pause 72 s.
        const SECONDS: f64 = 240.0;
        for &mode in MODES {
            let mut options = SimOptions { deaths: Deaths::LeaveSurvivors, ..options(mode.name, u64::MAX) };
            (options.limits.rounds, options.limits.seconds) = (None, Some(SECONDS));
            let record = simulate(scene.cluster(mode), options).unwrap();
            for (rank, worker) in record.workers.iter().enumerate() {
                let is_late = |entry: &&esync::sim::TraceEntry| {
                    entry.rank == rank && entry.seconds > SECONDS / 2.0
                };
                let mut late = record.trace.iter().filter(is_late);
                let works = late.any(|entry| matches!(entry.action, Action::Step { .. }));
                prop_assert_eq!(works, !worker.is_dead, "{} rank {}", mode.name, rank);
            }
        }
    }
}
