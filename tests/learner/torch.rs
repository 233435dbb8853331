//! The built-in networks.

use super::{assert_contract, bits, evaluate, train};
use esync::Error;
use esync::data::{self, Dataset, Split};
use esync::learner::{Learner, NETWORK_NAMES, SgdOptions, TorchLearner, TorchOptions, models, set_threads};
use esync::policy::Update;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Instant;
use tch::nn::{self, ModuleT, OptimizerConfig};
use tch::{Device, Kind, Tensor};

static DIGITS: LazyLock<Arc<Dataset>> = LazyLock::new(|| Arc::new(data::load("digits", None).unwrap()));

fn options(rank: usize) -> TorchOptions {
    TorchOptions { batch_size: 32, learning_rate: 0.05, momentum: 0.9, weight_decay: 0.0, seed: 1, rank }
}

/// Those that can be tried on digits.
fn of_images() -> impl Iterator<Item = &'static str> {
    NETWORK_NAMES.into_iter().filter(|name| !name.starts_with("char-"))
}

/// Sentences of words in no order.
fn text() -> Arc<Dataset> {
    let words = ["the ", "cat ", "sat ", "on ", "a ", "mat. ", "dog ", "ran "];
    let text: String = (0..1500_usize).map(|i| words[i * i % 61 % words.len()]).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Arc::new(data::load("tinyshakespeare", Some(file.path())).unwrap())
}

fn whole(dataset: &Dataset) -> Vec<u32> {
    (0..dataset.train.len() as u32).collect()
}

fn learner(network: &str, options: TorchOptions) -> TorchLearner {
    set_threads(1);
    TorchLearner::new(network, DIGITS.clone(), whole(&DIGITS), options).unwrap()
}

#[test]
fn networks_keep_the_contract() {
    for network in of_images() {
        assert_contract(|rank| learner(network, options(rank)));
    }
}

/// Test accuracy after `steps` steps, and the mean milliseconds of one.
fn accuracy_after(learner: &mut TorchLearner, steps: usize) -> (f64, f64) {
    let start = Instant::now();
    train(learner, steps);
    let milliseconds = start.elapsed().as_secs_f64() * 1e3 / steps as f64;
    (evaluate(learner, 2).accuracy(), milliseconds)
}

#[test]
fn networks_learn_digits_in_400_steps() {
    for (network, expected) in
        [("logistic", 0.94), ("mlp", 0.95), ("mlp-bn", 0.95), ("lenet", 0.92), ("lenet-bn", 0.92)]
    {
        let (accuracy, milliseconds) = accuracy_after(&mut learner(network, options(0)), 400);
        println!("{network} on digits: accuracy {accuracy:.4} after 400 steps of {milliseconds:.3} ms");
        assert!(accuracy >= expected, "{network}: {accuracy}");
    }
}

#[test]
fn char_mlp_keeps_the_contract_and_learns_a_text() {
    let text = text();
    let new = |rank| {
        set_threads(1);
        TorchLearner::new("char-mlp", text.clone(), whole(&text), options(rank)).unwrap()
    };
    assert_contract(new);
    let mut learner = new(0);
    let before = evaluate(&mut learner, 1);
    let (accuracy, milliseconds) = accuracy_after(&mut learner, 400);
    println!("char-mlp: accuracy {accuracy:.4} after 400 steps of {milliseconds:.3} ms");
    // Three letters of most words follow from the first.
    assert!(before.accuracy() < 0.4 && accuracy > 0.7, "{} {accuracy}", before.accuracy());
    // Overlapping samples are measured as copies of them are.
    let copies = Dataset { test: text.test.draw(16, text.test.len(), 1), ..(*text).clone() };
    let mut other = TorchLearner::new("char-mlp", copies.into(), whole(&text), options(0)).unwrap();
    other.parameters().copy_from_slice(learner.parameters());
    let (a, b) = (evaluate(&mut learner, 1), evaluate(&mut other, 1));
    assert_eq!((a.correct, a.samples), (b.correct, b.samples));
    assert!((a.loss_sum - b.loss_sum).abs() < 1e-5 * a.loss_sum, "{} {}", a.loss_sum, b.loss_sum);
}

#[test]
fn networks_refuse_data_of_the_other_kind() {
    let text = text();
    for (network, dataset, says) in
        [("mlp", &text, "use --network char-mlp"), ("char-mlp", &DIGITS, "is images")]
    {
        let Err(error) = TorchLearner::new(network, dataset.clone(), whole(dataset), options(0)) else {
            panic!("{network} accepted");
        };
        assert!(error.exit_code() == 2 && error.to_string().contains(says), "{error}");
    }
}

