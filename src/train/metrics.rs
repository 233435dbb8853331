//! `metrics.jsonl`: one object a line, from every rank.

use crate::error::{Error, Result};
use crate::transport::Rank;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One rank's pen, of which the rank's threads may have clones: their lines stay in the order of their times. Ranks on rank 0's host append whole lines to the common file; ranks elsewhere, which may not see it,
/// collect theirs in a temporary file and send them at the end.
#[derive(Clone)]
pub struct Metrics {
    pen: Arc<Mutex<Pen>>,
}

struct Pen {
    rank: Rank,
    path: PathBuf,
    file: File,
    is_local: bool,
    lines: Vec<u8>,
    /// `None` before training has begun.
    started: Option<Instant>,
    written: Instant,
}

#[derive(Serialize)]
struct Event<'a, F> {
    t: f64,
    rank: Rank,
    kind: &'a str,
    #[serde(flatten)]
    fields: F,
}

/// Lines are kept back no longer than this, so that a watcher sees them.
const LONGEST_DELAY: Duration = Duration::from_millis(500);
const MOST_BYTES: usize = 64 * 1024;

impl Metrics {
    /// Opens the common file `path` if this rank shares rank 0's host, else a temporary one.
    ///
    /// # Errors
    /// `File` if it cannot be opened.
    pub fn open(path: &Path, rank: Rank, is_local: bool) -> Result<Metrics> {
        let file = match is_local {
            // Appended lines of several writers do not mix: each write is one call with whole lines.
            true => OpenOptions::new().create(true).append(true).open(path),
            false => tempfile::tempfile(),
        };
        let file = file.map_err(|e| Error::file(path, format!("cannot write metrics: {e}")))?;
        let (path, lines) = (path.into(), Vec::new());
        let pen = Pen { rank, path, file, is_local, lines, started: None, written: Instant::now() };
        Ok(Metrics { pen: Arc::new(Mutex::new(pen)) })
    }

    fn pen(&self) -> MutexGuard<'_, Pen> {
        self.pen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Training begins now: `t` counts from here. What was noted before, such as a server's answer to a rank that began a
    /// moment sooner, has the time 0.
    pub fn start_clock(&mut self) {
        self.pen().started = Some(Instant::now());
    }

    /// Notes an event of `kind` with these fields.
    ///
    /// # Errors
    /// `File` if the disk is full.
    pub fn event(&mut self, kind: &str, fields: impl Serialize) -> Result<()> {
        let mut pen = self.pen();
        let t = pen.started.map_or(0.0, |started| started.elapsed().as_secs_f64());
        let event = Event { t, rank: pen.rank, kind, fields };
        serde_json::to_writer(&mut pen.lines, &event)
            .map_err(|e| Error::Internal(format!("an event cannot be written as JSON: {e}")))?;
        pen.lines.push(b'\n');
        if pen.lines.len() > MOST_BYTES || pen.written.elapsed() > LONGEST_DELAY {
            pen.flush()?;
        }
        Ok(())
    }

    /// Writes what was kept back.
    ///
    /// # Errors
    /// `File` if the disk is full.
    pub fn flush(&mut self) -> Result<()> {
        self.pen().flush()
    }

    /// The end: what has to travel to rank 0, nothing for ranks that share its file.
    ///
    /// # Errors
    /// `File` if the temporary file cannot be read.
    pub fn take_remote(&mut self) -> Result<Vec<u8>> {
        let mut pen = self.pen();
        pen.flush()?;
        let mut lines = Vec::new();
        if !pen.is_local {
            pen.file
                .seek(SeekFrom::Start(0))
                .and_then(|_| pen.file.read_to_end(&mut lines))
                .map_err(|e| Error::file(&pen.path, format!("cannot read back metrics: {e}")))?;
        }
        Ok(lines)
    }

    /// Adds lines that another rank has sent.
    ///
    /// # Errors
    /// `File` if the disk is full.
    pub fn append(&mut self, lines: &[u8]) -> Result<()> {
        let mut pen = self.pen();
        let written = pen.file.write_all(lines);
        written.map_err(|e| Error::file(&pen.path, format!("cannot write metrics: {e}")))
    }
}

impl Pen {
    fn flush(&mut self) -> Result<()> {
        self.written = Instant::now();
        let result = self.file.write_all(&self.lines);
        self.lines.clear();
        result.map_err(|e| Error::file(&self.path, format!("cannot write metrics: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_ranks_write_whole_lines_into_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::thread::scope(|scope| {
            for rank in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    let mut metrics = Metrics::open(path, rank, true).unwrap();
                    for step in 0..500 {
                        metrics.event("step", serde_json::json!({ "local_step": step })).unwrap();
                        if step % 7 == 0 {
                            metrics.flush().unwrap();
                        }
                    }
                    assert!(metrics.take_remote().unwrap().is_empty());
                });
            }
        });
        let text = std::fs::read_to_string(&path).unwrap();
        let events: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(events.len(), 2000);
        assert!(events.iter().all(|event| event["kind"] == "step" && event["t"].is_f64()));
    }

    #[test]
    fn times_begin_with_training_and_never_go_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0, true).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        metrics.event("decision", ()).unwrap();
        metrics.start_clock();
        metrics.event("step", ()).unwrap();
        metrics.flush().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let time =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["t"].as_f64().unwrap();
        let times: Vec<f64> = text.lines().map(time).collect();
        assert_eq!(times[0], 0.0);
        assert!(times.is_sorted(), "{times:?}");
    }

    #[test]
    fn a_remote_rank_sends_its_lines_at_the_end() {
        let mut metrics = Metrics::open(Path::new("/nowhere/metrics.jsonl"), 3, false).unwrap();
        metrics.event("warning", serde_json::json!({ "text": "x" })).unwrap();
        let lines = String::from_utf8(metrics.take_remote().unwrap()).unwrap();
        assert!(lines.contains("\"rank\":3") && lines.ends_with('\n'), "{lines}");
    }
}
