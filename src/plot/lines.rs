//! Accuracy and loss against time, samples and bytes.

use super::Picture;
use super::canvas::{
    Area, Chart, FAINT, FOOT, Grid, HEAD, LEFT, Letters, PAPER, Place, Rows, WIDTH, axis_names, chart,
    failed, fine, fitted, line, run_colour, sheet, text, width_of,
};
use super::flags::Axis;
use super::run::{Evaluation, Run};
use super::units::{Quantity, Scale};
use crate::error::Result;
use plotters::prelude::*;

/// What is drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    Accuracy,
    Loss,
}

/// Against what.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Against {
    Time,
    Samples,
    Bytes,
}

impl Value {
    fn of(self, evaluation: &Evaluation) -> f64 {
        match self {
            Value::Accuracy => evaluation.accuracy,
            Value::Loss => evaluation.loss,
        }
    }

    fn target(self, run: &Run) -> Option<f64> {
        match self {
            Value::Accuracy => run.target_accuracy,
            Value::Loss => run.target_loss,
        }
    }

    fn scale(self, values: &[f64]) -> Scale {
        let (least, most) = range(values);
        match self {
            Value::Accuracy => {
                let low = ((least * 10.0).floor() / 10.0).clamp(0.0, 0.9);
                Scale::linear(Quantity::Share, low, 1.0, 6)
            }
            Value::Loss if least > 0.0 && most / least > 10.0 => {
                Scale::logarithmic(Quantity::Number, least, most, 8)
            }
            Value::Loss => Scale::linear(Quantity::Number, 0.0, most * 1.05, 6),
        }
    }
}

impl Against {
    fn of(self, evaluation: &Evaluation) -> Option<f64> {
        match self {
            Against::Time => Some(evaluation.train_seconds),
            Against::Samples => Some(evaluation.global_samples as f64),
            Against::Bytes => evaluation.bytes_sent.map(|bytes| bytes as f64),
        }
    }

    fn quantity(self) -> Quantity {
        match self {
            Against::Time => Quantity::Seconds,
            Against::Samples => Quantity::Samples,
            Against::Bytes => Quantity::Bytes,
        }
    }
}

fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(*value), most.max(*value)))
}

/// The points of one run.
struct Curve<'a> {
    run: &'a Run,
    number: usize,
    points: Vec<(f64, f64)>,
}

/// The picture, or a sentence on why there is none.
pub(super) fn draw(
    runs: &[Run],
    value: Value,
    against: Against,
    axis: Axis,
) -> Result<Result<Picture, String>> {
    let point = |e: &Evaluation| Some((against.of(e)?, value.of(e)));
    let curve = |(number, run)| {
        let run: &Run = run;
        let points: Vec<(f64, f64)> = run.evaluations.iter().filter_map(point).collect();
        (!points.is_empty()).then_some(Curve { run, number, points })
    };
    let curves: Vec<Curve<'_>> = runs.iter().enumerate().filter_map(curve).collect();
    let places: Vec<f64> = curves.iter().flat_map(|curve| curve.points.iter().map(|p| p.0)).collect();
    let (_, farthest) = range(&places);
    if curves.is_empty() {
        return Ok(Err(match against {
            Against::Bytes if runs.iter().any(|run| !run.evaluations.is_empty()) => {
                "no pictures against bytes: these metrics do not tell how many had been sent at an evaluation"
                    .into()
            }
            _ => "no pictures of accuracy and loss: nothing was evaluated".into(),
        }));
    }
    if value == Value::Accuracy && curves.iter().flat_map(|curve| &curve.points).all(|point| point.1 == 0.0) {
        return Ok(Err("no pictures of accuracy: it is 0 at every evaluation, as a surrogate's is".into()));
    }
    if farthest <= 0.0 {
        return Ok(Err("no pictures against bytes: none were sent".into()));
    }
    let x = across(against, &curves, axis);
    let mut values: Vec<f64> = curves.iter().flat_map(|curve| curve.points.iter().map(|p| p.1)).collect();
    values.extend(runs.iter().filter_map(|run| value.target(run)));
    let y = value.scale(&values);
    picture(runs, &curves, value, against, &x, &y).map(Ok)
}

