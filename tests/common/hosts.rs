//! Threads that call themselves different hosts.

use esync::Result;
use esync::transport::{Peer, Rank, Tag, Ticket, Transport, Wait, threads::Threads};

/// A group of threads, cut into hosts of given sizes.
pub(crate) struct OnHosts {
    inner: Threads,
    peers: Vec<Peer>,
}

impl OnHosts {
    pub(crate) fn new(inner: Threads, sizes: &[usize]) -> Self {
        let hosts = sizes.iter().enumerate().flat_map(|(host, size)| vec![host; *size]);
        let peer = |(rank, host)| Peer { host: format!("host{host}"), ..inner.peer(rank).clone() };
        let peers = hosts.enumerate().map(peer).collect();
        OnHosts { inner, peers }
    }
}

impl Transport for OnHosts {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn peer(&self, rank: Rank) -> &Peer {
        &self.peers[rank]
    }

    unsafe fn post_send(&self, to: Rank, tag: Tag, bytes: *const u8, len: usize) -> Result<Ticket> {
        // SAFETY: the caller's promise is the one that the inner transport asks for.
        unsafe { self.inner.post_send(to, tag, bytes, len) }
    }

    unsafe fn post_recv(&self, from: Rank, tag: Tag, into: *mut u8, len: usize) -> Result<Ticket> {
        // SAFETY: the caller's promise is the one that the inner transport asks for.
        unsafe { self.inner.post_recv(from, tag, into, len) }
    }

    fn wait(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<()> {
        self.inner.wait(tickets, wait)
    }

    fn poll(&self, tickets: &mut [Option<Ticket>], wait: &Wait<'_>) -> Result<bool> {
        self.inner.poll(tickets, wait)
    }

    fn abandon(&self, tickets: &mut [Option<Ticket>]) -> bool {
        self.inner.abandon(tickets)
    }

    fn poison(&self, why: &str) {
        self.inner.poison(why);
    }
}
