//! Draws a schedule's rounds as SVG: time runs downwards, every rank is a column.
//!
//! Before each round a bar shows a rank's vector: the colour is the part's, and the more contributions an element holds, the
//! stronger it is. Arrows lead from the elements that are sent to where they land.

use super::explain::Explained;
use super::rounds::{Contributors, Rounds, Transfer};
use crate::collective::{Kind, Place, part};
use std::fmt::{Display, Write};
use std::ops::Range;

const MARGIN: f64 = 36.0;
/// Room for the numbers of the rounds.
const LABELS: f64 = 74.0;
const GAP: f64 = 30.0;
const BAR: f64 = 20.0;
const ROUND: f64 = 104.0;
const HEAD: f64 = 132.0;
const FOOT: f64 = 58.0;

const INK: &str = "#1f2430";
const FAINT: &str = "#7b8494";
const LINE: &str = "#c9ced8";

/// The picture, as the text of an SVG file.
pub(super) fn draw(explained: &Explained, rounds: &Rounds) -> String {
    let mut picture = Picture::new(explained);
    picture.head(explained);
    for (number, held) in rounds.held.iter().enumerate() {
        picture.round(explained, number, held, number + 1 == rounds.held.len());
    }
    // Above all bars.
    for transfer in &rounds.transfers {
        let arriving = |other: &&Transfer| other.round == transfer.round && other.to == transfer.to;
        let crowd = rounds.transfers.iter().filter(arriving).count();
        picture.arrow(explained, transfer, crowd);
    }
    picture.foot(explained, rounds.held.len());
    picture.finish(rounds.held.len())
}

struct Picture {
    svg: String,
    ranks: usize,
    count: usize,
    /// Width of a vector's bar.
    width: f64,
}

/// Text that is safe inside XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A colour of the wheel of hues, at a place between 0 and 1, mixed with white: `strength` 0 is white, 1 is the colour.
fn colour(place: f64, strength: f64) -> String {
    // Sines a third of a turn apart give hues of about equal brightness; the wheel begins at blue.
    let channel = |shift: f64| {
        let wave = (std::f64::consts::TAU * (0.80 * place + shift)).sin();
        let full = 0.53 + 0.31 * wave;
        (255.0 * (1.0 - strength * (1.0 - full))).round() as u8
    };
    format!("#{:02x}{:02x}{:02x}", channel(0.62), channel(0.93), channel(0.27))
}

impl Picture {
    fn new(explained: &Explained) -> Self {
        let ranks = explained.schedules.len();
        let width = if ranks <= 8 { 104.0 } else { 72.0 };
        Picture { svg: String::new(), ranks, count: explained.count, width }
    }

    fn column(&self, rank: usize) -> f64 {
        MARGIN + LABELS + rank as f64 * (self.width + GAP)
    }

    fn top(round: usize) -> f64 {
        HEAD + round as f64 * ROUND
    }

    /// Where an element's left edge is in a rank's bar.
    fn at(&self, rank: usize, element: f64) -> f64 {
        self.column(rank) + self.width * element / self.count.max(1) as f64
    }

    fn middle(&self, rank: usize, elements: &Range<usize>) -> f64 {
        self.at(rank, (elements.start + elements.end) as f64 / 2.0)
    }

    /// The part that an element belongs to, as a place on the wheel.
    fn place(&self, element: usize) -> f64 {
        let number = (0..self.ranks).find(|&rank| part(self.count, self.ranks, rank).contains(&element));
        number.unwrap_or_default() as f64 / self.ranks as f64
    }

    // Writing to a string cannot fail, here and below.
    fn add(&mut self, element: impl Display) {
        let _ = writeln!(self.svg, "{element}");
    }

