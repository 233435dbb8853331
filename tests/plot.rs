//! `esync plot`: pictures of two small runs that the real program made, the story of a round, and every way to be told that
//! a run cannot be read.
//!
//! `UPDATE_EXPECT=1 cargo test --test plot` rewrites the expected story in `tests/golden/`.

use roxmltree::{Document, ParsingOptions};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A copy that a test may damage.
fn copy_of(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// Exit code, what it said, what it complained about.
fn esync_plot(arguments: &[&str]) -> (i32, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_esync")).arg("plot").args(arguments).output().expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Draws these runs; returns the directory of the pictures, and what was said.
fn pictures(runs: &[&Path], more: &[&str]) -> (TempDir, String) {
    let out = tempfile::tempdir().unwrap();
    let mut arguments: Vec<&str> = runs.iter().map(|run| run.to_str().unwrap()).collect();
    arguments.extend(["--out", out.path().to_str().unwrap()]);
    arguments.extend(more);
    let (code, stdout, stderr) = esync_plot(&arguments);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    (out, stdout)
}

fn lines(run: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|line| line["kind"] == kind).collect()
}

/// A picture: its texts, and how many marks of each colour it has by element.
struct Picture {
    texts: Vec<String>,
    marks: Vec<(String, String)>,
}

impl Picture {
    fn read(folder: &TempDir, name: &str) -> Picture {
        let text = fs::read_to_string(folder.path().join(format!("{name}.svg"))).unwrap();
        let document = Document::parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(document.root_element().attribute("width"), Some("800"));
        let nodes = || document.descendants().filter(roxmltree::Node::is_element);
        let texts = nodes().filter(|node| node.has_tag_name("text"));
        let colour = |node: &roxmltree::Node<'_, '_>| {
            let of = |name| node.attribute(name).filter(|colour| *colour != "none");
            of("fill").or(of("stroke")).unwrap_or_default().to_string()
        };
        Picture {
            texts: texts.map(|node| node.text().unwrap_or_default().trim().to_string()).collect(),
            marks: nodes().map(|node| (node.tag_name().name().to_string(), colour(&node))).collect(),
        }
    }

    fn has(&self, text: &str) -> bool {
        self.texts.iter().any(|found| found.contains(text))
    }

    fn count(&self, element: &str, colour: &str) -> usize {
        self.marks.iter().filter(|(name, found)| name == element && found == colour).count()
    }
}

const BLUE: &str = "#0072B2";
const VERMILION: &str = "#D55E00";
const ORANGE: &str = "#E69F00";
const GREEN: &str = "#009E73";

#[test]
fn two_runs_are_compared_by_time_samples_and_bytes() {
    let runs = [fixture("run-esync"), fixture("run-sync")];
    let (out, said) = pictures(&[&runs[0], &runs[1]], &[]);
    assert!(said.contains("15 pictures in"), "{said}");
    for value in ["accuracy", "loss"] {
        for (against, unit) in [("time", "ms"), ("samples", "samples"), ("bytes", "B")] {
            let picture = Picture::read(&out, &format!("{value}-{against}"));
            assert!(picture.has("esync,") && picture.has("sync,"), "{:?}", picture.texts);
            assert!(picture.has(&format!("test {value}")) && picture.has(unit), "{:?}", picture.texts);
            // A line with a dot for each evaluation, and a greater dot at its end.
            for (run, colour) in runs.iter().zip([BLUE, VERMILION]) {
                assert_eq!(picture.count("circle", colour), lines(run, "evaluate").len() + 1);
                assert!(picture.count("polyline", colour) >= 1);
            }
        }
    }
    assert!(Picture::read(&out, "accuracy-time").has("target 90 %"));
    for (name, axis) in [("throughput", "samples per second"), ("traffic", "bytes sent per sample")] {
        let picture = Picture::read(&out, name);
        assert!(picture.has("esync") && picture.has("sync") && picture.has(axis), "{:?}", picture.texts);
        let charts = if name == "traffic" { 2 } else { 1 };
        assert_eq!((picture.count("rect", BLUE), picture.count("rect", VERMILION)), (charts, charts));
    }
    let picture = Picture::read(&out, "time");
    assert!(picture.has("computing") && picture.has("waiting") && picture.has("busy"), "{:?}", picture.texts);
}

/// As `esync sim --compare` leaves it.
fn comparison() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut modes = Vec::new();
    for mode in ["esync", "sync"] {
        let run = folder.path().join(mode).join("rate-0.05").join("seed-2");
        fs::create_dir_all(run.parent().unwrap()).unwrap();
        fs::rename(copy_of(&format!("run-{mode}")).keep(), run).unwrap();
        let trial =
            |seed: u64, seconds: f64| serde_json::json!({ "seed": seed, "time_to_target_seconds": seconds });
        let runs = [trial(1, 0.5), trial(2, 1.0), trial(3, 7.0)];
        modes.push(serde_json::json!({ "mode": mode, "learning_rate": 0.05, "runs": runs }));
    }
    let failed = serde_json::json!({ "seed": 1, "time_to_target_seconds": null, "failure": "diverged" });
    modes.push(serde_json::json!({ "mode": "async", "learning_rate": 0.1, "runs": [failed] }));
    let text = serde_json::json!({ "version": 1, "modes": modes }).to_string();
    fs::write(folder.path().join("comparison.json"), text).unwrap();
    folder
}

