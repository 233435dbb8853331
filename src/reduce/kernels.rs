//! The loops. Three aliasing forms are written out because the optimiser only vectorises what it can prove disjoint.

use super::{Element, ElementType, Operator};
use bytemuck::{cast_slice, cast_slice_mut};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Where the result of a reduction goes.
pub enum Target<'a> {
    /// Into the left operand.
    Left {
        /// Left operand and result.
        left: &'a mut [u8],
        /// Right operand.
        right: &'a [u8],
    },
    /// Into the right operand.
    Right {
        /// Left operand.
        left: &'a [u8],
        /// Right operand and result.
        right: &'a mut [u8],
    },
    /// Into memory of its own.
    Separate {
        /// Result.
        into: &'a mut [u8],
        /// Left operand.
        left: &'a [u8],
        /// Right operand.
        right: &'a [u8],
    },
}

trait Arithmetic: Element {
    fn add(self, right: Self) -> Self;
    fn multiply(self, right: Self) -> Self;
    fn minimum(self, right: Self) -> Self;
    fn maximum(self, right: Self) -> Self;
}

/// Any NaN becomes the canonical one.
macro_rules! quiet {
    ($float:ident, $value:expr) => {{
        let value = $value;
        if value.is_nan() { $float::NAN } else { value }
    }};
}

macro_rules! float_arithmetic {
    ($($float:ident),+) => {$(
        impl Arithmetic for $float {
            #[inline(always)]
            fn add(self, right: Self) -> Self {
                quiet!($float, self + right)
            }
            #[inline(always)]
            fn multiply(self, right: Self) -> Self {
                quiet!($float, self * right)
            }
            #[inline(always)]
            fn minimum(self, right: Self) -> Self {
                // Equal operands are the same number or two zeros: or-ing the bits keeps a minus sign.
                let equal = $float::from_bits(self.to_bits() | right.to_bits());
                let ordered = if self < right { self } else { right };
                let number = if self == right { equal } else { ordered };
                if self.is_nan() || right.is_nan() { $float::NAN } else { number }
            }
            #[inline(always)]
            fn maximum(self, right: Self) -> Self {
                let equal = $float::from_bits(self.to_bits() & right.to_bits());
                let ordered = if self > right { self } else { right };
                let number = if self == right { equal } else { ordered };
                if self.is_nan() || right.is_nan() { $float::NAN } else { number }
            }
        }
    )+};
}
float_arithmetic!(f32, f64);

macro_rules! integer_arithmetic {
    ($($integer:ident),+) => {$(
        impl Arithmetic for $integer {
            #[inline(always)]
            fn add(self, right: Self) -> Self {
                self.wrapping_add(right)
            }
            #[inline(always)]
            fn multiply(self, right: Self) -> Self {
                self.wrapping_mul(right)
            }
            #[inline(always)]
            fn minimum(self, right: Self) -> Self {
                self.min(right)
            }
            #[inline(always)]
            fn maximum(self, right: Self) -> Self {
                self.max(right)
            }
        }
    )+};
}
integer_arithmetic!(i32, i64);

/// Reduces `left ∘ right` element by element. All slices hold the same number of elements of `element`.
///
/// `Average` adds; [`scale_for_average`] finishes it.
///
/// # Panics
/// If the lengths differ or a slice is not aligned for its element type.
pub fn reduce_into(element: ElementType, operator: Operator, target: Target<'_>) {
    match element {
        ElementType::F32 => typed::<f32>(operator, target),
        ElementType::F64 => typed::<f64>(operator, target),
        ElementType::I32 => typed::<i32>(operator, target),
        ElementType::I64 => typed::<i64>(operator, target),
        ElementType::F16 => narrow::<f16>(operator, target),
        ElementType::BF16 => narrow::<bf16>(operator, target),
    }
}

fn typed<T: Arithmetic>(operator: Operator, target: Target<'_>) {
    match operator {
        Operator::Sum | Operator::Average => each(target, T::add),
        Operator::Product => each(target, T::multiply),
        Operator::Min => each(target, T::minimum),
        Operator::Max => each(target, T::maximum),
    }
}

