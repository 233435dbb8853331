//! Reading a run's files: every complaint names the file, and the line where there is one.

use super::record::{Config, Event, Head, Line, SUMMARY_VERSION, Summary, Version};
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// A line of metrics is a few hundred bytes; what is longer is not one.
const LONGEST_LINE: u64 = 1 << 20;

/// More ranks than any run has: beyond it the number is damaged.
const MOST_RANKS: usize = 1 << 24;

pub(super) fn config(folder: &Path) -> Result<Config> {
    let path = folder.join("config.toml");
    let text = text(&path)?;
    toml::from_str(&text).map_err(|e| {
        let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        damaged(&path, line as u64, e.message())
    })
}

/// A file of JSON of which only some is looked at.
pub(super) fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&text(path)?).map_err(|e| damaged(path, e.line() as u64, &words(&e)))
}

/// `None` for a run that has not ended.
pub(super) fn summary(folder: &Path) -> Result<Option<Summary>> {
    let path = folder.join("summary.json");
    if !path.exists() {
        return Ok(None);
    }
    let text = text(&path)?;
    let failed = |e: serde_json::Error| damaged(&path, e.line() as u64, &words(&e));
    let Version { version } = serde_json::from_str(&text).map_err(failed)?;
    if version != SUMMARY_VERSION {
        return Err(Error::data(
            &path,
            format!(
                "this is version {version}, and only version {SUMMARY_VERSION} is known: use the esync that wrote it"
            ),
        ));
    }
    serde_json::from_str(&text).map(Some).map_err(failed)
}

/// Calls `each` with every line of `metrics.jsonl`. Returns whether the last line was left out because it is not whole:
/// that is not an error while a run goes on or if it was killed (`is_finished` is false).
pub(super) fn each_line(
    folder: &Path,
    is_finished: bool,
    mut each: impl FnMut(Line) -> Result<()>,
) -> Result<bool> {
    let path = folder.join("metrics.jsonl");
    let mut file = BufReader::with_capacity(1 << 18, File::open(&path).map_err(|e| unreadable(&path, &e))?);
    let mut bytes = Vec::new();
    for number in 1_u64.. {
        bytes.clear();
        let mut line = (&mut file).take(LONGEST_LINE);
        line.read_until(b'\n', &mut bytes).map_err(|e| unreadable(&path, &e))?;
        if bytes.is_empty() {
            break;
        }
        let is_whole = bytes.ends_with(b"\n");
        match parse(&bytes) {
            Ok(line) => each(line)?,
            Err(_) if !is_whole && !is_finished && (bytes.len() as u64) < LONGEST_LINE => return Ok(true),
            Err(what) => return Err(damaged(&path, number, &what)),
        }
    }
    Ok(false)
}

/// One line, or what is wrong with it.
fn parse(bytes: &[u8]) -> Result<Line, String> {
    if bytes.len() as u64 >= LONGEST_LINE {
        return Err(format!("the line is longer than {LONGEST_LINE} bytes"));
    }
    let Head { t, rank, kind } = serde_json::from_slice(bytes).map_err(|e| words(&e))?;
    if t < 0.0 || rank >= MOST_RANKS {
        return Err(format!("time {t} or rank {rank} cannot be"));
    }
    let event = match &*kind {
        "step" => Event::Step(fields(bytes)?),
        "decision" => Event::Decision(fields(bytes)?),
        "exchange" => Event::Exchange(fields(bytes)?),
        "push" => Event::Push(fields(bytes)?),
        "pull" => Event::Pull(fields(bytes)?),
        "evaluate" => Event::Evaluate(fields(bytes)?),
        "warning" => Event::Warning(fields(bytes)?),
        "error" => Event::Error(fields(bytes)?),
        _ => Event::Unknown,
    };
    Ok(Line { t, rank, event })
}

fn fields<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|e| words(&e))
}

/// serde's sentence without its own line number, which counts from the line's beginning.
fn words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(what, _)| what.to_string())
}

fn text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| unreadable(path, &e))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    let hint = match error.kind() {
        std::io::ErrorKind::NotFound => "; a RUN is a directory that esync-train wrote (--out)",
        _ => "",
    };
    Error::data(path, format!("cannot be read: {error}{hint}"))
}

fn damaged(path: &Path, line: u64, what: &str) -> Error {
    let place: PathBuf = format!("{}:{line}", path.display()).into();
    Error::data(place, format!("damaged: {what}"))
}
