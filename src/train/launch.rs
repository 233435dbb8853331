//! Finds out how the ranks were started, starts them, and ends the job if one fails.

use super::flags::TransportChoice;
use super::heterogeneity::SlowLinks;
use crate::error::{Error, Result};
use crate::transport::{Delayed, Rank, Transport, announced_ranks, threads};
use std::sync::Arc;
use std::time::Duration;

/// Runs `body` on the ranks of this process: all of them as threads, or one of an MPI job.
///
/// Returns the results of this process's ranks. Under MPI a rank that fails or panics prints one message and ends the job
/// with [`Transport::abort`]; then this does not return.
///
/// # Errors
/// `Usage` or `Environment` if the ranks cannot be started as asked.
pub fn run_ranks<R: Send>(
    choice: TransportChoice,
    ranks: Option<usize>,
    slow_links: &SlowLinks,
    body: impl Fn(Arc<dyn Transport>) -> Result<R> + Sync,
) -> Result<Vec<Result<R>>> {
    let launched = announced_ranks();
    if let (Some(ranks), Some((size, launcher))) = (ranks, launched)
        && size > 1
    {
        return Err(Error::Usage(format!(
            "--ranks {ranks} makes threads of one process, but {launcher} has started {size} processes: leave out one of them"
        )));
    }
    let use_mpi = match choice {
        TransportChoice::Auto => ranks.is_none() && launched.is_some(),
        TransportChoice::Threads => {
            if let Some((size, launcher)) = launched.filter(|(size, _)| *size > 1) {
                return Err(Error::Usage(format!(
                    "--transport threads runs in one process, but {launcher} has started {size}: use --ranks without it"
                )));
            }
            false
        }
        TransportChoice::Mpi => true,
    };
    if use_mpi {
        return run_mpi(slow_links, body).map(|result| vec![Ok(result)]);
    }
    let size = ranks.unwrap_or(1);
    let delays = slow_links.delays(size)?;
    Ok(threads::run(size, |transport| body(delayed(transport, &delays))))
}

fn delayed(transport: impl Transport + 'static, delays: &[Duration]) -> Arc<dyn Transport> {
    if delays.iter().all(Duration::is_zero) {
        return Arc::new(transport);
    }
    Arc::new(Delayed::new(transport, delays.to_vec()))
}

#[cfg(feature = "mpi")]
fn run_mpi<R>(slow_links: &SlowLinks, body: impl Fn(Arc<dyn Transport>) -> Result<R>) -> Result<R> {
    use crate::transport::mpi::Mpi;

    let transport = Mpi::initialize()?;
    let (rank, size) = (transport.rank(), transport.size());
    let result = match slow_links.delays(size) {
        Ok(delays) => {
            let transport = delayed(transport, &delays);
            // Kept until the end: dropping the last handle finalises MPI, which would wait for ranks that failed.
            let kept = transport.clone();
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(transport)));
            let result = result.unwrap_or_else(|panic| {
                Err(Error::Training(format!("rank {rank} panicked: {}", threads::panic_text(&*panic))))
            });
            result.map_err(|error| (kept, error))
        }
        Err(error) => Err((Arc::new(transport) as Arc<dyn Transport>, error)),
    };
    result.map_err(|(transport, error)| transport.abort(&error))
}

#[cfg(not(feature = "mpi"))]
fn run_mpi<R>(_: &SlowLinks, _: impl Fn(Arc<dyn Transport>) -> Result<R>) -> Result<R> {
    let why = announced_ranks().map_or("--transport mpi was asked for".to_string(), |(size, launcher)| {
        format!("{launcher} has started {size} ranks")
    });
    Err(Error::Environment(format!("{why}, but this program was built without the feature `mpi`")))
}

/// The error to show of a group of threads: a rank's own failure rather than the others' loss of that rank.
pub fn first_failure<R>(results: Vec<Result<R>>) -> Result<Vec<R>> {
    let mut done = Vec::new();
    let mut failures: Vec<(Rank, Error)> = Vec::new();
    for (rank, result) in results.into_iter().enumerate() {
        match result {
            Ok(value) => done.push(value),
            Err(error) => failures.push((rank, error)),
        }
    }
    failures.sort_by_key(|(_, error)| error.is_secondary());
    match failures.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok(done),
    }
}
