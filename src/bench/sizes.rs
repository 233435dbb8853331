//! Sizes as people write them, and series of sizes.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A number of bytes, with a binary suffix: `64`, `1K` or `1KiB` (1,024), `4M`, `1G`.
///
/// ```
/// use esync::bench::ByteSize;
/// assert_eq!("4MiB".parse::<ByteSize>()?.0, 4 << 20);
/// assert_eq!(ByteSize(3 << 10).to_string(), "3K");
/// # Ok::<(), esync::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub usize);

const SUFFIXES: [(&str, u32); 3] = [("G", 30), ("M", 20), ("K", 10)];

impl FromStr for ByteSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::Usage(format!("`{text}` is no size: write bytes, or 1K, 1KiB, 4M, 1G (powers of 1,024)"))
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let number: usize = number.parse().map_err(|_| wrong())?;
        let suffix = suffix.trim_start().to_ascii_uppercase();
        let letter = suffix.strip_suffix("IB").filter(|letter| !letter.is_empty()).unwrap_or(&suffix);
        let shift = match letter {
            "" | "B" => 0,
            _ => SUFFIXES.iter().find(|(name, _)| *name == letter).ok_or_else(wrong)?.1,
        };
        number.checked_mul(1 << shift).map(ByteSize).ok_or_else(wrong)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, shift): &&(&str, u32)| self.0 > 0 && self.0.is_multiple_of(1 << shift);
        match SUFFIXES.iter().find(fits) {
            Some((name, shift)) => write!(f, "{}{name}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// How a size follows from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many times as large.
    Factor(usize),
    /// So many bytes more.
    Bytes(usize),
}

/// The element counts of a sweep: from `first` to `last` bytes, rounded down to whole elements.
///
/// # Errors
/// `Usage` if the sweep would be empty or endless.
///
/// ```
/// use esync::bench::{ByteSize, Step, sweep_of};
/// assert_eq!(sweep_of(ByteSize(8), ByteSize(64), Step::Factor(2), 4)?, [2, 4, 8, 16]);
/// assert_eq!(sweep_of(ByteSize(8), ByteSize(64), Step::Bytes(20), 4)?, [2, 7, 12]);
/// # Ok::<(), esync::Error>(())
/// ```
pub fn sweep_of(first: ByteSize, last: ByteSize, step: Step, element_size: usize) -> Result<Vec<usize>> {
    if first > last {
        return Err(Error::Usage(format!("the smallest size, {first}, is above the largest, {last}")));
    }
    let (never_ends, what) = match step {
        Step::Factor(factor) => {
            (factor < 2, format!("a step factor of {factor} would never end; it is 2 or more"))
        }
        Step::Bytes(bytes) => (
            bytes < element_size,
            format!("a step of {bytes} bytes is less than an element of {element_size}"),
        ),
    };
    if first == last {
        return Ok(vec![first.0 / element_size]);
    }
    if never_ends {
        return Err(Error::Usage(what));
    }
    let mut counts = vec![first.0 / element_size];
    let mut bytes = first.0;
    let next = |bytes: usize| match step {
        // Nothing times anything is nothing, so the size after 0 is a factor times one element.
        Step::Factor(factor) => bytes.max(element_size).checked_mul(factor),
        Step::Bytes(more) => bytes.checked_add(more),
    };
    while let Some(larger) = next(bytes).filter(|&larger| larger <= last.0) {
        bytes = larger;
        counts.push(bytes / element_size);
    }
    counts.dedup();
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_nothing_else() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17B", 17),
            ("1K", 1024),
            ("1k", 1024),
            ("1KiB", 1024),
            ("2 MiB", 2 << 20),
            ("3G", 3 << 30),
        ] {
            assert_eq!(text.parse::<ByteSize>().map(|size| size.0).ok(), Some(bytes), "{text}");
        }
        for text in ["", "K", "1.5K", "-1", "1KB", "1X", "1iB", "99999999999G"] {
            let error = text.parse::<ByteSize>().expect_err(text);
            assert!(error.exit_code() == 2 && error.to_string().contains("1KiB"), "{error}");
        }
    }

    #[test]
    fn a_sweep_holds_both_ends() {
        let sweep = |first, last, step| sweep_of(ByteSize(first), ByteSize(last), step, 4).ok();
        assert_eq!(sweep(1024, 1024, Step::Factor(2)), Some(vec![256]));
        assert_eq!(sweep(1024, 1024, Step::Factor(1)), Some(vec![256]));
        assert_eq!(sweep(1024, 16384, Step::Factor(4)), Some(vec![256, 1024, 4096]));
        assert_eq!(sweep(0, 16, Step::Factor(2)), Some(vec![0, 2, 4]));
        assert_eq!(sweep(0, 17, Step::Bytes(8)), Some(vec![0, 2, 4]));
        assert_eq!(sweep(16, 8, Step::Factor(2)), None);
        assert_eq!(sweep(8, 16, Step::Factor(1)), None);
        assert_eq!(sweep(8, 16, Step::Bytes(3)), None);
        assert_eq!(sweep(8, 8, Step::Bytes(0)), Some(vec![2]));
    }
}
