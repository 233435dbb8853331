//! What is taken is applied: over random clusters, with delays and deaths, the parameters end where exactly the deltas that count
//! lead, each once. The learner's steps add whole numbers, so that nothing is hidden in rounding.

#[path = "common/counter.rs"]
mod counter;
#[path = "common/scenes.rs"]
mod scenes;
#[path = "common/simulated.rs"]
mod simulated;

use counter::{Counter, ELEMENTS, amount};
use esync::learner::Learner;
use esync::policy::{Directive, Mode, Outer, PolicyOptions, PushRule, PushScale};
use esync::sim::{Record, SimOptions, Simulation, Watch};
use proptest::prelude::*;
use scenes::{Scene, scenes};
use simulated::options;

/// Which pushes the server has added, and which of them wait to be published.
#[derive(Default)]
struct Ledger {
    /// Whose push, and how much it counts.
    added: Vec<(usize, f64)>,
    buffered: Vec<(usize, f64)>,
}

impl Watch for Ledger {
    fn served(&mut self, _seconds: f64, directive: &Directive, _version: u64) -> esync::Result<()> {
        match *directive {
            Directive::Apply { from, rule: PushRule::Add { scale }, .. } => self.added.push((from, scale)),
            Directive::Apply { from, rule: PushRule::Buffer { scale }, .. } => {
                self.buffered.push((from, scale));
            }
            Directive::Apply { ref rule, .. } => panic!("{rule:?} does not add"),
            Directive::Publish { .. } => self.added.append(&mut self.buffered),
            Directive::Reply { .. } | Directive::Evaluate => {}
        }
        Ok(())
    }
}

fn run(scene: &Scene, mode: &str, options: SimOptions) -> (Record, Ledger) {
    let learner = |rank| Ok(Box::new(Counter::new(rank)) as Box<dyn Learner>);
    let cluster = scene.cluster(Mode::by_name(mode).unwrap());
    let mut ledger = Ledger::default();
    let record = Simulation::new(cluster, options, learner).unwrap().run(&mut ledger);
    (record.unwrap_or_else(|error| panic!("{mode}: {error}")), ledger)
}

/// The sum of what `steps` steps of a rank, from the one after number `after` on, add to each element.
fn taken(rank: usize, after: u64, steps: u64) -> [f64; ELEMENTS] {
    let sum = |index| (after + 1..=after + steps).map(|step| amount(rank, step, index)).sum::<u64>() as f64;
    std::array::from_fn(sum)
}

/// Where the pushes of the ledger lead. A rank's pushes are applied in the order in which it took them.
fn led_to(record: &Record, ledger: &Ledger) -> Vec<f64> {
    let mut sum = vec![0.0; ELEMENTS];
    let mut next = vec![(0, 0_u64); record.workers.len()];
    for &(from, scale) in &ledger.added {
        let (push, after) = &mut next[from];
        let steps = u64::from(record.workers[from].steps_per_round[*push]);
        for (sum, taken) in sum.iter_mut().zip(taken(from, *after, steps)) {
            *sum += scale * taken;
        }
        (*push, *after) = (*push + 1, *after + steps);
    }
    sum
}

/// `f32` has these numbers exactly if the factors are powers of two.
fn check(
    mode: &str,
    record: &Record,
    expected: &[f64],
    mut factors: impl Iterator<Item = f64>,
) -> Result<(), TestCaseError> {
    let is_exact = factors.all(|factor| factor.log2().fract() == 0.0);
    for (&is, &should) in record.parameters.iter().zip(expected) {
        let tolerance = if is_exact { 0.0 } else { 1e-5 * should.abs() };
        prop_assert!((f64::from(is) - should).abs() <= tolerance, "{}: {} is not {}", mode, is, should);
    }
    prop_assert!(expected[0] > 0.0, "{}: nothing was applied", mode);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_server_adds_every_push_once(
        scene in scenes(1..6, 0.1..3.0),
        mode in prop::sample::select(vec!["async", "ssp", "bounded-delay", "r2sp", "adsp", "wbsp", "wbsp-overlap"]),
    ) {
        let scales = ["async", "ssp", "bounded-delay", "r2sp"].contains(&mode);
        let push_scale = scales.then_some(PushScale::Sum);
        let policy = PolicyOptions { push_scale, ..PolicyOptions::default() };
        let (record, ledger) = run(&scene, mode, SimOptions { policy, ..options(mode, 80) });
        let factors = ledger.added.iter().map(|&(_, scale)| scale);
        check(mode, &record, &led_to(&record, &ledger), factors)?;
        // All that was pushed is in the ledger, but for what was on its way at the end.
        let pushes: u64 = record.workers.iter().map(|worker| worker.pushes).sum();
        let noted = (ledger.added.len() + ledger.buffered.len()) as u64;
        prop_assert!((0..=record.workers.len() as u64).contains(&(pushes - noted)), "{}", mode);
    }

    #[test]
    fn exchanges_add_every_step_once(
        scene in scenes(1..6, 0.1..3.0),
        mode in prop::sample::select(
            vec!["esync", "local-sgd", "post-local-sgd", "adacomm", "diloco", "streaming-diloco"]
        ),
        overlap in any::<bool>(),
    ) {
        let is_streaming = mode == "streaming-diloco";
        let policy = PolicyOptions {
            overlap: overlap && !is_streaming,
            // Without overlap and mixing, streaming is another order of the same sums.
            overlap_steps: is_streaming.then_some(0),
            mix: is_streaming.then_some(0.0),
            ..PolicyOptions::default()
        };
        let scene = scene.without_death();
        let plain = SimOptions { policy, outer: Outer::Sgd, global_learning_rate: 1.0, ..options(mode, 12) };
        let (record, _) = run(&scene, mode, plain);
        let size = record.workers.len();
        let mut expected = vec![0.0; ELEMENTS];
        for (rank, worker) in record.workers.iter().enumerate() {
            for (expected, taken) in expected.iter_mut().zip(taken(rank, 0, worker.local_steps)) {
                *expected += taken / size as f64;
            }
        }
        check(mode, &record, &expected, std::iter::once(1.0 / size as f64))?;
    }
}
