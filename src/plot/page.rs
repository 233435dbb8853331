//! One HTML page with all pictures: no scripts, nothing from elsewhere.

use super::Picture;
use super::canvas::run_colour;
use super::run::Run;
use super::units::Quantity;
use std::fmt::Write as _;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1f2430; --faint: #5b6474; --paper: #ffffff; --line: #dfe3e9 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf0; --faint: #a3adbc; --paper: #14171c; --line: #2b313b } }
body { color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; margin: 2rem auto; max-width: 800px; padding: 0 1rem }
h1 { font-size: 1.4rem } figure { margin: 2rem 0 } figcaption, .note { color: var(--faint) } svg { max-width: 100%; height: auto }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { text-align: right; padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line) } th:first-child, td:first-child { text-align: left }
i { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.4em }
";

/// The page, as text.
pub(super) fn page(runs: &[Run], pictures: &[Picture]) -> String {
    let names: Vec<String> = runs.iter().map(|run| escaped(&run.label)).collect();
    let title = format!("esync: {}", names.join(", "));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
    table(&mut page, runs);
    for run in runs {
        for note in &run.notes {
            let _ = writeln!(page, "<p class=\"note\">{}: {}</p>", escaped(&run.label), escaped(note));
        }
    }
    for picture in pictures {
        let _ = writeln!(
            page,
            "<figure id=\"{}\">\n{}<figcaption>{}</figcaption>\n</figure>",
            escaped(&picture.name),
            picture.svg,
            escaped(&picture.caption)
        );
    }
    page + "</body>\n</html>\n"
}

/// The runs' figures.
fn table(page: &mut String, runs: &[Run]) {
    let header = [
        "run",
        "workers",
        "accuracy",
        "loss",
        "time to target",
        "training time",
        "samples",
        "samples/s",
        "exchanges",
        "sent",
        "busy",
    ];
    let row = |cells: &[String], cell: &str| {
        let cells: String = cells.iter().map(|text| format!("<{cell}>{text}</{cell}>")).collect();
        format!("<tr>{cells}</tr>\n")
    };
    *page += "<div class=\"scroll\"><table>\n";
    *page += &row(&header.map(String::from), "th");
    for (number, run) in runs.iter().enumerate() {
        let last = run.evaluations.last();
        let colour = run_colour(number);
        let has_target = run.target_accuracy.is_some() || run.target_loss.is_some();
        let dash = || "–".to_string();
        let cells = [
            format!(
                "<i style=\"background: #{:02x}{:02x}{:02x}\"></i>{}",
                colour.0,
                colour.1,
                colour.2,
                escaped(&run.label)
            ),
            run.workers.len().to_string(),
            last.map_or_else(dash, |e| format!("{:.2} %", 100.0 * e.accuracy)),
            last.map_or_else(dash, |e| format!("{:.4}", e.loss)),
            match run.time_to_target_seconds {
                Some(seconds) => Quantity::Seconds.show(seconds),
                None if has_target && run.is_finished => "not reached".into(),
                None => dash(),
            },
            Quantity::Seconds.show(run.train_seconds),
            Quantity::Samples.show(run.samples as f64),
            Quantity::Samples.show(run.samples_per_second()),
            run.exchanges.to_string(),
            run.bytes_sent.map_or_else(dash, |bytes| Quantity::Bytes.show(bytes as f64)),
            Quantity::Share.show(run.busy_share()),
        ];
        *page += &row(&cells, "td");
    }
    *page += "</table></div>\n";
}

/// Text that is safe inside HTML and XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A name that every file system takes.
pub(super) fn file_name(label: &str) -> String {
    label.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect()
}
