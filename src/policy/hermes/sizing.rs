//! How much data, in which mini-batches, so that all workers' epochs take equally long.

/// The least and the greatest power of two that a mini-batch may have.
const BATCH_SIZES: [u64; 6] = [2, 4, 8, 16, 32, 64];

/// A worker's sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Samples in a mini-batch.
    pub batch_size: u64,
    /// Samples in a pass.
    pub data_budget: u64,
}

/// What an epoch is, and how exactly it is sized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizing {
    /// Passes over the data of an epoch.
    pub passes: u64,
    /// How far from the target an epoch may last without being sized anew.
    pub tolerance_seconds: f64,
}

impl Sizing {
    /// Mini-batches of an epoch.
    pub fn steps(&self, sizes: Sizes) -> u64 {
        (self.passes * sizes.data_budget).div_ceil(sizes.batch_size.max(1)).max(1)
    }

    /// Seconds of an epoch whose mini-batches take `step_seconds` each.
    pub fn epoch_seconds(&self, sizes: Sizes, step_seconds: f64) -> f64 {
        self.passes as f64 * sizes.data_budget as f64 / sizes.batch_size.max(1) as f64 * step_seconds
    }

    /// Sizes whose epoch lasts about `target_seconds`, at most `most_samples` in a pass. `None` if the present ones are good
    /// enough, or if nothing comes closer.
    ///
    /// The paper searches twice, for the data and for the mini-batch. For a given mini-batch the data follow from the target
    /// in closed form, so that only the mini-batch is searched: first the present one, then those nearest to it, the larger
    /// first if the worker is too slow (fewer steps), the smaller first if it is too fast. A step is taken to last equally
    /// long whatever its mini-batch; where that is wrong, the next report corrects it.
    pub fn fit(
        &self,
        present: Sizes,
        step_seconds: f64,
        target_seconds: f64,
        most_samples: u64,
    ) -> Option<Sizes> {
        let is_a_time = |seconds: f64| seconds > 0.0 && seconds.is_finite();
        if !(is_a_time(step_seconds) && is_a_time(target_seconds)) {
            return None;
        }
        let off = |sizes: Sizes| (self.epoch_seconds(sizes, step_seconds) - target_seconds).abs();
        let present_off = off(present);
        if present_off <= self.tolerance_seconds {
            return None;
        }
        let is_too_slow = self.epoch_seconds(present, step_seconds) > target_seconds;
        let steps = target_seconds / (self.passes.max(1) as f64 * step_seconds);
        let mut best: Option<(f64, Sizes)> = None;
        for batch_size in nearest_first(present.batch_size, is_too_slow) {
            if batch_size > most_samples {
                continue;
            }
            let wanted = (steps * batch_size as f64).round();
            let data_budget = (wanted as u64).clamp(batch_size, most_samples);
            let sizes = Sizes { batch_size, data_budget };
            let now_off = off(sizes);
            if best.is_none_or(|(best_off, _)| now_off < best_off) {
                best = Some((now_off, sizes));
            }
            if now_off <= self.tolerance_seconds {
                break;
            }
        }
        best.filter(|&(best_off, _)| best_off < present_off).map(|(_, sizes)| sizes)
    }
}

/// The present mini-batch, then powers of two by their distance from it.
fn nearest_first(present: u64, larger_first: bool) -> Vec<u64> {
    let mut others: Vec<u64> = BATCH_SIZES.into_iter().filter(|&size| size != present).collect();
    if larger_first {
        others.reverse();
    }
    let distance = |size: u64| (size as f64 / present.max(1) as f64).log2().abs();
    // Stable: of two that are equally far, the preferred direction comes first.
    others.sort_by(|&a, &b| distance(a).total_cmp(&distance(b)));
    others.insert(0, present.max(1));
    others
}

/// The median of finite numbers, the mean of the two middle ones of an even count; `None` of none.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// Whether `value` lies outside of what the *other* workers' values let one expect: one and a half interquartile ranges
/// beyond their quartiles. Taken over all values, a single slow worker among few would widen the range that it is held
/// against.
pub fn is_outlier(value: f64, others: &[f64]) -> bool {
    let (Some(lower), Some(upper)) = (quantile(others, 0.25), quantile(others, 0.75)) else {
        return false;
    };
    let margin = 1.5 * (upper - lower);
    value >= upper + margin || value <= lower - margin
}

/// Linear between neighbours.
fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let position = share * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    Some(below + (above - below) * position.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAPER: Sizing = Sizing { passes: 5, tolerance_seconds: 1.0 };
    const FIRST: Sizes = Sizes { batch_size: 16, data_budget: 2500 };

    #[test]
    fn the_slow_get_less_data_and_the_fast_more() {
        // 5 · 2500 / 16 = 781.25 steps; the target is reached at 0.1 s each.
        let target = PAPER.epoch_seconds(FIRST, 0.1);
        assert_eq!(PAPER.fit(FIRST, 0.1, target, 10_000), None, "on target");
        let slow = PAPER.fit(FIRST, 0.4, target, 10_000).unwrap();
        assert_eq!(slow, Sizes { batch_size: 16, data_budget: 625 });
        let fast = PAPER.fit(FIRST, 0.05, target, 10_000).unwrap();
        assert_eq!(fast, Sizes { batch_size: 16, data_budget: 5000 });
    }

    #[test]
    fn at_the_memory_cap_the_fast_get_smaller_mini_batches() {
        let target = PAPER.epoch_seconds(FIRST, 0.1);
        let capped = PAPER.fit(FIRST, 0.05, target, 2500).unwrap();
        assert_eq!(capped, Sizes { batch_size: 8, data_budget: 2500 });
        assert_eq!(PAPER.steps(capped), 1563);
    }

    #[test]
    fn a_worker_for_whom_one_mini_batch_is_too_long_gets_one_mini_batch() {
        let one_step = Sizing { passes: 1, tolerance_seconds: 0.1 };
        let present = Sizes { batch_size: 8, data_budget: 80 };
        let sizes = one_step.fit(present, 10.0, 1.0, 100).unwrap();
        assert_eq!(one_step.steps(sizes), 1);
    }

    #[test]
    fn where_nothing_fits_nothing_changes() {
        assert_eq!(PAPER.fit(FIRST, 0.0, 10.0, 100), None);
        assert_eq!(PAPER.fit(FIRST, f64::NAN, 10.0, 100), None);
        assert_eq!(PAPER.fit(FIRST, 0.1, 1.0, 0), None, "an empty shard");
        let least = Sizes { batch_size: 1, data_budget: 1 };
        assert_eq!(PAPER.fit(least, 10.0, 1.0, 1), None);
        assert_eq!(PAPER.steps(Sizes { batch_size: 0, data_budget: 0 }), 1);
    }

    #[test]
    fn an_outlier_is_judged_by_the_others() {
        let others = [1.0, 1.1, 1.2, 1.3];
        assert!(is_outlier(4.0, &others) && is_outlier(0.5, &others) && !is_outlier(1.4, &others));
        assert!(!is_outlier(1.0, &[]), "alone");
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
