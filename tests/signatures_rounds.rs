//! What distinguishes the modes of rounds: exchanges, bytes, waiting and local steps counted against traces that were worked out
//! by hand. (`sync`, `esync` and `local` have theirs in `tests/sim.rs`.)
//!
//! Two workers with steps of one second beside one of three. An exchange takes half a second from when the last has come.

#[path = "common/simulated.rs"]
mod simulated;

use esync::policy::{Action, Fragment, Install, Payload, PolicyOptions, Reason};
use esync::sim::{Record, SimCluster, SimOptions};
use simulated::{BATCH_SIZE, DIMENSION, options, quadratic, simulate};

/// Bytes of all parameters with the statistics.
const VECTOR: u64 = 4 * (DIMENSION as u64 + 2);

/// A ring of three sends each element twice on its way to the sum, and twice on its way back.
const LEGS: u64 = 4;

fn run(mode: &str, policy: PolicyOptions, exchanges: u64) -> Record {
    run_with(SimOptions { policy, ..options(mode, exchanges) })
}

fn run_with(options: SimOptions) -> Record {
    let cluster = SimCluster::of_steps(&[1.0, 1.0, 3.0]).with_exchange_seconds(0.5);
    let record = simulate(cluster, SimOptions { collective: "ring".into(), ..options }).unwrap();
    for worker in &record.workers {
        assert_eq!(worker.exchanges, record.exchanges);
        assert_eq!((worker.pushes, worker.pulls, worker.reports), (0, 0, 0), "there is no server");
        assert!(worker.staleness.is_empty(), "in rounds nothing has an age");
    }
    assert_eq!((record.versions, record.discarded), (0, 0));
    record
}

fn steps(record: &Record) -> Vec<&[u32]> {
    record.workers.iter().map(|worker| &worker.steps_per_round[..]).collect()
}

fn waits(record: &Record) -> Vec<f64> {
    record.workers.iter().map(|worker| worker.wait_seconds).collect()
}

fn local_steps(local_steps: u64) -> PolicyOptions {
    PolicyOptions { local_steps: Some(local_steps), ..PolicyOptions::default() }
}

/// How results are put in place, one after the other.
fn installs(record: &Record, rank: usize) -> Vec<Install> {
    let own = record.trace.iter().filter(|entry| entry.rank == rank);
    own.filter_map(|entry| match entry.action {
        Action::Finish { install, .. } => Some(install),
        _ => None,
    })
    .collect()
}

/// Every exchange is of deltas of all parameters, finished at once.
fn exchanges_whole_deltas(record: &Record) {
    for entry in &record.trace {
        match entry.action {
            Action::Begin { fragment, payload, .. } => {
                assert_eq!((fragment, payload), (Fragment::Whole, Payload::Delta));
            }
            Action::Finish { install, .. } => assert_eq!(install, Install::Rebase),
            _ => {}
        }
    }
}

#[test]
fn local_sgd_exchanges_after_equally_many_steps_of_all() {
    let record = run("local-sgd", local_steps(2), 4);
    // Two steps of 3 s and an exchange.
    assert_eq!(record.seconds, 4.0 * 6.5);
    assert_eq!(steps(&record), [[2; 4]; 3]);
    assert_eq!(record.exchanges, 4);
    assert_eq!(record.bytes(), 4 * LEGS * VECTOR);
    assert_eq!(waits(&record), [16.0, 16.0, 0.0], "the fast wait 4 s in each round");
    assert_eq!(record.global_samples, 4 * 2 * 3 * BATCH_SIZE as u64);
    exchanges_whole_deltas(&record);
}

#[test]
fn post_local_sgd_exchanges_after_every_step_until_half_of_the_budget() {
    let mut sim = SimOptions { policy: local_steps(4), ..options("post-local-sgd", 1000) };
    // A step of all are 24 samples: the 120 of the switch are there after five rounds. Rounds of four steps are 96.
    sim.limits.samples = Some(240);
    let record = run_with(sim);
    assert_eq!(steps(&record), [[1, 1, 1, 1, 1, 4, 4]; 3]);
    assert_eq!(record.seconds, 5.0 * 3.5 + 2.0 * 12.5);
    assert_eq!((record.exchanges, record.global_samples), (7, 5 * 24 + 2 * 96));
    assert_eq!(record.bytes(), 7 * LEGS * VECTOR);
    assert_eq!(waits(&record), [26.0, 26.0, 0.0], "2 s in each of five rounds, 8 s in the others");
    exchanges_whole_deltas(&record);
}

#[test]
fn adacomm_halves_its_rounds_while_the_loss_stands_still() {
    let policy = PolicyOptions { adapt_seconds: Some(24.0), ..local_steps(8) };
    // A learning rate that changes nothing.
    let record = run_with(SimOptions { policy, learning_rate: 1e-9, ..options("adacomm", 14) });
    // Rounds of 8, 4, 2 and 1 steps take 24.5, 12.5, 6.5 and 3.5 s, so that an interval of 24 s ends with the first, the
    // second, the fourth and the seventh of them.
    assert_eq!(steps(&record), [[8, 4, 4, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1]; 3]);
    assert_eq!(record.seconds, 24.5 + 2.0 * 12.5 + 4.0 * 6.5 + 7.0 * 3.5);
    assert_eq!(record.bytes(), 14 * LEGS * VECTOR);
    exchanges_whole_deltas(&record);
}

