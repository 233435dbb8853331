//! Runs something on every rank of a group of threads.

use esync::collective::{Communicator, CommunicatorOptions, collective_by_name};
use esync::transport::{Transport, threads};
use esync::{Error, Result};
use std::sync::Arc;
use std::time::Duration;

/// Options of a communicator, as a test states them.
pub(crate) fn options(collective: &str) -> CommunicatorOptions {
    CommunicatorOptions {
        collective: collective_by_name(collective, None).expect("a name of the registry"),
        timeout: Duration::from_secs(20),
        ..CommunicatorOptions::default()
    }
}

/// What `body` answers on each of `n` ranks.
pub(crate) fn try_ranks<R: Send>(
    n: usize,
    options: &CommunicatorOptions,
    body: impl Fn(&mut Communicator) -> Result<R> + Sync,
) -> Vec<Result<R>> {
    threads::run(n, |transport| {
        let transport: Arc<dyn Transport> = Arc::new(transport);
        body(&mut Communicator::new(transport, options.clone())?)
    })
}

/// The same where every rank must succeed. A rank's own failure is shown rather than the others' loss of it.
pub(crate) fn on_ranks<R: Send>(
    n: usize,
    options: &CommunicatorOptions,
    body: impl Fn(&mut Communicator) -> Result<R> + Sync,
) -> Vec<R> {
    let results = try_ranks(n, options, body);
    let mut failures: Vec<&Error> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    failures.sort_by_key(|error| error.is_secondary());
    if let Some(error) = failures.first() {
        let CommunicatorOptions { collective, order, segment_bytes, .. } = options;
        panic!("{}, order {order}, {n} ranks, segments of {segment_bytes}: {error}", collective.name());
    }
    results.into_iter().filter_map(Result::ok).collect()
}
