//! The table for people: nccl-tests' columns, out of place and in place side by side.

use super::output::Facts;
use super::size::placements;
use super::{Flags, Record, Timing, host};

/// Width of the columns of one placement, without the blanks before them.
const SIDE: usize = 58;

fn plural(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

/// The comment lines at the top.
pub(super) fn head(flags: &Flags, facts: &Facts<'_>) -> Vec<String> {
    let (ranks, hosts) = (plural(facts.transport.size(), "rank"), plural(facts.hosts, "host"));
    let timing = match flags.timing {
        Timing::Barrier => "a barrier before each iteration",
        Timing::BackToBack => "iterations back to back",
    };
    let mut lines = vec![
        format!(
            "# esync-bench {}: {}, {ranks} over {} on {hosts}, order {}, wire {}; {timing}, vectors: {}",
            env!("CARGO_PKG_VERSION"),
            flags.op,
            facts.transport.name(),
            flags.order,
            flags.wire,
            flags.refresh,
        ),
        format!("# host: {}, {}", plural(facts.cores.len(), "core"), host::processor()),
    ];
    if let Some((gpu, copy)) = facts.gpu {
        lines.push(format!("# {gpu}: its own copy reads and writes {copy:.1} GB/s"));
    }
    if let Some((copy, add)) = facts.simple_rates {
        let rates =
            format!("; all cores together read and write {copy:.1} GB/s in a copy, {add:.1} in a += b");
        lines[1].push_str(&rates);
    }
    lines.push(
        "# time: microseconds of the slowest rank, median over iterations; GB/s: 10^9 bytes a second; ceil: share of the \
         host's ceiling"
            .into(),
    );
    let sides = placements(flags).iter().map(|in_place| if *in_place { "in place" } else { "out of place" });
    let mut over = format!("# {:62}", "");
    let mut names = format!(
        "# {:>10} {:>10} {:>5} {:>7} {:<18} {:<7}",
        "size", "count", "type", "redop", "collective", "buffers"
    );
    for side in sides {
        over.push_str(&format!("  {side:^SIDE$}"));
        names.push_str(&format!(
            "  {:>9} {:>9} {:>9} {:>7} {:>7} {:>5} {:>6}",
            "time", "min", "p99", "algbw", "busbw", "ceil", "wrong"
        ));
    }
    lines.push(over.trim_end().into());
    lines.push(names);
    lines
}

fn microseconds(value: f64) -> String {
    // Five digits fit, and more are not known.
    let digits = if value < 100.0 { 2 } else { usize::from(value < 10_000.0) };
    format!("{value:.digits$}")
}

fn side(record: &Record) -> String {
    let time = record.time_us;
    let share = record.ceiling_share.map_or("-".into(), |share| format!("{:.0}%", 100.0 * share));
    let wrong = record.wrong.map_or("N/A".into(), |wrong| wrong.to_string());
    format!(
        "  {:>9} {:>9} {:>9} {:>7.2} {:>7.2} {share:>5} {wrong:>6}",
        microseconds(time.median),
        microseconds(time.min),
        microseconds(time.p99),
        record.algbw_gbps,
        record.busbw_gbps,
    )
}

/// The lines of one size.
pub(super) fn rows(records: &[Record]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut before: Option<&Record> = None;
    for record in records {
        let shares_line = |other: &Record| {
            other.collective == record.collective
                && other.registered == record.registered
                && other.in_place != record.in_place
        };
        match lines.last_mut() {
            Some(line) if before.is_some_and(shares_line) => line.push_str(&side(record)),
            _ => {
                let buffers = if record.registered { "shared" } else { "private" };
                let Record { bytes, count, element, redop, collective, .. } = record;
                let name = format!(
                    "  {bytes:>10} {count:>10} {element:>5} {redop:>7} {collective:<18} {buffers:<7}"
                );
                lines.push(name + &side(record));
            }
        }
        before = Some(record);
    }
    let dirty = records.first().filter(|record| record.is_contaminated());
    if let Some((record, share)) = dirty.and_then(|record| Some((record, record.foreign_cpu_share?))) {
        let again = match record.repeats {
            0 => String::new(),
            times => format!(", the best of {} attempts", times + 1),
        };
        lines.push(format!("# ! other programs took {:.0}% of the cores meanwhile{again}", 100.0 * share));
    }
    lines
}

/// The comment lines at the bottom.
pub(super) fn foot(wrong: Option<u64>, mean_busbw: f64, contaminated: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if contaminated {
        lines.push("# ! figures beside such a note are too slow; compare rows of one size only".into());
    }
    match wrong {
        Some(0) => lines.push("# wrong elements: 0 OK".into()),
        Some(wrong) => lines.push(format!("# wrong elements: {wrong} FAILED")),
        None => lines.push("# wrong elements: not looked for".into()),
    }
    lines.push(format!("# average bus bandwidth: {mean_busbw:.3} GB/s"));
    lines
}