#[inline(always)]
fn each<T: Arithmetic>(target: Target<'_>, operation: impl Fn(T, T) -> T) {
    match target {
        Target::Left { left, right } => {
            let (left, right) = (cast_slice_mut::<u8, T>(left), cast_slice::<u8, T>(right));
            assert_eq!(left.len(), right.len());
            for (l, r) in left.iter_mut().zip(right) {
                *l = operation(*l, *r);
            }
        }
        Target::Right { left, right } => {
            let (left, right) = (cast_slice::<u8, T>(left), cast_slice_mut::<u8, T>(right));
            assert_eq!(left.len(), right.len());
            for (l, r) in left.iter().zip(right) {
                *r = operation(*l, *r);
            }
        }
        Target::Separate { into, left, right } => {
            let into = cast_slice_mut::<u8, T>(into);
            let (left, right) = (cast_slice::<u8, T>(left), cast_slice::<u8, T>(right));
            assert!(into.len() == left.len() && into.len() == right.len());
            for ((into, l), r) in into.iter_mut().zip(left).zip(right) {
                *into = operation(*l, *r);
            }
        }
    }
}

/// Elements per block of the 16-bit path: converting in blocks is several times faster than one by one.
const BLOCK: usize = 512;

fn narrow<H: Element>(operator: Operator, target: Target<'_>)
where
    [H]: HalfFloatSliceExt,
{
    match target {
        Target::Left { left, right } => {
            let (left, right) = (cast_slice_mut::<u8, H>(left), cast_slice::<u8, H>(right));
            assert_eq!(left.len(), right.len());
            for (left, right) in left.chunks_mut(BLOCK).zip(right.chunks(BLOCK)) {
                let sum = widened(operator, left, right);
                left.convert_from_f32_slice(&sum[..right.len()]);
            }
        }
        Target::Right { left, right } => {
            let (left, right) = (cast_slice::<u8, H>(left), cast_slice_mut::<u8, H>(right));
            assert_eq!(left.len(), right.len());
            for (left, right) in left.chunks(BLOCK).zip(right.chunks_mut(BLOCK)) {
                let sum = widened(operator, left, right);
                right.convert_from_f32_slice(&sum[..left.len()]);
            }
        }
        Target::Separate { into, left, right } => {
            let into = cast_slice_mut::<u8, H>(into);
            let (left, right) = (cast_slice::<u8, H>(left), cast_slice::<u8, H>(right));
            assert!(into.len() == left.len() && into.len() == right.len());
            for ((into, left), right) in
                into.chunks_mut(BLOCK).zip(left.chunks(BLOCK)).zip(right.chunks(BLOCK))
            {
                let sum = widened(operator, left, right);
                into.convert_from_f32_slice(&sum[..left.len()]);
            }
        }
    }
}

fn widened<H>(operator: Operator, left: &[H], right: &[H]) -> [f32; BLOCK]
where
    [H]: HalfFloatSliceExt,
{
    let (mut l, mut r) = ([0f32; BLOCK], [0f32; BLOCK]);
    left.convert_to_f32_slice(&mut l[..left.len()]);
    right.convert_to_f32_slice(&mut r[..right.len()]);
    let (left, right) = (bytemuck::bytes_of_mut(&mut l), bytemuck::bytes_of(&r));
    typed::<f32>(operator, Target::Left { left, right });
    l
}

/// Finishes an average of `n` ranks: multiplies floats by 1/n, divides integers (truncating toward zero).
pub fn scale_for_average(element: ElementType, bytes: &mut [u8], n: usize) {
    if n == 1 {
        return;
    }
    match element {
        ElementType::F32 => {
            let factor = 1.0 / n as f32;
            cast_slice_mut::<u8, f32>(bytes).iter_mut().for_each(|v| *v = quiet!(f32, *v * factor));
        }
        ElementType::F64 => {
            let factor = 1.0 / n as f64;
            cast_slice_mut::<u8, f64>(bytes).iter_mut().for_each(|v| *v = quiet!(f64, *v * factor));
        }
        ElementType::I32 => cast_slice_mut::<u8, i32>(bytes).iter_mut().for_each(|v| *v /= n as i32),
        ElementType::I64 => cast_slice_mut::<u8, i64>(bytes).iter_mut().for_each(|v| *v /= n as i64),
        ElementType::F16 => scale_narrow(cast_slice_mut::<u8, f16>(bytes), n),
        ElementType::BF16 => scale_narrow(cast_slice_mut::<u8, bf16>(bytes), n),
    }
}

fn scale_narrow<H>(values: &mut [H], n: usize)
where
    [H]: HalfFloatSliceExt,
{
    let factor = 1.0 / n as f32;
    let mut wide = [0f32; BLOCK];
    for block in values.chunks_mut(BLOCK) {
        let wide = &mut wide[..block.len()];
        block.convert_to_f32_slice(wide);
        wide.iter_mut().for_each(|v| *v = quiet!(f32, *v * factor));
        block.convert_from_f32_slice(wide);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduce<T: Element>(operator: Operator, left: T, right: T) -> [T; 3] {
        let (mut l, mut r, mut into) = ([left], [right], [T::default()]);
        reduce_into(
            T::TYPE,
            operator,
            Target::Separate {
                into: cast_slice_mut(&mut into),
                left: cast_slice(&[left]),
                right: cast_slice(&[right]),
            },
        );
        reduce_into(
            T::TYPE,
            operator,
            Target::Left { left: cast_slice_mut(&mut l), right: cast_slice(&[right]) },
        );
        reduce_into(
            T::TYPE,
            operator,
            Target::Right { left: cast_slice(&[left]), right: cast_slice_mut(&mut r) },
        );
        [into[0], l[0], r[0]]
    }

    #[test]
    fn all_three_forms_agree() {
        assert_eq!(reduce(Operator::Sum, 1.5f32, 2.0), [3.5; 3]);
        assert_eq!(reduce(Operator::Product, 3i32, -4), [-12; 3]);
        assert_eq!(reduce(Operator::Min, 3i64, -4), [-4; 3]);
        assert_eq!(reduce(Operator::Max, 3f64, -4.0), [3.0; 3]);
        assert_eq!(reduce(Operator::Sum, i32::MAX, 1), [i32::MIN; 3]);
        let half = f16::from_f32;
        assert_eq!(reduce(Operator::Sum, half(1.5), half(2.0)), [half(3.5); 3]);
    }

    #[test]
    fn minimum_and_maximum_follow_ieee_754_2019() {
        for (left, right) in [(-0.0f32, 0.0f32), (0.0, -0.0)] {
            for value in reduce(Operator::Min, left, right) {
                assert!(value.is_sign_negative());
            }
            for value in reduce(Operator::Max, left, right) {
                assert!(value.is_sign_positive());
            }
        }
        for operator in [Operator::Min, Operator::Max, Operator::Sum, Operator::Product] {
            for (left, right) in [(f32::NAN, 1.0), (1.0, -f32::NAN), (f32::NAN, f32::INFINITY)] {
                for value in reduce(operator, left, right) {
                    assert_eq!(value.to_bits(), f32::NAN.to_bits());
                }
            }
        }
        assert_eq!(reduce(Operator::Min, f32::NEG_INFINITY, 1.0), [f32::NEG_INFINITY; 3]);
    }

    #[test]
    fn sixteen_bit_sums_round_once() {
        let (left, right) = (bf16::from_f32(1.0), bf16::from_f32(0.004));
        let expected = bf16::from_f32(1.0f32 + right.to_f32());
        assert_eq!(reduce(Operator::Sum, left, right), [expected; 3]);
    }

    #[test]
    fn integer_average_truncates_toward_zero() {
        let mut values = [7i32, -7];
        scale_for_average(ElementType::I32, cast_slice_mut(&mut values), 2);
        assert_eq!(values, [3, -3]);
    }
}
