//! How long a worker's steps take.

use crate::data::random::{generator, normal, symmetric};
use crate::error::{Error, Result};
use std::sync::Arc;

/// What a worker's step takes before jitter and pauses, in seconds.
#[derive(Debug, Clone, PartialEq)]
pub enum StepSeconds {
    /// Every step the same.
    Constant(f64),
    /// One step after the other; after the last, from the first again.
    Trace(Arc<[f64]>),
}

/// How steps vary by chance. Each step has a number of its own, so that what happens elsewhere does not change it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Jitter {
    /// Not at all.
    #[default]
    None,
    /// Times `1 − share` to `1 + share`, each equally likely.
    Uniform {
        /// 0 to below 1.
        share: f64,
    },
    /// Times a normal variate around 1, cut off at a tenth.
    Normal {
        /// The standard deviation, as a share.
        share: f64,
    },
    /// Times `e^(σ z)` with a standard normal z: a median of 1, and now and then a very slow step.
    LogNormal {
        /// σ.
        sigma: f64,
    },
}

/// A stretch of time in which a worker computes nothing. Messages still travel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pause {
    /// When it begins, in seconds since training began.
    pub at_seconds: f64,
    /// How long it lasts.
    pub seconds: f64,
}

/// How one simulated worker behaves.
///
/// ```
/// use esync::sim::{Pause, WorkerBehaviour};
///
/// let mut worker = WorkerBehaviour::constant(2.0);
/// worker.pauses.push(Pause { at_seconds: 3.0, seconds: 10.0 });
/// // The step of 2 s that begins at 2 s is interrupted after one second.
/// assert_eq!(worker.ends_at(2.0, 2.0), 14.0);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerBehaviour {
    /// Seconds for a step of the job's batch size; a changed batch size changes them in proportion.
    pub step_seconds: StepSeconds,
    /// How they vary.
    pub jitter: Jitter,
    /// By increasing time, without overlap.
    pub pauses: Vec<Pause>,
    /// When the worker ends without a word.
    pub dies_at_seconds: Option<f64>,
    /// What its memory holds, if that is limited. The least of all workers' bounds how many samples a policy that sizes data
    /// gives anybody, if `--memory-samples` does not.
    pub memory_bytes: Option<u64>,
}

/// No step is shorter than this share of what it takes without jitter.
const SHORTEST_SHARE: f64 = 0.1;

impl WorkerBehaviour {
    /// Every step takes `seconds`.
    pub fn constant(seconds: f64) -> Self {
        WorkerBehaviour {
            step_seconds: StepSeconds::Constant(seconds),
            jitter: Jitter::None,
            pauses: Vec::new(),
            dies_at_seconds: None,
            memory_bytes: None,
        }
    }

    /// Seconds of work of step `number` (from 0) of worker `rank`, pauses not counted.
    pub fn work_seconds(&self, seed: u64, rank: usize, number: u64) -> f64 {
        let seconds = match &self.step_seconds {
            StepSeconds::Constant(seconds) => *seconds,
            StepSeconds::Trace(trace) => trace[(number % trace.len().max(1) as u64) as usize],
        };
        let rng = || generator(b"simsteps", seed, number, rank as u64);
        let factor = match self.jitter {
            Jitter::None => return seconds,
            Jitter::Uniform { share } => 1.0 + share * f64::from(symmetric(&mut rng())),
            Jitter::Normal { share } => 1.0 + share * normal(&mut rng()),
            Jitter::LogNormal { sigma } => (sigma * normal(&mut rng())).exp(),
        };
        seconds * factor.max(SHORTEST_SHARE)
    }

    /// When work of `seconds` that begins at `start` is done, both in seconds since training began.
    pub fn ends_at(&self, start: f64, seconds: f64) -> f64 {
        let mut end = start + seconds;
        for pause in &self.pauses {
            let over = pause.at_seconds + pause.seconds;
            if pause.at_seconds < end && start < over {
                // Work that would begin within the pause begins after it.
                end += over - pause.at_seconds.max(start);
            }
        }
        end
    }

