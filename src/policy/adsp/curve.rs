//! The curve that a probe's losses are fitted to.

/// A loss and when it was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Seconds since the probe began.
    pub seconds: f64,
    /// The loss.
    pub loss: f64,
}

/// `ℓ(t) = 1 / (steepness · t + offset) + floor`: how the loss of stochastic gradient descent falls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Curve {
    /// α₁², per second; above 0.
    pub steepness: f64,
    /// α₂, above 0.
    pub offset: f64,
    /// α₃, below all measured losses, and not below 0 if they are not.
    pub floor: f64,
}

/// Why a probe cannot win.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rejection {
    /// Too few samples for three parameters and noise.
    TooFew {
        /// How many.
        samples: usize,
    },
    /// A loss is not a finite number, or far above the first.
    Diverged {
        /// That loss.
        loss: f64,
    },
    /// The loss does not fall between most of the samples. A loss that falls in one step, because all commits come at once,
    /// shows no rate either.
    NotFalling {
        /// The first loss.
        first: f64,
        /// The last one.
        last: f64,
    },
}

impl Curve {
    /// What a fit needs at least.
    pub const LEAST_SAMPLES: usize = 6;

    /// Fits a curve so that single wild samples hardly matter.
    ///
    /// With the floor α₃ given, `1 / (ℓ − α₃)` is a straight line in time. Its slope is the median of the slopes between all
    /// pairs of samples, and its offset the median of what is left (Theil and Sen): more than a quarter of the samples may be
    /// arbitrarily wrong. The floor is the one of a fixed set of candidates, closer and closer below the lowest loss, whose
    /// curve misses the samples by the least sum of absolute errors. All bounds hold by construction, there is no starting
    /// value, and nothing iterates.
    ///
    /// # Errors
    /// A [`Rejection`]. A loss that does not fall is never fitted.
    ///
    /// ```
    /// use esync::policy::adsp::{Curve, Rejection, Sample};
    ///
    /// let loss = |seconds: f64| 1.0 / (0.5 * seconds + 1.0) + 0.2;
    /// let samples: Vec<Sample> = (0..7).map(|k| Sample { seconds: k as f64, loss: loss(k as f64) }).collect();
    /// let curve = Curve::fit(&samples).unwrap();
    /// assert!((curve.at(10.0) - loss(10.0)).abs() < 0.02);
    ///
    /// let rising: Vec<Sample> = samples.iter().map(|s| Sample { loss: 2.0 - s.loss, ..*s }).collect();
    /// assert!(matches!(Curve::fit(&rising), Err(Rejection::NotFalling { .. })));
    /// ```
    pub fn fit(samples: &[Sample]) -> Result<Curve, Rejection> {
        let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
            return Err(Rejection::TooFew { samples: 0 });
        };
        if let Some(wild) = samples.iter().find(|sample| !sample.loss.is_finite()) {
            return Err(Rejection::Diverged { loss: wild.loss });
        }
        if samples.len() < Self::LEAST_SAMPLES {
            return Err(Rejection::TooFew { samples: samples.len() });
        }
        let not_falling = Rejection::NotFalling { first: first.loss, last: last.loss };
        let losses: Vec<(f64, f64)> =
            samples.iter().map(|sample| (sample.seconds - first.seconds, sample.loss)).collect();
        if median_slope(&losses).is_none_or(|slope| slope >= 0.0) {
            return Err(not_falling);
        }
        let candidates = floors(&losses).filter_map(|floor| Curve::with_floor(&losses, floor));
        let error = |curve: &Curve| -> f64 {
            losses.iter().map(|&(seconds, loss)| (curve.at(seconds) - loss).abs()).sum()
        };
        candidates.min_by(|a, b| error(a).total_cmp(&error(b))).ok_or(not_falling)
    }

    fn with_floor(losses: &[(f64, f64)], floor: f64) -> Option<Curve> {
        let line: Vec<(f64, f64)> =
            losses.iter().map(|&(seconds, loss)| (seconds, 1.0 / (loss - floor))).collect();
        let steepness = median_slope(&line)?;
        let offset = median(line.iter().map(|&(seconds, value)| value - steepness * seconds).collect())?;
        let is_bounded = |value: f64| value > 0.0 && value.is_finite();
        (is_bounded(steepness) && is_bounded(offset)).then_some(Curve { steepness, offset, floor })
    }

    /// The loss after so many seconds.
    pub fn at(&self, seconds: f64) -> f64 {
        1.0 / (self.steepness * seconds + self.offset) + self.floor
    }

    /// Seconds in which the loss falls from one value to a lower one; `None` if it never gets there.
    pub fn seconds_between(&self, from: f64, to: f64) -> Option<f64> {
        (from > to && to > self.floor)
            .then(|| (1.0 / (to - self.floor) - 1.0 / (from - self.floor)) / self.steepness)
    }
}

