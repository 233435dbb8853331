//! Learners: the surrogate, weights as files, and (with libtorch) networks and adopted variable stores.

use esync::Error;
use esync::learner::{
    Evaluation, Layout, Learner, Quadratic, QuadraticOptions, SgdOptions,
    weights::{self, WeightsInfo},
};
use esync::policy::Update;
use std::fs;

fn quadratic(rank: usize, noise: f64, momentum: f64) -> Quadratic {
    let sgd = SgdOptions { learning_rate: 0.2, momentum, weight_decay: 0.0 };
    Quadratic::new(QuadraticOptions {
        dimension: 50,
        statistics: 3,
        seed: 1,
        rank,
        batch_size: 4,
        noise,
        sgd,
    })
    .unwrap()
}

fn evaluate(learner: &mut impl Learner, parts: usize) -> Evaluation {
    let mut total = Evaluation::default();
    (0..parts).for_each(|part| total += learner.evaluate(part, parts).unwrap());
    total
}

fn train(learner: &mut impl Learner, steps: usize) {
    for _ in 0..steps {
        learner.step(Update::Local).unwrap();
    }
}

/// What every learner must do, whatever it computes.
fn assert_contract<L: Learner>(make: impl Fn(usize) -> L) {
    let mut one = make(0);
    let layout = one.layout().clone();
    assert_eq!((one.parameters().len(), one.gradient().len()), (layout.len, layout.trainable));
    assert_eq!(layout.tensors.last().unwrap().range.end, layout.len);

    // All ranks start equal, and see different samples.
    let mut other_rank = make(1);
    assert_eq!(one.parameters(), other_rank.parameters());
    one.step(Update::Local).unwrap();
    other_rank.step(Update::Local).unwrap();
    assert_ne!(one.parameters(), other_rank.parameters());

    // The same calls give the same bits; a deferred gradient applied is a local update.
    let mut two = make(0);
    two.step(Update::Deferred).unwrap();
    assert_ne!(one.parameters()[..layout.trainable], two.parameters()[..layout.trainable]);
    two.apply_gradient().unwrap();
    for _ in 0..3 {
        assert_eq!(bits(one.parameters()), bits(two.parameters()));
        assert_eq!(bits(one.gradient()), bits(two.gradient()));
        let outcome = one.step(Update::Local).unwrap();
        assert_eq!(two.step(Update::Deferred).unwrap(), outcome);
        two.apply_gradient().unwrap();
    }

    // An evaluation changes nothing, and its parts are the whole.
    let before = one.save_state().unwrap();
    let whole = evaluate(&mut one, 1);
    let in_parts = evaluate(&mut one, 3);
    assert_eq!(one.save_state().unwrap(), before);
    assert_eq!((whole.samples, whole.correct), (in_parts.samples, in_parts.correct));
    assert!((whole.loss() - in_parts.loss()).abs() < 1e-6 * whole.loss().abs().max(1.0));
    assert!(one.evaluate(3, 3).is_err());

    // A state put back, here or elsewhere, goes on in the same way, momentum and samples included.
    let state = one.save_state().unwrap();
    let run = |learner: &mut L| {
        let losses: Vec<u64> = (0..60).map(|_| learner.step(Update::Local).unwrap().loss.to_bits()).collect();
        (losses, bits(learner.parameters()))
    };
    let expected = run(&mut one);
    one.load_state(&state).unwrap();
    assert_eq!(run(&mut one), expected);
    let mut fresh = make(0);
    fresh.load_state(&serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap()).unwrap();
    assert_eq!(run(&mut fresh), expected);

    // Another model's state is refused, and changes nothing.
    let mut foreign = state.clone();
    foreign.parameters.pop();
    let before = fresh.save_state().unwrap();
    assert!(matches!(fresh.load_state(&foreign), Err(Error::Training(_))));
    assert_eq!(fresh.save_state().unwrap(), before);
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn the_quadratic_keeps_the_contract() {
    assert_contract(|rank| quadratic(rank, 0.1, 0.9));
}

#[test]
fn the_quadratic_reaches_its_minimum() {
    let mut exact = quadratic(0, 0.0, 0.9);
    let start = exact.loss();
    train(&mut exact, 400);
    assert!(exact.loss() < 1e-9 * start, "{start} to {}", exact.loss());
    let evaluation = evaluate(&mut exact, 4);
    assert!((evaluation.loss() - exact.loss()).abs() < 1e-12);
    assert_eq!((evaluation.samples, evaluation.correct), (50, 0));
    // The averages have followed the parameters.
    let parameters = exact.parameters().to_vec();
    for (average, value) in parameters[50..].iter().zip(&parameters) {
        assert!((average - value).abs() < 1e-4);
    }
    // With noise it stays at a distance that grows with the noise.
    let settle = |noise| {
        let mut noisy = quadratic(0, noise, 0.0);
        train(&mut noisy, 400);
        noisy.loss()
    };
    assert!(settle(0.1) > 1e-4 && settle(1.0) > 10.0 * settle(0.1));
}

#[test]
fn an_impossible_quadratic_is_refused() {
    let sgd = SgdOptions { learning_rate: 0.1, momentum: 0.0, weight_decay: 0.0 };
    let options =
        QuadraticOptions { dimension: 0, statistics: 0, seed: 1, rank: 0, batch_size: 1, noise: 0.0, sgd };
    assert_eq!(Quadratic::new(options).unwrap_err().exit_code(), 2);
}

// --- weights as files ---

fn small_layout() -> Layout {
    Layout::new([("fc.weight", vec![2, 3]), ("scale", vec![])], [("bn.running_mean", vec![2])])
}

fn info() -> WeightsInfo {
    WeightsInfo { network: "mlp-bn".into(), dataset: "digits".into() }
}

#[test]
fn weights_come_back_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let values: Vec<f32> =
        vec![1.0, -0.0, f32::MIN_POSITIVE, f32::MAX, 5.5, 6.0, 7.0, f32::INFINITY, f32::NAN];
    weights::save(&path, &small_layout(), &[0.0; 9], &info()).unwrap();
    weights::save(&path, &small_layout(), &values, &info()).unwrap();
    let mut read = vec![0.0; 9];
    assert_eq!(weights::load(&path, &small_layout(), &mut read).unwrap(), info());
    assert_eq!(bits(&read), bits(&values));
    // The same parameters make the same file.
    let bytes = fs::read(&path).unwrap();
    for _ in 0..20 {
        weights::save(&path, &small_layout(), &values, &info()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    // Nothing else is left beside it, and it is as readable as other files.
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    let other = directory.path().join("other");
    fs::write(&other, "").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions(), fs::metadata(&other).unwrap().permissions());
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    weights::save(&path, &small_layout(), &[1.0; 9], &info()).unwrap();
    let refused = |path: &std::path::Path, layout: &Layout, what: &str| {
        let mut untouched = vec![7.0; layout.len];
        let error = weights::load(path, layout, &mut untouched).unwrap_err();
        assert!(error.to_string().contains(what), "{error}: expected {what}");
        assert!(untouched.iter().all(|&value| value == 7.0));
        assert_eq!(error.exit_code(), 4, "{error}");
    };
    let none: [(&str, Vec<usize>); 0] = [];
    refused(&path, &Layout::new([("fc.weight", vec![2, 3])], none.clone()), "a tensor `bn.running_mean`");
    refused(
        &path,
        &Layout::new(
            [("fc.weight", vec![2, 3]), ("scale", vec![]), ("bn.running_mean", vec![2]), ("x", vec![1])],
            none,
        ),
        "no tensor `x`",
    );
    refused(
        &path,
        &Layout::new([("fc.weight", vec![3, 2]), ("scale", vec![])], [("bn.running_mean", vec![2])]),
        "shape [2, 3] instead of [3, 2]",
    );
    refused(&directory.path().join("none"), &small_layout(), "cannot be read");

    let whole = fs::read(&path).unwrap();
    for len in [0, 4, 20, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        refused(&path, &small_layout(), "truncated");
    }
    fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    refused(&path, &small_layout(), "truncated or no safetensors");
    fs::write(&path, b"PK\x03\x04 something else entirely").unwrap();
    refused(&path, &small_layout(), "no safetensors");

    // Another program's file, and a later version's.
    let data = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).unwrap();
    safetensors::serialize_to_file([("x", &data)], None, &path).unwrap();
    refused(&path, &small_layout(), "no format_version");
    let later = [("format_version".to_owned(), "2".to_owned())].into();
    safetensors::serialize_to_file([("x", &data)], Some(later), &path).unwrap();
    refused(&path, &small_layout(), "version 2");
}

#[test]
fn weights_that_cannot_be_written_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none/model.safetensors");
    let error = weights::save(&path, &small_layout(), &[1.0; 9], &info()).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error}");
    assert!(matches!(weights::save(&path, &small_layout(), &[1.0; 8], &info()), Err(Error::Internal(_))));
}

#[cfg(feature = "torch")]
#[path = "learner/torch.rs"]
mod torch;

#[cfg(feature = "torch")]
#[path = "learner/adopt.rs"]
mod adopt;
