//! How workers reach ESync's state server.
//!
//! | where | mechanism | a query costs |
//! |---|---|---|
//! | all ranks on one host | a shared page: every process reads all rows and runs the same pure decision | under a microsecond |
//! | several hosts | a socket to a thread on rank 0 | a round trip |
//! | neither can be had | none: every rank plans its round ahead from the figures of the last exchange | nothing |
//!
//! `benches/state_server.rs` measures the first two.

mod page;
mod socket;

use crate::collective::Communicator;
use crate::error::{Error, Result};
use crate::policy::esync::{Planning, Settings};
use crate::policy::{Reason, Reply, Report};

/// A worker's line to the state server.
pub trait StateServer: Send {
    /// What runs, as the program's first lines name it.
    fn name(&self) -> &'static str;

    /// Tells the server, and returns what to do and why.
    ///
    /// # Errors
    /// `PeerLost` or `Stalled` if the server cannot be reached any more.
    fn ask(&mut self, report: &Report) -> Result<(Reply, Reason)>;
}

/// Which mechanism to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mechanism {
    /// The cheapest that this cluster allows.
    #[default]
    Auto,
    /// The shared page of one host.
    Page,
    /// The socket to rank 0.
    Socket,
}

/// The line to the state server, or why there is none.
pub struct Established {
    /// `None` where planning ahead has to do.
    pub state_server: Option<Box<dyn StateServer>>,
    /// A sentence for the user if it is not what was asked for.
    pub notice: Option<String>,
}

/// Sets up the state server. Every rank must call it, with all ranks' seconds for a warm-up step in rank order.
///
/// # Errors
/// Those of the communicator. A mechanism that cannot be had is no error: see [`Established::notice`].
pub fn establish(
    communicator: &mut Communicator,
    settings: &Settings,
    step_seconds: &[f64],
    mechanism: Mechanism,
) -> Result<Established> {
    if settings.planning == Planning::Ahead {
        return Ok(Established { state_server: None, notice: None });
    }
    let one_host = communicator.topology().host_count() == 1;
    let mut notice = None;
    if mechanism != Mechanism::Socket && one_host {
        match page::PageTable::establish(communicator, settings, step_seconds) {
            Ok(page) => return Ok(Established { state_server: Some(Box::new(page)), notice }),
            Err(Error::Environment(why)) => {
                notice = Some(format!("{why}; the state server is a socket instead"))
            }
            Err(error) => return Err(error),
        }
    }
    match socket::Client::establish(communicator, settings, step_seconds) {
        Ok(client) => Ok(Established { state_server: Some(Box::new(client)), notice }),
        Err(Error::Environment(why)) => {
            let notice =
                format!("{why}; every worker plans its rounds ahead instead of asking the state server");
            Ok(Established { state_server: None, notice: Some(notice) })
        }
        Err(error) => Err(error),
    }
}

/// All ranks learn whether every rank succeeded: the result on success, the first rank's complaint otherwise.
pub(super) fn all_or_none<T>(communicator: &mut Communicator, own: Result<T>, what: &str) -> Result<T> {
    let complaint = own.as_ref().err().map(Error::to_string).unwrap_or_default();
    let complaints = communicator.gather_bytes(complaint.as_bytes())?;
    if let Some((rank, complaint)) = complaints.iter().enumerate().find(|(_, text)| !text.is_empty()) {
        return Err(Error::Environment(format!(
            "rank {rank} {what}: {}",
            String::from_utf8_lossy(complaint)
        )));
    }
    own
}

#[cfg(test)]
mod tests;
