//! `mpirun esync-train`: training, results, and bad input.
#![cfg(all(feature = "mpi", feature = "torch"))]

mod launcher;

use launcher::Ranks::{Mpi, Threads};
use launcher::{
    Folder, assert_no_page_left, check_clocks, check_results, check_server_results, esync_train, mpirun, run,
    shared_pages, train,
};
use std::collections::BTreeSet;

#[test]
fn two_three_four_and_seven_ranks_train() {
    let before = shared_pages();
    for (ranks, mode, collective) in [
        (2, "esync", "native"),
        (3, "sync", "parameter-server"),
        (4, "esync", "recursive-doubling"),
        (4, "sync", "native"),
        (7, "esync", "binary-blocks"),
        (7, "sync", "ring"),
    ] {
        let flags = format!("--mode {mode} --collective {collective} --epochs 20");
        let folder = train(Mpi(ranks), &flags);
        check_results(&folder, ranks, mode);
        let summary = folder.summary();
        assert_eq!((&summary["transport"], &summary["hosts"]), (&"shm".into(), &1.into()));
        assert!(summary["final_accuracy"].as_f64().unwrap() > 0.85, "{flags}: {summary:#}");
    }
    assert_no_page_left(&before);
}

#[test]
fn every_second_of_a_worker_is_accounted_for() {
    let flags = "--mode esync --network lenet --batch-size 256 --slow 2:40ms --max-seconds 1.5";
    check_clocks(|| train(Mpi(3), flags).summary());
}

#[test]
fn exchanges_run_beside_steps_over_messages_and_shared_memory() {
    for flags in [
        "--mode local-sgd --overlap --transport mpi",
        "--mode esync --outer nesterov --overlap --wire int8 --transport mpi",
        "--mode streaming-diloco --transport mpi --collective native",
        "--mode diloco --overlap",
    ] {
        let folder = train(Mpi(4), &format!("{flags} --slow 3:4x --target-accuracy 0.9"));
        let summary = folder.summary();
        assert_eq!(summary["reached_target"], true, "{flags}: {summary:#}");
        check_results(&folder, 4, summary["mode"].as_str().unwrap());
    }
}

#[test]
fn rounds_of_local_steps_have_the_same_bits_everywhere() {
    for flags in
        ["--mode local-sgd", "--mode diloco --overlap", "--mode streaming-diloco --fragment-map contiguous"]
    {
        let flags = format!("{flags} --max-samples 6000 --eval-every 1000000 --collective ring");
        let (threads, mpi) = (train(Threads(3), &flags), train(Mpi(3), &flags));
        assert_eq!(threads.parameters(), mpi.parameters(), "{flags}");
    }
}

#[test]
fn threads_and_mpi_train_the_same_bits() {
    for (ranks, collective, order) in [
        (4, "ring", "auto"),
        (4, "butterfly", "canonical"),
        (3, "butterfly", "auto"),
        (4, "binary-blocks", "canonical"),
        (3, "parameter-server", "rank"),
        (4, "parameter-server", "canonical"),
        (3, "recursive-doubling", "auto"),
        (7, "ring", "fastest"),
    ] {
        // 200 steps.
        let flags = format!(
            "--mode sync --collective {collective} --order {order} --batch-size 8 --max-samples {} --eval-every 1000000",
            200 * 8 * ranks
        );
        let (threads, mpi) = (train(Threads(ranks), &flags), train(Mpi(ranks), &flags));
        assert_eq!(mpi.summary()["exchanges"], 200);
        assert_eq!(threads.parameters(), mpi.parameters(), "{ranks} ranks, {flags}");
    }
}

#[test]
fn a_written_configuration_gives_the_same_run_again() {
    let first = train(Mpi(2), "--mode sync --max-samples 3000 --collective butterfly --seed 3");
    let again = Folder::new();
    let flags = format!("--config {} {}", first.path("out/config.toml").display(), again.out());
    run(mpirun(&[(2, "", &flags)])).assert_done();
    assert_eq!(first.parameters(), again.parameters());
}

