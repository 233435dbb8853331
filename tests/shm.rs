//! Transport `shm` with real processes: right results, and the right end when one of them stops, dies or errs.
//!
//! A test starts this very program again, with the name of a scenario in its environment; that one calls `run_ranks`, which
//! starts a process for each rank. So ranks are processes, and a scenario is a closure.

#[path = "common/process.rs"]
mod process;

use esync::collective::{
    Communicator, CommunicatorOptions, Kind, Order, SharedBuffer, collective_by_name, part,
};
use esync::reduce::{Element, ElementType, Operator};
use esync::train::{SlowLinks, TransportChoice, run_ranks};
use esync::transport::Transport;
use esync::{Error, Result};
use half::{bf16, f16};
use process::{Finished, alone, finish};
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, getpid, kill_process};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SCENARIO: &str = "SHM_TEST_SCENARIO";
const RANKS: usize = 8;
/// Whoever stops, dies or errs.
const ODD: usize = 5;
const TIMEOUT: Duration = Duration::from_secs(2);

fn options(collective: &str) -> CommunicatorOptions {
    CommunicatorOptions {
        collective: collective_by_name(collective, None).expect("a name of the registry"),
        timeout: TIMEOUT,
        ..CommunicatorOptions::default()
    }
}

fn communicator(transport: &Arc<dyn Transport>) -> Result<Communicator> {
    Communicator::new(transport.clone(), options("native"))
}

/// Runs a scenario as `ranks` processes, checks that nothing is left of it, and returns what it printed.
#[track_caller]
fn start(scenario: &str, ranks: usize) -> Finished {
    let before = names();
    let marker = format!("{scenario}:{ranks}:{}:{:?}", std::process::id(), std::thread::current().id());
    let program = std::env::current_exe().expect("this program's path");
    let mut command = alone(program);
    command.args(["--exact", "as_one_of_the_processes", "--ignored", "--nocapture"]).env(SCENARIO, &marker);
    let finished = finish(&mut command, 60);
    assert_eq!(processes(&marker), Vec::<PathBuf>::new(), "processes are left");
    // Others on this machine may have pages of their own for a moment.
    let until = Instant::now() + Duration::from_secs(10);
    while names().iter().any(|name| !before.contains(name)) {
        assert!(Instant::now() < until, "left in /dev/shm: {:?}", names());
        std::thread::sleep(Duration::from_millis(50));
    }
    finished
}

fn names() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.to_string_lossy().contains("esync-")).collect()
}

