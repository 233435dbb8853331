//! Drives the same policies, servers and learners as the runtime on a virtual clock.
//!
//! A [`Simulation`] takes events from a queue: steps end, messages arrive, exchanges are done. Each worker has its policy, its
//! learner and its [`Replica`](crate::policy::Replica), and does what the policy says; how long that takes is what a
//! [`SimCluster`] says. Gradients are real: a learner computes when its step ends, in the order of events. There are no
//! threads and no clocks, so that the same arguments give the same bits.
//!
//! # What takes time
//! - A step: the worker's own step time with its jitter and pauses, in proportion to its batch size.
//! - An exchange: what the collective's schedule needs on the cluster's links, from the moment at which all ranks have
//!   brought their share; it travels while its workers go on with what their policies say.
//! - A message to or from a server: the link's latency, and its bytes over the link and over the server's network card, which
//!   takes one message after the other.
//! - An evaluation that a policy asks for: a third of a step. The measurements of the run itself take none.
//!
//! Within one instant, all that workers finish comes first, then all that arrives at a server, then the server's deadlines,
//! and then the answers.
//!
//! # Deaths
//! A parameter server goes on without a dead worker ([`Coordinator::lost`](crate::policy::Coordinator::lost)): what it had
//! pushed and nobody had applied is dropped. An exchange cannot: as in a real run, it ends with
//! [`PeerLost`](crate::Error::PeerLost), unless [`Deaths::LeaveSurvivors`] is asked for.

mod builtin;
mod cluster;
mod command;
mod compare;
mod exchange;
mod file;
mod flags;
mod metrics;
mod network;
mod options;
mod progress;
mod queue;
mod record;
mod rounds;
mod serve;
mod service;
mod setting;
mod simulation;
mod step_time;
mod watch;
mod wire;
mod worker;

pub use builtin::{CLUSTER_NAMES, cluster_text};
pub use cluster::{ServerPlace, SimCluster};
pub use command::command;
pub use flags::{Flags, OnDeath};
pub use options::{Deaths, Limits, SimOptions};
pub use record::{EvaluationRecord, Record, TraceEntry, WorkerRecord};
pub use simulation::Simulation;
pub use step_time::{Jitter, Pause, StepSeconds, WorkerBehaviour};
pub use watch::{SimExchange, SimPull, SimPush, SimStep, Unwatched, Watch};
