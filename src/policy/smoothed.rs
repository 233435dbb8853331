//! A measured duration without its outliers.

/// How many measurements the median looks at: two outliers among five are ignored, and a real change of speed is followed
/// after three.
const WINDOW: usize = 5;

/// The running median of the last five measurements.
///
/// ESync's published code uses the last step alone as the next round's prediction, so that one slow step holds up a whole
/// cluster. A moving average only spreads that damage; a median ignores it.
///
/// Of an even number of measurements it takes the lower middle one: an estimate that is too low makes others stop a step too
/// early, one that is too high makes everybody wait for steps that it invited.
///
/// ```
/// use esync::policy::Smoothed;
///
/// let mut step_seconds = Smoothed::new(0.100);
/// for measured in [0.101, 0.099, 0.950, 0.100] {
///     step_seconds.add(measured);
/// }
/// assert_eq!(step_seconds.get(), 0.100);
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Smoothed {
    last: [f64; WINDOW],
    added: usize,
}

impl Smoothed {
    /// Begins with one measurement, in seconds.
    pub fn new(first: f64) -> Self {
        let mut smoothed = Smoothed::default();
        smoothed.add(first);
        smoothed
    }

    /// Takes one more measurement, in seconds. What is not a duration (zero, negative, NaN, infinite) is ignored.
    pub fn add(&mut self, seconds: f64) {
        if seconds.is_finite() && seconds > 0.0 {
            self.last[self.added % WINDOW] = seconds;
            self.added += 1;
        }
    }

    /// The median, in seconds; 0 if nothing was ever measured.
    pub fn get(&self) -> f64 {
        self.quantile(2)
    }

    /// The second shortest of five, in seconds: what the duration hardly ever undercuts. Equal to the median without noise.
    pub fn low(&self) -> f64 {
        self.quantile(4)
    }

    /// The element a `part`-th of the way up the sorted window, rounded down.
    fn quantile(&self, part: usize) -> f64 {
        let count = self.added.min(WINDOW);
        if count == 0 {
            return 0.0;
        }
        let mut sorted = self.last;
        sorted[..count].sort_by(f64::total_cmp);
        sorted[(count - 1) / part]
    }
}

#[cfg(test)]
mod tests {
    use super::Smoothed;

    #[test]
    fn one_outlier_is_ignored_and_a_change_is_followed_after_three_steps() {
        let mut smoothed = Smoothed::new(1.0);
        smoothed.add(10.0);
        assert_eq!(smoothed.get(), 1.0, "of two, the lower");
        for _ in 0..4 {
            smoothed.add(1.0);
        }
        let followed: Vec<f64> = (0..4)
            .map(|_| {
                smoothed.add(3.0);
                smoothed.get()
            })
            .collect();
        assert_eq!(followed, [1.0, 1.0, 3.0, 3.0]);
        assert_eq!(smoothed.low(), 3.0);
        smoothed.add(1.0);
        assert_eq!((smoothed.low(), smoothed.get()), (3.0, 3.0));
        smoothed.add(1.0);
        assert_eq!((smoothed.low(), smoothed.get()), (1.0, 3.0));
    }

    #[test]
    fn only_durations_count() {
        let mut smoothed = Smoothed::new(f64::NAN);
        assert_eq!(smoothed.get(), 0.0);
        for seconds in [0.0, -1.0, f64::INFINITY, 2.0] {
            smoothed.add(seconds);
        }
        assert_eq!(smoothed.get(), 2.0);
    }
}
