//! The single pieces of a collective: rendezvous and entry between threads, the executor, schedules and their proofs.
//!
//! `cargo bench --no-default-features --bench collective`. Calls between ranks are made in batches by all ranks together, and
//! the clock is rank 0's.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use esync::collective::verify::verify;
use esync::collective::{
    COLLECTIVE_NAMES, Communicator, CommunicatorOptions, Kind, Operation, Topology, collective_by_name,
};
use esync::reduce::Operator;
use esync::transport::threads;
use std::sync::Arc;

const RANKS: [usize; 3] = [2, 4, 8];

/// Calls of each sample: starting the threads is spread over so many.
const CALLS: usize = 500;

fn main() {
    divan::main();
}

/// Names of the algorithms that have a schedule for an all-reduce.
fn scheduled() -> impl Iterator<Item = &'static str> {
    let has_schedule = |name: &&str| {
        let collective = collective_by_name(name, None).expect("a name of the registry");
        collective.schedule(&Operation::new(Kind::AllReduce), &Topology::flat(8), 0, 1024).is_ok()
    };
    COLLECTIVE_NAMES.iter().copied().filter(has_schedule)
}

/// `CALLS` calls of `body` on each of `ranks` threads.
fn on_ranks(ranks: usize, collective: &str, body: impl Fn(&mut Communicator) -> esync::Result<()> + Sync) {
    let results = threads::run(ranks, |transport| {
        let collective = collective_by_name(collective, None)?;
        let options = CommunicatorOptions { collective, ..CommunicatorOptions::default() };
        let mut communicator = Communicator::new(Arc::new(transport), options)?;
        (0..CALLS).try_for_each(|_| body(&mut communicator))
    });
    results.into_iter().for_each(|result| result.expect("all ranks do the same"));
}

#[divan::bench(args = RANKS, sample_count = 20, sample_size = 1)]
fn rendezvous(bencher: Bencher, ranks: usize) {
    bencher.counter(ItemsCount::new(CALLS)).bench_local(|| on_ranks(ranks, "ring", Communicator::barrier));
}

/// One element: what a call costs besides moving and adding.
#[divan::bench(args = RANKS, sample_count = 20, sample_size = 1)]
fn entry(bencher: Bencher, ranks: usize) {
    bencher.counter(ItemsCount::new(CALLS)).bench_local(|| {
        on_ranks(ranks, "recursive-doubling", |communicator| {
            communicator.all_reduce(&mut [1.0f32], Operator::Max)
        })
    });
}

/// 16 KiB on four threads: the executor's own work weighs as much as the bytes.
#[divan::bench(args = scheduled(), sample_count = 20, sample_size = 1)]
fn executor(bencher: Bencher, collective: &str) {
    bencher.counter(ItemsCount::new(CALLS)).bench_local(|| {
        on_ranks(4, collective, |communicator| communicator.all_reduce(&mut [1.0f32; 4096], Operator::Max))
    });
}

#[divan::bench(args = scheduled())]
fn schedule_of_16_ranks(bencher: Bencher, collective: &str) {
    let collective = collective_by_name(collective, None).expect("a name of the registry");
    let (operation, topology) = (Operation::new(Kind::AllReduce), Topology::flat(16));
    bencher.bench_local(|| collective.schedule(black_box(&operation), &topology, 5, 1 << 20));
}

#[divan::bench(args = scheduled(), sample_count = 20)]
fn proof_for_16_ranks(bencher: Bencher, collective: &str) {
    let collective = collective_by_name(collective, None).expect("a name of the registry");
    let (operation, topology) = (Operation::new(Kind::AllReduce), Topology::flat(16));
    bencher.bench_local(|| {
        verify(&*collective, black_box(&operation), &topology, 1 << 20).map(|proof| proof.rounds())
    });
}
