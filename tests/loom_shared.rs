//! The shared-memory protocol under loom: every interleaving of a few threads.
//!
//! Futexes are modelled by a mutex and a condition variable: comparing the word and going to sleep is one step, as the kernel
//! promises. Loom fails a model in which everybody sleeps, so a lost wake-up is found.

mod atomics {
    pub(super) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
}

#[path = "../src/transport/shared/protocol.rs"]
#[allow(dead_code, reason = "the library uses what these models do not")]
mod protocol;

use atomics::{AtomicU32, Ordering};
use loom::cell::UnsafeCell;
use loom::sync::{Arc, Condvar, Mutex};
use protocol::{Arrival, Claim, Rendezvous, Sleep, Tally};

#[derive(Default)]
struct Kernel {
    lock: Mutex<()>,
    woken: Condvar,
}

impl Sleep for Kernel {
    fn sleep_while(&self, word: &AtomicU32, value: u32) {
        let guard = self.lock.lock().unwrap();
        if word.load(Ordering::SeqCst) == value {
            drop(self.woken.wait(guard).unwrap());
        }
    }

    fn wake_all(&self, _: &AtomicU32) {
        let _guard = self.lock.lock().unwrap();
        self.woken.notify_all();
    }
}

/// What the ranks share: the protocol, and memory that it is to protect (loom reports races on it).
struct World {
    rendezvous: Rendezvous,
    kernel: Kernel,
    /// Each rank's arrivals, of both parities; used by models in which ranks announce themselves.
    arrivals: Vec<[Arrival; 2]>,
    announces: bool,
    /// Each rank's slot, of both parities.
    slots: Vec<[UnsafeCell<u64>; 2]>,
    /// Each chunk's value.
    chunks: Vec<UnsafeCell<u64>>,
}

// SAFETY: the cells are loom's, which report any access that the protocol does not order.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

impl World {
    fn new(ranks: usize, chunks: usize, announces: bool) -> Arc<World> {
        Arc::new(World {
            rendezvous: Rendezvous::default(),
            kernel: Kernel::default(),
            arrivals: (0..ranks).map(|_| Default::default()).collect(),
            announces,
            slots: (0..ranks).map(|_| [UnsafeCell::new(0), UnsafeCell::new(0)]).collect(),
            chunks: (0..chunks).map(|_| UnsafeCell::new(0)).collect(),
        })
    }

    /// Enters, waits, and reads what every rank has written for this operation.
    fn meet(&self, rank: usize, operation: u64) {
        let ranks = self.slots.len() as u64;
        let parity = (operation & 1) as usize;
        // SAFETY: loom checks it.
        self.slots[rank][parity].with_mut(|slot| unsafe { *slot = operation });
        let is_open = || match self.announces {
            true => self.arrivals.iter().all(|arrivals| arrivals[parity].has_entered(operation)),
            false => self.rendezvous.is_open(operation),
        };
        if self.announces {
            if rank == 0 {
                self.rendezvous.clear_chunks(operation + 1);
            }
            self.arrivals[rank][parity].announce(operation, 7, rank == 0);
            self.rendezvous.wake(&self.kernel);
        } else {
            self.rendezvous.arrive(operation, ranks, Tally::of_one(7, rank == 0), &self.kernel);
        }
        loop {
            let seen = self.rendezvous.gate().seen();
            if is_open() {
                break;
            }
            self.rendezvous.gate().doze(seen, is_open, &self.kernel);
        }
        // Nobody passes before all have arrived: their slots are written, and not yet written again.
        for slot in &self.slots {
            // SAFETY: loom checks it.
            slot[parity].with(|slot| assert_eq!(unsafe { *slot }, operation));
        }
        let tally = match self.announces {
            true => Arrival::tally(self.arrivals.iter().map(|arrivals| &arrivals[parity])),
            false => self.rendezvous.tally(operation),
        };
        assert!(tally.agrees_with(7, ranks) && !tally.agrees_with(8, ranks) && tally.private() == 1);
    }

    /// Claims and does chunks until there are none, then waits for those of others.
    fn work(&self, operation: u64, total: u64) {
        while let Claim::Chunk(number) = self.rendezvous.claim(operation, total) {
            // SAFETY: loom checks it: a chunk that two ranks had at a time would be a race.
            self.chunks[number as usize].with_mut(|chunk| unsafe {
                assert_eq!(*chunk, operation - 1, "done once in every operation");
                *chunk = operation;
            });
            self.rendezvous.finish(operation, total, &self.kernel);
        }
        loop {
            let seen = self.rendezvous.finished().seen();
            if self.rendezvous.is_finished(operation, total) {
                break;
            }
            self.rendezvous.finished().doze(seen, || false, &self.kernel);
        }
        for chunk in &self.chunks {
            // SAFETY: loom checks it.
            chunk.with(|chunk| assert_eq!(unsafe { *chunk }, operation));
        }
    }
}

/// Every interleaving with at most `preemptions` of them forced, on `ranks` threads: of ranks that are counted, and of ranks
/// that announce themselves.
fn check(ranks: usize, chunks: usize, preemptions: usize, body: fn(&World, usize)) {
    for announces in [false, true] {
        check_one(ranks, chunks, announces, preemptions, body);
    }
}

fn check_one(ranks: usize, chunks: usize, announces: bool, preemptions: usize, body: fn(&World, usize)) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let world = World::new(ranks, chunks, announces);
        let threads: Vec<_> = (1..ranks)
            .map(|rank| {
                let world = world.clone();
                loom::thread::spawn(move || body(&world, rank))
            })
            .collect();
        body(&world, 0);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn three_ranks_meet() {
    check(3, 0, 2, |world, rank| world.meet(rank, 1));
}

#[test]
fn two_ranks_meet_three_times() {
    check(2, 0, 3, |world, rank| (1..=3).for_each(|operation| world.meet(rank, operation)));
}

fn meet_and_work<const OPERATIONS: u64, const CHUNKS: u64>(world: &World, rank: usize) {
    for operation in 1..=OPERATIONS {
        world.meet(rank, operation);
        world.work(operation, CHUNKS);
    }
}

#[test]
fn chunks_are_done_once_in_two_operations_in_a_row() {
    check(2, 2, 2, meet_and_work::<2, 2>);
}

#[test]
fn words_of_chunks_are_used_again() {
    check(2, 1, 1, meet_and_work::<4, 1>);
}

#[test]
fn a_rank_that_gives_up_knows_what_others_still_write() {
    check(2, 2, 3, |world, rank| {
        world.meet(rank, 1);
        if rank == 0 {
            let claimed = world.rendezvous.close(1, 2);
            while world.rendezvous.settled(1) < claimed {
                loom::thread::yield_now();
            }
            // From here on the memory is this rank's own.
            for chunk in &world.chunks {
                // SAFETY: loom checks it.
                chunk.with_mut(|chunk| unsafe { *chunk = 9 });
            }
        } else {
            while let Claim::Chunk(number) = world.rendezvous.claim(1, 2) {
                // SAFETY: loom checks it.
                world.chunks[number as usize].with_mut(|chunk| unsafe { *chunk = 1 });
                world.rendezvous.finish(1, 2, &world.kernel);
            }
        }
    });
}