/// Candidates for the floor: the lowest loss minus the losses' spread times 1/8, growing by a factor of √√2 up to 64.
fn floors(losses: &[(f64, f64)]) -> impl Iterator<Item = f64> {
    let lowest = losses.iter().map(|&(_, loss)| loss).fold(f64::INFINITY, f64::min);
    let highest = losses.iter().map(|&(_, loss)| loss).fold(f64::NEG_INFINITY, f64::max);
    let (spread, bound) = (highest - lowest, if lowest >= 0.0 { 0.0 } else { f64::NEG_INFINITY });
    let below = (-12..=24).map(move |quarter| lowest - spread * f64::exp2(f64::from(quarter) / 4.0));
    below.map(move |floor| floor.max(bound)).filter(move |&floor| floor < lowest)
}

/// The median of the slopes between all pairs of points at different times.
fn median_slope(points: &[(f64, f64)]) -> Option<f64> {
    let pairs =
        points.iter().enumerate().flat_map(|(index, &a)| points[..index].iter().map(move |&b| (a, b)));
    let apart = pairs.filter(|((a, _), (b, _))| a > b);
    median(apart.map(|((ta, a), (tb, b))| (a - b) / (ta - tb)).collect())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some(0.5 * (values[middle - 1] + values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(losses: &[f64]) -> Vec<Sample> {
        losses.iter().enumerate().map(|(k, &loss)| Sample { seconds: k as f64, loss }).collect()
    }

    #[test]
    fn the_published_failures_are_rejected() {
        // A rising loss earned the greatest reward of the authors' log.
        let rising = samples(&[1.166, 1.18, 1.21, 1.25, 1.28, 1.31, 1.348]);
        assert_eq!(Curve::fit(&rising), Err(Rejection::NotFalling { first: 1.166, last: 1.348 }));
        assert_eq!(Curve::fit(&rising[..3]), Err(Rejection::TooFew { samples: 3 }));
        assert_eq!(Curve::fit(&[]), Err(Rejection::TooFew { samples: 0 }));
        let flat = samples(&[1.0; 7]);
        assert_eq!(Curve::fit(&flat), Err(Rejection::NotFalling { first: 1.0, last: 1.0 }));
        let diverged = samples(&[1.0, 0.9, f64::INFINITY, 0.7, 0.6, 0.5, 0.4]);
        assert_eq!(Curve::fit(&diverged), Err(Rejection::Diverged { loss: f64::INFINITY }));
    }

    #[test]
    fn one_wild_sample_hardly_matters() {
        let loss = |seconds: f64| 1.0 / (0.3 * seconds + 0.5) + 0.1;
        let mut losses: Vec<f64> = (0..7).map(|k| loss(f64::from(k))).collect();
        let clean = Curve::fit(&samples(&losses)).unwrap();
        losses[4] *= 3.0;
        let wild = Curve::fit(&samples(&losses)).unwrap();
        for curve in [clean, wild] {
            let seconds = curve.seconds_between(1.0, 0.5).unwrap();
            let exact = (1.0 / 0.4 - 1.0 / 0.9) / 0.3;
            assert!((seconds / exact - 1.0).abs() < 0.1, "{seconds} for {exact}");
        }
    }

    #[test]
    fn bounds_hold_and_what_is_never_reached_takes_for_ever() {
        let curve = Curve::fit(&samples(&[0.5, 0.3, 0.2, 0.15, 0.12, 0.11, 0.105])).unwrap();
        assert!(curve.floor >= 0.0 && curve.floor < 0.105 && curve.steepness > 0.0 && curve.offset > 0.0);
        assert_eq!(curve.seconds_between(0.5, curve.floor), None);
        assert_eq!(curve.seconds_between(0.2, 0.3), None, "upwards");
        let negative = Curve::fit(&samples(&[-1.0, -2.0, -2.5, -2.75, -2.9, -3.0, -3.05])).unwrap();
        assert!(negative.floor < -3.05);
    }

    #[test]
    fn steps_are_falling_too() {
        // Two commits of all workers at once.
        assert!(Curve::fit(&samples(&[2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.7])).is_ok());
    }
}
