//! The words that drivers and policies exchange. Complete enough for the hard policies: fragments and overlap (streaming
//! DiLoCo), held-out loss (Hermes, AdaComm, ADSP), batch and data sizes (R2SP, Hermes), a backup for each worker (DC-ASGD).

use super::{LocalSteps, Reason, Versions};
use crate::transport::Rank;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Numbers a worker's exchanges from 0; all ranks count alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ExchangeId(pub u64);

/// Which part of the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Fragment {
    /// All of them.
    #[default]
    Whole,
    /// Fragment `index` of `count` (streaming DiLoCo).
    Part {
        /// From 0.
        index: u16,
        /// How many there are.
        count: u16,
    },
}

/// What travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Payload {
    /// The gradient of the last step, not yet applied. The mean is handed to the local optimiser.
    Gradient,
    /// Parameters now, minus the anchor. The mean is applied to the anchor by the outer optimiser.
    Delta,
    /// The parameters themselves.
    Parameters,
}

/// What a step does with its gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Update {
    /// The local optimiser applies it at once.
    Local,
    /// It stays in the gradient buffer, to be exchanged or pushed.
    Deferred,
}

/// How new global parameters meet the local ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Install {
    /// Parameters and anchor both become the new ones. Refused if a step was taken since the matching `Begin` or `Pull`.
    Rebase,
    /// Parameters become new + (parameters − anchor), the anchor the new ones: keeps the steps in flight.
    Merge,
    /// Parameters become (1 − α)·new + α·parameters, the anchor the new ones (streaming DiLoCo; elastic averaging).
    Mix {
        /// The share that the local parameters keep, 0 to 1.
        alpha: f64,
    },
}

/// What a worker is told to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Run one mini-batch. Answered by [`WorkerEvent::Stepped`].
    Step {
        /// What to do with the gradient.
        update: Update,
    },
    /// Tell the coordinator. Answered by [`WorkerEvent::Replied`].
    Report(Report),
    /// Start an exchange. Answered by [`WorkerEvent::Begun`] at once; it travels while the worker goes on.
    Begin {
        /// Its number.
        exchange: ExchangeId,
        /// Which parameters.
        fragment: Fragment,
        /// What travels.
        payload: Payload,
    },
    /// Wait for an exchange and put its result in place. Answered by [`WorkerEvent::Finished`].
    Finish {
        /// Its number.
        exchange: ExchangeId,
        /// Which parameters.
        fragment: Fragment,
        /// How the result meets the local parameters (a gradient goes to the optimiser instead).
        install: Install,
    },
    /// Send to the parameter server. Answered by [`WorkerEvent::Replied`] with the server's verdict.
    Push {
        /// What travels.
        payload: Payload,
        /// Which parameters.
        fragment: Fragment,
    },
    /// Send to the parameter server, and go on while it travels. Answered by [`WorkerEvent::PushBegun`] at once; the verdict
    /// is fetched by [`Action::FinishPush`]. One push at a time.
    BeginPush {
        /// What travels.
        payload: Payload,
        /// Which parameters.
        fragment: Fragment,
    },
    /// Ask for the verdict of the push that was begun. Answered by [`WorkerEvent::Replied`], or by [`WorkerEvent::NotYet`]
    /// if it is not there and `wait` is false.
    FinishPush {
        /// Whether to wait for it.
        wait: bool,
    },
    /// Put the server's parameters in place. After [`Reply::Pull`] they are here already: they travelled with the reply, as
    /// they were when the server sent it. Without it the server is asked ([`Report::PullRequested`]). Answered by
    /// [`WorkerEvent::Pulled`].
    Pull {
        /// How they meet the local ones.
        install: Install,
    },
    /// Measure the loss on this worker's held-out data. Answered by [`WorkerEvent::Evaluated`].
    Evaluate,
    /// Change the mini-batch size and how many samples the worker holds. Answered by [`WorkerEvent::BatchSet`].
    SetBatch {
        /// Samples per mini-batch.
        batch_size: usize,
        /// Samples to hold, if limited (Hermes).
        data_budget: Option<usize>,
    },
    /// Nothing to do until the coordinator says something. Answered by [`WorkerEvent::Replied`].
    Wait,
    /// The worker is done.
    Stop,
}

