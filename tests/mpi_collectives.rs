//! Collectives between processes: `esync-bench` under a real `mpirun`, and what it says when something is wrong.

#[path = "common/process.rs"]
mod process;

use esync::collective::COLLECTIVE_NAMES;
use process::{Finished, alone, finish, mpirun, process_of_rank};
use serde_json::Value;
use std::process::Command;

const BENCH: &str = env!("CARGO_BIN_EXE_esync-bench");

/// Whether there is an MPI to test; says so if not.
fn have_mpi() -> bool {
    if !cfg!(feature = "mpi") {
        println!("skipped: built without the feature `mpi`");
    }
    cfg!(feature = "mpi")
}

/// Quick, and with sizes that leave remainders: 0, 12, 108, … bytes; the last is cut into segments.
const QUICK: &str =
    "-b 0 -e 700K -f 9 -n 3 -w 1 --format json --timeout 30s --ceiling off --repeat-contaminated 0";

fn with(mut command: Command, arguments: &str) -> Command {
    command.args(arguments.split_whitespace());
    command
}

fn on_threads(ranks: usize, arguments: &str) -> Finished {
    finish(&mut with(alone(BENCH), &format!("--ranks {ranks} {arguments}")), 60)
}

fn on_mpi(ranks: usize, arguments: &str) -> Finished {
    finish(&mut with(mpirun(), &format!("-n {ranks} {BENCH} {arguments}")), 60)
}

fn records(finished: &Finished) -> Vec<Value> {
    finished.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// The result's bits by everything that they may depend on.
fn hashes(records: &[Value]) -> Vec<(String, u64, String)> {
    let text = |record: &Value, key: &str| record[key].as_str().expect(key).to_string();
    let hash = |record: &Value| {
        (text(record, "collective"), record["bytes"].as_u64().expect("bytes"), text(record, "result_hash"))
    };
    // One for each placement and kind of memory, which do not matter: all have the same bits, or are seen to differ.
    let mut hashes: Vec<_> = records.iter().map(hash).collect();
    hashes.dedup();
    hashes
}

/// Everything right on `ranks` processes, and the same bits as on as many threads.
fn check(ranks: usize, arguments: &str) {
    let arguments = &format!("{QUICK} {arguments}");
    let by = |transport: &str| {
        let records = records(&on_mpi(ranks, &format!("{arguments} --transport {transport}")).expect(0));
        assert!(!records.is_empty());
        for record in &records {
            assert_eq!((&record["wrong"], &record["transport"]), (&0.into(), &transport.into()), "{record}");
            assert_eq!(record["ranks"], ranks, "{record}");
        }
        records
    };
    let (by_mpi, by_shm) = (by("mpi"), by("shm"));
    let by_threads = records(&on_threads(ranks, arguments).expect(0));
    let schedules = |records: &[Value]| {
        let mut hashes = hashes(records);
        // MPI adds in an order of its own, and lacks some types.
        hashes.retain(|(collective, ..)| collective != "native");
        hashes
    };
    assert_eq!(schedules(&by_mpi), schedules(&by_threads));
    // Ranks that share memory do the same as threads, whoever has started them.
    assert_eq!(hashes(&by_shm), hashes(&by_threads));
}

fn check_operations(ranks: usize) {
    if !have_mpi() {
        return;
    }
    for operation in ["all-reduce", "reduce-scatter", "all-gather", "broadcast", "reduce"] {
        check(ranks, &format!("--op {operation}"));
    }
}

#[test]
fn two_processes() {
    check_operations(2);
}

#[test]
fn three_processes() {
    check_operations(3);
}

#[test]
fn four_processes() {
    check_operations(4);
}

#[test]
fn seven_processes() {
    check_operations(7);
}

#[test]
fn other_types_and_operators() {
    if have_mpi() {
        check(3, "-d f64 -o average");
        check(3, "-d f16 -o sum");
        check(3, "-d bf16 -o product");
        check(3, "-d i32 -o max");
        check(3, "-d i64 -o min");
    }
}

#[test]
fn narrow_wires() {
    if have_mpi() {
        for wire in ["f16", "bf16", "int8"] {
            check(3, &format!("--wire {wire}"));
        }
        check(7, "--wire int8 -o average --order rank");
        check(2, "--wire int8 --op broadcast");
    }
}

#[test]
fn what_a_narrow_wire_cannot_carry_is_said() {
    let said = |arguments: &str, text: &str| {
        let finished = on_threads(2, &format!("{QUICK} {arguments}")).expect(2);
        assert!(finished.stderr.contains(text), "{}", finished.stderr);
    };
    said("--wire int9", "choose one of `f32`, `f16`, `bf16`, `int8`");
    said("--wire int8 --collective ring", "leave out --collective");
    said("--wire int8 -d f64", "narrows vectors of f32");
    said("--wire int8 -o max", "meant for sum and average, not for max");
    said("--wire int8 --op reduce-scatter", "narrows all-reduce only");
    let record = &records(&on_threads(2, "-b 4K -e 4K -n 1 --format json --wire int8").expect(0))[0];
    assert_eq!((&record["collective"], &record["wire"]), (&"two-shot".into(), &"int8".into()));
}

/// All collectives that accept the order have the same bits, on threads and between processes.
#[track_caller]
fn check_one_order(ranks: usize, order: &str, collectives: usize) {
    let arguments = &format!("{QUICK} --order {order}");
    let mut all = hashes(&records(&on_threads(ranks, arguments).expect(0)));
    if have_mpi() {
        for transport in ["mpi", "shm"] {
            let arguments = format!("{arguments} --transport {transport}");
            all.extend(hashes(&records(&on_mpi(ranks, &arguments).expect(0))));
        }
    }
    let mut names: Vec<&String> = all.iter().map(|(name, ..)| name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), collectives, "{names:?}");
    for (name, bytes, hash) in &all {
        let first = all.iter().find(|(_, other, _)| other == bytes).expect("itself at least");
        assert_eq!(hash, &first.2, "{order}, {bytes} bytes: {name} against {}", first.0);
    }
}