#[test]
fn lenet_learns_mnist() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data/mnist10k");
    if !directory.is_dir() {
        println!("skipped: there is no {}", directory.display());
        return;
    }
    set_threads(1);
    let mnist = Arc::new(data::load("mnist", Some(&directory)).unwrap());
    // On 28×28 images a single worker with momentum 0.9 wants less than the 0.05 of the digits.
    let options = TorchOptions { learning_rate: 0.02, ..options(0) };
    let mut learner = TorchLearner::new("lenet", mnist.clone(), whole(&mnist), options).unwrap();
    let (accuracy, milliseconds) = accuracy_after(&mut learner, 250);
    println!("lenet on mnist: accuracy {accuracy:.4} after 250 steps of {milliseconds:.3} ms");
    assert!(accuracy >= 0.9, "{accuracy}");
}

#[test]
fn statistics_follow_the_trained_parameters() {
    let learner = learner("lenet-bn", options(0));
    let layout = learner.layout();
    let is_statistic = |name: &str| name.contains("running_");
    for tensor in &layout.tensors {
        assert_eq!(is_statistic(&tensor.name), tensor.range.start >= layout.trainable, "{}", tensor.name);
    }
    assert_eq!(layout.len - layout.trainable, 2 * (6 + 16));
    let names: Vec<&str> = layout.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names[..4], ["bn1.bias", "bn1.weight", "bn2.bias", "bn2.weight"]);
}

#[test]
fn parameters_start_within_their_bounds_and_without_libtorchs_generator() {
    tch::manual_seed(1);
    let first = learner("lenet", options(0)).parameters().to_vec();
    tch::manual_seed(2);
    let mut second = learner("lenet", options(1));
    assert_eq!(bits(&first), bits(second.parameters()));
    let other_seed = learner("lenet", TorchOptions { seed: 2, ..options(0) }).parameters().to_vec();
    assert_ne!(first, other_seed);
    let layout = second.layout();
    for tensor in &layout.tensors {
        let weight = tensor.name.replace("bias", "weight");
        let weight = layout.tensors.iter().find(|tensor| tensor.name == weight).unwrap();
        let bound = 1.0 / (weight.shape[1..].iter().product::<usize>() as f32).sqrt();
        let values = &first[tensor.range.clone()];
        let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        assert!(largest <= bound && largest > 0.5 * bound, "{}: {largest} of {bound}", tensor.name);
    }
}

#[test]
fn eight_ranks_as_threads_compute_what_they_compute_alone() {
    for network in ["mlp-bn", "lenet"] {
        let shards = data::partition(&DIGITS.train.labels, Split::Iid, 8, 1).unwrap();
        let run = |rank: usize| {
            set_threads(1);
            let mut learner =
                TorchLearner::new(network, DIGITS.clone(), shards[rank].clone(), options(rank)).unwrap();
            train(&mut learner, 30);
            let evaluation = learner.evaluate(rank, 8).unwrap();
            (bits(learner.parameters()), evaluation.loss_sum.to_bits(), evaluation.correct)
        };
        let together: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|rank| scope.spawn(move || run(rank))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (rank, result) in together.iter().enumerate() {
            assert_eq!(&run(rank), result, "{network}, rank {rank}");
        }
    }
}

/// The same network and mini-batches, with libtorch's own gradients, and an optimiser if one is wanted.
struct Reference {
    variables: nn::VarStore,
    network: nn::SequentialT,
    batches: data::Batches,
}

impl Reference {
    fn new(network: &str) -> Self {
        let variables = nn::VarStore::new(Device::Cpu);
        let network = models::network(network, &variables.root(), &DIGITS, 1).unwrap();
        let batches = data::Batches::new(whole(&DIGITS), 32, 1, 0).unwrap();
        Reference { variables, network, batches }
    }

    fn loss(&mut self) -> Tensor {
        let batch = self.batches.next_batch();
        let images: Vec<f32> =
            batch.iter().flat_map(|&i| DIGITS.train.pixels[i as usize * 64..][..64].to_vec()).collect();
        let labels: Vec<i64> = batch.iter().map(|&i| DIGITS.train.labels[i as usize]).collect();
        let images = Tensor::from_slice(&images).view([32, 1, 8, 8]);
        self.network.forward_t(&images, true).cross_entropy_for_logits(&Tensor::from_slice(&labels))
    }

    fn named(&self, name: &str) -> Tensor {
        self.variables.variables()[name].shallow_clone()
    }
}

fn largest_difference(flat: &[f32], tensor: &Tensor) -> f64 {
    (Tensor::from_slice(flat) - tensor.detach().reshape([-1])).abs().max().double_value(&[])
}

