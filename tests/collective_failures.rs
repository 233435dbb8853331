//! What goes wrong between ranks on threads: disagreement, stragglers, deaths, slow links. Each is an error on the ranks
//! that it concerns, in time and by name, and the process lives on.

#[path = "common/ranks.rs"]
mod ranks;

use esync::collective::{COLLECTIVE_NAMES, Communicator, CommunicatorOptions, Member, Order, Ring};
use esync::collective::{Collective, Operation, Schedule, Slice, Step, Topology};
use esync::reduce::Operator;
use esync::transport::{Delayed, Rank, Transport, threads};
use esync::{Error, Result};
use ranks::{on_ranks, options, try_ranks};
use std::sync::Arc;
use std::time::{Duration, Instant};

const N: usize = 4;
/// The rank that does it differently.
const ODD: Rank = 2;

/// Every rank must end with `Mismatch`, in time, whose text has all of `words`; and stay failed.
fn check_mismatch(
    words: &[&str],
    options_of: impl Fn(Rank) -> CommunicatorOptions + Sync,
    call: impl Fn(&mut Communicator, bool) -> Result<()> + Sync,
) {
    let started = Instant::now();
    let results = threads::run(N, |transport| {
        let rank = transport.rank();
        let mut communicator = Communicator::new(Arc::new(transport), options_of(rank))?;
        let result = call(&mut communicator, rank == ODD);
        let again = Instant::now();
        assert_eq!(
            communicator.barrier().map_err(|error| error.to_string()),
            result.clone().map_err(|error| error.to_string()),
            "a failed communicator keeps its error"
        );
        assert!(again.elapsed() < Duration::from_millis(100));
        result
    });
    for (rank, result) in results.iter().enumerate() {
        let Err(error @ Error::Mismatch { .. }) = result else { panic!("rank {rank}: {result:?}") };
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text} lacks one of {words:?}");
        assert!(text.contains("rank 0 has") && text.contains(&format!("rank {ODD} has")), "{text}");
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    // The process lives on, with communicators as good as new.
    on_ranks(N, &options("ring"), Communicator::barrier);
}

fn check_mismatched_calls(words: &[&str], call: impl Fn(&mut Communicator, bool) -> Result<()> + Sync) {
    for collective in COLLECTIVE_NAMES {
        check_mismatch(words, |_| options(collective), &call);
    }
}

#[test]
fn lengths_that_differ() {
    check_mismatched_calls(&["element count", "100", "101"], |communicator, odd| {
        communicator.all_reduce(&mut vec![1f32; 100 + usize::from(odd)], Operator::Sum)
    });
}

#[test]
fn a_length_of_zero_still_takes_part() {
    check_mismatched_calls(&["element count", "100", "0"], |communicator, odd| {
        communicator.all_reduce(&mut vec![1f32; if odd { 0 } else { 100 }], Operator::Sum)
    });
}

#[test]
fn types_that_differ() {
    check_mismatched_calls(&["element type", "f32", "i32"], |communicator, odd| match odd {
        true => communicator.all_reduce(&mut [1i32; 8], Operator::Sum),
        false => communicator.all_reduce(&mut [1f32; 8], Operator::Sum),
    });
}

#[test]
fn operators_that_differ() {
    check_mismatched_calls(&["operator", "sum", "max"], |communicator, odd| {
        communicator.all_reduce(&mut [1f32; 8], if odd { Operator::Max } else { Operator::Sum })
    });
}

#[test]
fn roots_that_differ() {
    check_mismatched_calls(&["root", "0", "1"], |communicator, odd| {
        communicator.broadcast(&mut [1f32; 8], usize::from(odd))
    });
}

#[test]
fn a_barrier_against_an_all_reduce() {
    check_mismatched_calls(&["operation", "all-reduce", "barrier"], |communicator, odd| match odd {
        true => communicator.barrier(),
        false => communicator.all_reduce(&mut [1f32; 8], Operator::Sum),
    });
}

#[test]
fn kinds_that_differ() {
    check_mismatched_calls(&["operation", "all-gather", "reduce-scatter"], |communicator, odd| match odd {
        true => communicator.reduce_scatter(&mut [1f32; 8], Operator::Sum).map(drop),
        false => communicator.all_gather(&mut [1f32; 8]),
    });
}

#[test]
fn orders_that_differ() {
    check_mismatch(
        &["order", "canonical", "rank"],
        |rank| {
            let order = if rank == ODD { Order::Rank } else { Order::Canonical };
            CommunicatorOptions { order, ..options("parameter-server") }
        },
        |communicator, _| communicator.all_reduce(&mut [1f32; 8], Operator::Sum),
    );
}