fn across(against: Against, curves: &[Curve<'_>], axis: Axis) -> Scale {
    let ends: Vec<f64> = curves.iter().filter_map(|curve| curve.points.last().map(|p| p.0)).collect();
    let positive = curves.iter().flat_map(|curve| curve.points.iter().map(|p| p.0)).filter(|x| *x > 0.0);
    let least = positive.fold(f64::MAX, f64::min);
    let (shortest, longest) = range(&ends);
    let is_logarithmic = match axis {
        Axis::Linear => false,
        Axis::Log => true,
        Axis::Auto => longest > 8.0 * shortest.max(1e-12),
    };
    match is_logarithmic && least < f64::MAX {
        true => Scale::logarithmic(against.quantity(), least, longest.max(least), 9),
        false => Scale::linear(against.quantity(), 0.0, longest, 7),
    }
}

fn picture(
    runs: &[Run],
    curves: &[Curve<'_>],
    value: Value,
    against: Against,
    x: &Scale,
    y: &Scale,
) -> Result<Picture> {
    let (what, name) = match value {
        Value::Accuracy => ("Test accuracy", "accuracy"),
        Value::Loss => ("Test loss", "loss"),
    };
    let (title, axis, suffix) = match against {
        Against::Time => ("training time", "time of training, evaluations not counted", "time"),
        Against::Samples => ("samples", "samples of all workers", "samples"),
        Against::Bytes => ("bytes sent", "bytes sent by all workers", "bytes"),
    };
    let labels: Vec<String> = curves.iter().map(|curve| label(curve, against)).collect();
    let widest = labels.iter().map(|label| width_of(label, 13.0)).fold(60.0, f64::max).min(230.0);
    let labels_height = labels.len() as f64 * 17.0;
    let bottom = (HEAD + 270.0_f64).max(HEAD + labels_height);
    let place = Place { left: LEFT, right: WIDTH - widest - 38.0, top: HEAD, bottom };
    let svg = sheet(&format!("{what} against {title}"), bottom + FOOT, |area| {
        let rows = Rows::of(y);
        let mut chart = chart(area, place, x, &rows, Grid::Both)?;
        let quantity = if value == Value::Accuracy { "test accuracy" } else { "test loss" };
        axis_names(area, place, &x.name(axis), &y.name(quantity))?;
        targets(area, &mut chart, runs, value, (x, y))?;
        let mut ends = Vec::new();
        for curve in curves {
            let points: Vec<(f64, f64)> = curve.points.iter().map(|p| (x.place(p.0), y.place(p.1))).collect();
            let colour = run_colour(curve.number);
            let style = ShapeStyle { color: colour.to_rgba(), filled: false, stroke_width: fine(2.0) as u32 };
            chart.draw_series(LineSeries::new(points.iter().copied(), style)).map_err(failed)?;
            if points.len() <= 40 {
                let dots = points.iter().map(|point| Circle::new(*point, fine(2.5), colour.filled()));
                chart.draw_series(dots).map_err(failed)?;
            }
            if let Some(last) = points.last() {
                let dot = |radius, colour: RGBColor| Circle::new(*last, fine(radius), colour.filled());
                chart.draw_series([dot(5.5, PAPER), dot(4.0, colour)]).map_err(failed)?;
                let (x, y) = chart.backend_coord(last);
                ends.push((f64::from(x) / 4.0, f64::from(y) / 4.0));
            }
        }
        let tops = spread(&ends.iter().map(|end| end.1).collect::<Vec<_>>(), 17.0, place.top, place.bottom);
        for (((curve, label), end), top) in curves.iter().zip(&labels).zip(&ends).zip(tops) {
            let colour = run_colour(curve.number);
            let from = place.right + 12.0;
            // From the end of the line to its name.
            line(area, &[(end.0 + 7.0, end.1), (from, top)], colour.mix(0.45), 1.0)?;
            line(area, &[(from, top), (from + 10.0, top)], colour.to_rgba(), 3.0)?;
            text(area, (from + 15.0, top), &fitted(label, 13.0, widest + 6.0), &Letters::label())?;
        }
        Ok(())
    })?;
    let caption = match against {
        Against::Time => {
            "The time is that of training, from the start to the evaluation; evaluations are not counted."
        }
        Against::Samples => "How much the workers learn from as many samples, whatever time these took.",
        Against::Bytes => "What all workers together had sent by the time of the evaluation.",
    };
    Ok(Picture { name: format!("{name}-{suffix}"), caption: caption.into(), svg })
}

/// A run's name, with where its line ends.
fn label(curve: &Curve<'_>, against: Against) -> String {
    let last = curve.points.last().map_or(0.0, |point| point.0);
    let going = if curve.run.is_finished { "" } else { " (not finished)" };
    format!("{}{going}, {}", curve.run.label, against.quantity().show(last))
}

/// A dashed line at each target.
fn targets(
    area: &Area<'_>,
    chart: &mut Chart<'_>,
    runs: &[Run],
    value: Value,
    (x, y): (&Scale, &Scale),
) -> Result<()> {
    let mut targets: Vec<f64> = runs.iter().filter_map(|run| value.target(run)).collect();
    targets.sort_by(f64::total_cmp);
    targets.dedup();
    for target in targets {
        let height = y.place(target);
        let style = ShapeStyle { color: FAINT.to_rgba(), filled: false, stroke_width: fine(1.0) as u32 };
        let ends = [(x.low, height), (x.high, height)];
        let (dash, gap) = (fine(6.0), fine(4.0));
        chart.draw_series(DashedLineSeries::new(ends, dash, gap, style)).map_err(failed)?;
        let words = match value {
            Value::Accuracy => format!("target {}", Quantity::Share.show(target)),
            Value::Loss => format!("target {target}"),
        };
        let (left, top) = chart.backend_coord(&(x.low, height));
        let at = (f64::from(left) / 4.0 + 6.0, f64::from(top) / 4.0 - 9.0);
        text(area, at, &words, &Letters::faint())?;
    }
    Ok(())
}

/// Moves heights apart until neighbours are `distance` apart, and keeps them between `top` and `bottom`.
fn spread(heights: &[f64], distance: f64, top: f64, bottom: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..heights.len()).collect();
    order.sort_by(|&a, &b| heights[a].total_cmp(&heights[b]));
    let mut placed = heights.to_vec();
    let mut least = top;
    for &number in &order {
        placed[number] = placed[number].max(least);
        least = placed[number] + distance;
    }
    let mut most = bottom;
    for &number in order.iter().rev() {
        placed[number] = placed[number].min(most);
        most = placed[number] - distance;
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn labels_do_not_overlap() {
        assert_eq!(spread(&[10.0, 11.0, 12.0], 5.0, 0.0, 100.0), [10.0, 15.0, 20.0]);
        assert_eq!(spread(&[99.0, 98.0], 5.0, 0.0, 100.0), [100.0, 95.0]);
        assert_eq!(spread(&[50.0], 5.0, 0.0, 100.0), [50.0]);
    }
}
