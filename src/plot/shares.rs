//! Where the workers' time went.

use super::Picture;
use super::canvas::{
    BLUE, FOOT, GREEN, GREY, Grid, HEAD, Letters, ORANGE, PURPLE, Place, Rows, SKY, WIDTH, axis_names, chart,
    failed, fitted, legend, sheet, text, width_of,
};
use super::page::file_name;
use super::run::{Run, Shares};
use super::units::{Quantity, Scale};
use crate::error::Result;
use plotters::prelude::*;

/// More workers than this are not shown one by one.
pub(super) const MOST_WORKERS: usize = 48;

/// A name, a colour, and how many seconds of a worker's time it was.
type Activity = (&'static str, RGBColor, fn(&Shares) -> f64);

/// From the left.
const ACTIVITIES: [Activity; 6] = [
    ("computing", BLUE, |s| s.compute_seconds),
    ("slow (--slow)", ORANGE, |s| s.slow_seconds),
    ("exchanging", GREEN, |s| s.exchange_seconds),
    ("waiting", GREY, |s| s.wait_seconds),
    ("evaluating", PURPLE, |s| s.evaluate_seconds),
    ("other", SKY, |s| {
        let known =
            s.compute_seconds + s.slow_seconds + s.exchange_seconds + s.wait_seconds + s.evaluate_seconds;
        (s.total_seconds - known).max(0.0)
    }),
];

/// One bar for each worker.
pub(super) fn of_workers(run: &Run) -> Result<Picture> {
    let chosen = evenly(run.workers.len(), MOST_WORKERS);
    let bars: Vec<(String, Shares)> =
        chosen.iter().map(|&n| (format!("rank {}", run.workers[n].rank), run.workers[n].clone())).collect();
    let shown = match chosen.len() < run.workers.len() {
        true => format!(" {} of {} workers are shown, at equal distances.", chosen.len(), run.workers.len()),
        false => String::new(),
    };
    Ok(Picture {
        name: format!("time-{}", file_name(&run.label)),
        caption: format!(
            "Shares of each worker's time. Busy is computing and slow together; in all workers' time it is {}.{shown}",
            Quantity::Share.show(run.busy_share())
        ),
        svg: stacked(&format!("Time of each worker: {}", run.label), &bars)?,
    })
}

/// One bar for each run: all its workers together.
pub(super) fn of_runs(runs: &[Run]) -> Result<Picture> {
    let sum = |run: &Run| {
        run.workers.iter().fold(Shares::default(), |sum, worker| Shares {
            rank: 0,
            compute_seconds: sum.compute_seconds + worker.compute_seconds,
            slow_seconds: sum.slow_seconds + worker.slow_seconds,
            exchange_seconds: sum.exchange_seconds + worker.exchange_seconds,
            wait_seconds: sum.wait_seconds + worker.wait_seconds,
            evaluate_seconds: sum.evaluate_seconds + worker.evaluate_seconds,
            total_seconds: sum.total_seconds + worker.total_seconds,
        })
    };
    let bars: Vec<(String, Shares)> = runs.iter().map(|run| (run.label.clone(), sum(run))).collect();
    Ok(Picture {
        name: "time".into(),
        caption: "Shares of all workers' time together. Busy is computing and slow together.".into(),
        svg: stacked("Time of all workers", &bars)?,
    })
}

/// At most `most` of `count` numbers, at equal distances.
pub(super) fn evenly(count: usize, most: usize) -> Vec<usize> {
    let shown = count.min(most);
    (0..shown).map(|n| n * count / shown).collect()
}

fn stacked(title: &str, bars: &[(String, Shares)]) -> Result<String> {
    let names: Vec<String> = bars.iter().map(|(name, _)| fitted(name, 12.0, 200.0)).collect();
    let left = names.iter().map(|name| width_of(name, 12.0)).fold(40.0, f64::max) + 24.0;
    let row = if bars.len() > 24 { 14.0 } else { 24.0 };
    let top = HEAD + 12.0;
    let place = Place { left, right: WIDTH - 84.0, top, bottom: top + bars.len().max(1) as f64 * row };
    let x = Scale::linear(Quantity::Share, 0.0, 1.0, 10);
    let present: Vec<_> =
        ACTIVITIES.iter().filter(|(.., seconds)| bars.iter().any(|bar| seconds(&bar.1) > 0.0)).collect();
    sheet(title, place.bottom + FOOT, |area| {
        let rows = Rows::named(&names, row);
        let mut chart = chart(area, place, &x, &rows, Grid::Upright)?;
        axis_names(area, place, &x.name("share of the time from start to end"), "")?;
        let entries: Vec<(&str, RGBColor)> =
            present.iter().map(|(name, colour, _)| (*name, *colour)).collect();
        legend(area, (left, top - 22.0), &entries)?;
        let busy = Letters::faint();
        text(area, (place.right + 10.0, top - 22.0), "busy", &busy)?;
        for (number, (_, shares)) in bars.iter().enumerate() {
            let total: f64 = ACTIVITIES.iter().map(|(.., seconds)| seconds(shares)).sum();
            let mut from = 0.0;
            for (_, colour, seconds) in &present {
                let to = from + 100.0 * seconds(shares) / total.max(1e-12);
                let corners = [(from, number as f64 + 0.12), (to, number as f64 + 0.88)];
                if to > from {
                    chart.draw_series([Rectangle::new(corners, colour.filled())]).map_err(failed)?;
                }
                from = to;
            }
            let share = (shares.compute_seconds + shares.slow_seconds) / total.max(1e-12);
            if row > 15.0 || number % 2 == 0 {
                let at = (place.right + 10.0, top + (number as f64 + 0.5) * row);
                text(area, at, &Quantity::Share.show(share), &Letters::faint())?;
            }
        }
        Ok(())
    })
}
