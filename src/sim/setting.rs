//! What is trained in a simulation: learners, their data, and how much of it.

use super::flags::Flags;
use crate::error::{Error, Result};
use crate::learner::{Learner, Quadratic, QuadraticOptions, SgdOptions};
use crate::train::Config;
use crate::transport::Rank;

/// What a surrogate's worker counts as its data set, for `--epochs`.
const SURROGATE_SHARD: u64 = 1000;

/// Makes learners.
pub(super) struct Setting {
    /// Samples of each worker's shard.
    pub(super) shard_samples: Vec<u64>,
    /// Of all of them.
    pub(super) training_samples: usize,
    /// Bytes of one of them in memory.
    pub(super) sample_bytes: u64,
    pub(super) network: String,
    pub(super) dataset: String,
    pub(super) description: String,
    learners: Learners,
}

enum Learners {
    Surrogate {
        dimension: usize,
        noise: f64,
    },
    #[cfg(feature = "torch")]
    Torch {
        dataset: std::sync::Arc<crate::data::Dataset>,
        shards: Vec<Vec<u32>>,
    },
}

impl Setting {
    pub(super) fn new(flags: &Flags, config: &Config, size: usize) -> Result<Setting> {
        if flags.surrogate {
            let (dimension, noise) = (flags.dimension, flags.noise);
            return Ok(Setting {
                shard_samples: vec![SURROGATE_SHARD; size],
                training_samples: SURROGATE_SHARD as usize * size,
                sample_bytes: (size_of::<f32>() * dimension) as u64,
                network: "quadratic".into(),
                dataset: "surrogate".into(),
                description: format!("a quadratic of {dimension} parameters, gradient noise {noise}"),
                learners: Learners::Surrogate { dimension, noise },
            });
        }
        Self::of_network(config, size)
    }

    #[cfg(not(feature = "torch"))]
    fn of_network(_config: &Config, _size: usize) -> Result<Setting> {
        Err(Error::Environment(
            "this build has no libtorch, so that it can simulate --surrogate only; build with the feature `torch`".into(),
        ))
    }

    #[cfg(feature = "torch")]
    fn of_network(config: &Config, size: usize) -> Result<Setting> {
        let dataset = std::sync::Arc::new(crate::data::load(&config.dataset, config.data_dir.as_deref())?);
        let shards = crate::data::partition(&dataset.train.labels, config.split, size, config.seed)?;
        Ok(Setting {
            shard_samples: shards.iter().map(|shard| shard.len() as u64).collect(),
            training_samples: dataset.train.len(),
            sample_bytes: (size_of::<f32>() * dataset.image_len()) as u64,
            network: config.network.clone(),
            dataset: config.dataset.clone(),
            description: dataset.description.clone(),
            learners: Learners::Torch { dataset, shards },
        })
    }

    /// A worker's learner.
    pub(super) fn learner(&self, config: &Config, rank: Rank) -> Result<Box<dyn Learner>> {
        let (learning_rate, momentum) = (config.learning_rate, config.momentum);
        let (batch_size, weight_decay, seed) = (config.batch_size, config.weight_decay, config.seed);
        match &self.learners {
            &Learners::Surrogate { dimension, noise } => {
                let sgd = SgdOptions { learning_rate, momentum, weight_decay };
                let statistics = 0;
                let options = QuadraticOptions { dimension, statistics, seed, rank, batch_size, noise, sgd };
                Ok(Box::new(Quadratic::new(options)?))
            }
            #[cfg(feature = "torch")]
            Learners::Torch { dataset, shards } => {
                let shard = shards.get(rank).cloned().ok_or_else(|| {
                    Error::Internal(format!("there are shards for {} ranks, not for {rank}", shards.len()))
                })?;
                let options = crate::learner::TorchOptions {
                    batch_size,
                    learning_rate,
                    momentum,
                    weight_decay,
                    seed,
                    rank,
                };
                let learner =
                    crate::learner::TorchLearner::new(&config.network, dataset.clone(), shard, options)?;
                Ok(Box::new(learner))
            }
        }
    }
}
