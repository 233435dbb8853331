//! The `Synchronizer` around loops that this library did not write.

#![cfg(feature = "torch")]

use esync::collective::{Communicator, CommunicatorOptions};
use esync::policy::Weighting;
use esync::transport::threads;
use esync::{Error, Mode, Result, Synchronized, Synchronizer, SynchronizerOptions};
use std::sync::Arc;
use tch::nn::{self, OptimizerConfig};
use tch::{Device, Kind, Tensor};

const RANKS: usize = 3;
const STEPS: u64 = 12;

/// A store with an `f32` and an `f64` variable, different on every rank.
fn mixed(rank: usize) -> (nn::VarStore, Tensor, Tensor) {
    let store = nn::VarStore::new(Device::Cpu);
    let single = store.root().var("single", &[7], nn::Init::Const(rank as f64));
    let double = store.root().var("double", &[5], nn::Init::Const(rank as f64)).to_kind(Kind::Double);
    // tch makes all variables of one kind; others come into a store like this.
    let double = double.detach().set_requires_grad(true);
    {
        let mut variables = store.variables_.lock().expect("nobody else is here");
        variables.named_variables.insert("double".into(), double.shallow_clone());
        variables.trainable_variables[1].tensor = double.shallow_clone();
    }
    (store, single, double)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.detach().to_kind(Kind::Double).try_into().expect("a vector")
}

/// Every rank pulls both variables towards its own number; returns the values at the end.
fn train(
    options: SynchronizerOptions,
    optimizer: impl Fn(&nn::VarStore) -> nn::Optimizer + Sync,
) -> Vec<Result<(Vec<f64>, Vec<f64>)>> {
    threads::run(RANKS, |transport| {
        let communicator = Communicator::new(Arc::new(transport), CommunicatorOptions::default())?;
        let rank = communicator.rank();
        let (mut store, single, double) = mixed(rank);
        let mut optimizer = optimizer(&store);
        let options = SynchronizerOptions { max_samples: Some(STEPS * RANKS as u64), ..options.clone() };
        let mut synchronizer = Synchronizer::new(&mut store, communicator, options)?;
        loop {
            let goal = rank as f64;
            let distance =
                (&single - goal).square().sum(Kind::Double) + (&double - goal).square().sum(Kind::Double);
            optimizer.backward_step(&distance);
            if synchronizer.step_done(1, distance.double_value(&[]))? == Synchronized::Stop {
                assert!(matches!(synchronizer.step_done(1, 0.0), Err(Error::Usage(_))), "after the end");
                return Ok((values(&single), values(&double)));
            }
        }
    })
}

fn sgd(store: &nn::VarStore) -> nn::Optimizer {
    nn::Sgd::default().build(store, 0.1).expect("SGD")
}

fn adam(store: &nn::VarStore) -> nn::Optimizer {
    nn::Adam::default().build(store, 0.1).expect("Adam")
}

#[test]
fn averaging_deltas_of_plain_sgd_is_sgd_on_the_mean() {
    let options = SynchronizerOptions { mode: Mode::Sync, ..SynchronizerOptions::default() };
    // All begin with rank 0's zeros; the mean gradient pulls towards the mean goal, 1: w ← w − 0.2 (w − 1).
    let expected = 1.0 - 0.8f64.powi(STEPS as i32);
    for result in train(options, sgd) {
        let (single, double) = result.unwrap();
        assert!(single.iter().all(|value| (value - expected).abs() < 1e-5), "{single:?} {expected}");
        assert!(double.iter().all(|value| (value - expected).abs() < 1e-12), "{double:?} {expected}");
    }
}

#[test]
fn ranks_end_identical_in_every_mode_with_every_weighting_and_optimiser() {
    for mode in [Mode::Sync, Mode::Esync(Default::default())] {
        for weighting in Weighting::ALL {
            for (name, optimizer) in [("sgd", sgd as fn(&nn::VarStore) -> nn::Optimizer), ("adam", adam)] {
                let shard_samples = 10;
                let options = SynchronizerOptions {
                    mode: mode.clone(),
                    weighting,
                    shard_samples,
                    ..SynchronizerOptions::default()
                };
                let results: Vec<_> = train(options, optimizer).into_iter().map(Result::unwrap).collect();
                assert!(
                    results.iter().all(|result| *result == results[0]),
                    "{mode:?} {weighting}: {results:?}"
                );
                // Both types took part.
                let moved = |values: &[f64]| values.iter().all(|value| value.is_finite() && *value > 0.05);
                let (single, double) = &results[0];
                assert!(moved(single) && moved(double), "{mode:?} {weighting}: {results:?}");
                // A convex mean of plain descents stays between the goals; Adam overshoots, and `steps` scales up what a
                // worker with few steps did.
                if name == "sgd" && weighting != Weighting::Steps {
                    assert!(
                        single.iter().chain(double).all(|value| *value < 2.0),
                        "{weighting}: {results:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_loss_that_is_no_number_ends_it_and_names_the_rank() {
    let results = threads::run(2, |transport| {
        let communicator = Communicator::new(Arc::new(transport), CommunicatorOptions::default())?;
        let rank = communicator.rank();
        let (mut store, ..) = mixed(rank);
        let options = SynchronizerOptions { mode: Mode::Sync, ..SynchronizerOptions::default() };
        let mut synchronizer = Synchronizer::new(&mut store, communicator, options)?;
        let loss = if rank == 1 { f64::NAN } else { 1.0 };
        synchronizer.step_done(1, loss).map(drop)
    });
    let Err(Error::Diverged { rank: 1, .. }) = &results[1] else { panic!("{results:?}") };
    // Rank 0 learns it as the figures of rank 1, or as the loss of rank 1 itself.
    assert!(
        matches!(&results[0], Err(Error::Diverged { rank: 1, .. } | Error::PeerLost { .. })),
        "{results:?}"
    );
}