    /// Refuses what cannot be simulated; `at` says whose behaviour it is.
    ///
    /// # Errors
    /// `Usage` with the quantity and its value.
    pub fn check(&self, at: &str) -> Result<()> {
        let refuse = |what: String| Err(Error::Usage(format!("{at}: {what}")));
        let steps: &[f64] = match &self.step_seconds {
            StepSeconds::Constant(seconds) => std::slice::from_ref(seconds),
            StepSeconds::Trace(trace) => trace,
        };
        if steps.is_empty() {
            return refuse("its trace of step times is empty".into());
        }
        if let Some(seconds) = steps.iter().find(|seconds| !(**seconds > 0.0 && **seconds <= MOST_SECONDS)) {
            return refuse(format!("a step of {seconds} s; it must be above 0 and at most {MOST_SECONDS} s"));
        }
        match self.jitter {
            Jitter::Uniform { share } if !(0.0..1.0).contains(&share) => {
                return refuse(format!("a uniform jitter of {share}; it must be from 0 to below 1"));
            }
            Jitter::Normal { share: size } | Jitter::LogNormal { sigma: size }
                if !(0.0..=MOST_JITTER).contains(&size) =>
            {
                return refuse(format!("a jitter of {size}; it must be from 0 to {MOST_JITTER}"));
            }
            _ => {}
        }
        let mut free_from = 0.0;
        for Pause { at_seconds, seconds } in &self.pauses {
            if !(*at_seconds >= free_from && *seconds >= 0.0 && at_seconds + seconds <= MOST_SECONDS) {
                return refuse(format!(
                    "a pause of {seconds} s at {at_seconds} s; pauses are not negative, follow each other and end before \
                     {MOST_SECONDS} s"
                ));
            }
            free_from = at_seconds + seconds;
        }
        match self.dies_at_seconds {
            Some(at) if !(0.0..=MOST_SECONDS).contains(&at) => {
                refuse(format!("a death at {at} s; it must be from 0 to {MOST_SECONDS} s"))
            }
            _ => Ok(()),
        }
    }
}

/// Three years. The clock counts nanoseconds in 64 bits, which last for centuries.
pub(crate) const MOST_SECONDS: f64 = 1e8;

/// The greatest standard deviation of jitter.
const MOST_JITTER: f64 = 3.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_delay_work_that_meets_them() {
        let mut worker = WorkerBehaviour::constant(1.0);
        worker.pauses =
            vec![Pause { at_seconds: 1.0, seconds: 2.0 }, Pause { at_seconds: 4.0, seconds: 1.0 }];
        assert_eq!(worker.ends_at(0.0, 1.0), 1.0, "done when the pause begins");
        assert_eq!(worker.ends_at(0.5, 1.0), 3.5);
        assert_eq!(worker.ends_at(2.0, 0.5), 3.5, "begins after the pause");
        assert_eq!(worker.ends_at(0.5, 2.0), 5.5, "two pauses");
        assert_eq!(worker.ends_at(9.0, 1.0), 10.0);
    }

    #[test]
    fn jitter_is_the_same_for_the_same_step() {
        for jitter in
            [Jitter::Uniform { share: 0.2 }, Jitter::Normal { share: 0.2 }, Jitter::LogNormal { sigma: 0.2 }]
        {
            let worker = WorkerBehaviour { jitter, ..WorkerBehaviour::constant(1.0) };
            let draw = |rank, number| worker.work_seconds(1, rank, number);
            assert_eq!(draw(3, 7), draw(3, 7));
            assert!(draw(3, 7) != draw(3, 8) && draw(3, 7) != draw(2, 7));
            let mean = (0..4000).map(|number| draw(0, number)).sum::<f64>() / 4000.0;
            assert!((mean - 1.0).abs() < 0.05, "{jitter:?}: {mean}");
        }
    }

    #[test]
    fn traces_repeat() {
        let trace = StepSeconds::Trace([1.0, 2.0, 3.0].into());
        let worker = WorkerBehaviour { step_seconds: trace, ..WorkerBehaviour::constant(0.0) };
        let steps: Vec<f64> = (0..5).map(|number| worker.work_seconds(1, 0, number)).collect();
        assert_eq!(steps, [1.0, 2.0, 3.0, 1.0, 2.0]);
    }

    #[test]
    fn absurd_behaviour_is_refused() {
        let check = |change: fn(&mut WorkerBehaviour), words: &str| {
            let mut worker = WorkerBehaviour::constant(1.0);
            change(&mut worker);
            let error = worker.check("worker 3").unwrap_err();
            assert!(
                error.to_string().starts_with("worker 3: ") && error.to_string().contains(words),
                "{error}"
            );
            assert_eq!(error.exit_code(), 2);
        };
        check(|worker| worker.step_seconds = StepSeconds::Constant(-1.0), "a step of -1 s");
        check(|worker| worker.step_seconds = StepSeconds::Trace([].into()), "empty");
        check(|worker| worker.step_seconds = StepSeconds::Trace([1.0, f64::NAN].into()), "NaN");
        check(|worker| worker.jitter = Jitter::Uniform { share: 1.0 }, "uniform jitter of 1");
        check(|worker| worker.jitter = Jitter::LogNormal { sigma: -0.1 }, "jitter of -0.1");
        check(|worker| worker.pauses.push(Pause { at_seconds: 1.0, seconds: -1.0 }), "a pause of -1 s");
        check(|worker| worker.dies_at_seconds = Some(f64::INFINITY), "a death at inf");
    }
}
