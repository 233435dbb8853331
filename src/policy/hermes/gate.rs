//! Whether a loss is a significant improvement.

use super::GateSettings;
use std::collections::VecDeque;

/// Decides whether an update is major: whether the newest loss lies far enough below the mean of the last ones, in units of
/// their standard deviation.
///
/// After too many minor updates in a row the threshold comes closer to 0, so that no worker stays silent for ever. A major
/// update restores it and empties the window.
///
/// ```
/// use esync::policy::hermes::{Gate, GateSettings};
///
/// let mut gate = Gate::new(GateSettings::default());
/// assert!(!gate.judge(1.00).is_major);
/// assert!(!gate.judge(1.01).is_major);
/// let verdict = gate.judge(0.50);
/// assert!(verdict.is_major);
/// assert!(verdict.z_score.unwrap() < -1.4);
/// ```
#[derive(Debug, Clone)]
pub struct Gate {
    settings: GateSettings,
    window: VecDeque<f64>,
    threshold: f64,
    idle_epochs: u64,
}

/// What the gate found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// How many standard deviations the loss lies above the window's mean, itself included; `None` if there is nothing to
    /// compare it with, or if the losses do not vary.
    pub z_score: Option<f64>,
    /// What the score must not exceed for a major update.
    pub threshold: f64,
    /// Whether the update is pushed.
    pub is_major: bool,
}

impl Gate {
    /// A gate with an empty window.
    pub fn new(settings: GateSettings) -> Self {
        Gate { settings, window: VecDeque::new(), threshold: settings.threshold, idle_epochs: 0 }
    }

    /// Takes the newest loss, which must be a finite number, and judges it.
    pub fn judge(&mut self, loss: f64) -> Verdict {
        if self.window.len() >= self.settings.window.max(2) {
            self.window.pop_front();
        }
        self.window.push_back(loss);
        let z_score = self.z_score();
        let threshold = self.threshold;
        let is_major = z_score.is_some_and(|z_score| z_score <= threshold);
        if is_major {
            self.reset();
        } else {
            self.idle_epochs += 1;
            if self.idle_epochs >= self.settings.idle_epochs {
                self.threshold = (threshold * (1.0 - self.settings.decay)).min(0.0);
            }
        }
        Verdict { z_score, threshold, is_major }
    }

    /// Forgets all losses, and restores the threshold.
    pub fn reset(&mut self) {
        self.window.clear();
        self.threshold = self.settings.threshold;
        self.idle_epochs = 0;
    }

    fn z_score(&self) -> Option<f64> {
        /// Deviations below this share of the mean are rounding.
        const ROUNDING: f64 = 1e-12;
        let count = self.window.len() as f64;
        let mean = self.window.iter().sum::<f64>() / count;
        let variance = self.window.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / count;
        let deviation = variance.sqrt();
        let newest = self.window.back()?;
        (deviation > ROUNDING * mean.abs()).then(|| (newest - mean) / deviation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate::new(GateSettings::default())
    }

    #[test]
    fn losses_that_do_not_vary_are_minor() {
        let mut gate = gate();
        for _ in 0..20 {
            let verdict = gate.judge(0.1);
            assert_eq!((verdict.z_score, verdict.is_major), (None, false));
        }
    }

    #[test]
    fn nothing_is_major_before_the_third_loss() {
        let mut gate = gate();
        assert_eq!(gate.judge(9.0).z_score, None);
        let verdict = gate.judge(1.0);
        assert_eq!((verdict.z_score, verdict.is_major), (Some(-1.0), false), "−√(n − 1) is the lowest");
        assert!(gate.judge(-90.0).is_major);
    }

    #[test]
    fn the_threshold_decays_while_idle_and_a_major_update_restores_it() {
        let mut gate = gate();
        // Slowly falling losses: never a jump.
        let thresholds: Vec<f64> =
            [5.0, 4.0, 4.5, 4.4, 4.45, 4.43, 4.44].map(|loss| gate.judge(loss).threshold).into();
        let rounded: Vec<f64> = thresholds.iter().map(|threshold| (threshold * 1e4).round() / 1e4).collect();
        assert_eq!(rounded, [-1.3, -1.3, -1.3, -1.3, -1.3, -1.17, -1.053]);
        assert!(gate.judge(1.0).is_major);
        assert_eq!(gate.judge(1.0).threshold, -1.3, "restored");
    }

    #[test]
    fn the_window_forgets_old_losses() {
        let mut gate = Gate::new(GateSettings { window: 3, threshold: -9.0, ..GateSettings::default() });
        for loss in [100.0, 1.0, 2.0] {
            gate.judge(loss);
        }
        let z_score = gate.judge(3.0).z_score.unwrap();
        assert!((z_score - 1.5_f64.sqrt()).abs() < 1e-12, "of 1, 2 and 3: {z_score}");
    }
}
