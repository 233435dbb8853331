//! All that a machine with a GPU can show, in one table: kernels, collectives, NCCL, training, bandwidth. What cannot be run is
//! named, with the reason. `launch/gpu-check` builds everything and starts it.
//!
//!     cargo build --release --all-features && cargo run --release --all-features --example gpu_check

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use esync::bench::ByteSize;
use esync::bench::kernels::{GpuMachine, bandwidth, check};
use esync::device::{Gpu, parts};
use esync::reduce::cuda::Kernels;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::Arc;
use tempfile::TempDir;

/// Checks and measures everything that esync does on GPUs.
#[derive(Debug, Parser)]
struct Flags {
    /// Bytes of each vector of the timed kernels. A GPU needs six times as much memory
    #[arg(long, default_value = "256MiB", value_name = "BYTES")]
    bytes: ByteSize,
    /// Lengths of the vectors on which kernels are checked
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 2, 3, 5, 8, 17, 255, 257, 1000, 4099, 100_003])]
    lengths: Vec<usize>,
    /// Bytes of the largest vectors of the collectives that are checked
    #[arg(long, default_value = "4M", value_name = "BYTES")]
    collective_bytes: ByteSize,
    /// Numbers of ranks for the collectives
    #[arg(long, value_delimiter = ',', default_values_t = [2, 3, 4, 7, 8])]
    ranks: Vec<usize>,
    /// Where MNIST's files are; without it MNIST is not trained
    #[arg(long, value_name = "DIR")]
    mnist: Option<PathBuf>,
    /// Leave out training
    #[arg(long)]
    no_training: bool,
}

/// What became of one check.
enum Found {
    /// It held, or these are the figures.
    Yes(String),
    No(String),
    NotRun(String),
}

struct Table {
    failed: usize,
    not_run: usize,
}

impl Table {
    fn row(&mut self, what: &str, found: Found) {
        let (mark, text) = match found {
            Found::Yes(text) => ("ok", text),
            Found::No(text) => {
                self.failed += 1;
                ("FAILED", text)
            }
            Found::NotRun(text) => {
                self.not_run += 1;
                ("not run", text)
            }
        };
        println!("{mark:<8} {what:<48} {}", text.trim().replace('\n', " "));
    }

    /// A check whose failure is a row too.
    fn check(&mut self, what: &str, run: impl FnOnce() -> Result<String>) {
        self.row(what, run().map_or_else(|error| Found::No(format!("{error:#}")), Found::Yes));
    }
}

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(table) if table.failed > 0 => ExitCode::from(1),
        // A GPU's own limits are no failure; to have none at all is.
        Ok(_) if parts::device_count().is_err() => ExitCode::from(3),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu_check: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn run(flags: &Flags) -> Result<Table> {
    let mut table = Table { failed: 0, not_run: 0 };
    let found = |part: esync::Result<parts::Part>| {
        part.map_or_else(|error| Found::NotRun(error.to_string()), |part| Found::Yes(part.to_string()))
    };
    table.row("CUDA driver", found(parts::driver()));
    table.row("NVRTC", found(parts::nvrtc()));
    table.row("NCCL", found(parts::nccl()));
    let count = parts::device_count();
    let gpus: Vec<Arc<Gpu>> =
        (0..count.clone().unwrap_or_default()).filter_map(|ordinal| Gpu::open(ordinal).ok()).collect();
    for gpu in &gpus {
        let ((major, minor), memory) = (gpu.compute_capability(), gpu.memory_bytes() >> 30);
        table.row("GPU", Found::Yes(format!("{gpu}, sm_{major}{minor}, {memory} GiB")));
    }
    let missing = match (count, parts::nvrtc()) {
        (Err(error), _) | (_, Err(error)) => Some(error.to_string()),
        _ => gpus.is_empty().then(|| "no GPU could be opened".to_string()),
    };
    match &missing {
        Some(missing) => {
            for what in
                ["kernels", "collectives on device buffers", "collectives over nccl", "training", "bandwidth"]
            {
                table.row(what, Found::NotRun(missing.clone()));
            }
        }
        None => {
            let programs = Programs::find()?;
            kernels(&mut table, &gpus[0], flags);
            collectives(&mut table, &programs, flags);
            nccl(&mut table, &programs, &gpus, flags);
            training(&mut table, &programs, flags);
        }
    }
    println!("\n{} failed, {} not run", table.failed, table.not_run);
    Ok(table)
}

