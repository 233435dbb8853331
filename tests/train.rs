//! `esync-train --ranks N`: training, results, budgets, and every way to be told that the input is bad.
#![cfg(feature = "torch")]

mod launcher;

use launcher::Ranks::Threads;
use launcher::{Folder, check_clocks, check_results, esync_train, run, start, train};
use rustix::process::Signal;
use std::fs;
use std::io::Write;

/// The collectives, each with the orders that it accepts.
const COLLECTIVES: [(&str, &[&str]); 9] = [
    ("ring", &["auto", "fastest"]),
    ("butterfly", &["auto", "canonical", "fastest"]),
    ("binary-blocks", &["auto", "canonical", "fastest"]),
    ("parameter-server", &["auto", "canonical", "rank", "fastest"]),
    ("recursive-doubling", &["auto", "canonical", "fastest"]),
    ("circulant", &["auto", "fastest"]),
    ("double-tree", &["auto", "fastest"]),
    ("hierarchical", &["auto", "canonical", "fastest"]),
    ("native", &["auto", "canonical", "rank", "fastest"]),
];

#[test]
fn one_worker_trains_alone() {
    let folder = train(Threads(1), "--mode local --epochs 5");
    check_results(&folder, 1, "local");
    assert!(folder.summary()["final_accuracy"].as_f64().unwrap() > 0.9);
}

#[test]
fn four_workers_train_with_every_collective_and_mode() {
    for (collective, _) in COLLECTIVES {
        for mode in ["sync", "esync"] {
            let folder = train(Threads(4), &format!("--mode {mode} --collective {collective} --epochs 10"));
            check_results(&folder, 4, mode);
            let summary = folder.summary();
            assert_eq!(
                (&summary["collective"], &summary["transport"]),
                (&collective.into(), &"threads".into())
            );
            let accuracy = summary["final_accuracy"].as_f64().unwrap();
            assert!(accuracy > 0.85, "{mode}, {collective}: {accuracy}");
        }
    }
}

#[test]
fn narrow_wires_train_as_well_and_send_less() {
    let summary = |network: &str, mode: &str, wire: &str| {
        let flags = "--collective parameter-server --epochs 10";
        let folder = train(Threads(4), &format!("--network {network} --mode {mode} --wire {wire} {flags}"));
        check_results(&folder, 4, mode);
        folder.summary()
    };
    for (network, wire, share) in [("mlp", "bf16", 0.51), ("mlp-bn", "int8", 0.3)] {
        let summaries = ["sync", "esync"].map(|mode| summary(network, mode, wire));
        for summary in &summaries {
            let accuracy = summary["final_accuracy"].as_f64().unwrap();
            assert_eq!(summary["wire"], wire);
            assert!(accuracy >= 0.9, "{network}, {wire}: {accuracy}");
        }
        // Statistics are not narrowed.
        let bytes_sent = |summary: &serde_json::Value| summary["bytes_sent"].as_f64().unwrap();
        let (wide, narrow) = (bytes_sent(&summary(network, "sync", "f32")), bytes_sent(&summaries[0]));
        assert!(narrow < share * wide, "{network}, {wire}: {narrow} of {wide} bytes");
    }
}

#[test]
fn modes_of_rounds_reach_the_target_beside_a_slow_worker() {
    for mode in [
        "local-sgd",
        "post-local-sgd",
        "adacomm",
        "diloco",
        "streaming-diloco",
        "esync --overlap",
        "diloco --overlap",
        "local-sgd --overlap --wire int8 --lr-schedule cosine --warmup 0.05",
    ] {
        let flags = format!("--mode {mode} --slow 3:4x --target-accuracy 0.9");
        let folder = train(Threads(4), &flags);
        check_results(&folder, 4, mode.split(' ').next().unwrap());
        let summary = folder.summary();
        assert_eq!(summary["reached_target"], true, "{flags}: {summary:#}");
    }
}

