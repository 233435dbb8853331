//! Buffers that only their owner can address.
//!
//! | form | for | waits |
//! |---|---|---|
//! | `pull` | all-reduce where ranks may read each other's memory | one for each piece of n chunks, and a rendezvous at the end |
//! | `two_shot` | all-reduce where at most two ranks share a core | one for each row, and one |
//! | `windows` | everything | a rendezvous for each piece, and one for its chunks |

mod pull;
mod two_shot;
mod windows;

use super::{Call, Room};
use crate::collective::Kind;
use crate::error::Result;
use crate::transport::{Domain, Round, Session, Wait};

/// A way to reduce private buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Ranks read each other's buffers.
    Pull,
    /// Each rank sums its chunk of every row, in windows.
    TwoShot,
    /// Copies of everything in windows, chunks of which are claimed.
    Windows,
}

/// Below this many bytes the rendezvous at the end of [`Form::Pull`] costs more than its reads can save.
const SHORTEST_PULL: usize = 256 * 1024;

/// The form for an operation, the same on all ranks. `reading_pays` says whether ranks that have a core each should read
/// each other's memory; it is only asked where that may be.
///
/// Two cores, f32 sum, medians of 3 to 5 interleaved processes, `two_shot` against `windows`: 2 ranks 64 KiB 3.6 and 10.8 µs,
/// 1 MiB 53 and 151 µs, 64 MiB 7.3 and 10.9 ms; 3 ranks 1 MiB 179 and 318 µs, 16 MiB 4.7 and 6.1 ms; 6 ranks 277 and 364 µs, 7.7
/// and 7.3 ms; 8 ranks 444 and 472 µs, 11.6 and 10.0 ms. Where many take turns, claimed chunks end sooner than the last of
/// them has had its turn. The kernel reads other processes' memory here at a third of the speed of a copy.
fn choose(
    call: &Call,
    ranks: usize,
    cores: usize,
    reading_pays: impl FnOnce() -> Result<bool>,
) -> Result<Form> {
    if call.operation.kind != Kind::AllReduce || ranks > 2 * cores {
        return Ok(Form::Windows);
    }
    if ranks <= cores && call.bytes() >= SHORTEST_PULL && reading_pays()? {
        return Ok(Form::Pull);
    }
    Ok(Form::TwoShot)
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
            Form::TwoShot => two_shot::run(session, domain, call, room, wait),
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
