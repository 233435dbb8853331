//! What a person sees while training runs: rank 0's first lines, then a progress bar or plain lines.

use super::flags::Progress;
use crate::transport::announced_ranks;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Rank 0's voice; silent on the other ranks.
pub(crate) struct Reporter {
    style: Style,
    every: Duration,
    last: Instant,
    /// Global samples and waiting at the last line.
    samples: u64,
    elapsed: f64,
}

enum Style {
    Bar(ProgressBar),
    Line,
    Silent,
}

/// The figures of a line.
pub(crate) struct Line<'a> {
    pub(crate) elapsed: f64,
    /// What is counted, and how often it has happened.
    pub(crate) what: &'static str,
    pub(crate) number: u64,
    pub(crate) loss: f64,
    pub(crate) accuracy: Option<f64>,
    pub(crate) global_samples: u64,
    /// A figure of every worker, and its name.
    pub(crate) counts: (&'static str, &'a [u64]),
    pub(crate) wait_share: Option<f64>,
    pub(crate) exchange_seconds: Option<f64>,
}

impl Reporter {
    pub(crate) fn new(progress: Progress, every: Duration, is_rank_0: bool, budget: Option<u64>) -> Self {
        let style = match progress {
            _ if !is_rank_0 => Style::Silent,
            Progress::None => Style::Silent,
            Progress::Line => Style::Line,
            Progress::Bar => Style::bar(budget),
            // Under a launcher standard output is a pseudo-terminal even when it ends in a file, and standard error never
            // is one.
            Progress::Auto if announced_ranks().is_none() && std::io::stderr().is_terminal() => {
                Style::bar(budget)
            }
            Progress::Auto => Style::Line,
        };
        Reporter { style, every, last: Instant::now(), samples: 0, elapsed: 0.0 }
    }

    /// Shows the figures, if it is time to.
    pub(crate) fn show(&mut self, line: &Line<'_>) {
        match &self.style {
            Style::Silent => {}
            Style::Bar(bar) => {
                bar.set_position(line.global_samples);
                let accuracy = line.accuracy.map_or(String::new(), |a| format!("acc {:.1}%  ", 100.0 * a));
                let wait = line.wait_share.map_or(String::new(), |w| format!("wait {:.0}%", 100.0 * w));
                bar.set_message(format!("loss {:.4}  {accuracy}{wait}", line.loss));
            }
            Style::Line if self.last.elapsed() >= self.every => {
                self.last = Instant::now();
                let rate =
                    (line.global_samples - self.samples) as f64 / (line.elapsed - self.elapsed).max(1e-9);
                self.samples = line.global_samples;
                self.elapsed = line.elapsed;
                say(&text(line, rate));
            }
            Style::Line => {}
        }
    }

    pub(crate) fn finish(&self) {
        if let Style::Bar(bar) = &self.style {
            bar.finish();
        }
    }
}

impl Style {
    fn bar(budget: Option<u64>) -> Style {
        let bar = ProgressBar::new(budget.unwrap_or(0));
        let template = "{elapsed:>5} [{bar:30}] {pos}/{len} samples ({per_sec}, {eta} left)  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Style::Bar(bar)
    }
}

fn text(line: &Line<'_>, rate: f64) -> String {
    let accuracy = line.accuracy.map_or(String::new(), |a| format!("  acc {:.1}%", 100.0 * a));
    // Beyond sixteen ranks a list tells less than its ends.
    let (of, counts) = line.counts;
    let counts = match counts {
        [] => "-".to_string(),
        steps if steps.len() <= 16 => steps.iter().map(u64::to_string).collect::<Vec<_>>().join("/"),
        steps => format!("{}..{}", steps.iter().min().unwrap_or(&0), steps.iter().max().unwrap_or(&0)),
    };
    let wait = line.wait_share.map_or(String::new(), |share| format!("  wait {:.0}%", 100.0 * share));
    let exchange = line.exchange_seconds.map_or(String::new(), |s| format!("  exchange {:.1}ms", 1e3 * s));
    format!(
        "{:>7.1}s {} {:>5}  loss {:.4}{accuracy}  {rate:.0} samples/s  {of} {counts}{wait}{exchange}",
        line.elapsed, line.what, line.number, line.loss,
    )
}

/// One line on standard output, at once, also when it is a pipe.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that went away is no reason to lose a training run.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
