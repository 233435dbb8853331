//! What is run once, by hand: `mpirun -n 8 esync probe`, `esync plot RUN`, `esync info`.

use clap::{Parser, Subcommand};
use esync::transport::speak_in_turn;
use std::process::ExitCode;

/// Look at clusters and runs: measure a cluster, simulate training on one, draw what runs did, and say what this build and
/// this machine offer.
#[derive(Parser)]
#[command(name = "esync", version, max_term_width = 110, after_help = EXIT_CODES)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure links, ranks and algorithms, and write the topology file that `--collective auto` reads
    ///
    /// Run it as `mpirun -n 8 esync probe`, with the hosts and the number of ranks that are to be used later, or as
    /// `esync probe --ranks 8`, which needs no MPI.
    Probe(esync::probe::Flags),
    /// Draw runs: one page and SVG files; or tell the story of a round
    ///
    /// `esync plot runs/A runs/B` compares runs by time, samples and bytes, and shows where each worker's time went.
    Plot(esync::plot::Flags),
    /// Train on a virtual clock: the same policies on a cluster that need not exist
    ///
    /// It takes the flags of esync-train that have a meaning there, prints what esync-train prints and writes the same files:
    /// `esync sim --cluster esync-12 --mode esync --target-accuracy 0.95`. `--compare sync,esync` runs modes side by side.
    Sim(Box<esync::sim::Flags>),
    /// Say what this build and this machine offer (for bug reports)
    Info,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 ranks that disagree, 2 usage, 3 environment, 4 data, 5 peer lost, 6 stalled, 7 diverged, 8 target not reached.";

fn main() -> ExitCode {
    let command_line = CommandLine::try_parse().unwrap_or_else(|error| {
        if error.use_stderr() {
            speak_in_turn();
        }
        error.exit()
    });
    let result = match command_line.command {
        Command::Probe(flags) => esync::probe::probe(&flags).map(|()| 0),
        Command::Plot(flags) => esync::plot::plot(&flags).map(|said| {
            print!("{said}");
            0
        }),
        Command::Sim(flags) => esync::sim::command(*flags),
        Command::Info => {
            print!("{}", esync::info::text());
            Ok(0)
        }
    };
    match result {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) => {
            speak_in_turn();
            eprintln!("esync: {error}");
            ExitCode::from(error.exit_code() as u8)
        }
    }
}