#[test]
fn collectives_that_differ() {
    check_mismatch(
        &["collective", "ring", "butterfly"],
        |rank| options(if rank == ODD { "butterfly" } else { "ring" }),
        |communicator, _| communicator.all_reduce(&mut [1f32; 8], Operator::Sum),
    );
}

#[test]
fn segments_that_differ() {
    check_mismatch(
        &["segment bytes", "64", "128"],
        |rank| CommunicatorOptions { segment_bytes: if rank == ODD { 128 } else { 64 }, ..options("ring") },
        |communicator, _| communicator.all_reduce(&mut [1f32; 8], Operator::Sum),
    );
}

/// The ranks whose operation was lost to `lost`.
fn assert_lost(results: &[Result<()>], lost: Rank) {
    for (rank, result) in results.iter().enumerate().filter(|(rank, _)| *rank != lost) {
        let Err(Error::PeerLost { peer, .. }) = result else { panic!("rank {rank}: {result:?}") };
        assert_eq!(peer.rank, lost);
    }
}

#[test]
fn a_straggler_beyond_the_deadline_is_named_and_nobody_else() {
    for collective in COLLECTIVE_NAMES {
        let options = CommunicatorOptions { timeout: Duration::from_millis(150), ..options(collective) };
        let results = try_ranks(N, &options, |communicator| {
            if communicator.rank() == ODD {
                std::thread::sleep(Duration::from_millis(450));
                return Ok(());
            }
            let started = Instant::now();
            let result = communicator.all_reduce(&mut [1f32; 100], Operator::Sum);
            assert!((0.14..0.4).contains(&started.elapsed().as_secs_f64()), "{:?}", started.elapsed());
            let again = Instant::now();
            assert!(communicator.all_reduce(&mut [1f32; 100], Operator::Sum).is_err());
            assert!(again.elapsed() < Duration::from_millis(50), "a failed communicator fails at once");
            // Nobody leaves before all have had their deadline: leaving is another error.
            std::thread::sleep(Duration::from_millis(100));
            result
        });
        for (rank, result) in results.iter().enumerate().filter(|(rank, _)| *rank != ODD) {
            let Err(Error::Stalled { waiting, missing, operation, .. }) = result else {
                panic!("{collective}, rank {rank}: {result:?}")
            };
            assert_eq!(
                (*waiting, missing.len(), missing[0].rank),
                (rank, 1, ODD),
                "{collective}: {missing:?}"
            );
            assert!(operation.contains("all-reduce of 100 f32"), "{operation}");
        }
    }
}

#[test]
fn a_straggler_inside_an_exchange_ends_it_too() {
    for collective in COLLECTIVE_NAMES {
        let options = CommunicatorOptions { timeout: Duration::from_millis(150), ..options(collective) };
        let results = try_ranks(N, &options, |communicator| {
            communicator.enter(100, Operator::Sum, Member::default())?;
            if communicator.rank() == ODD {
                std::thread::sleep(Duration::from_millis(400));
                return Ok(());
            }
            communicator.all_reduce_entered(&mut [1f32; 100], Operator::Sum)
        });
        for (rank, result) in results.iter().enumerate().filter(|(rank, _)| *rank != ODD) {
            assert!(
                matches!(result, Err(Error::Stalled { .. } | Error::PeerLost { .. })),
                "{collective}, rank {rank}: {result:?}"
            );
        }
    }
}

#[test]
fn a_straggler_within_the_deadline_is_waited_for() {
    for collective in COLLECTIVE_NAMES {
        on_ranks(N, &options(collective), |communicator| {
            if communicator.rank() == ODD {
                std::thread::sleep(Duration::from_millis(60));
            }
            let mut vector = [1f32; 10];
            communicator.all_reduce(&mut vector, Operator::Sum)?;
            assert_eq!(vector, [N as f32; 10]);
            Ok(())
        });
    }
}

