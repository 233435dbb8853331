//! How many blocks and threads a kernel is started with.

use crate::reduce::wire::BLOCK;

/// Threads of a block. The kernels of `kernels/wire_int8.cu` are written for this number.
pub const THREADS: u32 = 256;

/// Blocks that a multiprocessor holds at once: 2048 threads are all that most can. More would wait for the first ones.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 8;

/// Blocks of the wire format `int8` that one block of threads treats at a time.
const TEAMS: u64 = 4;

/// A grid of blocks in one dimension. Each thread goes on by the number of all threads until the vector ends, so any grid is
/// right; this one keeps the GPU busy, and no busier than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks of the grid.
    pub blocks: u32,
    /// Threads of each block.
    pub threads: u32,
}

impl Geometry {
    /// For `count` elements, of which a thread treats `width` at a time.
    ///
    /// ```
    /// use esync::reduce::cuda::Geometry;
    /// assert_eq!(Geometry::of_elements(1000, 4, 132).blocks, 1);
    /// assert_eq!(Geometry::of_elements(1 << 40, 4, 132).blocks, 8 * 132);
    /// ```
    pub fn of_elements(count: u64, width: u32, multiprocessors: u32) -> Geometry {
        // One group more than whole ones: the ends.
        let groups = (count / u64::from(width)).saturating_add(1);
        Self::of_turns(groups.div_ceil(u64::from(THREADS)), multiprocessors)
    }

    /// For `count` elements in blocks of the wire format `int8`.
    pub fn of_int8_blocks(count: u64, multiprocessors: u32) -> Geometry {
        Self::of_turns(count.div_ceil(BLOCK as u64).div_ceil(TEAMS), multiprocessors)
    }

    fn of_turns(turns: u64, multiprocessors: u32) -> Geometry {
        let most = u64::from(multiprocessors.max(1).saturating_mul(BLOCKS_PER_MULTIPROCESSOR));
        // Not more than `most`, which has 32 bits.
        Geometry { blocks: turns.clamp(1, most) as u32, threads: THREADS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_vectors_have_the_blocks_they_need_and_long_ones_what_the_gpu_holds() {
        let blocks = |count, width| Geometry::of_elements(count, width, 100).blocks;
        assert_eq!(blocks(0, 4), 1);
        assert_eq!(blocks(1023, 4), 1, "255 groups and the ends");
        assert_eq!(blocks(1024, 4), 2);
        assert_eq!(blocks(u64::from(u32::MAX) + 5, 8), 800);
        assert_eq!(blocks(u64::MAX, 2), 800);
        assert_eq!(Geometry::of_int8_blocks(1024, 100).blocks, 1);
        assert_eq!(Geometry::of_int8_blocks(1025, 100).blocks, 2);
        assert_eq!(Geometry::of_int8_blocks(0, 0).blocks, 1);
        assert_eq!(Geometry::of_elements(u64::MAX, 1, u32::MAX).blocks, u32::MAX);
    }
}
