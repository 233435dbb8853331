//! ESync on a virtual clock: the real worker policy and the real state server, with workers whose step times are made up.
//!
//! `UPDATE_EXPECT=1 cargo test --test esync_policy` rewrites the expected traces in `tests/golden/`.

use esync::policy::esync::{EsyncCoordinator, EsyncWorker, Planning, Settings};
use esync::policy::sync::SyncWorker;
use esync::policy::{
    Action, Coordinator, Directive, LocalSteps, MemberReport, Reply, Smoothed, WorkerEvent, WorkerPolicy,
};
use proptest::prelude::*;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::Write;
use std::time::Duration;

/// Seconds of a worker's n-th step (from 0) in round `round`.
type StepSeconds = Box<dyn FnMut(usize, u64) -> f64>;

struct Cluster {
    /// Seconds of a step before training, by rank.
    warm_up: Vec<f64>,
    /// Seconds of each step.
    step_seconds: StepSeconds,
    transfer_seconds: f64,
    settings: Settings,
    /// `true` for SSGD instead of ESync.
    sync: bool,
    /// Rank that ends without a word, the time, and whether the state server is told.
    dies: Option<(usize, f64, bool)>,
    /// Cores that the first so many workers share, each computing as fast as the others; the rest sleep instead of computing.
    shared_cores: Option<(f64, usize)>,
}

#[derive(Debug, Clone, Default)]
struct Round {
    /// When the last worker entered the exchange.
    closed: f64,
    steps: Vec<u64>,
    wait_seconds: Vec<f64>,
}

#[derive(Debug, Default)]
struct Outcome {
    rounds: Vec<Round>,
    seconds: f64,
    trace: String,
    /// Workers that stand in an exchange that nobody closes, with the time of their arrival.
    stranded: Vec<(usize, f64)>,
}

impl Outcome {
    fn steps(&self) -> u64 {
        self.rounds.iter().flat_map(|round| &round.steps).sum()
    }

    fn seconds_per_step(&self) -> f64 {
        self.seconds / self.steps() as f64
    }

    /// The share of its time that a rank waited, exchanges not counted.
    fn waiting_share(&self, rank: usize) -> f64 {
        self.rounds.iter().map(|round| round.wait_seconds[rank]).sum::<f64>() / self.seconds
    }
}

impl Cluster {
    fn new(seconds: &[f64]) -> Self {
        let constant = seconds.to_vec();
        Cluster {
            warm_up: seconds.to_vec(),
            step_seconds: Box::new(move |rank, _| constant[rank]),
            transfer_seconds: 0.0,
            settings: Settings::default(),
            sync: false,
            dies: None,
            shared_cores: None,
        }
    }

    /// Every step takes between `1 − jitter` and `1 + jitter` times the rank's seconds.
    fn with_jitter(seconds: &[f64], jitter: f64, seed: u64) -> Self {
        let (base, mut state) = (seconds.to_vec(), seed);
        let mut cluster = Cluster::new(seconds);
        let mut draw = move |rank: usize| base[rank] * (1.0 + jitter * (2.0 * uniform(&mut state) - 1.0));
        cluster.warm_up = (0..seconds.len()).map(&mut draw).collect();
        cluster.step_seconds = Box::new(move |rank, _| draw(rank));
        cluster
    }

    fn run(self, rounds: u64) -> Outcome {
        let size = self.warm_up.len();
        let server = EsyncCoordinator::new(size, self.settings.clone()).with_step_seconds(&self.warm_up);
        let policy = || -> Box<dyn WorkerPolicy> {
            if self.sync {
                Box::<SyncWorker>::default()
            } else {
                Box::new(EsyncWorker::new(self.settings.clone()))
            }
        };
        let mut driver = Driver {
            workers: (0..size).map(|rank| Worker::new(policy(), self.warm_up[rank])).collect(),
            server,
            queue: BinaryHeap::new(),
            computing: Vec::new(),
            now: 0,
            outcome: Outcome::default(),
            rounds,
            cluster: self,
        };
        driver.drive();
        driver.outcome
    }
}

