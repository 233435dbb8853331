//! One message per failure: which rank speaks when several fail of the same cause.

use crate::error::{Error, Result};
use crate::transport::{Peer, Rank, SharedPage};
use mpi::topology::SimpleCommunicator;
use mpi::traits::CommunicatorCollectives;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A word that the ranks of a host share: who has spoken. Ranks that fail cannot ask each other any more.
pub(super) struct Speaker {
    page: Option<SharedPage>,
    host: String,
    /// Rank 0 is on another host.
    is_remote: bool,
}

/// Longer than a launcher takes to end a job whose first rank has failed (Open MPI: SIGTERM after one second, SIGKILL
/// after two).
const UNTIL_THE_END: Duration = Duration::from_millis(2500);

impl Speaker {
    /// All ranks call it. Without shared memory every rank speaks for itself.
    pub(super) fn establish(communicator: &SimpleCommunicator, peers: &[Peer], rank: Rank) -> Self {
        const RECORD: usize = 256;
        let leader = peers.iter().position(|peer| peer.host == peers[rank].host).unwrap_or(rank);
        let made = (leader == rank).then(|| SharedPage::make(1).ok()).flatten();
        let mut record = [0u8; RECORD];
        if let Some((_, name)) = &made {
            let name = name.as_os_str().as_encoded_bytes();
            if name.len() < RECORD {
                record[..name.len()].copy_from_slice(name);
            }
        }
        let mut records = vec![0u8; RECORD * peers.len()];
        communicator.all_gather_into(&record[..], &mut records[..]);
        let (page, name) = match made {
            Some((page, name)) => (Some(page), Some(name)),
            None => {
                let record = &records[leader * RECORD..][..RECORD];
                let name = record.split(|&byte| byte == 0).next().unwrap_or_default();
                let open = |name: &str| -> Result<SharedPage> { SharedPage::open(Path::new(name), 1) };
                (std::str::from_utf8(name).ok().and_then(|name| open(name).ok()), None)
            }
        };
        // Everybody has opened it: the name goes, so that nothing can be left behind.
        communicator.barrier();
        drop(name);
        let host = peers[rank].host.clone();
        Speaker { page, is_remote: host != peers[0].host, host }
    }

    /// Whether this rank prints its error. Where it does not, another has printed the same failure, and this returns when the
    /// launcher should have ended the job.
    pub(super) fn may_speak(&self, error: &Error) -> bool {
        // Only a process's own host can see that it is gone.
        let is_witness = matches!(error, Error::PeerLost { peer, .. } if peer.host == self.host);
        if self.is_remote && error.concerns_all() && !is_witness {
            // Hosts share no memory: rank 0's speaks first, and its end ends this rank.
            std::thread::sleep(UNTIL_THE_END);
        }
        let is_first = self.page.as_ref().is_none_or(|page| claim(&page.words()[0]));
        if !is_first {
            std::thread::sleep(2 * UNTIL_THE_END);
        }
        is_first
    }
}

fn claim(spoken: &AtomicU64) -> bool {
    spoken.swap(1, Ordering::Relaxed) == 0
}
