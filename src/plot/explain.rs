//! The story of a round, from the reasons that every decision was written down with.

use super::read;
use super::record::{Decision, Event, Exchange, Line, Push};
use super::units::{Quantity, number};
use crate::error::{Error, Result};
use crate::transport::Rank;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// Of the decisions of one worker, more than this are not told one by one.
const MOST_DECISIONS: usize = 6;

/// What one worker did in the round.
#[derive(Default)]
struct Part {
    /// The round that it is in while lines are read: it ends with an exchange or a push.
    round: u64,
    /// When it began the round, and ended it.
    began: f64,
    ended: Option<f64>,
    /// Its own steps, as (seconds, of which sleep).
    steps: Vec<(f64, f64)>,
    /// After how many steps of the round, what was done next, and why.
    decisions: Vec<(usize, String, String)>,
    /// Why the parameter server answered as it did, each time.
    replies: Vec<String>,
    /// The coordinator's answer, until the decision that follows it.
    answer: Option<String>,
    exchange: Option<Exchange>,
    push: Option<Push>,
    /// The reason to stop, right after the round.
    stop: Option<String>,
}

/// The text that `--explain` prints.
pub(super) fn explain(folder: &Path, round: u64) -> Result<String> {
    let config = read::config(folder)?;
    let is_finished = read::summary(folder)?.is_some();
    let mut parts: BTreeMap<Rank, Part> = BTreeMap::new();
    let mut last = 0;
    let mut replies: Vec<(f64, Rank, String)> = Vec::new();
    read::each_line(folder, is_finished, |line| {
        if let Event::Decision(Decision { by, worker, action, reason, .. }) = &line.event
            && by == "server"
        {
            if let (Some(worker), "reply") = (worker, action.as_str()) {
                replies.push((line.t, *worker, reason.clone()));
            }
            return Ok(());
        }
        let part = parts.entry(line.rank).or_insert_with(|| Part { round: 1, ..Part::default() });
        last = last.max(part.round);
        part.take(line, round);
        Ok(())
    })?;
    for (t, worker, reason) in replies {
        if let Some(part) =
            parts.get_mut(&worker).filter(|part| t > part.began && part.ended.is_none_or(|end| t <= end))
        {
            part.replies.push(reason);
        }
    }
    parts.retain(|_, part| !part.steps.is_empty() || !part.decisions.is_empty() || part.ended.is_some());
    if parts.is_empty() {
        let folder = folder.display();
        return Err(Error::Usage(format!(
            "--explain {round}: {folder} has no such round; its last one is {last}"
        )));
    }
    Ok(story(&config.mode, round, &parts))
}

impl Part {
    fn take(&mut self, Line { t, event, .. }: Line, wanted: u64) {
        match event {
            Event::Decision(decision) => self.decided(decision, wanted),
            Event::Step(step) if self.round == wanted => {
                self.steps.push((step.step_seconds, step.slow_seconds));
            }
            Event::Exchange(exchange) => {
                self.ends(t, wanted);
                if exchange.exchange == wanted {
                    self.exchange = Some(exchange);
                }
            }
            Event::Push(push) => {
                let ends_it = self.round == wanted;
                self.ends(t, wanted);
                if ends_it {
                    self.push = Some(push);
                }
            }
            _ => {}
        }
    }

    fn ends(&mut self, t: f64, wanted: u64) {
        if self.round == wanted {
            self.ended = Some(t);
        }
        self.round += 1;
        if self.round == wanted {
            self.began = t;
        }
    }

    fn decided(&mut self, Decision { round, action, reason, .. }: Decision, wanted: u64) {
        let round = round.unwrap_or(self.round);
        if action == "stop" && round == wanted + 1 && self.ended.is_some() {
            self.stop = Some(reason);
            return;
        }
        if round != wanted {
            return;
        }
        match action.as_str() {
            // The policy's question, then the coordinator's answer: the last one before the deed holds.
            "report" => self.answer = Some(reason),
            // The deed follows from the decision before.
            "finish" | "finish-push" | "wait" => {}
            _ => {
                let reason = self.answer.take().unwrap_or(reason);
                self.decisions.push((self.steps.len(), action, reason));
            }
        }
    }

    fn seconds(&self) -> f64 {
        self.steps.iter().map(|step| step.0).sum()
    }
}

