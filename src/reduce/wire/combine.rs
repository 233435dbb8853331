//! What the owner of a part does: decodes every rank's contribution, adds them, and writes the result.

use super::codec::{Codec, Job, dispatch};
use super::{BLOCK, WireFormat};

/// The encoded contributions of `count` ranks to the same elements, in rank order and `stride` bytes apart.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    pub(crate) first: *const u8,
    pub(crate) stride: usize,
    pub(crate) count: usize,
}

/// The sums of operands that wait for their right-hand neighbour: one block each, and how many operands it holds.
///
/// Kept between calls. Operands are added as a binary counter carries: two sums of equally many become one. What remains
/// at the end are the blocks of the canonical tree, the largest first.
#[derive(Default)]
pub(crate) struct Sums {
    waiting: Vec<Waiting>,
}

struct Waiting {
    count: usize,
    sum: [f32; BLOCK],
}

impl Sums {
    /// Makes room for the operands of `ranks` ranks.
    pub(crate) fn reserve(&mut self, ranks: usize) {
        let most = ranks.max(1).ilog2() as usize + 1;
        if self.waiting.len() < most {
            self.waiting.resize_with(most, || Waiting { count: 0, sum: [0.0; BLOCK] });
        }
    }
}

/// The arithmetic of [`combine`].
#[derive(Clone, Copy)]
pub(crate) struct Arithmetic {
    pub(crate) format: WireFormat,
    /// Left to right by rank instead of the canonical tree.
    pub(crate) in_rank_order: bool,
    /// What the sum is multiplied by, for an average.
    pub(crate) factor: Option<f32>,
}

/// Decodes the operands, adds them in `f32`, writes the sum to `result`, and reads it back into `values`: the owner keeps
/// what it sends, not what it knows better, so that all ranks end with the same bits. What `left` holds is added to the sum
/// before it is rounded, and what was rounded off is left there.
///
/// # Safety
/// At each of the operands begin `result.len()` bytes that nobody writes meanwhile, and that neither `result` nor `values`
/// overlap.
///
/// # Panics
/// If `result` is not as long as `values` encoded, `left` not as long as `values`, or `sums` has no room for so many operands.
pub(crate) unsafe fn combine(
    arithmetic: Arithmetic,
    operands: Operands,
    sums: &mut Sums,
    left: Option<&mut [f32]>,
    result: &mut [u8],
    values: &mut [f32],
) {
    assert_eq!(result.len(), arithmetic.format.encoded_bytes(values.len()));
    if let Some(left) = &left {
        assert_eq!(left.len(), values.len());
    }
    let waiting = &mut sums.waiting;
    dispatch(arithmetic.format, Combine { arithmetic, operands, waiting, left, result, values });
}

struct Combine<'a> {
    arithmetic: Arithmetic,
    operands: Operands,
    waiting: &'a mut [Waiting],
    left: Option<&'a mut [f32]>,
    result: &'a mut [u8],
    values: &'a mut [f32],
}

impl Job for Combine<'_> {
    #[inline(always)]
    fn run<C: Codec>(self) {
        let Combine { arithmetic, operands, waiting, mut left, result, values } = self;
        for (index, (values, result)) in
            values.chunks_mut(BLOCK).zip(result.chunks_mut(C::BLOCK_BYTES)).enumerate()
        {
            // SAFETY: the caller of `combine` promised so many bytes at each operand.
            let operand = |rank: usize| unsafe {
                let start = operands.first.add(rank * operands.stride + index * C::BLOCK_BYTES);
                std::slice::from_raw_parts(start, result.len())
            };
            add_all::<C>(operand, operands.count, arithmetic.in_rank_order, waiting, values.len());
            let sum = &mut waiting[0].sum[..values.len()];
            if let Some(factor) = arithmetic.factor {
                sum.iter_mut().for_each(|sum| *sum *= factor);
            }
            let left = left.as_mut().map(|left| &mut left[index * BLOCK..][..sum.len()]);
            if let Some(left) = &left {
                sum.iter_mut().zip(&**left).for_each(|(sum, left)| *sum += left);
            }
            C::encode(sum, result);
            C::read::<false>(result, values);
            for ((left, sum), value) in left.into_iter().flatten().zip(&*sum).zip(&*values) {
                let error = sum - value;
                *left = if error.is_finite() { error } else { 0.0 };
            }
        }
    }
}

/// Leaves the sum of one block in the first place of `waiting`.
#[inline(always)]
fn add_all<'a, C: Codec>(
    operand: impl Fn(usize) -> &'a [u8],
    count: usize,
    in_rank_order: bool,
    waiting: &mut [Waiting],
    len: usize,
) {
    let mut top = 0;
    for rank in 0..count {
        match waiting[..top].last_mut() {
            Some(last) if in_rank_order || last.count == 1 => {
                C::read::<true>(operand(rank), &mut last.sum[..len]);
                last.count += 1;
            }
            _ => {
                C::read::<false>(operand(rank), &mut waiting[top].sum[..len]);
                waiting[top].count = 1;
                top += 1;
            }
        }
        while top >= 2 && waiting[top - 2].count == waiting[top - 1].count {
            add_last(waiting, top, len);
            top -= 1;
        }
    }
    for top in (2..=top).rev() {
        add_last(waiting, top, len);
    }
}

/// Adds the last of `top` sums to the one before, which is of lower ranks.
#[inline(always)]
fn add_last(waiting: &mut [Waiting], top: usize, len: usize) {
    let (left, right) = waiting[..top].split_at_mut(top - 1);
    let Some(left) = left.last_mut() else { return };
    left.count += right[0].count;
    for (left, right) in left.sum[..len].iter_mut().zip(&right[0].sum) {
        *left += right;
    }
}
