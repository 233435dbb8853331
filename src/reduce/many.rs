//! The reduction of many vectors at once: what a rank does that can see everybody's buffer.

use super::store::{self, Store};
use super::{ElementType, Operator, Target, fused, reduce_into, scale_for_average};
use std::mem::MaybeUninit;
use std::slice;

/// In which order the sources of a reduction are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tree {
    /// The canonical tree T(n): power-of-two blocks of ranks, pairwise inside a block, `B₁ ⊕ (B₂ ⊕ …)` between them.
    Canonical,
    /// From left to right by rank.
    RankOrder,
}

/// One reduction of `bytes` bytes of every source into every target. Source i is the operand of rank i.
#[derive(Debug, Clone, Copy)]
pub struct ReduceMany<'a> {
    /// The type of all vectors.
    pub element: ElementType,
    /// What is done with two elements; `Average` is finished, by the number of sources.
    pub operator: Operator,
    /// The order of additions.
    pub tree: Tree,
    /// The operands, at least one.
    pub sources: &'a [*const u8],
    /// Where the result goes.
    pub targets: &'a [*mut u8],
    /// Bytes of each vector, whole elements.
    pub bytes: usize,
    /// How the targets are written; if one of several sources is a target too, always through the caches.
    pub store: Store,
}

impl ReduceMany<'_> {
    /// Stores past the caches save reading lines that are only written. The lines of a target that is also a source have just
    /// been read: there they cost a third more than ordinary ones (two cores, 2 to 8 vectors of 64 MiB).
    fn useful_store(&self) -> Store {
        // Asked only where it matters: short vectors are reduced in less time than n² comparisons take.
        let is_in_place = self.store == Store::Streaming
            && self.sources.len() > 1
            && self.targets.iter().any(|target| self.sources.contains(&target.cast_const()));
        if is_in_place { Store::Ordinary } else { self.store }
    }
}

/// A block of every source, and what is made of them, stay in the first cache.
const CACHED_BYTES: usize = 24 * 1024;
const SHORTEST_BLOCK: usize = 512;
const LONGEST_BLOCK: usize = 4096;

/// Results between nodes of a tree: ⌊lg n⌋ + 1 are needed at once.
const SLOTS: usize = 16;

/// The memory of one result between nodes.
#[repr(align(64))]
struct Slot(MaybeUninit<[u8; LONGEST_BLOCK]>);

/// Reduces every element over all sources, and stores it to all targets.
///
/// The bits are those of [`reduce_into`] applied node by node to the same tree, whatever the processor. With one source
/// it is a copy. The caller's floating-point modes are left as they are. Allocates nothing.
///
/// ```
/// use esync::reduce::{ElementType, Operator, ReduceMany, Store, Tree, reduce_many};
///
/// let (a, mut b, c) = ([1.0f32, 2.0], [3.0f32, 4.0], [5.0f32, f32::NAN]);
/// let target = b.as_mut_ptr().cast::<u8>();
/// let job = ReduceMany {
///     element: ElementType::F32,
///     operator: Operator::Sum,
///     tree: Tree::Canonical,
///     sources: &[a.as_ptr().cast(), target.cast_const(), c.as_ptr().cast()],
///     targets: &[target],
///     bytes: 8,
///     store: Store::Ordinary,
/// };
/// // SAFETY: three vectors of 8 bytes, of which the second is also the target.
/// unsafe { reduce_many(&job) };
/// assert_eq!(b[0], 9.0);
/// assert!(b[1].is_nan());
/// ```
///
/// # Panics
/// If there is no source or more than 65,535, or if an address or `bytes` does not fit whole elements.
///
/// # Safety
/// Every source must be valid for reads of `bytes` bytes, and every target for writes. A target may be the very address
/// of a source (all loads of a block happen before its stores), and otherwise overlaps neither a source nor another
/// target. Nobody else writes to sources, or reads or writes targets, while this runs.
pub unsafe fn reduce_many(job: &ReduceMany<'_>) {
    let n = job.sources.len();
    assert!((1..1 << SLOTS).contains(&n), "{n} sources; the valid range is 1 to 65,535");
    let job = &ReduceMany { store: job.useful_store(), ..*job };
    let block_bytes = (CACHED_BYTES / n / 64 * 64).clamp(SHORTEST_BLOCK, LONGEST_BLOCK);
    let mut slots = [const { Slot(MaybeUninit::uninit()) }; SLOTS];
    let needed = if fused::fits(job.element, job.operator, n) && job.tree == Tree::Canonical {
        1
    } else {
        n.ilog2() + 1
    };
    let slots = &mut slots[..needed as usize];
    for slot in &mut *slots {
        let most = block_bytes.min(job.bytes);
        // SAFETY: a slot is longer than any block. Its first bytes are initialised here, and no more are used.
        unsafe { slot.0.as_mut_ptr().cast::<u8>().write_bytes(0, most) };
    }
    // The first block ends where a cache line of the first target begins, so that later blocks store whole lines.
    let ragged = job.targets.first().map_or(0, |target| target.align_offset(64));
    let mut at = 0;
    while at < job.bytes {
        let wanted = if at == 0 && ragged > 0 { ragged } else { block_bytes };
        let len = wanted.min(job.bytes - at);
        // SAFETY: the block lies inside all vectors, which the caller vouches for.
        unsafe { reduce_block(job, at, len, slots) };
        at += len;
    }
    if job.store == Store::Streaming {
        store::fence();
    }
}

