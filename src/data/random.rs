//! Random numbers whose sequence is part of this library: the same on every machine, and with every version of `rand`.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A generator for one purpose. Different purposes, numbers and streams (ranks) give independent sequences.
pub(crate) fn generator(purpose: &[u8; 8], seed: u64, number: u64, stream: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&number.to_le_bytes());
    key[16..24].copy_from_slice(purpose);
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(stream);
    generator
}

/// A number from 0 to `bound` − 1, each equally likely (Lemire's method). `bound` is above 0.
fn below(rng: &mut ChaCha8Rng, bound: u32) -> u32 {
    let reject_below = bound.wrapping_neg() % bound;
    loop {
        let product = u64::from(rng.next_u32()) * u64::from(bound);
        if product as u32 >= reject_below {
            return (product >> 32) as u32;
        }
    }
}

/// Puts `items` into a random order, each order equally likely (Fisher and Yates). At most 2³² items.
pub(crate) fn shuffle(items: &mut [u32], rng: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last as u32 + 1) as usize);
    }
}

/// Uniform in [−1, 1), a multiple of 2⁻²³: exact in `f32`, so that the bits are the same everywhere.
pub(crate) fn symmetric(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 * (1.0 / (1 << 23) as f32) - 1.0
}

/// Uniform in (0, 1): never 0, so that its logarithm is finite.
fn open_unit(rng: &mut ChaCha8Rng) -> f64 {
    ((rng.next_u64() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
}

pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * open_unit(rng).ln()).sqrt();
    radius * (std::f64::consts::TAU * open_unit(rng)).cos()
}

/// The logarithm of a gamma variate of shape `alpha` (Marsaglia and Tsang). A logarithm, because for a small shape the
/// variate itself is below the smallest number.
fn log_gamma_variate(alpha: f64, rng: &mut ChaCha8Rng) -> f64 {
    if alpha < 1.0 {
        let boost = open_unit(rng).ln() / alpha;
        return log_gamma_variate(alpha + 1.0, rng) + boost;
    }
    let d = alpha - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(rng);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && open_unit(rng).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d.ln() + v.ln();
        }
    }
}

/// `count` shares that sum to 1, from the symmetric Dirichlet distribution: near equal for a large `alpha`, nearly all in
/// one for a small one.
pub(crate) fn dirichlet(alpha: f64, count: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut shares: Vec<f64> = (0..count).map(|_| log_gamma_variate(alpha, rng)).collect();
    let largest = shares.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    shares.iter_mut().for_each(|share| *share = (*share - largest).exp());
    let sum: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= sum);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequences_are_fixed() {
        let mut rng = generator(b"a test..", 1, 2, 3);
        let mut items: Vec<u32> = (0..8).collect();
        shuffle(&mut items, &mut rng);
        let mut sorted = items.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..8).collect::<Vec<u32>>());
        let mut again: Vec<u32> = (0..8).collect();
        shuffle(&mut again, &mut generator(b"a test..", 1, 2, 3));
        assert_eq!(items, again);
        for (purpose, seed, number, stream) in
            [(b"another.", 1, 2, 3), (b"a test..", 2, 2, 3), (b"a test..", 1, 1, 3), (b"a test..", 1, 2, 0)]
        {
            let mut other = generator(purpose, seed, number, stream);
            assert_ne!(other.next_u64(), generator(b"a test..", 1, 2, 3).next_u64());
        }
    }

    #[test]
    fn orders_are_equally_likely() {
        let mut counts = std::collections::HashMap::new();
        let mut rng = generator(b"a test..", 0, 0, 0);
        for _ in 0..24_000 {
            let mut items = [0, 1, 2, 3];
            shuffle(&mut items, &mut rng);
            *counts.entry(items).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|&n| (850..1150).contains(&n)), "{counts:?}");
    }

    #[test]
    fn dirichlet_has_the_right_moments_and_survives_small_shapes() {
        let mut rng = generator(b"a test..", 0, 0, 0);
        for alpha in [0.3, 1.0, 5.0] {
            let first: Vec<f64> = (0..20_000).map(|_| dirichlet(alpha, 4, &mut rng)[0]).collect();
            let mean = first.iter().sum::<f64>() / first.len() as f64;
            let variance = first.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / first.len() as f64;
            let expected = 0.25 * 0.75 / (4.0 * alpha + 1.0);
            assert!((mean - 0.25).abs() < 0.01, "{alpha}: {mean}");
            assert!((variance / expected - 1.0).abs() < 0.05, "{alpha}: {variance} {expected}");
        }
        for alpha in [1e-6, 1e-3, 1e6] {
            let shares = dirichlet(alpha, 7, &mut rng);
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9 && shares.iter().all(|s| s.is_finite()));
        }
    }

    #[test]
    fn symmetric_covers_its_interval() {
        let mut rng = generator(b"a test..", 0, 0, 0);
        let values: Vec<f32> = (0..10_000).map(|_| symmetric(&mut rng)).collect();
        assert!(values.iter().all(|x| (-1.0..1.0).contains(x)));
        assert!(values.iter().any(|&x| x < -0.99) && values.iter().any(|&x| x > 0.99));
    }
}
