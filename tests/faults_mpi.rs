//! Real processes that die, stop, or are told to: every job ends in time, says why once, and leaves nothing behind.
#![cfg(all(feature = "mpi", feature = "torch"))]

mod launcher;

use launcher::{Folder, Job, Outcome, assert_no_page_left, check_results, mpirun, shared_pages, start};
use rustix::process::Signal;
use std::path::PathBuf;
use std::time::Instant;

/// A job of four ranks that would train for minutes, and the pages of shared memory before it.
struct Training {
    folder: Folder,
    job: Job,
    pages: Vec<PathBuf>,
}

impl Training {
    fn begin(mode: &str) -> Self {
        Self::begin_on(mode, ["", ""])
    }

    /// Two ranks are started with each of these flags of mpirun.
    fn begin_on(mode: &str, launcher_flags: [&str; 2]) -> Self {
        let (folder, pages) = (Folder::new(), shared_pages());
        let flags = format!(
            "--mode {mode} --slow 3:20ms --timeout 3s --max-seconds 100 --report-every 50ms {}",
            folder.out()
        );
        let mut job = start(mpirun(&launcher_flags.map(|launcher_flags| (2, launcher_flags, &*flags))));
        job.wait_until_training();
        Training { folder, job, pages }
    }

    /// Waits for the end. Also returns the seconds until then.
    fn end(self) -> (Folder, Outcome, f64) {
        let since = Instant::now();
        // Also sees to it that no process is left.
        let outcome = self.job.finish();
        let seconds = since.elapsed().as_secs_f64();
        assert_no_page_left(&self.pages);
        (self.folder, outcome, seconds)
    }
}

/// The one message names the victim as a person would look for it.
#[track_caller]
fn assert_names(outcome: &Outcome, rank: usize, pid: u32, words: &[&str]) {
    let messages = outcome.messages();
    assert_eq!(messages.len(), 1, "{}", outcome.stderr);
    for word in [&[&*format!("rank {rank} (host "), &*format!("pid {pid})")], words].concat() {
        assert!(messages[0].contains(word), "{word:?} is missing in: {}", messages[0]);
    }
}

fn killed(training: Training) {
    let pid = training.job.signal_rank(2, Signal::KILL);
    let (folder, outcome, seconds) = training.end();
    assert!([5, 137].contains(&outcome.code), "{outcome:#?}");
    assert!(seconds < 5.0, "{seconds} s");
    assert_names(&outcome, 2, pid, &["lost during", "no longer exists"]);
    assert!(!folder.path("out/summary.json").exists());
}

fn stopped(mode: &str) {
    let training = Training::begin(mode);
    let pid = training.job.signal_rank(2, Signal::STOP);
    let (folder, outcome, seconds) = training.end();
    assert_eq!(outcome.code, 6, "{outcome:#?}");
    assert!(seconds < 3.0 + 5.0, "{seconds} s");
    assert_names(&outcome, 2, pid, &["(operation ", "is stopped", &format!("kill -CONT {pid}")]);
    assert!(!folder.path("out/summary.json").exists());
}

fn asked_to_end(mode: &str, signal: Signal, code: i32, stopped_by: &str) {
    let training = Training::begin(mode);
    training.job.signal(signal);
    let (folder, outcome, seconds) = training.end();
    assert_eq!((outcome.code, outcome.messages().len()), (code, 0), "{outcome:#?}");
    assert!(seconds < 5.0, "{seconds} s");
    assert_eq!(folder.summary()["stopped_by"], stopped_by);
    check_results(&folder, 4, mode);
}

/// At a parameter server the others go on, until the launcher has noticed and tells them to end: then they miss the dead one. A
/// dead server is missed with the next push.
fn killed_at_a_server(mode: &str, victim: usize) {
    let training = Training::begin(mode);
    let pid = training.job.signal_rank(victim, Signal::KILL);
    let (folder, outcome, seconds) = training.end();
    assert!([5, 137].contains(&outcome.code), "{mode}: {outcome:#?}");
    assert!(seconds < 3.0 + 5.0, "{mode}: {seconds} s");
    assert_names(&outcome, victim, pid, &["lost during"]);
    assert!(!folder.path("out/summary.json").exists());
}

#[test]
fn a_killed_rank_ends_an_esync_job() {
    killed(Training::begin("esync"));
}

#[test]
fn a_rank_killed_on_another_host_is_named() {
    killed(Training::begin_on("esync", ["-x ESYNC_HOST=a", "-x ESYNC_HOST=b"]));
}

#[test]
fn a_killed_rank_ends_a_sync_job() {
    killed(Training::begin("sync"));
}

#[test]
fn a_killed_worker_ends_a_job_at_a_parameter_server() {
    for mode in ["wbsp", "ssp"] {
        killed_at_a_server(mode, 2);
    }
}

#[test]
fn a_killed_server_ends_its_job() {
    killed_at_a_server("async", 0);
}

#[test]
fn a_stopped_rank_ends_an_esync_job_at_the_deadline() {
    stopped("esync");
}

#[test]
fn a_stopped_rank_ends_a_sync_job_at_the_deadline() {
    stopped("sync");
}

#[test]
fn a_request_ends_a_job_after_the_round() {
    asked_to_end("esync", Signal::USR1, 0, "request");
    asked_to_end("sync", Signal::USR1, 0, "request");
}

// mpirun has an exit code of its own for these.
#[test]
fn an_interrupted_launcher_ends_a_job_in_order() {
    asked_to_end("esync", Signal::INT, 1, "interrupt");
    asked_to_end("sync", Signal::TERM, 1, "interrupt");
}
