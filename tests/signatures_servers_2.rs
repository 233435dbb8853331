//! What `wbsp`, `wbsp-overlap`, `async-diloco`, `hermes` and `adsp` do on small clusters, against traces worked out by hand.
//!
//! The cluster has workers with steps of 1, 1 and 3 seconds and, if nothing else is said, a network that costs nothing.
//! Within an instant workers come first in rank order, then the server's deadlines, then its answers.

#[path = "common/simulated.rs"]
mod simulated;

use esync::cluster::Link;
use esync::policy::{Action, PolicyOptions};
use esync::sim::{Record, SimCluster, SimOptions};
use simulated::{BATCH_SIZE, DIMENSION, options, simulate};
use std::collections::BTreeMap;
use std::time::Duration;

/// Bytes of all parameters with the statistics.
const VECTOR: u64 = 4 * (DIMENSION as u64 + 2);

fn cluster() -> SimCluster {
    SimCluster::of_steps(&[1.0, 1.0, 3.0])
}

fn counts(record: &Record, count: impl Fn(&esync::sim::WorkerRecord) -> u64) -> Vec<u64> {
    record.workers.iter().map(count).collect()
}

fn steps(record: &Record) -> Vec<&[u32]> {
    record.workers.iter().map(|worker| &worker.steps_per_round[..]).collect()
}

fn staleness(record: &Record) -> Vec<BTreeMap<u64, u64>> {
    record.workers.iter().map(|worker| worker.staleness.clone()).collect()
}

fn until(mode: &str, seconds: f64) -> SimOptions {
    let mut options = options(mode, u64::MAX);
    options.limits.rounds = None;
    options.limits.seconds = Some(seconds);
    options
}

