//! What all pictures share: the sheet, colours, letters, charts with axes.
//!
//! plotters draws at whole pixels, so that the sheet is four times as large as it is shown. Its SVG has colours as attributes
//! only; a style sheet at the beginning of the file exchanges the neutral ones where the reader prefers a dark page.

use super::units::Scale;
use crate::error::{Error, Result};
use plotters::chart::ChartContext;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::fmt::Display;
use std::ops::Range;

/// Shown width of every picture, in pixels.
pub(super) const WIDTH: f64 = 800.0;
/// Room above a chart for its title and the name of the axis that goes up.
pub(super) const HEAD: f64 = 64.0;
/// Room below a chart for numbers and the axis' name.
pub(super) const FOOT: f64 = 48.0;
/// Room at the left of a chart for numbers.
pub(super) const LEFT: f64 = 64.0;

const FINENESS: f64 = 4.0;
const LETTERS: &str = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif";

pub(super) const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xff);
pub(super) const INK: RGBColor = RGBColor(0x1f, 0x24, 0x30);
pub(super) const FAINT: RGBColor = RGBColor(0x5b, 0x64, 0x74);
pub(super) const GRID: RGBColor = RGBColor(0xdf, 0xe3, 0xe9);

/// Okabe and Ito's palette, which people with any kind of colour vision can tell apart, with its yellow, which is too pale for
/// lines, and its black replaced.
pub(super) const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
pub(super) const VERMILION: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
pub(super) const GREEN: RGBColor = RGBColor(0x00, 0x9e, 0x73);
pub(super) const PURPLE: RGBColor = RGBColor(0xcc, 0x79, 0xa7);
pub(super) const ORANGE: RGBColor = RGBColor(0xe6, 0x9f, 0x00);
pub(super) const SKY: RGBColor = RGBColor(0x56, 0xb4, 0xe9);
pub(super) const GREY: RGBColor = RGBColor(0xb9, 0xc0, 0xcb);
const BROWN: RGBColor = RGBColor(0x8a, 0x5a, 0x2b);
const SLATE: RGBColor = RGBColor(0x7a, 0x84, 0x94);
const RUNS: [RGBColor; 8] = [BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BROWN, SLATE];

/// The colour of a run; after eight they come again, and labels tell them apart.
pub(super) fn run_colour(number: usize) -> RGBColor {
    RUNS[number % RUNS.len()]
}

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(super) type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<Ticked, Ticked>>;

/// An axis of a chart, with numbers where we want them. `low` may be above `high`.
pub(super) struct Ticked {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Ranged for Ticked {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        from + (share * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Only lines with numbers, none between.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

/// The style sheet of a picture, and of the page.
pub(super) const DARK: &str = "@media (prefers-color-scheme: dark) { \
    [fill='#FFFFFF'] { fill: #14171c } [fill='#1F2430'] { fill: #e8ebf0 } [fill='#5B6474'] { fill: #a3adbc } \
    [stroke='#FFFFFF'] { stroke: #14171c } [stroke='#DFE3E9'] { stroke: #2b313b } [stroke='#5B6474'] { stroke: #7f8a9b } \
    [fill='#B9C0CB'] { fill: #4a5362 } [fill='#0072B2'] { fill: #2b95d6 } [stroke='#0072B2'] { stroke: #2b95d6 } }";

/// A sheet of this height, painted by `paint`; `title` stands at its top.
pub(super) fn sheet(title: &str, height: f64, paint: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let size = (fine(WIDTH) as u32, fine(height) as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&PAPER).map_err(failed)?;
        text(&area, (16.0, 18.0), title, &Letters::title())?;
        paint(&area)?;
        area.present().map_err(failed)?;
    }
    // The backend writes its fine size; readers shall see the picture in its own.
    let (head, body) = svg.split_once('>').ok_or_else(|| failed("plotters wrote no SVG"))?;
    let size = format!("width=\"{}\" height=\"{}\"", fine(WIDTH), fine(height));
    let shown = format!("width=\"{WIDTH}\" height=\"{height}\" role=\"img\"");
    let head = head.replace(&size, &shown);
    Ok(format!("{head}>\n<style>{DARK}</style>{body}"))
}

/// Pixels of the sheet.
pub(super) fn fine(pixels: f64) -> i32 {
    (pixels * FINENESS).round() as i32
}

pub(super) fn failed(error: impl Display) -> Error {
    Error::Internal(format!("a picture cannot be drawn: {error}"))
}

/// How a text looks, and which of its points stands at the place.
#[derive(Clone)]
pub(super) struct Letters {
    pub(super) colour: RGBColor,
    pub(super) pixels: f64,
    pub(super) is_bold: bool,
    pub(super) side: HPos,
}

impl Letters {
    pub(super) fn title() -> Self {
        Letters { colour: INK, pixels: 16.0, is_bold: true, side: HPos::Left }
    }

    pub(super) fn label() -> Self {
        Letters { colour: INK, pixels: 13.0, is_bold: false, side: HPos::Left }
    }

    pub(super) fn faint() -> Self {
        Letters { colour: FAINT, pixels: 12.0, ..Letters::label() }
    }

    /// The place is the text's middle.
    pub(super) fn centred(self) -> Self {
        Letters { side: HPos::Center, ..self }
    }

