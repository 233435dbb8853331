//! `esync-bench`'s inside: measures collectives and checks every element of their results.
//!
//! - A time is the maximum over ranks of one iteration; median, minimum, 95th and 99th percentile are over iterations.
//! - A barrier, outside the timed part, precedes every iteration, and so does rewriting the vector: repeating an operation
//!   on vectors that nobody touched flatters whoever still has them in the cache. Both can be had otherwise (`--timing`,
//!   `--refresh`).
//! - All rows of a size take turns, and so does the host's ceiling, so that they compare although the machine is never
//!   quiet. What other programs did meanwhile is recorded.
//! - Checks use small integers, whose results are exact in any order; a hash over the results of random numbers shows
//!   whether two runs, transports or algorithms agree in every bit.
//! - `algbw` is bytes / time, `busbw` the same × the operation's factor, as nccl-tests defines them; bytes are those of
//!   one rank's whole vector, GB is 10⁹ bytes.

mod ceiling;
mod choices;
mod draw;
mod explain;
mod flags;
#[cfg(feature = "cuda")]
mod gpu_copy;
mod host;
#[cfg(feature = "cuda")]
pub mod kernels;
mod measure;
mod numbers;
mod output;
mod record;
mod rounds;
mod size;
mod sizes;
mod sweep;
mod table;
mod vectors;

pub use choices::{Buffers, Format, Placement, Refresh, Switch, Timing};
pub use flags::Flags;
pub use record::{Record, Times};
pub use sizes::{ByteSize, Step, sweep_of};
pub use sweep::{Outcome, bench};