#[test]
fn several_hosts_share_a_state_server_and_one_file_of_metrics() {
    let folder = Folder::new();
    let flags = format!("--mode esync --epochs 20 {}", folder.out());
    let groups = [(2, "-x ESYNC_HOST=a", &*flags), (2, "-x ESYNC_HOST=b", &*flags)];
    run(mpirun(&groups)).assert_done();
    let summary = folder.summary();
    assert_eq!((&summary["hosts"], &summary["state_server"]), (&2.into(), &"socket".into()));
    let hosts: Vec<&str> =
        summary["workers"].as_array().unwrap().iter().map(|w| w["host"].as_str().unwrap()).collect();
    assert_eq!(hosts, ["a", "a", "b", "b"]);
    assert!(summary["final_accuracy"].as_f64().unwrap() > 0.85, "{summary:#}");
    // Also compares the steps of every rank with its lines, those of the other host included.
    check_results(&folder, 4, "esync");
    let asked: BTreeSet<u64> = folder
        .metrics()
        .iter()
        .filter(|event| event["action"] == "report")
        .map(|event| event["rank"].as_u64().unwrap())
        .collect();
    assert_eq!(asked, BTreeSet::from([0, 1, 2, 3]));
}

#[test]
fn parameter_servers_train_across_processes_and_hosts() {
    for (mode, flags) in [("wbsp", "--servers 2"), ("wbsp-overlap", "--server-placement dedicated")] {
        let folder = Folder::new();
        let flags = format!("--mode {mode} --epochs 15 {flags} {}", folder.out());
        let groups = [(2, "-x ESYNC_HOST=a", &*flags), (2, "-x ESYNC_HOST=b", &*flags)];
        run(mpirun(&groups)).assert_done();
        let is_shared = mode == "wbsp";
        check_server_results(&folder, if is_shared { 4 } else { 3 }, if is_shared { 2 } else { 1 }, mode);
        let summary = folder.summary();
        assert_eq!(summary["hosts"], 2);
        assert!(summary["final_accuracy"].as_f64().unwrap() > 0.85, "{summary:#}");
    }
}

#[test]
fn a_target_that_is_not_reached_is_the_jobs_exit_code() {
    let folder = Folder::new();
    let outcome = folder.run(Mpi(2), "--mode sync --target-accuracy 1 --epochs 1");
    assert_eq!((outcome.code, outcome.messages().len()), (8, 0), "{outcome:#?}");
    assert!(outcome.stdout.contains("the target of 100.00% was not reached"), "{}", outcome.stdout);
    assert_eq!(folder.summary()["reached_target"], false);
}

/// A job of groups of ranks ends with `code` within seconds, with one message that says `words` and nothing written.
#[track_caller]
fn refused(groups: &[(usize, &str)], code: i32, words: &[&str]) {
    let folder = Folder::new();
    let out = folder.out();
    let groups: Vec<(usize, String)> =
        groups.iter().map(|(ranks, flags)| (*ranks, format!("{flags} {out}"))).collect();
    let groups: Vec<(usize, &str, &str)> =
        groups.iter().map(|(ranks, flags)| (*ranks, "", &**flags)).collect();
    let outcome = run(mpirun(&groups));
    outcome.assert_failed(code, words);
    assert!(outcome.seconds < 8.0, "{} s", outcome.seconds);
    folder.assert_untouched();
}

#[test]
fn what_all_ranks_refuse_is_said_once() {
    refused(&[(4, "--mode foo")], 2, &["foo", "esync, sync, local"]);
    refused(&[(4, "--slow 4:4x")], 2, &["--slow", "rank 4", "0 to 3"]);
    refused(&[(4, "--slow 1:4")], 2, &["--slow", "needs a unit"]);
    refused(&[(4, "--slow-link 4:5ms")], 2, &["--slow-link", "rank 4", "0 to 3"]);
    refused(&[(4, "--mode local")], 2, &["--mode local", "4 ranks"]);
    refused(&[(4, "--collective ring --order canonical")], 2, &["`ring` refuses", "canonical"]);
    refused(&[(4, "--ranks 3")], 2, &["--ranks 3", "Open MPI", "4 processes"]);
    refused(&[(4, "--transport threads")], 2, &["--transport threads", "Open MPI"]);
    refused(&[(4, "--dataset mnist --data-dir /does/not/exist")], 4, &["/does/not/exist"]);
    refused(&[(4, "--config /does/not/exist.toml")], 2, &["/does/not/exist.toml"]);
}

