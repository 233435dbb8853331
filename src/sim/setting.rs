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
        /// What each worker, and last the server, measures parameters on.
        held_out: Vec<Vec<u32>>,
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
        let mode = crate::policy::Mode::by_name(&config.mode)?;
        let mut shards = crate::data::partition(&dataset.train.labels, config.split, size, config.seed)?;
        let mut held_out = crate::train::set_aside(&mut shards, mode);
        held_out.push(match mode.scheme {
            crate::policy::Scheme::Server => crate::train::server_samples(&shards, &held_out),
            _ => Vec::new(),
        });
        Ok(Setting {
            shard_samples: shards.iter().map(|shard| shard.len() as u64).collect(),
            training_samples: dataset.train.len(),
            sample_bytes: (size_of::<f32>() * dataset.image_len()) as u64,
            network: config.network.clone(),
            dataset: config.dataset.clone(),
            description: dataset.description.clone(),
            learners: Learners::Torch { dataset, shards, held_out },
        })
    }

    /// A worker's learner, or, for the rank after the last, one to measure parameters with.
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
            Learners::Torch { dataset, shards, held_out } => {
                let Some(set_aside) = held_out.get(rank) else {
                    return Err(Error::Internal(format!("there is no worker {rank}")));
                };
                // Who only measures never steps.
                let shard = shards.get(rank).unwrap_or(&shards[0]).clone();
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
                Ok(Box::new(learner.with_held_out(set_aside)?))
            }
        }
    }
}
