//! The direct form of an operation on the memory of one process.

use crate::reduce::{ElementType, Operator, Target, reduce_into};

/// Which stores write the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    Ordinary,
}

/// What is read, and where the reduction goes.
pub(super) struct ReduceMany<'a> {
    pub(super) element: ElementType,
    pub(super) operator: Operator,
    pub(super) sources: &'a [*const u8],
    pub(super) targets: &'a [*mut u8],
    pub(super) bytes: usize,
    pub(super) store: Store,
}

/// Reduces all sources into all targets, block by block.
///
/// # Safety
/// All pointers lead to `bytes` bytes that nobody else touches; a target is a source or overlaps none.
pub(super) unsafe fn reduce_many(job: &ReduceMany<'_>) {
    let Store::Ordinary = job.store;
    let mut block = [0u64; 512];
    let block: &mut [u8] = bytemuck::cast_slice_mut(&mut block);
    let mut done = 0;
    while done < job.bytes {
        let sum = &mut block[..4096.min(job.bytes - done)];
        let len = sum.len();
        // SAFETY: as the caller promises; `done + len` is at most `job.bytes`.
        let source = |source: &*const u8| unsafe { std::slice::from_raw_parts(source.add(done), len) };
        sum.copy_from_slice(source(&job.sources[0]));
        for right in &job.sources[1..] {
            reduce_into(job.element, job.operator, Target::Left { left: sum, right: source(right) });
        }
        for target in job.targets {
            // SAFETY: as above, and the block is ours.
            unsafe { std::ptr::copy_nonoverlapping(sum.as_ptr(), target.add(done), len) };
        }
        done += len;
    }
}