#[test]
fn a_schedule_of_the_learning_rate_changes_what_is_learnt() {
    let parameters = |flags: &str| {
        train(Threads(2), &format!("--mode sync --max-samples 3200 --eval-every 1000000 {flags}"))
            .parameters()
    };
    let constant = parameters("");
    assert_eq!(parameters("--lr-schedule constant"), constant);
    for flags in ["--lr-schedule cosine", "--lr-schedule steps:0.5:0.1", "--warmup 0.5"] {
        let distance = parameters(flags).relative_l2(&constant);
        assert!((0.001..1.0).contains(&distance), "{flags}: {distance}");
    }
    // A factor of 1 changes nothing, wherever it is applied.
    assert_eq!(parameters("--lr-schedule steps:0.25,0.5:1"), constant);
}

#[test]
fn esync_says_how_its_state_server_is_reached() {
    let summary = |mode: &str| train(Threads(2), &format!("--mode {mode} --epochs 1")).summary();
    assert_eq!(summary("esync")["state_server"], "shared page");
    assert_eq!(summary("sync").get("state_server"), None);
}

#[test]
fn every_second_of_a_worker_is_accounted_for() {
    // In steps of several milliseconds, beside which metrics weigh little.
    for (mode, batch) in [("sync", 32), ("esync", 256)] {
        let flags =
            format!("--mode {mode} --network lenet --batch-size {batch} --slow 3:40ms --max-seconds 1.5");
        check_clocks(|| {
            let summary = train(Threads(4), &flags).summary();
            assert_eq!(summary["stopped_by"], "seconds");
            summary
        });
    }
}

#[test]
fn equal_seeds_train_equal_models() {
    const STEPS: &str = "--mode sync --max-samples 25600 --eval-every 1000000";
    let parameters = |flags: &str| train(Threads(4), &format!("{STEPS} {flags}")).parameters();
    let reference = parameters("--collective ring");
    reference.assert_sensible();
    assert_eq!(parameters("--collective ring"), reference, "two identical runs");
    assert!(parameters("--collective ring --seed 6").relative_l2(&reference) > 0.1, "another seed");
    for (collective, orders) in COLLECTIVES {
        for order in orders {
            let other = parameters(&format!("--collective {collective} --order {order}"));
            let distance = reference.relative_l2(&other);
            assert!(distance <= 1e-4, "{collective}, order {order}: {distance}");
        }
    }
    let canonical = |collective: &str| parameters(&format!("--collective {collective} --order canonical"));
    assert_eq!(canonical("butterfly"), canonical("parameter-server"), "one canonical tree");
}

#[test]
fn a_written_configuration_gives_the_same_run_again() {
    let first =
        train(Threads(3), "--mode sync --max-samples 5000 --batch-size 16 --network mlp-bn --slow 1:2x");
    let again = Folder::new();
    let config = first.path("out/config.toml");
    run(esync_train(&format!("--config {} {}", config.display(), again.out()))).assert_done();
    assert_eq!(first.parameters(), again.parameters());
    assert_eq!(
        fs::read_to_string(config).unwrap(),
        fs::read_to_string(again.path("out/config.toml")).unwrap()
    );
}

#[test]
fn a_slow_rank_sleeps_as_long_as_it_was_told() {
    const ROUNDS: f64 = 25.0;
    let folder =
        train(Threads(4), "--mode sync --network lenet --slow 1:4x,3:30ms --max-samples 3200 --threads 1");
    let summary = folder.summary();
    let seconds = |rank: usize, key: &str| summary["workers"][rank][key].as_f64().unwrap();
    assert_eq!(summary["exchanges"], ROUNDS);
    let (slow, by_factor) = (seconds(3, "slow_seconds"), seconds(1, "slow_seconds"));
    // A sleep never ends early; on a busy machine it may end late.
    assert!((ROUNDS * 0.03..ROUNDS * 0.1).contains(&slow), "30 ms a step: {slow} s");
    let factor = by_factor / seconds(1, "compute_seconds");
    assert!((2.99..20.0).contains(&factor), "three times its own step's time: {factor}");
    for rank in [0, 2] {
        assert!(seconds(rank, "slow_seconds") < 0.05, "{summary:#}");
        assert!(
            seconds(rank, "wait_seconds") > 0.5 * slow,
            "in mode sync all wait for the slowest: {summary:#}"
        );
    }
}

