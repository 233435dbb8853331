//! Runs `esync-train`, alone or under `mpirun`, with a hard time limit, and leaves no process behind.
#![allow(dead_code, reason = "each test program uses its own part")]

use rustix::process::{Pid, Signal, kill_process, setsid};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Nothing in these tests takes longer, on however busy a machine.
const HARD_LIMIT: Duration = Duration::from_secs(60);

/// `esync-train` with these flags, in an environment that says nothing to it.
pub(crate) fn esync_train(flags: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esync-train"));
    quiet_environment(&mut command);
    command.args(flags.split_whitespace());
    command
}

/// `mpirun` with several groups of ranks: how many, mpirun's own flags for them, those of `esync-train`.
pub(crate) fn mpirun(groups: &[(usize, &str, &str)]) -> Command {
    let mut command = Command::new("mpirun");
    quiet_environment(&mut command);
    for (index, (ranks, launcher_flags, flags)) in groups.iter().enumerate() {
        if index > 0 {
            command.arg(":");
        }
        command.args(["-n", &ranks.to_string()]).args(launcher_flags.split_whitespace());
        command.arg(env!("CARGO_BIN_EXE_esync-train")).args(flags.split_whitespace());
    }
    command
}

fn quiet_environment(command: &mut Command) {
    let ours = ["ESYNC_", "OMPI_", "PMI", "SLURM_", "OMP_"];
    for (name, _) in std::env::vars_os() {
        if ours.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    // What Open MPI wants from root, and with more ranks than cores; others do not know these names.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.env("OMPI_MCA_rmaps_base_oversubscribe", "1");
}

/// A running program and all its children.
pub(crate) struct Job {
    child: Child,
    /// The program leads a session of its own, which its children cannot leave by becoming orphans.
    session: u32,
    started: Instant,
    readers: Option<[JoinHandle<()>; 2]>,
    output: [Arc<Mutex<Vec<u8>>>; 2],
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The exit code; 128 + n after signal n.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) seconds: f64,
}

pub(crate) fn start(mut command: Command) -> Job {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: between fork and exec, only a system call.
    unsafe { command.pre_exec(|| setsid().map(drop).map_err(Into::into)) };
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let output: [Arc<Mutex<Vec<u8>>>; 2] = Default::default();
    let readers = [
        read_in_background(child.stdout.take().unwrap(), output[0].clone()),
        read_in_background(child.stderr.take().unwrap(), output[1].clone()),
    ];
    Job { session: child.id(), child, started: Instant::now(), readers: Some(readers), output }
}

/// Runs a program to its end.
pub(crate) fn run(command: Command) -> Outcome {
    start(command).finish()
}

fn read_in_background(mut from: impl Read + Send + 'static, into: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            into.lock().unwrap().extend(&buffer[..count]);
        }
    })
}

