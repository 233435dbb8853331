//! `--mode esync`: synchronous exchanges, with as many local steps between them as fit before the slowest worker submits
//! (Li et al., *ESync: Accelerating Intra-Domain Federated Learning in Heterogeneous Data Centers*, IEEE TSC 2020).
//!
//! Every worker does at least one local step per round. After each step it asks the *state server*, which knows all workers'
//! step times, whether another one fits. Equal workers do one step per round, as in SSGD; beside a worker that is 150 times
//! slower the others do about 150.
//!
//! The decision is a pure function, [`decide`], over a table of [`Row`]s, because it runs in three places: in the
//! [`EsyncCoordinator`] for threads, sockets and the simulator, and in every process of one host over a shared page.
//!
//! # Where this differs from the paper and its published code
//!
//! - Workers report durations. The state server stamps arrivals with its own clock; clocks of two hosts are never compared.
//! - The first prediction comes from a full step of every rank before training, not from a forward pass of whoever asks first.
//! - Predictions are running medians ([`Smoothed`](super::Smoothed)), so that one slow step does not hold up the next round.
//! - The worker that is waited for is the slowest *of those that still compute their first step*. With constant speeds that is
//!   the paper's straggler; when two slow workers jitter, the others go on until the second of them is ready as well.
//! - A straggler that has not submitted by its predicted time cannot submit before now. A step that is short beside the
//!   round is therefore always worth starting, up to a deadline ([`Settings::grace`]) after which the straggler may be dead.
//!   In the paper a straggler that never begins the round makes everybody else train for ever.
//! - A second step needs whole rounds that hold two ([`Reason::TooFewSteps`](super::Reason::TooFewSteps)): a lucky first step
//!   must not invite a step that everybody waits for, when equal workers jitter on shared cores.
//! - A step may end a little late ([`Settings::tolerance`]): a short wait of all costs less than a
//!   lost step of many.

mod coordinator;
mod index;
mod table;
mod worker;

pub use coordinator::EsyncCoordinator;
pub use table::{Row, decide, planned_local_steps};
pub use worker::EsyncWorker;

use serde::{Deserialize, Serialize};

/// Who decides how many local steps a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Planning {
    /// The state server, after every step (the paper's way): follows speeds that change within a round.
    #[default]
    StateServer,
    /// Every worker for itself, once per round, from the figures that came with the last exchange: where no state server can
    /// be reached.
    Ahead,
}

/// What can be chosen about ESync.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Who decides.
    pub planning: Planning,
    /// The most local steps in a round, at least 1; `None` for as many as fit. Weights diverge as `(1 + ηλ)^steps`, so that a
    /// bound helps where the workers' data differ much.
    pub max_local_steps: Option<u64>,
    /// How late a step may end, as a share of the straggler's step and transfer. It bounds what an exact prediction can cost.
    /// Simulated with seven workers beside one of twice their step time, all with 10 % of jitter, 0.1 does 1.7 times as many
    /// steps per second as SSGD, and 0.05 only 1.4: in half of the rounds the second step would end just too late.
    pub tolerance: f64,
    /// How long a straggler that is late is waited for with further steps, as a share of its step and transfer. After that
    /// workers wait in the exchange, which has its own deadline.
    pub grace: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { planning: Planning::StateServer, max_local_steps: None, tolerance: 0.1, grace: 1.0 }
    }
}
