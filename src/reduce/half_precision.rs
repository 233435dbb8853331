//! IEEE half precision: converted to f32 in blocks, reduced there, rounded once. The conversions have instructions of
//! their own (F16C, AVX-512), which no loop is turned into by itself.

use super::Operator;
use super::arithmetic::{Arithmetic, Float};
use super::kernels::{Target, each};
use super::level::Level;
use bytemuck::{cast_slice, cast_slice_mut};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Elements per block: both operands as f32 stay in the first cache.
const BLOCK: usize = 512;

/// One operand of a block as f32.
type Wide = [f32; BLOCK];

/// The two conversions with one set of instructions. Slices are of the same length, at most [`BLOCK`].
///
/// # Safety
/// The processor must have the instructions.
trait Convert {
    unsafe fn widen(from: &[f16], into: &mut [f32]);
    unsafe fn narrow(from: &[f32], into: &mut [f16]);
}

/// What a function of this file does, whichever instructions convert.
trait Work {
    /// # Safety
    /// The processor must have the instructions of `C`.
    unsafe fn run<C: Convert>(self);
}

/// Reduces two operands; see [`super::reduce_into`].
pub(super) fn reduce(operator: Operator, target: Target<'_>) {
    dispatch(Reduce { operator, target });
}

/// Multiplies by `factor`.
pub(super) fn scale(values: &mut [f16], factor: f32) {
    dispatch(Scale { values, factor });
}

fn dispatch<W: Work>(work: W) {
    // SAFETY: each level is only chosen where the processor has its instructions.
    unsafe {
        match Level::of_this_machine() {
            Level::Baseline => work.run::<Portable>(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => x86::with_avx2(work),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => x86::with_avx512(work),
        }
    }
}

struct Reduce<'a> {
    operator: Operator,
    target: Target<'a>,
}

impl Work for Reduce<'_> {
    #[inline(always)]
    unsafe fn run<C: Convert>(self) {
        let operator = self.operator;
        let mut sums = Sums { operator, left: [0.0; BLOCK], right: [0.0; BLOCK] };
        // SAFETY: the caller vouches for the instructions; blocks of both operands are of the same length.
        unsafe {
            match self.target {
                Target::Left { left, right } => {
                    let (left, right) = (cast_slice_mut::<u8, f16>(left), cast_slice::<u8, f16>(right));
                    assert_eq!(left.len(), right.len());
                    for (left, right) in left.chunks_mut(BLOCK).zip(right.chunks(BLOCK)) {
                        C::narrow(sums.of::<C>(left, right), left);
                    }
                }
                Target::Right { left, right } => {
                    let (left, right) = (cast_slice::<u8, f16>(left), cast_slice_mut::<u8, f16>(right));
                    assert_eq!(left.len(), right.len());
                    for (left, right) in left.chunks(BLOCK).zip(right.chunks_mut(BLOCK)) {
                        C::narrow(sums.of::<C>(left, right), right);
                    }
                }
                Target::Separate { into, left, right } => {
                    let into = cast_slice_mut::<u8, f16>(into);
                    let (left, right) = (cast_slice::<u8, f16>(left), cast_slice::<u8, f16>(right));
                    assert!(into.len() == left.len() && into.len() == right.len());
                    let operands = left.chunks(BLOCK).zip(right.chunks(BLOCK));
                    for (into, (left, right)) in into.chunks_mut(BLOCK).zip(operands) {
                        C::narrow(sums.of::<C>(left, right), into);
                    }
                }
            }
        }
    }
}

/// One block of both operands as f32.
struct Sums {
    operator: Operator,
    left: Wide,
    right: Wide,
}

impl Sums {
    /// The reduction of a block, not yet rounded.
    ///
    /// # Safety
    /// The processor must have the instructions of `C`.
    #[inline(always)]
    unsafe fn of<C: Convert>(&mut self, left: &[f16], right: &[f16]) -> &[f32] {
        let (l, r) = (&mut self.left[..left.len()], &mut self.right[..left.len()]);
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            C::widen(left, l);
            C::widen(right, r);
        }
        let target = Target::Left { left: cast_slice_mut(l), right: cast_slice(r) };
        match self.operator {
            Operator::Sum | Operator::Average => each(target, <f32 as Arithmetic>::add),
            Operator::Product => each(target, <f32 as Arithmetic>::multiply),
            Operator::Min => each(target, <f32 as Arithmetic>::minimum),
            Operator::Max => each(target, <f32 as Arithmetic>::maximum),
        }
        &self.left[..left.len()]
    }
}

