//! Measures collectives: `mpirun -n 8 esync-bench …`, or `esync-bench --ranks 8 …` without MPI.

use clap::Parser;
use esync::bench::{Flags, bench};
use esync::transport::speak_in_turn;
use std::process::ExitCode;

/// Measure collectives, and check every element of their results.
///
/// Run it as `mpirun -n 8 esync-bench …`, or as `esync-bench --ranks 8 …`, which needs no MPI. The letters are those of
/// nccl-tests, and so are the definitions of `algbw` and `busbw`.
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
        Ok(outcome) => ExitCode::from(u8::from(outcome.wrong > 0)),
        Err(error) => {
            speak_in_turn();
            eprintln!("esync-bench: {error}");
            ExitCode::from(error.exit_code() as u8)
        }
    }
}
