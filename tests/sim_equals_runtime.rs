//! The simulator and the runtime do the same: the same policy, learner and options end with the same parameters, bit for bit,
//! whether its messages travel between threads or are only thought of.

#[path = "common/simulated.rs"]
mod simulated;

use esync::Result;
use esync::collective::{Communicator, CommunicatorOptions};
use esync::learner::{Learner, Quadratic, QuadraticOptions, SgdOptions};
use esync::policy::esync::Planning;
use esync::policy::streaming_diloco::FragmentMap;
use esync::policy::{Job, Mode, Outer, PolicyOptions, Weighting};
use esync::reduce::WireFormat;
use esync::runtime::{ExchangeOptions, ExchangeReport, Fragments, Next, Observed, Observer, Step, Worker};
use esync::sim::{SimCluster, SimOptions, Simulation, Unwatched};
use esync::transport::threads;
use simulated::{BATCH_SIZE, options};
use std::sync::Arc;

const STEP_SECONDS: [f64; 4] = [0.1, 0.1, 0.1, 0.3];
const EXCHANGES: u64 = 6;
/// Nobody gets that far; `post-local-sgd` goes by shares of it.
const BUDGET: u64 = 4000;
const LEARNING_RATE: f64 = 0.05;

/// Long enough for blocks of a narrow wire that different ranks own.
fn learner(rank: usize) -> Result<Box<dyn Learner>> {
    Ok(Box::new(Quadratic::new(QuadraticOptions {
        dimension: 700,
        statistics: 2,
        seed: 1,
        rank,
        batch_size: BATCH_SIZE,
        noise: 0.2,
        sgd: SgdOptions { learning_rate: LEARNING_RATE, momentum: 0.9, weight_decay: 0.0 },
    })?))
}

/// Ends after so many exchanges.
struct Stopper;

impl Observer<Box<dyn Learner>> for Stopper {
    fn exchanged(&mut self, report: &ExchangeReport, _: Observed<'_, Box<dyn Learner>>) -> Result<bool> {
        Ok(report.exchange >= EXCHANGES)
    }
}

/// A job of four ranks, of which one is three times as slow.
#[derive(Debug, Clone)]
struct Test {
    mode: &'static str,
    policy: PolicyOptions,
    outer: Outer,
    rate: f64,
    wire: WireFormat,
    error_feedback: bool,
    weighting: Weighting,
}

impl Test {
    fn new(mode: &'static str) -> Test {
        let outer = Mode::by_name(mode).unwrap().default_outer();
        Test {
            mode,
            policy: PolicyOptions { planning: Some(Planning::Ahead), ..PolicyOptions::default() },
            rate: outer.default_learning_rate(),
            outer,
            wire: WireFormat::F32,
            error_feedback: false,
            weighting: Weighting::Uniform,
        }
    }

    fn with_policy(mut self, change: impl FnOnce(&mut PolicyOptions)) -> Test {
        change(&mut self.policy);
        self
    }

