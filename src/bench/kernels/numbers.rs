//! Numbers to check kernels with, and what they are in f64.

use crate::reduce::ElementType;
use half::{bf16, f16};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Which numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Between −1 and 1, or any integer: what is compared with f64.
    Ordinary,
    /// Any bits, and often NaNs, infinities, zeros of both signs, subnormal and huge numbers.
    Awkward,
}

impl Kind {
    pub(super) const ALL: [Kind; 2] = [Kind::Ordinary, Kind::Awkward];

    /// `count` elements as bytes.
    pub(super) fn vector(self, random: &mut ChaCha8Rng, element: ElementType, count: usize) -> Vec<u8> {
        (0..count).flat_map(|_| bytes_of(element, self.number(random, element))).collect()
    }

    /// The bits of one, the lowest of them.
    fn number(self, random: &mut ChaCha8Rng, element: ElementType) -> u64 {
        let any: u64 = random.random();
        if self == Kind::Ordinary {
            return bits_of(element, random.random_range(-1.0..1.0), any);
        }
        let special = [0.0, -0.0, f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 3e38, -7e4, 65519.9];
        match random.random_range(0..8u32) {
            0 | 1 => bits_of(element, special[random.random_range(0..special.len())], any),
            // Around a power of two, where rounding carries.
            2 | 3 => bits_of(element, 2f64.powi(random.random_range(-30..20)) * 0.99975, any),
            // The smallest numbers.
            4 => any & 0x1ff,
            5 => bits_of(element, random.random_range(-300.0..300.0), any),
            _ => any,
        }
    }
}

fn bits_of(element: ElementType, value: f64, integer: u64) -> u64 {
    match element {
        ElementType::F32 => u64::from((value as f32).to_bits()),
        ElementType::F64 => value.to_bits(),
        ElementType::F16 => u64::from(f16::from_f64(value).to_bits()),
        ElementType::BF16 => u64::from(bf16::from_f64(value).to_bits()),
        ElementType::I32 | ElementType::I64 => integer,
    }
}

fn bytes_of(element: ElementType, bits: u64) -> impl Iterator<Item = u8> {
    bits.to_le_bytes().into_iter().take(element.size())
}

/// The numbers in `bytes`, which need not be aligned, in f64.
pub(super) fn wide(element: ElementType, bytes: &[u8]) -> Vec<f64> {
    let bits = |chunk: &[u8]| {
        let mut all = [0; 8];
        all[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(all)
    };
    bytes.chunks_exact(element.size()).map(bits).map(|bits| wide_number(element, bits)).collect()
}

pub(super) fn wide_number(element: ElementType, bits: u64) -> f64 {
    match element {
        ElementType::F32 => f64::from(f32::from_bits(bits as u32)),
        ElementType::F64 => f64::from_bits(bits),
        ElementType::F16 => f16::from_bits(bits as u16).to_f64(),
        ElementType::BF16 => bf16::from_bits(bits as u16).to_f64(),
        ElementType::I32 => f64::from(bits as u32 as i32),
        ElementType::I64 => bits as i64 as f64,
    }
}

/// Half a unit in the last place of 1, and of the smallest normal number: what one rounding may change.
pub(super) fn rounding(element: ElementType) -> (f64, f64) {
    let (digits, least) = match element {
        ElementType::F32 => (24, -150),
        ElementType::F64 => (53, -1075),
        ElementType::F16 => (11, -25),
        ElementType::BF16 => (8, -134),
        ElementType::I32 | ElementType::I64 => return (0.0, 0.0),
    };
    (2f64.powi(-digits), 2f64.powi(least))
}

pub(super) fn is_float(element: ElementType) -> bool {
    !matches!(element, ElementType::I32 | ElementType::I64)
}
