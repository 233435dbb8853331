//! The built-in networks.
//!
//! | name | layers |
//! |---|---|
//! | `logistic` | one linear layer |
//! | `mlp` | 128 hidden units, ReLU |
//! | `mlp-bn` | the same, normalised before the ReLU |
//! | `lenet` | 6 and 16 convolutions of 5×5 (padding 2), each with ReLU and 2×2 max-pooling; 120 and 84 units |
//! | `lenet-bn` | the same, with the convolutions normalised before the ReLU |
//! | `char-mlp` | for a text: 16 numbers for each character, those of the whole context into 128 hidden units, ReLU |
//!
//! Weights and biases start uniform in ±1/√(inputs), as PyTorch's do, out of our own generator: the same on every rank
//! and machine, whatever libtorch's global generator has been used for.

use super::NETWORK_NAMES;
use crate::data::Dataset;
use crate::data::random::{generator, symmetric};
use crate::error::{Error, Result};
use rand_chacha::ChaCha8Rng;
use tch::nn::{self, Init, Path, SequentialT};
use tch::{Device, Kind, Tensor};

const HIDDEN: i64 = 128;
const KERNEL: i64 = 5;

/// Numbers that stand for a character.
const CHARACTER_FEATURES: i64 = 16;

/// Networks for texts; all others are for images.
const TEXT_NETWORKS: [&str; 1] = ["char-mlp"];

/// Each of LeNet's two pooling layers halves height and width.
const LENET_SHRINKS_BY: usize = 4;

/// Makes a network for the images of `dataset` below `path`, whose variables it adds.
///
/// Its input is images × channels × height × width; its output images × classes, before the soft-max. A text's images are
/// 1 × 1 × context.
///
/// # Errors
///
/// [`Error::Usage`] for an unknown name, or if the network is not for such data, or the images too small for it; [`Error::Environment`] if `path`
/// is not in the CPU's memory.
pub fn network(name: &str, path: &Path, dataset: &Dataset, seed: u64) -> Result<SequentialT> {
    if path.device() != Device::Cpu {
        return Err(Error::Environment("the built-in networks run on the CPU only".into()));
    }
    if NETWORK_NAMES.contains(&name) && TEXT_NETWORKS.contains(&name) != dataset.alphabet.is_some() {
        let (kind, fitting): (_, Vec<&str>) = match dataset.alphabet {
            Some(_) => ("a text", TEXT_NETWORKS.to_vec()),
            None => {
                ("images", NETWORK_NAMES.into_iter().filter(|name| !TEXT_NETWORKS.contains(name)).collect())
            }
        };
        return Err(Error::Usage(format!(
            "the data set `{}` is {kind}, for which the network `{name}` is not made; use --network {}",
            dataset.name,
            fitting.join(", ")
        )));
    }
    let mut maker = Maker { path, rng: generator(b"initpars", seed, 0, 0), network: nn::seq_t() };
    let (inputs, classes) = (dataset.image_len() as i64, dataset.classes as i64);
    match name {
        "logistic" => Ok(maker.flatten().linear("fc", inputs, classes).network),
        "mlp" | "mlp-bn" => {
            maker = maker.flatten().linear("fc1", inputs, HIDDEN);
            if name == "mlp-bn" {
                maker = maker.normalise(1, "bn1", HIDDEN);
            }
            Ok(maker.relu().linear("fc2", HIDDEN, classes).network)
        }
        "lenet" | "lenet-bn" => {
            let (height, width) = (dataset.height / LENET_SHRINKS_BY, dataset.width / LENET_SHRINKS_BY);
            if height == 0 || width == 0 {
                let size = format!("{}×{}", dataset.height, dataset.width);
                return Err(Error::Usage(format!(
                    "`{name}` needs images of at least 4×4; these have {size}"
                )));
            }
            let normalised = name == "lenet-bn";
            let features = 16 * (height * width) as i64;
            maker = maker.convolution("conv1", dataset.channels as i64, 6, normalised.then_some("bn1"));
            maker = maker.convolution("conv2", 6, 16, normalised.then_some("bn2"));
            maker = maker.flatten().linear("fc1", features, 120).relu().linear("fc2", 120, 84).relu();
            Ok(maker.linear("fc3", 84, classes).network)
        }
        "char-mlp" => {
            let features = CHARACTER_FEATURES * inputs;
            maker = maker.flatten().embedding("embedding", classes, CHARACTER_FEATURES);
            Ok(maker.flatten().linear("fc1", features, HIDDEN).relu().linear("fc2", HIDDEN, classes).network)
        }
        _ => Err(Error::Usage(format!(
            "there is no network `{name}`; there are {}",
            NETWORK_NAMES.map(|name| format!("`{name}`")).join(", ")
        ))),
    }
}