fn processes(marker: &str) -> Vec<PathBuf> {
    let wanted = format!("{SCENARIO}={marker}");
    let has = |path: &PathBuf| {
        let environment = std::fs::read(path.join("environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|entry| entry == wanted.as_bytes())
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(has).collect()
}

/// Not a test of its own: what the others start.
#[test]
#[ignore = "started by the other tests"]
fn as_one_of_the_processes() {
    let Ok(marker) = std::env::var(SCENARIO) else { return };
    let mut parts = marker.split(':');
    let scenario = parts.next().unwrap_or_default();
    let ranks: usize = parts.next().and_then(|ranks| ranks.parse().ok()).expect("a number of ranks");
    let body = |transport: Arc<dyn Transport>| match scenario {
        "stopped" => stopped(&transport),
        "killed" => killed(&transport),
        "mismatch" => mismatch(&transport),
        "fails" => fails(&transport),
        "random" => random(&transport),
        "again" => again(&transport),
        other => panic!("no scenario {other}"),
    };
    if let Err(error) = run_ranks(TransportChoice::Shm, Some(ranks), &SlowLinks::default(), body) {
        eprintln!("{error}");
        std::process::exit(error.exit_code());
    }
    std::process::exit(0);
}

/// All ranks reduce once; then the odd one does `harm` and calls again, as the others do. Answers their error.
fn one_then(
    transport: &Arc<dyn Transport>,
    harm: impl FnOnce(),
) -> Result<(Option<Error>, f64, SharedBuffer<f32>)> {
    let mut communicator = communicator(transport)?;
    let mut buffer = communicator.alloc::<f32>(1 << 20)?;
    assert!(buffer.is_registered());
    buffer.fill(1.0);
    communicator.all_reduce(&mut buffer, Operator::Sum)?;
    if communicator.rank() == ODD {
        harm();
    }
    let started = Instant::now();
    let result = communicator.all_reduce(&mut buffer, Operator::Sum);
    let seconds = started.elapsed().as_secs_f64();
    // A communicator that failed says so again, at once.
    assert_eq!(result.is_err(), communicator.barrier().is_err());
    Ok((result.err(), seconds, buffer))
}

fn stopped(transport: &Arc<dyn Transport>) -> Result<()> {
    let harm = || {
        kill_process(getpid(), Signal::STOP).expect("a signal to itself");
        // Another thread may be the one that stops them all, a little later.
        std::thread::sleep(Duration::from_millis(50));
    };
    let (error, seconds, mut buffer) = one_then(transport, harm)?;
    let rank = transport.rank();
    if rank == ODD {
        // It runs again, and finds that the others have gone on without it.
        assert!(matches!(error, Some(Error::PeerLost { .. })), "{error:?}");
        println!("rank {rank} lives");
        return Ok(());
    }
    let Some(Error::Stalled { missing, hint, .. }) = &error else { panic!("rank {rank}: {error:?}") };
    let pid = missing[0].pid;
    assert_eq!((missing.len(), missing[0].rank), (1, ODD), "{error:?}");
    assert_eq!(pid, transport.peer(ODD).pid);
    assert!(hint.contains(&format!("kill -CONT {pid}")), "{hint}");
    assert!((TIMEOUT.as_secs_f64()..TIMEOUT.as_secs_f64() + 1.0).contains(&seconds), "{seconds}");
    // The memory is this rank's own again, whatever the stopped one does when it wakes up.
    buffer.fill(rank as f32);
    std::thread::sleep(Duration::from_millis(500));
    if rank == 0 {
        kill_process(Pid::from_raw(pid as i32).expect("a process"), Signal::CONT).expect("it is still there");
    }
    std::thread::sleep(Duration::from_millis(500));
    assert!(buffer.iter().all(|&value| value == rank as f32));
    println!("rank {rank} lives");
    Ok(())
}

#[test]
fn a_stopped_process_is_a_stall_that_names_it() {
    let finished = start("stopped", RANKS).expect(0);
    assert_eq!(finished.lines_with("lives"), RANKS, "{finished:?}");
}

fn killed(transport: &Arc<dyn Transport>) -> Result<()> {
    let (error, seconds, _) = one_then(transport, || {
        kill_process(getpid(), Signal::KILL).expect("a signal to itself");
    })?;
    let rank = transport.rank();
    let Some(Error::PeerLost { peer, operation, .. }) = &error else { panic!("rank {rank}: {error:?}") };
    assert_eq!((peer.rank, peer.pid), (ODD, transport.peer(ODD).pid));
    assert!(operation.contains("all-reduce of 1048576 f32"), "{operation}");
    assert!(seconds < 1.0, "{seconds}");
    println!("rank {rank} lives");
    // So that nobody finds this one gone instead.
    std::thread::sleep(Duration::from_millis(1000));
    Ok(())
}

#[test]
fn a_killed_process_is_lost_to_the_others_within_a_second() {
    let finished = start("killed", RANKS).expect(137);
    assert_eq!(finished.lines_with("lives"), RANKS - 1, "{finished:?}");
}

fn mismatch(transport: &Arc<dyn Transport>) -> Result<()> {
    let mut communicator = communicator(transport)?;
    let rank = communicator.rank();
    for count in [10, 100_000] {
        let mut buffer = communicator.alloc::<f64>(count + usize::from(rank == ODD))?;
        let error = communicator.all_reduce(&mut buffer, Operator::Sum).expect_err("the lengths differ");
        assert!(matches!(error, Error::Mismatch { .. }), "rank {rank}: {error}");
        let text = format!("element count: rank 0 has {count}, rank {ODD} has {}", count + 1);
        assert!(error.to_string().contains(&text), "{error}");
        // Nothing was touched, so a new communicator can go on.
        communicator = Communicator::new(transport.clone(), options("native"))?;
        communicator.barrier()?;
    }
    println!("rank {rank} lives");
    Ok(())
}

#[test]
fn another_length_is_a_mismatch_on_every_rank() {
    let finished = start("mismatch", RANKS).expect(0);
    assert_eq!(finished.lines_with("lives"), RANKS, "{finished:?}");
}

fn fails(transport: &Arc<dyn Transport>) -> Result<()> {
    let mut communicator = communicator(transport)?;
    communicator.barrier()?;
    if communicator.rank() == ODD {
        return Err(Error::Training("thrown on purpose".into()));
    }
    communicator.barrier()
}

#[test]
fn a_rank_that_fails_ends_the_job_with_one_message_and_its_code() {
    let finished = start("fails", RANKS).expect(1);
    assert_eq!(finished.lines_with("thrown on purpose"), 1, "{finished:?}");
    assert_eq!(finished.lines_with("esync: "), 1, "{finished:?}");
    // Nine starts of this program are in it.
    assert!(finished.seconds < 20.0, "{finished:?}");
}

/// Buffers come and go between calls, on each rank at other times.
fn again(transport: &Arc<dyn Transport>) -> Result<()> {
    let mut communicator = communicator(transport)?;
    let rank = communicator.rank();
    let mut kept = Vec::new();
    let mut buffer = communicator.alloc::<i32>(30_000)?;
    for round in 0..60 {
        if (round + rank) % 3 == 0 {
            buffer = communicator.alloc::<i32>(30_000)?;
        }
        if (round * (rank + 1)) % 7 == 0 {
            kept.push(communicator.alloc::<i32>(10)?);
        } else if round % 5 == 0 {
            kept.pop();
        }
        let start = 1 + (round + rank) % 50;
        let view = &mut buffer[start..start + 20_001];
        view.fill(round as i32);
        communicator.all_reduce(view, Operator::Sum)?;
        assert!(view.iter().all(|&sum| sum == round as i32 * communicator.size() as i32));
    }
    // More than the table holds: the rest is ordinary memory, and works as well.
    let many = (0..70).map(|_| communicator.alloc::<i32>(1)).collect::<Result<Vec<_>>>()?;
    assert!(many.iter().any(|buffer| !buffer.is_registered()));
    println!("rank {rank} lives");
    communicator.barrier()
}

#[test]
fn buffers_come_and_go_between_calls() {
    let finished = start("again", 3).expect(0);
    assert_eq!(finished.lines_with("lives"), 3, "{finished:?}");
}

/// One random call after another, each compared with what one process computes alone.
fn random(transport: &Arc<dyn Transport>) -> Result<()> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(transport.size() as u64);
    for _ in 0..40 {
        let seed = random.random();
        match ElementType::ALL[random.random_range(0..ElementType::ALL.len())] {
            ElementType::F32 => one_random::<f32>(transport, seed, |small| small as f32)?,
            ElementType::F64 => one_random::<f64>(transport, seed, f64::from)?,
            ElementType::I32 => one_random::<i32>(transport, seed, |small| small)?,
            ElementType::I64 => one_random::<i64>(transport, seed, i64::from)?,
            ElementType::F16 => one_random::<f16>(transport, seed, |small| f16::from_f32(small as f32))?,
            ElementType::BF16 => one_random::<bf16>(transport, seed, |small| bf16::from_f32(small as f32))?,
        }
    }
    println!("rank {} lives", transport.rank());
    Ok(())
}

fn one_random<T: Element>(transport: &Arc<dyn Transport>, seed: u64, small: fn(i32) -> T) -> Result<()> {
    // The same choices on all ranks, and then one of its own.
    let mut common = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let (size, rank) = (transport.size(), transport.rank());
    let count = match common.random_range(0..3) {
        0 => common.random_range(0..40),
        1 => common.random_range(0..9000),
        _ => common.random_range(0..200_000),
    };
    let kind = Kind::ALL[common.random_range(0..5)];
    let root = common.random_range(0..size);
    let operator = [Operator::Sum, Operator::Min, Operator::Max][common.random_range(0..3)];
    let order = [Order::Auto, Order::Canonical, Order::Rank, Order::Fastest][common.random_range(0..4)];
    let out_of_place = kind == Kind::AllReduce && common.random();
    let value = |rank: usize, index: usize| ((index * 7 + rank * 3 + seed as usize % 11) % 5) as i32;
    let mut own = rand_chacha::ChaCha8Rng::seed_from_u64(seed ^ (rank as u64 + 1) << 32);
    let mut communicator =
        Communicator::new(transport.clone(), CommunicatorOptions { order, ..options("native") })?;
    let skip = own.random_range(0..3);
    let (mut registered, mut private) =
        (communicator.alloc::<T>(count + skip)?, vec![T::default(); count + skip]);
    // Sometimes all are registered, sometimes a few.
    let is_registered = common.random() || own.random();
    let vector = if is_registered { &mut registered[skip..] } else { &mut private[skip..] };
    for (index, element) in vector.iter_mut().enumerate() {
        *element = small(value(rank, index));
    }
    let mut output = vec![T::default(); count];
    let range = match kind {
        Kind::AllReduce if out_of_place => {
            communicator.all_reduce_from(vector, &mut output, operator)?;
            assert!(vector.iter().enumerate().all(|(index, &v)| v == small(value(rank, index))));
            vector.copy_from_slice(&output);
            0..count
        }
        Kind::AllReduce => communicator.all_reduce(vector, operator).map(|()| 0..count)?,
        Kind::ReduceScatter => {
            communicator.reduce_scatter(vector, operator)?;
            part(count, size, rank)
        }
        Kind::AllGather => communicator.all_gather(vector).map(|()| 0..count)?,
        Kind::Broadcast => communicator.broadcast(vector, root).map(|()| 0..count)?,
        Kind::Reduce => {
            communicator.reduce(vector, operator, root)?;
            if rank == root { 0..count } else { 0..0 }
        }
    };
    for index in range {
        let all = (0..size).map(|rank| value(rank, index));
        let expected = match (kind, operator) {
            (Kind::AllGather, _) => {
                let owner = (0..size).find(|&rank| part(count, size, rank).contains(&index));
                value(owner.expect("every element has an owner"), index)
            }
            (Kind::Broadcast, _) => value(root, index),
            (_, Operator::Min) => all.min().unwrap_or_default(),
            (_, Operator::Max) => all.max().unwrap_or_default(),
            _ => all.sum(),
        };
        let found = vector[index];
        assert_eq!(found, small(expected), "{kind} of {count} {}, {operator}, element {index}", T::TYPE);
    }
    Ok(())
}

#[test]
fn random_calls_agree_with_one_process_alone() {
    for ranks in [1, 2, 3, 5, 8, 17] {
        let finished = start("random", ranks).expect(0);
        assert_eq!(finished.lines_with("lives"), ranks, "{finished:?}");
    }
}

#[test]
fn shm_without_ranks_or_launcher_is_a_usage_error() {
    let bench = env!("CARGO_BIN_EXE_esync-bench");
    let finished = finish(alone(bench).args(["--transport", "shm"]), 20).expect(2);
    assert_eq!(finished.lines_with("--ranks N"), 1, "{finished:?}");
}