    /// Each rank's steps and final parameters over threads.
    fn real(&self) -> Vec<(u64, Vec<f32>)> {
        let results = threads::run(STEP_SECONDS.len(), |transport| {
            let options = CommunicatorOptions { wire: self.wire, ..CommunicatorOptions::default() };
            let communicator = Communicator::new(Arc::new(transport), options)?;
            let (rank, size) = (communicator.rank(), communicator.size());
            let step_seconds: Arc<[f64]> = STEP_SECONDS.into();
            let job = Job {
                size,
                step_seconds: step_seconds.clone(),
                shard_samples: vec![1; size].into(),
                batch_size: BATCH_SIZE,
                learning_rate: LEARNING_RATE,
                budget_samples: Some(BUDGET),
            };
            // The quadratic is one layer.
            let map = FragmentMap::Contiguous;
            let exchange = ExchangeOptions {
                weighting: self.weighting,
                outer: self.outer,
                global_learning_rate: self.rate,
                shard_samples: vec![1; size],
                fragments: self.policy.fragments.map(|count| Fragments { count, map }),
                error_feedback: self.error_feedback,
            };
            let policy = Mode::by_name(self.mode)?.worker(&self.policy, &job, rank)?;
            let mut learner = learner(rank)?;
            let mut worker = Worker::new(policy, communicator, None, exchange, &mut learner)?;
            let mut next = worker.begin(step_seconds.clone(), &mut learner, &mut Stopper)?;
            let mut steps = 0;
            while let Next::Step { update } = next {
                let outcome = learner.step(update)?;
                steps += 1;
                let step = Step { seconds: step_seconds[rank], samples: outcome.samples, loss: outcome.loss };
                next = worker.stepped(step, update, &mut learner, &mut Stopper)?;
            }
            Ok((steps, learner.parameters().to_vec()))
        });
        results.into_iter().collect::<Result<Vec<_>>>().unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    #[track_caller]
    fn check(&self) {
        let sim = SimOptions {
            policy: self.policy.clone(),
            outer: self.outer,
            global_learning_rate: self.rate,
            wire: self.wire,
            error_feedback: self.error_feedback,
            weighting: self.weighting,
            learning_rate: LEARNING_RATE,
            ..options(self.mode, EXCHANGES)
        };
        let mut sim = SimOptions { keeps_trace: false, ..sim };
        sim.limits.samples = Some(BUDGET);
        let simulation = Simulation::new(SimCluster::of_steps(&STEP_SECONDS), sim, learner).unwrap();
        let record = simulation.run(&mut Unwatched).unwrap();
        for (rank, (steps, parameters)) in self.real().into_iter().enumerate() {
            assert_eq!(record.workers[rank].local_steps, steps, "{self:?}: rank {rank}");
            assert_eq!(record.parameters, parameters, "{self:?}: rank {rank}");
        }
    }
}

/// Every mode of rounds, with rounds of a few steps.
fn modes() -> Vec<Test> {
    let three = |mode| Test::new(mode).with_policy(|policy| policy.local_steps = Some(3));
    vec![
        Test::new("sync"),
        Test::new("esync"),
        three("local-sgd"),
        three("post-local-sgd").with_policy(|policy| policy.switch_at = Some(0.02)),
        // An interval ends with every second round.
        three("adacomm").with_policy(|policy| policy.adapt_seconds = Some(1.0)),
        three("diloco"),
        Test::new("streaming-diloco").with_policy(|policy| {
            (policy.local_steps, policy.fragments, policy.overlap_steps) = (Some(6), Some(3), Some(1));
        }),
    ]
}

#[test]
fn every_mode_of_rounds() {
    modes().iter().for_each(Test::check);
}

#[test]
fn overlap_is_late_in_the_same_way() {
    for test in modes() {
        if !["sync", "streaming-diloco"].contains(&test.mode) {
            test.with_policy(|policy| policy.overlap = true).check();
        }
    }
}

#[test]
fn narrow_wires_round_alike_and_make_up_for_it_alike() {
    for test in modes() {
        for wire in [WireFormat::F16, WireFormat::Bf16, WireFormat::Int8] {
            Test { wire, ..test.clone() }.check();
            if test.mode != "sync" {
                Test { wire, error_feedback: true, ..test.clone() }.check();
            }
        }
    }
    let overlapped = Test::new("esync").with_policy(|policy| policy.overlap = true);
    Test { wire: WireFormat::Int8, error_feedback: true, ..overlapped }.check();
}

#[test]
fn deltas_are_weighed_alike() {
    for test in modes() {
        if test.mode == "sync" {
            continue;
        }
        for weighting in Weighting::ALL {
            Test { weighting, ..test.clone() }.check();
        }
    }
}

#[test]
fn outer_optimisers_work_alike() {
    Test { outer: Outer::Nesterov, rate: 0.7, ..Test::new("esync") }.check();
    let overlapped = Test::new("esync").with_policy(|policy| policy.overlap = true);
    Test { outer: Outer::Nesterov, rate: 0.7, ..overlapped }.check();
}
