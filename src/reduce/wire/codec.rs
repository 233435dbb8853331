//! One block in each format. The loops are plain, so that the compiler can make them as wide as the machine that runs them.

use super::{BLOCK, WireFormat};
use half::f16;

/// Writes and reads at most [`BLOCK`] elements. All bodies are inlined into [`dispatch`], which knows the processor.
pub(super) trait Codec {
    /// Bytes of a full block.
    const BLOCK_BYTES: usize;

    fn encode(values: &[f32], into: &mut [u8]);

    /// The targets become what `from` holds, or with `ADD` that is added to them on the right.
    fn read<const ADD: bool>(from: &[u8], targets: &mut [f32]);
}

#[inline(always)]
fn set_or_add<const ADD: bool>(target: &mut f32, value: f32) {
    *target = if ADD { *target + value } else { value };
}

/// What is to be done with the codec of a format.
pub(super) trait Job {
    fn run<C: Codec>(self);
}

/// Runs the job with the codec of `format`, with the instructions that this processor has.
pub(super) fn dispatch(format: WireFormat, job: impl Job) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        // SAFETY: the processor has both, as just asked.
        return unsafe { dispatch_avx2(format, job) };
    }
    match format {
        WireFormat::F32 => job.run::<Single>(),
        WireFormat::F16 => job.run::<Half>(),
        WireFormat::Bf16 => job.run::<Brain>(),
        WireFormat::Int8 => job.run::<Int8>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn dispatch_avx2(format: WireFormat, job: impl Job) {
    match format {
        WireFormat::F32 => job.run::<Single>(),
        WireFormat::F16 => job.run::<HalfF16c>(),
        WireFormat::Bf16 => job.run::<Brain>(),
        WireFormat::Int8 => job.run::<Int8>(),
    }
}

/// Not narrowed.
struct Single;

impl Codec for Single {
    const BLOCK_BYTES: usize = 4 * BLOCK;

    #[inline(always)]
    fn encode(values: &[f32], into: &mut [u8]) {
        for (value, into) in values.iter().zip(into.as_chunks_mut().0) {
            *into = if value.is_nan() { f32::NAN } else { *value }.to_le_bytes();
        }
    }

    #[inline(always)]
    fn read<const ADD: bool>(from: &[u8], targets: &mut [f32]) {
        for (from, target) in from.as_chunks().0.iter().zip(targets) {
            set_or_add::<ADD>(target, f32::from_le_bytes(*from));
        }
    }
}

/// IEEE half precision, on any processor.
struct Half;

impl Codec for Half {
    const BLOCK_BYTES: usize = 2 * BLOCK;

    #[inline(always)]
    fn encode(values: &[f32], into: &mut [u8]) {
        for (value, into) in values.iter().zip(into.as_chunks_mut().0) {
            *into = if value.is_nan() { f16::NAN } else { f16::from_f32(*value) }.to_le_bytes();
        }
    }

    #[inline(always)]
    fn read<const ADD: bool>(from: &[u8], targets: &mut [f32]) {
        for (from, target) in from.as_chunks().0.iter().zip(targets) {
            set_or_add::<ADD>(target, f16::from_le_bytes(*from).to_f32());
        }
    }
}

/// IEEE half precision, eight at a time. Only to be run where the processor has F16C; the bits are those of [`Half`].
#[cfg(target_arch = "x86_64")]
struct HalfF16c;

#[cfg(target_arch = "x86_64")]
impl Codec for HalfF16c {
    const BLOCK_BYTES: usize = Half::BLOCK_BYTES;

    #[inline(always)]
    fn encode(values: &[f32], into: &mut [u8]) {
        use std::arch::x86_64::{
            _CMP_UNORD_Q, _MM_FROUND_TO_NEAREST_INT, _mm_storeu_si128, _mm256_blendv_ps, _mm256_cmp_ps,
            _mm256_cvtps_ph, _mm256_loadu_ps, _mm256_set1_ps,
        };
        let (eights, rest) = values.as_chunks::<8>();
        let (into, last) = into.split_at_mut(16 * eights.len());
        for (eight, into) in eights.iter().zip(into.as_chunks_mut::<16>().0) {
            // SAFETY: `dispatch_avx2` is the only way here, so the processor has AVX and F16C; both arrays are as long as
            // what is read and written, and neither need be aligned.
            unsafe {
                let value = _mm256_loadu_ps(eight.as_ptr());
                let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(value, value);
                let value = _mm256_blendv_ps(value, _mm256_set1_ps(f32::NAN), is_nan);
                let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value);
                _mm_storeu_si128(into.as_mut_ptr().cast(), halves);
            }
        }
        Half::encode(rest, last);
    }

    #[inline(always)]
    fn read<const ADD: bool>(from: &[u8], targets: &mut [f32]) {
        use std::arch::x86_64::{
            _mm_loadu_si128, _mm256_add_ps, _mm256_cvtph_ps, _mm256_loadu_ps, _mm256_storeu_ps,
        };
        let (eights, rest) = targets.as_chunks_mut::<8>();
        let (from, last) = from.split_at(16 * eights.len());
        for (eight, from) in eights.iter_mut().zip(from.as_chunks::<16>().0) {
            // SAFETY: as above.
            unsafe {
                let value = _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast()));
                let value = if ADD { _mm256_add_ps(_mm256_loadu_ps(eight.as_ptr()), value) } else { value };
                _mm256_storeu_ps(eight.as_mut_ptr(), value);
            }
        }
        Half::read::<ADD>(last, rest);
    }
}