#[test]
fn esync_fills_the_time_beside_a_slow_rank() {
    let summary = train(Threads(3), "--mode esync --slow 2:40ms --epochs 20").summary();
    let steps = |rank: usize| summary["workers"][rank]["local_steps"].as_f64().unwrap();
    assert!(steps(0) > 3.0 * steps(2) && steps(1) > 3.0 * steps(2), "{summary:#}");
}

#[test]
fn a_slow_link_delays_every_exchange() {
    // In a ring of four, rank 2 has a message to send in each of six stages.
    let fastest = |flags: &str| {
        let folder = train(Threads(4), &format!("--mode sync --max-samples 1280 {flags}"));
        let seconds = |event: &serde_json::Value| {
            event["exchange_seconds"].as_f64().filter(|_| event["kind"] == "exchange")
        };
        let least = folder.metrics().iter().filter_map(seconds).fold(f64::MAX, f64::min);
        (least, folder.parameters())
    };
    let ((delayed, delayed_parameters), (plain, parameters)) = (fastest("--slow-link 2:5ms"), fastest(""));
    assert!(delayed >= plain + 0.005, "{delayed} s instead of {plain} s");
    assert_eq!(delayed_parameters, parameters, "a delay changes no bits");
}

#[test]
fn a_target_stops_the_run_or_is_reported_as_missed() {
    let folder = Folder::new();
    folder.run(Threads(2), "--mode sync --target-accuracy 0.8 --epochs 50").assert_done();
    let summary = folder.summary();
    assert_eq!((&summary["stopped_by"], &summary["reached_target"]), (&"target".into(), &true.into()));
    assert!(
        summary["time_to_target_seconds"].as_f64().unwrap() <= summary["train_seconds"].as_f64().unwrap()
    );

    let folder = Folder::new();
    let outcome = folder.run(Threads(2), "--mode sync --target-accuracy 1 --epochs 1");
    assert_eq!(outcome.code, 8, "{outcome:#?}");
    assert!(outcome.stdout.contains("the target of 100.00% was not reached"), "{}", outcome.stdout);
    let summary = folder.summary();
    assert_eq!((&summary["stopped_by"], &summary["reached_target"]), (&"samples".into(), &false.into()));
    check_results(&folder, 2, "sync");
}

#[test]
fn an_interrupted_run_ends_in_order() {
    for (mode, signal) in [("esync", Signal::INT), ("sync", Signal::TERM)] {
        let folder = Folder::new();
        let endless = format!("--mode {mode} --slow 3:20ms --max-seconds 100 --report-every 50ms");
        let mut job = start(folder.command(Threads(4), &endless));
        job.wait_until_training();
        job.signal(signal);
        let outcome = job.finish();
        assert_eq!((outcome.code, outcome.messages().len()), (130, 0), "{outcome:#?}");
        assert_eq!(folder.summary()["stopped_by"], "interrupt");
        check_results(&folder, 4, mode);
    }
}

/// `flags` end the program with `code`, one message that says `words`, and nothing written.
#[track_caller]
fn refused(flags: &str, code: i32, words: &[&str]) {
    let folder = Folder::new();
    let outcome = folder.run(Threads(4), flags);
    outcome.assert_failed(code, words);
    assert!(outcome.seconds < 5.0, "{} s", outcome.seconds);
    folder.assert_untouched();
}

