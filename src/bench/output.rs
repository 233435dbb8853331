//! Writes records as a table, CSV or JSON lines.

use super::table;
use super::{Flags, Format, Record};
use crate::error::{Error, Result};
use crate::transport::Transport;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// What the header of a table tells besides the flags.
pub(super) struct Facts<'a> {
    pub(super) transport: &'a dyn Transport,
    pub(super) hosts: usize,
    pub(super) cores: &'a [usize],
    /// 10⁹ bytes per second that a copy and `a += b` read and write, if the ceiling is measured.
    pub(super) simple_rates: Option<(f64, f64)>,
    /// Rank 0's GPU, and the 10⁹ bytes per second that its own copy reads and writes.
    pub(super) gpu: Option<(&'a str, f64)>,
}

/// Where lines go.
enum Sink {
    /// At once: whoever watches a long sweep sees each size when it is done.
    Stream(Box<dyn Write>),
    /// Into a file beside the one that was named, which takes its name at the end: a sweep that failed leaves nothing that
    /// looks like results.
    Whole(NamedTempFile),
}

pub(super) struct Output {
    format: Format,
    sink: Sink,
    name: PathBuf,
    busbw: Vec<f64>,
    contaminated: bool,
}

impl Output {
    /// Opens the file, so that a wrong path is known before an hour of measurements.
    pub(super) fn open(flags: &Flags) -> Result<Output> {
        let (sink, name) = match &flags.output {
            None => (Sink::Stream(Box::new(std::io::stdout())), "standard output".into()),
            Some(path) => (sink_at(path)?, path.clone()),
        };
        Ok(Output { format: flags.format, sink, name, busbw: Vec::new(), contaminated: false })
    }

    fn lines(&mut self, lines: &[String]) -> Result<()> {
        let to: &mut dyn Write = match &mut self.sink {
            Sink::Stream(stream) => stream,
            Sink::Whole(file) => file,
        };
        let written = lines.iter().try_for_each(|line| writeln!(to, "{line}")).and_then(|()| to.flush());
        written.map_err(|e| cannot_write(&self.name, e))
    }

    pub(super) fn begin(&mut self, flags: &Flags, facts: &Facts<'_>) -> Result<()> {
        match self.format {
            // A CSV file's header is made with its first records, from the same list of columns.
            Format::Json | Format::Csv => Ok(()),
            Format::Table => self.lines(&table::head(flags, facts)),
        }
    }

    /// The records of one size.
    pub(super) fn size(&mut self, records: &[Record]) -> Result<()> {
        let is_first = self.busbw.is_empty();
        self.busbw.extend(records.iter().map(|record| record.busbw_gbps));
        self.contaminated |= records.iter().any(Record::is_contaminated);
        let lines = match self.format {
            Format::Json => {
                let line = |record| serde_json::to_string(record).map_err(|e| Error::Internal(e.to_string()));
                records.iter().map(line).collect::<Result<_>>()?
            }
            Format::Csv => {
                let line = |cells: Vec<String>| cells.join(",");
                let columns: Vec<_> = records.iter().map(Record::columns).collect();
                let head = columns.first().filter(|_| is_first);
                let head =
                    head.map(|columns| line(columns.iter().map(|(name, _)| name.to_string()).collect()));
                let values =
                    columns.into_iter().map(|columns| line(columns.into_iter().map(|(_, v)| v).collect()));
                head.into_iter().chain(values).collect()
            }
            Format::Table => table::rows(records),
        };
        self.lines(&lines)
    }

    /// The closing lines; `wrong` if elements were checked.
    pub(super) fn end(mut self, wrong: Option<u64>) -> Result<()> {
        if self.format == Format::Table {
            let mean = self.busbw.iter().sum::<f64>() / self.busbw.len().max(1) as f64;
            self.lines(&table::foot(wrong, mean, self.contaminated))?;
        }
        match self.sink {
            Sink::Stream(_) => Ok(()),
            Sink::Whole(file) => {
                file.as_file().sync_all().map_err(|e| cannot_write(&self.name, e))?;
                file.persist(&self.name).map(drop).map_err(|e| cannot_write(&self.name, e.error))
            }
        }
    }
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    Error::file(path, format!("cannot be written: {error}"))
}

fn sink_at(path: &Path) -> Result<Sink> {
    let failed = |error| cannot_write(path, error);
    // A device or a pipe is written to; a file put in its place would help nobody.
    if path.metadata().is_ok_and(|data| !data.is_file()) {
        let file = File::options().write(true).open(path).map_err(failed)?;
        return Ok(Sink::Stream(Box::new(file)));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".esync-bench-");
    // Temporary files are private by default; the result is to be as readable as any other file of its user.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder).map(Sink::Whole).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_written_to_and_stays_a_device() {
        let Ok(Sink::Stream(mut stream)) = sink_at(Path::new("/dev/null")) else { panic!("a stream") };
        assert!(stream.write_all(b"results").is_ok());
        assert!(Path::new("/dev/null").metadata().is_ok_and(|data| !data.is_file()));
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("results");
        drop(sink_at(&path).expect("a sink"));
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
        assert!(sink_at(folder.path()).is_err());
    }
}
