//! The local optimiser. It works on flat slices, and its state can be read and put back.

/// The settings of [`Sgd`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdOptions {
    /// λ.
    pub learning_rate: f64,
    /// μ, from 0 (none) to below 1.
    pub momentum: f64,
    /// How much of the parameter itself is added to its gradient (L2 regularisation).
    pub weight_decay: f64,
}

/// Stochastic gradient descent as PyTorch defines it: `g' = g + wd·w`, `v ← μ·v + g'`, `w ← w − λ·v`.
///
/// ```
/// use esync::learner::{Sgd, SgdOptions};
/// let mut sgd = Sgd::new(SgdOptions { learning_rate: 0.5, momentum: 0.5, weight_decay: 0.0 }, 1);
/// let mut w = [4.0];
/// sgd.step(&mut w, &[2.0]); // v = 2
/// sgd.step(&mut w, &[2.0]); // v = 3
/// assert_eq!(w, [1.5]);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Sgd {
    learning_rate: f32,
    momentum: f32,
    weight_decay: f32,
    /// Empty without momentum, which then costs neither memory nor time.
    velocity: Vec<f32>,
}

impl Sgd {
    /// An optimiser at rest for `len` parameters.
    pub fn new(options: SgdOptions, len: usize) -> Self {
        let velocity = if options.momentum == 0.0 { Vec::new() } else { vec![0.0; len] };
        Sgd {
            learning_rate: options.learning_rate as f32,
            momentum: options.momentum as f32,
            weight_decay: options.weight_decay as f32,
            velocity,
        }
    }

    /// One update of `parameters` by `gradient`, in one pass over the memory.
    ///
    /// # Panics
    ///
    /// If the lengths differ from each other or from the `len` that the optimiser was made with.
    pub fn step(&mut self, parameters: &mut [f32], gradient: &[f32]) {
        assert_eq!(parameters.len(), gradient.len(), "parameters and gradient differ in length");
        let (rate, momentum, decay) = (self.learning_rate, self.momentum, self.weight_decay);
        if self.momentum == 0.0 {
            for (w, g) in parameters.iter_mut().zip(gradient) {
                *w -= rate * (g + decay * *w);
            }
            return;
        }
        assert_eq!(parameters.len(), self.velocity.len(), "parameters and velocity differ in length");
        // Products and sums are kept apart (no fused multiply-add), so that all machines round alike.
        for ((w, v), g) in parameters.iter_mut().zip(&mut self.velocity).zip(gradient) {
            *v = momentum * *v + (g + decay * *w);
            *w -= rate * *v;
        }
    }

    /// λ, μ and the weight decay, as they are computed with.
    #[cfg(all(feature = "torch", any(test, feature = "cuda")))]
    pub(super) fn coefficients(&self) -> [f32; 3] {
        [self.learning_rate, self.momentum, self.weight_decay]
    }

    /// The learning rate.
    pub fn learning_rate(&self) -> f64 {
        self.learning_rate.into()
    }

    /// Changes the learning rate from the next step on; the velocity stays.
    pub fn set_learning_rate(&mut self, learning_rate: f64) {
        self.learning_rate = learning_rate as f32;
    }

    /// The velocity, one value for each parameter; empty without momentum.
    pub fn state(&self) -> &[f32] {
        &self.velocity
    }

    /// The velocity, to put a saved one back.
    pub fn state_mut(&mut self) -> &mut [f32] {
        &mut self.velocity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let mut sgd = Sgd::new(SgdOptions { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.01 }, 2);
        let mut w = [1.0f32, -2.0];
        // g' = (0.51, -1.02), v = g', w = (0.949, -1.898)
        sgd.step(&mut w, &[0.5, -1.0]);
        for (found, expected) in w.iter().zip([0.949, -1.898]) {
            assert!((found - expected).abs() < 1e-6, "{found}");
        }
        // g' = (0.25 + 0.00949, 0 - 0.01898), v = 0.9·v + g' = (0.71849, -0.93698), w -= 0.1·v
        sgd.step(&mut w, &[0.25, 0.0]);
        for (found, expected) in w.iter().zip([0.949 - 0.071849, -1.898 + 0.093698]) {
            assert!((found - expected).abs() < 1e-6, "{found}");
        }
        assert!((sgd.state()[0] - 0.71849).abs() < 1e-6);
    }

    #[test]
    fn a_restored_velocity_goes_on_the_same_way() {
        for momentum in [0.0, 0.9] {
            let options = SgdOptions { learning_rate: 0.1, momentum, weight_decay: 0.1 };
            let mut first = Sgd::new(options, 3);
            let mut w = [1.0, 2.0, 3.0];
            first.step(&mut w, &[1.0; 3]);
            let mut second = Sgd::new(options, 3);
            second.state_mut().copy_from_slice(first.state());
            let mut copy = w;
            first.step(&mut w, &[-1.0; 3]);
            second.step(&mut copy, &[-1.0; 3]);
            assert_eq!(w, copy);
        }
    }

    #[test]
    fn without_momentum_it_is_plain_descent() {
        let mut sgd = Sgd::new(SgdOptions { learning_rate: 0.5, momentum: 0.0, weight_decay: 0.5 }, 1);
        let mut w = [4.0];
        sgd.step(&mut w, &[2.0]);
        assert_eq!(w, [2.0]);
        sgd.set_learning_rate(0.25);
        sgd.step(&mut w, &[1.0]);
        assert_eq!(w, [1.5]);
        assert!(sgd.state().is_empty());
    }
}
