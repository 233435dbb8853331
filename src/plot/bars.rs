//! Bars: throughput and traffic of runs, staleness of pushes.

use super::Picture;
use super::canvas::{
    BLUE, FOOT, Grid, HEAD, Letters, Place, Rows, WIDTH, axis_names, chart, failed, fitted, run_colour,
    sheet, text, width_of,
};
use super::run::Run;
use super::units::{Quantity, Scale};
use crate::error::Result;
use plotters::prelude::*;

const ROW: f64 = 26.0;
const GAP: f64 = 72.0;
const TOP: f64 = 44.0;

/// Samples per second.
pub(super) fn throughput(runs: &[Run]) -> Result<Picture> {
    let bars = runs.iter().map(|run| Some(run.samples_per_second())).collect();
    let group = Group { name: "samples per second", per: "/s", quantity: Quantity::Samples, bars };
    Ok(Picture {
        name: "throughput".into(),
        caption: "Samples of all workers by seconds of training.".into(),
        svg: groups("Throughput", runs, &[group])?,
    })
}

/// Bytes per sample, and per second.
pub(super) fn traffic(runs: &[Run]) -> Result<Picture> {
    let bytes = |run: &Run| run.bytes_sent.map(|bytes| bytes as f64);
    let per = |by: fn(&Run) -> f64| runs.iter().map(|run| Some(bytes(run)? / by(run).max(1e-9))).collect();
    let per_sample = Group {
        name: "bytes sent per sample",
        per: "",
        quantity: Quantity::Bytes,
        bars: per(|run| run.samples as f64),
    };
    let per_second = Group {
        name: "bytes sent per second of training",
        per: "/s",
        quantity: Quantity::Bytes,
        bars: per(|run| run.train_seconds),
    };
    Ok(Picture {
        name: "traffic".into(),
        caption: "What all workers together sent in exchanges.".into(),
        svg: groups("Traffic", runs, &[per_sample, per_second])?,
    })
}

/// Bars that share an axis: one for each run, `None` where nothing is known.
struct Group {
    name: &'static str,
    /// Behind the number and its unit.
    per: &'static str,
    quantity: Quantity,
    bars: Vec<Option<f64>>,
}

fn groups(title: &str, runs: &[Run], groups: &[Group]) -> Result<String> {
    let names: Vec<String> = runs.iter().map(|run| fitted(&run.label, 12.0, 200.0)).collect();
    let left = names.iter().map(|name| width_of(name, 12.0)).fold(40.0, f64::max) + 24.0;
    let inner = runs.len() as f64 * ROW;
    let height = TOP + groups.len() as f64 * (inner + GAP);
    sheet(title, height, |area| {
        for (number, group) in groups.iter().enumerate() {
            let top = TOP + number as f64 * (inner + GAP);
            let place = Place { left, right: WIDTH - 136.0, top, bottom: top + inner };
            let most = group.bars.iter().flatten().fold(0.0_f64, |most, bar| most.max(*bar));
            let x = Scale::linear(group.quantity, 0.0, if most > 0.0 { most } else { 1.0 }, 6);
            let rows = Rows::named(&names, ROW);
            let mut chart = chart(area, place, &x, &rows, Grid::Upright)?;
            axis_names(area, place, &x.name(group.name), "")?;
            for (row, bar) in group.bars.iter().enumerate() {
                let length = x.place(bar.unwrap_or(0.0));
                let corners = [(0.0, row as f64 + 0.16), (length, row as f64 + 0.84)];
                let colour = run_colour(row).filled();
                chart.draw_series([Rectangle::new(corners, colour)]).map_err(failed)?;
                let (end, middle) = chart.backend_coord(&(length, row as f64 + 0.5));
                let words = bar.map_or("not known".into(), |bar| group.quantity.show(bar) + group.per);
                let at = (f64::from(end) / 4.0 + 7.0, f64::from(middle) / 4.0);
                text(area, at, &words, &Letters::label())?;
            }
        }
        Ok(())
    })
}

/// More columns than this are put together.
const MOST_COLUMNS: u64 = 60;

/// How many pushes had which staleness; `None` if the run had no pushes that tell.
pub(super) fn staleness(run: &Run) -> Result<Option<Picture>> {
    let Some((&greatest, _)) = run.staleness.last_key_value() else {
        return Ok(None);
    };
    let width = greatest / MOST_COLUMNS + 1;
    let columns = greatest / width + 1;
    let mut counts = vec![0_u64; columns as usize];
    for (staleness, count) in &run.staleness {
        counts[(staleness / width) as usize] += count;
    }
    let pushes: u64 = counts.iter().sum();
    let most = counts.iter().copied().max().unwrap_or(1);
    let mut x = Scale::linear(Quantity::Number, 0.0, (columns * width) as f64, 12);
    // A column stands over its number; columns that hold several begin at theirs.
    let shift = if width == 1 { 0.5 } else { 0.0 };
    (x.low, x.high) = (x.low - shift, x.high - shift);
    x.ticks.retain(|tick| *tick == tick.floor() && *tick < x.high);
    let y = Scale::linear(Quantity::Number, 0.0, most as f64 * 1.08, 5);
    let place = Place { left: 64.0, right: WIDTH - 24.0, top: HEAD, bottom: HEAD + 200.0 };
    let svg = sheet(&format!("Staleness of pushes: {}", run.label), place.bottom + FOOT, |area| {
        let rows = Rows::of(&y);
        let mut chart = chart(area, place, &x, &rows, Grid::Both)?;
        axis_names(area, place, "versions that the server had gone on", "pushes")?;
        let bars = counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(column, count)| {
            let middle = (column as u64 * width) as f64 + width as f64 / 2.0 - shift;
            let half = width as f64 * 0.4;
            Rectangle::new([(middle - half, 0.0), (middle + half, *count as f64)], BLUE.filled())
        });
        chart.draw_series(bars).map_err(failed)?;
        Ok(())
    })?;
    let mean =
        run.staleness.iter().map(|(staleness, count)| staleness * count).sum::<u64>() as f64 / pushes as f64;
    Ok(Some(Picture {
        name: format!("staleness-{}", super::page::file_name(&run.label)),
        caption: format!(
            "{pushes} pushes; each met parameters that had changed {} times since its worker had pulled them, on the mean, \
             and {greatest} times at most.",
            super::units::number(mean)
        ),
        svg,
    }))
}
