//! Measures collectives: `mpirun -n 8 esync-bench …`, or `esync-bench --ranks 8 …` without MPI.

use clap::Parser;
use esync::bench::{Flags, bench};
use esync::transport::speak_in_turn;
use std::process::ExitCode;

/// Measure collectives, and check every element of their results.
///
/// Run it as `mpirun -n 8 esync-bench …`, or as `esync-bench --ranks 8 …`, which needs no MPI. The letters are those of
/// nccl-tests, and so are the definitions of `algbw` and `busbw`: bytes of one rank's whole vector over the median time,
/// and the same times what a link carries for each byte. A time is that of the slowest rank. All rows of a size are
/// measured in turns, so that they compare on a machine that is never quiet.
#[derive(Parser)]
#[command(name = "esync-bench", version, max_term_width = 110, after_help = EXIT_CODES)]
struct CommandLine {
    #[command(flatten)]
    flags: Flags,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 wrong elements, or ranks that disagree, 2 usage, 3 environment, 5 peer lost, 6 stalled.";

fn main() -> ExitCode {
    let command_line = CommandLine::try_parse().unwrap_or_else(|error| {
        speak_in_turn();
        error.exit()
    });
    match bench(&command_line.flags) {
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        Err(error) => {
            speak_in_turn();
            eprintln!("esync-bench: {error}");
            ExitCode::from(error.exit_code() as u8)
        }
    }
}
