//! Sums of two to eight floats in registers: every operand is loaded once and nothing between is stored.

use super::arithmetic::Float;
use super::level::Level;
use super::{ElementType, Operator};

/// The most operands that are summed in one go.
pub(super) const MOST: usize = 8;

/// Whether [`canonical_sum`] can do it.
pub(super) fn fits(element: ElementType, operator: Operator, n: usize) -> bool {
    matches!(element, ElementType::F32 | ElementType::F64)
        && matches!(operator, Operator::Sum | Operator::Average)
        && (2..=MOST).contains(&n)
}

/// The canonical tree of sums, `sources[i]` being rank i. Which reductions it can do is for [`fits`] to say.
///
/// # Safety
/// `into` and every source must be aligned for the element; every source must be valid for reads of `into.len()` bytes,
/// and must not overlap `into`.
pub(super) unsafe fn canonical_sum(element: ElementType, into: &mut [u8], sources: &[*const u8]) {
    // SAFETY: the caller's promise is passed on.
    unsafe {
        match element {
            ElementType::F64 => by_number::<f64>(bytemuck::cast_slice_mut(into), sources),
            _ => by_number::<f32>(bytemuck::cast_slice_mut(into), sources),
        }
    }
}

/// # Safety
/// As [`canonical_sum`].
unsafe fn by_number<T: Float>(into: &mut [T], sources: &[*const u8]) {
    macro_rules! of {
        ($n:literal) => {{
            let sources: [*const T; $n] = std::array::from_fn(|i| sources[i].cast());
            match Level::of_this_machine() {
                Level::Baseline => baseline(into, &sources),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => avx2(into, &sources),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => avx512(into, &sources),
            }
        }};
    }
    // SAFETY: the caller's promise is passed on, and each level is only chosen where the processor has it.
    unsafe {
        match sources.len() {
            2 => of!(2),
            3 => of!(3),
            4 => of!(4),
            5 => of!(5),
            6 => of!(6),
            7 => of!(7),
            8 => of!(8),
            n => unreachable!("{n} operands are not summed in one go"),
        }
    }
}

/// T(N) over the operands that `at` gives.
#[inline(always)]
fn tree<T: Float, const N: usize>(at: impl Fn(usize) -> T) -> T {
    let two = |i: usize| at(i).plus(at(i + 1));
    let four = |i: usize| two(i).plus(two(i + 2));
    let sum = match N {
        2 => two(0),
        3 => two(0).plus(at(2)),
        4 => four(0),
        5 => four(0).plus(at(4)),
        6 => four(0).plus(two(4)),
        7 => four(0).plus(two(4).plus(at(6))),
        _ => four(0).plus(four(4)),
    };
    sum.quiet()
}

/// A function for each level, none of them inlined: the compiler believes that `into` overlaps no source because it is
/// an argument of a function, and would check eight pairs at run time, or give up, without that.
macro_rules! levels {
    ($($(#[$attribute:meta])* $name:ident),+) => {$(
        /// # Safety
        /// As [`canonical_sum`], and the processor must have the instructions.
        $(#[$attribute])*
        #[inline(never)]
        unsafe fn $name<T: Float, const N: usize>(into: &mut [T], sources: &[*const T; N]) {
            let sources = *sources;
            for (i, into) in into.iter_mut().enumerate() {
                // SAFETY: every source has as many elements as `into`.
                *into = tree::<T, N>(|rank| unsafe { sources[rank].add(i).read() });
            }
        }
    )+};
}
levels!(
    baseline,
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    avx2,
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    avx512
);
