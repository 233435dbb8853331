//! Nineteen names are nineteen behaviours: on one small cluster, with the same options as far as they apply, no two modes do the
//! same.

#[path = "common/simulated.rs"]
mod simulated;

use esync::policy::{Action, MODES, Mode, PolicyOptions, Scheme};
use esync::sim::{Record, SimCluster, SimOptions};
use simulated::{options, simulate};
use std::collections::{BTreeMap, BTreeSet};

/// All that can be seen of a mode without looking at a number of the model.
#[derive(Debug, PartialEq)]
struct Behaviour {
    exchanges: u64,
    versions: u64,
    /// Pushes, pulls, reports, bytes sent and received.
    messages: Vec<[u64; 5]>,
    steps_per_round: Vec<Vec<u32>>,
    staleness: Vec<BTreeMap<u64, u64>>,
    /// What workers do: kinds of steps, payloads, ways of putting results in place.
    habits: BTreeSet<String>,
}

fn habit(action: &Action) -> Option<String> {
    Some(match action {
        Action::Step { update } => format!("step {update:?}"),
        Action::Begin { fragment, payload, .. } => format!("begin {fragment:?} {payload:?}"),
        Action::Finish { install, .. } => format!("finish {install:?}"),
        Action::Push { payload, .. } => format!("push {payload:?}"),
        Action::BeginPush { payload, .. } => format!("begin-push {payload:?}"),
        Action::Pull { install } => format!("pull {install:?}"),
        Action::Evaluate | Action::SetBatch { .. } => action.name().into(),
        Action::Report(_) | Action::FinishPush { .. } | Action::Wait | Action::Stop => return None,
    })
}

fn behaviour(record: &Record) -> Behaviour {
    let workers = &record.workers;
    Behaviour {
        exchanges: record.exchanges,
        versions: record.versions,
        messages: workers
            .iter()
            .map(|worker| {
                let bytes = (worker.bytes_sent, worker.bytes_received);
                [worker.pushes, worker.pulls, worker.reports, bytes.0, bytes.1]
            })
            .collect(),
        steps_per_round: workers.iter().map(|worker| worker.steps_per_round.clone()).collect(),
        staleness: workers.iter().map(|worker| worker.staleness.clone()).collect(),
        habits: record.trace.iter().filter_map(|entry| habit(&entry.action)).collect(),
    }
}

/// A minute of two workers with steps of one second beside one of three.
fn run(mode: Mode) -> Record {
    let steps = [1.0, 1.0, 3.0];
    let cluster = SimCluster::of_steps(if mode.scheme == Scheme::Alone { &steps[..1] } else { &steps });
    let policy = PolicyOptions { local_steps: Some(4), staleness: Some(2), ..PolicyOptions::default() };
    let mut options = SimOptions { policy, ..options(mode.name, u64::MAX) };
    (options.limits.rounds, options.limits.seconds) = (None, Some(60.0));
    // `post-local-sgd` switches after half a minute.
    options.limits.samples = Some(2 * 10 * 3 * 8);
    if mode.scheme != Scheme::Rounds {
        options.limits.samples = None;
    }
    simulate(cluster, options).unwrap_or_else(|error| panic!("{}: {error}", mode.name))
}

#[test]
fn no_two_modes_do_the_same() {
    assert_eq!(MODES.len(), 19);
    let records: Vec<Record> = MODES.iter().map(|&mode| run(mode)).collect();
    let behaviours: Vec<Behaviour> = records.iter().map(behaviour).collect();
    for (first, mode) in MODES.iter().enumerate() {
        for (second, other) in MODES.iter().enumerate().skip(first + 1) {
            if behaviours[first] != behaviours[second] {
                continue;
            }
            // What these do with the same messages is another thing: the mean delta alone, or momentum on it.
            let pair = (mode.name, other.name);
            assert_eq!(pair, ("local-sgd", "diloco"), "{:#?}", behaviours[first]);
            assert_ne!(records[first].parameters, records[second].parameters, "{pair:?}");
        }
    }
}