#[test]
fn a_rank_that_panics_is_lost_to_the_others() {
    for collective in COLLECTIVE_NAMES {
        let started = Instant::now();
        let results = try_ranks(N, &options(collective), |communicator| {
            communicator.all_reduce(&mut [1f32; 10], Operator::Sum)?;
            assert!(communicator.rank() != ODD, "thrown on purpose");
            communicator.all_reduce(&mut [1f32; 10], Operator::Sum)
        });
        assert_lost(&results, ODD);
        assert!(results[ODD].as_ref().is_err_and(|error| error.to_string().contains("thrown on purpose")));
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn a_rank_that_panics_inside_an_exchange_is_lost_to_the_others() {
    for collective in COLLECTIVE_NAMES {
        let results = try_ranks(N, &options(collective), |communicator| {
            communicator.enter(10, Operator::Sum, Member::default())?;
            assert!(communicator.rank() != ODD, "thrown on purpose");
            communicator.all_reduce_entered(&mut [1f32; 10], Operator::Sum)
        });
        assert_lost(&results, ODD);
    }
}

#[test]
fn a_rank_that_leaves_is_lost_to_the_others() {
    let results = try_ranks(N, &options("native"), |communicator| {
        if communicator.rank() == ODD { Ok(()) } else { communicator.barrier() }
    });
    // The first to notice leaves too, so a later one may name it.
    for (rank, result) in results.iter().enumerate().filter(|(rank, _)| *rank != ODD) {
        assert!(matches!(result, Err(Error::PeerLost { .. })), "rank {rank}: {result:?}");
    }
}

/// All-reduces on a group in which rank 1's messages are late; answers the seconds of the slowest rank.
fn seconds_with_delay(collective: &str, delay: Duration) -> f64 {
    let seconds = threads::run(N, |transport| {
        let mut delays = vec![Duration::ZERO; N];
        delays[1] = delay;
        let transport = Delayed::new(transport, delays);
        let mut communicator = Communicator::new(Arc::new(transport), options(collective))?;
        communicator.barrier()?;
        let started = Instant::now();
        for len in [1, 10, 1000] {
            let mut vector: Vec<i32> = (0..len).map(|index| index + communicator.rank() as i32).collect();
            communicator.all_reduce(&mut vector, Operator::Sum)?;
            assert!(
                (0..len).all(|index| vector[index as usize] == 4 * index + 6),
                "{collective}: {vector:?}"
            );
        }
        Ok(started.elapsed().as_secs_f64())
    });
    seconds.into_iter().map(|seconds| seconds.expect("no rank fails")).fold(0.0, f64::max)
}

#[test]
fn a_delayed_link_is_slow_and_correct() {
    for collective in COLLECTIVE_NAMES {
        let slow = seconds_with_delay(collective, Duration::from_millis(10));
        // Three operations, each with an entry and at least one more message or pause of 10 ms.
        assert!(slow >= 0.055, "{collective}: {slow}");
        let fast = seconds_with_delay(collective, Duration::ZERO);
        assert!(fast < slow, "{collective}: {fast} without and {slow} with a delay");
    }
}

#[test]
fn a_delay_beyond_the_deadline_is_a_stall() {
    let results = threads::run(2, |transport| {
        let transport = Delayed::new(transport, vec![Duration::ZERO, Duration::from_secs(5)]);
        let options = CommunicatorOptions { timeout: Duration::from_millis(100), ..options("ring") };
        let result = Communicator::new(Arc::new(transport), options)?.barrier();
        std::thread::sleep(Duration::from_millis(50));
        result
    });
    assert!(results.iter().all(|result| matches!(result, Err(Error::Stalled { .. }))), "{results:?}");
}

/// A ring whose schedule has one step too many.
struct Broken(Step);

impl Collective for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn schedule(
        &self,
        operation: &Operation,
        topology: &Topology,
        rank: Rank,
        len: usize,
    ) -> Result<Schedule> {
        let mut schedule = Ring.schedule(operation, topology, rank, len)?;
        schedule.push([self.0.clone()]);
        Ok(schedule)
    }
}

#[test]
fn a_schedule_that_would_touch_foreign_memory_does_not_run() {
    let beyond = Slice::buffer(5..1000);
    for step in [
        Step::Copy { into: beyond.clone(), from: Slice::buffer(0..995) },
        Step::Send { to: 0, from: beyond },
        Step::Recv { from: 99, into: Slice::buffer(0..1) },
        Step::Copy { into: Slice::scratch(17, 0..1), from: Slice::buffer(0..1) },
        Step::Reduce { into: Slice::buffer(0..4), left: Slice::buffer(1..5), right: Slice::buffer(5..9) },
    ] {
        let options = CommunicatorOptions { collective: Arc::new(Broken(step)), ..options("ring") };
        let results =
            try_ranks(3, &options, |communicator| communicator.all_reduce(&mut [1f32; 12], Operator::Sum));
        for result in results {
            let Err(Error::Internal(text)) = &result else { panic!("{result:?}") };
            assert!(text.contains("`broken`"), "{text}");
        }
    }
}