#[test]
fn unknown_names_list_the_valid_ones() {
    refused("--mode sync --overlap", 2, &["--overlap", "averages gradients", "local-sgd"]);
    refused("--mode streaming-diloco --overlap", 2, &["--overlap has no meaning", "streaming-diloco"]);
    refused("--mode streaming-diloco --overlap-steps 4", 2, &["--overlap-steps is 4", "at most 3"]);
    refused("--mode streaming-diloco --fragments 4", 2, &["--fragments is 4", "layers for 2"]);
    refused("--mode sync --local-steps 3", 2, &["--local-steps has no meaning in --mode sync", "diloco"]);
    refused("--mode local-sgd --local-steps 0", 2, &["--local-steps is 0"]);
    refused("--mode post-local-sgd --max-seconds 1", 2, &["post-local-sgd", "--max-samples"]);
    refused("--lr-schedule cosine --max-seconds 1", 2, &["--lr-schedule", "sample budget"]);
    refused("--lr-schedule linear", 2, &["linear", "steps:0.5,0.75:0.1"]);
    refused("--error-feedback", 2, &["--error-feedback", "--wire f32"]);
    refused("--mode foo", 2, &["foo", "--mode", "esync, sync, local"]);
    refused("--collective foo", 2, &["foo", "--collective", "ring, butterfly, binary-blocks", "native"]);
    refused("--network foo", 2, &["foo", "--network", "logistic", "mlp", "lenet"]);
    refused("--dataset foo", 2, &["foo", "--dataset", "digits, mnist, fashion-mnist"]);
    refused("--weighting foo", 2, &["foo", "--weighting", "uniform, samples, shard, steps"]);
    refused("--outer foo", 2, &["foo", "--outer", "sgd, nesterov"]);
    refused("--order foo", 2, &["foo", "--order", "auto, canonical, rank, fastest"]);
    refused("--split foo", 2, &["foo", "--split", "iid", "by-class", "dirichlet:"]);
    refused("--transport foo", 2, &["foo", "--transport", "threads", "mpi"]);
    refused("--progress foo", 2, &["foo", "--progress", "bar", "line"]);
    refused("--foo", 2, &["--foo"]);
}

#[test]
fn bad_values_and_impossible_combinations_are_refused() {
    refused("--slow 9:4x", 2, &["--slow", "rank 9", "0 to 3"]);
    refused("--slow 1:4", 2, &["--slow", "`4` needs a unit"]);
    refused("--slow 1:0.5x", 2, &["--slow", "at least 1x"]);
    refused("--slow-link 4:5ms", 2, &["--slow-link", "rank 4", "0 to 3"]);
    refused("--slow-link 1:5", 2, &["--slow-link", "`5` needs a unit"]);
    refused("--timeout 5", 2, &["--timeout", "unit"]);
    refused("--mode local", 2, &["--mode local", "4 ranks"]);
    refused("--mode sync --global-lr 2", 2, &["--mode sync", "--global-lr"]);
    refused("--mode sync --max-local-steps 2", 2, &["--max-local-steps", "sync"]);
    refused("--collective ring --order canonical", 2, &["`ring` refuses", "canonical", "binary-blocks"]);
    refused("--collective ring --servers 2", 2, &["--servers", "parameter-server"]);
    refused("--collective parameter-server --servers 5", 2, &["--servers is 5", "1 to 4"]);
    refused("--transport mpi", 2, &["--ranks", "mpirun -n"]);
    refused("--learning-rate 0", 2, &["--learning-rate is 0"]);
    refused("--epochs 0", 2, &["--epochs is 0"]);
    refused("--target-accuracy 95", 2, &["--target-accuracy is 95"]);
    refused("--batch-size 0", 2, &["--batch-size is 0"]);
}

#[test]
fn without_ranks_there_are_none() {
    run(esync_train("--ranks 0")).assert_failed(2, &["--ranks is 0"]);
    run(esync_train("--ranks 2 --config /does/not/exist.toml"))
        .assert_failed(2, &["--config /does/not/exist.toml"]);
}