#[test]
fn ranks_with_different_flags_are_named_with_both_values() {
    let check = |flags: &str, words: &[&str]| {
        refused(
            &[(2, "--seed 1"), (1, flags)],
            2,
            &[words, &["different flags", "rank 0", "rank 2"]].concat(),
        );
    };
    check("--seed 3", &["seed is 1 on rank 0 and 3 on rank 2"]);
    check("--seed 1 --collective butterfly", &["collective", "auto", "butterfly"]);
    check("--seed 1 --order rank", &["order", "auto", "rank"]);
    check("--seed 1 --mode sync", &["mode", "esync", "sync"]);
    check("--seed 1 --max-samples 500", &["max-samples", "not given", "500"]);
}

#[test]
fn one_rank_alone_can_end_the_job() {
    let flags = "--dataset mnist --data-dir";
    let data = Folder::new();
    write_images(&data);
    let (good, bad) = (format!("{flags} {}", data.path("").display()), format!("{flags} /does/not/exist"));
    refused(&[(2, &good), (1, &bad)], 4, &["rank 2", "/does/not/exist"]);
    // Flags that only one rank cannot read.
    refused(&[(2, ""), (1, "--mode foo")], 2, &["foo", "esync, sync, local"]);
}

#[test]
fn hosts_that_fail_alike_say_it_once() {
    let folder = Folder::new();
    let check = |flags: &str, code: i32, words: &[&str]| {
        let flags = format!("{flags} {}", folder.out());
        let groups = [(2, "-x ESYNC_HOST=a", &*flags), (2, "-x ESYNC_HOST=b", &*flags)];
        run(mpirun(&groups)).assert_failed(code, words);
    };
    check("--mode local", 2, &["(host a, ", "--mode local"]);
    check("--mode sync --learning-rate 1e30", 7, &["diverged"]);
}

/// A few images, enough to begin with.
fn write_images(folder: &Folder) {
    let idx = |magic: u32, sizes: &[u32], bytes: Vec<u8>| {
        let header: Vec<u8> = [magic].iter().chain(sizes).flat_map(|word| word.to_be_bytes()).collect();
        [header, bytes].concat()
    };
    let images = idx(0x803, &[100, 28, 28], (0..100 * 784).map(|i| (i % 251) as u8).collect());
    let labels = idx(0x801, &[100], (0..100).map(|i| i % 10).collect());
    std::fs::write(folder.path("t10k-images-idx3-ubyte"), images).unwrap();
    std::fs::write(folder.path("t10k-labels-idx1-ubyte"), labels).unwrap();
}

#[test]
fn the_place_of_the_results_is_checked_once() {
    let folder = Folder::new();
    folder.run(Mpi(2), "--mode sync --max-samples 64").assert_done();
    folder.run(Mpi(4), "--mode sync").assert_failed(2, &["--out", "not empty"]);
    let below = format!("--out {}", folder.path("out/summary.json/deeper").display());
    run(mpirun(&[(4, "", &below)])).assert_failed(3, &["summary.json/deeper", "choose another --out"]);
}

#[test]
fn a_loss_that_is_no_number_is_said_once() {
    for mode in ["sync", "esync"] {
        let folder = Folder::new();
        let outcome = folder.run(Mpi(4), &format!("--mode {mode} --learning-rate 1e30"));
        outcome.assert_failed(7, &["diverged", "local step", "learning rate"]);
        assert!(outcome.seconds < 8.0, "{} s", outcome.seconds);
    }
}

#[test]
fn another_mpi_than_the_launchers_is_noticed() {
    let folder = Folder::new();
    let mut command = esync_train(&folder.out());
    // What a foreign launcher leaves: numbers in the environment, and no MPI that knows of them.
    command.env("OMPI_COMM_WORLD_SIZE", "4").env("OMPI_COMM_WORLD_RANK", "0");
    let outcome = run(command);
    outcome.assert_failed(3, &["4 ranks", "sees 1"]);
    folder.assert_untouched();
}
