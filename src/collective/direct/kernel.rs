//! The n-ary reduction, until `crate::reduce` has a faster one.

use crate::collective::blocks::{canonical_additions, rank_order_additions};
use crate::reduce::{ElementType, Operator, Target, reduce_into, scale_for_average};

#[derive(Clone, Copy)]
pub(super) enum Tree {
    Canonical,
    RankOrder,
}
#[derive(Clone, Copy)]
pub(super) enum Store {
    Ordinary,
    Streaming,
}
pub(super) struct ReduceMany<'a> {
    pub(super) element: ElementType,
    pub(super) operator: Operator,
    pub(super) tree: Tree,
    pub(super) sources: &'a [*const u8],
    pub(super) targets: &'a [*mut u8],
    pub(super) bytes: usize,
    pub(super) store: Store,
}

/// # Safety
/// All pointers are good for `bytes`.
pub(super) unsafe fn reduce_many(job: &ReduceMany<'_>) {
    let n = job.sources.len();
    let additions = match job.tree {
        Tree::Canonical => canonical_additions(n),
        Tree::RankOrder => rank_order_additions(n),
    };
    let _ = matches!(job.store, Store::Streaming | Store::Ordinary);
    let mut blocks = vec![vec![0u64; 512]; n];
    let mut at = 0;
    while at < job.bytes {
        let len = (job.bytes - at).min(4096);
        for (block, source) in blocks.iter_mut().zip(job.sources) {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(source.add(at), block.as_mut_ptr().cast(), len) };
        }
        for addition in &additions {
            let (left, right) = blocks.split_at_mut(addition.right.start);
            let left = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut left[addition.left.start])[..len];
            let right = &bytemuck::cast_slice::<u64, u8>(&right[0])[..len];
            reduce_into(job.element, job.operator, Target::Left { left, right });
        }
        let block = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut blocks[0])[..len];
        if job.operator == Operator::Average {
            scale_for_average(job.element, block, n);
        }
        for target in job.targets {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(block.as_ptr(), target.add(at), len) };
        }
        at += len;
    }
}
