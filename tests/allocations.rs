//! The steady state allocates nothing: counted by an allocator of our own, on the threads of the ranks.

#[path = "common/ranks.rs"]
mod ranks;

use esync::collective::{COLLECTIVE_NAMES, CommunicatorOptions};
use esync::reduce::{Operator, WireFormat};
use ranks::{on_ranks, options};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// How often this thread has asked for memory. Needs no memory itself, and no destructor.
    static REQUESTS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    REQUESTS.set(REQUESTS.get() + 1);
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(memory, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_counter_counts() {
    let before = REQUESTS.get();
    drop(std::hint::black_box(Box::new(7)));
    assert_eq!(REQUESTS.get(), before + 1);
}

/// Requests of each rank during 100 all-reduces after a warm-up of ten.
fn check(collective: &str, n: usize, segment_bytes: usize) {
    check_wire(collective, n, segment_bytes, WireFormat::F32);
}

fn check_wire(collective: &str, n: usize, segment_bytes: usize, wire: WireFormat) {
    let options = CommunicatorOptions { segment_bytes, wire, ..options(collective) };
    let requests = on_ranks(n, &options, |communicator| {
        let mut vector = vec![0f32; 1000];
        let mut before = 0;
        for number in 0..110 {
            if number == 10 {
                before = REQUESTS.get();
            }
            communicator.all_reduce(&mut vector, Operator::Sum)?;
            // Some waits must be long: the path that sleeps shall not allocate either.
            if number % 20 == 19 && communicator.rank() == 0 {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
        Ok(REQUESTS.get() - before)
    });
    assert_eq!(requests, vec![0; n], "{collective}, wire {wire}, {n} ranks, segments of {segment_bytes}");
}

#[test]
fn a_hundred_all_reduces_allocate_nothing() {
    for collective in COLLECTIVE_NAMES {
        for n in [2, 5, 8] {
            check(collective, n, 256 * 1024);
            check(collective, n, 256);
        }
    }
}

#[test]
fn narrow_wires_allocate_nothing_either() {
    for wire in [WireFormat::F16, WireFormat::Bf16, WireFormat::Int8] {
        for n in [2, 5, 8] {
            check_wire("ring", n, 256 * 1024, wire);
            check_wire("ring", n, 256, wire);
        }
    }
}

#[test]
fn a_server_allocates_nothing_after_the_first_push() {
    use esync::policy::{Payload, PushRule, Store};

    let values = vec![0.5_f32; 10_000];
    let compensated =
        |mean_square_decay| PushRule::DelayCompensated { learning_rate: 0.1, lambda: 1.0, mean_square_decay };
    let rules = [
        (Payload::Delta, PushRule::Add { scale: 0.5 }),
        (Payload::Delta, PushRule::Buffer { scale: 0.5 }),
        (Payload::Gradient, compensated(None)),
        (Payload::Gradient, compensated(Some(0.95))),
        (Payload::Parameters, PushRule::LossWeighted),
        (
            Payload::Delta,
            PushRule::DelayedNesterov { period: 2, learning_rate: 0.7, momentum: 0.9, carry: 0.0 },
        ),
        (Payload::Parameters, PushRule::Elastic { alpha: 0.1 }),
        (Payload::Delta, PushRule::Discard),
    ];
    for (payload, rule) in rules {
        let mut store = Store::new(&values, 9_000, 2).unwrap().with_backups();
        let mut push_and_pull = || {
            store.apply(1, payload, &values, rule, &mut |_| Ok(1.0)).unwrap();
            store.publish().unwrap();
            std::hint::black_box(store.pull(1));
        };
        push_and_pull();
        let before = REQUESTS.get();
        (0..10).for_each(|_| push_and_pull());
        assert_eq!(REQUESTS.get(), before, "{rule:?}");
    }
}
