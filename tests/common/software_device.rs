//! Runs tests and programs on the software device of `tests/software_cuda/`, which takes the place of CUDA's libraries.
//!
//! `SOFTWARE_CUDA_DELAYS=SEED:MICROSECONDS cargo test …` gives all tests these delays, to look for races.
//!
//! Needs `tests/common/process.rs` beside it.
#![allow(dead_code, reason = "each test program uses its own part")]

use crate::process::{Finished, finish};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;
use tempfile::TempDir;

/// The libraries that the software device can stand for.
pub(crate) const DRIVER: &str = "libcuda.so";
pub(crate) const NVRTC: &str = "libnvrtc.so";
pub(crate) const NCCL: &str = "libnccl.so";

const DELAYS: &str = "SOFTWARE_CUDA_DELAYS";
/// Says to a test program that it is the one that was started under the software device.
const INSIDE: &str = "SOFTWARE_CUDA_INSIDE";
/// In seconds; nothing in these tests takes longer, on however busy a machine.
const LIMIT: u64 = 120;

/// A folder with CUDA's libraries, which are all the software device. It lives as long as this.
pub(crate) struct SoftwareDevice {
    folder: TempDir,
    settings: Vec<(String, String)>,
}

impl SoftwareDevice {
    /// With all libraries. None, after a line that says so, on a machine without a C++ compiler.
    pub(crate) fn new() -> Option<Self> {
        Self::with_libraries(&[DRIVER, NVRTC, NCCL])
    }

    /// With some of the libraries.
    pub(crate) fn with_libraries(names: &[&str]) -> Option<Self> {
        if is_inside() {
            // Everything is in place already.
            return Some(Self {
                folder: tempfile::tempdir().expect("a temporary folder"),
                settings: Vec::new(),
            });
        }
        let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        if Command::new(&compiler).arg("--version").output().is_err() {
            println!("skipped: no C++ compiler ({}), which the software device needs", compiler.display());
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in names {
            std::os::unix::fs::symlink(library(), folder.path().join(name)).expect("a link in a new folder");
        }
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("software_cuda");
        let settings = vec![("SOFTWARE_CUDA_CACHE".to_owned(), cache.display().to_string())];
        Some(Self { folder, settings })
    }

    /// A variable of `tests/software_cuda/lib.rs`, or any other.
    pub(crate) fn set(mut self, variable: &str, value: impl ToString) -> Self {
        self.settings.push((variable.to_owned(), value.to_string()));
        self
    }

    /// Pauses in streams, random up to so many microseconds, the same for a seed.
    pub(crate) fn delays(self, seed: u64, microseconds: u64) -> Self {
        self.set(DELAYS, format!("{seed}:{microseconds}"))
    }

    /// Makes a program find the software device in place of CUDA.
    pub(crate) fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let ours = ["SOFTWARE_CUDA_", "NCCL_", "CUDA_VISIBLE_DEVICES"];
        for (name, _) in std::env::vars_os() {
            if ours.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        let mut path = OsString::from(self.folder.path());
        if let Some(rest) = std::env::var_os("LD_LIBRARY_PATH").filter(|rest| !rest.is_empty()) {
            path.push(":");
            path.push(rest);
        }
        // What is compiled for this device must not be kept beside what was compiled for a GPU.
        command.env("LD_LIBRARY_PATH", path).env("XDG_CACHE_HOME", self.folder.path().join("cache"));
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        if let Ok(delays) = std::env::var(DELAYS) {
            command.env(DELAYS, delays);
        }
        command
    }

    /// Runs the test `name` of this program again, in a process of its own with the software device, where `body` runs.
    ///
    /// `name` is the path of the calling test (`module::test`). Panics with all that was printed if the test fails there.
    #[track_caller]
    pub(crate) fn run(&self, name: &str, body: impl FnOnce()) {
        if is_inside() {
            return body();
        }
        self.start(name).expect(0);
    }

    /// How the test `name` of this program ends in a process with the software device.
    #[track_caller]
    pub(crate) fn start(&self, name: &str) -> Finished {
        let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
        command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
        let finished = finish(self.apply(&mut command).env(INSIDE, "1"), LIMIT);
        // A name that no test has would be a success.
        assert!(finished.stdout.contains("running 1 test"), "no test {name}:\n{}", finished.stdout);
        finished
    }
}

/// Whether this process was started by [`SoftwareDevice::run`] or [`SoftwareDevice::start`].
pub(crate) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// The library, built if it is not there or older than its sources.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let test = std::env::current_exe().expect("the path of this program");
        // target/PROFILE/deps/TEST
        let profile = test.ancestors().nth(2).expect("Cargo's folders");
        let library = profile.join("examples/libsoftware_cuda.so");
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/software_cuda");
        let built = library.metadata().and_then(|library| library.modified()).ok();
        if built.is_none_or(|built| newest(&sources) > built) {
            build(profile);
        }
        library
    })
}

fn newest(folder: &Path) -> SystemTime {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    let times = entries.map(|entry| match entry.path() {
        path if path.is_dir() => newest(&path),
        path => path.metadata().and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH),
    });
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// `cargo test --test NAME` does not build the examples.
fn build(profile: &Path) {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let features: Vec<&str> = [
        ("mpi", cfg!(feature = "mpi")),
        ("torch", cfg!(feature = "torch")),
        ("cuda", cfg!(feature = "cuda")),
    ]
    .iter()
    .filter_map(|&(name, is_on)| is_on.then_some(name))
    .collect();
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--example", "software_cuda"]);
    cargo.args(["--no-default-features", "--features", &features.join(",")]);
    cargo.arg("--target-dir").arg(profile.parent().expect("the target folder"));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let output = cargo.output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
