//! How the bound on the delay is found, and how it changes.

use super::{DataSample, mixture, spectral};
use crate::error::{Error, Result};
use crate::policy::by_name;
use crate::policy::{Job, PolicyOptions, Versions};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Where the bound comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StalenessRule {
    /// It stays as it is.
    #[default]
    Fixed,
    /// It grows with every pass over the training data.
    Epoch,
    /// It follows the size of what is pushed: large changes need less agreement.
    WeightDelta,
    /// It is computed once from the training data: how alike samples are.
    Spectral,
    /// It is computed once from the training data: how tight their clusters are.
    Gmm,
}

impl StalenessRule {
    /// Every rule.
    pub const ALL: [StalenessRule; 5] =
        [Self::Fixed, Self::Epoch, Self::WeightDelta, Self::Spectral, Self::Gmm];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Epoch => "epoch",
            Self::WeightDelta => "weight-delta",
            Self::Spectral => "spectral",
            Self::Gmm => "gmm",
        }
    }

    /// Whether it goes by the training data, of which the job must then hold a sample.
    pub fn needs_data(self) -> bool {
        matches!(self, Self::Spectral | Self::Gmm)
    }
}

impl fmt::Display for StalenessRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for StalenessRule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        by_name("staleness rule", text, &Self::ALL, Self::name)
    }
}

/// T of the weight-delta rule, reported best by its authors.
const WEIGHT_DELTA_FACTOR: f64 = 100.0;

/// The bound of the present moment, in versions.
///
/// ```
/// use esync::policy::Versions;
/// use esync::policy::bounded_delay::Bound;
///
/// let mut bound = Bound::weight_delta(100.0, Versions(32));
/// bound.pushed(32, 0.042);
/// assert_eq!(bound.versions(), Versions(4));
/// bound.pushed(32, 7.0);
/// assert_eq!(bound.versions(), Versions(32), "never above its largest value");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Bound {
    versions: u64,
    changes: Changes,
}

#[derive(Debug, Clone, PartialEq)]
enum Changes {
    Never,
    Epoch { first: u64, step: u64, epoch_samples: u64, samples: u64 },
    WeightDelta { factor: f64, most: u64 },
}

impl Bound {
    /// It stays as it is.
    pub fn fixed(versions: Versions) -> Self {
        Bound { versions: versions.0, changes: Changes::Never }
    }

    /// `first`, and `step` more after each pass over the training data, `epoch_samples` samples of all workers.
    pub fn epoch(first: Versions, step: Versions, epoch_samples: u64) -> Self {
        let (first, step, epoch_samples) = (first.0, step.0, epoch_samples.max(1));
        Bound { versions: first, changes: Changes::Epoch { first, step, epoch_samples, samples: 0 } }
    }

    /// `factor · ‖δ‖` of the newest push, rounded, and at most `most`.
    ///
    /// The published rule sums the first tensor's elements with their signs, which is negative half the time and then a full
    /// barrier. Here it is the Euclidean norm, of all that was pushed.
    pub fn weight_delta(factor: f64, most: Versions) -> Self {
        Bound { versions: most.0, changes: Changes::WeightDelta { factor, most: most.0 } }
    }

    /// `factor · workers · λ̄ / n`, rounded, and at most `most`: λ̄ is the mean of the ten smallest eigenvalues of the
    /// samples' similarity graph, n their number.
    pub fn spectral(sample: &DataSample, workers: usize, factor: f64, most: Versions) -> Self {
        Bound::fixed(rounded(factor * workers as f64 * spectral::connectivity(sample), most.0))
    }

    /// `factor · v / v̄`, rounded, and at most `most`: v is the samples' variance and v̄ that within the clusters of a mixture of
    /// Gaussians, both on the principal components.
    pub fn gmm(sample: &DataSample, factor: f64, most: Versions) -> Self {
        Bound::fixed(rounded(factor * mixture::tightness(sample), most.0))
    }

