//! The programs with vectors in GPU memory, on the software device: every transport, ranks as threads and as processes.

#[path = "common/process.rs"]
mod process;
#[path = "common/software_device.rs"]
mod software_device;

use process::{Finished, alone, finish};
use serde_json::Value;
use software_device::SoftwareDevice;
use std::process::Command;

const QUICK: &str =
    "-n 2 -w 1 --repeat-contaminated 0 --timeout 60s --format json --ceiling off -b 4 -e 40000 -f 100";

fn run(device: &SoftwareDevice, mut command: Command, arguments: &str) -> Finished {
    command.args(QUICK.split_whitespace()).args(arguments.split_whitespace());
    finish(device.apply(&mut command), 120)
}

fn records(finished: &Finished) -> Vec<Value> {
    finished.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// Runs and compares with the host: nothing wrong, and the same bits in the canonical order.
fn check(device: &SoftwareDevice, command: Command, arguments: &str, transport: &str) {
    let name = env!("CARGO_BIN_EXE_esync-bench");
    let collective = "--collective binary-blocks,recursive-doubling,parameter-server,auto --order canonical";
    let found = run(device, command, &format!("{collective} {arguments}")).expect(0);
    let found = records(&found);
    let host = format!("{collective} --ranks 3 --transport threads --placement in --buffers private");
    let host = records(&run(device, alone(name), &host).expect(0));
    assert_eq!(found.len(), host.len());
    for (found, host) in found.iter().zip(&host) {
        assert_eq!(found["transport"], transport, "{found}");
        assert_eq!(found["wrong"], 0, "{found}");
        assert_eq!((&found["collective"], &found["bytes"]), (&host["collective"], &host["bytes"]));
        assert_eq!(found["result_hash"], host["result_hash"], "{found}");
        assert!(found["copy_gbps"].as_f64().is_some_and(|rate| rate > 0.0), "{found}");
    }
}

fn bench() -> Command {
    alone(env!("CARGO_BIN_EXE_esync-bench"))
}

#[test]
fn threads_on_gpus_have_the_bits_of_the_host() {
    let Some(device) = SoftwareDevice::new() else { return };
    check(&device, bench(), "--ranks 3 --transport threads --device cuda", "threads");
    check(&device, bench(), "--ranks 3 --transport threads --device cuda,cpu,cuda:1", "threads");
}

#[test]
fn processes_that_share_memory_have_the_bits_of_the_host() {
    let Some(device) = SoftwareDevice::new() else { return };
    check(&device, bench(), "--ranks 3 --transport shm --device cuda", "shm");
    check(&device, bench(), "--ranks 3 --transport shm --device cuda:1,cpu,cpu", "shm");
}

#[test]
fn nccl_has_the_bits_of_the_host() {
    let Some(device) = SoftwareDevice::new() else { return };
    let device = device.set("SOFTWARE_CUDA_DEVICES", 3);
    check(&device, bench(), "--ranks 3 --transport nccl --device cuda", "nccl");
    // Each has a GPU of its own, so that `auto` is NCCL.
    check(&device, bench(), "--ranks 3 --device auto", "nccl");
}

#[cfg(feature = "mpi")]
#[test]
fn processes_under_mpi_have_the_bits_of_the_host() {
    let Some(device) = SoftwareDevice::new() else { return };
    let device = device.set("SOFTWARE_CUDA_DEVICES", 3);
    let mpirun = || {
        let mut command = process::mpirun();
        command.args(["-n", "3", env!("CARGO_BIN_EXE_esync-bench")]);
        command
    };
    check(&device, mpirun(), "--transport mpi --device cuda", "mpi");
    check(&device, mpirun(), "--transport mpi --device cuda,cuda,cpu", "mpi");
    check(&device, mpirun(), "--transport nccl --device cuda", "nccl");
}

#[test]
fn a_job_on_different_devices_says_how_vectors_travel() {
    let Some(device) = SoftwareDevice::new() else { return };
    let found = run(&device, bench(), "--ranks 3 --device cuda,cpu,cpu --collective ring").expect(0);
    let line = "devices: ranks 0 cuda:0, 1-2 cpu; vectors of GPUs travel through host memory over threads";
    assert!(found.stderr.contains(line), "{}", found.stderr);
    assert!(records(&found).iter().all(|record| record["device"] == "cuda:0,cpu"));

    let refused = run(&device, bench(), "--ranks 2 --device cuda,cpu --transport nccl").expect(2);
    assert!(refused.stderr.contains("rank 1 works on the CPU"), "{}", refused.stderr);
    let refused = run(&device, bench(), "--ranks 3 --device cuda,cpu").expect(2);
    assert!(refused.stderr.contains("names 2 devices for 3 ranks"), "{}", refused.stderr);
    let refused = run(&device, bench(), "--ranks 3 --transport nccl --device cuda").expect(3);
    assert!(refused.stderr.contains("have the same GPU"), "{}", refused.stderr);
}

/// `cargo test` builds examples before tests; `cargo test --test gpu_bench` does not.
fn gpu_check() -> Option<Command> {
    let bench = std::path::Path::new(env!("CARGO_BIN_EXE_esync-bench"));
    let program = bench.with_file_name("examples").join("gpu_check");
    if program.exists() {
        return Some(alone(program));
    }
    println!("skipped: the example gpu_check was not built");
    None
}

#[test]
fn the_table_of_checks_runs_as_far_as_it_can() {
    let (Some(device), Some(mut command)) = (SoftwareDevice::new(), gpu_check()) else { return };
    command.args("--lengths 0,1,17,1000 --bytes 64K --collective-bytes 4K --ranks 2,3".split(' '));
    let finished = finish(device.apply(&mut command), 300).expect(0);
    let row = |mark: &str, what: &str| {
        let is_it = |line: &str| line.starts_with(mark) && line.contains(what);
        assert!(finished.stdout.lines().any(is_it), "{mark} {what}:\n{}", finished.stdout);
    };
    row("ok", "software device (no GPU)");
    row("ok", "kernels against the host's bits and f64");
    row("ok", "reduce f32 sum");
    row("ok", "collectives over threads, 3 ranks");
    row("ok", "2 ranks on GPUs, 2 on CPUs");
    row("ok", "host overhead");
    row("ok", "collectives over nccl, 1 ranks");
    row("ok", "collectives over nccl, 2 ranks");
    row("not run", "collectives over nccl, 3 ranks");
    row("not run", "esync to 95%: digits");
}

#[test]
fn the_table_of_checks_names_what_is_missing() {
    let Some(mut command) = gpu_check() else { return };
    if esync::device::parts::device_count().is_ok() {
        return println!("skipped: this machine has a GPU");
    }
    let finished = finish(&mut command, 60).expect(3);
    assert_eq!(finished.lines_with("not run  training"), 1, "{}", finished.stdout);
    assert!(finished.lines_with("CUDA driver not found") > 0, "{}", finished.stdout);
}

#[test]
fn without_cuda_a_gpu_that_was_asked_for_is_an_error_of_the_environment() {
    let mut command = bench();
    command.args("--ranks 2 --device cuda -n 1".split_whitespace());
    let finished = finish(&mut command, 60);
    if esync::device::parts::device_count().is_ok() {
        return println!("skipped: this machine has a GPU");
    }
    let finished = finished.expect(3);
    assert!(finished.stderr.contains("CUDA driver"), "{}", finished.stderr);
}
