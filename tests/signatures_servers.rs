//! What distinguishes the modes with a parameter server: messages and ages counted against traces that were worked out by hand.
//!
//! Two workers with steps of one second beside one of three, in a network that costs nothing. Of one instant the server hears
//! rank 0 first.

#[path = "common/simulated.rs"]
mod simulated;

use esync::policy::{Action, Install, Payload, PolicyOptions, Update};
use esync::sim::{Record, SimCluster, SimOptions};
use simulated::{DIMENSION, options, simulate};
use std::collections::BTreeMap;

/// Bytes of all parameters with the statistics.
const VECTOR: u64 = 4 * (DIMENSION as u64 + 2);

fn run(mode: &str, policy: PolicyOptions, versions: u64) -> Record {
    let record =
        simulate(SimCluster::of_steps(&[1.0, 1.0, 3.0]), SimOptions { policy, ..options(mode, versions) })
            .unwrap();
    assert_eq!(record.versions, versions);
    assert_eq!((record.exchanges, record.discarded), (0, 0));
    for worker in &record.workers {
        let applied: u64 = worker.staleness.values().sum();
        assert!(worker.pushes - applied <= 1, "at most the last push finds the server stopping");
        assert_eq!(worker.bytes_sent, worker.pushes * VECTOR);
        assert_eq!(worker.bytes_received, worker.pulls * VECTOR);
    }
    record
}

/// How often a worker pulled, and for each age in versions how many of its pushes had it.
fn check(record: &Record, expected: [(u64, &[(u64, u64)]); 3]) {
    for (rank, (pulls, ages)) in expected.into_iter().enumerate() {
        let worker = &record.workers[rank];
        let ages: BTreeMap<u64, u64> = ages.iter().copied().collect();
        assert_eq!((worker.pulls, &worker.staleness), (pulls, &ages), "{} rank {rank}", record.mode);
    }
}

/// The payload of all pushes, the update of all steps, and how pulls are put in place.
fn habits(record: &Record) -> (Payload, Update, Install) {
    let habit = |pick: &dyn Fn(&Action) -> Option<Action>| {
        let mut seen: Vec<Action> = record.trace.iter().filter_map(|entry| pick(&entry.action)).collect();
        seen.dedup();
        assert_eq!(seen.len(), 1, "{}: {seen:?}", record.mode);
        seen.remove(0)
    };
    let is = |wanted: fn(&Action) -> bool| move |action: &Action| wanted(action).then(|| action.clone());
    let push = habit(&is(|action| matches!(action, Action::Push { .. })));
    let step = habit(&is(|action| matches!(action, Action::Step { .. })));
    let pull = habit(&is(|action| matches!(action, Action::Pull { .. })));
    match (push, step, pull) {
        (Action::Push { payload, .. }, Action::Step { update }, Action::Pull { install }) => {
            (payload, update, install)
        }
        other => panic!("{other:?}"),
    }
}

fn staleness(bound: u64) -> PolicyOptions {
    PolicyOptions { staleness: Some(bound), ..PolicyOptions::default() }
}

#[test]
fn asynchronous_workers_never_wait_and_the_slow_one_is_late() {
    // Pushes at 1, 2, … 6 s of the fast, at 3 and 6 s of the slow worker, who is six versions late.
    let expected = [(6, &[(0, 1), (1, 4), (2, 1)][..]), (6, &[(1, 5), (2, 1)]), (2, &[(6, 2)])];
    let added = run("async", PolicyOptions::default(), 14);
    check(&added, expected);
    assert_eq!(habits(&added), (Payload::Delta, Update::Local, Install::Rebase));
    let compensated = run("dc-asgd", PolicyOptions::default(), 14);
    check(&compensated, expected);
    assert_eq!(habits(&compensated), (Payload::Gradient, Update::Deferred, Install::Rebase));
    for record in [&added, &compensated] {
        assert!(record.workers.iter().all(|worker| worker.wait_seconds == 0.0));
    }
    assert_ne!(added.parameters, compensated.parameters);
}

#[test]
fn ssp_reads_only_what_is_too_old() {
    // With a bound of one clock the fast go on at 1 s, wait from 2 to 3, 4 to 6 and 7 to 9 s, and read each time. The slow one
    // reads once, at its clock 2: what it read before training was too old only then.
    let record = run("ssp", staleness(1), 11);
    check(&record, [(3, &[(0, 3), (2, 1)]), (3, &[(1, 3), (3, 1)]), (1, &[(2, 1), (4, 1), (7, 1)])]);
    assert_eq!(habits(&record), (Payload::Delta, Update::Local, Install::Rebase));
    let waits: Vec<f64> = record.workers.iter().map(|worker| worker.wait_seconds).collect();
    assert!(waits[0] >= 5.0 && waits[1] >= 5.0 && waits[2] == 0.0, "{waits:?}");
}

#[test]
fn ssp_with_a_bound_of_0_is_a_barrier() {
    // Rounds of three seconds, whose pushes are 0, 1 and 2 versions old.
    let record = run("ssp", staleness(0), 9);
    check(&record, [(3, &[(0, 3)]), (3, &[(1, 3)]), (3, &[(2, 3)])]);
}

#[test]
fn bounded_delay_counts_versions() {
    // A bound of two versions: the fast are answered at 1 s, held from 2 s until the slow one pushes at 3 s, and again.
    let record = run("bounded-delay", staleness(2), 10);
    check(&record, [(4, &[(0, 2), (1, 2)]), (4, &[(1, 4)]), (2, &[(4, 2)])]);
    assert_eq!(habits(&record), (Payload::Delta, Update::Local, Install::Rebase));
}

#[test]
fn elastic_workers_meet_the_centre_every_few_steps() {
    let two_steps = PolicyOptions { local_steps: Some(2), ..PolicyOptions::default() };
    // Pushes at 2, 4 and 6 s, and at 6 s. What a worker gets is the centre of before its own push.
    let record = run("easgd", two_steps, 7);
    check(&record, [(3, &[(0, 1), (2, 2)]), (3, &[(1, 1), (2, 2)]), (1, &[(6, 1)])]);
    let (payload, update, install) = habits(&record);
    assert_eq!((payload, update), (Payload::Parameters, Update::Local));
    let Install::Mix { alpha } = install else { panic!("{install:?}") };
    assert!((alpha - 0.7).abs() < 1e-12, "1 − 0.9 / 3");
    assert_eq!(record.workers[0].steps_per_round[..3], [2, 2, 2]);
}

#[test]
fn round_robin_pushes_are_always_as_old_as_the_others_are_many() {
    // Rank 2 holds both others up from 2 to 3 s and from 4 to 6 s; then all three are answered, in their order.
    let record = run("r2sp", PolicyOptions::default(), 8);
    check(&record, [(3, &[(0, 1), (2, 2)]), (3, &[(1, 1), (2, 2)]), (2, &[(2, 2)])]);
    assert_eq!(habits(&record), (Payload::Delta, Update::Local, Install::Rebase));
}