#[test]
fn adacomm_follows_the_loss() {
    let policy = PolicyOptions { adapt_seconds: Some(24.0), ..local_steps(8) };
    let record = run_with(SimOptions { policy, learning_rate: 0.9, ..options("adacomm", 12) });
    let adapted = record.trace.iter().filter(|entry| entry.rank == 0);
    let adapted: Vec<_> = adapted
        .filter_map(|entry| match entry.reason {
            Reason::RoundsAdapted { loss, first_loss, follows_loss, from, to } => {
                Some((loss, first_loss, follows_loss, from, to))
            }
            _ => None,
        })
        .collect();
    assert!(!adapted[0].2, "the first interval has the first loss");
    let (loss, first_loss, follows_loss, from, to) = adapted[1];
    assert!(
        follows_loss && loss < 0.14 * first_loss,
        "the loss falls to a tenth within ten steps: {adapted:?}"
    );
    assert_eq!((from, to), (4, ((loss / first_loss).sqrt() * 8.0).ceil() as u64));
    assert_eq!(record.workers[1].steps_per_round[..4], [8, 4, 4, to as u32]);
}

#[test]
fn diloco_is_local_sgd_with_momentum_on_the_mean() {
    let diloco = run("diloco", local_steps(3), 3);
    let plain = run("local-sgd", local_steps(3), 3);
    assert_eq!(diloco.seconds, 3.0 * 9.5);
    // Not a message or a second differs …
    for (a, b) in diloco.workers.iter().zip(&plain.workers) {
        assert_eq!(a, b);
    }
    assert_eq!(diloco.bytes(), 3 * LEGS * VECTOR);
    exchanges_whole_deltas(&diloco);
    // … but what becomes of the mean delta: 0.7 (1 + 0.9) of it in the first exchange.
    let start = quadratic(0, 0.05).unwrap().parameters().to_vec();
    let (diloco, plain) = (run("diloco", local_steps(3), 1), run("local-sgd", local_steps(3), 1));
    for (index, start) in start[..DIMENSION].iter().enumerate() {
        let moved = |record: &Record| record.parameters[index] - start;
        assert!((moved(&diloco) - 0.7 * 1.9 * moved(&plain)).abs() < 1e-5, "{index}");
    }
    assert_eq!(diloco.parameters[DIMENSION..], plain.parameters[DIMENSION..], "statistics have no momentum");
}

#[test]
fn streaming_diloco_exchanges_one_fragment_at_a_time_beside_steps() {
    let policy =
        PolicyOptions { fragments: Some(2), overlap_steps: Some(1), mix: Some(0.25), ..local_steps(4) };
    let record = run("streaming-diloco", policy, 4);
    // An exchange begins with every second step of the slow worker, at 6, 12, 18 and 24 s, and is over half a second later: it
    // never waits. The fast begin it after two steps, and wait with the third behind them.
    // All stop after the fourth: the fast know at 24.5 s, the slow one at 27 s, with its ninth step. Then each fragment is
    // exchanged once more, half a second each.
    assert_eq!(record.seconds, 28.0);
    assert_eq!(record.exchanges, 6);
    let counts: Vec<u64> = record.workers.iter().map(|worker| worker.local_steps).collect();
    assert_eq!(counts, [9, 9, 9]);
    assert_eq!(steps(&record), [[2, 2, 2, 2, 1, 0]; 3]);
    // Half of the vector each.
    assert_eq!(record.bytes(), 6 * LEGS * VECTOR / 2);
    let slow = &record.workers[2];
    assert_eq!((slow.wait_seconds, slow.exchange_seconds), (0.0, 1.0), "only the last two are seen");
    // From 3 to 6 s, then 8.5 to 12, 14.5 to 18 and 20.5 to 24 s, and from 24.5 to 27 s.
    assert_eq!(record.workers[0].wait_seconds, 3.0 + 3.0 * 3.5 + 2.5);
    let fragments = record.trace.iter().filter(|entry| entry.rank == 0);
    let fragments: Vec<Fragment> = fragments
        .filter_map(|entry| match entry.action {
            Action::Begin { fragment, payload, .. } => {
                assert_eq!(payload, Payload::Delta);
                Some(fragment)
            }
            _ => None,
        })
        .collect();
    assert_eq!(fragments, [1, 0, 1, 0, 0, 1].map(|index| Fragment::Part { index, count: 2 }));
    let mix = Install::Mix { alpha: 0.25 };
    assert_eq!(installs(&record, 2), [mix, mix, mix, mix, Install::Rebase, Install::Rebase]);
}

#[test]
fn overlap_hides_an_exchange_behind_the_next_round() {
    let policy = PolicyOptions { overlap: true, ..local_steps(2) };
    let record = run("local-sgd", policy, 4);
    // The first exchange is finished at once, at 6.5 s. Rounds then follow each other without a pause: the second exchange
    // begins at 12.5 s and is finished with the third round, at 18.5 s; the fourth is finished at 30.5 s, and all stop. The
    // steps of the last round are exchanged at once.
    assert_eq!(record.seconds, 31.0);
    assert_eq!(record.exchanges, 5);
    assert_eq!(steps(&record), [[2; 5]; 3]);
    assert_eq!(record.bytes(), 5 * LEGS * VECTOR);
    let slow = &record.workers[2];
    assert_eq!((slow.wait_seconds, slow.exchange_seconds), (0.0, 1.0), "the first and the last");
    let (rebase, merge) = (Install::Rebase, Install::Merge);
    assert_eq!(installs(&record, 0), [rebase, merge, merge, merge, rebase]);
}