#[test]
fn the_canonical_tree_has_the_same_bits_everywhere() {
    check_one_order(3, "canonical", 6);
    check_one_order(7, "canonical", 6);
}

#[test]
fn the_order_of_ranks_has_the_same_bits_everywhere() {
    check_one_order(5, "rank", 2);
}

#[test]
fn the_order_matters_to_the_hash() {
    let hash = |order: &str| {
        let arguments =
            format!("-b 4K -e 4K -n 1 --format json --collective parameter-server --order {order}");
        hashes(&records(&on_threads(5, &arguments).expect(0)))
    };
    assert_ne!(hash("canonical"), hash("rank"));
    assert_eq!(hash("canonical"), hash("canonical"));
}

#[test]
fn processes_that_disagree_end_with_one_message() {
    if !have_mpi() {
        return;
    }
    let job = format!("-n 1 {BENCH} -b 1K -e 1K : -n 1 {BENCH} -b 2K -e 2K : -n 1 {BENCH} -b 1K -e 1K");
    let finished = finish(&mut with(mpirun(), &job), 20).expect(1);
    assert_eq!(finished.lines_with("ranks disagree"), 1, "{finished:?}");
    assert_eq!(finished.lines_with("element count: rank 0 has 256, rank 1 has 512"), 1, "{finished:?}");
    assert!(finished.seconds < 5.0, "{finished:?}");
}

#[test]
fn a_process_with_another_collective_ends_with_one_message() {
    if !have_mpi() {
        return;
    }
    let job = format!("-n 1 {BENCH} --collective ring : -n 2 {BENCH} --collective butterfly");
    let finished = finish(&mut with(mpirun(), &job), 20).expect(1);
    assert_eq!(finished.lines_with("collective: rank 0 has ring, rank 1 has butterfly"), 1, "{finished:?}");
}

