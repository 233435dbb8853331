//! Which rate to try next, and which to keep.

use super::{Curve, Rejection, Sample};

/// What a stretch of training at one rate has shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// Commits per check period.
    pub rate: u64,
    /// The curve of its losses, or why it cannot win.
    pub curve: Result<Curve, Rejection>,
    first_loss: f64,
    last_loss: f64,
}

impl Probe {
    /// Fits the samples.
    pub fn new(rate: u64, samples: &[Sample]) -> Self {
        let loss = |sample: Option<&Sample>| sample.map_or(f64::NAN, |sample| sample.loss);
        Probe {
            rate,
            curve: Curve::fit(samples),
            first_loss: loss(samples.first()),
            last_loss: loss(samples.last()),
        }
    }

    /// A probe that was ended because its loss rose to `loss`.
    pub fn diverged(rate: u64, loss: f64) -> Self {
        Probe { rate, curve: Err(Rejection::Diverged { loss }), first_loss: loss, last_loss: loss }
    }

    /// Seconds in which this probe and another would pass the same stretch of loss: from where the later one began down to
    /// the target, or to the lowest loss that either has seen. `None` for whoever never gets there.
    pub fn seconds_beside(&self, other: &Probe, target_loss: Option<f64>) -> (Option<f64>, Option<f64>) {
        let from = self.first_loss.min(other.first_loss);
        let lowest = self.last_loss.min(other.last_loss);
        let to = target_loss.filter(|&target| target < from).unwrap_or(lowest);
        let seconds = |probe: &Probe| probe.curve.ok().and_then(|curve| curve.seconds_between(from, to));
        (seconds(self), seconds(other))
    }

    /// Whether the loss falls faster here than in `other`.
    fn beats(&self, other: &Probe, target_loss: Option<f64>) -> bool {
        match (&self.curve, &other.curve) {
            (Err(_), _) => false,
            (Ok(_), Err(_)) => true,
            (Ok(_), Ok(_)) => match self.seconds_beside(other, target_loss) {
                (Some(own), Some(others)) => own < others,
                (own, _) => own.is_some(),
            },
        }
    }
}