/// Whether a network's statistics need more than one image in a mini-batch.
pub(super) fn is_normalised(name: &str) -> bool {
    name.ends_with("-bn")
}

/// Appends layers to a network. The layers' order is that in which they take numbers from the generator.
struct Maker<'a> {
    path: &'a Path<'a>,
    rng: ChaCha8Rng,
    network: SequentialT,
}

/// How layers are made before they are filled: tch's other choices use libtorch's global generator.
const EMPTY: Init = Init::Const(0.0);

impl Maker<'_> {
    fn linear(mut self, name: &str, inputs: i64, outputs: i64) -> Self {
        let config = nn::LinearConfig { ws_init: EMPTY, bs_init: Some(EMPTY), bias: true };
        let mut layer = nn::linear(self.path / name, inputs, outputs, config);
        self.fill([Some(&mut layer.ws), layer.bs.as_mut()], inputs);
        self.network = self.network.add(layer);
        self
    }

    /// Numbers that stand for each of `characters` characters.
    fn embedding(mut self, name: &str, characters: i64, features: i64) -> Self {
        let config = nn::EmbeddingConfig { ws_init: EMPTY, ..Default::default() };
        let mut layer = nn::embedding(self.path / name, characters, features, config);
        // Uniform in ±1: there is nothing to sum up.
        self.fill([Some(&mut layer.ws), None], 1);
        self.network = self.network.add_fn(|numbers| numbers.to_kind(Kind::Int64)).add(layer);
        self
    }

    /// A convolution that keeps the size, then ReLU, then pooling that halves it.
    fn convolution(mut self, name: &str, inputs: i64, outputs: i64, normalisation: Option<&str>) -> Self {
        let config =
            nn::ConvConfig { padding: KERNEL / 2, ws_init: EMPTY, bs_init: EMPTY, ..Default::default() };
        let mut layer = nn::conv2d(self.path / name, inputs, outputs, KERNEL, config);
        self.fill([Some(&mut layer.ws), layer.bs.as_mut()], inputs * KERNEL * KERNEL);
        self.network = self.network.add(layer);
        if let Some(name) = normalisation {
            self = self.normalise(2, name, outputs);
        }
        self = self.relu();
        self.network = self.network.add_fn(|images| images.max_pool2d_default(2));
        self
    }

    fn normalise(mut self, dimensions: usize, name: &str, features: i64) -> Self {
        let config = nn::BatchNormConfig { ws_init: Init::Const(1.0), ..Default::default() };
        let path = self.path / name;
        self.network = self.network.add(match dimensions {
            1 => nn::batch_norm1d(path, features, config),
            _ => nn::batch_norm2d(path, features, config),
        });
        self
    }

    fn relu(mut self) -> Self {
        self.network = self.network.add_fn(Tensor::relu);
        self
    }

    fn flatten(mut self) -> Self {
        self.network = self.network.add_fn(|images| images.flat_view());
        self
    }

    /// Uniform in ±1/√inputs: PyTorch's default for weights (Kaiming with a = √5) and for biases.
    fn fill(&mut self, tensors: [Option<&mut Tensor>; 2], inputs: i64) {
        let bound = 1.0 / (inputs as f32).sqrt();
        for tensor in tensors.into_iter().flatten() {
            let values: Vec<f32> = (0..tensor.numel()).map(|_| bound * symmetric(&mut self.rng)).collect();
            let values = Tensor::from_slice(&values).view_as(tensor);
            tch::no_grad(|| tensor.copy_(&values));
        }
    }
}