/// Reduces `len` bytes from `at` on.
///
/// # Safety
/// As [`reduce_many`]; the range lies inside its vectors, and the first `len` bytes of the slots are initialised.
unsafe fn reduce_block(job: &ReduceMany<'_>, at: usize, len: usize, slots: &mut [Slot]) {
    let n = job.sources.len();
    // SAFETY: the caller's promise; the sources are only read, and no target is written, while `result` is made.
    unsafe {
        if n == 1 {
            let source = job.sources[0].add(at);
            for &target in job.targets {
                let target = target.add(at);
                if target.cast_const() != source {
                    store::copy(slice::from_raw_parts(source, len), target, job.store);
                }
            }
            return;
        }
        let block = Block { job, at, len };
        let result = block.result(0, n, slots);
        if job.operator == Operator::Average {
            scale_for_average(job.element, result, n);
        }
        for &target in job.targets {
            store::copy(result, target.add(at), job.store);
        }
    }
}

/// A block of all sources.
struct Block<'a> {
    job: &'a ReduceMany<'a>,
    at: usize,
    len: usize,
}

impl Block<'_> {
    /// The block of one rank's operand.
    ///
    /// # Safety
    /// As [`reduce_block`].
    unsafe fn operand(&self, rank: usize) -> &[u8] {
        // SAFETY: the caller's promise.
        unsafe { slice::from_raw_parts(self.job.sources[rank].add(self.at), self.len) }
    }

    /// The sum of `n` ≥ 2 ranks from `start` on, made in the first slot.
    ///
    /// # Safety
    /// As [`reduce_block`].
    unsafe fn result<'s>(&self, start: usize, n: usize, slots: &'s mut [Slot]) -> &'s mut [u8] {
        let ReduceMany { element, operator, tree, sources, .. } = *self.job;
        // SAFETY: the caller's promise; a slot is aligned for every element and overlaps no source.
        unsafe {
            if tree == Tree::RankOrder || n == 2 {
                let into = self.bytes_of(&mut slots[0]);
                let (left, right) = (self.operand(start), self.operand(start + 1));
                reduce_into(element, operator, Target::Separate { into: &mut *into, left, right });
                for rank in start + 2..start + n {
                    let right = self.operand(rank);
                    reduce_into(element, operator, Target::Left { left: &mut *into, right });
                }
                return into;
            }
            if fused::fits(element, operator, n) {
                let addresses = &mut [std::ptr::null(); fused::MOST][..n];
                for (address, source) in addresses.iter_mut().zip(&sources[start..]) {
                    *address = source.add(self.at);
                }
                let into = self.bytes_of(&mut slots[0]);
                fused::canonical_sum(element, into, addresses);
                return into;
            }
            // A power of two is halved, another number loses its largest power of two.
            let of_left = n.next_power_of_two() / 2;
            self.result(start, of_left, slots);
            let [slot, rest @ ..] = slots else { unreachable!("a slot for each level of the tree") };
            let left = self.bytes_of(slot);
            let right = match n - of_left {
                1 => self.operand(start + of_left),
                of_right => self.result(start + of_left, of_right, rest),
            };
            reduce_into(element, operator, Target::Left { left: &mut *left, right });
            left
        }
    }

    /// # Safety
    /// The block's length of the slot is initialised.
    unsafe fn bytes_of<'s>(&self, slot: &'s mut Slot) -> &'s mut [u8] {
        // SAFETY: the caller's promise; a slot is longer than any block.
        unsafe { slice::from_raw_parts_mut(slot.0.as_mut_ptr().cast::<u8>(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_just_read_is_not_stored_past_the_caches() {
        let (mut a, mut b, mut c) = ([1.0f32; 4], [2.0f32; 4], [0.0f32; 4]);
        let [a, b, c] = [&mut a, &mut b, &mut c].map(|vector| vector.as_mut_ptr().cast::<u8>());
        let useful = |sources: &[*const u8], targets: &[*mut u8]| {
            let store = Store::Streaming;
            let (element, operator, tree) = (ElementType::F32, Operator::Sum, Tree::Canonical);
            ReduceMany { element, operator, tree, sources, targets, bytes: 16, store }.useful_store()
        };
        assert_eq!(useful(&[a, b], &[a, b]), Store::Ordinary);
        assert_eq!(useful(&[a, b], &[c, b]), Store::Ordinary, "one of them in place");
        assert_eq!(useful(&[a, b], &[c]), Store::Streaming);
        assert_eq!(useful(&[a], &[a, b, c]), Store::Streaming, "a copy writes only to the others");
    }
}
