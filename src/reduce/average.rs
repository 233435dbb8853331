//! The last step of an average.

use super::ElementType;
use super::arithmetic::{Float, round_to_bf16, widen_bf16};
use super::half_precision;
use super::level::{Loop, dispatch};
use bytemuck::cast_slice_mut;
use half::bf16;

/// Finishes an average of `n` ranks: multiplies floats by 1/n, divides integers (truncating toward zero).
///
/// # Panics
/// If `bytes` is not aligned for its element type, or not a whole number of elements.
pub fn scale_for_average(element: ElementType, bytes: &mut [u8], n: usize) {
    if n == 1 {
        return;
    }
    match element {
        ElementType::F32 => {
            let factor = 1.0 / n as f32;
            map(cast_slice_mut(bytes), move |value: f32| (value * factor).quiet());
        }
        ElementType::F64 => {
            let factor = 1.0 / n as f64;
            map(cast_slice_mut(bytes), move |value: f64| (value * factor).quiet());
        }
        ElementType::BF16 => {
            let factor = 1.0 / n as f32;
            map(cast_slice_mut(bytes), move |value: bf16| {
                round_to_bf16((widen_bf16(value) * factor).quiet())
            });
        }
        ElementType::F16 => half_precision::scale(cast_slice_mut(bytes), 1.0 / n as f32),
        ElementType::I32 => {
            let (multiplier, shift) = reciprocal(n as u32);
            map(cast_slice_mut(bytes), move |value: i32| {
                let quotient = ((u64::from(value.unsigned_abs()) * u64::from(multiplier)) >> shift) as i32;
                if value < 0 { quotient.wrapping_neg() } else { quotient }
            });
        }
        ElementType::I64 => map(cast_slice_mut(bytes), move |value: i64| value / n as i64),
    }
}

/// A multiplication and a shift that divide every absolute value of an `i32`, for no vector unit can divide:
/// ⌊a/n⌋ = ⌊a·m / 2^s⌋ for 2 ≤ n < 2^31 and a ≤ 2^31, with s = 31 + ⌈lg n⌉ and m = ⌊2^s/n⌋ + 1.
///
/// Why: m·n = 2^s + e with 0 < e ≤ n ≤ 2^(s−31), so a·m/2^s lies above a/n by at most a·e/(n·2^s) ≤ 1/n; it could only
/// reach the next whole number for a = 2^31, e = n = 2^(s−31), where a/n has no fraction.
fn reciprocal(n: u32) -> (u32, u32) {
    let shift = 31 + n.next_power_of_two().ilog2();
    (((1u64 << shift) / u64::from(n) + 1) as u32, shift)
}

struct Map<'a, T, F> {
    values: &'a mut [T],
    operation: F,
}

impl<T: Copy, F: Fn(T) -> T> Loop for Map<'_, T, F> {
    #[inline(always)]
    fn run(self) {
        for value in self.values {
            *value = (self.operation)(*value);
        }
    }
}

fn map<T: Copy>(values: &mut [T], operation: impl Fn(T) -> T) {
    dispatch(Map { values, operation });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integer_average_truncates_toward_zero() {
        let mut values = [7i32, -7];
        scale_for_average(ElementType::I32, cast_slice_mut(&mut values), 2);
        assert_eq!(values, [3, -3]);
    }

    #[test]
    fn every_quotient_is_exact() {
        let edges = [0, 1, 2, 1 << 30, i32::MAX - 1, i32::MAX, i32::MIN, i32::MIN + 1];
        let spread = (0..1000u32).map(|i| i.wrapping_mul(2_654_435_761) as i32);
        let divisors = (2..=300).chain([1000, 4095, 4096, 65_537, i32::MAX as usize]);
        for n in divisors {
            let multiples = [-2, -1, 1, 2, 77].map(|k| (n as i32).wrapping_mul(k));
            let near = multiples.iter().flat_map(|m| [m.wrapping_sub(1), *m, m.wrapping_add(1)]);
            let values: Vec<i32> = edges.iter().copied().chain(spread.clone()).chain(near).collect();
            let mut scaled = values.clone();
            scale_for_average(ElementType::I32, cast_slice_mut(&mut scaled), n);
            for (value, scaled) in values.iter().zip(scaled) {
                assert_eq!(scaled, value / n as i32, "{value} / {n}");
            }
        }
    }
}
