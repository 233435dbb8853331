//! The topology file: what it may say, and how it says what is wrong.

use esync::cluster::{Cluster, Link, Measured, NetworkCard};
use std::path::Path;

const GOOD: &str = r#"
version = 1
transport = "mpi"
measured_at = "2026-11-21T07:00:00Z"

[[hosts]]
name = "a"
cores = 2
switch_seconds = 1e-6
ranks = [0, 2]
reduce_seconds_per_byte = [1e-10, 2e-10]

[[hosts]]
name = "b"
cores = 1
ranks = [1]
reduce_seconds_per_byte = 4e-10
copy_seconds_per_byte = 3e-10
step_seconds = 0.25

[[network_cards]]
ranks = [0, 2]
bandwidth_bytes_per_second = 1e9

[[links]]
hosts = "same"
latency_seconds = 1e-6
seconds_per_byte = 1e-10

[[links]]
hosts = "different"
latency_seconds = 3e-5
message_seconds = 1e-6
seconds_per_byte = 8e-10

[[links]]
ranks = [2, 1]
one_way = true
latency_seconds = 5e-3
seconds_per_byte = 1e-7
"#;

fn parse(text: &str) -> esync::Result<Cluster> {
    Cluster::parse(text, Path::new("cluster.toml"))
}

#[test]
fn rules_go_from_the_general_to_the_particular() {
    let cluster = parse(GOOD).unwrap();
    assert_eq!(cluster.size(), 3);
    assert_eq!([0, 1, 2].map(|rank| cluster.host_name(rank)), ["a", "b", "a"]);
    assert_eq!(cluster.workers[2].reduce_seconds_per_byte, 2e-10);
    assert_eq!(
        cluster.workers[2].copy_seconds_per_byte, 2e-10,
        "copies are as fast as reductions if nothing is said"
    );
    assert_eq!(cluster.workers[1].step_seconds, Some(0.25));
    assert_eq!(cluster.link(0, 2).latency_seconds, 1e-6);
    assert_eq!(cluster.link(1, 2).latency_seconds, 3e-5);
    assert_eq!(cluster.link(1, 2).message_seconds, 1e-6);
    assert_eq!(cluster.link(2, 1).latency_seconds, 5e-3);
    assert_eq!(
        cluster.link(2, 1).message_seconds,
        5e-3,
        "a message occupies its ports for the latency if nothing is said"
    );
    assert_eq!(cluster.network_cards, [NetworkCard { ranks: vec![0, 2], seconds_per_byte: 1e-9 }]);
}

#[test]
fn what_is_written_is_read_again() {
    let mut cluster = parse(GOOD).unwrap();
    cluster.measured.push(Measured {
        operation: "all-reduce".into(),
        order: "canonical".into(),
        collective: "butterfly".into(),
        times: vec![(4, 1.5e-6), (1024, 2.25e-6)],
    });
    cluster.measured_with = Some("a \"quoted\" name, \\ and a line\nbreak".into());
    let again = parse(&cluster.to_toml()).unwrap();
    // Step times are written where all ranks of a host have them, which host b's do.
    assert_eq!(again, cluster);
}

#[test]
fn a_homogeneous_cluster_is_a_file_too() {
    let link = Link { latency_seconds: 1e-5, message_seconds: 1e-5, seconds_per_byte: 1e-9 };
    for size in [1, 2, 17] {
        let cluster = Cluster::homogeneous(size, link, 1e-10);
        let again = parse(&cluster.to_toml()).unwrap();
        assert!(again.hosts == cluster.hosts && again.workers == cluster.workers);
        assert!((0..size).all(|a| (0..size).all(|b| a == b || again.link(a, b) == link)));
    }
}

/// The error for the good file with one change.
fn error(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    let error = parse(&GOOD.replacen(from, to, 1)).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    error.to_string()
}

