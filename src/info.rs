//! What this build and this machine offer, on one short screen.

use crate::cluster::cache_path;
use crate::transport::{announced_ranks, host_name};
use std::fmt::Write;
use std::path::Path;

/// The text of `esync info`.
///
/// ```
/// assert!(esync::info::text().starts_with("esync "));
/// ```
pub fn text() -> String {
    let yes = |is: bool| if is { "yes" } else { "no" }.to_string();
    let system = rustix::system::uname();
    let (name, release) = (system.sysname().to_string_lossy(), system.release().to_string_lossy());
    let cores = std::thread::available_parallelism().map_or("unknown".into(), |cores| cores.to_string());
    let launcher = announced_ranks()
        .map_or("none".into(), |(size, launcher)| format!("{launcher}, {size} rank(s) announced"));
    let cache =
        cache_path("mpi", &[""]).and_then(|path| path.parent().map(|path| path.display().to_string()));
    let rows = [
        ("host", format!("{}, {name} {release}", host_name())),
        ("cores", format!("{cores} for this process")),
        ("memory", memory()),
        ("instructions", instructions()),
        ("feature mpi", mpi_version()),
        ("feature torch", yes(cfg!(feature = "torch"))),
        ("feature cuda", yes(cfg!(feature = "cuda"))),
        ("launcher", launcher),
        ("shared memory", shared_memory()),
        ("copy between processes", copy_between_processes()),
        ("measured clusters", cache.unwrap_or_else(|| "no cache folder: HOME is not set".into())),
    ];
    let mut out = format!("esync {}\n", env!("CARGO_PKG_VERSION"));
    for (name, value) in rows.into_iter().chain(cuda()) {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:<24}{value}");
    }
    out
}

#[cfg(feature = "mpi")]
fn mpi_version() -> String {
    let text = mpi::environment::library_version().unwrap_or_else(|_| "version unknown".into());
    let first = text.split(['\n', ',']).next().unwrap_or_default().trim().to_string();
    format!("yes, {first}")
}

#[cfg(not(feature = "mpi"))]
fn mpi_version() -> String {
    "no".into()
}

/// Each part of CUDA, or what is wrong with it; the GPUs, if there are any.
#[cfg(feature = "cuda")]
fn cuda() -> Vec<(&'static str, String)> {
    use crate::device::{Gpu, parts};
    let part =
        |found: crate::Result<parts::Part>| found.map_or_else(|error| error.to_string(), |p| p.to_string());
    let driver = parts::driver().map(|driver| format!("for CUDA {driver}"));
    let mut rows = vec![
        ("CUDA driver", driver.unwrap_or_else(|error| error.to_string())),
        ("NVRTC", part(parts::nvrtc())),
        ("NCCL", part(parts::nccl())),
    ];
    let describe = |gpu: &Gpu| {
        let ((major, minor), gib) =
            (gpu.compute_capability(), gpu.memory_bytes() as f64 / (1u64 << 30) as f64);
        format!("cuda:{}, {}, sm_{major}{minor}, {gib:.1} GiB", gpu.ordinal(), gpu.name())
    };
    match parts::device_count() {
        Ok(count) => {
            let open =
                |ordinal| Gpu::open(ordinal).map_or_else(|error| error.to_string(), |gpu| describe(&gpu));
            rows.extend((0..count).map(|ordinal| ("GPU", open(ordinal))));
        }
        // What is missing is said above.
        Err(_) if parts::driver().is_err() => {}
        Err(error) => rows.push(("GPU", error.to_string())),
    }
    rows
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Vec<(&'static str, String)> {
    Vec::new()
}

fn memory() -> String {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit.max(1));
    #[allow(clippy::unnecessary_cast, reason = "the type differs between systems")]
    let bytes = |count| (count as u64 * unit) as f64 / (1u64 << 30) as f64;
    format!("{:.1} GiB, {:.1} GiB free", bytes(info.totalram), bytes(info.freeram))
}

fn instructions() -> String {
    #[cfg(target_arch = "x86_64")]
    let found: Vec<&str> = [
        ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
        ("FMA", std::arch::is_x86_feature_detected!("fma")),
        ("F16C", std::arch::is_x86_feature_detected!("f16c")),
        ("AVX-512F", std::arch::is_x86_feature_detected!("avx512f")),
    ]
    .into_iter()
    .filter_map(|(name, is_there)| is_there.then_some(name))
    .collect();
    #[cfg(not(target_arch = "x86_64"))]
    let found: Vec<&str> = Vec::new();
    format!("{} {}", std::env::consts::ARCH, found.join(" ")).trim_end().to_string()
}

fn shared_memory() -> String {
    match rustix::fs::statvfs("/dev/shm") {
        Ok(found) => {
            let gib = |blocks: u64| (blocks * found.f_frsize) as f64 / (1u64 << 30) as f64;
            format!("/dev/shm {:.1} GiB, {:.1} GiB free", gib(found.f_blocks), gib(found.f_bavail))
        }
        Err(error) => format!("no /dev/shm: {error}"),
    }
}

/// Whether one process may read another's memory, as far as the kernel's settings tell.
fn copy_between_processes() -> String {
    let setting = Path::new("/proc/sys/kernel/yama/ptrace_scope");
    match std::fs::read_to_string(setting).map(|text| text.trim().to_string()) {
        Ok(scope) if scope == "0" => "allowed by the kernel (ptrace_scope 0)".into(),
        Ok(scope) => format!("restricted by the kernel (ptrace_scope {scope})"),
        Err(_) => "not restricted by Yama; a container may still forbid it".into(),
    }
}
