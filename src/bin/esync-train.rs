//! Trains a model on many unequal workers: `mpirun -n 8 esync-train …`, or `esync-train --ranks 8 …` without MPI.

use anyhow::Context;
use clap::Parser;
use esync::train::{Config, Flags, Signals, first_failure, run_ranks, train};
use esync::transport::announced_rank;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Train one model on many unequal workers.
///
/// Run it as `mpirun -n 8 esync-train …` (as root, or with more ranks than cores: `launch/train -n 8 …`, which adds the
/// flags that mpirun wants), or as `esync-train --ranks 8 …`, which needs no MPI.
#[derive(Parser)]
#[command(name = "esync-train", version, max_term_width = 110, after_help = EXIT_CODES)]
struct CommandLine {
    #[command(flatten)]
    flags: Flags,
    /// Read flags from a TOML file; flags and environment win over it
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    config: Option<PathBuf>,
    /// Print the resolved configuration and exit
    #[arg(long, help_heading = "Run", hide_short_help = true)]
    dry_run: bool,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 training error, 2 usage, 3 environment, 4 data, 5 peer lost, 6 stalled, 7 diverged, 8 target not \
reached, 130 interrupted. Every flag can also be set by the environment (ESYNC_MODE=sync) or by --config.";

fn main() -> ExitCode {
    let command_line = CommandLine::try_parse().unwrap_or_else(|error| {
        speak_in_turn();
        error.exit()
    });
    match run(command_line) {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) => {
            speak_in_turn();
            let code = error.downcast_ref::<esync::Error>().map_or(1, esync::Error::exit_code);
            eprintln!("esync-train: {error:#}");
            ExitCode::from(code as u8)
        }
    }
}

/// Errors that every process of a job makes alike are printed by the first: when it ends, the launcher ends the others.
fn speak_in_turn() {
    std::thread::sleep(Duration::from_millis(500) * announced_rank().min(10) as u32);
}

fn run(command_line: CommandLine) -> anyhow::Result<i32> {
    let mut flags = command_line.flags;
    if let Some(path) = &command_line.config {
        flags = flags.over(Flags::read(path)?)?;
    }
    let config = Config::resolve(flags)?;
    if command_line.dry_run {
        print!("{}", config.to_toml()?);
        return Ok(0);
    }
    let signals = catch_signals().context("cannot catch signals")?;
    let results = run_ranks(config.transport, config.ranks, &config.slow_link, |transport| {
        let poisoned = transport.clone();
        train(&config, transport, &signals).inspect_err(|error| poisoned.poison(&error.to_string()))
    })?;
    let outcomes = first_failure(results)?;
    Ok(outcomes.first().map_or(0, esync::train::Outcome::exit_code))
}

/// The first signal asks for an orderly end, the second ends at once.
fn catch_signals() -> std::io::Result<Signals> {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
    use signal_hook::flag;
    let signals = Signals::default();
    for signal in [SIGINT, SIGTERM] {
        let again: Arc<AtomicBool> = signals.interrupt.clone();
        flag::register_conditional_shutdown(signal, 130, again)?;
        flag::register(signal, signals.interrupt.clone())?;
    }
    flag::register(SIGUSR1, signals.request.clone())?;
    Ok(signals)
}
