//! The policies of rounds on real exchanges: nothing that was computed is lost or applied twice, whatever overlaps, and every
//! rank ends with the same parameters.

use esync::collective::{Communicator, CommunicatorOptions};
use esync::learner::{FlatSlice, Layout, Model, TensorLayout};
use esync::policy::esync::Planning;
use esync::policy::streaming_diloco::FragmentMap;
use esync::policy::{Action, Fragment, Job, Mode, Outer, PolicyOptions, Reason, Weighting};
use esync::reduce::WireFormat;
use esync::runtime::{
    Activity, ExchangeOptions, ExchangeReport, Fragments, Next, Observed, Observer, Step, Worker,
};
use esync::transport::{Delayed, Transport, threads};
use esync::{Error, Result};
use std::sync::Arc;
use std::time::Duration;

const RANKS: usize = 4;
const SAMPLES: usize = 8;

/// A model whose steps add small whole numbers, so that sums and quarters of them are exact in `f32`, whatever their order.
struct Counter {
    params: Vec<f32>,
    layout: Layout,
    rank: usize,
    steps: u64,
    /// The sum of what its steps added.
    taken: Vec<f32>,
}

impl Counter {
    fn new(rank: usize) -> Counter {
        let layers = [("a.weight", 7), ("a.bias", 2), ("b.weight", 5), ("c.weight", 600)];
        let layout = Layout::new(layers.map(|(name, len)| (name, vec![len])), [("c.mean", vec![3])]);
        let (params, taken) = (vec![1.0; layout.len], vec![0.0; layout.trainable]);
        Counter { params, layout, rank, steps: 0, taken }
    }

    fn step(&mut self) {
        self.steps += 1;
        for (index, (param, taken)) in self.params.iter_mut().zip(&mut self.taken).enumerate() {
            let amount = ((self.rank + 1) as u64 * self.steps + index as u64) % 13;
            *param += amount as f32;
            *taken += amount as f32;
        }
    }

    fn trained(&self) -> &[f32] {
        &self.params[..self.layout.trainable]
    }
}

impl Model for Counter {
    fn groups(&self) -> usize {
        1
    }

    fn trainable(&self, _group: usize) -> usize {
        self.layout.trainable
    }

    fn tensors(&self, _group: usize) -> &[TensorLayout] {
        &self.layout.tensors
    }

    fn parameters(&mut self, _group: usize) -> FlatSlice<'_> {
        FlatSlice::F32(&mut self.params)
    }

    fn gradient(&mut self, _group: usize) -> Option<FlatSlice<'_>> {
        None
    }

    fn apply_gradient(&mut self) -> esync::Result<()> {
        Ok(())
    }
}

/// Stops after so many exchanges, and keeps what it saw.
struct Watcher {
    exchanges: u64,
    trace: String,
    /// The model after every exchange.
    seen: Vec<Vec<f32>>,
    samples: u64,
}

impl Observer<Counter> for Watcher {
    fn decided(&mut self, action: &Action, reason: &Reason) {
        assert!(!reason.to_string().contains("internal error"), "{reason}");
        let letter = match action {
            Action::Step { .. } => 's'.to_string(),
            Action::Begin { fragment: Fragment::Part { index, .. }, .. } => format!("B{index}"),
            Action::Begin { .. } => "B".into(),
            Action::Finish { .. } => "F".into(),
            _ => String::new(),
        };
        self.trace.push_str(&letter);
    }

    fn exchanged(&mut self, report: &ExchangeReport, observed: Observed<'_, Counter>) -> Result<bool> {
        self.seen.push(observed.model.trained().to_vec());
        self.samples = observed.totals.global_samples;
        Ok(report.exchange >= self.exchanges)
    }
}

/// A job of a test.
#[derive(Clone)]
struct Test {
    mode: &'static str,
    policy: PolicyOptions,
    outer: Outer,
    rate: f64,
    wire: WireFormat,
    weighting: Weighting,
    exchanges: u64,
    /// Seconds of a step and of a message.
    seconds: (f64, f64),
}

impl Test {
    fn new(mode: &'static str) -> Test {
        Test {
            mode,
            policy: PolicyOptions { planning: Some(Planning::Ahead), ..PolicyOptions::default() },
            outer: Outer::Sgd,
            rate: 1.0,
            wire: WireFormat::F32,
            weighting: Weighting::Uniform,
            exchanges: 5,
            seconds: (0.0, 0.0),
        }
    }