#[test]
fn an_unknown_key_in_a_file_is_named_with_its_line() {
    let folder = Folder::new();
    let check = |text: &str, words: &[&str]| {
        fs::write(folder.path("run.toml"), text).unwrap();
        let flags = format!("--config {} {}", folder.path("run.toml").display(), folder.out());
        run(esync_train(&flags)).assert_failed(2, words);
        folder.assert_untouched();
    };
    check("mode = \"sync\"\nlocal-step = 7\n", &["run.toml", "line 2", "local-step", "max-local-steps"]);
    check("mode = \"sync\"\n\nseed = \"x\"\n", &["line 3", "seed"]);
    check("mode = \"sync\"\norder = \"foo\"\n", &["line 2", "order", "canonical"]);
    check("mode \"sync\"\n", &["run.toml", "line 1"]);
    for (key, names) in [
        ("mode", "esync, sync, local"),
        ("collective", "ring, butterfly"),
        ("network", "logistic, mlp"),
        ("dataset", "digits, mnist"),
    ] {
        check(&format!("{key} = \"foo\"\n"), &[key, "foo", names]);
    }
}

#[test]
fn bad_data_files_are_named() {
    let idx = |magic: u32, sizes: &[u32], bytes: usize| {
        let header = [magic].iter().chain(sizes).flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        [header, vec![0; bytes]].concat()
    };
    let (images, labels) = (idx(0x803, &[50, 28, 28], 50 * 784), idx(0x801, &[50], 50));
    let check = |images: &[u8], labels: Option<&[u8]>, words: &[&str]| {
        let data = Folder::new();
        fs::write(data.path("t10k-images-idx3-ubyte"), images).unwrap();
        if let Some(labels) = labels {
            fs::write(data.path("t10k-labels-idx1-ubyte"), labels).unwrap();
        }
        refused(&format!("--dataset mnist --data-dir {}", data.path("").display()), 4, words);
    };
    check(&images, None, &["t10k-labels-idx1-ubyte", "no such file"]);
    check(&images[..3000], Some(&labels), &["t10k-images-idx3-ubyte", "truncated"]);
    check(&images[..6], Some(&labels), &["t10k-images-idx3-ubyte", "truncated"]);
    check(&labels, Some(&labels), &["t10k-images-idx3-ubyte", "holds labels"]);
    check(b"<html>not found", Some(&labels), &["t10k-images-idx3-ubyte", "no IDX file"]);
    check(&images, Some(&idx(0x801, &[49], 49)), &["50 images", "49 labels"]);
    refused("--dataset mnist --data-dir /does/not/exist", 4, &["/does/not/exist", "--data-dir"]);
    refused("--dataset mnist", 2, &["--data-dir"]);
}

#[test]
fn results_are_never_overwritten_nor_put_where_they_cannot_be() {
    let folder = Folder::new();
    fs::create_dir(folder.path("out")).unwrap();
    folder.run(Threads(2), "--mode sync --max-samples 64").assert_done();
    let before = fs::read(folder.path("out/summary.json")).unwrap();
    let names =
        || fs::read_dir(folder.path("out")).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    let names_before = names();
    folder.run(Threads(2), "--mode esync").assert_failed(2, &["--out", "not empty"]);
    assert_eq!((fs::read(folder.path("out/summary.json")).unwrap(), names()), (before, names_before));

    // Root may write everywhere, but not below a file.
    fs::File::create(folder.path("file")).unwrap().write_all(b"kept").unwrap();
    let below = |out: &str| run(esync_train(&format!("--ranks 2 --out {}", folder.path(out).display())));
    below("file/out").assert_failed(3, &["file/out", "choose another --out"]);
    below("file").assert_failed(3, &["file", "choose another --out"]);
    assert_eq!(fs::read(folder.path("file")).unwrap(), b"kept");
}

#[test]
fn a_loss_that_is_no_number_ends_the_run() {
    for flags in ["--mode sync", "--mode esync", "--mode esync --wire int8", "--mode sync --wire f16"] {
        let folder = Folder::new();
        let outcome = folder.run(Threads(4), &format!("{flags} --learning-rate 1e30"));
        outcome.assert_failed(7, &["diverged", "rank", "local step", "learning rate"]);
        assert!(!folder.path("out/summary.json").exists());
    }
}