impl Job {
    /// Waits for the end; kills what is left, and fails, at the hard limit.
    pub(crate) fn finish(mut self) -> Outcome {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.started.elapsed() > HARD_LIMIT {
                self.kill_all();
                panic!("not finished after {HARD_LIMIT:?}: {}\n{}", self.stdout(), self.text(1));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let seconds = self.started.elapsed().as_secs_f64();
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
        let patience = Instant::now();
        while !self.alive().is_empty() {
            assert!(
                patience.elapsed() < Duration::from_secs(5),
                "processes are left behind: {:?}",
                self.alive()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        self.readers.take().into_iter().flatten().for_each(|reader| reader.join().unwrap());
        Outcome { code, stdout: self.stdout(), stderr: self.text(1), seconds }
    }

    pub(crate) fn stdout(&self) -> String {
        self.text(0)
    }

    fn text(&self, which: usize) -> String {
        String::from_utf8_lossy(&self.output[which].lock().unwrap()).into_owned()
    }

    /// Returns when the program prints its second report line: training is under way then.
    pub(crate) fn wait_until_training(&mut self) {
        let is_report = |line: &&str| line.contains(" round ") || line.contains(" push ");
        while self.stdout().lines().filter(is_report).count() < 2 {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended too early: {}\n{}", self.stdout(), self.text(1));
            assert!(self.started.elapsed() < HARD_LIMIT, "it does not train: {}", self.stdout());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal to the program itself.
    pub(crate) fn signal(&self, signal: Signal) {
        send(self.session, signal);
    }

    /// Sends a signal to one rank of an MPI job. Returns its process.
    pub(crate) fn signal_rank(&self, rank: usize, signal: Signal) -> u32 {
        let variable = format!("OMPI_COMM_WORLD_RANK={rank}");
        let is_rank = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|&byte| byte == 0).any(|entry| entry == variable.as_bytes())
        };
        let pids: Vec<u32> = self.alive().into_iter().filter(is_rank).collect();
        let [pid] = pids[..] else { panic!("rank {rank} is processes {pids:?}") };
        send(pid, signal);
        pid
    }

    /// The session's processes that have not ended.
    fn alive(&self) -> Vec<u32> {
        let is_ours = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // After the command in parentheses: state, parent, process group, session.
            let fields: Vec<&str> =
                stat.rsplit(") ").next().unwrap_or_default().split_whitespace().take(4).collect();
            fields.len() == 4 && fields[3] == self.session.to_string() && !["Z", "X"].contains(&fields[0])
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
    }

    fn kill_all(&mut self) {
        // The launcher may start others while it is looked for: until nobody is left.
        for _ in 0..100 {
            let alive = self.alive();
            if alive.is_empty() {
                break;
            }
            alive.into_iter().for_each(|pid| send(pid, Signal::KILL));
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.wait();
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.kill_all();
    }
}

fn send(pid: u32, signal: Signal) {
    // It may have ended in the meantime.
    let _ = Pid::from_raw(pid as i32).map(|pid| kill_process(pid, signal));
}

impl Outcome {
    /// The lines by which a program says why it ended.
    pub(crate) fn messages(&self) -> Vec<&str> {
        let is_message =
            |line: &&str| ["esync-train: ", "esync: ", "error: "].iter().any(|p| line.starts_with(p));
        self.stderr.lines().filter(is_message).collect()
    }

    /// It ended with `code` and exactly one message, and said all of `words`.
    #[track_caller]
    pub(crate) fn assert_failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        assert_eq!(self.messages().len(), 1, "one message: {}", self.stderr);
        // clap wraps its lists of values onto the next line.
        let missing: Vec<&&str> = words.iter().filter(|word| !self.stderr.contains(**word)).collect();
        assert!(missing.is_empty(), "{missing:?} is missing in: {}", self.stderr);
    }

    #[track_caller]
    pub(crate) fn assert_done(&self) {
        assert_eq!((self.code, self.messages().len()), (0, 0), "{self:#?}");
    }
}

/// A temporary directory in which a run leaves its results.
pub(crate) struct Folder {
    folder: TempDir,
}

/// How [`Folder::train`] starts the ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Ranks {
    Threads(usize),
    Mpi(usize),
}

impl Folder {
    pub(crate) fn new() -> Self {
        Folder { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The directory `out`, as flags.
    pub(crate) fn out(&self) -> String {
        format!("--out {}", self.path("out").display())
    }

    pub(crate) fn command(&self, ranks: Ranks, flags: &str) -> Command {
        let flags = format!("{flags} {}", self.out());
        match ranks {
            Ranks::Threads(ranks) => esync_train(&format!("--ranks {ranks} {flags}")),
            Ranks::Mpi(ranks) => mpirun(&[(ranks, "", &flags)]),
        }
    }

    pub(crate) fn run(&self, ranks: Ranks, flags: &str) -> Outcome {
        run(self.command(ranks, flags))
    }

    /// Nothing was made at the place of the results.
    #[track_caller]
    pub(crate) fn assert_untouched(&self) {
        assert!(!self.path("out").exists(), "the directory of the results was made");
    }

    pub(crate) fn summary(&self) -> Value {
        let text = fs::read_to_string(self.path("out/summary.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) fn metrics(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("out/metrics.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    pub(crate) fn parameters(&self) -> Parameters {
        Parameters::read(&self.path("out/model.safetensors"))
    }
}

/// Trains in a directory of its own, and returns the directory.
#[track_caller]
pub(crate) fn train(ranks: Ranks, flags: &str) -> Folder {
    let folder = Folder::new();
    folder.run(ranks, flags).assert_done();
    folder
}

/// The tensors of a `model.safetensors`, by name.
#[derive(Debug, PartialEq)]
pub(crate) struct Parameters(BTreeMap<String, Vec<u32>>);

impl Parameters {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let bits =
            |data: &[u8]| data.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        Parameters(file.tensors().into_iter().map(|(name, tensor)| (name, bits(tensor.data()))).collect())
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        self.0.values().flatten().map(|&bits| f64::from(f32::from_bits(bits)))
    }

    /// Of the difference, relative to `self`.
    pub(crate) fn relative_l2(&self, other: &Parameters) -> f64 {
        assert!(self.0.keys().eq(other.0.keys()));
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        norm(&mut self.values().zip(other.values()).map(|(a, b)| a - b)) / norm(&mut self.values())
    }

    /// Something was trained, and it is numbers.
    pub(crate) fn assert_sensible(&self) {
        assert!(self.values().count() > 500 && self.values().all(f64::is_finite));
    }
}

/// Everything that a finished run leaves, against each other.
#[track_caller]
pub(crate) fn check_results(folder: &Folder, ranks: usize, mode: &str) {
    let summary = folder.summary();
    check_summary(&summary, ranks, mode);
    check_metrics(&folder.metrics(), &summary, ranks);
    folder.parameters().assert_sensible();
    let config = fs::read_to_string(folder.path("out/config.toml")).unwrap();
    assert!(config.contains(&format!("mode = \"{mode}\"")), "{config}");
}

fn check_summary(summary: &Value, ranks: usize, mode: &str) {
    let text = |key: &str| summary[key].as_str().unwrap_or_else(|| panic!("{key} in {summary:#}"));
    let number = |of: &Value, key: &str| of[key].as_f64().unwrap_or_else(|| panic!("{key} in {of:#}"));
    assert_eq!((number(summary, "version"), number(summary, "ranks")), (1.0, ranks as f64));
    assert_eq!(text("mode"), mode);
    for key in ["collective", "transport", "network", "dataset", "stopped_by"] {
        assert!(!text(key).is_empty(), "{key}");
    }
    for key in ["hosts", "seed", "train_seconds", "samples", "samples_per_second", "final_loss"] {
        assert!(number(summary, key) > 0.0, "{key} in {summary:#}");
    }
    assert!((0.05..=1.0).contains(&number(summary, "final_accuracy")), "{summary:#}");
    // Without a target these say nothing, but they are there.
    for key in ["target_accuracy", "reached_target", "time_to_target_seconds"] {
        assert!(summary.get(key).is_some(), "{key} in {summary:#}");
    }
    let workers = summary["workers"].as_array().unwrap();
    assert_eq!(workers.len(), ranks);
    let sum = |key: &str| workers.iter().map(|worker| number(worker, key)).sum::<f64>();
    assert_eq!(number(summary, "samples"), sum("samples"));
    assert_eq!(number(summary, "bytes_sent"), sum("bytes_sent"));
    assert_eq!(sum("bytes_sent"), sum("bytes_received"));
    assert_eq!(sum("bytes_sent") > 0.0, ranks > 1);
    assert_eq!(number(summary, "exchanges") > 0.0, ranks > 1);
    for (rank, worker) in workers.iter().enumerate() {
        assert_eq!(number(worker, "rank"), rank as f64);
        assert!(worker["host"].is_string() && worker["device"] == "cpu");
        assert!(number(worker, "local_steps") >= number(summary, "exchanges"), "{summary:#}");
        assert!(number(worker, "compute_seconds") > 0.0);
        let shares = ["compute", "exchange", "wait", "evaluate", "slow", "decide"];
        let shares: f64 = shares.iter().map(|key| number(worker, &format!("{key}_seconds"))).sum();
        assert!(shares <= number(worker, "total_seconds") * 1.0001, "{summary:#}");
    }
    if mode == "sync" {
        assert!(workers.iter().all(|worker| worker["local_steps"] == summary["exchanges"]), "{summary:#}");
    }
}

fn check_metrics(events: &[Value], summary: &Value, ranks: usize) {
    for (rank, worker) in summary["workers"].as_array().unwrap().iter().enumerate() {
        let own: Vec<&Value> = events.iter().filter(|event| event["rank"] == rank).collect();
        let of_kind = |kind: &str| own.iter().filter(|event| event["kind"] == kind).count() as u64;
        assert_eq!(Some(of_kind("step")), worker["local_steps"].as_u64(), "rank {rank}");
        assert_eq!(Some(of_kind("exchange")), summary["exchanges"].as_u64(), "rank {rank}");
        assert_eq!(of_kind("evaluate") > 0, rank == 0, "rank {rank}: the evaluations are everybody's");
        let decisions: Vec<&&Value> = own.iter().filter(|event| event["kind"] == "decision").collect();
        assert!(decisions.len() as u64 >= of_kind("step"), "rank {rank}");
        let is_full =
            |key: &str| decisions.iter().all(|d| d[key].as_str().is_some_and(|text| !text.is_empty()));
        assert!(is_full("action") && is_full("reason"), "rank {rank}");
        let times: Vec<f64> = own.iter().map(|event| event["t"].as_f64().unwrap()).collect();
        assert!(
            times.is_sorted() && times.first().is_some_and(|&first| first >= 0.0),
            "rank {rank}: {times:?}"
        );
    }
    assert!(events.iter().all(|event| event["rank"].as_u64().is_some_and(|rank| rank < ranks as u64)));
}

/// The same for a run at a parameter server.
#[track_caller]
pub(crate) fn check_server_results(folder: &Folder, workers: usize, servers: usize, mode: &str) {
    let summary = folder.summary();
    let number = |of: &Value, key: &str| of[key].as_u64().unwrap_or_else(|| panic!("{key} in {summary:#}"));
    let list = |key: &str| summary[key].as_array().unwrap_or_else(|| panic!("{key} in {summary:#}"));
    assert_eq!(summary["mode"], mode);
    assert_eq!((list("workers").len(), list("servers").len()), (workers, servers), "{summary:#}");
    let sum = |of: &str, key: &str| list(of).iter().map(|entry| number(entry, key)).sum::<u64>();
    assert_eq!(number(&summary, "samples"), sum("workers", "samples"));
    // Every byte is sent once and received once.
    assert_eq!(sum("workers", "bytes_sent"), sum("servers", "bytes_received"), "{summary:#}");
    assert_eq!(sum("servers", "bytes_sent"), sum("workers", "bytes_received"), "{summary:#}");
    assert_eq!(number(&summary, "bytes_sent"), sum("workers", "bytes_sent") + sum("servers", "bytes_sent"));
    let events = folder.metrics();
    for worker in list("workers") {
        let (rank, figures) = (&worker["rank"], &worker["server"]);
        let own: Vec<&Value> = events.iter().filter(|event| &event["rank"] == rank).collect();
        let of_kind = |kind: &str| own.iter().filter(|event| event["kind"] == kind).count() as u64;
        assert_eq!(of_kind("step"), number(worker, "local_steps"), "rank {rank}");
        // A push that was under way at the end has no answer.
        assert!((0..=1).contains(&(number(figures, "pushes") - of_kind("push"))), "rank {rank}: {figures}");
        assert!((0..=1).contains(&(number(figures, "pulls") - of_kind("pull"))), "rank {rank}: {figures}");
        let applied: u64 =
            figures["staleness"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
        let pushes = number(figures, "pushes");
        assert!(pushes > 0 && applied + number(figures, "discarded_pushes") <= pushes, "{figures}");
        let times: Vec<f64> = own.iter().map(|event| event["t"].as_f64().unwrap()).collect();
        assert!(times.is_sorted(), "rank {rank}");
    }
    let decided = |action: &str| {
        events.iter().filter(|event| event["by"] == "server" && event["action"] == action).count()
    };
    assert!(decided("apply") > 0 && decided("reply") > 0);
    folder.parameters().assert_sensible();
}

/// Every moment of each worker has a name, and `compute + exchange + wait + evaluate + slow` is nearly all of it. Another program
/// that takes the core for some milliseconds while a decision is written down is not the worker's doing, and does not do so
/// in three runs in a row.
#[track_caller]
pub(crate) fn check_clocks(run: impl Fn() -> Value) {
    const RUNS: usize = 3;
    for attempt in 1..=RUNS {
        let summary = run();
        let workers = summary["workers"].as_array().unwrap();
        let is_used = |worker: &Value| {
            let seconds = |key: &str| worker[&format!("{key}_seconds")].as_f64().unwrap();
            let useful: f64 = ["compute", "exchange", "wait", "evaluate", "slow"].map(seconds).iter().sum();
            let total = seconds("total");
            assert!(total > 0.5, "too short to say: {worker:#}");
            let named = useful + seconds("decide") + seconds("other");
            assert!((named - total).abs() < 0.001 * total, "{named} s have a name: {worker:#}");
            useful >= 0.98 * total
        };
        if workers.iter().all(is_used) {
            return;
        }
        assert!(attempt < RUNS, "less than 98% of a worker's time was used in {RUNS} runs: {summary:#}");
    }
}

/// Names in /dev/shm that look like ours.
pub(crate) fn shared_pages() -> Vec<PathBuf> {
    let entries = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("esync-"));
    ours.map(|entry| entry.path()).collect()
}

/// Names that were not there `before` go again. (Other tests make theirs meanwhile, and remove them.)
#[track_caller]
pub(crate) fn assert_no_page_left(before: &[PathBuf]) {
    let mut left = shared_pages();
    left.retain(|path| !before.contains(path));
    let since = Instant::now();
    while left.iter().any(|path| path.exists()) {
        assert!(since.elapsed() < Duration::from_secs(10), "left in shared memory: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
