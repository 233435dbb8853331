//! The arithmetic of one element, in a form that loops over elements can be vectorised with.

use super::Element;
use half::bf16;

/// The operators on one element. Everything is inlined into the loops, which the compiler then vectorises.
pub(super) trait Arithmetic: Element {
    fn add(self, right: Self) -> Self;
    fn multiply(self, right: Self) -> Self;
    fn minimum(self, right: Self) -> Self;
    fn maximum(self, right: Self) -> Self;
}

/// Sums of several numbers in registers: a NaN stays a NaN on its way through a tree, so one look at the end is enough.
pub(super) trait Float: Arithmetic {
    /// `self + right`, where a NaN keeps whatever bits the machine gives it.
    fn plus(self, right: Self) -> Self;
    /// The canonical NaN for any NaN, everything else as it is.
    fn quiet(self) -> Self;
}

macro_rules! float_arithmetic {
    ($($float:ident),+) => {$(
        impl Arithmetic for $float {
            #[inline(always)]
            fn add(self, right: Self) -> Self {
                self.plus(right).quiet()
            }
            #[inline(always)]
            fn multiply(self, right: Self) -> Self {
                (self * right).quiet()
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

        impl Float for $float {
            #[inline(always)]
            fn plus(self, right: Self) -> Self {
                self + right
            }
            #[inline(always)]
            fn quiet(self) -> Self {
                if self.is_nan() { $float::NAN } else { self }
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

/// The nearest bf16, ties to even, in integer arithmetic: the conversion instruction of AVX-512 would flush subnormal
/// numbers to zero, and a branch for NaN would keep the loop from being vectorised.
#[inline(always)]
pub(super) fn round_to_bf16(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    bf16::from_bits(if value.is_nan() { bf16::NAN.to_bits() } else { rounded as u16 })
}

/// Exact: a bf16 is the upper half of an f32.
#[inline(always)]
pub(super) fn widen_bf16(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

macro_rules! bf16_arithmetic {
    ($($operation:ident),+) => {
        impl Arithmetic for bf16 {
            $(#[inline(always)]
            fn $operation(self, right: Self) -> Self {
                round_to_bf16(Arithmetic::$operation(widen_bf16(self), widen_bf16(right)))
            })+
        }
    };
}
bf16_arithmetic!(add, multiply, minimum, maximum);
