//! A stretch of the run: what each worker did when.

use super::Picture;
use super::canvas::{
    BLUE, FOOT, GREEN, GREY, Grid, HEAD, Letters, ORANGE, PURPLE, Place, Rows, SKY, VERMILION, WIDTH,
    axis_names, chart, failed, legend, sheet, text,
};
use super::page::file_name;
use super::read;
use super::record::Event;
use super::run::Run;
use super::shares::evenly;
use super::units::{Quantity, Scale};
use crate::error::Result;
use crate::transport::Rank;
use plotters::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// How many rounds are shown if nothing is asked for.
const ROUNDS: u64 = 5;
/// More workers than this are not shown one by one.
const MOST_WORKERS: usize = 32;
/// A picture with more marks is slow to show.
const MOST_BARS: usize = 20_000;

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Activity {
    Step,
    Slow,
    Exchange,
    Wait,
    Push,
    Pull,
    Evaluate,
}

impl Activity {
    const ALL: [Activity; 7] = [
        Activity::Step,
        Activity::Slow,
        Activity::Exchange,
        Activity::Wait,
        Activity::Push,
        Activity::Pull,
        Activity::Evaluate,
    ];

    fn look(self) -> (&'static str, RGBColor) {
        match self {
            Activity::Step => ("step", BLUE),
            Activity::Slow => ("slow", ORANGE),
            Activity::Exchange => ("exchange", GREEN),
            Activity::Wait => ("wait", GREY),
            Activity::Push => ("push", VERMILION),
            Activity::Pull => ("pull", SKY),
            Activity::Evaluate => ("evaluate", PURPLE),
        }
    }
}

/// One thing that a worker did.
#[derive(Debug, Clone, Copy)]
struct Bar {
    rank: Rank,
    activity: Activity,
    from: f64,
    to: f64,
}

/// What happened between two times.
pub(super) struct Timeline {
    from: f64,
    to: f64,
    /// In the order of time.
    bars: Vec<Bar>,
    /// Shown, in order.
    ranks: Vec<Rank>,
    /// The stretch was cut because it holds too much.
    is_cut: bool,
}

impl Timeline {
    /// Reads the stretch that begins at `from`; without `seconds` it is about [`ROUNDS`] rounds.
    pub(super) fn read(run: &Run, from: f64, seconds: Option<f64>) -> Result<Timeline> {
        let end = run.workers.iter().map(|worker| worker.total_seconds).fold(0.0, f64::max);
        let seconds = seconds.unwrap_or_else(|| default_seconds(run, from));
        // Nothing comes after the end.
        let to = if end > from { (from + seconds).min(end) } else { from + seconds };
        let chosen = evenly(run.workers.len(), MOST_WORKERS);
        let ranks: Vec<Rank> = chosen.into_iter().map(|number| run.workers[number].rank).collect();
        let shown: BTreeSet<Rank> = ranks.iter().copied().collect();
        // Rank 0 alone writes a line for an evaluation, in which all ranks take part after the exchange.
        let evaluated: BTreeSet<u64> = run.evaluations.iter().map(|e| e.global_samples).collect();
        let mut evaluating: BTreeMap<Rank, f64> = BTreeMap::new();
        let ahead = clocks_ahead(run);
        let mut bars = Vec::new();
        read::each_line(&run.folder, run.is_finished, |line| {
            let t = line.t - ahead.get(&line.rank).copied().unwrap_or_default();
            let mut add = |activity, start: f64, end: f64| {
                if end > from && start < to && end > start && shown.contains(&line.rank) {
                    bars.push(Bar { rank: line.rank, activity, from: start.max(from), to: end.min(to) });
                }
            };
            let since = evaluating.remove(&line.rank);
            match &line.event {
                // A server's parameters are measured beside training: no worker spends time on it.
                Event::Evaluate(_) if run.is_served => {}
                Event::Evaluate(evaluate) => add(Activity::Evaluate, t - evaluate.evaluate_seconds, t),
                event => {
                    since.into_iter().for_each(|since| add(Activity::Evaluate, since, t));
                    bars_of(t, event, add);
                }
            }
            if let Event::Exchange(exchange) = &line.event
                && evaluated.contains(&exchange.global_samples)
            {
                evaluating.insert(line.rank, t);
            }
            Ok(())
        })?;
        bars.sort_by(|a, b| a.from.total_cmp(&b.from));
        let mut timeline = Timeline { from, to, bars, ranks, is_cut: false };
        timeline.thin();
        Ok(timeline)
    }

    /// Joins what is too short to be seen, and cuts the stretch where it is still too much.
    fn thin(&mut self) {
        let least = (self.to - self.from) / (WIDTH * 2.0);
        let mut last: BTreeMap<(Rank, Activity), usize> = BTreeMap::new();
        let mut kept: Vec<Bar> = Vec::new();
        for bar in &self.bars {
            match last.get(&(bar.rank, bar.activity)).map(|&number| &mut kept[number]) {
                Some(before) if bar.to - bar.from < least && bar.from - before.to < least / 2.0 => {
                    before.to = bar.to.max(before.to);
                }
                _ => {
                    last.insert((bar.rank, bar.activity), kept.len());
                    kept.push(*bar);
                }
            }
        }
        if let Some(bar) = kept.get(MOST_BARS) {
            self.to = bar.from.max(self.from + least);
            self.is_cut = true;
            kept.truncate(MOST_BARS);
            kept.iter_mut().for_each(|bar| bar.to = bar.to.min(self.to));
        }
        self.bars = kept;
    }

