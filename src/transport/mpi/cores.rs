//! Whether every rank of a host has a processor core of its own.

use crate::transport::{Peer, Rank};
use mpi::topology::SimpleCommunicator;
use mpi::traits::CommunicatorCollectives;

/// Words of a set of cores: what Linux has by default.
const WORDS: usize = rustix::thread::CpuSet::MAX_CPU / 64;

/// All ranks call it. What counts is the cores that the ranks of this rank's host may use together: a launcher may have bound
/// each to one.
pub(super) fn suffice(communicator: &SimpleCommunicator, peers: &[Peer], rank: Rank) -> bool {
    let mut own = [0u64; WORDS];
    // Unknown cores are no cores: ranks that have to share are the careful assumption.
    if let Ok(cores) = rustix::thread::sched_getaffinity(None) {
        for core in (0..WORDS * 64).filter(|&core| cores.is_set(core)) {
            own[core / 64] |= 1 << (core % 64);
        }
    }
    let mut all = vec![0u64; WORDS * peers.len()];
    communicator.all_gather_into(&own[..], &mut all[..]);
    let on_host = |(_, peer): &(&[u64], &Peer)| peer.host == peers[rank].host;
    let (mut ranks, mut union) = (0, [0u64; WORDS]);
    for (cores, _) in all.chunks(WORDS).zip(peers).filter(on_host) {
        ranks += 1;
        union.iter_mut().zip(cores).for_each(|(union, cores)| *union |= cores);
    }
    ranks <= union.iter().map(|word| word.count_ones()).sum::<u32>()
}
