//! The flags of `esync plot`.

use crate::error::{Error, Result};
use clap::ValueEnum;
use std::path::PathBuf;

/// The scale of the axes of time, samples and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Axis {
    /// Logarithmic where one run is much longer than another.
    #[default]
    Auto,
    /// From zero, equal distances for equal amounts.
    Linear,
    /// Equal distances for equal ratios.
    Log,
}

/// What `esync plot` is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {
    /// Directories that esync-train or esync sim wrote; that of a comparison stands for one run of each of its modes
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// Where the pictures go; files of the same names are replaced [default: RUN/plots, for several of them plots]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Tell the story of this round (from 1) in sentences instead of drawing
    #[arg(long, value_name = "ROUND", value_parser = clap::value_parser!(u64).range(1..), conflicts_with_all = ["out", "from", "seconds", "axis"])]
    pub explain: Option<u64>,
    /// Where the timeline begins, in seconds since training began
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, allow_negative_numbers = true)]
    pub from: f64,
    /// How long the timeline is [default: about five rounds]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub seconds: Option<f64>,
    /// Scale of the axes of time, samples and bytes
    #[arg(long, value_enum, default_value_t)]
    pub axis: Axis,
}

impl Flags {
    pub(super) fn check(&self) -> Result<()> {
        if !(self.from >= 0.0 && self.from.is_finite()) {
            return Err(Error::Usage(format!(
                "--from is {}; it must be seconds since training began, 0 or more",
                self.from
            )));
        }
        match self.seconds {
            Some(seconds) if !(seconds > 0.0 && seconds.is_finite()) => {
                Err(Error::Usage(format!("--seconds is {seconds}; it must be a positive number")))
            }
            _ => Ok(()),
        }
    }
}
