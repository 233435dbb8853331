//! `--mode hermes`: push only what is a significant improvement (Basani et al., *When Less is More: Achieving Faster
//! Convergence in Distributed Edge Machine Learning*, HiPC 2024, arXiv 2410.20495).
//!
//! Each worker trains alone for an *epoch*, a certain number of samples, and then measures the loss on samples that it has
//! set aside. A [`Gate`] compares it with the worker's last losses: if it is significantly lower, the update is *major*. Then
//! the worker pushes its parameters, the server merges them by inverse losses
//! ([`PushRule::LossWeighted`](crate::policy::PushRule::LossWeighted)), and the worker goes on from the merged ones. All other
//! updates are *minor*: nothing is sent but a few numbers, by which the server sizes the worker's mini-batches and epochs so
//! that all workers' epochs take equally long ([`Sizing`]).
//!
//! # Where this differs from the paper and its published code
//!
//! - What is merged is the displacement since training began, on both sides. A worker pushes its parameters, and begins from
//!   the merged ones, so that the sums belong together; the code's worker never resets its own.
//! - After a major update the gate's threshold is what it was at the start. In the code it only ever opens.
//! - Losses that do not vary are minor; the code divides by zero.
//! - The held-out samples are always the same, so that a worker's losses can be compared.
//! - The median that epochs are sized for is taken anew at each report. Mini-batches are sized in the right direction: who
//!   is too slow gets less data first, or larger mini-batches; the code makes them smaller. A worker is never sized beyond
//!   the data that it has, or may hold, and where no size fits, nothing changes.
//! - An epoch is one pass over at most eight mini-batches' worth of samples; with `--preset paper`, five over 2,500 samples.
//!   Each pass draws others of the worker's shard.
//! - The gate begins to open after two minor epochs, by 0.3 each; with `--preset paper`, after five and by 0.1.
//! - Nobody ships data here: a worker draws from its own shard. *Prefetching* the next chunk is therefore no more than asking
//!   for the next epoch's size before it is needed, when four fifths of the present one are done, so that a minor epoch ends
//!   without any message.
//! - Training ends with the job's budget or target. `--patience 25` also ends it, as in the paper, after so many pushes
//!   without a new best loss.

mod coordinator;
mod gate;
mod reason;
mod sizing;
mod worker;

pub use coordinator::HermesCoordinator;
pub use gate::{Gate, Verdict};
pub use reason::HermesReason;
pub use sizing::{Sizes, Sizing, is_outlier, median};
pub use worker::HermesWorker;

use crate::policy::{Job, PolicyOptions, Preset};
use crate::transport::Rank;

/// What can be chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// When an update is major.
    pub gate: GateSettings,
    /// How epochs are sized.
    pub sizing: Sizing,
    /// Samples in a mini-batch and in a pass, before anything is measured.
    pub first: Sizes,
    /// The most samples that a worker may hold, if limited.
    pub memory_samples: Option<u64>,
    /// Pushes without a new best loss after which training ends, if it does.
    pub patience: Option<u64>,
}

/// When an update is major.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateSettings {
    /// α: the z-score that a loss must not exceed. With n losses in the window none is below −√(n − 1).
    pub threshold: f64,
    /// β: the share by which the threshold comes closer to 0 in an idle epoch, 0 to 1.
    pub decay: f64,
    /// λ: minor epochs after which it begins to.
    pub idle_epochs: u64,
    /// Losses that are compared, at least 2.
    pub window: usize,
}

/// The paper's.
impl Default for GateSettings {
    fn default() -> Self {
        GateSettings { threshold: -1.3, decay: 0.1, idle_epochs: 5, window: 10 }
    }
}

impl GateSettings {
    /// For jobs in which a worker has a dozen epochs, not hundreds: with the paper's patience each would push about once, and
    /// whether the few models that are merged suffice would be luck. The gate opens sooner, and each pushes two or three times.
    pub fn scaled() -> Self {
        GateSettings { decay: 0.3, idle_epochs: 2, ..GateSettings::default() }
    }
}

impl Settings {
    /// Mini-batches of an epoch where the job is small.
    const SCALED_EPOCH_STEPS: u64 = 8;

    /// What was asked for, and the preset's defaults for the rest.
    pub fn from_options(options: &PolicyOptions, job: &Job) -> Self {
        let (gate, sizing, first) = match options.preset() {
            Preset::Paper => {
                let sizing = Sizing { passes: 5, tolerance_seconds: 1.0 };
                (GateSettings::default(), sizing, Sizes { batch_size: 16, data_budget: 2500 })
            }
            Preset::Scaled => {
                let batch_size = job.batch_size.max(1) as u64;
                let data_budget = Self::SCALED_EPOCH_STEPS * batch_size;
                let tolerance_seconds = 0.5 * job.straggler_seconds();
                let sizing = Sizing { passes: 1, tolerance_seconds };
                (GateSettings::scaled(), sizing, Sizes { batch_size, data_budget })
            }
        };
        Settings {
            gate: GateSettings {
                threshold: options.gate_threshold.unwrap_or(gate.threshold),
                decay: options.gate_decay.unwrap_or(gate.decay),
                idle_epochs: options.gate_idle.unwrap_or(gate.idle_epochs),
                window: options.gate_window.unwrap_or(gate.window),
            },
            sizing,
            first,
            memory_samples: options.memory_samples,
            patience: options.patience,
        }
    }

    /// The most samples that `rank` can draw in a pass: its shard, or what it may hold.
    pub fn most_samples(&self, job: &Job, rank: Rank) -> u64 {
        let shard = job.shard_samples.get(rank).copied().unwrap_or(0);
        self.memory_samples.map_or(shard, |memory| memory.min(shard))
    }

    /// What `rank` begins with.
    pub fn first_sizes(&self, job: &Job, rank: Rank) -> Sizes {
        let most = self.most_samples(job, rank).max(1);
        let Sizes { batch_size, data_budget } = self.first;
        Sizes { batch_size: batch_size.min(most), data_budget: data_budget.min(most) }
    }
}
