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
