//! The simulator against traces that were worked out by hand.

#[path = "common/simulated.rs"]
mod simulated;

use esync::cluster::Link;
use esync::policy::{Action, LocalSteps, Report, Scheme, Update, WorkerPolicy, ssp};
use esync::sim::{Deaths, Pause, Record, SimCluster, SimOptions, Simulation, Unwatched, WorkerBehaviour};
use esync::train::StoppedBy;
use simulated::{BATCH_SIZE, DIMENSION, options, quadratic, simulate};

/// Bytes of all parameters with the statistics.
const VECTOR: u64 = 4 * (DIMENSION as u64 + 2);

fn steps(record: &Record) -> Vec<&[u32]> {
    record.workers.iter().map(|worker| &worker.steps_per_round[..]).collect()
}

#[test]
fn sync_waits_for_the_slowest_in_every_round() {
    let cluster = SimCluster::of_steps(&[1.0, 1.0, 3.0]).with_exchange_seconds(0.5);
    let record = simulate(cluster, SimOptions { collective: "ring".into(), ..options("sync", 4) }).unwrap();
    // Four rounds of 3 s and half a second.
    assert_eq!(record.seconds, 14.0);
    assert_eq!(steps(&record), [[1, 1, 1, 1]; 3]);
    assert_eq!((record.exchanges, record.versions, record.global_samples), (4, 0, 4 * 3 * BATCH_SIZE as u64));
    let fast = &record.workers[0];
    assert_eq!((fast.compute_seconds, fast.wait_seconds, fast.exchange_seconds), (4.0, 8.0, 2.0));
    let slow = &record.workers[2];
    assert_eq!((slow.compute_seconds, slow.wait_seconds, slow.exchange_seconds), (12.0, 0.0, 2.0));
    assert!((record.computing_share() - (4.0 + 4.0 + 12.0) / (3.0 * 14.0)).abs() < 1e-12);
    for worker in &record.workers {
        assert_eq!((worker.exchanges, worker.pushes, worker.pulls, worker.reports), (4, 0, 0, 0));
    }
    // A ring sends each of three parts twice, and twice again.
    let sent: u64 = record.workers.iter().map(|worker| worker.bytes_sent).sum();
    assert_eq!(sent, 4 * 4 * VECTOR);
    assert_eq!(record.bytes(), sent);
}

#[test]
fn esync_fills_the_waiting_with_steps() {
    let cluster = SimCluster::of_steps(&[1.0, 1.0, 3.0]).with_exchange_seconds(0.5);
    let record = simulate(cluster, options("esync", 4)).unwrap();
    // The straggler's step and half a second, as in `sync`, with three steps of the others in each round.
    assert_eq!(record.seconds, 14.0);
    assert_eq!(steps(&record), [[3, 3, 3, 3], [3, 3, 3, 3], [1, 1, 1, 1]]);
    assert_eq!(record.global_samples, 4 * 7 * BATCH_SIZE as u64);
    assert!((record.computing_share() - 36.0 / 42.0).abs() < 1e-12);
    // A report after every step.
    let reports: Vec<u64> = record.workers.iter().map(|worker| worker.reports).collect();
    assert_eq!(reports, [12, 12, 4]);
    assert!(record.workers.iter().all(|worker| worker.wait_seconds == 0.0));
}

#[test]
fn local_trains_alone() {
    let record = simulate(SimCluster::of_steps(&[0.25]), options("local", 8)).unwrap();
    let worker = &record.workers[0];
    assert_eq!((record.seconds, worker.local_steps, record.exchanges, record.bytes()), (2.0, 8, 0, 0));
    let mut learner = quadratic(0, 0.05).unwrap();
    for _ in 0..8 {
        learner.step(Update::Local).unwrap();
    }
    assert_eq!(record.parameters, learner.parameters());
    assert!(simulate(SimCluster::of_steps(&[1.0, 1.0]), options("local", 8)).is_err());
}

