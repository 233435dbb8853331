//! `esync-bench`'s inside: measures collectives and checks every element of their results.
//!
//! - A time is the maximum over ranks of one iteration; median, minimum, 95th and 99th percentile are over iterations.
//! - A barrier, outside the timed part, precedes every iteration, and so does refilling the vector: repeating an operation
//!   on its own results would grow them without end, and flatter whoever still has them in the cache.
//! - Checks use small integers, whose results are exact in any order; a hash over the results of random numbers shows
//!   whether two runs, transports or algorithms agree in every bit.
//! - `algbw` is bytes / time, `busbw` the same × the operation's factor, as nccl-tests defines them; bytes are those of
//!   one rank's whole vector, GB is 10⁹ bytes.

mod flags;
mod measure;
mod numbers;
mod output;
mod record;
mod sizes;
mod sweep;

pub use flags::{Flags, Format};
pub use record::{Record, Times};
pub use sizes::{ByteSize, sweep_of};
pub use sweep::{Outcome, bench};
