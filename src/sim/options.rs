//! What can be chosen about a simulation.

use crate::error::{Error, Result};
use crate::policy::{LearningRate, Mode, Outer, PolicyOptions, Weighting};
use crate::reduce::WireFormat;

/// When training is over, and how often the global parameters are measured.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Limits {
    /// Samples of all workers.
    pub samples: Option<u64>,
    /// Virtual seconds.
    pub seconds: Option<f64>,
    /// Exchanges, or updates of the server, or (for a worker alone) steps.
    pub rounds: Option<u64>,
    /// Test accuracy, 0 to 1.
    pub target_accuracy: Option<f64>,
    /// Test loss.
    pub target_loss: Option<f64>,
    /// Measure after so many samples of all workers; `None` for at the end only.
    pub evaluate_every_samples: Option<u64>,
}

impl Limits {
    /// Whether there is a target, and these figures meet all of it.
    pub(super) fn meets_target(&self, accuracy: f64, loss: f64) -> bool {
        let has_target = self.target_accuracy.is_some() || self.target_loss.is_some();
        has_target
            && self.target_accuracy.is_none_or(|target| accuracy >= target)
            && self.target_loss.is_none_or(|target| loss <= target)
    }

    /// Refuses a simulation that would not end.
    pub(super) fn check(&self) -> Result<()> {
        if self.samples.is_none() && self.seconds.is_none() && self.rounds.is_none() {
            return Err(Error::Usage(
                "a simulation needs an end: a budget of samples, of seconds or of rounds".into(),
            ));
        }
        Ok(())
    }
}

/// What happens when a worker dies and the others exchange with it. (A parameter server goes on without it in any case.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Deaths {
    /// The run ends with `PeerLost` as soon as somebody needs the dead worker, as a real run does.
    #[default]
    EndRun,
    /// The others exchange among themselves from then on. No transport of this library does that; it shows what it would
    /// be worth.
    LeaveSurvivors,
}

/// The options of a simulation. Those of an exchange are the runtime's.
#[derive(Debug, Clone, PartialEq)]
pub struct SimOptions {
    /// One of [`MODE_NAMES`](crate::policy::MODE_NAMES).
    pub mode: String,
    /// The policy's options. Without [`fragment_map`](PolicyOptions::fragment_map) fragments are made of layers where there are
    /// enough; else they cut through them.
    pub policy: PolicyOptions,
    /// How deltas are weighed.
    pub weighting: Weighting,
    /// How their mean is applied.
    pub outer: Outer,
    /// The outer optimiser's learning rate.
    pub global_learning_rate: f64,
    /// The algorithm of an exchange; `native` has no schedule and is simulated as `auto`.
    pub collective: String,
    /// Parameter servers, or the ranks that hold shards of the collective `parameter-server`; `None` for one, or all.
    pub servers: Option<usize>,
    /// What the numbers of exchanges and pushes travel as. It rounds them, as on a real wire.
    pub wire: WireFormat,
    /// Whether what a narrow wire rounds off deltas is made up for in the next exchange.
    pub error_feedback: bool,
    /// Samples per mini-batch, as policies are told.
    pub batch_size: usize,
    /// The local optimiser's learning rate, as policies are told.
    pub learning_rate: f64,
    /// How it changes with the samples of all workers, if it does.
    pub learning_rates: Option<LearningRate>,
    /// Samples of every worker's shard; empty if all are equal.
    pub shard_samples: Vec<u64>,
    /// Makes the jitter of steps.
    pub seed: u64,
    /// When training is over.
    pub limits: Limits,
    /// What happens when a worker dies.
    pub deaths: Deaths,
    /// Keep every decision in [`Record::trace`](super::Record::trace).
    pub keeps_trace: bool,
}

impl SimOptions {
    /// The defaults of `esync-train` for a mode, without limits.
    pub fn new(mode: &str) -> Self {
        let outer = Mode::by_name(mode).map(Mode::default_outer).unwrap_or_default();
        SimOptions {
            mode: mode.into(),
            policy: PolicyOptions::default(),
            weighting: Weighting::default(),
            outer,
            global_learning_rate: outer.default_learning_rate(),
            collective: "auto".into(),
            servers: None,
            wire: WireFormat::F32,
            error_feedback: false,
            batch_size: 32,
            learning_rate: 0.05,
            learning_rates: None,
            shard_samples: Vec::new(),
            seed: 1,
            limits: Limits::default(),
            deaths: Deaths::default(),
            keeps_trace: false,
        }
    }
}