    fn text(&mut self, x: f64, y: f64, attributes: &str, text: &str) {
        self.add(format_args!(r#"<text x="{x:.1}" y="{y:.1}" {attributes}>{}</text>"#, escaped(text)));
    }

    fn head(&mut self, explained: &Explained) {
        let small = format!(r#"font-size="13" fill="{FAINT}""#);
        self.text(MARGIN, 40.0, r#"font-size="20" font-weight="600""#, &explained.title());
        self.text(MARGIN, 63.0, &small, &explained.cost());
        if let Some(sums) = explained.sums() {
            let most = ((self.column(self.ranks) - MARGIN) / 6.6) as usize;
            let short: String = sums.chars().take(most).collect();
            let cut = if short.len() < sums.len() { "…" } else { "" };
            self.text(MARGIN, 82.0, &small, &format!("{short}{cut}"));
        }
        for rank in 0..self.ranks {
            let x = self.column(rank) + self.width / 2.0;
            let name = match explained.topology.host_count() {
                1 => format!("rank {rank}"),
                _ => format!("rank {rank} (host {})", explained.topology.host(rank)),
            };
            self.text(x, HEAD - 12.0, r#"font-size="13" font-weight="600" text-anchor="middle""#, &name);
        }
    }

    /// The bars before a round, and the line of time below them.
    fn round(&mut self, explained: &Explained, number: usize, held: &[Vec<Contributors>], is_last: bool) {
        let top = Self::top(number);
        let label = if is_last { "result".to_string() } else { format!("round {}", number + 1) };
        let y = if is_last { top + BAR / 2.0 + 4.0 } else { top + (ROUND + BAR) / 2.0 + 4.0 };
        self.text(MARGIN, y, &format!(r#"font-size="13" fill="{FAINT}""#), &label);
        for (rank, held) in held.iter().enumerate() {
            let x = self.column(rank);
            if !is_last {
                let middle = x + self.width / 2.0;
                let (from, to) = (top + BAR, top + ROUND);
                self.add(format_args!(
                    r#"<line x1="{middle:.1}" y1="{from:.1}" x2="{middle:.1}" y2="{to:.1}" stroke="{LINE}" stroke-dasharray="2 4"/>"#
                ));
            }
            let bar =
                format!(r#"<rect x="{x:.1}" y="{top:.1}" width="{:.1}" height="{BAR}" rx="3""#, self.width);
            self.add(format_args!(r#"{bar} fill="white"/>"#));
            self.cells(explained, rank, top, held);
            self.add(format_args!(r#"{bar} fill="none" stroke="{FAINT}"/>"#));
        }
    }

    /// The elements of one bar, in runs that look alike.
    fn cells(&mut self, explained: &Explained, rank: usize, top: f64, held: &[Contributors]) {
        let reduces = explained.operation.kind.reduces();
        let look = |element: usize| (self.place(element), held[element].count_ones());
        let mut cells = Vec::new();
        let mut start = 0;
        for element in 1..=held.len() {
            if element == held.len() || look(element) != look(start) {
                cells.push((start..element, look(start)));
                start = element;
            }
        }
        for (elements, (place, contributions)) in cells {
            let whole = if reduces { self.ranks as f64 } else { 1.0 };
            let share = f64::from(contributions) / whole;
            if contributions == 0 {
                continue;
            }
            let (from, to) = (self.at(rank, elements.start as f64), self.at(rank, elements.end as f64));
            let fill = colour(place, 0.18 + 0.82 * share);
            self.add(format_args!(
                r#"<rect x="{from:.2}" y="{top:.1}" width="{:.2}" height="{BAR}" fill="{fill}"><title>rank {rank}, elements {}..{}: {contributions} contributions</title></rect>"#,
                to - from,
                elements.start,
                elements.end,
            ));
        }
    }

    fn arrow(&mut self, explained: &Explained, transfer: &Transfer, crowd: usize) {
        let Transfer { round, from, to, sent, lands, reduced } = transfer;
        // What comes from or stays in scratch space has no place in the vector: the arrow begins or ends in the middle.
        let whole = 0..self.count;
        let origin = if sent.place == Place::Buffer { &sent.range } else { lands.as_ref().unwrap_or(&whole) };
        let target = lands.as_ref().unwrap_or(origin);
        let stroke = colour(self.place(target.start), 1.0);
        let (x1, y1) = (self.middle(*from, origin), Self::top(*round) + BAR);
        let (x2, y2) = (self.middle(*to, target), Self::top(round + 1));
        let head = if *reduced { y2 - 16.5 } else { y2 - 9.0 };
        let bend = (head - y1) * 0.55;
        let between_hosts = explained.topology.host(*from) != explained.topology.host(*to);
        let width = if between_hosts { 3.2 } else { 1.6 };
        let verb = if *reduced { "combined at" } else { "stored by" };
        let title = format!("round {}: rank {from} sends {sent}, {verb} rank {to}", round + 1);
        self.add(format_args!(
            r#"<path d="M{x1:.1} {y1:.1} C{x1:.1} {:.1} {x2:.1} {:.1} {x2:.1} {head:.1}" fill="none" stroke="{stroke}" stroke-width="{width}" stroke-opacity="0.9"><title>{}</title></path>"#,
            y1 + bend,
            head - bend,
            escaped(&title),
        ));
        if sent.place == Place::Buffer {
            self.mark(*from, &sent.range, y1, &stroke);
        }
        if let Some(lands) = lands {
            self.mark(*to, lands, y2 - 3.0, &stroke);
        }
        if *reduced {
            let y = y2 - 10.0;
            self.add(format_args!(
                r#"<circle cx="{x2:.1}" cy="{y:.1}" r="6.2" fill="white" stroke="{stroke}" stroke-width="1.6"/><path d="M{:.1} {y:.1}h6.4M{x2:.1} {:.1}v6.4" stroke="{INK}" stroke-width="1.4"/>"#,
                x2 - 3.2,
                y - 3.2,
            ));
        } else {
            self.add(format_args!(r#"<path d="M{x2:.1} {:.1}l-4.6 -9h9.2z" fill="{stroke}"/>"#, y2 - 3.0));
        }
        // Where several arrows arrive, their ranges would lie on each other; the marks and the titles still tell them.
        if crowd == 1
            && let Some(lands) = lands
        {
            let range = match lands.len() {
                1 => lands.start.to_string(),
                _ => format!("{}–{}", lands.start, lands.end - 1),
            };
            // Towards the middle of the column, away from the neighbour's.
            let (anchor, aside) =
                if x2 > self.column(*to) + self.width / 2.0 { ("end", -10.0) } else { ("start", 10.0) };
            let style = format!(
                r#"font-size="10.5" fill="{INK}" text-anchor="{anchor}" paint-order="stroke" stroke="white" stroke-width="3""#
            );
            self.text(x2 + aside, y2 - 5.0, &style, &range);
        }
    }

    /// A line along elements of a bar's edge.
    fn mark(&mut self, rank: usize, elements: &Range<usize>, y: f64, fill: &str) {
        let (from, to) = (self.at(rank, elements.start as f64), self.at(rank, elements.end as f64));
        self.add(format_args!(
            r#"<rect x="{:.1}" y="{y:.1}" width="{:.1}" height="3" fill="{fill}"/>"#,
            from + 0.5,
            (to - from - 1.0).max(0.5)
        ));
    }

    fn foot(&mut self, explained: &Explained, bars: usize) {
        let y = Self::top(bars - 1) + BAR + 34.0;
        let style = format!(r#"font-size="12" fill="{FAINT}""#);
        let what = match explained.operation.kind {
            Kind::AllReduce | Kind::ReduceScatter | Kind::Reduce => {
                "Colour: part of the vector; the stronger, the more ranks' contributions.  ⊕ combined   ▼ stored   \
                 Numbers: elements."
            }
            Kind::AllGather | Kind::Broadcast => "Colour: part of the vector.  ▼ stored   Numbers: elements.",
        };
        let hosts = if explained.topology.host_count() > 1 { "  Thick: between hosts." } else { "" };
        self.text(MARGIN, y, &style, &format!("{what}{hosts}"));
    }

    fn finish(self, bars: usize) -> String {
        let width = (self.column(self.ranks) - GAP + MARGIN).max(720.0);
        let height = Self::top(bars - 1) + BAR + FOOT;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"Inter, 'Helvetica Neue', Arial, sans-serif\" \
             fill=\"{INK}\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{}</svg>\n",
            self.svg
        )
    }
}
