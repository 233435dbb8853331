//! Who a rank is, and what its own host knows about its process.

use super::Rank;
use std::fmt;

/// A rank as a person would look for it: number, host and process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its number.
    pub rank: Rank,
    /// Its host's name (UTS name, or `ESYNC_HOST`).
    pub host: String,
    /// Its process; 0 for a simulated rank, which has none.
    pub pid: u32,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            // A simulated one.
            0 => write!(f, "rank {} (host {})", self.rank, self.host),
            pid => write!(f, "rank {} (host {}, pid {pid})", self.rank, self.host),
        }
    }
}

/// What a host can tell about one of its own processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcessState {
    Running,
    Stopped,
    Gone,
    Unknown,
}

impl Peer {
    /// This process under the given rank.
    pub fn this_process(rank: Rank) -> Self {
        Peer { rank, host: host_name(), pid: std::process::id() }
    }

    /// What `/proc` says about the peer, if it is on this host.
    pub(crate) fn process_state(&self) -> ProcessState {
        if self.host != host_name() {
            return ProcessState::Unknown;
        }
        match std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            // The state letter follows the command's name, which may itself hold spaces and parentheses.
            Ok(stat) => match stat.rsplit(") ").next().and_then(|rest| rest.chars().next()) {
                Some('T' | 't') => ProcessState::Stopped,
                Some('Z' | 'X') => ProcessState::Gone,
                Some(_) => ProcessState::Running,
                None => ProcessState::Unknown,
            },
            Err(_) if std::path::Path::new("/proc/self/stat").exists() => ProcessState::Gone,
            Err(_) => ProcessState::Unknown,
        }
    }
}

/// The name by which ranks find out whether they share a host: `ESYNC_HOST`, else the system's UTS host name.
pub fn host_name() -> String {
    std::env::var("ESYNC_HOST")
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// The error for a wait whose deadline passed: says what the host knows about those who are missing.
pub(crate) fn stalled(waiting: Rank, missing: Vec<Peer>, wait: &super::Wait<'_>) -> crate::Error {
    let mut hint = String::from("raise --timeout if a step may take this long");
    for peer in &missing {
        match peer.process_state() {
            ProcessState::Gone => {
                return crate::Error::PeerLost {
                    peer: peer.clone(),
                    operation: wait.operation.to_string(),
                    what: "its process no longer exists".into(),
                };
            }
            ProcessState::Stopped => {
                hint = format!(
                    "the process of rank {} is stopped; continue it with `kill -CONT {}`",
                    peer.rank, peer.pid
                );
            }
            ProcessState::Running | ProcessState::Unknown => {}
        }
    }
    crate::Error::Stalled {
        waiting,
        missing,
        operation: wait.operation.to_string(),
        seconds: wait.deadline.elapsed_seconds(),
        hint,
    }
}
