//! Drives policies on the real clock, over a communicator.
//!
//! A [`Worker`] owns one rank's policy, its line to the state server and the buffers of its exchanges. The training loop
//! asks it what to do next, and tells it about every step.

mod channel;
mod control;
mod exchange;
pub mod server;
mod socket;
mod stopwatch;
mod worker;

pub use control::{Established, Mechanism, StateServer, establish};
pub(crate) use exchange::Ranges;
pub use exchange::{Exchange, ExchangeOptions, Fragments};
pub use stopwatch::{Activity, Stopwatch};
pub use worker::{
    ExchangeReport, Next, Observed, Observer, PullReport, PushReport, Silent, Step, Totals, Worker,
};