/// Until MPI is up, which has no deadline of ours: then the process holds a page whose name is gone.
fn wait_until_it_communicates(process: rustix::process::Pid) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while std::time::Instant::now() < until {
        let maps =
            std::fs::read_to_string(format!("/proc/{}/maps", process.as_raw_nonzero())).unwrap_or_default();
        if maps.lines().any(|line| line.contains("/esync-") && line.ends_with("(deleted)")) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// A job that runs until its rank 2 receives `signal`, once it communicates.
fn strike(signal: rustix::process::Signal) -> Finished {
    let marker = format!("MARKED={}-{}", std::process::id(), signal.as_raw());
    let arguments =
        "-b 1K -e 1K -n 100000000 --seconds-per-size 60 --timeout 1s --collective parameter-server";
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let Some(victim) = process_of_rank(&marker, 2) else { return };
            wait_until_it_communicates(victim);
            std::thread::sleep(std::time::Duration::from_millis(300));
            // If it is gone already, the test sees another exit code.
            let _ = rustix::process::kill_process(victim, signal);
        });
        let mut job = with(mpirun(), &format!("-n 4 {BENCH} {arguments}"));
        finish(job.env("MARKED", marker.trim_start_matches("MARKED=")), 30)
    })
}

#[test]
fn a_stopped_process_is_named_and_nobody_else() {
    if have_mpi() {
        let finished = strike(rustix::process::Signal::STOP).expect(6);
        assert_eq!(finished.lines_with(" waited 1.0 s in "), 1, "{finished:?}");
        let line =
            finished.stderr.lines().find(|line| line.contains(" waited 1.0 s in ")).expect("just counted");
        assert!(
            line.contains("for rank 2 (host ") && line.contains("the process of rank 2 is stopped"),
            "{line}"
        );
        assert_eq!(line.matches("(host ").count(), 2, "the speaker and rank 2 only: {line}");
        assert!(finished.seconds < 8.0, "{finished:?}");
    }
}

#[test]
fn a_killed_process_ends_the_job() {
    if have_mpi() {
        let finished = strike(rustix::process::Signal::KILL);
        // mpirun may be the first to notice, and says 128 + 9 then.
        assert!([5, 137].contains(&finished.code) && finished.seconds < 8.0, "{finished:?}");
    }
}

#[test]
fn wrong_flags_are_said_once() {
    let unknown = on_threads(2, "--collective rong").expect(2);
    assert!(COLLECTIVE_NAMES.iter().all(|name| unknown.stderr.contains(name)), "{unknown:?}");
    for (arguments, words) in [
        ("-b 1KB", "1KiB"),
        ("-b 2K -e 1K", "above the largest"),
        ("-b 1K -f 1", "never end"),
        ("-d f8", "`bf16`"),
        ("-o mean", "`average`"),
        ("--op gather", "`all-gather`"),
        ("--collective ring --order canonical", "refuses all-reduce in order `canonical`"),
        ("--collective binary-blocks --op reduce", "refuses reduce"),
        ("--timeout 3", "unit"),
        ("-c 2", "`1`"),
    ] {
        let finished = on_threads(2, arguments).expect(2);
        assert_eq!(finished.lines_with(words), 1, "{arguments}: {finished:?}");
    }
    on_threads(0, "").expect(2);
    if have_mpi() {
        let finished = on_mpi(3, "--collective rong").expect(2);
        assert_eq!(finished.lines_with("there is no collective"), 1, "{finished:?}");
        let finished = on_mpi(3, "--collective ring --order rank").expect(2);
        assert_eq!(finished.lines_with("refuses all-reduce"), 1, "{finished:?}");
        let finished = on_mpi(2, "--ranks 2").expect(2);
        assert_eq!(finished.lines_with("leave out one of them"), 1, "{finished:?}");
    }
}

