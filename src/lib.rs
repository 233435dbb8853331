//! esync trains one model on many unequal workers.
//!
//! A **policy** decides when each worker computes and when it exchanges, a **collective** decides how an exchange moves
//! through the cluster, a **transport** moves the bytes, and a **learner** does the maths. The four meet only at small
//! traits, so that any policy runs over any collective, on any transport, with any learner.
//!
//! | module | word | knows nothing of |
//! |---|---|---|
//! | [`policy`] | when | transports, collectives, models |
//! | [`collective`] | how | policies, models |
//! | [`transport`] | where | everything above |
//! | [`learner`] | what | clusters |
//! | [`runtime`] | drives policies on the real clock | torch |
//! | [`sim`] | drives the same policies on a virtual clock | transports |

pub mod bench;
pub mod buffer;
pub mod cluster;
pub mod collective;
pub mod data;
pub mod device;
mod error;
mod files;
pub mod info;
pub mod learner;
pub mod plot;
pub mod policy;
pub mod probe;
pub mod reduce;
pub mod runtime;
pub mod sim;
#[cfg(feature = "torch")]
mod synchronizer;
pub mod train;
pub mod transport;

pub use error::{Error, Result};
#[cfg(feature = "torch")]
pub use synchronizer::{Mode, Synchronized, Synchronizer, SynchronizerOptions};
