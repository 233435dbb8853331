//! How many local steps each worker did in each of its rounds.

use super::Picture;
use super::canvas::{
    FOOT, Grid, HEAD, INK, Letters, PAPER, Place, Rows, WIDTH, axis_names, chart, failed, rectangle, sheet,
    text,
};
use super::page::file_name;
use super::run::Run;
use super::shares::{MOST_WORKERS, evenly};
use super::units::{Quantity, Scale, number};
use crate::error::Result;
use plotters::prelude::*;
use std::collections::BTreeMap;

/// More rounds than this are put together.
const MOST_COLUMNS: u64 = 150;

/// The picture; `None` for a run without rounds.
pub(super) fn local_steps(run: &Run) -> Result<Option<Picture>> {
    let Some(last) = run.rounds.iter().map(|round| round.round).max() else {
        return Ok(None);
    };
    let mut cells: BTreeMap<usize, BTreeMap<u64, (f64, u64)>> = BTreeMap::new();
    let width = last.div_ceil(MOST_COLUMNS).max(1);
    for round in &run.rounds {
        let column = (round.round.max(1) - 1) / width;
        let cell = cells.entry(round.rank).or_default().entry(column).or_default();
        *cell = (cell.0 + round.local_steps as f64, cell.1 + 1);
    }
    let ranks: Vec<usize> = cells.keys().copied().collect();
    let shown: Vec<usize> = evenly(ranks.len(), MOST_WORKERS).into_iter().map(|n| ranks[n]).collect();
    let mean = |cell: &(f64, u64)| cell.0 / cell.1 as f64;
    let most = cells.values().flat_map(BTreeMap::values).map(mean).fold(1.0, f64::max);
    let shade = Shade { most };

    let names: Vec<String> = shown.iter().map(|rank| format!("rank {rank}")).collect();
    let row = if shown.len() > 24 { 12.0 } else { 22.0 };
    let top = HEAD + 12.0;
    let place = Place { left: 84.0, right: WIDTH - 24.0, top, bottom: top + shown.len() as f64 * row };
    let columns = last.div_ceil(width);
    // Room for a number of two digits.
    let has_numbers = (place.right - place.left) / columns as f64 >= 24.0 && row > 15.0;
    let mut x = Scale::linear(Quantity::Number, 1.0, (last + 1) as f64, 12);
    // A column stands over its number.
    x.ticks.retain(|tick| *tick == tick.floor() && *tick >= 1.0 && *tick <= last as f64);
    let label_shift = if width == 1 { 0.5 } else { 0.0 };
    (x.low, x.high) = (1.0 - label_shift, (columns * width + 1) as f64 - label_shift);
    if !x.ticks.contains(&1.0) {
        x.ticks.insert(0, 1.0);
        x.ticks.retain(|tick| *tick == 1.0 || (tick - 1.0) / (x.high - x.low) > 0.03);
    }
    let title = format!("Local steps per round: {}", run.label);
    let svg = sheet(&title, place.bottom + FOOT, |area| {
        let rows = Rows::named(&names, row);
        let mut chart = chart(area, place, &x, &rows, Grid::Upright)?;
        axis_names(area, place, "round", "")?;
        shade.legend(area, (place.left, top - 22.0))?;
        for (line, rank) in shown.iter().enumerate() {
            for (column, cell) in &cells[rank] {
                let steps = mean(cell);
                let (left, right) = (1 + column * width, 1 + (column + 1) * width);
                let corners = [
                    (left as f64 - label_shift, line as f64 + 0.04),
                    (right as f64 - label_shift, line as f64 + 0.96),
                ];
                let colour = shade.colour(steps);
                chart.draw_series([Rectangle::new(corners, colour.filled())]).map_err(failed)?;
                if has_numbers {
                    let middle = ((corners[0].0 + corners[1].0) / 2.0, line as f64 + 0.5);
                    let (x, y) = chart.backend_coord(&middle);
                    let at = (f64::from(x) / 4.0, f64::from(y) / 4.0);
                    let letters = Letters { colour: shade.ink(steps), pixels: 11.0, ..Letters::label() };
                    text(area, at, &number(steps), &letters.centred())?;
                }
            }
        }
        Ok(())
    })?;
    let mut caption = String::from("Steps that each worker did between two exchanges.");
    if width > 1 {
        caption += &format!(" Each column is the mean of {width} rounds.");
    }
    if shown.len() < ranks.len() {
        caption += &format!(" {} of {} workers are shown, at equal distances.", shown.len(), ranks.len());
    }
    Ok(Some(Picture { name: format!("local-steps-{}", file_name(&run.label)), caption, svg }))
}

/// Light for one step, dark for the most; logarithmic where workers differ by large factors.
struct Shade {
    most: f64,
}

/// From light to dark; brightness alone tells the order.
const SHADES: [(f64, f64, f64); 3] = [(222.0, 235.0, 247.0), (86.0, 150.0, 201.0), (8.0, 48.0, 107.0)];

impl Shade {
    fn place(&self, steps: f64) -> f64 {
        match self.most <= 30.0 {
            true => (steps - 1.0).max(0.0) / (self.most - 1.0).max(1.0),
            false => steps.max(1.0).ln() / self.most.ln(),
        }
    }

    fn colour(&self, steps: f64) -> RGBColor {
        let place = self.place(steps).clamp(0.0, 1.0) * 2.0;
        let (from, to, share) = match place < 1.0 {
            true => (SHADES[0], SHADES[1], place),
            false => (SHADES[1], SHADES[2], place - 1.0),
        };
        let mix = |from: f64, to: f64| (from + (to - from) * share).round() as u8;
        RGBColor(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
    }

    /// What can be read on that colour; neither changes on a dark page.
    fn ink(&self, steps: f64) -> RGBColor {
        let RGBColor(r, g, b) = if self.place(steps) > 0.45 { PAPER } else { INK };
        RGBColor(r.saturating_sub(1), g, b)
    }

    fn legend(&self, area: &super::canvas::Area<'_>, (x, y): (f64, f64)) -> Result<()> {
        text(area, (x, y), "local steps", &Letters::faint())?;
        let most = self.most.round() as u64;
        let mut shown: Vec<u64> = vec![1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000];
        shown.retain(|steps| *steps < most);
        shown.push(most);
        let every = shown.len().div_ceil(7);
        let skipped = shown.iter().rev().step_by(every).rev();
        let mut at = x + 76.0;
        for steps in skipped {
            rectangle(area, (at, y - 6.0), (at + 22.0, y + 6.0), self.colour(*steps as f64))?;
            let words = number(*steps as f64);
            text(area, (at + 27.0, y), &words, &Letters::faint())?;
            at += 27.0 + super::canvas::width_of(&words, 12.0) + 12.0;
        }
        Ok(())
    }
}
