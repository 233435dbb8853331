//! Buffers that only their owner can address.
//!
//! | form | for | waits |
//! |---|---|---|
//! | `pull` | all-reduce where ranks may read each other's memory | one for each piece of n chunks, and a rendezvous at the end |
//! | `chain` | all-reduce in the fastest order, or with few ranks | one for each window |
//! | `windows` | everything | a rendezvous for each window, and one for its chunks |

mod chain;
mod pull;
mod windows;

use super::{Call, Room};
use crate::collective::{Kind, Order};
use crate::error::Result;
use crate::transport::{Domain, Round, Session, Wait};

/// A way to reduce private buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Ranks read each other's buffers.
    Pull,
    /// Accumulators, one for each group of ranks.
    Chain {
        /// As many as ranks: then the accumulators are the operands, and any order of additions is possible.
        groups: usize,
    },
    /// Copies of everything in windows, chunks of which are claimed.
    Windows,
}

/// Below this many bytes a call of the kernel for each chunk costs more than it saves.
const SHORTEST_PULL: usize = 256 * 1024;

/// The form for an operation, the same on all ranks.
fn choose(call: &Call, ranks: usize, cores: usize, can_read_peers: bool) -> Form {
    if call.operation.kind != Kind::AllReduce {
        return Form::Windows;
    }
    if ranks > cores && call.operation.order == Order::Fastest {
        return Form::Chain { groups: cores.max(1) };
    }
    if can_read_peers && call.bytes() >= SHORTEST_PULL {
        return Form::Pull;
    }
    if ranks <= cores { Form::Chain { groups: ranks } } else { Form::Windows }
}

/// Runs an operation in which some rank's buffer is private.
///
/// # Errors
/// `Stalled`, `PeerLost`, `Environment`; then the domain has failed for this rank.
///
/// # Safety
/// The call's input and output are good for `call.count` elements, and all ranks are in the same call.
pub(super) unsafe fn run(
    session: &mut Session<'_>,
    round: &Round,
    domain: &Domain,
    call: &Call,
    room: &mut Room,
    wait: &Wait<'_>,
) -> Result<()> {
    room.look_up(session, round, domain, wait)?;
    let can_read_peers = call.operation.kind == Kind::AllReduce
        && call.bytes() >= SHORTEST_PULL
        && session.can_read_peers(wait)?;
    let form = choose(call, domain.size(), domain.cores(), can_read_peers);
    // SAFETY: the caller's promise.
    unsafe { run_as(form, session, domain, call, room, wait) }
}

/// Runs an operation in a given form. Where everybody's buffers are was looked up.
///
/// # Safety
/// As [`run`].
unsafe fn run_as(
    form: Form,
    session: &mut Session<'_>,
    domain: &Domain,
    call: &Call,
    room: &mut Room,
    wait: &Wait<'_>,
) -> Result<()> {
    // SAFETY: the caller's promise, for all of them.
    unsafe {
        match form {
            Form::Pull => pull::run(session, domain, call, room, wait),
            Form::Chain { groups } => chain::run(session, domain, call, groups, room, wait),
            Form::Windows => windows::run(session, domain, call, room, wait),
        }
    }
}

impl Room {
    /// Notes where all ranks have their buffers.
    fn look_up(
        &mut self,
        session: &mut Session<'_>,
        round: &Round,
        domain: &Domain,
        wait: &Wait<'_>,
    ) -> Result<()> {
        self.whereabouts.clear();
        for rank in 0..domain.size() {
            match session.whereabouts(round, rank, wait) {
                Ok(buffers) => self.whereabouts.push(buffers),
                Err(error) => return Err(session.give_up(round, 0, error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
