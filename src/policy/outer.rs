//! How the mean of the workers' deltas is applied to the anchor.

use super::replica::Float;
use super::weighting::by_name;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The outer optimiser's rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outer {
    /// `w ← w + η·mean`.
    #[default]
    Sgd,
    /// `v ← β·v + mean`, `w ← w + η·(mean + β·v)` (DiLoCo, Douillard et al. 2023: η = 0.7, β = 0.9).
    Nesterov,
}

impl Outer {
    /// Every rule.
    pub const ALL: [Outer; 2] = [Self::Sgd, Self::Nesterov];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sgd => "sgd",
            Self::Nesterov => "nesterov",
        }
    }

    /// The learning rate that goes with the rule, if none is given: 1 for `sgd`, which then averages, and DiLoCo's 0.7 for
    /// `nesterov`, whose momentum adds to it.
    pub fn default_learning_rate(self) -> f64 {
        match self {
            Self::Sgd => 1.0,
            Self::Nesterov => 0.7,
        }
    }
}

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Outer {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        by_name("outer optimiser", text, &Self::ALL, Self::name)
    }
}

/// The outer optimiser with its state, the same on every rank.
///
/// ```
/// use esync::policy::OuterOptimiser;
///
/// let mut outer = OuterOptimiser::nesterov(0.7, 0.9);
/// let mut anchor = [0.0_f32];
/// outer.apply(&mut anchor, &[1.0]);
/// assert!((anchor[0] - 0.7 * 1.9).abs() < 1e-6);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct OuterOptimiser<T> {
    rule: Outer,
    learning_rate: f64,
    momentum: f64,
    velocity: Vec<T>,
}

impl<T: Float> OuterOptimiser<T> {
    /// Plain averaging with a global learning rate (1 replaces the parameters by their mean).
    pub fn sgd(learning_rate: f64) -> Self {
        OuterOptimiser { rule: Outer::Sgd, learning_rate, momentum: 0.0, velocity: Vec::new() }
    }

    /// Nesterov's momentum. The velocity begins at zero and is allocated by the first [`apply`](Self::apply).
    pub fn nesterov(learning_rate: f64, momentum: f64) -> Self {
        OuterOptimiser { rule: Outer::Nesterov, learning_rate, momentum, velocity: Vec::new() }
    }

    /// The rule.
    pub fn rule(&self) -> Outer {
        self.rule
    }

    /// The momentum's state, for checkpoints; empty for `sgd` and before the first exchange.
    pub fn velocity(&self) -> &[T] {
        &self.velocity
    }

    /// Takes the state back from a checkpoint.
    pub fn set_velocity(&mut self, velocity: Vec<T>) {
        self.velocity = velocity;
    }

    /// Moves the anchor by the mean delta. All slices have one length, that of the trainable part.
    pub fn apply(&mut self, anchor: &mut [T], mean: &[T]) {
        self.prepare(anchor.len());
        self.apply_part(0, anchor, mean);
    }

    /// Makes room for the state of `trainable` elements; does nothing from the second time on.
    pub(super) fn prepare(&mut self, trainable: usize) {
        if self.rule == Outer::Nesterov {
            self.velocity.resize(trainable, T::default());
        }
    }

    /// As [`apply`](Self::apply), for the elements from `offset` on.
    pub(super) fn apply_part(&mut self, offset: usize, anchor: &mut [T], mean: &[T]) {
        let learning_rate = T::wide(self.learning_rate);
        match self.rule {
            Outer::Sgd => {
                for (anchor, &mean) in anchor.iter_mut().zip(mean) {
                    *anchor = T::narrow(anchor.widen() + learning_rate * mean.widen());
                }
            }
            Outer::Nesterov => {
                let momentum = T::wide(self.momentum);
                let velocity = &mut self.velocity[offset..][..anchor.len()];
                for ((anchor, velocity), &mean) in anchor.iter_mut().zip(velocity).zip(mean) {
                    let (mean, moved) = (mean.widen(), momentum * velocity.widen() + mean.widen());
                    *velocity = T::narrow(moved);
                    *anchor = T::narrow(anchor.widen() + learning_rate * (mean + momentum * moved));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesterov_is_diloco_with_the_sign_turned() {
        // DiLoCo: g = w − x, M ← βM + g, w ← w − η(g + βM).
        let (mut w, mut m) = (0.0_f64, 0.0);
        let (mut anchor, mut outer) = ([0.0_f64], OuterOptimiser::nesterov(0.7, 0.9));
        for delta in [1.0, -0.5, 2.0] {
            let g = -delta;
            m = 0.9 * m + g;
            w -= 0.7 * (g + 0.9 * m);
            outer.apply(&mut anchor, &[delta]);
            assert!((anchor[0] - w).abs() < 1e-12);
        }
        assert!((outer.velocity()[0] + m).abs() < 1e-12);
    }

    #[test]
    fn names_are_parsed() {
        assert_eq!("nesterov".parse::<Outer>().ok(), Some(Outer::Nesterov));
        assert!("adam".parse::<Outer>().is_err_and(|error| error.to_string().ends_with("sgd, nesterov")));
    }
}