    pub(super) fn from_options(options: &PolicyOptions, job: &Job) -> Result<Bound> {
        check(options)?;
        let workers = job.size as u64;
        let given = options.staleness.map(Versions);
        let most = given.unwrap_or(Versions(4 * workers));
        let factor = |default| options.staleness_factor.unwrap_or(default);
        let rule = options.staleness_rule.unwrap_or_default();
        let sample = || {
            options.data_sample.as_deref().ok_or_else(|| {
                Error::Usage(format!(
                    "--staleness-rule {rule} goes by the training data, and this job has none; choose one of: fixed, epoch, \
                     weight-delta"
                ))
            })
        };
        Ok(match rule {
            StalenessRule::Fixed => Bound::fixed(given.unwrap_or(Versions(2 * workers))),
            StalenessRule::Epoch => {
                let step = Versions(options.staleness_step.unwrap_or(workers));
                Bound::epoch(given.unwrap_or(Versions(0)), step, job.shard_samples.iter().sum())
            }
            StalenessRule::WeightDelta => Bound::weight_delta(factor(WEIGHT_DELTA_FACTOR), most),
            StalenessRule::Spectral => Bound::spectral(sample()?, job.size, factor(1.0), most),
            StalenessRule::Gmm => Bound::gmm(sample()?, factor(1.0), most),
        })
    }

    /// The bound of this moment.
    pub fn versions(&self) -> Versions {
        Versions(self.versions)
    }

    /// A push has arrived: `samples` in it, and its norm.
    pub fn pushed(&mut self, pushed_samples: u64, norm: f64) {
        match &mut self.changes {
            Changes::Never => {}
            Changes::Epoch { first, step, epoch_samples, samples } => {
                *samples += pushed_samples;
                self.versions = first.saturating_add(step.saturating_mul(*samples / *epoch_samples));
            }
            Changes::WeightDelta { factor, most } => self.versions = rounded(*factor * norm, *most).0,
        }
    }
}

/// The nearest whole number from 0 to `most`; what is no number is 0.
fn rounded(bound: f64, most: u64) -> Versions {
    Versions((bound.round().max(0.0) as u64).min(most))
}

/// Refuses options of one rule that are given with another.
///
/// # Errors
/// `Usage`.
pub(crate) fn check(options: &PolicyOptions) -> Result<()> {
    let rule = options.staleness_rule.unwrap_or_default();
    if options.staleness_step.is_some() && rule != StalenessRule::Epoch {
        return Err(Error::Usage(format!("--staleness-step belongs to --staleness-rule epoch, not {rule}")));
    }
    match options.staleness_factor {
        None => Ok(()),
        Some(_) if matches!(rule, StalenessRule::Fixed | StalenessRule::Epoch) => Err(Error::Usage(format!(
            "--staleness-factor belongs to --staleness-rule weight-delta, spectral and gmm, not {rule}"
        ))),
        Some(factor) if factor > 0.0 && factor.is_finite() => Ok(()),
        Some(factor) => {
            Err(Error::Usage(format!("--staleness-factor is {factor}; it must be a positive number")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_grows_with_epochs() {
        let mut bound = Bound::epoch(Versions(1), Versions(3), 100);
        let seen: Vec<u64> = (0..5)
            .map(|_| {
                bound.pushed(50, 1.0);
                bound.versions().0
            })
            .collect();
        assert_eq!(seen, [1, 4, 4, 7, 7]);
    }

    #[test]
    fn the_bound_follows_the_norm_between_its_limits() {
        let mut bound = Bound::weight_delta(10.0, Versions(20));
        let seen = [0.0, 0.26, f64::NAN, 1e30, f64::INFINITY, 1.0].map(|norm| {
            bound.pushed(1, norm);
            bound.versions().0
        });
        assert_eq!(seen, [0, 3, 0, 20, 20, 10]);
    }

    #[test]
    fn bounds_from_data_are_limited_too() {
        let alike = DataSample::new(3, vec![1.0; 60]).unwrap();
        assert_eq!(Bound::spectral(&alike, 10, 1.0, Versions(40)).versions(), Versions(9));
        assert_eq!(Bound::spectral(&alike, 10, 100.0, Versions(40)).versions(), Versions(40));
        assert_eq!(Bound::gmm(&alike, 3.0, Versions(40)).versions(), Versions(3));
    }

    #[test]
    fn options_of_another_rule_are_refused() {
        let refuse = |options: PolicyOptions, words: &str| {
            let error = check(&options).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        let options = PolicyOptions { staleness_step: Some(2), ..PolicyOptions::default() };
        refuse(options, "belongs to --staleness-rule epoch, not fixed");
        let options = PolicyOptions { staleness_factor: Some(2.0), ..PolicyOptions::default() };
        refuse(options.clone(), "not fixed");
        let rule = Some(StalenessRule::Gmm);
        check(&PolicyOptions { staleness_rule: rule, ..options.clone() }).unwrap();
        refuse(
            PolicyOptions { staleness_rule: rule, staleness_factor: Some(-1.0), ..options },
            "must be a positive number",
        );
    }
}
