//! What holds for every mode over random clusters.

#[path = "common/simulated.rs"]
mod simulated;

use esync::cluster::Link;
use esync::policy::{MODES, Mode, Scheme};
use esync::sim::{Deaths, Jitter, Pause, Record, SimCluster, SimOptions};
use proptest::prelude::*;
use simulated::{options, simulate};

/// A small cluster: step times, jitter, latency, a pause and perhaps a death.
#[derive(Debug, Clone)]
struct Scene {
    steps: Vec<f64>,
    jitter: f64,
    latency: f64,
    pause: (usize, f64, f64),
    death: Option<(usize, f64)>,
}

fn scenes() -> impl Strategy<Value = Scene> {
    let steps = prop::collection::vec(0.1..3.0_f64, 2..6);
    let pause = (0..6_usize, 0.0..10.0_f64, 0.0..5.0_f64);
    let death = prop::option::of((0..6_usize, 0.0..20.0_f64));
    (steps, 0.0..0.4_f64, prop_oneof![Just(0.0), 0.0..0.5_f64], pause, death)
        .prop_map(|(steps, jitter, latency, pause, death)| Scene { steps, jitter, latency, pause, death })
}

impl Scene {
    fn run(&self, mode: Mode) -> Record {
        let steps = if mode.scheme == Scheme::Alone { &self.steps[..1] } else { &self.steps[..] };
        let size = steps.len();
        let link = Link {
            latency_seconds: self.latency,
            message_seconds: 0.0,
            seconds_per_byte: self.latency / 1e3,
        };
        let mut cluster = SimCluster::of_steps(steps).with_link(link);
        cluster.workers.iter_mut().for_each(|worker| worker.jitter = Jitter::Uniform { share: self.jitter });
        let (rank, at_seconds, seconds) = self.pause;
        cluster.workers[rank % size].pauses.push(Pause { at_seconds, seconds });
        if let Some((rank, at)) = self.death.filter(|_| size > 1) {
            cluster.workers[rank % size].dies_at_seconds = Some(at);
        }
        let options = SimOptions { deaths: Deaths::LeaveSurvivors, ..options(mode.name, 60) };
        simulate(cluster, options).unwrap_or_else(|error| panic!("{}: {error}", mode.name))
    }
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
        let accounted = worker.compute_seconds
            + worker.exchange_seconds
            + worker.wait_seconds
            + worker.evaluate_seconds
            + worker.decide_seconds;
        assert!(accounted <= worker.ended_seconds + 1e-6, "{name}: rank {rank} lived longer than it did");
        // Every push is applied once or thrown away once; what is left was on its way when training ended.
        let applied: u64 = worker.staleness.values().sum();
        assert!(
            applied <= worker.pushes,
            "{name}: rank {rank} pushed {} and {applied} were applied",
            worker.pushes
        );
    }
    let workers = record.workers.iter();
    let (pushes, applied) = workers.fold((0, 0), |(pushes, applied), worker| {
        (pushes + worker.pushes, applied + worker.staleness.values().sum::<u64>())
    });
    let open = pushes - applied - record.discarded;
    assert!(open <= record.workers.len() as u64, "{name}: {open} pushes were lost");
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

    /// No deadlock, no lost or doubled push, progress after any death, and the same again from the same arguments.
    #[test]
    fn every_mode_keeps_its_promises(scene in scenes()) {
        for &mode in MODES {
            let record = scene.run(mode);
            check(mode, &record);
            prop_assert_eq!(record, scene.run(mode), "{}", mode.name);
        }
    }
}