/// `sync` on equal data is one worker with the mean of the gradients.
#[test]
fn sync_applies_the_mean_gradient() {
    let record = simulate(SimCluster::of_steps(&[1.0, 2.0]), options("sync", 3)).unwrap();
    let mut ranks = [quadratic(0, 0.05).unwrap(), quadratic(1, 0.05).unwrap()];
    for _ in 0..3 {
        ranks.iter_mut().for_each(|learner| {
            learner.step(Update::Deferred).unwrap();
        });
        let [a, b] = &mut ranks;
        let mean: Vec<f32> =
            a.gradient().iter().zip(b.gradient().iter()).map(|(&a, &b)| 0.5 * a + 0.5 * b).collect();
        let statistics: Vec<f32> = a.parameters()[DIMENSION..]
            .iter()
            .zip(&b.parameters()[DIMENSION..])
            .map(|(&a, &b)| 0.5 * a + 0.5 * b)
            .collect();
        for learner in &mut ranks {
            learner.gradient().copy_from_slice(&mean);
            learner.parameters()[DIMENSION..].copy_from_slice(&statistics);
            learner.apply_gradient().unwrap();
        }
    }
    assert_eq!(record.parameters, ranks[0].parameters());
}

#[test]
fn equal_workers_make_esync_exchange_as_often_as_sync() {
    let run = |mode: &str| simulate(SimCluster::of_steps(&[1.0; 4]), options(mode, 10)).unwrap();
    let (sync, esync) = (run("sync"), run("esync"));
    assert_eq!(steps(&sync), steps(&esync));
    assert_eq!((sync.exchanges, sync.seconds), (esync.exchanges, esync.seconds));
    // Averaging the deltas of one plain step is averaging gradients, up to rounding.
    for (a, b) in sync.parameters.iter().zip(&esync.parameters) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn the_same_arguments_give_the_same_bits() {
    let cluster = || {
        let mut cluster = SimCluster::of_steps(&[0.3, 0.7, 1.1, 2.0]).with_link(Link {
            latency_seconds: 1e-3,
            message_seconds: 1e-4,
            seconds_per_byte: 1e-6,
        });
        cluster.workers[1].jitter = esync::sim::Jitter::LogNormal { sigma: 0.3 };
        cluster.workers[3].pauses.push(Pause { at_seconds: 3.0, seconds: 4.0 });
        cluster
    };
    for mode in ["sync", "esync"] {
        let first = simulate(cluster(), options(mode, 20)).unwrap();
        assert_eq!(first, simulate(cluster(), options(mode, 20)).unwrap(), "{mode}");
        let other = simulate(cluster(), SimOptions { seed: 2, ..options(mode, 20) }).unwrap();
        assert!(other.seconds != first.seconds, "{mode}: another seed, another jitter");
    }
}

/// The golden trace of the policy's own test, decision by decision.
#[test]
fn decisions_are_those_of_the_golden_trace() {
    let cluster = SimCluster::of_steps(&[1.0, 1.0, 3.0]).with_exchange_seconds(0.1);
    let record = simulate(cluster, options("esync", 3)).unwrap();
    let mut trace = String::new();
    let mut asked = std::collections::VecDeque::new();
    for entry in &record.trace {
        let Action::Report(Report::Stepped { round, local_steps: LocalSteps(step), .. }) = entry.action
        else {
            continue;
        };
        // The worker's decision to ask, and then the server's answer.
        if entry.reason.to_string() == "the state server decides" {
            asked.push_back(entry.rank);
            continue;
        }
        assert_eq!(asked.pop_front(), Some(entry.rank));
        let what = match record.trace.iter().find(|next| {
            next.rank == entry.rank
                && next.seconds >= entry.seconds
                && !matches!(next.action, Action::Report(_))
        }) {
            Some(next) if matches!(next.action, Action::Step { .. }) => "train",
            _ => "synchronize",
        };
        trace += &format!(
            "{:7.3} s  round {round} rank {} step {step:<2} {what:<12} {}\n",
            entry.seconds, entry.rank, entry.reason
        );
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/esync-1-1-3.txt");
    assert_eq!(trace, std::fs::read_to_string(golden).unwrap());
}

#[test]
fn a_pause_is_waited_for_and_filled() {
    let mut cluster = SimCluster::of_steps(&[1.0, 1.0]);
    cluster.workers[1].pauses.push(Pause { at_seconds: 2.5, seconds: 4.0 });
    let record = simulate(cluster.clone(), options("sync", 4)).unwrap();
    assert_eq!(record.seconds, 8.0);
    assert_eq!(record.workers[0].wait_seconds, 4.0);
    let mut cluster = SimCluster::of_steps(&[0.0625, 1.0]);
    cluster.workers[1].pauses.push(Pause { at_seconds: 2.5, seconds: 4.0 });
    let record = simulate(cluster, options("esync", 4)).unwrap();
    assert_eq!(record.workers[1].steps_per_round, [1; 4]);
    // Until the grace is over: a straggler that needs more than twice its time may be dead.
    let rounds = &record.workers[0].steps_per_round;
    assert!((16..=17).contains(&rounds[1]) && (31..=34).contains(&rounds[2]), "{rounds:?}");
}

fn dying(at: f64) -> SimCluster {
    let mut cluster = SimCluster::of_steps(&[1.0, 1.0, 2.0]);
    cluster.workers[1].dies_at_seconds = Some(at);
    cluster
}

#[test]
fn a_death_ends_an_exchange_as_it_ends_a_real_run() {
    for mode in ["sync", "esync"] {
        let error = simulate(dying(4.5), options(mode, 10)).unwrap_err();
        assert_eq!(error.exit_code(), 5, "{error}");
        let text = error.to_string();
        assert!(
            text.contains("rank 1 (host host1) was lost during exchange 2: it died after 4.5 s"),
            "{text}"
        );
    }
}

#[test]
fn survivors_can_go_on() {
    for mode in ["sync", "esync"] {
        let options = SimOptions { deaths: Deaths::LeaveSurvivors, ..options(mode, 10) };
        let record = simulate(dying(4.5), options).unwrap();
        assert_eq!(record.exchanges, 10, "{mode}");
        assert_eq!(record.seconds, 20.0, "{mode}");
        let dead = &record.workers[1];
        assert!(dead.is_dead && dead.ended_seconds == 4.5 && dead.exchanges == 2, "{dead:?}");
        assert_eq!(record.workers[0].steps_per_round.len(), 10);
    }
}

#[test]
fn budgets_targets_and_measurements() {
    let mut options = options("sync", 1000);
    options.limits.samples = Some(10 * 2 * BATCH_SIZE as u64);
    options.limits.evaluate_every_samples = Some(4 * BATCH_SIZE as u64);
    let record = simulate(SimCluster::of_steps(&[1.0, 1.0]), options.clone()).unwrap();
    assert_eq!((record.exchanges, record.stopped_by), (10, StoppedBy::Samples));
    let at: Vec<f64> = record.evaluations.iter().map(|evaluation| evaluation.seconds).collect();
    assert_eq!(at, [2.0, 4.0, 6.0, 8.0, 10.0]);
    let losses: Vec<f64> = record.evaluations.iter().map(|evaluation| evaluation.loss).collect();
    assert!(losses.is_sorted_by(|a, b| a > b), "{losses:?}");

    options.limits.target_loss = Some(losses[2]);
    let record = simulate(SimCluster::of_steps(&[1.0, 1.0]), options.clone()).unwrap();
    assert_eq!((record.time_to_target_seconds, record.stopped_by), (Some(6.0), StoppedBy::Target));

    options.limits.target_loss = None;
    options.limits.seconds = Some(4.5);
    let record = simulate(SimCluster::of_steps(&[1.0, 1.0]), options.clone()).unwrap();
    assert_eq!((record.seconds, record.stopped_by), (5.0, StoppedBy::Seconds), "at the next exchange");

    options.limits = esync::sim::Limits::default();
    let error = simulate(SimCluster::of_steps(&[1.0]), options).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("needs an end"), "{error}");
}

#[test]
fn a_policy_that_needs_a_server_is_refused_without_one() {
    let cluster = || SimCluster::of_steps(&[1.0, 1.0]);
    let options = || options("ssp", 4);
    let run = |scheme| {
        let policies = (0..2).map(|_| Box::new(ssp::worker()) as Box<dyn WorkerPolicy>).collect();
        let learner = |rank| quadratic(rank, 0.05);
        Simulation::with_policies(cluster(), options(), scheme, policies, None, learner)
    };
    let error = run(Scheme::Server).err().unwrap();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("mode `ssp` has no rule for its server"), "{error}");
    let error = run(Scheme::Rounds).unwrap().run(&mut Unwatched).unwrap_err();
    assert!(error.to_string().contains("asks a server, and there is none"), "{error}");
}

#[test]
fn a_cluster_that_cannot_be_is_refused() {
    let mut cluster = SimCluster::of_steps(&[1.0, 1.0]);
    cluster.workers[1] = WorkerBehaviour::constant(-2.0);
    let error = simulate(cluster, options("sync", 1)).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().starts_with("worker 1: a step of -2 s"), "{error}");
}
