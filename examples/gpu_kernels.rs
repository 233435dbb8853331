//! The kernels on a GPU: whether they are right, and how fast they are beside the GPU's own copy.
//!
//!     cargo run --release --features cuda --example gpu_kernels -- --device 0 --bytes 256MiB

use anyhow::Result;
use clap::Parser;
use esync::bench::ByteSize;
use esync::bench::kernels::{GpuMachine, bandwidth, check};
use esync::device::Gpu;
use esync::reduce::cuda::{Kernels, Module};
use std::process::ExitCode;
use std::time::Instant;

/// Checks all kernels on a GPU against the host and against f64, then times them.
#[derive(Debug, Parser)]
struct Flags {
    /// Which GPU.
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    device: usize,

    /// Bytes of each vector of the timed kernels; 0 times nothing. A GPU needs six times as much memory.
    #[arg(long, default_value = "256MiB", value_name = "BYTES")]
    bytes: ByteSize,

    /// Lengths of the vectors that are checked.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 2, 3, 5, 8, 17, 255, 257, 1000, 4099, 100_003])]
    lengths: Vec<usize>,
}

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let code = error.downcast_ref::<esync::Error>().map_or(1, esync::Error::exit_code);
            ExitCode::from(code as u8)
        }
    }
}

fn run(flags: &Flags) -> Result<()> {
    let gpu = Gpu::open(flags.device)?;
    let kernels = Kernels::load(&gpu)?;
    println!("{gpu}, kernels for {}", kernels.target());
    let began = Instant::now();
    for module in Module::all() {
        kernels.prepare(module)?;
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{} modules compiled or read from the disk in {seconds:.2} s\n", Module::COUNT);

    let machine = GpuMachine::new(&kernels)?;
    println!("{:<36} {:>6}  largest error beside f64, of what rounding allows", "kernel", "starts");
    for checked in check(&machine, &flags.lengths)? {
        let error = checked.largest_error.map_or("(bits only)".into(), |error| format!("{error:.3}"));
        println!("{:<36} {:>6}  {error}", checked.kernel, checked.starts);
    }
    if flags.bytes.0 == 0 {
        return Ok(());
    }
    println!("\n{:<36} {:>10} {:>10} {:>10}", "kernel", "µs", "GB/s", "of copy");
    for row in bandwidth(&machine, flags.bytes.0)? {
        let (microseconds, speed) = (row.seconds * 1e6, row.gigabytes_per_second());
        println!("{:<36} {microseconds:>10.1} {speed:>10.1} {:>9.1}%", row.kernel, row.share_of_copy * 100.0);
    }
    Ok(())
}
