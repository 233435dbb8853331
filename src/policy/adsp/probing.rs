//! The measurements of one probe.

use super::{Curve, Probe, Sample};
use std::time::Duration;

/// Seconds as a duration; what does not fit is for ever.
pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

/// Samples the loss at equal intervals, both ends included.
#[derive(Debug, Clone)]
pub(super) struct Probing {
    rate: u64,
    began: Duration,
    spacing_seconds: f64,
    asked: usize,
    samples: Vec<Sample>,
}

impl Probing {
    /// One more than a fit needs at least.
    const SAMPLES: usize = Curve::LEAST_SAMPLES + 1;
    /// A loss of this many times the first ends a probe.
    const DIVERGED: f64 = 2.0;

    pub(super) fn new(now: Duration, rate: u64, length_seconds: f64) -> Self {
        let spacing_seconds = length_seconds / (Self::SAMPLES - 1) as f64;
        Probing { rate, began: now, spacing_seconds, asked: 0, samples: Vec::new() }
    }

    /// When the next sample is due.
    pub(super) fn next_at(&self) -> Option<Duration> {
        let after = seconds(self.spacing_seconds * self.asked as f64);
        (self.asked < Self::SAMPLES).then(|| self.began.saturating_add(after))
    }

    /// Notes that the loss is being measured, and answers the sample's time: seconds since the probe began.
    pub(super) fn ask(&mut self, now: Duration) -> f64 {
        self.asked += 1;
        now.saturating_sub(self.began).as_secs_f64()
    }

    /// Takes a sample, and answers the probe if it is complete, or must end.
    pub(super) fn add(&mut self, seconds: f64, loss: f64) -> Option<Probe> {
        self.samples.push(Sample { seconds, loss });
        let first = self.samples[0].loss;
        if !loss.is_finite() || (first > 0.0 && loss > Self::DIVERGED * first) {
            return Some(Probe::diverged(self.rate, loss));
        }
        (self.samples.len() >= Self::SAMPLES).then(|| Probe::new(self.rate, &self.samples))
    }
}