#[test]
fn gradients_are_autograds() {
    for network in of_images() {
        let mut reference = Reference::new(network);
        let mut learner = learner(network, options(0));
        let layout = learner.layout().clone();
        for _ in 0..2 {
            let loss = reference.loss();
            loss.backward();
            let outcome = learner.step(Update::Deferred).unwrap();
            assert!((outcome.loss - loss.double_value(&[])).abs() < 1e-6);
            for tensor in layout.tensors.iter().filter(|tensor| tensor.range.start < layout.trainable) {
                let mut expected = reference.named(&tensor.name);
                let difference =
                    largest_difference(&learner.gradient()[tensor.range.clone()], &expected.grad());
                assert!(difference <= 1e-6, "{network}, {}: {difference}", tensor.name);
                expected.zero_grad();
            }
        }
    }
}

#[test]
fn our_sgd_is_libtorchs() {
    for (momentum, weight_decay) in [(0.0, 0.0), (0.9, 0.0), (0.0, 0.01), (0.9, 0.01)] {
        let variables = nn::VarStore::new(Device::Cpu);
        let mut w = variables.root().var("w", &[1000], nn::Init::Const(0.5));
        let sgd = nn::Sgd { momentum, dampening: 0.0, wd: weight_decay, nesterov: false };
        let mut expected = sgd.build(&variables, 0.05).unwrap();
        let mut ours = vec![0.5f32; 1000];
        let options = SgdOptions { learning_rate: 0.05, momentum, weight_decay };
        let mut sgd = esync::learner::Sgd::new(options, 1000);
        for step in 0..20 {
            let gradient = (Tensor::arange(1000, (Kind::Float, Device::Cpu)) * 0.37 + step).sin();
            expected.zero_grad();
            (&w * &gradient).sum(Kind::Float).backward();
            expected.step();
            sgd.step(&mut ours, &Vec::<f32>::try_from(&gradient).unwrap());
        }
        let difference = largest_difference(&ours, &w);
        assert!(difference < 1e-6, "momentum {momentum}, weight decay {weight_decay}: {difference}");
        w.zero_grad();
    }
}

#[test]
fn training_is_that_of_libtorchs_sgd() {
    let mut reference = Reference::new("mlp");
    let sgd = nn::Sgd { momentum: 0.9, dampening: 0.0, wd: 1e-3, nesterov: false };
    let mut optimizer = sgd.build(&reference.variables, 0.05).unwrap();
    let mut learner = learner("mlp", TorchOptions { weight_decay: 1e-3, ..options(0) });
    for _ in 0..20 {
        optimizer.backward_step(&reference.loss());
        learner.step(Update::Local).unwrap();
    }
    let layout = learner.layout().clone();
    for tensor in &layout.tensors {
        let values = &learner.parameters()[tensor.range.clone()];
        let difference = largest_difference(values, &reference.named(&tensor.name));
        assert!(difference < 1e-5, "{}: {difference}", tensor.name);
    }
}

#[test]
fn written_parameters_are_used() {
    let mut learner = learner("logistic", options(0));
    let before = evaluate(&mut learner, 1);
    learner.parameters().fill(0.0);
    let zero = evaluate(&mut learner, 1);
    assert!((zero.loss() - 10f64.ln()).abs() < 1e-6 && zero != before);
    // A loss that is no number is returned, for the runtime to judge.
    learner.parameters().fill(f32::NAN);
    assert!(learner.step(Update::Local).unwrap().loss.is_nan());
    assert!(learner.evaluate(0, 1).unwrap().loss().is_nan());
}

#[test]
fn learners_can_be_made_in_one_thread_and_used_in_another() {
    let mut learner: Box<dyn Learner + Send> = Box::new(learner("mlp", options(0)));
    let thread = std::thread::spawn(move || {
        set_threads(1);
        learner.step(Update::Local).unwrap().loss
    });
    assert!(thread.join().unwrap() > 0.0);
}

#[test]
fn impossible_learners_are_refused() {
    let refused = |network: &str, dataset: &Arc<Dataset>, shard: Vec<u32>, options| {
        TorchLearner::new(network, dataset.clone(), shard, options).unwrap_err()
    };
    let Error::Usage(text) = refused("resnet", &DIGITS, vec![0], options(0)) else { panic!("accepted") };
    assert!(text.contains("`logistic`, `mlp`, `mlp-bn`, `lenet`, `lenet-bn`"), "{text}");
    assert_eq!(refused("mlp", &DIGITS, vec![], options(0)).exit_code(), 2);
    assert_eq!(refused("mlp", &DIGITS, vec![0], TorchOptions { batch_size: 0, ..options(0) }).exit_code(), 2);
    assert_eq!(
        refused("mlp-bn", &DIGITS, vec![0], TorchOptions { batch_size: 1, ..options(0) }).exit_code(),
        2
    );
    assert!(matches!(refused("mlp", &DIGITS, vec![1437], options(0)), Error::Internal(_)));
    let mut tiny = Dataset::clone(&DIGITS);
    (tiny.height, tiny.width) = (3, 3);
    assert_eq!(refused("lenet", &Arc::new(tiny), vec![0], options(0)).exit_code(), 2);
}
