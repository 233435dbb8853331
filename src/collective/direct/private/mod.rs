//! Buffers that only their owner can address.
//!
//! | form | for | waits |
//! |---|---|---|
//! | `pull` | all-reduce where ranks may read each other's memory | one for each piece of n chunks, and a rendezvous at the end |
//! | `tree` | all-reduce in the canonical order, with a core for each rank | one for each window |
//! | `windows` | everything | a rendezvous for each window, and one for its chunks |

mod pull;
mod tree;
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
    /// The canonical tree, in the windows.
    Tree,
    /// Copies of everything in windows, chunks of which are claimed.
    Windows,
}

/// Below this many bytes the rendezvous at the end of [`Form::Pull`] costs more than its reads can save.
const SHORTEST_PULL: usize = 256 * 1024;

/// The form for an operation, the same on all ranks. `reading_pays` says whether ranks that have a core each should read
/// each other's memory; it is only asked where that may be.
///
/// Two cores, f32 sum, medians of interleaved processes, `tree` against `windows` (and `pull`): 2 ranks 64 KiB 4.3 and 5.6 µs
/// (16), 1 MiB 62 and 81 µs (142), 64 MiB 7.2 and 7.7 ms (13.3); 4 ranks 22 and 20 µs, 198 and 192 µs, 21 and 18 ms; 8 ranks 65
/// and 54 µs, 571 and 510 µs, 52 and 52 ms. The one wait of a window that `tree` has is for one rank after the other, which
/// costs where they have to take turns on the cores. The kernel reads other processes' memory here at a third of the speed
/// of a copy.
fn choose(
    call: &Call,
    ranks: usize,
    cores: usize,
    reading_pays: impl FnOnce() -> Result<bool>,
) -> Result<Form> {
    if call.operation.kind != Kind::AllReduce {
        return Ok(Form::Windows);
    }
    if ranks <= cores && call.bytes() >= SHORTEST_PULL && reading_pays()? {
        return Ok(Form::Pull);
    }
    let takes_turns = ranks > cores;
    Ok(if call.operation.order == Order::Rank || takes_turns { Form::Windows } else { Form::Tree })
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
    let form = choose(call, domain.size(), domain.cores(), || session.reading_pays(wait))?;
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
            Form::Tree => tree::run(session, domain, call, wait),
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
