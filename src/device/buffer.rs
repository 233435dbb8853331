//! Vectors in a GPU's memory.

use super::Gpu;
use crate::error::{Error, Result};
use crate::reduce::Element;
use cudarc::driver::result;
use cudarc::driver::sys::CUdeviceptr;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// Elements in a GPU's memory, at one address until the buffer is dropped: its own memory, or somebody else's that it knows
/// the address of.
pub struct DeviceBuffer<T: Element> {
    gpu: Arc<Gpu>,
    start: CUdeviceptr,
    len: usize,
    is_owned: bool,
    element: PhantomData<T>,
}

/// A range of a [`DeviceBuffer`], to read.
#[derive(Clone, Copy)]
pub struct DeviceSlice<'a, T: Element> {
    gpu: &'a Arc<Gpu>,
    start: CUdeviceptr,
    len: usize,
    element: PhantomData<T>,
}

/// A range of a [`DeviceBuffer`], to change.
pub struct DeviceSliceMut<'a, T: Element> {
    gpu: &'a Arc<Gpu>,
    start: CUdeviceptr,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> DeviceBuffer<T> {
    /// `len` elements, all zero.
    ///
    /// # Errors
    /// `Environment` if the GPU has no memory left.
    pub fn new(gpu: &Arc<Gpu>, len: usize) -> Result<Self> {
        let mut buffer =
            DeviceBuffer { gpu: gpu.clone(), start: 0, len, is_owned: false, element: PhantomData };
        if len == 0 {
            return Ok(buffer);
        }
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| {
            Error::Environment(format!("a buffer of {len} {} is larger than any memory", T::TYPE))
        })?;
        gpu.bind()?;
        // SAFETY: the context is bound, and the size above zero. The memory is written before anybody reads it.
        buffer.start = unsafe { result::malloc_sync(bytes) }
            .map_err(|error| gpu.failed(format_args!("allocating {bytes} bytes on"), error))?;
        buffer.is_owned = true;
        // SAFETY: the memory was just allocated with this length.
        unsafe { result::memset_d8_sync(buffer.start, 0, bytes) }
            .map_err(|error| gpu.failed("clearing memory on", error))?;
        gpu.settle("clearing memory on")?;
        Ok(buffer)
    }

    /// A buffer that holds a copy of `values`.
    ///
    /// # Errors
    /// `Environment` if the GPU has no memory left.
    pub fn from_slice(gpu: &Arc<Gpu>, values: &[T]) -> Result<Self> {
        let mut buffer = Self::new(gpu, values.len())?;
        buffer.as_mut_slice().copy_from(values)?;
        Ok(buffer)
    }

    /// The `len` elements at `start`, which stay somebody else's.
    ///
    /// # Safety
    /// They are memory of this GPU that outlives the buffer, and nobody else uses them while a method of the buffer, of a
    /// slice of it, or of something that was given one, runs. `start` is a multiple of the element's size.
    pub unsafe fn borrowed(gpu: &Arc<Gpu>, start: CUdeviceptr, len: usize) -> Self {
        DeviceBuffer { gpu: gpu.clone(), start, len, is_owned: false, element: PhantomData }
    }

    /// How many elements it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whose memory it is.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// The address of the first element on the GPU.
    pub fn address(&self) -> CUdeviceptr {
        self.start
    }

    /// All elements.
    pub fn as_slice(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { gpu: &self.gpu, start: self.start, len: self.len, element: PhantomData }
    }

    /// All elements, to change.
    pub fn as_mut_slice(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { gpu: &self.gpu, start: self.start, len: self.len, element: PhantomData }
    }

    /// A copy of the elements on the host.
    ///
    /// # Errors
    /// `Environment` if the driver refuses.
    pub fn to_vec(&self) -> Result<Vec<T>> {
        let mut values = vec![T::default(); self.len];
        self.as_slice().copy_to(&mut values)?;
        Ok(values)
    }
}

impl<T: Element> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if self.is_owned && self.gpu.bind().is_ok() {
            // SAFETY: the memory is this buffer's own and came from `malloc_sync`; nothing borrows it any more. The driver
            // waits for work on it. A refusal leaves the memory taken, which is all that can be done about it here.
            let _ = unsafe { result::free_sync(self.start) };
        }
    }
}

