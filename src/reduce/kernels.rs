//! The reduction of two operands. Three aliasing forms are written out because the optimiser only vectorises what it can
//! prove disjoint.

use super::arithmetic::Arithmetic;
use super::half_precision;
use super::level::{Loop, dispatch};
use super::{ElementType, Operator};
use bytemuck::{cast_slice, cast_slice_mut};
use half::bf16;
use std::marker::PhantomData;

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

/// Reduces `left ∘ right` element by element. All slices hold the same number of elements of `element`.
///
/// `Average` adds; [`scale_for_average`](super::scale_for_average) finishes it.
///
/// # Panics
/// If the lengths differ or a slice is not aligned for its element type.
pub fn reduce_into(element: ElementType, operator: Operator, target: Target<'_>) {
    match element {
        ElementType::F32 => typed::<f32>(operator, target),
        ElementType::F64 => typed::<f64>(operator, target),
        ElementType::I32 => typed::<i32>(operator, target),
        ElementType::I64 => typed::<i64>(operator, target),
        ElementType::F16 => half_precision::reduce(operator, target),
        ElementType::BF16 => typed::<bf16>(operator, target),
    }
}

fn typed<T: Arithmetic>(operator: Operator, target: Target<'_>) {
    match operator {
        Operator::Sum | Operator::Average => dispatch(Each::new(target, T::add)),
        Operator::Product => dispatch(Each::new(target, T::multiply)),
        Operator::Min => dispatch(Each::new(target, T::minimum)),
        Operator::Max => dispatch(Each::new(target, T::maximum)),
    }
}

/// One operation for each element.
struct Each<'a, T, F> {
    target: Target<'a>,
    operation: F,
    elements: PhantomData<T>,
}

impl<'a, T: Arithmetic, F: Fn(T, T) -> T> Each<'a, T, F> {
    fn new(target: Target<'a>, operation: F) -> Self {
        Each { target, operation, elements: PhantomData }
    }
}

impl<T: Arithmetic, F: Fn(T, T) -> T> Loop for Each<'_, T, F> {
    #[inline(always)]
    fn run(self) {
        each(self.target, self.operation);
    }
}

#[inline(always)]
pub(super) fn each<T: Arithmetic>(target: Target<'_>, operation: impl Fn(T, T) -> T) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reduce::Element;
    use half::f16;

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

    /// Every bit pattern against many others, with the conversions of the `half` crate one by one.
    #[test]
    fn sixteen_bit_results_are_those_of_single_precision_rounded_once() {
        fn check<H: Element>(bits: impl Fn(u16) -> H, wide: impl Fn(H) -> f32, narrow: impl Fn(f32) -> H) {
            let left: Vec<H> = (0..=u16::MAX).map(&bits).collect();
            for seed in 0..40u16 {
                let others =
                    (0..=u16::MAX).map(|i| bits(i.wrapping_mul(seed.wrapping_mul(2) + 1) ^ seed << 8));
                let right: Vec<H> = others.collect();
                type Pair = (Operator, fn(f32, f32) -> f32);
                let operations: [Pair; 2] =
                    [(Operator::Sum, |l, r| l + r), (Operator::Product, |l, r| l * r)];
                for (operator, operation) in operations {
                    let mut result = left.clone();
                    let target =
                        Target::Left { left: cast_slice_mut(&mut result), right: cast_slice(&right) };
                    reduce_into(H::TYPE, operator, target);
                    for ((&l, &r), result) in left.iter().zip(&right).zip(result) {
                        let exact = operation(wide(l), wide(r));
                        let expected = narrow(if exact.is_nan() { f32::NAN } else { exact });
                        let same = bytemuck::bytes_of(&result) == bytemuck::bytes_of(&expected);
                        assert!(same, "{operator} of {l:?} and {r:?}: {result:?}, not {expected:?}");
                    }
                }
            }
        }
        check(bf16::from_bits, bf16::to_f32, bf16::from_f32);
        check(f16::from_bits, f16::to_f32, f16::from_f32);
    }
}
