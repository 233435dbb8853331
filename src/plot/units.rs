//! Numbers for people: units that fit, ticks at round numbers.

/// What an axis or a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quantity {
    Seconds,
    Bytes,
    Samples,
    /// 0 to 1, shown as percent.
    Share,
    /// Anything else; shown as it is.
    Number,
}

/// A unit, and how much of the quantity it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Unit {
    pub(super) name: &'static str,
    pub(super) size: f64,
}

impl Quantity {
    /// The unit in which `largest` is a handy number. Bytes are decimal, as `summary.json`'s table counts.
    pub(super) fn unit(self, largest: f64) -> Unit {
        let units: &[(&str, f64)] = match self {
            Quantity::Seconds => &[("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0)],
            Quantity::Bytes => &[("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)],
            Quantity::Samples => &[("", 1.0), ("thousand", 1e3), ("million", 1e6), ("billion", 1e9)],
            Quantity::Share => &[("%", 0.01)],
            Quantity::Number => &[("", 1.0)],
        };
        // Minutes from 3 on, hours from 3 on; ten thousand samples are still read at a glance.
        let least = match self {
            Quantity::Seconds => [0.0, 1.0, 1.0, 3.0, 3.0],
            Quantity::Samples => [0.0, 20.0, 2.0, 2.0, 0.0],
            _ => [0.0, 1.0, 1.0, 1.0, 1.0],
        };
        let fits = |&(number, (_, size)): &(usize, &(&str, f64))| largest >= least[number] * size;
        let (_, &(name, size)) = units.iter().enumerate().rfind(fits).unwrap_or((0, &units[0]));
        Unit { name, size }
    }

    /// `1.93 ms`, `307.9 kB`, `95 %`.
    pub(super) fn show(self, value: f64) -> String {
        let unit = self.unit(value);
        let number = number(value / unit.size);
        if unit.name.is_empty() { number } else { format!("{number} {}", unit.name) }
    }
}

/// Three significant digits, no trailing zeros; commas from ten thousand on.
pub(super) fn number(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return "0".into();
    }
    let magnitude = value.abs().log10().floor() as i32;
    let digits = (2 - magnitude).clamp(0, 9) as usize;
    let text = format!("{value:.digits$}");
    let text = if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    let (sign, whole) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    if whole.len() < 5 || whole.contains('.') {
        return text.into();
    }
    let mut grouped = String::from(sign);
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// An axis: what it counts, from where to where, and where its ticks are. Places are values in the unit, or their decimal
/// logarithms.
pub(super) struct Scale {
    pub(super) unit: Unit,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) ticks: Vec<f64>,
    is_logarithmic: bool,
}

impl Scale {
    /// From `low` to `high`, with at most about `count` ticks.
    pub(super) fn linear(quantity: Quantity, low: f64, high: f64, count: usize) -> Scale {
        let unit = quantity.unit(low.abs().max(high.abs()));
        let low = low / unit.size;
        let high = (high / unit.size).max(low + 1e-9);
        let step = round_step((high - low) / count.max(1) as f64);
        let first = (low / step - 1e-9).ceil() as i64;
        let last = (high / step + 1e-9).floor() as i64;
        let ticks = (first..=last).map(|tick| tick as f64 * step).collect();
        Scale { unit, low, high, ticks, is_logarithmic: false }
    }

    /// From `low` to `high`, both positive; ticks at 1, 2 and 5 as long as there are few, then at powers of ten.
    pub(super) fn logarithmic(quantity: Quantity, low: f64, high: f64, count: usize) -> Scale {
        let unit = quantity.unit(high);
        let (low, high) = ((low / unit.size).log10() - 0.03, (high / unit.size).log10() + 0.03);
        let within = |tick: &f64| *tick >= low && *tick <= high;
        let decades = low.floor() as i32..=high.ceil() as i32;
        let at = |mantissas: &[f64], every: i32| -> Vec<f64> {
            let places = decades.clone().filter(|decade| decade % every == 0);
            let all = places.flat_map(|decade| mantissas.iter().map(move |m| f64::from(decade) + m.log10()));
            all.filter(within).collect()
        };
        let candidates = [at(&[1.0, 2.0, 5.0], 1), at(&[1.0, 3.0], 1), at(&[1.0], 1), at(&[1.0], 3)];
        let ticks = candidates.into_iter().find(|ticks| ticks.len() <= count).unwrap_or_default();
        Scale { unit, low, high, ticks, is_logarithmic: true }
    }

    /// Where a value lies on the axis.
    pub(super) fn place(&self, value: f64) -> f64 {
        let value = value / self.unit.size;
        if self.is_logarithmic { value.max(f64::MIN_POSITIVE).log10() } else { value }
    }

    /// The text of the tick at a place.
    pub(super) fn label(&self, place: f64) -> String {
        let value = if self.is_logarithmic { 10_f64.powf(place) } else { place };
        // The step of the ticks says how many digits differ.
        let step = match &self.ticks[..] {
            [first, second, ..] if !self.is_logarithmic => second - first,
            _ => return number(value),
        };
        let digits = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
        if digits == 0 { number_whole(value) } else { format!("{value:.digits$}") }
    }

    /// The axis' name with its unit.
    pub(super) fn name(&self, what: &str) -> String {
        let scale = if self.is_logarithmic { ", logarithmic" } else { "" };
        match self.unit.name {
            "" => format!("{what}{scale}"),
            unit => format!("{what} ({unit}{scale})"),
        }
    }
}

fn number_whole(value: f64) -> String {
    let value = value.round();
    if value.abs() < 1000.0 { format!("{value}") } else { number(value) }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn round_step(least: f64) -> f64 {
    let decade = 10_f64.powf(least.max(1e-300).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * decade >= least * (1.0 - 1e-9));
    step.unwrap_or(10.0) * decade
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_fitting_units() {
        assert_eq!(Quantity::Seconds.show(0.001_93), "1.93 ms");
        assert_eq!(Quantity::Seconds.show(0.000_004), "4 µs");
        assert_eq!(Quantity::Seconds.show(36.32), "36.3 s");
        assert_eq!(Quantity::Seconds.show(150.0), "150 s");
        assert_eq!(Quantity::Seconds.show(600.0), "10 min");
        assert_eq!(Quantity::Bytes.show(307_900.0), "308 kB");
        assert_eq!(Quantity::Samples.show(19_840.0), "19,840");
        assert_eq!(Quantity::Samples.show(40_960.0), "41 thousand");
        assert_eq!(Quantity::Share.show(0.9528), "95.3 %");
        assert_eq!(number(0.0), "0");
        assert_eq!(number(1_234_567.0), "1,234,567");
    }

    #[test]
    fn ticks_are_at_round_numbers() {
        let scale = Scale::linear(Quantity::Seconds, 0.0, 0.037, 6);
        assert_eq!(scale.unit.name, "ms");
        assert_eq!(scale.ticks, [0.0, 10.0, 20.0, 30.0]);
        assert_eq!(scale.label(10.0), "10");
        assert_eq!(scale.place(0.01), 10.0);
        let share = Scale::linear(Quantity::Share, 0.5, 1.0, 6);
        assert_eq!(share.ticks, [50.0, 60.0, 70.0, 80.0, 90.0, 100.0]);
        assert_eq!(share.name("test accuracy"), "test accuracy (%)");
    }

    #[test]
    fn logarithmic_ticks_thin_out() {
        let labels = |low, high| {
            let scale = Scale::logarithmic(Quantity::Seconds, low, high, 8);
            scale.ticks.iter().map(|tick| scale.label(*tick)).collect::<Vec<_>>()
        };
        assert_eq!(labels(0.5, 40.0), ["0.5", "1", "2", "5", "10", "20"]);
        assert_eq!(labels(1e-4, 100.0), ["0.0001", "0.001", "0.01", "0.1", "1", "10", "100"]);
    }
}
