//! `esync-bench` alone: its flags, its three formats, what it explains and draws. Between processes it is tested in
//! `mpi_collectives.rs`.

#[path = "common/process.rs"]
mod process;

use esync::collective::COLLECTIVE_NAMES;
use process::{Finished, alone, finish};
use serde_json::Value;

/// Quick even on a busy machine.
const QUICK: &str = "-n 10 -w 1 --repeat-contaminated 0 --timeout 30s";

fn bench(arguments: &str) -> Finished {
    let mut command = alone(env!("CARGO_BIN_EXE_esync-bench"));
    finish(command.args(arguments.split_whitespace()), 60)
}

#[track_caller]
fn records(arguments: &str) -> Vec<Value> {
    let finished = bench(&format!("{QUICK} --format json {arguments}")).expect(0);
    finished.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn a_record_has_the_fields_of_the_contract() {
    let found = records("--ranks 3 --collective butterfly -b 4K -e 4K --buffers private");
    assert_eq!(found.len(), 2, "out of place and in place");
    for (record, in_place) in found.iter().zip([false, true]) {
        for (field, value) in [
            ("op", Value::from("all-reduce")),
            ("collective", "butterfly".into()),
            ("transport", "threads".into()),
            ("ranks", 3.into()),
            ("bytes", 4096.into()),
            ("count", 1024.into()),
            ("type", "f32".into()),
            ("redop", "sum".into()),
            ("in_place", in_place.into()),
            ("registered", false.into()),
            ("wrong", 0.into()),
            ("iterations", 10.into()),
            ("samples", 10.into()),
            ("timing", "barrier".into()),
            ("refresh", "rewrite".into()),
        ] {
            assert_eq!(record[field], value, "{field} of {record}");
        }
        let times = ["min", "median", "p95", "p99"].map(|name| number(&record["time_us"][name]));
        assert!(times[0] > 0.0 && times.is_sorted(), "{record}");
        assert!((number(&record["algbw_gbps"]) - 4096.0 / times[1] / 1e3).abs() < 1e-5, "{record}");
        let share = number(&record["ceiling_us"]) / times[1];
        assert!(share > 0.0 && (number(&record["ceiling_share"]) - share).abs() < 1e-5, "{record}");
        assert!(number(&record["ceiling_gbps"]) > 0.01, "{record}");
        assert_eq!(record["result_hash"], found[0]["result_hash"], "the same bits in and out of place");
    }
}

#[test]
fn what_was_not_measured_is_null() {
    for record in records("--ranks 2 --collective ring -b 64 -e 64 --ceiling off -c 0") {
        for field in ["ceiling_us", "ceiling_gbps", "ceiling_share", "wrong", "result_hash"] {
            assert_eq!(record.get(field), Some(&Value::Null), "{field} of {record}");
        }
    }
    let one_rank = records("--ranks 1 --collective ring -b 64 -e 64");
    assert!(one_rank.iter().all(|record| record["ceiling_us"].is_null() && record["wrong"] == 0));
}

#[test]
fn rows_multiply_by_placement_and_memory() {
    let rows = |flags: &str| {
        records(&format!("--ranks 2 --collective ring -b 64 -e 64 --ceiling off {flags}")).len()
    };
    assert_eq!(rows("--buffers private --placement in"), 1);
    assert_eq!(rows("--buffers private --placement out"), 1);
    assert_eq!(rows("--buffers registered --placement both"), 2);
    assert_eq!(rows("--buffers private --op broadcast"), 1);
    let refused = bench("--ranks 2 --op broadcast --placement out").expect(2);
    assert_eq!(refused.lines_with("--placement out is for all-reduce"), 1, "{refused:?}");
}

#[test]
fn every_way_of_timing_has_right_results() {
    for timing in ["barrier", "back-to-back"] {
        for refresh in ["none", "rotate", "rewrite"] {
            for flags in ["--op all-reduce", "--op all-gather", "--op reduce -o product", "-d i32 -o average"]
            {
                let found = records(&format!(
                    "--ranks 3 --collective parameter-server -b 1K -e 1K --ceiling off --timing {timing} --refresh \
                     {refresh} {flags}"
                ));
                for record in found {
                    assert_eq!(
                        (&record["wrong"], &record["timing"]),
                        (&0.into(), &timing.into()),
                        "{record}"
                    );
                    let (iterations, samples) = (number(&record["iterations"]), number(&record["samples"]));
                    assert!(0.0 < samples && samples <= iterations && iterations <= 10.0, "{record}");
                }
            }
        }
    }
}

#[test]
fn without_a_number_of_iterations_time_decides() {
    let arguments = "--ranks 2 --collective ring -b 64 -e 64 --placement in --buffers private --seconds-per-size 0.05 \
                     --ceiling off --repeat-contaminated 0 --format json --timing";
    for timing in ["barrier", "back-to-back"] {
        let finished = bench(&format!("{arguments} {timing}")).expect(0);
        let record: Value = serde_json::from_str(&finished.stdout).expect("one record");
        assert!(number(&record["iterations"]) >= 5.0 && finished.seconds < 20.0, "{record}");
    }
}

#[test]
fn sizes_grow_by_factors_or_by_steps() {
    let sizes = |flags: &str| -> Vec<u64> {
        let common = "--ranks 2 --collective ring --placement in --buffers private --ceiling off";
        let found = records(&format!("{common} {flags}"));
        found.iter().map(|record| record["bytes"].as_u64().expect("bytes")).collect()
    };
    assert_eq!(sizes("-b 64 -e 1K -f 4"), [64, 256, 1024]);
    assert_eq!(sizes("-b 64 -e 256 -i 64"), [64, 128, 192, 256]);
    assert_eq!(sizes("--minbytes 64 --maxbytes 256 --stepfactor 2"), [64, 128, 256]);
    assert_eq!(sizes("-b 10 -e 10"), [8], "whole elements");
    for (flags, words) in [
        ("-b 64 -e 256 -i 2", "less than an element"),
        ("-b 64 -e 256 -i 64 -f 2", "cannot be used with"),
        ("-b 900T -e 900T", "is no size"),
        ("-b 900000G -e 900000G", "GB free"),
    ] {
        let finished = bench(&format!("--ranks 2 --collective ring {flags}")).expect(2);
        assert!(finished.stderr.contains(words), "{flags}: {finished:?}");
    }
}

#[test]
fn a_csv_file_is_a_rectangle_with_names() {
    let arguments = "--ranks 2 --collective ring,butterfly -b 64 -e 256 --buffers private --format csv";
    let finished = bench(&format!("{QUICK} {arguments}")).expect(0);
    let lines: Vec<Vec<&str>> = finished.stdout.lines().map(|line| line.split(',').collect()).collect();
    // Two sizes, two collectives, in place and out of place.
    assert_eq!(lines.len(), 1 + 8, "{}", finished.stdout);
    assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{}", finished.stdout);
    assert_eq!(
        lines[0][..12],
        [
            "op",
            "collective",
            "transport",
            "ranks",
            "order",
            "bytes",
            "count",
            "type",
            "redop",
            "in_place",
            "registered",
            "time_us_min"
        ]
    );
    assert_eq!(lines[8][..6], ["all-reduce", "butterfly", "threads", "2", "auto", "256"]);
}

#[test]
fn a_table_has_comments_columns_and_a_verdict() {
    let finished =
        bench(&format!("{QUICK} --ranks 2 --collective ring -b 64 -e 256 --buffers private")).expect(0);
    let (comments, rows): (Vec<&str>, Vec<&str>) =
        finished.stdout.lines().partition(|line| line.starts_with('#'));
    assert_eq!(rows.len(), 2, "in place and out of place share a line:\n{}", finished.stdout);
    let columns = |line: &str| line.trim_start_matches('#').split_whitespace().count();
    let names = comments.iter().find(|line| line.contains("collective ")).expect("names of columns");
    assert!(rows.iter().all(|row| columns(row) == columns(names)), "{}", finished.stdout);
    for words in [
        "2 ranks over threads on 1 host",
        "core",
        "in a += b",
        "# wrong elements: 0 OK",
        "# average bus bandwidth",
    ] {
        assert!(comments.iter().any(|line| line.contains(words)), "{words}:\n{}", finished.stdout);
    }
}

#[test]
fn a_sweep_that_fails_leaves_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("results.json");
    let arguments = format!("--ranks 2 -b 64 -e 64 {QUICK} --format json --output {}", path.display());
    bench(&format!("{arguments} --collective ring --order canonical")).expect(2);
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
    bench(&format!("{arguments} --collective ring")).expect(0);
    let text = std::fs::read_to_string(&path).expect("results");
    assert!(
        text.ends_with('\n') && text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()),
        "{text}"
    );
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn an_explanation_lists_what_every_rank_does() {
    let finished = bench("--explain --ranks 4 --collective ring -b 64").expect(0);
    for words in [
        "ring: all-reduce of 64 B (16 elements) over 4 ranks",
        "6 rounds; at most, a rank sends 96 B in 6 messages (1.50 × its vector), receives 96 B, combines 48 B",
        "4 different orders of summation",
        "send buffer[0..4] to 1; add buffer[12..16] from 3",
    ] {
        assert_eq!(finished.lines_with(words), 1, "{words}: {}", finished.stdout);
    }
    let all = bench("--explain --ranks 3").expect(0);
    assert!(COLLECTIVE_NAMES.iter().all(|name| all.stdout.contains(&format!("{name}: "))), "{}", all.stdout);
    assert!(all.stdout.contains("canonical: every element is (0+1)+2"));

    // A prediction for each that has a schedule, and what `auto` makes of them.
    let predicted = all.lines_with("  predicted: ");
    assert!((COLLECTIVE_NAMES.len() - 2..COLLECTIVE_NAMES.len()).contains(&predicted), "{}", all.stdout);
    assert_eq!(
        (all.lines_with("auto: for all-reduce"), all.lines_with("  by messages, ")),
        (1, 1),
        "{}",
        all.stdout
    );
    assert_eq!(
        all.lines_with("where ranks share memory, native: the ranks share memory"),
        1,
        "{}",
        all.stdout
    );

    let hosts = bench("--explain --ranks 4 --ranks-per-host 2 --collective ring").expect(0);
    assert!(hosts.stdout.contains("over 4 ranks on 2 hosts"), "{}", hosts.stdout);
    assert_eq!(bench("--explain").expect(2).lines_with("give --ranks N"), 1);
    bench("--explain --ranks 3 --collective ring --order canonical").expect(2);
}

#[test]
fn a_drawing_shows_every_rank_and_message() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("rounds.svg");
    let draw = |flags: &str| bench(&format!("--draw {} {flags}", path.display()));
    draw("--ranks 5 --collective ring -b 1K").expect(0);
    let picture = std::fs::read_to_string(&path).expect("a picture");
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    // Every rank sends 2 (n - 1) messages.
    let messages = picture.matches(" sends buffer").count();
    assert_eq!((messages, picture.matches("combined at rank").count()), (5 * 8, 5 * 4));
    assert!((0..5).all(|rank| picture.contains(&format!(">rank {rank}<"))));
    assert!(picture.contains(">round 8<") && !picture.contains(">round 9<"));

    for (flags, words) in [
        ("--ranks 4", "name it with --collective"),
        ("--ranks 17 --collective ring", "up to 16 ranks"),
        ("--ranks 4 --collective ring -b 1M", "give a smaller"),
        ("--collective ring", "give --ranks N"),
        ("--ranks 4 --collective native", "has no schedule"),
    ] {
        assert_eq!(draw(flags).expect(2).lines_with(words), 1, "{flags}");
    }
}
