//! Ranks as processes without a launcher: this program starts itself several times, and watches over what it started.

use crate::error::{Error, Result};
use crate::transport::shm::Shm;
use crate::transport::{SHM_PARENT, SHM_RANK, SHM_RANKS, SHM_SEGMENT, Segment};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// What a process finds in its environment if esync has started it.
pub(super) struct Started {
    segment: PathBuf,
    rank: usize,
    ranks: usize,
}

impl Started {
    pub(super) fn by_esync() -> Result<Option<Started>> {
        let Some(segment) = std::env::var_os(SHM_SEGMENT) else { return Ok(None) };
        let number = |name: &str| -> Result<usize> {
            let text = std::env::var(name).unwrap_or_default();
            text.parse().map_err(|_| {
                Error::Environment(format!(
                    "{name} is `{text}`; it is set by esync itself: unset {SHM_SEGMENT}"
                ))
            })
        };
        // With its starter this process ends too, even if nobody can tell it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|e| Error::Environment(format!("cannot ask to end with the starter: {e}")))?;
        let starter = number(SHM_PARENT)?;
        if rustix::process::getppid().is_none_or(|pid| pid.as_raw_nonzero().get() as usize != starter) {
            return Err(Error::Environment("the process that started this rank is gone".into()));
        }
        Ok(Some(Started { segment: segment.into(), rank: number(SHM_RANK)?, ranks: number(SHM_RANKS)? }))
    }

    pub(super) fn join(&self) -> Result<Shm> {
        Shm::join(&self.segment, self.rank, self.ranks)
    }
}

/// After a failure the others find out by themselves; then they are asked to end, and then made to.
const UNTIL_ASKED: Duration = Duration::from_secs(2);
const UNTIL_MADE: Duration = Duration::from_secs(4);

/// Starts `ranks` processes of this program with its own arguments, watches over them, and ends with the first failure's
/// exit code, or 0. Returns only if they cannot be started.
pub(super) fn run<R>(ranks: usize) -> Result<R> {
    let cannot = |e: std::io::Error| Error::Environment(format!("cannot start {ranks} processes: {e}"));
    let mut requests = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGUSR1]).map_err(cannot)?;
    let mut segment = Segment::anonymous(ranks).or_else(|_| Segment::named(ranks))?;
    let program = std::env::current_exe().map_err(cannot)?;
    let mut children = Children::default();
    for rank in 0..ranks {
        let mut command = Command::new(&program);
        command.args(std::env::args_os().skip(1)).env(SHM_SEGMENT, segment.path());
        command.env(SHM_RANKS, ranks.to_string()).env(SHM_RANK, rank.to_string());
        command.env(SHM_PARENT, std::process::id().to_string());
        // A process group of its own, so that a terminal's Ctrl-C comes once, through this process.
        children.running.push(command.process_group(0).spawn().map_err(cannot)?);
    }
    let mut failed: Option<Instant> = None;
    let mut code = 0;
    while !children.running.is_empty() {
        for request in requests.pending() {
            if let Some(signal) = Signal::from_named_raw(request) {
                children.signal(signal);
            }
        }
        for status in children.reap().map_err(cannot)? {
            if !status.success() && failed.is_none() {
                failed = Some(Instant::now());
                code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
            }
        }
        segment.forget_name();
        match failed.map(|since| since.elapsed()) {
            Some(elapsed) if elapsed > UNTIL_MADE => children.signal(Signal::KILL),
            Some(elapsed) if elapsed > UNTIL_ASKED => children.signal(Signal::TERM),
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(segment);
    std::process::exit(code)
}

/// The processes that have not ended. Dropping it ends them.
#[derive(Default)]
struct Children {
    running: Vec<Child>,
}

impl Children {
    fn signal(&self, signal: Signal) {
        for child in &self.running {
            // An error says that it has just ended.
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    /// Those that have ended since the last call.
    fn reap(&mut self) -> std::io::Result<Vec<ExitStatus>> {
        let mut ended = Vec::new();
        let mut index = 0;
        while index < self.running.len() {
            match self.running[index].try_wait()? {
                Some(_) => ended.push(self.running.swap_remove(index).wait()?),
                None => index += 1,
            }
        }
        Ok(ended)
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        for child in &mut self.running {
            let _ = child.wait();
        }
    }
}