    fn style(&self) -> TextStyle<'static> {
        // plotters divides by 1.24 on the way to the file.
        let size = self.pixels * FINENESS * 1.24;
        let font = FontDesc::new(
            FontFamily::Name(LETTERS),
            size,
            if self.is_bold { FontStyle::Bold } else { FontStyle::Normal },
        );
        let mut style = TextStyle::from(font).pos(Pos::new(self.side, VPos::Center));
        style.color = self.colour.to_backend_color();
        style
    }
}

/// About how wide a text is, in pixels: there is no font to ask, and readers have different ones.
pub(super) fn width_of(text: &str, pixels: f64) -> f64 {
    text.chars().map(|c| if "il.,:;|!' ".contains(c) { 0.32 } else { 0.6 }).sum::<f64>() * pixels
}

/// The text, or its beginning if it is wider than `pixels`.
pub(super) fn fitted(text: &str, letters: f64, pixels: f64) -> String {
    if width_of(text, letters) <= pixels {
        return text.into();
    }
    let mut short = String::new();
    for c in text.chars() {
        if width_of(&short, letters) + letters * 1.2 > pixels {
            break;
        }
        short.push(c);
    }
    short + "…"
}

/// A text whose middle line is at the place, in pixels.
pub(super) fn text(area: &Area<'_>, (x, y): (f64, f64), text: &str, letters: &Letters) -> Result<()> {
    area.draw_text(text, &letters.style(), (fine(x), fine(y))).map_err(failed)
}

/// A filled rectangle, in pixels.
pub(super) fn rectangle(area: &Area<'_>, from: (f64, f64), to: (f64, f64), colour: RGBColor) -> Result<()> {
    let corners = [(fine(from.0), fine(from.1)), (fine(to.0), fine(to.1))];
    area.draw(&Rectangle::new(corners, colour.filled())).map_err(failed)
}

/// A line, in pixels.
pub(super) fn line(area: &Area<'_>, points: &[(f64, f64)], colour: RGBAColor, width: f64) -> Result<()> {
    let points: Vec<(i32, i32)> = points.iter().map(|&(x, y)| (fine(x), fine(y))).collect();
    let style = ShapeStyle { color: colour, filled: false, stroke_width: fine(width) as u32 };
    area.draw(&PathElement::new(points, style)).map_err(failed)
}

/// Names beside squares of their colours, in one row from `x` to the right.
pub(super) fn legend(area: &Area<'_>, (x, y): (f64, f64), entries: &[(&str, RGBColor)]) -> Result<()> {
    let mut x = x;
    for (name, colour) in entries {
        rectangle(area, (x, y - 5.0), (x + 10.0, y + 5.0), *colour)?;
        text(area, (x + 15.0, y), name, &Letters::faint())?;
        x += 15.0 + width_of(name, 12.0) + 14.0;
    }
    Ok(())
}

/// Where a chart lies on its sheet, in pixels.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
}

/// Which lines lie behind the marks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Grid {
    Both,
    /// From each number of the axis that goes right.
    Upright,
}

/// A chart with numbers at its axes.
pub(super) fn chart<'a>(
    area: &Area<'a>,
    place: Place,
    x: &Scale,
    y: &Rows<'_>,
    grid: Grid,
) -> Result<Chart<'a>> {
    let (width, height) = area.dim_in_pixel();
    let x_axis = Ticked { low: x.low, high: x.high, ticks: x.ticks.clone() };
    let y_axis = Ticked { low: y.low, high: y.high, ticks: y.ticks.clone() };
    let mut chart = ChartBuilder::on(area)
        .margin_top(fine(place.top))
        .margin_bottom(height as i32 - fine(place.bottom + 24.0))
        .margin_right(width as i32 - fine(place.right))
        .x_label_area_size(fine(24.0))
        .y_label_area_size(fine(place.left))
        .build_cartesian_2d(x_axis, y_axis)
        .map_err(failed)?;
    let letters = Letters::faint().style();
    let thin = ShapeStyle { color: GRID.to_rgba(), filled: false, stroke_width: fine(1.0) as u32 };
    let x_label = |place: &f64| x.label(*place);
    let y_label = |place: &f64| (y.label)(*place);
    let mut mesh = chart.configure_mesh();
    mesh.bold_line_style(thin)
        .light_line_style(TRANSPARENT)
        .axis_style(thin)
        .set_all_tick_mark_size(fine(4.0))
        .label_style(letters)
        .x_label_formatter(&x_label)
        .y_label_formatter(&y_label);
    if grid == Grid::Upright {
        mesh.disable_y_mesh();
    }
    mesh.draw().map_err(failed)?;
    Ok(chart)
}

/// The axis that goes up; where it counts rows, from the top down.
pub(super) struct Rows<'a> {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) ticks: Vec<f64>,
    pub(super) label: Box<dyn Fn(f64) -> String + 'a>,
}

impl<'a> Rows<'a> {
    pub(super) fn of(scale: &'a Scale) -> Self {
        Rows {
            low: scale.low,
            high: scale.high,
            ticks: scale.ticks.clone(),
            label: Box::new(|place| scale.label(place)),
        }
    }

    /// One row for each name; row n lies from n to n + 1. Names of narrow rows are left out.
    pub(super) fn named(names: &'a [String], row_pixels: f64) -> Self {
        let every = (15.0 / row_pixels).ceil().max(1.0) as usize;
        Rows {
            low: names.len() as f64,
            high: 0.0,
            ticks: (0..names.len()).step_by(every).map(|row| row as f64 + 0.5).collect(),
            label: Box::new(|place| names.get(place as usize).cloned().unwrap_or_default()),
        }
    }
}

/// The names of a chart's axes: of the one that goes right, below it; of the one that goes up, above it.
pub(super) fn axis_names(area: &Area<'_>, place: Place, right: &str, up: &str) -> Result<()> {
    let middle = (place.left + place.right) / 2.0;
    text(area, (middle, place.bottom + 36.0), right, &Letters::faint().centred())?;
    text(area, (16.0, place.top - 18.0), up, &Letters::faint())
}
