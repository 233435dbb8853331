//! How much a push counts when the server adds it to its parameters.

use super::Versions;
use super::weighting::by_name;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The factor of a push. A delta is a sum of steps with the learning rate in them; published systems add it whole (FALCON,
/// ASGD), divide it by the number of workers (ADSP, WBSP), or by its age (staleness-aware SGD, Zhang et al. 2016).
///
/// Whole deltas of many workers are many times the learning rate, and momentum and delay multiply that again: eight workers
/// with momentum 0.9 diverge at rates at which one converges.
///
/// ```
/// use esync::policy::{PushScale, Versions};
///
/// assert_eq!(PushScale::Mean.factor(8, Versions(3)), 0.125);
/// assert_eq!(PushScale::Staleness.factor(8, Versions(3)), 0.25);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PushScale {
    /// 1: the deltas are summed.
    Sum,
    /// 1/K for K live workers.
    Mean,
    /// 1/(1 + τ) for a push that is τ versions old.
    Staleness,
}

impl PushScale {
    /// Every way.
    pub const ALL: [PushScale; 3] = [Self::Sum, Self::Mean, Self::Staleness];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::Staleness => "staleness",
        }
    }

    /// The factor of a push among `workers` live workers, which is `staleness` versions old.
    pub fn factor(self, workers: usize, staleness: Versions) -> f64 {
        match self {
            Self::Sum => 1.0,
            Self::Mean => 1.0 / workers.max(1) as f64,
            Self::Staleness => 1.0 / (1.0 + staleness.0 as f64),
        }
    }
}

impl fmt::Display for PushScale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PushScale {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        by_name("push scale", text, &Self::ALL, Self::name)
    }
}
