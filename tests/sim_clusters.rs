//! Cluster files: what they mean, and what is wrong with them, with the line.

use esync::learner::{Learner, Quadratic, QuadraticOptions, SgdOptions};
use esync::sim::{Jitter, Pause, SimCluster, SimOptions, Simulation, StepSeconds, Unwatched};
use std::path::Path;

const FILE: &str = r#"version = 1

[[hosts]]
name = "a"
ranks = 3
cores = 4
reduce_seconds_per_byte = 1e-10
step_seconds = 0.5

[[hosts]]
name = "b"
ranks = 1
cores = 1
reduce_seconds_per_byte = 1e-10

[[links]]
hosts = "same"
latency_seconds = 1e-6
bandwidth_bytes_per_second = 1e10

[[links]]
hosts = "different"
latency_seconds = 1e-4
bandwidth_bytes_per_second = 1e8

[server]
latency_seconds = 2e-3
bandwidth_bytes_per_second = 1e7
card_bandwidth_bytes_per_second = 2e7

[[workers]]
ranks = [1]
jitter = "log-normal:0.2"
pauses = [{ at_seconds = 3.0, seconds = 1.5 }]
memory_bytes = 1000000

[[workers]]
ranks = [3]
trace = [1.0, 2.0]
dies_at_seconds = 60.0
"#;

fn parse(text: &str) -> esync::Result<SimCluster> {
    SimCluster::parse(text, Path::new("cluster.toml"))
}

#[test]
fn a_file_says_how_workers_behave() {
    let cluster = parse(FILE).unwrap();
    let workers = &cluster.workers;
    assert_eq!(workers[0].step_seconds, StepSeconds::Constant(0.5), "the host's");
    assert_eq!(
        (&workers[1].step_seconds, workers[1].jitter),
        (&StepSeconds::Constant(0.5), Jitter::LogNormal { sigma: 0.2 })
    );
    assert_eq!(workers[1].pauses, [Pause { at_seconds: 3.0, seconds: 1.5 }]);
    assert_eq!(workers[1].memory_bytes, Some(1_000_000));
    assert_eq!(workers[3].step_seconds, StepSeconds::Trace([1.0, 2.0].into()));
    assert_eq!(workers[3].dies_at_seconds, Some(60.0));
    assert_eq!(cluster.server.link.map(|link| link.latency_seconds), Some(2e-3));
    assert_eq!(cluster.server.card_seconds_per_byte, Some(5e-8));
    assert_eq!(cluster.network.link(0, 3).latency_seconds, 1e-4);
}

/// A quadratic of 100 parameters that counts as one of 1,000,000: exchanged by a ring, and pushed to a server.
#[test]
fn a_model_can_count_as_a_larger_one() {
    let cluster = parse(&FILE.replace("version = 1", "version = 1\nmodel_bytes = 4_000_000")).unwrap();
    assert_eq!(cluster.model_bytes, Some(4_000_000));
    let run = |mode: &str, cluster: &SimCluster| {
        let mut options = SimOptions { collective: "ring".into(), ..SimOptions::new(mode) };
        options.limits.rounds = Some(1);
        let learner = |rank| {
            let sgd = SgdOptions { learning_rate: 0.05, momentum: 0.0, weight_decay: 0.0 };
            let (dimension, statistics, seed, batch_size, noise) = (100, 0, 1, 32, 0.1);
            let options = QuadraticOptions { dimension, statistics, seed, rank, batch_size, noise, sgd };
            Ok(Box::new(Quadratic::new(options)?) as Box<dyn Learner>)
        };
        Simulation::new(cluster.clone(), options, learner).unwrap().run(&mut Unwatched).unwrap()
    };
    let own = SimCluster { model_bytes: None, ..cluster.clone() };
    let (large, small) = (run("sync", &cluster), run("sync", &own));
    assert_eq!(
        (small.bytes(), large.bytes()),
        (4 * 600, 4 * 6_000_000),
        "2·3/4 of the vector from each of four"
    );
    // Six messages of a megabyte, one after the other, over the slowest link: 10 ms each.
    let longer = large.seconds - small.seconds;
    assert!((0.055..0.075).contains(&longer), "{longer}");
    let (large, small) = (run("async", &cluster), run("async", &own));
    assert_eq!(large.bytes(), 10_000 * small.bytes());
    assert_eq!(large.parameters, small.parameters, "what trains is the same");
}