/// Every kernel against the host and f64, and beside the GPU's own copy.
fn kernels(table: &mut Table, gpu: &Arc<Gpu>, flags: &Flags) {
    let machine = match Kernels::load(gpu).and_then(|kernels| GpuMachine::new(&kernels)) {
        Ok(machine) => machine,
        Err(error) => return table.row("kernels", Found::No(error.to_string())),
    };
    table.check("kernels against the host's bits and f64", || {
        let all = check(&machine, &flags.lengths)?;
        let worst = all.iter().filter_map(|kernel| kernel.largest_error).fold(0.0, f64::max);
        let starts: usize = all.iter().map(|kernel| kernel.starts).sum();
        Ok(format!("{} kernels, {starts} starts, at most {worst:.2} of what rounding allows", all.len()))
    });
    match bandwidth(&machine, flags.bytes.0) {
        Err(error) => table.row("bandwidth", Found::No(error.to_string())),
        Ok(rows) => {
            for row in rows {
                let text = format!(
                    "{:.1} GB/s, {:.1}% of the GPU's own copy",
                    row.gigabytes_per_second(),
                    100.0 * row.share_of_copy
                );
                table.row(&format!("bandwidth at {}: {}", flags.bytes, row.kernel), Found::Yes(text));
            }
        }
    }
}

const OPERATIONS: [&str; 5] = ["all-reduce", "reduce-scatter", "all-gather", "broadcast", "reduce"];

fn collectives(table: &mut Table, programs: &Programs, flags: &Flags) {
    for &ranks in &flags.ranks {
        table.check(&format!("collectives over threads, {ranks} ranks"), || {
            programs.bench(ranks, "threads", "cuda", flags.collective_bytes, &[])
        });
    }
    let mixed = "cuda,cpu,cuda,cpu";
    table.check("collectives over threads, 2 ranks on GPUs, 2 on CPUs", || {
        programs.bench(4, "threads", mixed, flags.collective_bytes, &[])
    });
    table.check("host overhead: all-reduce of one element, 2 ranks", || {
        let records = programs.records(2, "threads", "cuda", "all-reduce", "ring", ("4", "4"), &[])?;
        let median = records.first().and_then(|record| record["time_us"]["median"].as_f64());
        Ok(format!("{:.1} µs", median.context("no time in the results of esync-bench")?))
    });
}

fn nccl(table: &mut Table, programs: &Programs, gpus: &[Arc<Gpu>], flags: &Flags) {
    let version = match parts::nccl() {
        Ok(part) => part.version,
        Err(error) => return table.row("collectives over nccl", Found::NotRun(error.to_string())),
    };
    let shares = version >= parts::MULTI_RANK_NCCL;
    let sharing = [(parts::MULTI_RANK_VARIABLE, "1")];
    for ranks in std::iter::once(1).chain(flags.ranks.iter().copied()) {
        let what = format!("collectives over nccl, {ranks} ranks");
        if ranks <= gpus.len() {
            table.check(&what, || programs.bench(ranks, "nccl", "cuda", flags.collective_bytes, &[]));
        } else if shares {
            table.check(&what, || programs.bench(ranks, "nccl", "cuda", flags.collective_bytes, &sharing));
        } else {
            let why = format!("{} GPUs, and NCCL {version} puts one rank on each", gpus.len());
            table.row(&what, Found::NotRun(why));
        }
    }
}

fn training(table: &mut Table, programs: &Programs, flags: &Flags) {
    let jobs = [
        ("digits, mlp, 8 ranks on GPUs", "digits", "mlp", "cuda"),
        ("digits, mlp, 4 ranks on GPUs, 4 on CPUs", "digits", "mlp", "cuda,cpu,cuda,cpu,cuda,cpu,cuda,cpu"),
        ("mnist, lenet, 8 ranks on GPUs", "mnist", "lenet", "cuda"),
    ];
    for (what, dataset, network, device) in jobs {
        let what = format!("esync to 95%: {what}");
        let missing = match (&flags.mnist, programs.train()) {
            _ if flags.no_training => Some("--no-training".to_string()),
            (None, _) if dataset == "mnist" => Some("no --mnist DIR".to_string()),
            (_, Err(error)) => Some(format!("{error:#}")),
            _ => None,
        };
        if let Some(missing) = missing {
            table.row(&what, Found::NotRun(missing));
            continue;
        }
        match programs.trained(dataset, network, device, flags.mnist.as_deref()) {
            Ok(found) => table.row(&what, found),
            Err(error) => table.row(&what, Found::No(format!("{error:#}"))),
        }
    }
}