impl<T: Element> fmt::Debug for DeviceBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceBuffer<{}>({} elements on {})", T::TYPE, self.len, self.gpu)
    }
}

impl<'a, T: Element> DeviceSlice<'a, T> {
    /// How many elements it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whose memory it is.
    pub fn gpu(&self) -> &'a Arc<Gpu> {
        self.gpu
    }

    /// The address of the first element on the GPU.
    pub fn address(&self) -> CUdeviceptr {
        self.start
    }

    /// The elements of a range.
    ///
    /// # Panics
    /// If the range does not lie inside.
    pub fn slice(&self, range: Range<usize>) -> DeviceSlice<'a, T> {
        let (start, len) = part(self.start, self.len, range, size_of::<T>());
        DeviceSlice { start, len, ..*self }
    }

    /// Copies the elements to the host, when what was given to the default stream before is done.
    ///
    /// # Errors
    /// `Usage` if the lengths differ; `Environment` if the driver refuses.
    pub fn copy_to(&self, values: &mut [T]) -> Result<()> {
        check_lengths(self.len, values.len())?;
        if self.len == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        // SAFETY: the slice is as long as the memory that is read, which the buffer keeps alive.
        unsafe { result::memcpy_dtoh_sync(values, self.start) }
            .map_err(|error| self.gpu.failed("copying from", error))
    }
}

impl<'a, T: Element> DeviceSliceMut<'a, T> {
    /// How many elements it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whose memory it is.
    pub fn gpu(&self) -> &'a Arc<Gpu> {
        self.gpu
    }

    /// The address of the first element on the GPU.
    pub fn address(&self) -> CUdeviceptr {
        self.start
    }

    /// The same elements, to read.
    pub fn as_slice(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { gpu: self.gpu, start: self.start, len: self.len, element: PhantomData }
    }

    /// The same elements, lent on.
    pub fn reborrow(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { gpu: self.gpu, start: self.start, len: self.len, element: PhantomData }
    }

    /// The elements of a range.
    ///
    /// # Panics
    /// If the range does not lie inside.
    pub fn slice(self, range: Range<usize>) -> DeviceSliceMut<'a, T> {
        let (start, len) = part(self.start, self.len, range, size_of::<T>());
        DeviceSliceMut { start, len, ..self }
    }

    /// Copies the elements from the host.
    ///
    /// # Errors
    /// `Usage` if the lengths differ; `Environment` if the driver refuses.
    pub fn copy_from(&mut self, values: &[T]) -> Result<()> {
        check_lengths(self.len, values.len())?;
        if self.len == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        // SAFETY: the slice is as long as the memory that is written, which nobody else uses.
        unsafe { result::memcpy_htod_sync(self.start, values) }
            .map_err(|error| self.gpu.failed("copying to", error))?;
        self.gpu.settle("copying to")
    }

    /// Copies the elements from other memory of the same GPU, in the default stream.
    ///
    /// # Errors
    /// `Usage` if the lengths differ; `Environment` if the driver refuses.
    pub fn copy_from_device(&mut self, values: DeviceSlice<'_, T>) -> Result<()> {
        check_lengths(self.len, values.len)?;
        if self.len == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        let stream = self.gpu.default_stream();
        // SAFETY: both are as long as is said, and the borrow of one to change keeps them apart.
        unsafe {
            result::memcpy_dtod_async(self.start, values.start, self.len * size_of::<T>(), stream.cu_stream())
        }
        .map_err(|error| self.gpu.failed("copying on", error))
    }
}

impl<'a, T: Element> From<&'a mut DeviceBuffer<T>> for DeviceSliceMut<'a, T> {
    fn from(buffer: &'a mut DeviceBuffer<T>) -> Self {
        buffer.as_mut_slice()
    }
}

fn part(start: CUdeviceptr, len: usize, range: Range<usize>, element_bytes: usize) -> (CUdeviceptr, usize) {
    assert!(range.start <= range.end && range.end <= len, "elements {range:?} of a device slice of {len}");
    (start + (range.start * element_bytes) as CUdeviceptr, range.len())
}

fn check_lengths(device: usize, host: usize) -> Result<()> {
    if device == host {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "a copy between {device} elements on a GPU and {host} others; they must be as many"
    )))
}
