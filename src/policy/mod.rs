//! When a worker computes and when it exchanges: policies as state machines without input or output.
//!
//! A policy never sleeps, sends, locks or reads a clock. It is told what happened and answers what to do, and why. The
//! runtime drives it with a real clock and real messages, the simulator with a virtual clock.
//!
//! - A [`WorkerPolicy`] runs on every worker.
//! - A [`Coordinator`] is the rule of a service: the state server of ESync, or a parameter server.
//! - Time enters as durations that a worker measured; a coordinator is told its own time with every call. Clocks of
//!   different hosts are never compared.

mod mode;
mod options;
mod outer;
mod overlapped;
mod push_scale;
mod pushing;
mod reason;
mod replica;
mod schedule;
mod server_reason;
mod smoothed;
mod store;
#[cfg(test)]
mod testing;
mod units;
mod vocabulary;
mod weighting;

pub mod adacomm;
pub mod adsp;
pub mod async_diloco;
pub mod async_sgd;
pub mod bounded_delay;
pub mod dc_asgd;
pub mod diloco;
pub mod easgd;
pub mod esync;
pub mod hermes;
pub mod local;
pub mod local_sgd;
pub mod r2sp;
pub mod rounds;
pub mod ssp;
pub mod streaming_diloco;
pub mod sync;
pub mod wbsp;

pub use mode::{Job, MODE_NAMES, MODES, Mode, Scheme};
pub use options::{PolicyOptions, Preset};
pub use outer::{Outer, OuterOptimiser};
pub use overlapped::Overlapped;
pub use push_scale::PushScale;
pub use pushing::PushingWorker;
pub use reason::Reason;
pub use replica::{Begun, Float, Replica};
pub use schedule::{LearningRate, Schedule};
pub use server_reason::ServerReason;
pub use smoothed::Smoothed;
pub use store::{Store, norm};
pub use units::{Clocks, LocalSteps, Versions};
pub use vocabulary::{
    Action, Directive, ExchangeId, Fragment, Install, MemberReport, Payload, PushRule, Reply, Report, Update,
    WorkerEvent,
};
use weighting::by_name;
pub use weighting::{Weighting, weights};

use crate::transport::Rank;
use std::time::Duration;

/// What runs on every worker.
///
/// # Contract
/// - The driver calls [`next`](WorkerPolicy::next) with [`WorkerEvent::Started`] once, then after carrying out each action
///   with the event that the action's documentation names.
/// - The policy answers with exactly one action. After [`Action::Stop`] it is not called again.
/// - Pure: the same sequence of events gives the same sequence of actions.
pub trait WorkerPolicy: Send {
    /// The policy's name, as `--mode` takes it.
    fn name(&self) -> &'static str;

    /// Told what happened, answers what to do, and why.
    fn next(&mut self, event: WorkerEvent) -> (Action, Reason);
}

/// The rule of a service: a state server, or a parameter server's.
///
/// # Contract
/// - `now` is the service's own monotonic clock, as a duration since its start; it never goes back.
/// - Each report is answered at once or held; a held worker is answered by a later call, and
///   [`next_deadline`](Coordinator::next_deadline) says when the driver must call [`tick`](Coordinator::tick) at the latest.
/// - When a worker leaves or dies ([`lost`](Coordinator::lost)), nobody may be held because of it.
pub trait Coordinator: Send {
    /// A worker's report arrived.
    fn on(&mut self, now: Duration, from: Rank, report: Report) -> Vec<Directive>;

    /// A worker has finished or died.
    fn lost(&mut self, now: Duration, rank: Rank) -> Vec<Directive>;

    /// The time passed that [`next_deadline`](Coordinator::next_deadline) named.
    fn tick(&mut self, now: Duration) -> Vec<Directive> {
        let _ = now;
        Vec::new()
    }

    /// Until when the driver may sleep if no report arrives; `None` for ever.
    fn next_deadline(&self) -> Option<Duration> {
        None
    }
}