#[test]
fn a_group_can_be_spread_evenly_over_ratios() {
    let text =
        FILE.replace("ranks = [1]\njitter", "count = 3\nstep_seconds = 0.1\nstep_seconds_to = 1.6\njitter");
    let cluster = parse(&text).unwrap();
    let seconds = |rank: usize| match cluster.workers[rank].step_seconds {
        StepSeconds::Constant(seconds) => seconds,
        StepSeconds::Trace(_) => f64::NAN,
    };
    for (rank, expected) in [0.1, 0.4, 1.6].into_iter().enumerate() {
        assert!((seconds(rank) - expected).abs() < 1e-12, "rank {rank}: {}", seconds(rank));
    }
}

#[test]
fn a_trace_can_be_a_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("steps.csv"), "0.5, 0.25\n1.0\n").unwrap();
    let text = FILE.replace("trace = [1.0, 2.0]", "trace_file = \"steps.csv\"");
    let path = folder.path().join("cluster.toml");
    std::fs::write(&path, &text).unwrap();
    let cluster = SimCluster::find(&path.to_string_lossy()).unwrap();
    assert_eq!(cluster.workers[3].step_seconds, StepSeconds::Trace([0.5, 0.25, 1.0].into()));
    std::fs::write(folder.path().join("steps.csv"), "0.5\nsoon\n").unwrap();
    let error = SimCluster::find(&path.to_string_lossy()).unwrap_err().to_string();
    assert!(error.contains("steps.csv: line 2: `soon` is no number of seconds"), "{error}");
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let check = |from: &str, to: &str, words: &[&str]| {
        assert!(FILE.contains(from), "{from}");
        let error = parse(&FILE.replacen(from, to, 1)).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        for words in words {
            assert!(error.to_string().contains(words), "{from} -> {to}: {error}");
        }
    };
    check("jitter = ", "jiter = ", &["line 33", "jiter"]);
    check("cores = 4", "cores = 4\ncolour = 1", &["colour"]);
    check("\"log-normal:0.2\"", "\"gamma:2\"", &["line 31", "`gamma:2` is no jitter"]);
    check("\"log-normal:0.2\"", "\"normal:-1\"", &["line 31", "jitter of -1"]);
    check("seconds = 1.5", "seconds = -1.5", &["line 31", "a pause of -1.5 s at 3 s"]);
    check("trace = [1.0, 2.0]", "trace = [1.0, -2.0]", &["line 37", "a step of -2 s"]);
    check("trace = [1.0, 2.0]", "step_seconds = 1e300", &["line 37", "at most"]);
    check("trace = [1.0, 2.0]", "trace = []", &["line 37", "empty"]);
    check("trace = [1.0, 2.0]\n", "", &["line 37", "give step_seconds, trace or trace_file"]);
    check("ranks = [3]", "ranks = [4]", &["line 37", "there is no rank 4, only 0 to 3"]);
    check("ranks = [3]", "", &["line 37", "give one of `ranks` and `count`"]);
    check("dies_at_seconds = 60.0", "dies_at_seconds = -1.0", &["line 37", "a death at -1 s"]);
    check(
        "latency_seconds = 1e-4",
        "latency_seconds = -1e-4",
        &["line 21", "link 2: latency_seconds is -0.0001"],
    );
    check(
        "latency_seconds = 2e-3",
        "latency_seconds = -2e-3",
        &["line 26", "server: latency_seconds is -0.002"],
    );
    check(
        "card_bandwidth_bytes_per_second = 2e7",
        "card_bandwidth_bytes_per_second = 0.0",
        &["line 26", "above 0"],
    );
    check("step_seconds = 0.5\n", "", &["line 30", "give step_seconds"]);
    check("cores = 1", "cores = 0", &["line 10", "host b: cores is 0"]);
    check("version = 1", "version = 1\nexchange_seconds = -0.5", &["exchange_seconds is -0.5"]);
    check("version = 1", "version = 1\nmodel_bytes = 0", &["a model of 0 bytes"]);
    check("version = 1", "version = 1\nmodel_bytes = -4", &["line 2", "model_bytes"]);
}

#[test]
fn an_unknown_cluster_names_those_that_are_built_in() {
    let error = SimCluster::find("esync-13").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("esync-12, wbsp-10, edge-18"), "{error}");
}
