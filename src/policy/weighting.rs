//! How much each worker's delta counts in the mean.

use super::MemberReport;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How deltas are weighed. An exchange *sums* what the workers sent, so each multiplies its delta by its weight before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weighting {
    /// `1/K` for each of K workers.
    #[default]
    Uniform,
    /// By the samples of this round: `samples / all samples`.
    Samples,
    /// By the samples of the worker's shard: `n_k / n` (the ESync paper).
    Shard,
    /// `(Σ p_j i_j) · p_k / i_k` with `i_k` local steps and `p = 1/K`: every worker moves the mean as if all had done the mean
    /// number of steps, so that fast workers do not pull it towards their own data (FedNova, Wang et al. 2020).
    Steps,
}

impl Weighting {
    /// Every way.
    pub const ALL: [Weighting; 4] = [Self::Uniform, Self::Samples, Self::Shard, Self::Steps];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Samples => "samples",
            Self::Shard => "shard",
            Self::Steps => "steps",
        }
    }
}

impl fmt::Display for Weighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Weighting {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        by_name("weighting", text, &Self::ALL, Self::name)
    }
}

/// Finds a value by its name; the error lists the names.
pub(super) fn by_name<T: Copy>(what: &str, text: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T> {
    all.iter().copied().find(|&value| name(value) == text).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|&value| name(value)).collect();
        Error::Usage(format!("unknown {what} `{text}`; choose one of: {}", names.join(", ")))
    })
}

/// The factor by which each member multiplies its delta before the sum, in the order of `members`.
///
/// `shard_samples` holds the samples of every rank's shard, by rank; only [`Weighting::Shard`] reads it. All ranks see the
/// same figures and compute the same weights. Where a weighting has nothing to go by (no samples at all), it is uniform. With
/// [`Weighting::Steps`] a worker without steps, whose delta is zero, has weight 0 and is not counted in K.
///
/// ```
/// use esync::policy::{LocalSteps, MemberReport, Weighting, weights};
///
/// let member = |rank, steps, samples| MemberReport {
///     rank,
///     local_steps: LocalSteps(steps),
///     samples,
///     step_seconds: 0.1,
///     transfer_seconds: 0.0,
///     loss: 1.0,
/// };
/// let members = [member(0, 3, 96), member(1, 1, 32)];
/// assert_eq!(weights(Weighting::Uniform, &members, &[]), [0.5, 0.5]);
/// assert_eq!(weights(Weighting::Samples, &members, &[]), [0.75, 0.25]);
/// assert_eq!(weights(Weighting::Shard, &members, &[100, 300]), [0.25, 0.75]);
/// // Deltas of 3 and 1 steps, each scaled to the mean number of 2 steps, then halved.
/// assert_eq!(weights(Weighting::Steps, &members, &[]), [1.0 / 3.0, 1.0]);
/// ```
pub fn weights(weighting: Weighting, members: &[MemberReport], shard_samples: &[u64]) -> Vec<f64> {
    match weighting {
        Weighting::Uniform => shares(members, |_| 1),
        Weighting::Samples => shares(members, |member| member.samples),
        Weighting::Shard => shares(members, |member| shard_samples.get(member.rank).copied().unwrap_or(0)),
        Weighting::Steps => normalised_by_steps(members),
    }
}

fn shares(members: &[MemberReport], figure: impl Fn(&MemberReport) -> u64) -> Vec<f64> {
    let total: u64 = members.iter().map(&figure).sum();
    if total == 0 {
        return vec![1.0 / members.len() as f64; members.len()];
    }
    members.iter().map(|member| figure(member) as f64 / total as f64).collect()
}

fn normalised_by_steps(members: &[MemberReport]) -> Vec<f64> {
    let counted = members.iter().filter(|member| member.local_steps.0 > 0).count();
    if counted == 0 {
        return vec![1.0 / members.len() as f64; members.len()];
    }
    let share = 1.0 / counted as f64;
    let mean_steps = members.iter().map(|member| member.local_steps.0).sum::<u64>() as f64 * share;
    members
        .iter()
        .map(|member| match member.local_steps.0 {
            0 => 0.0,
            steps => mean_steps * share / steps as f64,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::LocalSteps;

    fn members(steps_and_samples: &[(u64, u64)]) -> Vec<MemberReport> {
        steps_and_samples
            .iter()
            .enumerate()
            .map(|(rank, &(steps, samples))| MemberReport {
                rank,
                local_steps: LocalSteps(steps),
                samples,
                step_seconds: 1.0,
                transfer_seconds: 0.0,
                loss: 1.0,
            })
            .collect()
    }

    #[test]
    fn a_rank_without_steps_is_left_out() {
        let members = members(&[(4, 40), (0, 0), (2, 20)]);
        assert_eq!(weights(Weighting::Steps, &members, &[]), [3.0 * 0.5 / 4.0, 0.0, 3.0 * 0.5 / 2.0]);
        assert_eq!(weights(Weighting::Samples, &members, &[]), [40.0 / 60.0, 0.0, 20.0 / 60.0]);
    }

    #[test]
    fn nothing_to_go_by_is_uniform() {
        for weighting in Weighting::ALL {
            assert_eq!(weights(weighting, &members(&[(0, 0), (0, 0)]), &[]), [0.5, 0.5], "{weighting}");
            assert_eq!(weights(weighting, &members(&[(3, 24)]), &[24]), [1.0], "{weighting}");
            assert!(weights(weighting, &[], &[]).is_empty());
        }
    }

    #[test]
    fn names_are_the_same_everywhere() {
        for weighting in Weighting::ALL {
            assert_eq!(weighting.to_string().parse::<Weighting>().ok(), Some(weighting));
            assert_eq!(serde_json::to_string(&weighting).ok(), Some(format!("\"{weighting}\"")));
        }
        let error = "size".parse::<Weighting>().map_err(|error| error.to_string());
        let words = "unknown weighting `size`; choose one of: uniform, samples, shard, steps";
        assert_eq!(error, Err(words.to_string()));
    }
}