impl Action {
    /// A word for it, as files write it.
    pub fn name(&self) -> &'static str {
        match self {
            Action::Step { .. } => "step",
            Action::Report(_) => "report",
            Action::Begin { .. } => "begin",
            Action::Finish { .. } => "finish",
            Action::Push { .. } => "push",
            Action::BeginPush { .. } => "begin-push",
            Action::FinishPush { .. } => "finish-push",
            Action::Pull { .. } => "pull",
            Action::Evaluate => "evaluate",
            Action::SetBatch { .. } => "set-batch",
            Action::Wait => "wait",
            Action::Stop => "stop",
        }
    }
}

/// One rank's figures of the round that an exchange closes; every rank sees all ranks' figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemberReport {
    /// Whose.
    pub rank: Rank,
    /// Steps since its last exchange.
    pub local_steps: LocalSteps,
    /// Samples in those steps.
    pub samples: u64,
    /// Its seconds for a step, smoothed by [`Smoothed`](super::Smoothed).
    pub step_seconds: f64,
    /// Its last exchange's seconds, without waiting.
    pub transfer_seconds: f64,
    /// Its mean training loss in the round.
    pub loss: f64,
}

/// What a worker is told has happened.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerEvent {
    /// Training begins. `step_seconds` are one full warm-up step's of every rank, in rank order.
    Started {
        /// This rank.
        rank: Rank,
        /// All ranks' seconds for one full step, measured before training.
        step_seconds: Arc<[f64]>,
    },
    /// A mini-batch is done.
    Stepped {
        /// Its wall time, simulated slowness included, exchanges not.
        step_seconds: f64,
        /// Samples in it.
        samples: usize,
        /// Its training loss.
        loss: f64,
    },
    /// The coordinator answered.
    Replied(Reply),
    /// An exchange is on its way.
    Begun {
        /// Its number.
        exchange: ExchangeId,
    },
    /// An exchange's result is in place.
    Finished {
        /// Its number.
        exchange: ExchangeId,
        /// Seconds of the exchange after all had arrived: the minimum over ranks, else the fast ranks look slow.
        transfer_seconds: f64,
        /// Seconds that this rank waited for others to arrive.
        wait_seconds: f64,
        /// All ranks' figures.
        members: Arc<[MemberReport]>,
        /// All ranks agreed to stop after this exchange (a budget, a target, a request).
        stop: bool,
    },
    /// A push is on its way.
    PushBegun,
    /// The verdict of the push that was begun is not here yet.
    NotYet,
    /// The server's parameters are in place.
    Pulled {
        /// The server's version.
        version: Versions,
    },
    /// The held-out loss.
    Evaluated {
        /// Mean loss.
        loss: f64,
        /// Share of right answers, 0 to 1.
        accuracy: f64,
    },
    /// The mini-batch size was changed.
    BatchSet,
    /// A budget is spent or somebody asked to stop, outside any exchange. The policy must reach `Stop` without waiting for
    /// an exchange that others may not enter.
    StopRequested,
}

/// What a worker tells a coordinator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// The worker has done a step and asks what to do (ESync's QUERY).
    Stepped {
        /// Rounds that it has completed.
        round: u64,
        /// Steps in this round.
        local_steps: LocalSteps,
        /// Its smoothed seconds for a step.
        step_seconds: f64,
        /// The same without luck: what its steps hardly ever undercut ([`Smoothed::low`](super::Smoothed::low)).
        low_step_seconds: f64,
        /// Its seconds for a transfer.
        transfer_seconds: f64,
        /// Its seconds of computing in this round: tells the coordinator when the round began, without a message of
        /// its own (ESync's RESET and REPORT) and without comparing clocks.
        round_seconds: f64,
    },
    /// The worker has pushed.
    Pushed {
        /// What it sent.
        payload: Payload,
        /// Steps that the payload sums up.
        local_steps: LocalSteps,
        /// Samples that the payload sums up.
        samples: u64,
        /// Its training loss.
        loss: f64,
        /// Seconds since its last push.
        seconds_since_push: f64,
        /// Seconds of computing in those steps: what [`WorkerEvent::Stepped`] has told of each, added up. The rest of
        /// `seconds_since_push` went into transfers and waiting.
        compute_seconds: f64,
        /// The server's version that the worker's anchor came from.
        base: Versions,
        /// Euclidean norm of what it sent, without the statistics ([`norm`](super::norm)): coordinators see no values.
        norm: f64,
    },
    /// The worker asks for parameters.
    PullRequested,
    /// The worker has measured its held-out loss after some local steps.
    Evaluated {
        /// Mean loss.
        loss: f64,
        /// Steps since its last push or evaluation.
        local_steps: LocalSteps,
        /// Its smoothed seconds for a step (Hermes sizes batches and data by it).
        step_seconds: f64,
    },
    /// The driver has carried out [`Directive::Evaluate`]; `from` says nothing.
    GlobalLoss {
        /// Mean loss of the server's parameters.
        loss: f64,
    },
}

