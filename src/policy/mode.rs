//! The modes by name: what `--mode` takes, and what each of them needs to run.

use super::adacomm::AdaComm;
use super::adsp::{self, AdspCoordinator, AdspWorker};
use super::async_diloco::{self, AsyncDilocoCoordinator, AsyncDilocoWorker};
use super::async_sgd::{self, AsyncServer};
use super::bounded_delay::{self, BoundedDelayServer};
use super::dc_asgd::{self, DcAsgdServer};
use super::diloco;
use super::easgd::{self, EasgdServer};
use super::esync::{EsyncWorker, Planning, Settings};
use super::hermes::{self, HermesCoordinator, HermesWorker};
use super::local::LocalWorker;
use super::local_sgd::{LocalSgd, PostLocalSgd};
use super::options::PolicyOptions;
use super::overlapped::Overlapped;
use super::r2sp::{self, R2spServer};
use super::ssp::{self, SspServer};
use super::streaming_diloco::{self, StreamingDiloco};
use super::sync::SyncWorker;
use super::wbsp::{WbspCoordinator, WbspOverlapWorker, WbspWorker};
use super::{Coordinator, Outer, WorkerPolicy};
use crate::error::{Error, Result};
use crate::reduce::WireFormat;
use crate::transport::Rank;
use std::sync::Arc;

/// How a mode's workers meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Never: one worker alone.
    Alone,
    /// In exchanges that all ranks enter (an all-reduce).
    Rounds,
    /// At a parameter server, each for itself.
    Server,
}

/// One choice of `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// Its name.
    pub name: &'static str,
    /// How its workers meet.
    pub scheme: Scheme,
}

/// Every mode.
pub const MODES: &[Mode] = &[
    Mode { name: "esync", scheme: Scheme::Rounds },
    Mode { name: "sync", scheme: Scheme::Rounds },
    Mode { name: "local", scheme: Scheme::Alone },
    Mode { name: "local-sgd", scheme: Scheme::Rounds },
    Mode { name: "post-local-sgd", scheme: Scheme::Rounds },
    Mode { name: "adacomm", scheme: Scheme::Rounds },
    Mode { name: "diloco", scheme: Scheme::Rounds },
    Mode { name: "streaming-diloco", scheme: Scheme::Rounds },
    Mode { name: "wbsp", scheme: Scheme::Server },
    Mode { name: "wbsp-overlap", scheme: Scheme::Server },
    Mode { name: "async-diloco", scheme: Scheme::Server },
    Mode { name: "hermes", scheme: Scheme::Server },
    Mode { name: "adsp", scheme: Scheme::Server },
    Mode { name: "async", scheme: Scheme::Server },
    Mode { name: "dc-asgd", scheme: Scheme::Server },
    Mode { name: "ssp", scheme: Scheme::Server },
    Mode { name: "bounded-delay", scheme: Scheme::Server },
    Mode { name: "easgd", scheme: Scheme::Server },
    Mode { name: "r2sp", scheme: Scheme::Server },
];

/// What `--mode` takes.
pub const MODE_NAMES: [&str; MODES.len()] = {
    let mut names = [""; MODES.len()];
    let mut index = 0;
    while index < MODES.len() {
        names[index] = MODES[index].name;
        index += 1;
    }
    names
};

/// What a policy is told of the job before it begins. All ranks know the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// How many workers there are.
    pub size: usize,
    /// Every worker's seconds for one warm-up step, in rank order.
    pub step_seconds: Arc<[f64]>,
    /// Samples of every worker's shard, in rank order.
    pub shard_samples: Arc<[u64]>,
    /// Samples per mini-batch and worker.
    pub batch_size: usize,
    /// The local optimiser's learning rate.
    pub learning_rate: f64,
    /// The budget in samples of all workers, if there is one.
    pub budget_samples: Option<u64>,
}

impl Job {
    /// Seconds of the slowest worker's warm-up step; 0 if nothing was measured. Times that papers fix in seconds are
    /// multiples of it.
    pub fn straggler_seconds(&self) -> f64 {
        self.step_seconds.iter().copied().filter(|seconds| seconds.is_finite()).fold(0.0, f64::max)
    }
}

impl Mode {
    /// The mode of this name.
    ///
    /// # Errors
    /// `Usage` with all names.
    pub fn by_name(name: &str) -> Result<Mode> {
        MODES.iter().copied().find(|mode| mode.name == name).ok_or_else(|| {
            Error::Usage(format!("--mode is `{name}`; it must be one of: {}", MODE_NAMES.join(", ")))
        })
    }

    /// The outer optimiser, if none is asked for. Its rate is then [`Outer::default_learning_rate`].
    pub fn default_outer(self) -> Outer {
        match self.name {
            "diloco" | "streaming-diloco" | "async-diloco" => Outer::Nesterov,
            _ => Outer::Sgd,
        }
    }

    /// Whether its server applies pushes by an outer optimiser, whose rate can be chosen.
    pub fn has_outer_server(self) -> bool {
        self.name == "async-diloco"
    }

