//! `esync sim` as a program: what it prints, the files that it leaves, and its exit codes. Surrogates only: no libtorch.

use std::path::Path;
use std::process::Command;

fn sim(folder: &Path, arguments: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esync"));
    command.current_dir(folder).arg("sim").args(arguments.split_whitespace());
    let output = command.output().expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .unwrap()
}

#[test]
fn a_run_leaves_the_files_of_a_real_one() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = "--cluster 1:1:3 --surrogate --mode esync --max-samples 5000 --out run";
    let (code, out, err) = sim(folder.path(), arguments);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("3 simulated workers on 3 hosts (cluster 1:1:3)"), "{out}");
    assert!(out.contains("results in run"), "{out}");
    let run = folder.path().join("run");
    let summary = json(&run.join("summary.json"));
    assert_eq!((&summary["mode"], &summary["transport"]), (&"esync".into(), &"simulated".into()));
    assert_eq!(summary["workers"].as_array().map(Vec::len), Some(3));
    assert!(run.join("model.safetensors").exists());
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> =
        metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for kind in ["step", "decision", "exchange", "evaluate"] {
        assert!(lines.iter().any(|line| line["kind"] == kind), "{kind}");
    }
    assert!(
        lines.windows(2).all(|pair| pair[0]["t"].as_f64() <= pair[1]["t"].as_f64()),
        "virtual times never go back"
    );
    // The same again, bit for bit, from the file that it left.
    let again = "--cluster 1:1:3 --surrogate --config run/config.toml --out again";
    let (code, _, err) = sim(folder.path(), again);
    assert_eq!(code, 0, "{err}");
    assert_eq!(metrics, std::fs::read_to_string(folder.path().join("again/metrics.jsonl")).unwrap());
}

#[test]
fn targets_and_bad_input_have_their_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let check = |arguments: &str, expected: i32, words: &str| {
        let (code, out, err) = sim(folder.path(), arguments);
        assert_eq!(code, expected, "{arguments}: {out}{err}");
        assert!(out.contains(words) || err.contains(words), "{arguments}: {out}{err}");
    };
    check("--surrogate --mode sync --target-loss 0.5 --out reached", 0, "target reached after");
    check(
        "--surrogate --mode sync --target-loss 1e-12 --max-samples 2000 --out missed",
        8,
        "was not reached",
    );
    check("--surrogate --cluster nowhere.toml", 2, "give a file, or one of: homogeneous");
    check("--surrogate --ranks 4", 2, "--ranks has no meaning in a simulation");
    check(
        "--surrogate --mode wbsp --server-placement dedicated",
        2,
        "the server is where the cluster's [server] says",
    );
    check(
        "--surrogate --mode streaming-diloco --fragment-map strided",
        2,
        "give at most 1, or --fragment-map contiguous",
    );
    check(
        "--surrogate --mode streaming-diloco --fragment-map contiguous --max-samples 4000 --out cut",
        0,
        "results in cut",
    );
    check("--surrogate --target-loss=-1", 2, "--target-loss is -1");
    check("--surrogate --target-accuracy 0.9", 2, "--target-accuracy has no meaning with --surrogate");
    check("--surrogate --learning-rate 500 --mode sync --max-samples 100000 --out diverged", 7, "diverged");
    std::fs::write(folder.path().join("bad.toml"), "version = 1\nhots = 3\n").unwrap();
    check("--surrogate --cluster bad.toml", 2, "line 2");
    check("--show-cluster --cluster esync-12", 0, "150");
}

#[test]
fn a_comparison_has_one_target_and_one_grid() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = "--surrogate --cluster 1:1:3 --compare sync,esync --seeds 3 --learning-rates 0.005,0.05 \
                     --target-loss 0.5 --max-samples 40000 --jobs 2 --out all";
    let (code, out, err) = sim(folder.path(), arguments);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("speed-up") && out.contains("1.00x"), "{out}");
    let comparison = json(&folder.path().join("all/comparison.json"));
    let modes = comparison["modes"].as_array().unwrap();
    assert_eq!(modes.len(), 2);
    for mode in modes {
        assert_eq!(mode["seeds"], 3);
        assert_eq!(mode["grid"].as_array().map(Vec::len), Some(2));
    }
    assert!(modes[1]["speed_up"].as_f64() > Some(1.0), "esync fills the waiting: {}", modes[1]);
    assert!(folder.path().join("all/esync/rate-0.05/seed-3/summary.json").exists());
    let (code, _, err) = sim(folder.path(), "--surrogate --compare sync,esync");
    assert!(code == 2 && err.contains("one target for all modes"), "{err}");
}