struct Worker {
    policy: Box<dyn WorkerPolicy>,
    smoothed: Smoothed,
    round: u64,
    local_steps: u64,
    entered: Option<u64>,
    dead: bool,
}

impl Worker {
    fn new(policy: Box<dyn WorkerPolicy>, warm_up: f64) -> Self {
        Worker {
            policy,
            smoothed: Smoothed::new(warm_up),
            round: 0,
            local_steps: 0,
            entered: None,
            dead: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Stepped(usize, u64),
    Exchanged,
    Died(usize),
}

struct Driver {
    cluster: Cluster,
    workers: Vec<Worker>,
    server: EsyncCoordinator,
    queue: BinaryHeap<Reverse<(u64, Event)>>,
    /// Who computes on shared cores: rank, seconds of work left, beginning.
    computing: Vec<(usize, f64, u64)>,
    /// Nanoseconds.
    now: u64,
    rounds: u64,
    outcome: Outcome,
}

impl Driver {
    fn drive(&mut self) {
        if let Some((rank, at, _)) = self.cluster.dies {
            self.queue.push(Reverse((nanoseconds(at), Event::Died(rank))));
        }
        for rank in 0..self.workers.len() {
            let step_seconds = self.cluster.warm_up.as_slice().into();
            self.tell(rank, WorkerEvent::Started { rank, step_seconds });
        }
        while let Some((now, event)) = self.next_event() {
            self.now = now;
            match event {
                Event::Stepped(rank, _) if self.workers[rank].dead => {}
                Event::Stepped(rank, took) => {
                    let step_seconds = seconds(took);
                    self.workers[rank].smoothed.add(step_seconds);
                    self.workers[rank].local_steps += 1;
                    self.tell(rank, WorkerEvent::Stepped { step_seconds, samples: 1, loss: 1.0 });
                }
                Event::Exchanged => self.close(),
                Event::Died(rank) => {
                    self.workers[rank].dead = true;
                    if self.cluster.dies.is_some_and(|(_, _, told)| told) {
                        self.server.lost(Duration::from_nanos(now), rank);
                    }
                }
            }
        }
        self.outcome.seconds = seconds(self.now);
        let entered = self.workers.iter().enumerate();
        self.outcome.stranded =
            entered.filter_map(|(rank, worker)| Some((rank, seconds(worker.entered?)))).collect();
    }

    /// The next event, also of shared cores: each computing worker gets an equal part of them.
    fn next_event(&mut self) -> Option<(u64, Event)> {
        let rate =
            self.cluster.shared_cores.map_or(1.0, |(cores, _)| cores / self.computing.len() as f64).min(1.0);
        let first = self.computing.iter().enumerate().min_by(|a, b| a.1.1.total_cmp(&b.1.1));
        let done = first.map(|(index, &(_, left, _))| (self.now + nanoseconds(left / rate), index));
        let queued = self.queue.peek().map(|&Reverse((at, _))| at);
        let (at, finished) = match (done, queued) {
            (Some((at, index)), queued) if queued.is_none_or(|queued| at <= queued) => (at, Some(index)),
            (_, queued) => (queued?, None),
        };
        for (_, left, _) in &mut self.computing {
            *left = (*left - seconds(at - self.now) * rate).max(0.0);
        }
        match finished {
            Some(index) => {
                let (rank, _, began) = self.computing.swap_remove(index);
                Some((at, Event::Stepped(rank, at - began)))
            }
            None => self.queue.pop().map(|Reverse(event)| event),
        }
    }

    /// Tells a worker and carries out what it answers, until that takes time.
    fn tell(&mut self, rank: usize, mut event: WorkerEvent) {
        loop {
            let (action, reason) = self.workers[rank].policy.next(event);
            match action {
                Action::Step { .. } => {
                    let work = (self.cluster.step_seconds)(rank, self.workers[rank].round);
                    if self.cluster.shared_cores.is_some_and(|(_, computing)| rank < computing) {
                        return self.computing.push((rank, work, self.now));
                    }
                    let took = nanoseconds(work).max(1);
                    return self.queue.push(Reverse((self.now + took, Event::Stepped(rank, took))));
                }
                Action::Report(report) => {
                    let answer = self.server.on(Duration::from_nanos(self.now), rank, report);
                    let [Directive::Reply { to, reply, reason }] = &answer[..] else { panic!("{answer:?}") };
                    assert_eq!(*to, rank);
                    self.trace(rank, reply, &reason.to_string());
                    event = WorkerEvent::Replied(reply.clone());
                }
                Action::Begin { exchange, .. } => event = WorkerEvent::Begun { exchange },
                Action::Finish { .. } => {
                    self.workers[rank].entered = Some(self.now);
                    if self.workers.iter().all(|worker| worker.entered.is_some()) {
                        let end = self.now + nanoseconds(self.cluster.transfer_seconds);
                        self.queue.push(Reverse((end, Event::Exchanged)));
                    }
                    return;
                }
                Action::Stop => return assert_eq!(reason.to_string(), "all ranks agreed to stop"),
                other => panic!("{other:?}"),
            }
        }
    }

    fn close(&mut self) {
        let closed = self.now - nanoseconds(self.cluster.transfer_seconds);
        let waited = |worker: &Worker| seconds(closed - worker.entered.expect("it entered"));
        let members = self.workers.iter().enumerate().map(|(rank, worker)| MemberReport {
            rank,
            local_steps: LocalSteps(worker.local_steps),
            samples: worker.local_steps,
            step_seconds: worker.smoothed.get(),
            transfer_seconds: self.cluster.transfer_seconds,
            loss: 1.0,
        });
        let members: std::sync::Arc<[MemberReport]> = members.collect();
        self.outcome.rounds.push(Round {
            closed: seconds(closed),
            steps: self.workers.iter().map(|worker| worker.local_steps).collect(),
            wait_seconds: self.workers.iter().map(waited).collect(),
        });
        let stop = self.outcome.rounds.len() as u64 == self.rounds;
        for rank in 0..self.workers.len() {
            let worker = &mut self.workers[rank];
            let exchange = esync::policy::ExchangeId(worker.round);
            (worker.entered, worker.local_steps) = (None, 0);
            worker.round += 1;
            let (transfer_seconds, wait_seconds) = (self.cluster.transfer_seconds, 0.0);
            let members = members.clone();
            self.tell(
                rank,
                WorkerEvent::Finished { exchange, transfer_seconds, wait_seconds, members, stop },
            );
        }
    }

    fn trace(&mut self, rank: usize, reply: &Reply, reason: &str) {
        if self.workers.len() > 8 {
            return;
        }
        let (now, worker) = (seconds(self.now), &self.workers[rank]);
        let what = match reply {
            Reply::Train => "train",
            Reply::Synchronize => "synchronize",
            other => panic!("{other:?}"),
        };
        let _ = writeln!(
            self.outcome.trace,
            "{now:7.3} s  round {} rank {rank} step {:<2} {what:<12} {reason}",
            worker.round, worker.local_steps
        );
    }
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// SplitMix64, as a number from 0 to 1.
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[track_caller]
fn check_trace(name: &str, trace: &str) {
    let path = format!("{}/tests/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, trace).expect("the trace can be written");
    }
    let expected = std::fs::read_to_string(&path).expect("run once with UPDATE_EXPECT=1");
    assert!(expected == trace, "{path} differs (UPDATE_EXPECT=1 rewrites it); now:\n{trace}");
}

#[test]
fn trace_of_two_fast_workers_and_a_slow_one() {
    let mut cluster = Cluster::new(&[1.0, 1.0, 3.0]);
    cluster.transfer_seconds = 0.1;
    let outcome = cluster.run(3);
    assert!(outcome.rounds.iter().all(|round| round.steps == [3, 3, 1]), "{:?}", outcome.rounds);
    check_trace("esync-1-1-3", &outcome.trace);
}

#[test]
fn trace_of_a_straggler_that_changes() {
    // Rank 1 is slow until round 3, rank 0 from then on.
    let mut cluster = Cluster::new(&[1.0, 5.0]);
    cluster.step_seconds = Box::new(|rank, round| if (rank == 1) == (round < 3) { 5.0 } else { 1.0 });
    let outcome = cluster.run(9);
    check_trace("esync-straggler-changes", &outcome.trace);
    assert_eq!(outcome.rounds[2].steps, [5, 1]);
    assert_eq!(outcome.rounds[8].steps, [1, 5], "followed within a few steps");
}

#[test]
fn equal_workers_are_ssgd() {
    for size in [1, 2, 8] {
        let outcome = Cluster::new(&vec![0.1; size]).run(20);
        assert!(
            outcome.rounds.iter().all(|round| round.steps.iter().all(|&steps| steps == 1)),
            "{size} workers"
        );
    }
}

#[test]
fn a_cluster_of_150_to_1_reaches_the_expected_steps() {
    let mut cluster = Cluster::new(&[1.0, 0.1, 15.0]);
    cluster.transfer_seconds = 0.01;
    let outcome = cluster.run(5);
    for round in &outcome.rounds {
        assert!((15..=16).contains(&round.steps[0]) && (150..=151).contains(&round.steps[1]), "{round:?}");
        assert_eq!(round.steps[2], 1);
    }
}

#[test]
fn planning_ahead_reaches_the_same_steps() {
    let mut cluster = Cluster::new(&[1.0, 1.0, 3.0, 0.1]);
    cluster.settings.planning = Planning::Ahead;
    cluster.transfer_seconds = 0.1;
    let outcome = cluster.run(5);
    assert!(outcome.rounds.iter().all(|round| round.steps[..3] == [3, 3, 1]), "{:?}", outcome.rounds);
    assert!(outcome.rounds.iter().all(|round| (30..=31).contains(&round.steps[3])), "{:?}", outcome.rounds);
}

#[test]
fn local_steps_are_bounded() {
    for planning in [Planning::StateServer, Planning::Ahead] {
        let mut cluster = Cluster::new(&[0.1, 3.0]);
        cluster.settings = Settings { planning, max_local_steps: Some(7), ..Settings::default() };
        assert!(cluster.run(4).rounds.iter().all(|round| round.steps == [7, 1]));
    }
}

#[test]
fn an_outlier_changes_no_plan() {
    // Rank 1, equal to the others, stumbles in round 4: thirty steps' time for one.
    let mut cluster = Cluster::new(&[0.1, 0.1, 0.4]);
    cluster.step_seconds = Box::new(|rank, round| match (rank, round) {
        (1, 4) => 3.0,
        (2, _) => 0.4,
        _ => 0.1,
    });
    let outcome = cluster.run(10);
    for (number, round) in outcome.rounds.iter().enumerate().filter(|(number, _)| *number != 4) {
        assert_eq!(round.steps, [4, 4, 1], "round {number}");
    }
    assert_eq!(outcome.rounds[4].steps, [4, 1, 1], "nobody works on for a worker that should be done");
}

#[test]
fn a_straggler_that_slows_down_is_followed_within_three_steps() {
    let mut cluster = Cluster::new(&[0.1, 0.4]);
    cluster.step_seconds = Box::new(|rank, round| match (rank, round) {
        (1, 5..) => 0.8,
        (1, _) => 0.4,
        _ => 0.1,
    });
    let outcome = cluster.run(12);
    let fast: Vec<u64> = outcome.rounds.iter().map(|round| round.steps[0]).collect();
    assert_eq!(fast, [4, 4, 4, 4, 4, 4, 4, 4, 8, 8, 8, 8]);
}

#[test]
fn drift_is_followed() {
    // The slow worker gets slower by 2 % a round; the fast one must neither idle nor hold it up.
    let mut cluster = Cluster::new(&[0.05, 1.0]);
    cluster.step_seconds = Box::new(|rank, round| if rank == 1 { 1.02_f64.powi(round as i32) } else { 0.05 });
    let outcome = cluster.run(60);
    assert!(outcome.waiting_share(0) < 0.06, "{}", outcome.waiting_share(0));
    assert!(outcome.waiting_share(1) < 0.06, "{}", outcome.waiting_share(1));
}

#[test]
fn a_dead_straggler_keeps_nobody() {
    for (dies_at, told) in [(0.5, false), (0.5, true), (10.0, false), (10.3, true)] {
        let mut cluster = Cluster::new(&[0.02, 0.03, 1.0]);
        cluster.dies = Some((2, dies_at, told));
        let outcome = cluster.run(1000);
        let ranks: Vec<usize> = outcome.stranded.iter().map(|&(rank, _)| rank).collect();
        assert!(ranks.starts_with(&[0, 1]), "all others enter the exchange: {ranks:?}");
        let latest = outcome.stranded.iter().map(|&(_, entered)| entered).fold(0.0, f64::max);
        let bound = dies_at + if told { 0.04 } else { 2.1 };
        assert!(latest <= bound, "dies at {dies_at}: entered at {latest}, later than {bound}");
    }
}

#[test]
fn equal_workers_that_jitter_lose_nothing_against_sync() {
    for size in [2, 4, 8, 16] {
        for seed in 0..10 {
            let run = |sync, planning| {
                let mut cluster = Cluster::with_jitter(&vec![0.01; size], 0.5, seed);
                (cluster.sync, cluster.settings.planning, cluster.transfer_seconds) = (sync, planning, 0.001);
                cluster.run(400)
            };
            let sync_cost = run(true, Planning::StateServer).seconds_per_step();
            let esync = run(false, Planning::StateServer);
            // Without a state server nobody hears that the straggler was early, or late.
            let ahead_cost = run(false, Planning::Ahead).seconds_per_step();
            for (cost, most) in [(esync.seconds_per_step(), 1.02), (ahead_cost, 1.1)] {
                assert!(cost < sync_cost * most, "{size} workers, seed {seed}: {cost} against {sync_cost}");
            }
            let extra = esync.steps() as f64 / (400 * size) as f64 - 1.0;
            assert!(extra < 0.02, "{size} workers, seed {seed}: {:.1} % extra steps", 100.0 * extra);
        }
    }
}

#[test]
fn equal_workers_on_two_cores_lose_nothing_against_sync() {
    for (jitter, seed) in
        [0.0, 0.1, 0.3, 0.5].into_iter().flat_map(|jitter| (0..5).map(move |seed| (jitter, seed)))
    {
        let run = |sync| {
            let mut cluster = Cluster::with_jitter(&[0.002; 8], jitter, seed);
            (cluster.sync, cluster.transfer_seconds) = (sync, 0.0005);
            cluster.shared_cores = Some((2.0, 8));
            cluster.run(400)
        };
        let (sync, esync) = (run(true), run(false));
        let (sync_cost, esync_cost) = (sync.seconds_per_step(), esync.seconds_per_step());
        assert!(
            esync_cost < sync_cost * 1.02,
            "jitter {jitter}, seed {seed}: {esync_cost} against {sync_cost}"
        );
        let extra = esync.steps() as f64 / 3200.0 - 1.0;
        assert!(extra < 0.02, "jitter {jitter}, seed {seed}: {:.1} % extra steps", 100.0 * extra);
    }
}

#[test]
fn fast_workers_on_two_cores_hardly_wait_for_one_that_sleeps() {
    for seed in 0..5 {
        let mut cluster =
            Cluster::with_jitter(&[0.003, 0.003, 0.003, 0.003, 0.003, 0.003, 0.003, 0.4], 0.3, seed);
        (cluster.transfer_seconds, cluster.shared_cores) = (0.001, Some((2.0, 7)));
        let outcome = cluster.run(100);
        for rank in 0..8 {
            let share = outcome.waiting_share(rank);
            assert!(share < 0.1, "seed {seed}: rank {rank} waits {share:.3} of its time");
        }
    }
}

#[test]
fn seven_fast_workers_hardly_wait_for_one_of_400_milliseconds() {
    let seconds = [0.005, 0.006, 0.007, 0.009, 0.011, 0.013, 0.015, 0.4];
    for (jitter, most) in [(0.0, 0.05), (0.2, 0.06), (0.5, 0.1)] {
        for seed in 0..5 {
            let mut cluster = Cluster::with_jitter(&seconds, jitter, seed);
            cluster.transfer_seconds = 0.001;
            let outcome = cluster.run(100);
            for rank in 0..8 {
                let share = outcome.waiting_share(rank);
                assert!(
                    share < most,
                    "jitter {jitter}, seed {seed}: rank {rank} waits {share:.3} of its time"
                );
            }
        }
    }
}

#[test]
fn two_slow_workers_that_jitter_are_both_waited_for() {
    let seconds = [0.005, 0.008, 0.4, 0.4];
    let outcome = Cluster::with_jitter(&seconds, 0.3, 1).run(100);
    for rank in 0..2 {
        assert!(outcome.waiting_share(rank) < 0.05, "rank {rank}: {}", outcome.waiting_share(rank));
    }
}

#[test]
fn unmeasured_workers_are_not_worked_on_for() {
    let mut cluster = Cluster::new(&[0.1, 0.5]);
    cluster.warm_up = vec![0.0, 0.0];
    let steps: Vec<Vec<u64>> = cluster.run(3).rounds.into_iter().map(|round| round.steps).collect();
    assert_eq!(steps, [[1, 1], [5, 1], [5, 1]]);
}

#[test]
fn a_thousand_workers() {
    let seconds: Vec<f64> = (0..1000).map(|rank| if rank % 100 == 7 { 1.0 } else { 0.3 }).collect();
    let outcome = Cluster::with_jitter(&seconds, 0.1, 3).run(5);
    assert_eq!(outcome.rounds.len(), 5);
    assert!(outcome.rounds.iter().flat_map(|round| &round.steps).all(|&steps| (1..=4).contains(&steps)));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn with_constant_speeds_nobody_waits_longer_than_a_step(
        seconds in prop::collection::vec(0.01_f64..2.0, 1..12),
        transfer_seconds in 0.0_f64..0.5,
        tolerance in prop::sample::select(vec![0.0, 0.05, 0.2]),
    ) {
        let mut cluster = Cluster::new(&seconds);
        cluster.transfer_seconds = transfer_seconds;
        cluster.settings.tolerance = tolerance;
        let outcome = cluster.run(6);
        let slowest = seconds.iter().copied().fold(0.0, f64::max);
        let late = tolerance * (slowest + transfer_seconds) + 1e-6;
        for round in &outcome.rounds {
            for (rank, &own) in seconds.iter().enumerate() {
                prop_assert!(round.steps[rank] >= 1);
                prop_assert!(round.wait_seconds[rank] <= own + late, "rank {} in {:?}", rank, round);
            }
        }
        let closings = outcome.rounds.windows(2).map(|pair| pair[1].closed - pair[0].closed);
        for round_seconds in closings {
            prop_assert!(round_seconds <= slowest + transfer_seconds + late, "a round of {} s", round_seconds);
        }
    }

    #[test]
    fn every_round_closes_whatever_the_speeds(
        seconds in prop::collection::vec(0.01_f64..2.0, 1..8),
        jitter in 0.0_f64..0.9,
        seed: u64,
        ahead: bool,
    ) {
        let mut cluster = Cluster::with_jitter(&seconds, jitter, seed);
        if ahead {
            cluster.settings.planning = Planning::Ahead;
        }
        let outcome = cluster.run(10);
        prop_assert_eq!(outcome.rounds.len(), 10);
        prop_assert!(outcome.rounds.iter().flat_map(|round| &round.steps).all(|&steps| steps >= 1));
        prop_assert!(outcome.stranded.is_empty());
    }
}

#[test]
fn slight_jitter_costs_no_second_step() {
    // Whether the second step of seven workers fits beside one of twice their time is a matter of luck without tolerance.
    let run = |sync| {
        let mut seconds = [0.1; 8];
        seconds[7] = 0.2;
        let mut cluster = Cluster::with_jitter(&seconds, 0.1, 5);
        cluster.sync = sync;
        cluster.run(300)
    };
    let gain = run(true).seconds_per_step() / run(false).seconds_per_step();
    assert!(gain > 1.6, "{gain}");
}