/// The upper half of a single-precision number.
struct Brain;

impl Codec for Brain {
    const BLOCK_BYTES: usize = 2 * BLOCK;

    #[inline(always)]
    fn encode(values: &[f32], into: &mut [u8]) {
        for (value, into) in values.iter().zip(into.as_chunks_mut().0) {
            let bits = value.to_bits();
            // Half a step less one, and one more if what is kept is odd: ties go to even. A carry into the exponent is
            // right, up to infinity.
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            *into = if value.is_nan() { 0x7fc0 } else { rounded as u16 }.to_le_bytes();
        }
    }

    #[inline(always)]
    fn read<const ADD: bool>(from: &[u8], targets: &mut [f32]) {
        for (from, target) in from.as_chunks().0.iter().zip(targets) {
            set_or_add::<ADD>(target, f32::from_bits(u32::from(u16::from_le_bytes(*from)) << 16));
        }
    }
}

/// Bytes of a block's scale, which stands before its elements.
pub(super) const SCALE_BYTES: usize = 4;

/// Blocks whose largest magnitude is below this become zeros: their scale would be subnormal.
pub(super) const SMALLEST: f32 = 128.0 * f32::MIN_POSITIVE;

/// A little below the largest number, so that 127 times the scale never rounds up to infinity.
const LARGEST: f32 = f32::from_bits(f32::MAX.to_bits() - 8);

/// Adding this rounds a small number to an integer, ties to even, and leaves it in the lowest bits.
const ROUNDING: f32 = 1.5 * (1 << 23) as f32;

/// 8-bit integers with a scale.
struct Int8;

impl Codec for Int8 {
    const BLOCK_BYTES: usize = SCALE_BYTES + BLOCK;

    #[inline(always)]
    fn encode(values: &[f32], into: &mut [u8]) {
        let (scale, into) = into.split_at_mut(SCALE_BYTES);
        // Magnitudes compare like their bits, and infinities and NaNs are above all numbers.
        let largest = values.iter().fold(0, |largest: u32, value| largest.max(value.to_bits() & 0x7fff_ffff));
        let largest = f32::from_bits(largest);
        let step = if !largest.is_finite() {
            f32::NAN
        } else if largest < SMALLEST {
            0.0
        } else {
            largest.min(LARGEST) / 127.0
        };
        scale.copy_from_slice(&step.to_le_bytes());
        if step == 0.0 || step.is_nan() {
            into.fill(0);
            return;
        }
        let steps = 1.0 / step;
        for (value, into) in values.iter().zip(into) {
            *into = (value * steps + ROUNDING).to_bits() as u8;
        }
    }

    #[inline(always)]
    fn read<const ADD: bool>(from: &[u8], targets: &mut [f32]) {
        let Some((scale, from)) = from.split_first_chunk() else { return };
        let step = f32::from_le_bytes(*scale);
        for (from, target) in from.iter().zip(targets) {
            set_or_add::<ADD>(target, f32::from(*from as i8) * step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through<C: Codec>(values: &[f32], sums: &mut [f32]) -> Vec<u8> {
        let mut encoded = vec![0; C::BLOCK_BYTES];
        let bytes = encoded.len() - (BLOCK - values.len()) * (C::BLOCK_BYTES / BLOCK);
        let encoded = &mut encoded[..bytes];
        C::encode(values, encoded);
        C::read::<true>(encoded, sums);
        encoded.to_vec()
    }

    /// The same without what this processor can do more.
    #[test]
    fn every_processor_writes_and_reads_the_same_bits() {
        struct Through<'a>(&'a [f32], &'a mut [f32], &'a mut Vec<u8>);
        impl Job for Through<'_> {
            fn run<C: Codec>(self) {
                *self.2 = through::<C>(self.0, self.1);
            }
        }
        for seed in 0..5000u32 {
            let random = |index: u32| (seed << 8 ^ index).wrapping_mul(0x9e37_79b9).rotate_left(13);
            let values: Vec<f32> =
                (0..BLOCK as u32 - seed % 20).map(|index| f32::from_bits(random(index))).collect();
            let start: Vec<f32> = (0..values.len() as u32).map(|index| random(index) as f32 * 1e-9).collect();
            let check = |format, plain: fn(&[f32], &mut [f32]) -> Vec<u8>| {
                let (mut sums, mut plain_sums) = (start.clone(), start.clone());
                let mut encoded = Vec::new();
                dispatch(format, Through(&values, &mut sums, &mut encoded));
                assert_eq!(encoded, plain(&values, &mut plain_sums), "{format}");
                let same = |(sum, plain): (&f32, &f32)| {
                    sum.to_bits() == plain.to_bits() || sum.is_nan() && plain.is_nan()
                };
                assert!(sums.iter().zip(&plain_sums).all(same), "{format}");
            };
            check(WireFormat::F32, through::<Single>);
            check(WireFormat::F16, through::<Half>);
            check(WireFormat::Bf16, through::<Brain>);
            check(WireFormat::Int8, through::<Int8>);
        }
    }
}
