//! `esync-train` in modes with a parameter server, over threads.
#![cfg(feature = "torch")]

mod launcher;

use esync::policy::{MODES, Scheme};
use launcher::Ranks::Threads;
use launcher::{Folder, check_clocks, check_server_results, esync_train, run, train};

/// Every mode with a parameter server.
fn server_modes() -> impl Iterator<Item = &'static str> {
    MODES.iter().filter(|mode| mode.scheme == Scheme::Server).map(|mode| mode.name)
}

#[test]
fn every_server_mode_trains_over_threads() {
    for mode in server_modes() {
        let folder = train(Threads(4), &format!("--mode {mode} --epochs 15 --slow 3:2ms"));
        check_server_results(&folder, 4, 1, mode);
        let accuracy = folder.summary()["final_accuracy"].as_f64().unwrap();
        assert!(accuracy > 0.8, "{mode}: {accuracy}");
    }
}

#[test]
fn shards_and_servers_of_their_own_train_as_well() {
    for (flags, workers, servers) in [
        ("--servers 3", 4, 3),
        ("--servers 2 --server-placement dedicated", 2, 2),
        ("--servers 1 --server-placement dedicated --network mlp-bn --wire bf16", 3, 1),
    ] {
        let folder = train(Threads(4), &format!("--mode wbsp --epochs 10 {flags}"));
        check_server_results(&folder, workers, servers, "wbsp");
        let summary = folder.summary();
        assert_eq!(summary["ranks"], 4, "{flags}");
        assert!(summary["final_accuracy"].as_f64().unwrap() > 0.85, "{flags}: {summary:#}");
    }
}

#[test]
fn a_target_is_stamped_with_its_snapshot_and_its_parameters_are_the_result() {
    let folder = train(Threads(4), "--mode wbsp --target-accuracy 0.9 --epochs 40 --eval-every 512");
    let summary = folder.summary();
    let number = |key: &str| summary[key].as_f64().unwrap();
    assert_eq!(
        (&summary["reached_target"], &summary["stopped_by"]),
        (&true.into(), &"target".into()),
        "{summary:#}"
    );
    assert!(number("final_accuracy") >= 0.9 && number("time_to_target_seconds") <= number("train_seconds"));
    let evaluations: Vec<_> =
        folder.metrics().into_iter().filter(|event| event["kind"] == "evaluate").collect();
    let winner = evaluations.iter().find(|event| event["accuracy"].as_f64().unwrap() >= 0.9);
    let winner = winner.unwrap_or_else(|| panic!("{evaluations:#?}"));
    if winner["train_seconds"] == summary["time_to_target_seconds"] {
        assert_eq!(winner["accuracy"], summary["final_accuracy"]);
    }
}

#[test]
fn every_second_of_a_worker_is_accounted_for() {
    for mode in ["wbsp", "adsp"] {
        let flags = format!("--mode {mode} --network lenet --batch-size 64 --slow 3:40ms --max-seconds 1.5");
        check_clocks(|| {
            let summary = train(Threads(4), &flags).summary();
            assert_eq!(summary["stopped_by"], "seconds");
            summary
        });
    }
}

#[test]
fn a_diverged_worker_ends_the_run() {
    let folder = Folder::new();
    let outcome = folder.run(Threads(3), "--mode wbsp --learning-rate 1e30 --epochs 10");
    outcome.assert_failed(7, &["diverged"]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |flags: &str, words: &[&str]| {
        let folder = Folder::new();
        let outcome = run(esync_train(&format!("--ranks 4 {flags} {}", folder.out())));
        outcome.assert_failed(2, words);
        folder.assert_untouched();
    };
    refused("--mode esync --servers 2", &["--servers", "--mode esync"]);
    refused("--mode sync --server-placement dedicated", &["--server-placement", "--mode sync has none"]);
    refused("--mode wbsp --servers 5", &["--servers is 5", "4 ranks"]);
    refused("--mode wbsp --servers 0", &["--servers is 0", "4 ranks"]);
    refused("--mode wbsp --servers 4 --server-placement dedicated", &["leaves none to train"]);
    refused(
        "--mode wbsp --server-placement dedicated --slow 3:4x",
        &["--slow names rank 3", "does not train"],
    );
    refused("--mode wbsp --wire int8", &["int8", "--mode wbsp"]);
    refused("--mode wbsp --collective ring", &["--collective", "--mode wbsp"]);
    refused("--mode wbsp --weighting samples", &["--weighting", "--mode wbsp"]);
}
