//! How a vector is cut into parts.

use std::ops::Range;

/// Part `index` of `parts` contiguous parts of `len` elements: each has ⌊len/parts⌋ elements, the first `len mod parts`
/// have one more. Parts may be empty.
///
/// ```
/// use esync::collective::part;
/// assert_eq!(part(10, 4, 0), 0..3);
/// assert_eq!(part(10, 4, 3), 8..10);
/// assert_eq!(part(2, 4, 3), 2..2);
/// ```
pub fn part(len: usize, parts: usize, index: usize) -> Range<usize> {
    let bound = |i: usize| (len / parts) * i + (len % parts).min(i);
    bound(index)..bound(index + 1)
}

/// The elements of consecutive parts of n.
pub(super) fn parts(len: usize, n: usize, parts: Range<usize>) -> Range<usize> {
    if parts.is_empty() { 0..0 } else { part(len, n, parts.start).start..part(len, n, parts.end - 1).end }
}

/// The elements of `count` cyclically consecutive parts of n, from part `first` on: at most two ranges of memory.
pub(super) fn cyclic_parts(len: usize, n: usize, first: usize, count: usize) -> [Range<usize>; 2] {
    let end = first + count;
    [parts(len, n, first..end.min(n)), parts(len, n, 0..end.saturating_sub(n))]
}
