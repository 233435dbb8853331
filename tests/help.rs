//! `esync-train -h` fits a screen, and `--help` is complete.
#![cfg(feature = "torch")]

mod launcher;

use clap::{Args, Command};
use esync::train::Flags;
use launcher::{esync_train, run};

fn help(flag: &str) -> String {
    let outcome = run(esync_train(flag));
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    outcome.stdout
}

#[test]
fn the_short_help_fits_a_screen() {
    let text = help("-h");
    let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(text.lines().count() <= 50, "{} lines:\n{text}", text.lines().count());
    assert!(widest <= 110, "{widest} columns:\n{text}");
    // What nobody can do without.
    for flag in
        ["--mode", "--collective", "--ranks", "--slow", "--target-accuracy", "--out", "--config", "--help"]
    {
        assert!(text.contains(flag), "{flag} is missing in:\n{text}");
    }
}

#[test]
fn the_long_help_has_every_flag_in_a_group_and_documented() {
    let text = help("--help");
    let flags = Flags::augment_args(Command::new("flags"));
    let mut headings = Vec::new();
    for flag in flags.get_arguments() {
        let name = format!("--{}", flag.get_long().unwrap());
        let line =
            text.lines().position(|line| line.trim_start().trim_start_matches("-mblh, ").starts_with(&name));
        let line = line.or_else(|| text.lines().position(|line| line.contains(&format!(", {name} "))));
        assert!(line.is_some(), "{name} is missing in:\n{text}");
        let words = flag.get_help().map(ToString::to_string).unwrap_or_default();
        assert!(words.len() > 10, "{name} says only {words:?}");
        let heading = flag.get_help_heading().unwrap_or_else(|| panic!("{name} is in no group"));
        assert!(text.contains(&format!("\n{heading}:\n")), "{heading} is missing");
        headings.push(heading);
        // The environment's name follows from the flag's, as the help says.
        let variable = format!("ESYNC_{}", flag.get_long().unwrap().to_uppercase().replace('-', "_"));
        assert_eq!(flag.get_env().unwrap().to_str(), Some(&*variable));
    }
    headings.dedup();
    let unique: std::collections::BTreeSet<_> = headings.iter().collect();
    assert_eq!(unique.len(), headings.len(), "flags of one group stand together: {headings:?}");
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for code in
        ["0 done", "2 usage", "3 environment", "4 data", "6 stalled", "7 diverged", "8 target not reached"]
    {
        assert!(words.contains(code), "exit code {code}");
    }
    assert!(text.contains("ESYNC_"), "the environment");
}

#[test]
fn a_dry_run_prints_a_configuration_that_can_be_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    let text = help("--dry-run --mode sync --seed 7 --slow 3:4x --ranks 4");
    assert!(text.contains("seed = 7") && text.contains("slow = \"3:4x\""), "{text}");
    std::fs::write(&file, &text).unwrap();
    assert_eq!(help(&format!("--dry-run --config {}", file.display())), text);
    assert!(!folder.path().join("runs").exists());
}
