//! How old a push may be, or how late a delta: each mode's own promise over random clusters with delays, pauses and deaths. (`ssp`,
//! `bounded-delay` and `r2sp` have theirs under random orders of arrival as well, in `tests/server_promises.rs`.)
//!
//! `async` and `dc-asgd` promise nothing, and neither does `hermes`: a worker whose loss does not fall stays silent.

#[path = "common/scenes.rs"]
mod scenes;
#[path = "common/simulated.rs"]
mod simulated;

use esync::policy::adsp::AdspReason;
use esync::policy::{Action, Directive, Fragment, Install, Mode, PolicyOptions, Reason, Reply};
use esync::sim::{Deaths, Record, SimOptions, SimPush, Simulation, TraceEntry, Watch};
use esync::transport::Rank;
use proptest::prelude::*;
use scenes::{Scene, scenes};
use simulated::{options, quadratic};
use std::time::Duration;

fn run(scene: &Scene, options: SimOptions, watch: &mut dyn Watch) -> Record {
    let mode = Mode::by_name(&options.mode).unwrap();
    let learner = |rank| quadratic(rank, 0.05);
    let record = Simulation::new(scene.cluster(mode), options, learner).unwrap().run(watch);
    record.unwrap_or_else(|error| panic!("{}: {error}", mode.name))
}

/// What the clock rounds to.
const NANOSECOND: f64 = 1e-9;

fn with(mode: &str, rounds: u64, policy: PolicyOptions) -> SimOptions {
    SimOptions { policy, deaths: Deaths::LeaveSurvivors, ..options(mode, rounds) }
}

fn of_rank(record: &Record, rank: Rank) -> impl Iterator<Item = &TraceEntry> {
    record.trace.iter().filter(move |entry| entry.rank == rank)
}

/// The greatest staleness of a push that was applied.
fn stalest(record: &Record) -> u64 {
    record.staleness().last_key_value().map_or(0, |(&versions, _)| versions)
}

/// Counts publications since the parameters that each worker trains on.
struct Publications {
    count: u64,
    pulled: Vec<u64>,
    stalest: u64,
}

impl Watch for Publications {
    fn served(&mut self, _seconds: f64, directive: &Directive, _version: u64) -> esync::Result<()> {
        match *directive {
            Directive::Publish { .. } => self.count += 1,
            Directive::Reply { to, reply: Reply::Pull, .. } => self.pulled[to] = self.count,
            Directive::Apply { from, .. } => self.stalest = self.stalest.max(self.count - self.pulled[from]),
            _ => {}
        }
        Ok(())
    }
}

/// The pushes as they are answered.
#[derive(Default)]
struct Pushes(Vec<(Rank, SimPush)>);

impl Watch for Pushes {
    fn pushed(&mut self, _seconds: f64, rank: Rank, push: &SimPush) -> esync::Result<()> {
        self.0.push((rank, *push));
        Ok(())
    }
}

/// What one rank's trace says about exchanges: `s` for a step, `B` and its number, `F` and its number.
fn letters(record: &Record, rank: Rank) -> Vec<(char, u64)> {
    let letter = |entry: &TraceEntry| match entry.action {
        Action::Step { .. } => Some(('s', 0)),
        Action::Begin { exchange, .. } => Some(('B', exchange.0)),
        Action::Finish { exchange, .. } => Some(('F', exchange.0)),
        _ => None,
    };
    of_rank(record, rank).filter_map(letter).collect()
}