    pub(super) fn draw(&self, run: &Run) -> Result<Picture> {
        let names: Vec<String> = self.ranks.iter().map(|rank| format!("rank {rank}")).collect();
        let rows: BTreeMap<Rank, usize> =
            self.ranks.iter().enumerate().map(|(row, rank)| (*rank, row)).collect();
        let row = if names.len() > 16 { 18.0 } else { 26.0 };
        let top = HEAD + 12.0;
        let place =
            Place { left: 84.0, right: WIDTH - 24.0, top, bottom: top + names.len().max(1) as f64 * row };
        let x = Scale::linear(Quantity::Seconds, self.from, self.to, 8);
        let per_pixel = (x.high - x.low) / (place.right - place.left);
        let svg = sheet(&format!("Timeline: {}", run.label), place.bottom + FOOT, |area| {
            let named = Rows::named(&names, row);
            let mut chart = chart(area, place, &x, &named, Grid::Upright)?;
            axis_names(area, place, &x.name("time since training began"), "")?;
            let present =
                Activity::ALL.into_iter().filter(|a| self.bars.iter().any(|bar| bar.activity == *a));
            let entries: Vec<(&str, RGBColor)> = present.map(Activity::look).collect();
            legend(area, (place.left, top - 22.0), &entries)?;
            if self.bars.is_empty() {
                let middle = ((place.left + place.right) / 2.0, (place.top + place.bottom) / 2.0);
                text(area, middle, "nothing was written down in this stretch", &Letters::label().centred())?;
            }
            for bar in &self.bars {
                let (from, to) = (x.place(bar.from), x.place(bar.to));
                // A gap between steps, so that they can be counted.
                let gap = if to - from > 3.0 * per_pixel { 0.75 * per_pixel } else { 0.0 };
                let row = rows[&bar.rank] as f64;
                // At least half a pixel, else short exchanges cannot be seen.
                let to = (to - gap).max(from + 0.5 * per_pixel).min(x.high);
                let corners = [(from, row + 0.14), (to, row + 0.86)];
                let colour = bar.activity.look().1.filled();
                chart.draw_series([Rectangle::new(corners, colour)]).map_err(failed)?;
            }
            Ok(())
        })?;
        let mut caption = format!(
            "What each worker did from {} to {} after training began; blank is deciding, writing metrics and the like.",
            Quantity::Seconds.show(self.from),
            Quantity::Seconds.show(self.to)
        );
        if self.is_cut {
            caption += " The stretch that was asked for holds more than a picture can show, and was cut.";
        }
        if self.ranks.len() < run.workers.len() {
            caption += &format!(
                " {} of {} workers are shown, at equal distances.",
                self.ranks.len(),
                run.workers.len()
            );
        }
        Ok(Picture { name: format!("timeline-{}", file_name(&run.label)), caption, svg })
    }
}

/// By how many seconds each worker's clock is ahead of the first one's: the median over the moments that all of them saw, the
/// arrivals of the last in the exchanges. Each clock begins when its worker leaves the first barrier, which on crowded cores
/// may be long after the others.
fn clocks_ahead(run: &Run) -> BTreeMap<Rank, f64> {
    let reference = run.rounds.iter().map(|round| round.rank).min();
    let of_reference = run.rounds.iter().filter(|round| Some(round.rank) == reference);
    let moments: BTreeMap<u64, f64> =
        of_reference.filter_map(|round| Some((round.round, round.arrived?))).collect();
    let mut differences: BTreeMap<Rank, Vec<f64>> = BTreeMap::new();
    for round in &run.rounds {
        if let (Some(arrived), Some(moment)) = (round.arrived, moments.get(&round.round)) {
            differences.entry(round.rank).or_default().push(arrived - moment);
        }
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    differences.into_iter().map(|(rank, values)| (rank, median(values))).collect()
}

/// About [`ROUNDS`] rounds from `from` on; the whole rest of a run without rounds, or with fewer.
fn default_seconds(run: &Run, from: f64) -> f64 {
    let end = run.workers.iter().map(|worker| worker.total_seconds).fold(0.0, f64::max);
    // The worker with the fewest rounds takes longest for them.
    let mut later: BTreeMap<Rank, Vec<f64>> = BTreeMap::new();
    for round in run.rounds.iter().filter(|round| round.ended > from) {
        later.entry(round.rank).or_default().push(round.ended);
    }
    let ends = later.values_mut().filter_map(|ends| {
        ends.sort_by(f64::total_cmp);
        ends.get(ROUNDS as usize - 1).copied()
    });
    let until = ends.fold(0.0, f64::max);
    let until = if until > from { until } else { end };
    if until > from { (until - from) * 1.02 } else { 1.0 }
}

/// What a line tells: activities with their beginnings and ends, which lie before the line's own time.
fn bars_of(t: f64, event: &Event, mut add: impl FnMut(Activity, f64, f64)) {
    match event {
        Event::Step(step) => {
            // Workers that are not slowed down measure a few nanoseconds of it.
            let slow = if step.slow_seconds > 0.001 * step.step_seconds { step.slow_seconds } else { 0.0 };
            let awake = t - slow;
            add(Activity::Step, t - step.step_seconds, awake);
            add(Activity::Slow, awake, t);
        }
        Event::Exchange(exchange) => {
            let arrived = t - exchange.exchange_seconds;
            add(Activity::Wait, arrived - exchange.wait_seconds, arrived);
            add(Activity::Exchange, arrived, t);
        }
        Event::Push(push) => {
            let sent = t - push.wait_seconds;
            add(Activity::Push, sent - push.exchange_seconds, sent);
            add(Activity::Wait, sent, t);
        }
        Event::Pull(pull) => add(Activity::Pull, t - pull.exchange_seconds, t),
        _ => {}
    }
}