struct Scale<'a> {
    values: &'a mut [f16],
    factor: f32,
}

impl Work for Scale<'_> {
    #[inline(always)]
    unsafe fn run<C: Convert>(self) {
        let mut wide = [0f32; BLOCK];
        for block in self.values.chunks_mut(BLOCK) {
            let wide = &mut wide[..block.len()];
            // SAFETY: the caller vouches for the instructions; both slices are of the same length.
            unsafe {
                C::widen(block, wide);
                wide.iter_mut().for_each(|value| *value = (*value * self.factor).quiet());
                C::narrow(wide, block);
            }
        }
    }
}

/// The conversions of the `half` crate.
struct Portable;

impl Convert for Portable {
    #[inline(always)]
    unsafe fn widen(from: &[f16], into: &mut [f32]) {
        from.convert_to_f32_slice(into);
    }

    #[inline(always)]
    unsafe fn narrow(from: &[f32], into: &mut [f16]) {
        into.convert_from_f32_slice(from);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Both instructions treat subnormal numbers exactly, whatever the caller's FTZ and DAZ are.

    use super::{Convert, Work};
    use half::f16;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2,f16c")]
    pub(super) unsafe fn with_avx2<W: Work>(work: W) {
        // SAFETY: this function has the instructions.
        unsafe { work.run::<Eight>() }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn with_avx512<W: Work>(work: W) {
        // SAFETY: this function has the instructions.
        unsafe { work.run::<Sixteen>() }
    }

    macro_rules! conversions {
        ($name:ident, $doc:literal, $lanes:literal, $load:ident, $narrow:ty, $widen:ident, $store_wide:ident,
         $load_wide:ident, $round:ident, $store:ident) => {
            #[doc = $doc]
            struct $name;

            impl Convert for $name {
                #[inline(always)]
                unsafe fn widen(from: &[f16], into: &mut [f32]) {
                    assert_eq!(from.len(), into.len());
                    let whole = from.len() / $lanes * $lanes;
                    for at in (0..whole).step_by($lanes) {
                        // SAFETY: the lanes are inside both slices; the caller vouches for the instructions.
                        unsafe {
                            let halves = $load(from.as_ptr().add(at).cast::<$narrow>());
                            $store_wide(into.as_mut_ptr().add(at), $widen(halves));
                        }
                    }
                    for at in whole..from.len() {
                        into[at] = from[at].to_f32();
                    }
                }

                #[inline(always)]
                unsafe fn narrow(from: &[f32], into: &mut [f16]) {
                    assert_eq!(from.len(), into.len());
                    let whole = from.len() / $lanes * $lanes;
                    for at in (0..whole).step_by($lanes) {
                        // SAFETY: the lanes are inside both slices; the caller vouches for the instructions.
                        unsafe {
                            let wide = $load_wide(from.as_ptr().add(at));
                            let halves = $round::<_MM_FROUND_TO_NEAREST_INT>(wide);
                            $store(into.as_mut_ptr().add(at).cast::<$narrow>(), halves);
                        }
                    }
                    for at in whole..from.len() {
                        into[at] = f16::from_f32(from[at]);
                    }
                }
            }
        };
    }

    conversions!(
        Eight,
        "Eight at a time with F16C.",
        8,
        _mm_loadu_si128,
        __m128i,
        _mm256_cvtph_ps,
        _mm256_storeu_ps,
        _mm256_loadu_ps,
        _mm256_cvtps_ph,
        _mm_storeu_si128
    );
    conversions!(
        Sixteen,
        "Sixteen at a time with AVX-512.",
        16,
        _mm256_loadu_si256,
        __m256i,
        _mm512_cvtph_ps,
        _mm512_storeu_ps,
        _mm512_loadu_ps,
        _mm512_cvtps_ph,
        _mm256_storeu_si256
    );
}
