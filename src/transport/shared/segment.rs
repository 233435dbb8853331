//! How processes come to share a domain: one makes the segment, the others open it, and all meet in it.

use super::layout::{self, Layout, MAGIC};
use super::memory::{self, Control, Mapping};
use super::{Domain, Scope};
use crate::error::{Error, Result};
use crate::transport::{Deadline, Patience, Peer, Rank, Wait, host_name, stalled};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A control segment that other processes can open by its path, as long as this value lives.
pub(crate) struct Segment {
    path: PathBuf,
    _file: OwnedFd,
    mapping: Mapping,
    /// A named file goes with it.
    name: Option<tempfile::TempPath>,
}

/// A control segment that is mapped here, before its ranks have met.
pub(crate) struct Opened {
    mapping: Mapping,
    layout: Layout,
    file: OwnedFd,
}

impl Segment {
    /// An anonymous segment for `ranks` processes: nothing of it can be left behind.
    pub(crate) fn anonymous(ranks: usize) -> Result<Segment> {
        let layout = layout_for(ranks)?;
        let file = memory::anonymous_file("esync-control", layout.bytes)?;
        let path = memory::path_of(std::process::id(), file.as_raw_fd() as u32);
        // Whether others can open it, as far as one process can tell.
        memory::open(&path)?;
        Segment::begin(path, file, None, &layout, ranks)
    }

    /// A segment with a name in `/dev/shm`, for systems that do not let processes open each other's files. The name goes
    /// when this value is dropped, which should be as soon as all have opened it.
    pub(crate) fn named(ranks: usize) -> Result<Segment> {
        let layout = layout_for(ranks)?;
        let (file, name) = memory::named_file(layout.bytes)?;
        Segment::begin(name.to_path_buf(), file.into(), Some(name), &layout, ranks)
    }

    fn begin(
        path: PathBuf,
        file: OwnedFd,
        name: Option<tempfile::TempPath>,
        layout: &Layout,
        ranks: usize,
    ) -> Result<Segment> {
        let mapping = Mapping::new(&file, layout.bytes)?;
        // SAFETY: new memory of the layout's size, all zero, that nobody else uses yet.
        let header = unsafe { &*mapping.start().cast::<layout::Header>() };
        header.ranks.store(ranks as u32, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Ok(Segment { path, _file: file, mapping, name })
    }

    /// Takes the name away as soon as all ranks have opened it, so that nothing can be left behind.
    pub(crate) fn forget_name(&mut self) {
        // SAFETY: the mapping begins with the header, which holds nothing but atomics.
        let header = unsafe { &*self.mapping.start().cast::<layout::Header>() };
        let all = header.ranks.load(Ordering::Relaxed);
        if self.name.is_some() && header.joined.load(Ordering::Acquire) == all {
            self.name = None;
        }
    }

    /// Where other processes open it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn layout_for(ranks: usize) -> Result<Layout> {
    let most = super::protocol::MOST_RANKS;
    if ranks == 0 || ranks > most {
        return Err(Error::Usage(format!("{ranks} ranks cannot share memory: it takes 1 to {most}")));
    }
    Ok(Layout::new(ranks, true))
}

impl Opened {
    /// Opens the segment of `ranks` processes that another one has made.
    ///
    /// # Errors
    /// `File` if the system does not let it, `Environment` if it is another job's, or another version's.
    pub(crate) fn open(path: &Path, ranks: usize) -> Result<Opened> {
        let layout = layout_for(ranks)?;
        let file = OwnedFd::from(memory::open(path)?);
        let mapping = Mapping::new(file.as_fd(), layout.bytes)?;
        // SAFETY: the mapping has the layout's size, so at least a header, which holds nothing but atomics.
        let header = unsafe { &*mapping.start().cast::<layout::Header>() };
        let (magic, found) = (header.magic.load(Ordering::Acquire), header.ranks.load(Ordering::Relaxed));
        if magic != MAGIC || found as usize != ranks {
            return Err(Error::Environment(format!(
                "{}: the shared memory is not that of a job of {ranks} ranks of this version of esync",
                path.display()
            )));
        }
        Ok(Opened { mapping, layout, file })
    }

    /// Meets the other ranks: returns when all are here.
    ///
    /// # Errors
    /// `Stalled` if they do not come within `limit`.
    pub(crate) fn meet(self, rank: Rank, ranks: usize, limit: Duration) -> Result<Domain> {
        let wait = Wait {
            deadline: Deadline::after(limit),
            patience: Patience::Straggler,
            operation: &"the start over shared memory",
        };
        let Opened { mapping, layout, file } = self;
        let control = Arc::new(Control::Mapped(mapping));
        let nobody = |rank| Peer { rank, host: host_name(), pid: 0 };
        let peers = (0..ranks).map(nobody).collect();
        let mut domain = Domain::new(control, layout, Scope::Processes, rank, peers, 1);
        domain.say_cores();
        domain.header().joined.fetch_add(1, Ordering::AcqRel);
        let words = &domain.member(rank).words.0;
        words.file.store(file.as_raw_fd() as u32, Ordering::Relaxed);
        words.pid.store(std::process::id(), Ordering::Relaxed);
        words.state.store(layout::RUNNING, Ordering::Release);
        let is_absent =
            |rank: &Rank| domain.member(*rank).words.0.state.load(Ordering::Acquire) == layout::ABSENT;
        while (0..ranks).any(|rank| is_absent(&rank)) {
            if wait.deadline.has_passed() {
                let missing = (0..ranks).filter(is_absent).map(nobody).collect();
                return Err(stalled(rank, missing, &wait));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        let pid = |rank: Rank| domain.member(rank).words.0.pid.load(Ordering::Relaxed);
        let pids: Vec<u32> = (0..ranks).map(pid).collect();
        for (peer, &pid) in domain.peers.iter_mut().zip(&pids) {
            peer.pid = pid;
        }
        // Whether registered buffers will be found: each looks at its neighbour's file, and all know the answer.
        let next = (rank + 1) % ranks;
        let neighbours = domain.member(next).words.0.file.load(Ordering::Relaxed);
        if memory::open(&memory::path_of(pids[next], neighbours)).is_err() {
            domain.header().unreachable.store(1, Ordering::Relaxed);
        }
        // How ranks meet depends on it, so all must have the same: each has said its own before it was no longer absent.
        domain.cores = domain.all_cores();
        domain.session()?.meet(&wait)?;
        // Nobody closes its file before its neighbour has looked.
        drop(file);
        Ok(domain)
    }
}

impl Domain {
    /// Adds the processor cores that this process may use to those of all ranks.
    fn say_cores(&self) {
        let Ok(own) = rustix::thread::sched_getaffinity(None) else { return };
        for (index, word) in self.header().cores.iter().enumerate() {
            let bits =
                (0..64).filter(|bit| own.is_set(64 * index + bit)).fold(0, |bits, bit| bits | 1 << bit);
            word.fetch_or(bits, Ordering::Relaxed);
        }
    }

    /// How many cores all ranks together may use.
    fn all_cores(&self) -> usize {
        let counts = self.header().cores.iter().map(|word| word.load(Ordering::Relaxed).count_ones());
        counts.sum::<u32>().max(1) as usize
    }
}