/// What a coordinator answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Do another local step.
    Train,
    /// Enter the exchange.
    Synchronize,
    /// The parameters of this moment are the worker's: they travel with this reply, and its next [`Action::Pull`] puts them
    /// in place.
    Pull,
    /// Go on; nothing to fetch.
    Continue,
    /// Commit at intervals of this many seconds from now on (ADSP).
    CommitEvery {
        /// Seconds between two pushes.
        seconds: f64,
    },
    /// Do this many local steps until the next push (dynamic local updates).
    StepsPerPush(LocalSteps),
    /// Change the mini-batch size and the data held (R2SP, Hermes).
    SetBatch {
        /// Samples per mini-batch.
        batch_size: usize,
        /// Samples to hold, if limited.
        data_budget: Option<usize>,
    },
    /// Training is over.
    Stop,
}

/// How a server applies a push to its parameters `w`. `u` is what was pushed, as it is: a delta, or a gradient (whose scale
/// then holds −η).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum PushRule {
    /// `w ← w + scale · u` (ASGD, SSP, ADSP, bounded delay).
    Add {
        /// 1, 1/K, or what the policy says.
        scale: f64,
    },
    /// `A ← A + scale · u`; [`Directive::Publish`] adds A to w (WBSP).
    Buffer {
        /// The factor.
        scale: f64,
    },
    /// `w ← w − η [g + λ g⊙g⊙(w − backup_k)]`, with a backup of w for every worker, made at its pull (DC-ASGD).
    DelayCompensated {
        /// The server's learning rate η.
        learning_rate: f64,
        /// λ, or λ₀ of the adaptive form.
        lambda: f64,
        /// `m` of the moving mean square of the adaptive form; `None` for the constant form.
        mean_square_decay: Option<f64>,
    },
    /// `G ← (G/ℓ_G + G_k/ℓ_k) / (1/ℓ_G + 1/ℓ_k)`, `w ← w₀ + G`; the losses are measured by the server (Hermes). The payload
    /// is `Parameters`, because `G_k = x_k − w₀` is the total displacement since training began, not since the last pull.
    LossWeighted,
    /// Nesterov's momentum applied once every `period` pushes (asynchronous DiLoCo, delayed Nesterov).
    DelayedNesterov {
        /// Pushes per momentum step.
        period: u32,
        /// Outer learning rate.
        learning_rate: f64,
        /// Outer momentum β.
        momentum: f64,
        /// c of the paper, 0 to 1/period.
        carry: f64,
    },
    /// `w ← w + α (x_k − w)` (elastic averaging; the payload is `Parameters`).
    Elastic {
        /// α.
        alpha: f64,
    },
    /// Thrown away (too old, not a number).
    Discard,
}

/// What a coordinator wants done, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Directive {
    /// Answer a worker.
    Reply {
        /// Whom.
        to: Rank,
        /// What.
        reply: Reply,
        /// Why.
        reason: Reason,
    },
    /// Apply a worker's push to the parameters, atomically; the version goes up by one.
    Apply {
        /// Whose push.
        from: Rank,
        /// How.
        rule: PushRule,
        /// Why.
        reason: Reason,
    },
    /// Add what was buffered to the parameters; the version goes up by one.
    Publish {
        /// Why.
        reason: Reason,
    },
    /// Measure the loss of the current parameters; the driver then calls `on` with [`Report::GlobalLoss`].
    Evaluate,
}
