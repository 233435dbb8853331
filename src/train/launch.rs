//! Finds out how the ranks were started, starts them, and ends the job if one fails.

mod processes;

use super::flags::TransportChoice;
use super::heterogeneity::SlowLinks;
use crate::error::{Error, Result};
use crate::transport::{Delayed, Rank, Transport, announced_ranks, threads};
use processes::Started;
use std::sync::Arc;
use std::time::Duration;

/// Runs `body` on the ranks of this process: all of them as threads, or one of a job of processes.
///
/// Returns the results of this process's ranks. Where ranks are processes, one that fails or panics prints one message and
/// ends the job with [`Transport::abort`]; then this does not return. Nor does it in a process that starts the others itself
/// (`--ranks N --transport shm`): that one ends with their exit code.
///
/// # Errors
/// `Usage` or `Environment` if the ranks cannot be started as asked.
pub fn run_ranks<R: Send>(
    choice: TransportChoice,
    ranks: Option<usize>,
    slow_links: &SlowLinks,
    body: impl Fn(Arc<dyn Transport>) -> Result<R> + Sync,
) -> Result<Vec<Result<R>>> {
    if let Some(started) = Started::by_esync()? {
        return run_process(started.join()?, slow_links, body).map(|result| vec![Ok(result)]);
    }
    let launched = announced_ranks();
    if let (Some(ranks), Some((size, launcher))) = (ranks, launched)
        && size > 1
    {
        return Err(Error::Usage(format!(
            "--ranks {ranks} makes ranks of its own, but {launcher} has started {size} processes: leave out one of them"
        )));
    }
    let is_launched = match choice {
        TransportChoice::Auto | TransportChoice::Nccl => ranks.is_none() && launched.is_some(),
        TransportChoice::Threads => {
            if let Some((size, launcher)) = launched.filter(|(size, _)| *size > 1) {
                return Err(Error::Usage(format!(
                    "--transport threads runs in one process, but {launcher} has started {size}: use --ranks without it"
                )));
            }
            false
        }
        TransportChoice::Shm => match ranks {
            Some(ranks) => {
                slow_links.delays(ranks)?;
                return processes::run(ranks);
            }
            None if launched.is_some() => true,
            None => {
                return Err(Error::Usage(
                    "--transport shm needs --ranks N, which starts N processes, or a launcher: mpirun -n N"
                        .into(),
                ));
            }
        },
        TransportChoice::Mpi => true,
    };
    if is_launched {
        return run_mpi(choice, slow_links, body).map(|result| vec![Ok(result)]);
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

/// Runs `body` on the one rank of this process, and ends the job if it fails.
fn run_process<R>(
    transport: impl Transport + 'static,
    slow_links: &SlowLinks,
    body: impl Fn(Arc<dyn Transport>) -> Result<R>,
) -> Result<R> {
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
    // One rank prints what several see alike; the transport knows which.
    result.map_err(|(transport, error)| {
        if !error.is_secondary() {
            transport.poison(&error.to_string());
        }
        transport.abort(&error)
    })
}

#[cfg(feature = "mpi")]
fn run_mpi<R>(
    choice: TransportChoice,
    slow_links: &SlowLinks,
    body: impl Fn(Arc<dyn Transport>) -> Result<R>,
) -> Result<R> {
    use crate::transport::mpi::Mpi;
    use crate::transport::shm::Shm;

    let mpi = Mpi::initialize()?;
    let shares_host = (0..mpi.size()).all(|rank| mpi.peer(rank).host == mpi.peer(0).host);
    let wants_shm = match choice {
        TransportChoice::Auto | TransportChoice::Nccl => shares_host && mpi.size() > 1,
        TransportChoice::Shm => true,
        TransportChoice::Threads | TransportChoice::Mpi => false,
    };
    if !wants_shm {
        return run_process(mpi, slow_links, body);
    }
    let mpi: Arc<dyn Transport> = Arc::new(mpi);
    match Shm::over(mpi.clone()) {
        Ok(shm) => run_process(shm, slow_links, body),
        Err(error) if choice != TransportChoice::Shm && !error.concerns_a_peer() => {
            if mpi.rank() == 0 {
                eprintln!("esync: note: no shared memory, so --transport mpi: {error}");
            }
            run_process(mpi, slow_links, body)
        }
        Err(error) => mpi.abort(&error),
    }
}

#[cfg(not(feature = "mpi"))]
fn run_mpi<R>(_: TransportChoice, _: &SlowLinks, _: impl Fn(Arc<dyn Transport>) -> Result<R>) -> Result<R> {
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