#[test]
fn errors_say_what_and_where() {
    let cases = [
        ("version = 1", "version = 7", "version is 7"),
        ("cores = 2", "cores = 0", "host a: cores is 0"),
        ("cores = 2", "cores = 2\ncolour = 3", "unknown field `colour`"),
        ("latency_seconds = 3e-5", "latency_seconds = -3e-5", "link 2: latency_seconds is -0.00003"),
        ("latency_seconds = 3e-5", "latency_seconds = nan", "link 2: latency_seconds is NaN"),
        ("message_seconds = 1e-6", "message_seconds = 1.0", "more than latency_seconds"),
        ("seconds_per_byte = 8e-10", "seconds_per_byte = inf", "link 2: seconds_per_byte is inf"),
        ("seconds_per_byte = 8e-10", "", "link 2: give one of seconds_per_byte and bandwidth"),
        (
            "seconds_per_byte = 8e-10",
            "seconds_per_byte = 8e-10\nbandwidth_bytes_per_second = 1e9",
            "give one of",
        ),
        ("bandwidth_bytes_per_second = 1e9", "bandwidth_bytes_per_second = 0.0", "network card 1: bandwidth"),
        ("hosts = \"different\"", "hosts = [\"a\", \"c\"]", "link 2: there is no host `c`"),
        (
            "hosts = \"different\"",
            "hosts = [\"a\", \"a\"]",
            "no link from rank 0 (host a) to rank 1 (host b)",
        ),
        ("hosts = \"different\"", "hosts = \"same\"", "just as exactly"),
        ("hosts = \"different\"", "hosts = \"other\"", "`hosts` is \"same\""),
        ("ranks = [2, 1]", "ranks = [2, 3]", "link 3: there is no rank 3"),
        ("ranks = [2, 1]", "", "give one of `hosts` and `ranks`"),
        ("ranks = [1]", "ranks = [2]", "rank 2 is on two hosts"),
        ("ranks = [1]", "ranks = [7]", "rank 1 is on no host"),
        ("ranks = [1]", "ranks = 1.5", "`ranks` is a number of ranks"),
        ("name = \"b\"", "name = \"a\"", "host a is there twice"),
        ("[1e-10, 2e-10]", "[1e-10]", "reduce_seconds_per_byte has 1 values for 2 ranks"),
        ("[1e-10, 2e-10]", "[1e-10, -2e-10]", "host a: reduce_seconds_per_byte is -0.0000000002"),
        ("ranks = [0, 2]\nbandwidth", "ranks = [0, 1]\nbandwidth", "ranks 0 and 1 are on different hosts"),
        ("ranks = [0, 2]\nbandwidth", "ranks = [0, 0]\nbandwidth", "rank 0 has a card already"),
    ];
    for (from, to, expected) in cases {
        let error = error(from, to);
        assert!(error.contains("cluster.toml") && error.contains(expected), "{from} -> {to}: {error}");
    }
}

#[test]
fn measured_times_are_checked() {
    let measured = |bytes: &str, seconds: &str| {
        let table = format!(
            "\n[[measured]]\noperation = \"all-reduce\"\norder = \"fastest\"\ncollective = \"ring\"\nbytes = {bytes}\nseconds = {seconds}\n"
        );
        parse(&format!("{GOOD}{table}")).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(measured("[4, 8]", "[1e-6, 2e-6]"), Ok(()));
    for (bytes, seconds, expected) in [
        ("[4, 8]", "[1e-6]", "2 sizes and 1 times"),
        ("[]", "[]", "at least one"),
        ("[8, 4]", "[1e-6, 1e-6]", "bytes do not increase"),
        ("[4]", "[0.0]", "a time is 0"),
        ("[4]", "[nan]", "seconds is NaN"),
    ] {
        let error = measured(bytes, seconds).unwrap_err();
        assert!(error.contains(expected) && error.contains("all-reduce by ring"), "{error}");
    }
}

#[test]
fn a_matrix_has_a_row_for_each_rank() {
    let text = parse(GOOD).unwrap().to_toml();
    let short = text.replacen("latency_seconds = [\n", "latency_seconds = [\n  [1.0],\n", 1);
    let error = parse(&short).unwrap_err().to_string();
    assert!(error.contains("latency_seconds must have 3 rows of 3 numbers"), "{error}");
}

/// Hosts of so many ranks each, and one entry of links.
fn many(ranks: &[usize], whose: &str) -> String {
    let host = |(number, ranks): (usize, &usize)| {
        format!(
            "[[hosts]]\nname = \"{number}\"\ncores = 4\nranks = {ranks}\nreduce_seconds_per_byte = 1e-10\n"
        )
    };
    let hosts: String = ranks.iter().enumerate().map(host).collect();
    format!("version = 1\n{hosts}[[links]]\n{whose}\nlatency_seconds = 1e-6\nseconds_per_byte = 1e-9\n")
}

#[test]
fn many_ranks_have_links_by_class() {
    let cluster = parse(&many(&[20_000], "hosts = \"same\"")).unwrap();
    assert_eq!((cluster.size(), cluster.link(19_999, 3).latency_seconds), (20_000, 1e-6));
    // A matrix of all pairs would be 13 GB.
    for text in [many(&[20_000], "ranks = [0, 1]"), many(&[10_000, 10_000], "hosts = \"same\"")] {
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains("20000 ranks") && error.contains("exactly two"), "{error}");
    }
}

#[test]
fn another_job_is_told_apart() {
    let cluster = parse(GOOD).unwrap();
    assert_eq!(cluster.difference(&["a", "b", "a"]), None);
    assert!(cluster.difference(&["a", "b"]).unwrap().contains("3 ranks, and this job has 2"));
    assert!(cluster.difference(&["a", "a", "a"]).unwrap().contains("rank 1 is on host b"));
}