#[test]
fn a_comparison_stands_for_its_median_runs() {
    let folder = comparison();
    let (code, said, stderr) = esync_plot(&[folder.path().to_str().unwrap()]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(said.contains("15 pictures in") && said.contains("all runs of async failed"), "{said}");
    let page = fs::read_to_string(folder.path().join("plots/index.html")).unwrap();
    assert!(page.contains("timeline-esync") && page.contains("timeline-sync"), "called by their modes");

    let (code, _, stderr) = esync_plot(&[folder.path().to_str().unwrap(), "--explain", "1"]);
    assert!(code == 2 && stderr.contains("one run"), "{code}: {stderr}");
    fs::write(folder.path().join("comparison.json"), "{\"modes\": [\n{}]}").unwrap();
    let (code, _, stderr) = esync_plot(&[folder.path().to_str().unwrap()]);
    assert!(code == 4 && stderr.contains("comparison.json:2"), "{code}: {stderr}");
}

#[test]
fn each_run_has_its_shares_timeline_and_local_steps() {
    let run = fixture("run-esync");
    let (out, _) = pictures(&[&run], &["--seconds", "1000"]);
    let shares = Picture::read(&out, "time-esync");
    let timeline = Picture::read(&out, "timeline-esync");
    for rank in ["rank 0", "rank 1", "rank 2"] {
        assert!(shares.has(rank) && timeline.has(rank));
    }
    // One bar for each rank, one square of the legend.
    assert_eq!(shares.count("rect", BLUE), 3 + 1);
    // Steps that are too short for this picture may be drawn as one.
    let steps = timeline.count("rect", BLUE);
    assert!(steps > 10 && steps <= lines(&run, "step").len() + 1, "{steps} steps");
    assert!(timeline.count("rect", ORANGE) > 1 && timeline.count("rect", GREEN) > 1);

    let local_steps = Picture::read(&out, "local-steps-esync");
    let exchanges = lines(&run, "exchange");
    let numbers: Vec<String> = exchanges.iter().map(|line| line["local_steps"].to_string()).collect();
    for number in &numbers {
        let shown = local_steps.texts.iter().filter(|text| text == &number).count();
        assert!(shown >= numbers.iter().filter(|other| other == &number).count(), "{number} is missing");
    }
}

#[test]
fn a_short_stretch_shows_every_step_in_it() {
    let run = fixture("run-sync");
    let rank_0: Vec<Value> = lines(&run, "step").into_iter().filter(|line| line["rank"] == 0).collect();
    let until = rank_0[2]["t"].as_f64().unwrap();
    let (out, _) = pictures(&[&run], &["--from", "0", "--seconds", &until.to_string()]);
    let timeline = Picture::read(&out, "timeline-sync");
    // In lockstep: three steps of each rank, more or less one, and the legend's square.
    let steps = timeline.count("rect", BLUE) - 1;
    assert!((6..=12).contains(&steps), "{steps}");
}

#[test]
fn the_page_holds_everything_and_needs_nothing() {
    let (out, _) = pictures(&[&fixture("run-esync"), &fixture("run-sync")], &[]);
    let page = fs::read_to_string(out.path().join("index.html")).unwrap();
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(&page, options).unwrap();
    let count = |name: &str| document.descendants().filter(|node| node.tag_name().name() == name).count();
    assert_eq!(
        (count("svg"), count("figcaption"), count("script"), count("link"), count("img")),
        (15, 15, 0, 0, 0)
    );
    assert_eq!(page.matches("http").count(), page.matches("http://www.w3.org/2000/svg").count());
    assert!(page.contains("prefers-color-scheme: dark"));
    let names: BTreeSet<String> = fs::read_dir(out.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".svg"))
        .collect();
    let figures = document.descendants().filter(|node| node.tag_name().name() == "figure");
    let shown: BTreeSet<String> =
        figures.map(|node| format!("{}.svg", node.attribute("id").unwrap())).collect();
    assert_eq!(names, shown);
}