/// The programs that were built beside this one.
struct Programs {
    folder: PathBuf,
    results: TempDir,
}

impl Programs {
    fn find() -> Result<Programs> {
        let own = std::env::current_exe().context("cannot find this program's own file")?;
        let folder = own.ancestors().nth(2).context("this program lies in no folder of Cargo's")?.into();
        Ok(Programs { folder, results: tempfile::tempdir()? })
    }

    fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        if path.exists() {
            Ok(path)
        } else {
            bail!("{name} was not built: cargo build --release --all-features")
        }
    }

    fn train(&self) -> Result<PathBuf> {
        self.program("esync-train")
    }

    /// All operations with all algorithms: every element of every result is checked.
    fn bench(
        &self,
        ranks: usize,
        transport: &str,
        device: &str,
        largest: ByteSize,
        environment: &[(&str, &str)],
    ) -> Result<String> {
        let largest = largest.0.to_string();
        let mut rows = 0;
        for operation in OPERATIONS {
            let sizes = ("4", largest.as_str());
            let records = self.records(ranks, transport, device, operation, "all", sizes, environment)?;
            let wrong: u64 = records.iter().filter_map(|record| record["wrong"].as_u64()).sum();
            if wrong > 0 || records.is_empty() {
                bail!("{operation}: {wrong} wrong elements in {} rows", records.len());
            }
            rows += records.len();
        }
        Ok(format!("{rows} rows of 5 operations up to {largest} bytes, every element right"))
    }

    #[allow(clippy::too_many_arguments)]
    fn records(
        &self,
        ranks: usize,
        transport: &str,
        device: &str,
        operation: &str,
        collective: &str,
        (smallest, largest): (&str, &str),
        environment: &[(&str, &str)],
    ) -> Result<Vec<Value>> {
        let mut command = Command::new(self.program("esync-bench")?);
        command.args(["--ranks", &ranks.to_string(), "--transport", transport, "--device", device]);
        command.args([
            "--op",
            operation,
            "--collective",
            collective,
            "-b",
            smallest,
            "-e",
            largest,
            "-f",
            "1024",
        ]);
        command.args([
            "-n",
            "20",
            "--seconds-per-size",
            "1",
            "--format",
            "json",
            "--repeat-contaminated",
            "0",
        ]);
        let output = succeeded(command.envs(environment.iter().copied()))?;
        let lines = String::from_utf8_lossy(&output.stdout);
        lines.lines().map(|line| serde_json::from_str(line).context("esync-bench wrote no JSON")).collect()
    }

    fn trained(&self, dataset: &str, network: &str, device: &str, data: Option<&Path>) -> Result<Found> {
        let out = self.results.path().join(format!("{dataset}-{}", device.replace([',', ':'], "-")));
        let mut command = Command::new(self.train()?);
        command.args([
            "--ranks",
            "8",
            "--transport",
            "threads",
            "--mode",
            "esync",
            "--target-accuracy",
            "0.95",
        ]);
        command.args(["--dataset", dataset, "--network", network, "--device", device, "--epochs", "40"]);
        command.args(["--progress", "none", "--out"]).arg(&out);
        if let Some(data) = data.filter(|_| dataset != "digits") {
            command.arg("--data-dir").arg(data);
        }
        let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
        let complaint = last_line(&output.stderr);
        match output.status.code() {
            Some(0) => {}
            // Its libtorch has no CUDA, or something else of the environment is missing.
            Some(3) => return Ok(Found::NotRun(complaint)),
            _ => return Err(anyhow!("{} {complaint}", output.status)),
        }
        let text = std::fs::read_to_string(out.join("summary.json")).context("no summary.json")?;
        let summary: Value = serde_json::from_str(&text).context("summary.json")?;
        let devices: Vec<&str> = summary["workers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|worker| worker["device"].as_str())
            .collect();
        Ok(Found::Yes(format!(
            "{:.2}% after {:.2} s of training, on {}",
            100.0 * summary["final_accuracy"].as_f64().unwrap_or(f64::NAN),
            summary["time_to_target_seconds"].as_f64().unwrap_or(f64::NAN),
            devices.join(" ")
        )))
    }
}

fn succeeded(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if output.status.success() {
        return Ok(output);
    }
    bail!("{} {}", output.status, last_line(&output.stderr))
}

fn last_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().last().unwrap_or_default().to_string()
}
