//! Element types as the tests see them: how to make values, and what an operator does with two of them, written down a
//! second time and as plainly as possible.
#![allow(dead_code, reason = "each test program uses its own part")]

use esync::reduce::{Element, Operator};
use half::{bf16, f16};

/// An element type with a scalar reference.
pub(crate) trait Number: Element {
    /// Half the distance between 1 and the next number; 0 for integers.
    const ROUNDOFF: f64;

    /// A small integer, exactly.
    fn small(value: i64) -> Self;

    /// A number of everyday size from 64 random bits.
    fn random(bits: u64) -> Self;

    /// The numbers at which arithmetic goes wrong.
    fn special(choice: u64) -> Self;

    /// `self ∘ right`, rounded to this type.
    fn combine(self, operator: Operator, right: Self) -> Self;

    /// What an average does at the end.
    fn finish(self, operator: Operator, n: usize) -> Self;

    /// The value for error bounds.
    fn wide(self) -> f64;
}

macro_rules! combine_floats {
    ($float:ident, $operator:expr, $left:expr, $right:expr) => {{
        let (left, right): ($float, $float) = ($left, $right);
        let result = match $operator {
            Operator::Sum | Operator::Average => left + right,
            Operator::Product => left * right,
            _ if left.is_nan() || right.is_nan() => $float::NAN,
            Operator::Min if left == right => {
                if left.is_sign_negative() {
                    left
                } else {
                    right
                }
            }
            Operator::Max if left == right => {
                if left.is_sign_negative() {
                    right
                } else {
                    left
                }
            }
            Operator::Min => {
                if left < right {
                    left
                } else {
                    right
                }
            }
            Operator::Max => {
                if left > right {
                    left
                } else {
                    right
                }
            }
        };
        if result.is_nan() { $float::NAN } else { result }
    }};
}

macro_rules! floats {
    ($($float:ident: $roundoff:expr, $tiny:expr),+) => {$(
        impl Number for $float {
            const ROUNDOFF: f64 = $roundoff;

            fn small(value: i64) -> Self {
                value as $float
            }

            fn random(bits: u64) -> Self {
                (bits >> 11) as $float / (1u64 << 51) as $float - 2.0
            }

            fn special(choice: u64) -> Self {
                let specials = [
                    $float::NAN, -$float::NAN, $float::from_bits($float::NAN.to_bits() | 5), $float::INFINITY,
                    $float::NEG_INFINITY, 0.0, -0.0, $float::from_bits(1), -$float::from_bits(1), $tiny, $float::MAX,
                    $float::MIN, 1.0, -1.0,
                ];
                specials[choice as usize % specials.len()]
            }

            fn combine(self, operator: Operator, right: Self) -> Self {
                combine_floats!($float, operator, self, right)
            }

            fn finish(self, operator: Operator, n: usize) -> Self {
                if operator != Operator::Average || n == 1 {
                    return self;
                }
                let mean = self * (1.0 / n as $float);
                if mean.is_nan() { $float::NAN } else { mean }
            }

            fn wide(self) -> f64 {
                self.into()
            }
        }
    )+};
}
floats!(f32: f32::EPSILON as f64 / 2.0, f32::MIN_POSITIVE / 8.0, f64: f64::EPSILON / 2.0, f64::MIN_POSITIVE / 8.0);

macro_rules! halves {
    ($($half:ident: $bits:expr),+) => {$(
        impl Number for $half {
            const ROUNDOFF: f64 = 1.0 / (1u64 << $bits) as f64;

            fn small(value: i64) -> Self {
                $half::from_f32(value as f32)
            }

            fn random(bits: u64) -> Self {
                $half::from_f32(f32::random(bits))
            }

            fn special(choice: u64) -> Self {
                let specials = [
                    $half::NAN, $half::from_bits($half::NAN.to_bits() | 0x8005), $half::INFINITY, $half::NEG_INFINITY,
                    $half::ZERO, $half::NEG_ZERO, $half::from_bits(1), $half::from_bits(0x8001), $half::MAX, $half::MIN,
                    $half::ONE, $half::MIN_POSITIVE,
                ];
                specials[choice as usize % specials.len()]
            }

            fn combine(self, operator: Operator, right: Self) -> Self {
                $half::from_f32(combine_floats!(f32, operator, self.to_f32(), right.to_f32()))
            }

            fn finish(self, operator: Operator, n: usize) -> Self {
                if operator == Operator::Average { $half::from_f32(self.to_f32().finish(operator, n)) } else { self }
            }

            fn wide(self) -> f64 {
                self.to_f64()
            }
        }
    )+};
}
halves!(f16: 11, bf16: 8);

macro_rules! integers {
    ($($integer:ident),+) => {$(
        impl Number for $integer {
            const ROUNDOFF: f64 = 0.0;

            fn small(value: i64) -> Self {
                value as $integer
            }

            fn random(bits: u64) -> Self {
                (bits % 2001) as $integer - 1000
            }

            fn special(choice: u64) -> Self {
                [$integer::MIN, $integer::MAX, 0, -1][choice as usize % 4]
            }

            fn combine(self, operator: Operator, right: Self) -> Self {
                match operator {
                    Operator::Sum | Operator::Average => self.wrapping_add(right),
                    Operator::Product => self.wrapping_mul(right),
                    Operator::Min => self.min(right),
                    Operator::Max => self.max(right),
                }
            }

            fn finish(self, operator: Operator, n: usize) -> Self {
                if operator == Operator::Average { self / n as $integer } else { self }
            }

            fn wide(self) -> f64 {
                self as f64
            }
        }
    )+};
}
integers!(i32, i64);

/// The canonical tree T(n) by its definition: a power of two is summed half by half, another number of ranks is the
/// largest power of two ⊕ the rest.
pub(crate) fn canonical<T: Number>(values: &[T], operator: Operator) -> T {
    match values {
        [] => unreachable!("there is no sum over no ranks"),
        [value] => *value,
        _ => {
            let below = values.len().next_power_of_two() / 2;
            let (left, right) = values.split_at(below);
            canonical(left, operator).combine(operator, canonical(right, operator))
        }
    }
}

/// `((v₀ ⊕ v₁) ⊕ v₂) ⊕ …`
pub(crate) fn left_to_right<T: Number>(values: &[T], operator: Operator) -> T {
    values[1..].iter().fold(values[0], |sum, &value| sum.combine(operator, value))
}

/// A well-mixed number for each rank, index and seed (the finaliser of SplitMix64).
pub(crate) fn mixed(seed: u64, rank: usize, index: usize) -> u64 {
    let mut z = seed ^ (rank as u64) << 40 ^ index as u64;
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