fn story(mode: &str, round: u64, parts: &BTreeMap<Rank, Part>) -> String {
    // Each worker has its own clock: durations of one are compared, times are the first one's.
    let first = parts.values().next();
    let began = first.map_or(0.0, |part| part.began);
    let longest = parts.values().filter_map(|part| Some(part.ended? - part.began)).fold(0.0, f64::max);
    let how_long = match parts.values().any(|part| part.ended.is_some()) {
        true => format!("took {}", seconds(longest)),
        false => "was not ended".into(),
    };
    let mut text = format!(
        "Round {round} of {} in mode {mode} began {} after training began, and {how_long}.\n",
        plural(parts.len() as u64, "worker"),
        seconds(began)
    );
    let exchanges: Vec<(Rank, &Exchange)> =
        parts.iter().filter_map(|(rank, part)| Some((*rank, part.exchange.as_ref()?))).collect();
    if exchanges.len() > 1 {
        text += &awaited(&exchanges);
    }
    if !exchanges.is_empty() {
        let steps: u64 = exchanges.iter().map(|(_, exchange)| exchange.local_steps).sum();
        let samples: u64 = exchanges.iter().map(|(_, exchange)| exchange.samples).sum();
        let sum: f64 = exchanges.iter().map(|(_, exchange)| exchange.loss * exchange.samples as f64).sum();
        let _ = writeln!(
            text,
            "Together they did {} on {}, at a mean training loss of {}.",
            plural(steps, "local step"),
            plural(samples, "sample"),
            number(sum / samples.max(1) as f64)
        );
    }
    for (rank, part) in parts {
        text += "\n";
        tell(&mut text, *rank, part);
    }
    text
}

/// Who came last, and how long the others waited.
fn awaited(exchanges: &[(Rank, &Exchange)]) -> String {
    let by_wait =
        |a: &&(Rank, &Exchange), b: &&(Rank, &Exchange)| a.1.wait_seconds.total_cmp(&b.1.wait_seconds);
    let (Some((last, least)), Some((first, most))) =
        (exchanges.iter().min_by(by_wait), exchanges.iter().max_by(by_wait))
    else {
        return String::new();
    };
    let total: f64 = exchanges.iter().map(|(_, exchange)| exchange.wait_seconds - least.wait_seconds).sum();
    let longest = exchanges.iter().map(|(_, exchange)| exchange.exchange_seconds).fold(0.0, f64::max);
    let others = match exchanges.len() {
        2 => format!("rank {first} waited {} for it", seconds(most.wait_seconds)),
        _ => format!(
            "rank {first} waited longest for it, {}, and all others together {}",
            seconds(most.wait_seconds),
            seconds(total)
        ),
    };
    format!("Rank {last} was awaited: it came last; {others}. The exchange then took {}.\n", seconds(longest))
}

fn tell(text: &mut String, rank: Rank, part: &Part) {
    let slow: f64 = part.steps.iter().map(|step| step.1).sum();
    let _ = write!(text, "Rank {rank} did {}", plural(part.steps.len() as u64, "step"));
    if !part.steps.is_empty() {
        let _ = write!(text, " in {}", seconds(part.seconds()));
    }
    if slow > 0.01 * part.seconds() {
        let _ = write!(text, " ({} of it asleep, as --slow asks)", seconds(slow));
    }
    if let Some(exchange) = &part.exchange {
        let _ = write!(text, ", then waited {}", seconds(exchange.wait_seconds));
    }
    if let Some(push) = &part.push {
        let _ = write!(
            text,
            ", pushed what {} had taught it (mean training loss {}) in {}",
            plural(push.samples, "sample"),
            number(push.loss),
            seconds(push.exchange_seconds)
        );
        if push.wait_seconds > 0.0 {
            let _ = write!(text, ", and was held for {}", seconds(push.wait_seconds));
        }
        if let Some(staleness) = push.staleness {
            let _ = write!(text, "; the server had gone on by {}", plural(staleness, "version"));
        }
    }
    *text += ".\n";
    let told = part.decisions.len();
    for (number, (steps, action, reason)) in part.decisions.iter().enumerate() {
        // The first two and the last two, if there are many.
        if told > MOST_DECISIONS && (2..told - 2).contains(&number) {
            if number == 2 {
                let _ = writeln!(text, "  … {} more decisions like these …", told - 4);
            }
            continue;
        }
        let reason = if *steps == 0 && action == "step" { "a round begins with a step" } else { reason };
        let when = match steps {
            0 => "at the beginning".to_string(),
            steps => format!("after step {steps}"),
        };
        let _ = writeln!(text, "  {when}: {}, because {reason}", deed(action));
    }
    for reason in part.replies.iter().take(MOST_DECISIONS) {
        let _ = writeln!(text, "  the server answered, because {reason}");
    }
    if let Some(more @ 1..) = part.replies.len().checked_sub(MOST_DECISIONS) {
        let _ = writeln!(text, "  … {more} more answers of the server …");
    }
    if let Some(reason) = &part.stop {
        let _ = writeln!(text, "  then training ended: {reason}");
    }
}

fn deed(action: &str) -> &str {
    match action {
        "step" => "a step",
        "begin" => "the exchange",
        "push" | "begin-push" => "a push",
        "pull" => "a pull",
        "evaluate" => "an evaluation",
        "set-batch" => "a new batch size",
        "stop" => "the end",
        other => other,
    }
}

fn seconds(value: f64) -> String {
    Quantity::Seconds.show(value.max(0.0))
}

fn plural(count: u64, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}