    fn overlapped(mut self) -> Test {
        self.policy.overlap = true;
        self
    }

    fn local_steps(mut self, local_steps: u64) -> Test {
        self.policy.local_steps = Some(local_steps);
        self
    }

    /// Every rank's model, what it saw, and its seconds of waiting and exchanging.
    fn run(&self) -> Vec<(Counter, Watcher, f64)> {
        let results = threads::run(RANKS, |transport| {
            let rank = transport.rank();
            let delay = Duration::from_secs_f64(self.seconds.1);
            let transport: Arc<dyn Transport> = match delay.is_zero() {
                true => Arc::new(transport),
                false => Arc::new(Delayed::new(transport, vec![delay; RANKS])),
            };
            let options = CommunicatorOptions { wire: self.wire, ..CommunicatorOptions::default() };
            let communicator = Communicator::new(transport, options)?;
            // One rank is three times as slow as the others, on paper.
            let step_seconds: Arc<[f64]> = [0.1, 0.1, 0.1, 0.3].into();
            let job = Job {
                size: RANKS,
                step_seconds: step_seconds.clone(),
                shard_samples: [100; RANKS].into(),
                batch_size: SAMPLES,
                learning_rate: 0.1,
                budget_samples: Some(1000),
            };
            let fragments = self.policy.fragments.map(|count| Fragments { count, map: FragmentMap::Strided });
            let exchange = ExchangeOptions {
                weighting: self.weighting,
                outer: self.outer,
                global_learning_rate: self.rate,
                shard_samples: vec![100; RANKS],
                fragments,
                error_feedback: self.wire == WireFormat::Int8,
            };
            let policy = Mode::by_name(self.mode)?.worker(&self.policy, &job, rank)?;
            let mut model = Counter::new(rank);
            let mut worker = Worker::new(policy, communicator, None, exchange, &mut model)?;
            let mut watcher =
                Watcher { exchanges: self.exchanges, trace: String::new(), seen: Vec::new(), samples: 0 };
            let mut next = worker.begin(step_seconds.clone(), &mut model, &mut watcher)?;
            while let Next::Step { update } = next {
                model.step();
                std::thread::sleep(Duration::from_secs_f64(self.seconds.0));
                let step = Step { seconds: step_seconds[rank], samples: SAMPLES, loss: 1.0 };
                next = worker.stepped(step, update, &mut model, &mut watcher)?;
            }
            let clock = worker.clock().clone();
            Ok((model, watcher, clock.seconds(Activity::Wait) + clock.seconds(Activity::Exchange)))
        });
        results.into_iter().collect::<Result<Vec<_>>>().unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Where the mean of all that the ranks' steps added leads.
fn expected(ranks: &[(Counter, Watcher, f64)]) -> Vec<f32> {
    let sum = |index| ranks.iter().map(|(model, ..)| model.taken[index]).sum::<f32>();
    (0..ranks[0].0.layout.trainable).map(|index| 1.0 + sum(index) / RANKS as f32).collect()
}

#[test]
fn everything_taken_is_applied_once_with_and_without_overlap() {
    for mode in ["local-sgd", "post-local-sgd", "adacomm", "diloco", "esync"] {
        for overlaps in [false, true] {
            let mut test = Test::new(mode);
            if mode != "esync" {
                test = test.local_steps(3);
            }
            if overlaps {
                test = test.overlapped();
            }
            let ranks = test.run();
            let expected = expected(&ranks);
            for (model, watcher, _) in &ranks {
                assert_eq!(model.trained(), expected, "{mode}, overlap {overlaps}");
                assert_eq!(watcher.seen, ranks[0].1.seen, "all look at the same parameters");
                assert_eq!(watcher.samples, ranks.iter().map(|rank| rank.0.steps).sum::<u64>() * 8);
            }
        }
    }
}

#[test]
fn steps_go_on_while_an_exchange_runs() {
    let trace = |test: Test| test.run().swap_remove(0).1.trace;
    assert_eq!(trace(Test::new("local-sgd").local_steps(2)), "ssBFssBFssBFssBFssBF");
    assert_eq!(trace(Test::new("local-sgd").local_steps(2).overlapped()), "ssBFssBssFBssFBssFBssFBF");
    let mut streaming = Test::new("streaming-diloco").local_steps(6);
    streaming.policy.fragments = Some(3);
    assert_eq!(trace(streaming), "ssB1sFsB2sFsB0sFsB1sFsB2sFB0FB1FB2F");
}

#[test]
fn a_hidden_exchange_costs_the_training_thread_nothing() {
    // Messages of 15 ms beside rounds of 4 steps of 20 ms.
    let test = Test { seconds: (0.02, 0.0075), ..Test::new("local-sgd").local_steps(4) };
    let waited = |test: &Test| test.run().iter().map(|rank| rank.2).fold(f64::MAX, f64::min);
    let (visible, hidden) = (waited(&test), waited(&test.clone().overlapped()));
    assert!(visible > 0.1, "{visible} s: five exchanges of at least two messages");
    // The first and the last are not hidden.
    assert!(hidden < 0.7 * visible, "{hidden} s hidden, {visible} s visible");
}

#[test]
fn a_fragment_is_exchanged_in_its_turn_and_all_ranks_end_alike() {
    for overlap_steps in [0, 1] {
        let mut test = Test::new("streaming-diloco").local_steps(4);
        (test.policy.fragments, test.policy.overlap_steps) = (Some(2), Some(overlap_steps));
        test.policy.mix = Some(0.0);
        let ranks = test.run();
        for (model, watcher, _) in &ranks {
            assert_eq!(model.trained(), ranks[0].0.trained());
            assert_eq!(watcher.seen, ranks[0].1.seen);
        }
        // The first exchange moves layer b, number 1, and nothing else.
        let first = &ranks[0].1.seen[0];
        assert!(first[9..14].iter().all(|&param| param != 1.0), "{first:?}");
        assert!(first[..9].iter().chain(&first[14..]).all(|&param| param == 1.0), "{first:?}");
    }
}

#[test]
fn without_overlap_and_mixing_streaming_loses_nothing() {
    let mut test = Test::new("streaming-diloco").local_steps(4);
    test.policy =
        PolicyOptions { fragments: Some(2), overlap_steps: Some(0), mix: Some(0.0), ..test.policy.clone() };
    let ranks = test.run();
    assert_eq!(ranks[2].0.trained(), expected(&ranks));
}

#[test]
fn diloco_with_an_outer_rate_of_1_is_local_sgd() {
    let parameters = |test: Test| test.run().into_iter().map(|rank| rank.1.seen).collect::<Vec<_>>();
    let local_sgd = parameters(Test::new("local-sgd").local_steps(3));
    assert_eq!(parameters(Test::new("diloco").local_steps(3)), local_sgd);
    let nesterov = Test { outer: Outer::Nesterov, rate: 0.7, ..Test::new("diloco").local_steps(3) };
    assert_ne!(parameters(nesterov), local_sgd);
}

#[test]
fn overlap_composes_with_every_option_of_the_exchange() {
    for weighting in Weighting::ALL {
        for wire in WireFormat::ALL {
            let test = Test {
                outer: Outer::Nesterov,
                rate: 0.7,
                wire,
                weighting,
                exchanges: 6,
                ..Test::new("esync").overlapped()
            };
            let ranks = test.run();
            for (model, watcher, _) in &ranks {
                assert_eq!(model.trained(), ranks[0].0.trained(), "{weighting}, {wire}");
                assert_eq!(watcher.seen, ranks[0].1.seen, "{weighting}, {wire}");
                assert!(model.trained().iter().all(|param| param.is_finite()));
            }
        }
    }
}

#[test]
fn what_does_not_fit_the_model_is_refused() {
    let mut test = Test::new("streaming-diloco").local_steps(8);
    test.policy.fragments = Some(4);
    let results = threads::run(1, |transport| {
        let communicator = Communicator::new(Arc::new(transport), CommunicatorOptions::default())?;
        let exchange = ExchangeOptions {
            weighting: Weighting::Uniform,
            outer: Outer::Sgd,
            global_learning_rate: 1.0,
            shard_samples: vec![1],
            fragments: Some(Fragments { count: 4, map: FragmentMap::Strided }),
            error_feedback: false,
        };
        esync::runtime::Exchange::new(&mut Counter::new(0), &communicator, &exchange).map(drop)
    });
    let Some(Err(error @ Error::Usage(_))) = results.into_iter().next() else { panic!("not refused") };
    assert!(error.to_string().contains("layers for 3"), "{error}");
}