#[test]
fn refusals_are_notes_unless_asked_for() {
    let finished = on_threads(3, "--op reduce -e 1K -n 1 --format json").expect(0);
    assert_eq!(
        finished.lines_with("note: left out: collective `binary-blocks` refuses reduce"),
        1,
        "{finished:?}"
    );
    let names: Vec<String> = hashes(&records(&finished)).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(
        names,
        ["ring", "parameter-server", "recursive-doubling", "double-tree", "hierarchical", "native"]
    );
}

#[test]
fn a_transport_that_is_not_there_is_an_environment_error() {
    if cfg!(feature = "mpi") {
        // Announced by a launcher that MPI knows nothing of: the wrong mpirun for this program.
        for (variable, launcher) in [("OMPI_COMM_WORLD_SIZE", "Open MPI"), ("PMI_SIZE", "MPICH")] {
            let finished = finish(with(alone(BENCH), "-e 1K").env(variable, "4"), 20).expect(3);
            assert_eq!(finished.lines_with("with 4 ranks, but this program is linked to"), 1, "{finished:?}");
            assert!(finished.stderr.contains(launcher) && finished.seconds < 5.0, "{finished:?}");
        }
    } else {
        let finished = finish(&mut with(alone(BENCH), "--transport mpi"), 20).expect(3);
        assert_eq!(finished.lines_with("built without the feature `mpi`"), 1, "{finished:?}");
        let finished = finish(alone(BENCH).env("OMPI_COMM_WORLD_SIZE", "4"), 20).expect(3);
        assert_eq!(finished.lines_with("built without the feature `mpi`"), 1, "{finished:?}");
    }
}

#[test]
fn an_output_file_holds_what_standard_output_would() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("results.csv");
    let arguments = format!(
        "-e 4K -n 2 --collective ring --placement in --buffers private --format csv --output {}",
        path.display()
    );
    let finished = on_threads(2, &arguments).expect(0);
    assert_eq!(finished.stdout, "");
    let text = std::fs::read_to_string(&path).expect("results");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!((lines.len(), lines[0].len()), (3, lines[1].len()), "{text}");
    assert_eq!((lines[0][0], lines[1][1], lines[2][5]), ("op", "ring", "4096"), "{text}");

    let finished = on_threads(2, "--output /nowhere/at/all.csv").expect(3);
    assert_eq!(finished.lines_with("/nowhere/at/all.csv"), 1, "{finished:?}");
}

#[test]
fn bandwidths_follow_from_the_time() {
    let finished =
        on_threads(4, "-b 64K -e 64K -n 20 --format json --placement in --buffers registered").expect(0);
    for record in records(&finished) {
        let number = |value: &Value| value.as_f64().expect("a number");
        let (median, algbw) = (number(&record["time_us"]["median"]), number(&record["algbw_gbps"]));
        assert!((algbw - 65536.0 / median / 1e3).abs() < 1e-4, "{record}");
        assert!((number(&record["busbw_gbps"]) - 1.5 * algbw).abs() < 1e-4, "{record}");
        assert!(number(&record["time_us"]["min"]) <= median && median <= number(&record["time_us"]["p99"]));
        assert_eq!((&record["in_place"], &record["registered"]), (&true.into(), &true.into()));
    }
}

#[test]
fn ranks_that_may_use_different_cores_meet() {
    if !have_mpi() || std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("skipped: needs MPI and two cores");
        return;
    }
    // How ranks of one host meet depends on the cores that all of them may use together.
    let rank =
        |cores: &str| format!("-n 1 taskset -c {cores} {BENCH} {QUICK} --transport shm --collective native");
    let finished = finish(&mut with(mpirun(), &format!("{} : {}", rank("0"), rank("0,1"))), 60).expect(0);
    assert!(!records(&finished).is_empty());
}