/// For each exchange of a rank: the steps between its beginning and its end.
fn steps_beside(record: &Record, rank: Rank) -> Vec<u64> {
    let mut beside = Vec::new();
    let mut running = None;
    for (letter, number) in letters(record, rank) {
        match (letter, &mut running) {
            ('s', Some((_, steps))) => *steps += 1,
            ('B', None) => running = Some((number, 0)),
            ('F', Some((begun, steps))) if *begun == number => {
                beside.push(*steps);
                running = None;
            }
            ('s', None) => {}
            other => panic!("rank {rank}: {other:?}"),
        }
    }
    beside
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Nobody computes who is more than the bound ahead of a live worker.
    #[test]
    fn ssp_bounds_clocks(scene in scenes(1..6, 0.1..3.0), bound in 0..6_u64) {
        let policy = PolicyOptions { staleness: Some(bound), ..PolicyOptions::default() };
        let record = run(&scene, with("ssp", 120, policy), &mut esync::sim::Unwatched);
        let death = scene.death.filter(|_| scene.steps.len() > 1);
        let mut clocks = vec![0; scene.steps.len()];
        for entry in &record.trace {
            match entry.action {
                Action::Push { .. } => clocks[entry.rank] += 1,
                Action::Step { .. } => {
                    for (rank, &clock) in clocks.iter().enumerate() {
                        let is_dead = death.is_some_and(|(dead, at)| {
                            dead % clocks.len() == rank && at <= entry.seconds + NANOSECOND
                        });
                        prop_assert!(is_dead || clocks[entry.rank] <= clock + bound, "{:?}", clocks);
                    }
                }
                _ => {}
            }
        }
    }

    #[test]
    fn bounded_delay_bounds_versions(scene in scenes(1..6, 0.1..3.0), bound in 0..12_u64) {
        let policy = PolicyOptions { staleness: Some(bound), ..PolicyOptions::default() };
        let record = run(&scene, with("bounded-delay", 120, policy), &mut esync::sim::Unwatched);
        // The pushes that were on their way when the bound was reached are applied, one of each worker.
        prop_assert!(stalest(&record) < bound + scene.steps.len() as u64, "{}", stalest(&record));
    }

    #[test]
    fn r2sp_is_never_older_than_the_others_are_many(scene in scenes(1..6, 0.1..3.0)) {
        let record = run(&scene, with("r2sp", 60, PolicyOptions::default()), &mut esync::sim::Unwatched);
        prop_assert!(stalest(&record) < scene.steps.len() as u64, "{}", stalest(&record));
    }

    /// Nobody trains on parameters that two publications have replaced: between two of them everybody has pushed, and pulled.
    #[test]
    fn wbsp_is_one_publication_behind_at_most(scene in scenes(1..6, 0.1..3.0), overlap in any::<bool>()) {
        let mode = if overlap { "wbsp-overlap" } else { "wbsp" };
        let mut watch = Publications { count: 0, pulled: vec![0; scene.steps.len()], stalest: 0 };
        run(&scene, with(mode, 120, PolicyOptions::default()), &mut watch);
        prop_assert!(watch.count > 0 && watch.stalest <= 1, "{} of {}", watch.stalest, watch.count);
    }

    /// Between two commits a worker computes for less than a check period and one step.
    #[test]
    fn adsp_bounds_the_time_between_commits(scene in scenes(1..6, 0.1..3.0)) {
        let record = run(&scene, with("adsp", 60, PolicyOptions::default()), &mut esync::sim::Unwatched);
        let slowest = scene.steps.iter().copied().fold(0.0, f64::max);
        // Γ is four of the slowest worker's steps, as the warm-up has found them.
        let most_check_seconds = 4.0 * slowest * (1.0 + scene.jitter);
        let mut commits = 0;
        for entry in &record.trace {
            let Reason::Adsp(AdspReason::TimeIsOver { computed_seconds, budget_seconds }) = entry.reason else {
                continue;
            };
            commits += 1;
            let longest_step = scene.steps[entry.rank] * (1.0 + scene.jitter)
                + if scene.pause.0 % scene.steps.len() == entry.rank { scene.pause.2 } else { 0.0 };
            prop_assert!(budget_seconds <= most_check_seconds + 1e-9);
            prop_assert!(computed_seconds < budget_seconds + longest_step + 1e-9);
        }
        prop_assert!(commits >= 60, "{}", commits);
    }

    /// Nobody is held for longer than the grace period.
    #[test]
    fn async_diloco_holds_nobody_for_longer_than_its_grace(scene in scenes(1..6, 0.1..3.0), grace in 0..800_u64) {
        let grace = Duration::from_millis(grace);
        let policy = PolicyOptions { grace_period: Some(grace), ..PolicyOptions::default() };
        let mut watch = Pushes::default();
        run(&scene, with("async-diloco", 40, policy), &mut watch);
        for (rank, push) in &watch.0 {
            prop_assert!(push.wait_seconds <= grace.as_secs_f64() + 1e-6, "rank {}: {:?}", rank, push);
        }
    }

    /// Steps follow speeds, so that windows take all about as long: a push is at most as old as two of every other worker's.
    /// (With equal numbers of steps a worker that is four times as slow would see four.)
    #[test]
    fn async_diloco_lets_windows_last_equally_long(scene in scenes(1..6, 0.5..2.0)) {
        let scene = Scene { latency: scene.latency / 10.0, ..scene.steady() };
        let record = run(&scene, with("async-diloco", 60, PolicyOptions::default()), &mut esync::sim::Unwatched);
        prop_assert!(stalest(&record) <= 2 * (scene.steps.len() as u64 - 1), "{}", stalest(&record));
    }

    /// A worker never takes more than τ steps without meeting the centre.
    #[test]
    fn easgd_meets_the_centre_after_equally_many_steps(scene in scenes(1..6, 0.1..3.0), local_steps in 1..9_u64) {
        let policy = PolicyOptions { local_steps: Some(local_steps), ..PolicyOptions::default() };
        let mut watch = Pushes::default();
        let record = run(&scene, with("easgd", 40, policy), &mut watch);
        prop_assert!(watch.0.iter().all(|(_, push)| push.local_steps == local_steps));
        prop_assert!(record.versions >= 40);
    }

    /// A fragment's delta is applied exactly τ steps after it was taken, but for the last exchange of each.
    #[test]
    fn streaming_diloco_is_late_by_its_overlap(
        scene in scenes(1..6, 0.1..3.0),
        fragments in 1..4_u16,
        overlap_steps in 0..3_u64,
    ) {
        let policy = PolicyOptions {
            local_steps: Some(u64::from(fragments) * 3),
            fragments: Some(fragments),
            overlap_steps: Some(overlap_steps),
            ..PolicyOptions::default()
        };
        let scene = scene.without_death();
        let record = run(&scene, with("streaming-diloco", 9, policy), &mut esync::sim::Unwatched);
        for rank in 0..scene.steps.len() {
            let mut expected = vec![overlap_steps; 9];
            expected.extend(vec![0; fragments.into()]);
            prop_assert_eq!(steps_beside(&record, rank), expected);
            let taken: Vec<u16> = of_rank(&record, rank)
                .filter_map(|entry| match entry.action {
                    Action::Begin { fragment: Fragment::Part { index, .. }, .. } => Some(index),
                    _ => None,
                })
                .collect();
            let in_turn = |(place, &index): (usize, &u16)| index == ((place as u16 + 1) % fragments);
            prop_assert!(taken.iter().take(9).enumerate().all(in_turn), "{:?}", taken);
        }
    }

    /// With `--overlap` the result of a round is applied when the next round ends: one round late, and never two.
    #[test]
    fn overlap_is_one_round_late(
        scene in scenes(1..6, 0.1..3.0),
        mode in prop::sample::select(vec!["esync", "local-sgd", "post-local-sgd", "adacomm", "diloco"]),
    ) {
        let scene = scene.without_death();
        let policy = PolicyOptions { overlap: true, ..PolicyOptions::default() };
        let record = run(&scene, with(mode, 8, policy), &mut esync::sim::Unwatched);
        for rank in 0..scene.steps.len() {
            let beside = steps_beside(&record, rank);
            let rounds = &record.workers[rank].steps_per_round;
            // The first exchange is finished at once, and so is the last, which takes in what nobody has seen.
            prop_assert_eq!(beside.len(), 9);
            prop_assert_eq!((beside[0], beside[8]), (0, 0));
            for exchange in 1..8 {
                prop_assert_eq!(beside[exchange], u64::from(rounds[exchange + 1]), "{} {}", mode, exchange);
            }
            let installs: Vec<Install> = of_rank(&record, rank)
                .filter_map(|entry| match entry.action {
                    Action::Finish { install, .. } => Some(install),
                    _ => None,
                })
                .collect();
            prop_assert!(installs[1..8].iter().all(|&install| install == Install::Merge), "{:?}", installs);
        }
    }
}