/// What a search wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Train at this rate and measure.
    Probe(u64),
    /// The search is over: keep this rate.
    Keep(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// Climbs from the present rate to a neighbour as long as that is better: upwards first, and downwards if the first step up
/// is not.
///
/// ```
/// use esync::policy::adsp::{Next, Probe, Sample, Search};
///
/// let mut search = Search::new(6, None);
/// let probe = |rate, steepness: f64| {
///     let loss = |k: f64| 1.0 / (steepness * k + 1.0);
///     let samples: Vec<Sample> = (0..7).map(|k| Sample { seconds: k as f64, loss: loss(k as f64) }).collect();
///     Probe::new(rate, &samples)
/// };
/// assert_eq!(search.add(probe(2, 0.2)), Next::Probe(3));
/// assert_eq!(search.add(probe(3, 0.1)), Next::Probe(1), "worse: the other direction");
/// assert_eq!(search.add(probe(1, 0.4)), Next::Keep(1));
/// ```
#[derive(Debug, Clone)]
pub struct Search {
    greatest: u64,
    target_loss: Option<f64>,
    best: Option<Probe>,
    direction: Direction,
    climbed: bool,
}

impl Search {
    /// A search among the rates 1 to `greatest`. The first probe is of the present rate.
    pub fn new(greatest: u64, target_loss: Option<f64>) -> Self {
        Search { greatest, target_loss, best: None, direction: Direction::Up, climbed: false }
    }

    /// The best probe so far.
    pub fn best(&self) -> Option<&Probe> {
        self.best.as_ref()
    }

    /// Takes the probe that was asked for, and says what to do.
    pub fn add(&mut self, probe: Probe) -> Next {
        let is_better = match &self.best {
            None => true,
            Some(best) => {
                self.climbed |= probe.beats(best, self.target_loss);
                probe.beats(best, self.target_loss)
            }
        };
        let is_first = self.best.is_none();
        let best = match is_better {
            true => self.best.insert(probe).rate,
            false => self.best.as_ref().map_or(1, |best| best.rate),
        };
        let up = (best < self.greatest).then(|| Next::Probe(best + 1));
        let down = (best > 1).then(|| Next::Probe(best - 1));
        let next = match (self.direction, is_better) {
            (Direction::Up, true) if is_first => up.or_else(|| self.turn(down)),
            (Direction::Up, true) => up,
            (Direction::Up, false) if !self.climbed => self.turn(down),
            (Direction::Down, true) => down,
            (_, false) => None,
        };
        next.unwrap_or(Next::Keep(best))
    }

    fn turn(&mut self, next: Option<Next>) -> Option<Next> {
        self.direction = Direction::Down;
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A probe whose loss falls from `first` with this steepness.
    fn probe(rate: u64, first: f64, steepness: f64) -> Probe {
        let loss = |k: u32| 1.0 / (steepness * f64::from(k) + 1.0 / first);
        let samples: Vec<Sample> = (0..7).map(|k| Sample { seconds: f64::from(k), loss: loss(k) }).collect();
        Probe::new(rate, &samples)
    }

    #[test]
    fn it_climbs_while_that_helps_and_stops_at_the_bounds() {
        let mut search = Search::new(3, None);
        assert_eq!(search.add(probe(1, 2.0, 0.1)), Next::Probe(2));
        assert_eq!(search.add(probe(2, 1.5, 0.2)), Next::Probe(3));
        assert_eq!(search.add(probe(3, 1.0, 0.3)), Next::Keep(3), "there is no rate 4");
        let mut search = Search::new(3, None);
        assert_eq!(search.add(probe(1, 2.0, 0.3)), Next::Probe(2));
        assert_eq!(search.add(probe(2, 1.0, 0.2)), Next::Keep(1), "there is no rate 0");
        let mut search = Search::new(1, None);
        assert_eq!(search.add(probe(1, 2.0, 0.3)), Next::Keep(1));
        let mut search = Search::new(3, None);
        assert_eq!(search.add(probe(3, 2.0, 0.1)), Next::Probe(2), "from the greatest, down");
        assert_eq!(search.add(probe(2, 2.0, 0.2)), Next::Probe(1));
        assert_eq!(search.add(probe(1, 2.0, 0.1)), Next::Keep(2));
    }

    #[test]
    fn it_does_not_turn_back_after_it_has_climbed() {
        let mut search = Search::new(6, None);
        assert_eq!(search.add(probe(2, 2.0, 0.1)), Next::Probe(3));
        assert_eq!(search.add(probe(3, 1.5, 0.2)), Next::Probe(4));
        assert_eq!(search.add(probe(4, 1.0, 0.1)), Next::Keep(3));
    }

    #[test]
    fn a_later_probe_does_not_win_because_its_loss_is_lower() {
        // Equally steep, each beginning where the last one ended.
        let (early, late) = (probe(1, 2.0, 0.2), probe(2, 0.6, 0.2));
        let (early_seconds, late_seconds) = early.seconds_beside(&late, None);
        let ratio = early_seconds.unwrap() / late_seconds.unwrap();
        assert!((ratio - 1.0).abs() < 0.2, "{ratio}");
    }

    #[test]
    fn a_diverging_probe_never_wins() {
        let mut search = Search::new(6, None);
        assert_eq!(search.add(probe(2, 2.0, 0.01)), Next::Probe(3));
        assert_eq!(search.add(Probe::diverged(3, f64::NAN)), Next::Probe(1));
        assert_eq!(search.add(Probe::diverged(1, 4.0)), Next::Keep(2));
        let mut search = Search::new(6, None);
        assert_eq!(search.add(Probe::diverged(2, 9.0)), Next::Probe(3), "the first of all has diverged");
        assert_eq!(search.add(probe(3, 2.0, 0.01)), Next::Probe(4), "anything is better");
        assert_eq!(search.best().unwrap().rate, 3);
    }

    #[test]
    fn a_known_target_is_what_counts() {
        // Steep with a high floor, and flat without one.
        let floor = |floor: f64, steepness: f64, rate| {
            let loss = |k: u32| 1.0 / (steepness * f64::from(k) + 1.0) + floor;
            let samples: Vec<Sample> =
                (0..7).map(|k| Sample { seconds: f64::from(k), loss: loss(k) }).collect();
            Probe::new(rate, &samples)
        };
        let (steep, flat) = (floor(0.5, 2.0, 1), floor(0.0, 0.5, 2));
        assert!(flat.beats(&steep, Some(0.1)));
    }
}