/// The greatest difference between two runs' trained parameters.
fn difference(a: &Record, b: &Record) -> f32 {
    let pairs = a.parameters[..DIMENSION].iter().zip(&b.parameters);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn wbsp_publishes_when_the_slowest_has_pushed() {
    // Two pushes in the first and second second, three in the third, and then a publication: eight versions.
    let record = simulate(cluster(), options("wbsp", 32)).unwrap();
    assert_eq!(record.seconds, 12.0);
    assert_eq!(counts(&record, |worker| worker.pushes), [12, 12, 4]);
    // Everybody pulls at 3, 6 and 9 s; at 12 s training is over.
    assert_eq!(counts(&record, |worker| worker.pulls), [3, 3, 3]);
    assert_eq!(counts(&record, |worker| worker.reports), [0, 0, 0]);
    assert_eq!(counts(&record, |worker| worker.bytes_sent), [12 * VECTOR, 12 * VECTOR, 4 * VECTOR]);
    assert_eq!(counts(&record, |worker| worker.bytes_received), [3 * VECTOR; 3]);
    // Within a period of eight versions the ranks push as 0, 1, 0, 1, 0, 1, 2.
    let expected = [
        BTreeMap::from([(0, 4), (2, 4), (4, 4)]),
        BTreeMap::from([(1, 4), (3, 4), (5, 4)]),
        BTreeMap::from([(6, 4)]),
    ];
    assert_eq!(staleness(&record), expected);
    assert!(record.workers.iter().all(|worker| worker.wait_seconds == 0.0));
}

#[test]
fn wbsp_with_equal_workers_is_sync() {
    let equal = || SimCluster::of_steps(&[1.0; 4]);
    let sync = simulate(equal(), options("sync", 10)).unwrap();
    // Four pushes and a publication for each of its exchanges.
    let wbsp = simulate(equal(), options("wbsp", 50)).unwrap();
    assert_eq!(sync.seconds, wbsp.seconds);
    assert!(difference(&sync, &wbsp) < 1e-6, "{:?} {:?}", sync.parameters, wbsp.parameters);
}

#[test]
fn wbsp_overlap_hides_its_transfers_and_loses_no_step() {
    let link = Link { latency_seconds: 0.25, message_seconds: 0.0, seconds_per_byte: 0.0 };
    let waiting = simulate(cluster().with_link(link), until("wbsp", 24.0)).unwrap();
    let hidden = simulate(cluster().with_link(link), until("wbsp-overlap", 24.0)).unwrap();
    // A step and half a second for the message and its answer.
    // Whoever learns of the end is in a step, or about to push one.
    assert_eq!(counts(&waiting, |worker| worker.local_steps)[0], 16 + 1);
    assert_eq!(counts(&hidden, |worker| worker.local_steps), [24 + 1, 24 + 1, 8 + 1]);
    for worker in &hidden.workers {
        assert_eq!((worker.wait_seconds, worker.exchange_seconds), (0.0, 0.0));
        // Each push carries the one step that was taken while the last one travelled.
        assert!(worker.steps_per_round.iter().all(|&steps| steps == 1), "{:?}", worker.steps_per_round);
    }
    assert!(hidden.computing_share() > 0.99 && waiting.computing_share() < 0.8);
    // Pushes of the slowest arrive at 3.25 s, 6.25 s and so on: everybody pulls with its next step.
    assert_eq!(counts(&hidden, |worker| worker.pulls)[0], 7);
}

#[test]
fn async_diloco_gives_everybody_steps_by_its_speed() {
    let policy = PolicyOptions {
        local_steps: Some(6),
        grace_period: Some(Duration::from_millis(500)),
        ..PolicyOptions::default()
    };
    let record = simulate(cluster(), SimOptions { policy, ..options("async-diloco", 9) }).unwrap();
    // Six steps of one second, two of three: all are there at 6, 12 and 18 s, and the grace period ends early. The ninth push
    // is answered before training ends with it: all do another window, whose pushes are thrown away.
    assert_eq!(record.seconds, 24.0);
    assert_eq!(steps(&record), [&[6, 6, 6, 6][..], &[6, 6, 6, 6], &[2, 2, 2, 2]]);
    assert_eq!(counts(&record, |worker| worker.pulls), [3, 3, 3]);
    let expected = [0, 1, 2].map(|staleness| BTreeMap::from([(staleness, 3)]));
    assert_eq!(staleness(&record), expected);
}

#[test]
fn async_diloco_waits_for_a_grace_period_and_no_longer() {
    let policy = PolicyOptions {
        local_steps: Some(4),
        grace_period: Some(Duration::from_millis(500)),
        ..PolicyOptions::default()
    };
    // Steps by speed: 4, 3 and 1. They arrive at 4.0, 3.9 and 3.2 s: two together at 4.4 s, one alone at 3.7 s.
    let cluster = SimCluster::of_steps(&[1.0, 1.3, 3.2]);
    let record = simulate(cluster, SimOptions { policy, ..options("async-diloco", 3) }).unwrap();
    let first: Vec<u32> = steps(&record).iter().map(|steps| steps[0]).collect();
    assert_eq!(first, [4, 3, 1]);
    let pulled_at = |rank: usize| {
        let is_pull = |entry: &&esync::sim::TraceEntry| {
            entry.rank == rank && matches!(entry.action, Action::Pull { .. })
        };
        record.trace.iter().find(is_pull).map_or(f64::NAN, |entry| entry.seconds)
    };
    for (rank, expected) in [4.4, 4.4, 3.7].into_iter().enumerate() {
        assert!((pulled_at(rank) - expected).abs() < 1e-6, "rank {rank} pulls at {}", pulled_at(rank));
    }
    // Rank 2 pushed first, rank 1 second.
    let expected = [2, 1, 0].map(|staleness| BTreeMap::from([(staleness, 1)]));
    assert_eq!(staleness(&record), expected);
}

#[test]
fn async_diloco_with_equal_workers_is_diloco() {
    let policy = PolicyOptions { local_steps: Some(5), ..PolicyOptions::default() };
    let equal = || SimCluster::of_steps(&[1.0; 4]);
    let rounds = simulate(equal(), SimOptions { policy: policy.clone(), ..options("diloco", 6) }).unwrap();
    // N pushes with delayed momentum are one Nesterov step on their mean.
    let pushes = simulate(equal(), SimOptions { policy, ..options("async-diloco", 24) }).unwrap();
    assert!(difference(&rounds, &pushes) < 1e-5, "{:?} {:?}", rounds.parameters, pushes.parameters);
}

#[test]
fn adsp_lets_everybody_commit_equally_often() {
    // Γ is four of the slowest worker's steps, 12 s, and the first rate is one commit in it. The first probe begins with the
    // first commit, and takes two periods. Its last sample is taken after the commits of 36 s are answered, so that workers
    // learn at 48 s that they are to commit every 6 s.
    let options = SimOptions { learning_rate: 0.003, ..until("adsp", 54.5) };
    let record = simulate(cluster(), options).unwrap();
    let commits: Vec<&[u32]> = steps(&record).into_iter().map(|steps| &steps[..5]).collect();
    assert_eq!(commits, [[12, 12, 12, 12, 6], [12, 12, 12, 12, 6], [4, 4, 4, 4, 2]]);
    let pushes = counts(&record, |worker| worker.pushes);
    assert!(pushes.iter().all(|&count| count == pushes[0]), "{pushes:?}");
    // Whoever is answered at once pulls before the later ranks have pushed: then its next commit is two versions old. At 12
    // and at 54 s all had pulled the same version.
    let staleness = staleness(&record);
    assert_eq!((staleness[0][&0], staleness[1][&1]), (2, 2));
    assert!(staleness.iter().flat_map(BTreeMap::keys).all(|&versions| versions <= 2), "{staleness:?}");
    assert!(record.workers.iter().all(|worker| worker.wait_seconds == 0.0), "nobody waits");
}

#[test]
fn hermes_pushes_seldom_and_gives_the_slow_less_data() {
    let run = |mode: &str| {
        let options = SimOptions { shard_samples: vec![64; 3], ..until(mode, 240.0) };
        simulate(cluster(), options).unwrap()
    };
    let record = run("hermes");
    let of = |rank: usize, is_it: fn(&Action) -> bool| {
        record.trace.iter().filter(|entry| entry.rank == rank && is_it(&entry.action)).count()
    };
    for (rank, worker) in record.workers.iter().enumerate() {
        let epochs = of(rank, |action| matches!(action, Action::Evaluate));
        assert!(worker.pushes > 0 && worker.pushes * 3 <= epochs as u64, "{} of {epochs}", worker.pushes);
        assert!(worker.reports.abs_diff(epochs as u64) <= 1, "one question an epoch");
        assert!(worker.pushes - worker.pulls <= 1, "a pull after each push, and no other");
    }
    // 64 samples are 8 mini-batches; the slow worker's 24 s are far from the others' 8 s, which hold 21 samples of it.
    let sized = |entry: &&esync::sim::TraceEntry| matches!(entry.action, Action::SetBatch { .. });
    let sizes: Vec<_> =
        record.trace.iter().filter(sized).map(|entry| (entry.rank, entry.action.clone())).collect();
    assert_eq!(sizes, [(2, Action::SetBatch { batch_size: BATCH_SIZE, data_budget: Some(21) })]);
    let wbsp = run("wbsp");
    assert!(record.bytes() * 5 < wbsp.bytes(), "{} of {}", record.bytes(), wbsp.bytes());
}
