//! Writes records as a table, CSV or JSON lines.

use super::{Flags, Format, Record};
use crate::error::{Error, Result};
use crate::transport::Transport;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

pub(super) struct Output {
    format: Format,
    to: Box<dyn Write>,
    name: PathBuf,
}

impl Output {
    /// Opens the file, so that a wrong path is known before an hour of measurements.
    pub(super) fn open(flags: &Flags) -> Result<Output> {
        let (to, name): (Box<dyn Write>, PathBuf) = match &flags.output {
            Some(path) => {
                let file =
                    File::create(path).map_err(|e| Error::file(path, format!("cannot be written: {e}")))?;
                (Box::new(file), path.clone())
            }
            None => (Box::new(std::io::stdout()), "standard output".into()),
        };
        Ok(Output { format: flags.format, to, name })
    }

    fn line(&mut self, line: &str) -> Result<()> {
        // Line by line: whoever watches a long sweep sees each size when it is done.
        let written = writeln!(self.to, "{line}").and_then(|()| self.to.flush());
        written.map_err(|e| Error::file(&self.name, format!("cannot be written: {e}")))
    }

    pub(super) fn begin(&mut self, flags: &Flags, transport: &dyn Transport, hosts: usize) -> Result<()> {
        match self.format {
            Format::Json => Ok(()),
            Format::Csv => self.line(
                "op,collective,transport,ranks,order,wire,bytes,count,type,redop,in_place,registered,time_us_min,time_us_median,\
                 time_us_p95,time_us_p99,algbw_gbps,busbw_gbps,wrong,iterations,result_hash",
            ),
            Format::Table => {
                let (ranks, hosts) = (plural(transport.size(), "rank"), plural(hosts, "host"));
                self.line(&format!(
                    "# esync-bench {}: {}, {ranks} over {} on {hosts}, order {}, wire {}",
                    env!("CARGO_PKG_VERSION"),
                    flags.op,
                    transport.name(),
                    flags.order,
                    flags.wire
                ))?;
                self.line("# in place; time_us is the median of the slowest rank's times; GB/s with GB = 10^9 bytes")?;
                self.line(&format!(
                    "# {:>10} {:>10} {:>5} {:>7} {:<18} {:>10} {:>10} {:>10} {:>10} {:>7} {:>7} {:>6}",
                    "bytes", "count", "type", "redop", "collective", "time_us", "min", "p95", "p99", "algbw", "busbw", "wrong"
                ))
            }
        }
    }

    pub(super) fn record(&mut self, record: &Record) -> Result<()> {
        let Record { bytes, count, element, redop, collective, time_us, algbw_gbps, busbw_gbps, .. } = record;
        let wrong = record.wrong.map(|wrong| wrong.to_string());
        match self.format {
            Format::Json => {
                let line = serde_json::to_string(record).map_err(|e| Error::Internal(e.to_string()))?;
                self.line(&line)
            }
            Format::Csv => self.line(&format!(
                "{},{collective},{},{},{},{},{bytes},{count},{element},{redop},{},{},{},{},{},{},{algbw_gbps},{busbw_gbps},{},{},{}",
                record.op,
                record.transport,
                record.ranks,
                record.order,
                record.wire,
                record.in_place,
                record.registered,
                time_us.min,
                time_us.median,
                time_us.p95,
                time_us.p99,
                wrong.unwrap_or_default(),
                record.iterations,
                record.result_hash.as_deref().unwrap_or_default(),
            )),
            Format::Table => self.line(&format!(
                "  {bytes:>10} {count:>10} {element:>5} {redop:>7} {collective:<18} {:>10.1} {:>10.1} {:>10.1} {:>10.1} \
                 {algbw_gbps:>7.2} {busbw_gbps:>7.2} {:>6}",
                time_us.median,
                time_us.min,
                time_us.p95,
                time_us.p99,
                wrong.as_deref().unwrap_or("N/A"),
            )),
        }
    }

    pub(super) fn end(&mut self, wrong: Option<u64>) -> Result<()> {
        match (self.format, wrong) {
            (Format::Table, Some(0)) => self.line("# wrong elements: 0 OK"),
            (Format::Table, Some(wrong)) => self.line(&format!("# wrong elements: {wrong} FAILED")),
            _ => Ok(()),
        }
    }
}

fn plural(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}
