//! How the local learning rate changes over a job: by the samples of *all* workers, never by a worker's own steps, which
//! would give fast workers another rate than slow ones.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

/// The rate as a factor of the learning rate, by the share of the sample budget that is done.
///
/// ```
/// use esync::policy::Schedule;
/// let steps: Schedule = "steps:0.5,0.75:0.1".parse()?;
/// assert_eq!(steps.factor(0.4), 1.0);
/// assert_eq!(steps.factor(0.5), 0.1);
/// assert!((steps.factor(0.9) - 0.01).abs() < 1e-12);
/// assert!((Schedule::Cosine.factor(0.5) - 0.5).abs() < 1e-12);
/// # Ok::<(), esync::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Schedule {
    /// The learning rate itself, throughout.
    #[default]
    Constant,
    /// Half a cosine, from the learning rate down to 0 (Loshchilov and Hutter 2017, without restarts).
    Cosine,
    /// At each of these shares of the budget the rate is multiplied by the factor.
    Steps {
        /// From 0 to 1, in ascending order.
        at: Vec<f64>,
        /// Above 0.
        factor: f64,
    },
}

impl Schedule {
    /// The factor when `done`, a share of the budget, is done. Beyond the budget it stays what it was at its end.
    pub fn factor(&self, done: f64) -> f64 {
        let done = done.clamp(0.0, 1.0);
        match self {
            Schedule::Constant => 1.0,
            Schedule::Cosine => 0.5 * (1.0 + (PI * done).cos()),
            Schedule::Steps { at, factor } => factor.powi(at.iter().filter(|&&at| done >= at).count() as i32),
        }
    }

    /// The share of the budget at which the rate first falls by a step.
    pub fn first_decay(&self) -> Option<f64> {
        match self {
            Schedule::Steps { at, .. } => at.first().copied(),
            Schedule::Constant | Schedule::Cosine => None,
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schedule::Constant => f.write_str("constant"),
            Schedule::Cosine => f.write_str("cosine"),
            Schedule::Steps { at, factor } => {
                let at: Vec<String> = at.iter().map(f64::to_string).collect();
                write!(f, "steps:{}:{factor}", at.join(","))
            }
        }
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::Usage(format!(
                "`{text}` is no schedule of the learning rate: write constant, cosine, or steps:0.5,0.75:0.1 (at these shares \
                 of the sample budget, in ascending order, the rate is multiplied by the last number)"
            ))
        };
        match text {
            "constant" => return Ok(Schedule::Constant),
            "cosine" => return Ok(Schedule::Cosine),
            _ => {}
        }
        let (at, factor) =
            text.strip_prefix("steps:").and_then(|rest| rest.split_once(':')).ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<f64>().map_err(|_| wrong());
        let at = at.split(',').map(number).collect::<Result<Vec<f64>>>()?;
        let factor = number(factor)?;
        let in_order = at.is_sorted_by(|a, b| a < b);
        let fits = at.iter().all(|at| (0.0..=1.0).contains(at)) && factor > 0.0 && factor.is_finite();
        if in_order && fits { Ok(Schedule::Steps { at, factor }) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for Schedule {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Schedule> for String {
    fn from(schedule: Schedule) -> String {
        schedule.to_string()
    }
}

/// A job's learning rate at every moment: a schedule and a warm-up over a budget of samples of all workers.
///
/// ```
/// use esync::policy::{LearningRate, Schedule};
/// let rate = LearningRate { base: 0.4, schedule: Schedule::Cosine, warmup: 0.1, budget_samples: 1000 };
/// assert_eq!(rate.after(25), 0.1 * Schedule::Cosine.factor(0.025));
/// assert!(rate.after(1000) < 1e-9);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LearningRate {
    /// The learning rate that the factors are of.
    pub base: f64,
    /// How it changes.
    pub schedule: Schedule,
    /// The share of the budget over which the rate rises from 0.
    pub warmup: f64,
    /// The budget in samples of all workers.
    pub budget_samples: u64,
}

impl LearningRate {
    /// The rate of a step with which `global_samples` samples of all workers are done.
    pub fn after(&self, global_samples: u64) -> f64 {
        let done = global_samples as f64 / self.budget_samples.max(1) as f64;
        let warmup = if done < self.warmup { done / self.warmup } else { 1.0 };
        self.base * warmup * self.schedule.factor(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_written_as_they_are_read() {
        for text in ["constant", "cosine", "steps:0.5:0.1", "steps:0.25,0.5,1:0.5"] {
            assert_eq!(text.parse::<Schedule>().unwrap().to_string(), text);
        }
        for text in
            ["", "linear", "steps:0.5", "steps:0.5,0.4:0.1", "steps:1.5:0.1", "steps:0.5:0", "steps::1"]
        {
            let error = text.parse::<Schedule>().unwrap_err().to_string();
            assert!(error.contains("is no schedule") && error.contains("steps:0.5,0.75:0.1"), "{error}");
        }
    }

    #[test]
    fn a_warm_up_rises_from_nothing_to_the_schedule() {
        let schedule = "steps:0.5:0.1".parse().unwrap();
        let rate = LearningRate { base: 1.0, schedule, warmup: 0.2, budget_samples: 100 };
        let rates = [1, 10, 20, 49, 50, 100, 300].map(|samples| rate.after(samples));
        for (rate, expected) in rates.iter().zip([0.05, 0.5, 1.0, 1.0, 0.1, 0.1, 0.1]) {
            assert!((rate - expected).abs() < 1e-12, "{rates:?}");
        }
        let without = LearningRate { warmup: 0.0, ..rate };
        assert_eq!(without.after(0), 1.0);
    }
}
