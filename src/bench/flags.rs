//! The flags of `esync-bench`: nccl-tests' letters where it has them.

use super::ByteSize;
use crate::collective::{Kind, Order};
use crate::error::{Error, Result};
use crate::reduce::{ElementType, Operator, WireFormat};
use crate::train::TransportChoice;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
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

/// The values of a flag, by name.
fn choice<T: Copy>(what: &str, all: &[T], name: impl Fn(T) -> String, text: &str) -> Result<T> {
    all.iter().copied().find(|value| name(*value) == text).ok_or_else(|| {
        let names: Vec<String> = all.iter().map(|value| format!("`{}`", name(*value))).collect();
        Error::Usage(format!("there is no {what} `{text}`; choose one of {}", names.join(", ")))
    })
}

fn kind(text: &str) -> Result<Kind> {
    choice("operation", &Kind::ALL, |kind| kind.to_string(), text)
}

fn order(text: &str) -> Result<Order> {
    let all = [Order::Auto, Order::Canonical, Order::Rank, Order::Fastest];
    choice("order", &all, |order| order.to_string(), text)
}

fn element(text: &str) -> Result<ElementType> {
    choice("type", &ElementType::ALL, |element| element.name().into(), text)
}

fn operator(text: &str) -> Result<Operator> {
    let text = match text {
        "avg" => "average",
        "prod" => "product",
        other => other,
    };
    choice("operator", &Operator::ALL, |operator| operator.name().into(), text)
}

fn zero_or_one(text: &str) -> Result<bool> {
    choice("choice", &[false, true], |value| u8::from(value).to_string(), text)
}

fn seconds(text: &str) -> Result<Duration> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| Error::Usage(format!("`{text}` is no number of seconds")))
}

fn timeout(text: &str) -> Result<Duration> {
    let parsed = humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero());
    parsed.ok_or_else(|| Error::Usage(format!("`{text}` is no duration: write a unit, such as 30s or 500ms")))
}

/// Every flag, with its default.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// What to measure: all-reduce, reduce-scatter, all-gather, broadcast, reduce
    #[arg(long, value_parser = kind, default_value = "all-reduce", help_heading = "What")]
    pub op: Kind,
    /// The algorithms: `all`, or names separated by commas. `all` leaves out, with a note, what refuses the operation
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "all", help_heading = "What")]
    pub collective: Vec<String>,
    /// The order of summation: auto, canonical, rank, fastest
    #[arg(long, value_parser = order, default_value = "auto", help_heading = "What")]
    pub order: Order,
    /// What an all-reduce's vectors of f32 travel as: f32, f16, bf16, int8. All but f32 round them, and take the two-shot form
    #[arg(long, value_name = "FORMAT", default_value_t, help_heading = "What")]
    pub wire: WireFormat,
    /// Type of the elements: f32, f64, i32, i64, f16, bf16
    #[arg(short = 'd', long = "type", visible_alias = "datatype", value_name = "TYPE", value_parser = element, default_value = "f32", help_heading = "What")]
    pub element: ElementType,
    /// Operator of a reduction: sum, average, min, max, product
    #[arg(short = 'o', long, visible_alias = "redop", value_parser = operator, default_value = "sum", help_heading = "What")]
    pub operator: Operator,

    /// Smallest vector, in bytes of one rank; K, M, G are powers of 1,024
    #[arg(
        short = 'b',
        long,
        visible_alias = "minbytes",
        value_name = "SIZE",
        default_value = "1K",
        help_heading = "Sizes and repetitions"
    )]
    pub min_bytes: ByteSize,
    /// Largest vector [default: 16M, or -b if that is more]
    #[arg(
        short = 'e',
        long,
        visible_alias = "maxbytes",
        value_name = "SIZE",
        help_heading = "Sizes and repetitions"
    )]
    pub max_bytes: Option<ByteSize>,
    /// Each size is this many times the one before
    #[arg(
        short = 'f',
        long,
        visible_alias = "stepfactor",
        value_name = "FACTOR",
        default_value_t = 4,
        help_heading = "Sizes and repetitions"
    )]
    pub step_factor: usize,
    /// Timed iterations of each size, at most
    #[arg(short = 'n', long, visible_alias = "iters", value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Sizes and repetitions")]
    pub iterations: u32,
    /// Untimed iterations before
    #[arg(
        short = 'w',
        long,
        visible_alias = "warmup_iters",
        value_name = "COUNT",
        default_value_t = 3,
        help_heading = "Sizes and repetitions"
    )]
    pub warm_up: u32,
    /// Seconds after which a size ends before its last iteration
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1", help_heading = "Sizes and repetitions")]
    pub seconds_per_size: Duration,

    /// Where the bytes travel
    #[arg(long, value_enum, default_value_t, help_heading = "Run")]
    pub transport: TransportChoice,
    /// Run as this many threads of one process, without MPI
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Run")]
    pub ranks: Option<u16>,
    /// 1: check every element of the results, and end with exit code 1 if one is wrong; 0: do not
    #[arg(short = 'c', long, value_name = "0|1", value_parser = zero_or_one, action = clap::ArgAction::Set, default_value = "1", help_heading = "Run")]
    pub check: bool,
    /// Longest single wait for another rank
    #[arg(long, value_name = "TIME", value_parser = timeout, default_value = "60s", help_heading = "Run")]
    pub timeout: Duration,

    /// How results are written
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    pub format: Format,
    /// Write the results to this file instead of standard output
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
}