#[test]
fn the_story_of_a_round() {
    let run = fixture("run-esync");
    let (code, story, stderr) = esync_plot(&[run.to_str().unwrap(), "--explain", "5"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let path = format!("{}/tests/golden/plot-explain.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, &story).unwrap();
    }
    let expected = fs::read_to_string(&path).expect("run once with UPDATE_EXPECT=1");
    assert!(expected == story, "{path} differs (UPDATE_EXPECT=1 rewrites it); now:\n{story}");
    assert!(story.contains("Rank 2 was awaited"), "it sleeps a millisecond each step:\n{story}");

    let (code, _, stderr) = esync_plot(&[run.to_str().unwrap(), "--explain", "99"]);
    assert!(code == 2 && stderr.contains("has no such round; its last one is"), "{code}: {stderr}");
    let (code, _, _) = esync_plot(&[run.to_str().unwrap(), "--explain", "0"]);
    assert_eq!(code, 2);
    let other = fixture("run-sync");
    let (code, _, stderr) = esync_plot(&[run.to_str().unwrap(), other.to_str().unwrap(), "--explain", "1"]);
    assert!(code == 2 && stderr.contains("one run"), "{code}: {stderr}");
}

#[test]
fn runs_of_one_mode_are_called_by_their_directories() {
    let [first, second] = [copy_of("run-sync"), copy_of("run-sync")];
    let folder = tempfile::tempdir().unwrap();
    let names = ["seed 1 <&\"'>", "seed 2"];
    for (run, name) in [first, second].into_iter().zip(names) {
        fs::rename(run.keep(), folder.path().join(name)).unwrap();
    }
    let paths = names.map(|name| folder.path().join(name));
    let (out, _) = pictures(&[&paths[0], &paths[1]], &[]);
    let picture = Picture::read(&out, "throughput");
    assert!(picture.has(names[0]) && picture.has(names[1]), "{:?}", picture.texts);
    Picture::read(&out, "timeline-seed-2");
}

#[test]
fn a_run_that_goes_on_is_drawn_as_far_as_it_goes() {
    let run = copy_of("run-sync");
    fs::remove_file(run.path().join("summary.json")).unwrap();
    let metrics = run.path().join("metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, &text[..text.len() - 20]).unwrap();
    let (out, said) = pictures(&[run.path()], &[]);
    assert!(said.contains("not finished") && said.contains("last line"), "{said}");
    assert!(Picture::read(&out, "accuracy-time").has("sync (not finished)"));
    assert!(fs::read_to_string(out.path().join("index.html")).unwrap().contains("not finished"));
}

/// A run in which one thing is wrong, and what is said about it.
#[track_caller]
fn refused(damage: impl FnOnce(&Path), complaints: &[&str]) {
    let run = copy_of("run-sync");
    damage(run.path());
    for explain in [&[][..], &["--explain", "1"]] {
        let out = run.path().join("plots");
        let mut arguments = vec![run.path().to_str().unwrap()];
        arguments.extend(explain);
        let (code, _, stderr) = esync_plot(&arguments);
        assert_eq!(code, 4, "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        for complaint in complaints {
            assert!(stderr.contains(complaint), "{complaint} is not in: {stderr}");
        }
        assert!(!out.exists(), "nothing is drawn of it");
    }
}

#[test]
fn damaged_files_are_named_with_their_lines() {
    let replace_line = |number: usize, text: &'static str| {
        move |run: &Path| {
            let path = run.join("metrics.jsonl");
            let all = fs::read_to_string(&path).unwrap();
            let lines: Vec<&str> =
                all.lines().enumerate().map(|(n, line)| if n + 1 == number { text } else { line }).collect();
            fs::write(path, lines.join("\n") + "\n").unwrap();
        }
    };
    refused(replace_line(7, "{\"t\":0.1,\"rank\":0,\"ki"), &["metrics.jsonl:7", "damaged"]);
    refused(replace_line(2, "\u{0}\u{1}rubbish"), &["metrics.jsonl:2", "damaged"]);
    refused(replace_line(3, ""), &["metrics.jsonl:3", "damaged"]);
    refused(
        replace_line(5, "{\"t\":0.1,\"rank\":0,\"kind\":\"exchange\",\"exchange\":1}"),
        &["metrics.jsonl:5", "missing field"],
    );
    refused(replace_line(1, "{\"t\":-4,\"rank\":0,\"kind\":\"step\"}"), &["metrics.jsonl:1", "cannot be"]);
    refused(replace_line(1, "{\"t\":4,\"rank\":99999999999,\"kind\":\"step\"}"), &["metrics.jsonl:1"]);
    refused(
        |run| {
            let path = run.join("metrics.jsonl");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(path, &text[..text.len() - 20]).unwrap();
        },
        &["metrics.jsonl:", "damaged"],
    );
    refused(|run| fs::write(run.join("metrics.jsonl"), vec![b'x'; 3 << 20]).unwrap(), &["longer than"]);
}

#[test]
fn missing_and_foreign_files_are_named() {
    refused(
        |run| fs::remove_file(run.join("metrics.jsonl")).unwrap(),
        &["metrics.jsonl", "esync-train wrote"],
    );
    refused(|run| fs::remove_file(run.join("config.toml")).unwrap(), &["config.toml", "esync-train wrote"]);
    refused(|run| fs::write(run.join("config.toml"), "mode = \"sync\"\nx = [").unwrap(), &["config.toml:2"]);
    refused(
        |run| {
            let path = run.join("summary.json");
            let text = fs::read_to_string(&path).unwrap().replacen("\"version\": 1", "\"version\": 7", 1);
            fs::write(path, text).unwrap();
        },
        &["summary.json", "version 7", "only version 1"],
    );
    refused(|run| fs::write(run.join("summary.json"), "{\"version\": 1").unwrap(), &["summary.json:1"]);
}

#[test]
fn flags_that_make_no_sense_are_refused() {
    let run = fixture("run-sync");
    let run = run.to_str().unwrap();
    for (arguments, complaint) in [
        (vec![run, "--from", "-1"], "--from is -1"),
        (vec![run, "--from=-1"], "--from is -1"),
        (vec![run, "--seconds", "0"], "--seconds is 0"),
        (vec![run, "--explain", "1", "--out", "x"], "cannot be used with"),
        (vec![], "required"),
    ] {
        let (code, _, stderr) = esync_plot(&arguments);
        assert!(code == 2 && stderr.contains(complaint), "{arguments:?}: {code}: {stderr}");
    }
}
