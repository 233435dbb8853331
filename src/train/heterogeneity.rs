//! Unequal workers on one machine: `--slow` and `--slow-link`.

use crate::error::{Error, Result};
use crate::transport::Rank;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How a rank is slowed down after each of its steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Slowness {
    /// `4x`: a step takes four times as long; the rank sleeps three times that step's wall time.
    Factor(f64),
    /// `40ms`: the rank sleeps as long after every step.
    Fixed(Duration),
}

impl Slowness {
    /// How long to sleep after a step of `step_seconds`.
    ///
    /// ```
    /// use esync::train::Slowness;
    /// use std::time::Duration;
    /// assert_eq!(Slowness::Factor(4.0).pause(0.010), Duration::from_millis(30));
    /// ```
    pub fn pause(&self, step_seconds: f64) -> Duration {
        match *self {
            Slowness::Factor(factor) => {
                Duration::try_from_secs_f64((factor - 1.0) * step_seconds).unwrap_or_default()
            }
            Slowness::Fixed(pause) => pause,
        }
    }
}

impl FromStr for Slowness {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(factor) = text.strip_suffix('x') {
            return match factor.parse::<f64>() {
                Ok(factor) if factor.is_finite() && factor >= 1.0 => Ok(Slowness::Factor(factor)),
                _ => {
                    Err(Error::Usage(format!("`{text}` is no slowness: a factor is at least 1x, such as 4x")))
                }
            };
        }
        parse_delay(text).map(Slowness::Fixed)
    }
}

impl fmt::Display for Slowness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Slowness::Factor(factor) => write!(f, "{factor}x"),
            Slowness::Fixed(pause) => write!(f, "{}", humantime::format_duration(*pause)),
        }
    }
}

fn parse_delay(text: &str) -> Result<Duration> {
    humantime::parse_duration(text)
        .map_err(|_| {
            Error::Usage(format!(
                "`{text}` needs a unit: a factor such as 4x, or a time such as 40ms or 1.5s"
            ))
        })
        .or_else(|error| fractional(text).ok_or(error))
}

/// `1.5s`, `0.5ms`: the duration grammar has whole numbers only.
fn fractional(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(split);
    let one = humantime::parse_duration(&format!("1{unit}")).ok()?;
    let number: f64 = number.parse().ok()?;
    Duration::try_from_secs_f64(number * one.as_secs_f64()).ok()
}

/// A list such as `3:4x,7:200ms`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SlowRanks(pub Vec<(Rank, Slowness)>);

/// A list such as `2:5ms`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SlowLinks(pub Vec<(Rank, Duration)>);

fn parse_list<T>(flag: &str, text: &str, value: impl Fn(&str) -> Result<T>) -> Result<Vec<(Rank, T)>> {
    let mut list: Vec<(Rank, T)> = Vec::new();
    for item in text.split(',').filter(|item| !item.is_empty()) {
        let Some((rank, amount)) = item.split_once(':') else {
            return Err(Error::Usage(format!("{flag} `{item}`: write RANK:AMOUNT, such as 3:4x")));
        };
        let rank: Rank =
            rank.trim().parse().map_err(|_| Error::Usage(format!("{flag} `{item}`: `{rank}` is no rank")))?;
        if list.iter().any(|(other, _)| *other == rank) {
            return Err(Error::Usage(format!("{flag} names rank {rank} twice")));
        }
        let amount =
            value(amount.trim()).map_err(|error| Error::Usage(format!("{flag} `{item}`: {error}")))?;
        list.push((rank, amount));
    }
    Ok(list)
}

fn check_ranks<T>(flag: &str, list: &[(Rank, T)], size: usize) -> Result<()> {
    match list.iter().find(|(rank, _)| *rank >= size) {
        Some((rank, _)) => Err(Error::Usage(format!(
            "{flag} names rank {rank}, but the ranks are 0 to {}",
            size.saturating_sub(1)
        ))),
        None => Ok(()),
    }
}

impl SlowRanks {
    /// The slowness of `rank`.
    ///
    /// # Errors
    /// `Usage` if the list names a rank that does not exist.
    pub fn of(&self, rank: Rank, size: usize) -> Result<Option<Slowness>> {
        check_ranks("--slow", &self.0, size)?;
        Ok(self.0.iter().find(|(slow, _)| *slow == rank).map(|(_, slowness)| *slowness))
    }
}

impl SlowLinks {
    /// The delay of every rank's messages.
    ///
    /// # Errors
    /// `Usage` if the list names a rank that does not exist.
    pub fn delays(&self, size: usize) -> Result<Vec<Duration>> {
        check_ranks("--slow-link", &self.0, size)?;
        let mut delays = vec![Duration::ZERO; size];
        self.0.iter().for_each(|&(rank, delay)| delays[rank] = delay);
        Ok(delays)
    }
}

impl FromStr for SlowRanks {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        parse_list("--slow", text, str::parse).map(SlowRanks)
    }
}

impl FromStr for SlowLinks {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        parse_list("--slow-link", text, parse_delay).map(SlowLinks)
    }
}

impl TryFrom<String> for SlowRanks {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl TryFrom<String> for SlowLinks {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<SlowRanks> for String {
    fn from(list: SlowRanks) -> String {
        let items: Vec<String> = list.0.iter().map(|(rank, slowness)| format!("{rank}:{slowness}")).collect();
        items.join(",")
    }
}

impl From<SlowLinks> for String {
    fn from(list: SlowLinks) -> String {
        let item =
            |(rank, delay): &(Rank, Duration)| format!("{rank}:{}", humantime::format_duration(*delay));
        list.0.iter().map(item).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let slow: SlowRanks = "3:4x,7:200ms".parse().unwrap();
        assert_eq!(slow.of(3, 8).unwrap(), Some(Slowness::Factor(4.0)));
        assert_eq!(slow.of(7, 8).unwrap(), Some(Slowness::Fixed(Duration::from_millis(200))));
        assert_eq!(slow.of(0, 8).unwrap(), None);
        assert_eq!(String::from(slow), "3:4x,7:200ms");
        let links: SlowLinks = "2:1.5ms".parse().unwrap();
        assert_eq!(links.delays(3).unwrap()[2], Duration::from_micros(1500));
    }

    #[test]
    fn nonsense_is_refused_with_the_remedy() {
        let check = |text: &str, words: &str| {
            let error = text.parse::<SlowRanks>().unwrap_err();
            assert!(error.to_string().contains(words), "{text}: {error}");
            assert_eq!(error.exit_code(), 2);
        };
        check("3:4", "needs a unit");
        check("3", "RANK:AMOUNT");
        check("x:4x", "`x` is no rank");
        check("3:0.5x", "at least 1x");
        check("3:4x,3:5x", "twice");
        let slow: SlowRanks = "8:4x".parse().unwrap();
        assert!(slow.of(0, 8).unwrap_err().to_string().contains("the ranks are 0 to 7"));
    }
}
