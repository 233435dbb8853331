//! The state server of one host: a shared page with a row for every worker. Nobody serves: each worker writes its own row,
//! reads all rows and decides for itself, by the same pure function.

use super::{StateServer, all_or_none};
use crate::collective::Communicator;
use crate::error::Result;
use crate::policy::esync::{Row, Settings, decide};
use crate::policy::{Reason, Reply, Report};
use crate::transport::{Rank, SharedPage, host_clock};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

/// Words of a row: two cache lines, so that neighbours do not disturb each other.
const ROW_WORDS: usize = 16;

pub(super) struct PageTable {
    page: SharedPage,
    rank: Rank,
    settings: Settings,
    /// What was last read.
    rows: Vec<Row>,
}

impl PageTable {
    pub(super) fn establish(
        communicator: &mut Communicator,
        settings: &Settings,
        step_seconds: &[f64],
    ) -> Result<PageTable> {
        let (rank, size) = (communicator.rank(), communicator.size());
        let words = size * ROW_WORDS;
        let made = (rank == 0).then(|| SharedPage::make(words));
        let name = match &made {
            Some(Ok((_, name))) => name.to_string_lossy().into_owned(),
            _ => String::new(),
        };
        let name = communicator.gather_bytes(name.as_bytes())?.swap_remove(0);
        let opened = match made {
            Some(made) => made.map(|(page, name)| (page, Some(name))),
            None => {
                SharedPage::open(Path::new(&*String::from_utf8_lossy(&name)), words).map(|page| (page, None))
            }
        };
        let rows = step_seconds.iter().map(|&seconds| Row::new(seconds)).collect::<Vec<_>>();
        if let Ok((page, _)) = &opened {
            write_row(&page.words()[rank * ROW_WORDS..], &rows[rank]);
        }
        // Also the barrier after which rank 0 may drop the name.
        let (page, _name) = all_or_none(communicator, opened, "cannot share memory")?;
        Ok(PageTable { page, rank, settings: settings.clone(), rows })
    }

    fn publish(&self) {
        write_row(&self.page.words()[self.rank * ROW_WORDS..], &self.rows[self.rank]);
    }
}

impl StateServer for PageTable {
    fn name(&self) -> &'static str {
        "shared page"
    }

    fn ask(&mut self, report: &Report) -> Result<(Reply, Reason)> {
        let now = host_clock();
        self.rows[self.rank].update(now, report);
        self.publish();
        for (rank, words) in self.page.words().chunks(ROW_WORDS).enumerate() {
            if rank != self.rank {
                self.rows[rank] = read_row(words);
            }
        }
        let (reply, reason) = decide(&self.rows, self.rank, now, &self.settings);
        self.rows[self.rank].decided_sync = reply == Reply::Synchronize;
        self.publish();
        Ok((reply, reason))
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        self.rows[self.rank].gone = true;
        self.publish();
    }
}

/// A sequence lock: odd while the row is written. Only the row's owner writes.
fn write_row(words: &[AtomicU64], row: &Row) {
    let sequence = words[0].load(Ordering::Relaxed);
    words[0].store(sequence.wrapping_add(1), Ordering::Relaxed);
    fence(Ordering::Release);
    let values = [
        row.round,
        row.local_steps,
        row.step_seconds.to_bits(),
        row.transfer_seconds.to_bits(),
        row.began.as_nanos() as u64,
        u64::from(row.decided_sync) | u64::from(row.gone) << 1,
        row.low_step_seconds.to_bits(),
    ];
    for (word, value) in words[1..].iter().zip(values) {
        word.store(value, Ordering::Relaxed);
    }
    words[0].store(sequence.wrapping_add(2), Ordering::Release);
}

fn read_row(words: &[AtomicU64]) -> Row {
    let read = || {
        let value = |index: usize| words[index].load(Ordering::Relaxed);
        Row {
            round: value(1),
            local_steps: value(2),
            step_seconds: f64::from_bits(value(3)),
            transfer_seconds: f64::from_bits(value(4)),
            began: Duration::from_nanos(value(5)),
            decided_sync: value(6) & 1 != 0,
            gone: value(6) & 2 != 0,
            low_step_seconds: f64::from_bits(value(7)),
        }
    };
    for _ in 0..LOOKS {
        let before = words[0].load(Ordering::Acquire);
        let row = read();
        fence(Ordering::Acquire);
        if before.is_multiple_of(2) && words[0].load(Ordering::Relaxed) == before {
            return row;
        }
        // The owner lost its core in the middle of writing.
        std::thread::yield_now();
    }
    // The owner was stopped or killed in the middle of writing: a mixture of its last two rows only makes this decision a
    // little worse.
    read()
}

const LOOKS: u32 = 64;