    /// What numbers travel as, if nothing else is asked for.
    pub fn default_wire(self) -> WireFormat {
        match self.name {
            // The paper compresses what it sends to 16 bits.
            "hermes" => WireFormat::F16,
            _ => WireFormat::F32,
        }
    }

    /// What runs on worker `rank`.
    ///
    /// # Errors
    /// `Usage` if an option does not fit this mode or this job.
    pub fn worker(self, options: &PolicyOptions, job: &Job, rank: Rank) -> Result<Box<dyn WorkerPolicy>> {
        let policy = self.plain_worker(options, job, rank)?;
        Ok(if options.overlap { Box::new(Overlapped::new(policy)) } else { policy })
    }

    /// The same without what is wrapped around any policy.
    fn plain_worker(self, options: &PolicyOptions, job: &Job, rank: Rank) -> Result<Box<dyn WorkerPolicy>> {
        match self.name {
            "esync" => Ok(Box::new(EsyncWorker::new(esync_settings(options)))),
            "sync" => Ok(Box::new(SyncWorker::default())),
            "local" => Ok(Box::new(LocalWorker)),
            "local-sgd" => Ok(Box::new(LocalSgd::from_options(options))),
            "post-local-sgd" => Ok(Box::new(PostLocalSgd::from_options(options, job)?)),
            "adacomm" => Ok(Box::new(AdaComm::from_options(options, job))),
            "diloco" => Ok(Box::new(diloco::from_options(options))),
            "streaming-diloco" => {
                let settings = streaming_diloco::Settings::from_options(options)?;
                Ok(Box::new(StreamingDiloco::new(settings)?))
            }
            "wbsp" => Ok(Box::new(WbspWorker)),
            "wbsp-overlap" => Ok(Box::<WbspOverlapWorker>::default()),
            "async-diloco" => {
                let settings = async_diloco::Settings::from_options(options, job);
                Ok(Box::new(AsyncDilocoWorker::new(settings.first_local_steps(&job.step_seconds, rank))))
            }
            "hermes" => {
                Ok(Box::new(HermesWorker::new(hermes::Settings::from_options(options, job), job, rank)))
            }
            "adsp" => {
                let settings = adsp::Settings::from_options(options, job);
                Ok(Box::new(AdspWorker::new(settings.budget_seconds(1, 0.0))))
            }
            "async" => Ok(Box::new(async_sgd::worker())),
            "dc-asgd" => Ok(Box::new(dc_asgd::worker())),
            "ssp" => Ok(Box::new(ssp::worker())),
            "bounded-delay" => Ok(Box::new(bounded_delay::worker())),
            "r2sp" => Ok(Box::new(r2sp::worker())),
            "easgd" => Ok(Box::new(easgd::worker_from_options(options, job)?)),
            other => Err(Error::Internal(format!("mode `{other}` has no worker"))),
        }
    }

    /// Whether the server keeps a backup of the parameters for every worker
    /// ([`Store::with_backups`](super::Store::with_backups)).
    pub fn needs_backups(self) -> bool {
        self.name == "dc-asgd"
    }

    /// Whether workers set a part of their shards aside, to measure their parameters on.
    pub fn needs_held_out(self) -> bool {
        self.name == "hermes"
    }

    /// Whether the server's rule looks at all parameters at once, so that they cannot be cut into shards.
    pub fn needs_whole_parameters(self) -> bool {
        self.name == "hermes"
    }

    /// The parameter server's rule, for modes whose [`scheme`](Mode::scheme) is [`Scheme::Server`].
    ///
    /// # Errors
    /// `Usage` if an option does not fit this mode or this job.
    pub fn coordinator(self, options: &PolicyOptions, job: &Job) -> Result<Option<Box<dyn Coordinator>>> {
        Ok(match self.name {
            "wbsp" | "wbsp-overlap" => {
                Some(Box::new(WbspCoordinator::new(job.size, 1.0 / job.size.max(1) as f64)))
            }
            "async-diloco" => {
                let settings = async_diloco::Settings::from_options(options, job);
                Some(Box::new(AsyncDilocoCoordinator::new(&job.step_seconds, settings)))
            }
            "hermes" => {
                let settings = hermes::Settings::from_options(options, job);
                Some(Box::new(HermesCoordinator::new(settings, job)))
            }
            "adsp" => {
                let settings = adsp::Settings::from_options(options, job);
                Some(Box::new(AdspCoordinator::new(&job.step_seconds, settings)))
            }
            "async" => Some(Box::new(AsyncServer::from_options(options, job))),
            "dc-asgd" => Some(Box::new(DcAsgdServer::from_options(options, job)?)),
            "ssp" => Some(Box::new(SspServer::from_options(options, job))),
            "bounded-delay" => Some(Box::new(BoundedDelayServer::from_options(options, job)?)),
            "r2sp" => Some(Box::new(R2spServer::from_options(options, job))),
            "easgd" => Some(Box::new(EasgdServer::from_options(options, job)?)),
            _ => None,
        })
    }
}

fn esync_settings(options: &PolicyOptions) -> Settings {
    Settings {
        planning: options.planning.unwrap_or(Planning::StateServer),
        max_local_steps: options.max_local_steps,
        ..Settings::default()
    }
}
