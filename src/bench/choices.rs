//! What the flags of `esync-bench` take: choices by name, and durations.

use crate::collective::{Kind, Order};
use crate::error::{Error, Result};
use crate::reduce::{ElementType, Operator};
use clap::ValueEnum;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// What `--format` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Aligned columns, for people.
    #[default]
    Table,
    /// Comma-separated values with a header line.
    Csv,
    /// One JSON object a line.
    Json,
}

/// What `--placement` takes: where the result goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Placement {
    /// It replaces the input.
    In,
    /// Into a second vector; the input stays as it is. Only all-reduce has this form.
    Out,
    /// Both, each in columns of its own.
    #[default]
    Both,
}

/// What `--buffers` takes: whose memory the vectors lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Buffers {
    /// Memory that the other ranks of the host can read and write (`Communicator::alloc`).
    Registered,
    /// Ordinary memory of one rank.
    Private,
    /// Both, each in rows of its own; one where the transport makes no difference.
    #[default]
    Both,
}

/// What `--refresh` takes: what happens to a vector before each iteration, outside the timed part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Refresh {
    /// Nothing: the caches keep what the iteration before left there.
    None,
    /// The next one of several vectors is used.
    Rotate,
    /// Each rank writes its vector anew, as training does.
    #[default]
    Rewrite,
}

/// What `--timing` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timing {
    /// Each iteration is timed by itself, after a barrier.
    #[default]
    Barrier,
    /// Iterations follow each other without a barrier, and are timed together in batches.
    BackToBack,
}

/// A switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Switch {
    /// Do it.
    #[default]
    On,
    /// Leave it out.
    Off,
}

/// The values of a flag, by name.
fn choice<T: Copy>(what: &str, all: &[T], name: impl Fn(T) -> String, text: &str) -> Result<T> {
    all.iter().copied().find(|value| name(*value) == text).ok_or_else(|| {
        let names: Vec<String> = all.iter().map(|value| format!("`{}`", name(*value))).collect();
        Error::Usage(format!("there is no {what} `{text}`; choose one of {}", names.join(", ")))
    })
}

pub(super) fn kind(text: &str) -> Result<Kind> {
    choice("operation", &Kind::ALL, |kind| kind.to_string(), text)
}

pub(super) fn order(text: &str) -> Result<Order> {
    let all = [Order::Auto, Order::Canonical, Order::Rank, Order::Fastest];
    choice("order", &all, |order| order.to_string(), text)
}

pub(super) fn element(text: &str) -> Result<ElementType> {
    choice("type", &ElementType::ALL, |element| element.name().into(), text)
}

pub(super) fn operator(text: &str) -> Result<Operator> {
    let text = match text {
        "avg" => "average",
        "prod" => "product",
        other => other,
    };
    choice("operator", &Operator::ALL, |operator| operator.name().into(), text)
}

pub(super) fn zero_or_one(text: &str) -> Result<bool> {
    choice("choice", &[false, true], |value| u8::from(value).to_string(), text)
}

pub(super) fn seconds(text: &str) -> Result<Duration> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| Error::Usage(format!("`{text}` is no number of seconds")))
}

pub(super) fn timeout(text: &str) -> Result<Duration> {
    let parsed = humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero());
    parsed.ok_or_else(|| Error::Usage(format!("`{text}` is no duration: write a unit, such as 30s or 500ms")))
}

impl fmt::Display for Refresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refresh::None => "none",
            Refresh::Rotate => "rotate",
            Refresh::Rewrite => "rewrite",
        })
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Timing::Barrier => "barrier",
            Timing::BackToBack => "back-to-back",
        })
    }
}
