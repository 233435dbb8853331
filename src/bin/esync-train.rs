//! Trains a model on many unequal workers: `mpirun -n 8 esync-train …`, or `esync-train --ranks 8 …` without MPI.

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser};
use esync::train::{Config, Flags, Signals, first_failure, run_ranks, train};
use esync::transport::{announced_rank, speak_in_turn};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

/// Train one model on many unequal workers.
///
/// Run it as `mpirun -n 8 esync-train …` (as root, or with more ranks than cores: `launch/train -n 8 …`, which adds the
/// flags that mpirun wants), or as `esync-train --ranks 8 …`, which needs no MPI.
#[derive(Parser)]
#[command(after_help = "More flags, exit codes, environment variables: --help")]
#[command(name = "esync-train", version, max_term_width = 110, after_long_help = EXIT_CODES)]
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
reached, 130 interrupted. Every flag can also be set by the environment (--batch-size by ESYNC_BATCH_SIZE) or by --config.";

fn main() -> ExitCode {
    let signals = Signals::default();
    let command_line = parse().unwrap_or_else(|error| {
        if error.use_stderr() {
            signals.failed.store(true, Ordering::Relaxed);
            speak_in_turn();
        }
        error.exit()
    });
    match run(command_line, &signals) {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) => {
            signals.failed.store(true, Ordering::Relaxed);
            speak_in_turn();
            let code = error.downcast_ref::<esync::Error>().map_or(1, esync::Error::exit_code);
            eprintln!("esync-train: {error:#}");
            ExitCode::from(code as u8)
        }
    }
}

fn parse() -> Result<CommandLine, clap::Error> {
    // The variables' names follow from the flags'; a line for each would push the short help off the screen.
    let matches = CommandLine::command().mut_args(|flag| flag.hide_env(true)).try_get_matches()?;
    CommandLine::from_arg_matches(&matches)
}

fn run(command_line: CommandLine, signals: &Signals) -> anyhow::Result<i32> {
    let mut flags = command_line.flags;
    if let Some(path) = &command_line.config {
        flags = flags.over(Flags::read(path)?)?;
    }
    let config = Config::resolve(flags)?;
    if command_line.dry_run {
        if announced_rank() == 0 {
            print!("{}", config.to_toml()?);
        }
        return Ok(0);
    }
    catch(signals).context("cannot catch signals")?;
    let results = run_ranks(config.transport, config.ranks, &config.slow_link, |transport| {
        let poisoned = transport.clone();
        train(&config, transport, signals).inspect_err(|error| {
            signals.failed.store(true, Ordering::Relaxed);
            poisoned.poison(&error.to_string());
        })
    })?;
    let outcomes = first_failure(results)?;
    Ok(outcomes.first().map_or(0, esync::train::Outcome::exit_code))
}

/// The first signal asks for an orderly end, the second ends at once.
fn catch(signals: &Signals) -> std::io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
    use signal_hook::flag;
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, signals.failed.clone())?;
        flag::register_conditional_shutdown(signal, 130, signals.interrupt.clone())?;
        flag::register(signal, signals.interrupt.clone())?;
    }
    flag::register(SIGUSR1, signals.request.clone())?;
    Ok(())
}
