//! Runs programs as a user does, alone or under `mpirun`, and never for longer than a limit.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Its exit code; 128 + the signal if one ended it.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) seconds: f64,
}

impl Finished {
    /// Panics with all that was printed if the exit code is another.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "after {:.1} s\n--- stdout\n{}\n--- stderr\n{}",
            self.seconds, self.stdout, self.stderr
        );
        self
    }

    /// How many lines of either output contain `text`.
    pub(crate) fn lines_with(&self, text: &str) -> usize {
        self.stdout.lines().chain(self.stderr.lines()).filter(|line| line.contains(text)).count()
    }
}

/// `program` without what a launcher around the tests may have put into the environment.
pub(crate) fn alone(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let launcher = ["OMPI_", "PMIX_", "PMI_", "SLURM_", "ESYNC_"];
        if name.to_str().is_some_and(|name| launcher.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command
}

/// `mpirun` that works as root and with more ranks than cores. What follows `-n` is the caller's.
pub(crate) fn mpirun() -> Command {
    let mut command = alone("mpirun");
    for name in ["ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM", "MCA_rmaps_base_oversubscribe"] {
        command.env(format!("OMPI_{name}"), "1");
    }
    command
}

/// Runs the command to its end, or panics after `limit` seconds, when nothing of its process group is left running.
#[track_caller]
pub(crate) fn finish(command: &mut Command, limit: u64) -> Finished {
    let started = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let stdout = read_all(child.stdout.take().expect("piped"));
    let stderr = read_all(child.stderr.take().expect("piped"));
    let status = loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            break Some(status);
        }
        if started.elapsed() > Duration::from_secs(limit) {
            kill_group(&mut child);
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let seconds = started.elapsed().as_secs_f64();
    let (stdout, stderr) = (stdout.join().expect("a reader"), stderr.join().expect("a reader"));
    let Some(status) = status else {
        panic!("{command:?} did not end within {limit} s\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    };
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
    Finished { code, stdout, stderr, seconds }
}

/// The process of a rank of the job that was started with `marker` in its environment, once it runs.
pub(crate) fn process_of_rank(marker: &str, rank: usize) -> Option<rustix::process::Pid> {
    let rank = format!("OMPI_COMM_WORLD_RANK={rank}");
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let has =
                |wanted: &str| environment.split(|&byte| byte == 0).any(|entry| entry == wanted.as_bytes());
            if has(marker) && has(&rank) {
                return entry.file_name().to_str()?.parse().ok().and_then(rustix::process::Pid::from_raw);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

fn read_all(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was printed before an error is all there is.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// First asks, so that mpirun can end its ranks, whose process groups are their own.
fn kill_group(child: &mut Child) {
    use rustix::process::{Pid, Signal, kill_process_group};
    let group = Pid::from_child(child);
    for (signal, pause) in [(Signal::TERM, 3000), (Signal::KILL, 200)] {
        // An error says that nobody is left.
        let _ = kill_process_group(group, signal);
        let until = Instant::now() + Duration::from_millis(pause);
        while Instant::now() < until && matches!(child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
