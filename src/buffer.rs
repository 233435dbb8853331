//! Aligned memory of a fixed length, the form in which parameters, deltas and gradients are kept.

use crate::reduce::Element;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Zero-initialised memory for a fixed number of elements.
///
/// It begins at a multiple of [`ALIGNMENT`](FlatBuffer::ALIGNMENT) bytes and never moves, so that its address can be
/// given to a transport, and it can be viewed as bytes or as any other element type of at most its size. Neither
/// alignment nor length ever changes.
///
/// ```
/// let mut buffer = esync::buffer::FlatBuffer::<f32>::new(3);
/// buffer[1] = 2.0;
/// assert_eq!(buffer.as_slice(), [0.0, 2.0, 0.0]);
/// ```
pub struct FlatBuffer<T: Element> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: the buffer owns its memory, as a `Vec<T>` does, and elements are plain numbers (`Element: Send + Sync`).
unsafe impl<T: Element> Send for FlatBuffer<T> {}
// SAFETY: as above; a shared buffer can only be read.
unsafe impl<T: Element> Sync for FlatBuffer<T> {}

impl<T: Element> FlatBuffer<T> {
    /// Where a buffer begins, in bytes: a page, so that two buffers never share a cache line and vector loads and
    /// transports that register memory find whole pages.
    pub const ALIGNMENT: usize = 4096;

    /// `len` elements, all zero.
    ///
    /// # Panics
    ///
    /// If `len` elements are more bytes than a process can address. As everywhere in Rust, the process ends if the
    /// system has no memory left.
    pub fn new(len: usize) -> Self {
        if len == 0 {
            return FlatBuffer { start: Self::nowhere(), len };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout has a size above zero, because `len` and the size of every element type are.
        let memory = unsafe { alloc_zeroed(layout) };
        match NonNull::new(memory.cast::<T>()) {
            Some(start) => FlatBuffer { start, len },
            None => handle_alloc_error(layout),
        }
    }

    /// A buffer that holds a copy of `values`.
    pub fn from_slice(values: &[T]) -> Self {
        let mut buffer = Self::new(values.len());
        buffer.copy_from_slice(values);
        buffer
    }

    /// How many elements it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `start` points to `len` initialised elements (zero is a value of every element type, which is `Pod`),
        // or is an aligned address and `len` is 0. `&self` keeps them borrowed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The elements, to change.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// The address of the first element. It stays the same until the buffer is dropped.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.start.as_ptr()
    }

    fn layout(len: usize) -> Layout {
        let bytes = len.checked_mul(size_of::<T>());
        let layout = bytes.and_then(|bytes| Layout::from_size_align(bytes, Self::ALIGNMENT).ok());
        match layout {
            Some(layout) => layout,
            None => panic!("a buffer of {len} {} is larger than the address space", T::TYPE),
        }
    }

    /// An aligned address for buffers of no elements, which own no memory.
    fn nowhere() -> NonNull<T> {
        const { assert!(align_of::<T>() <= Self::ALIGNMENT) };
        match NonNull::new(std::ptr::without_provenance_mut(Self::ALIGNMENT)) {
            Some(address) => address,
            None => unreachable!("the alignment is above 0"),
        }
    }
}

impl<T: Element> Drop for FlatBuffer<T> {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the memory came from `alloc_zeroed` with this very layout, and nothing borrows it any more.
            unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.len)) }
        }
    }
}

impl<T: Element> Deref for FlatBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.as_slice()
    }
}

impl<T: Element> DerefMut for FlatBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.as_mut_slice()
    }
}

impl<T: Element> Clone for FlatBuffer<T> {
    fn clone(&self) -> Self {
        Self::from_slice(self)
    }
}

impl<T: Element> fmt::Debug for FlatBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlatBuffer<{}>({} elements)", T::TYPE, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn new_memory_is_zero_aligned_and_writable() {
        for len in [1, 2, 1023, 4096, 100_003] {
            let mut buffer = FlatBuffer::<f64>::new(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr() as usize % FlatBuffer::<f64>::ALIGNMENT, 0);
            assert!(buffer.iter().all(|&x| x.to_bits() == 0));
            buffer.fill(1.5);
            assert_eq!(buffer.iter().sum::<f64>(), 1.5 * len as f64);
        }
    }

    #[test]
    fn an_empty_buffer_owns_nothing() {
        let mut buffer = FlatBuffer::<f16>::new(0);
        assert!(buffer.is_empty());
        assert!(buffer.as_mut_slice().is_empty());
        assert_eq!(buffer.as_mut_ptr() as usize % FlatBuffer::<f16>::ALIGNMENT, 0);
        assert!(bytemuck::cast_slice::<f16, u64>(&buffer).is_empty());
    }

    #[test]
    fn a_clone_is_its_own_memory_and_buffers_cross_threads() {
        let buffer = FlatBuffer::from_slice(&[1i32, 2, 3]);
        let mut other = buffer.clone();
        let other = std::thread::spawn(move || {
            other[0] = 7;
            other
        });
        assert_eq!(other.join().unwrap().as_slice(), [7, 2, 3]);
        assert_eq!(buffer.as_slice(), [1, 2, 3]);
    }

    #[test]
    #[should_panic(expected = "address space")]
    fn an_impossible_length_panics() {
        FlatBuffer::<f64>::new(usize::MAX / 4);
    }
}
