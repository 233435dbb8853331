//! Buffers that the other ranks of a host can address.

use crate::buffer::FlatBuffer;
use crate::error::Result;
use crate::reduce::Element;
use crate::transport::{Domain, Region};
use std::fmt;
use std::ops::{Deref, DerefMut};

/// A fixed number of elements, made by [`Communicator::alloc`](super::super::Communicator::alloc): a slice like any other,
/// except that ranks of the same host can address it where the transport allows it. It may outlive its communicator.
pub struct SharedBuffer<T: Element> {
    memory: Memory<T>,
}

enum Memory<T: Element> {
    Ordinary {
        buffer: FlatBuffer<T>,
        /// Ranks that are threads can address all memory.
        is_registered: bool,
    },
    Region {
        region: Region,
        len: usize,
    },
}

impl<T: Element> SharedBuffer<T> {
    /// Memory that the ranks of `domain` can address, if there is one and they can.
    pub(in crate::collective) fn new(domain: Option<&Domain>, len: usize) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<T>());
        let memory = match domain.map(|domain| domain.register(bytes)).transpose()?.flatten() {
            Some(region) => Memory::Region { region, len },
            None => {
                let is_registered = domain.is_some_and(Domain::is_of_threads);
                Memory::Ordinary { buffer: FlatBuffer::new(len), is_registered }
            }
        };
        Ok(SharedBuffer { memory })
    }

    /// Whether the other ranks of this host can address it. If not it is ordinary memory, which every collective takes as
    /// well.
    pub fn is_registered(&self) -> bool {
        match self.memory {
            Memory::Ordinary { is_registered, .. } => is_registered,
            Memory::Region { .. } => true,
        }
    }
}

impl<T: Element> Deref for SharedBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.memory {
            Memory::Ordinary { buffer, .. } => buffer,
            // SAFETY: the region is aligned for every element, has room for `len` elements, zeros at first (a value of every element
            // type), and lives as long as `self`. Other ranks touch it only inside collectives that hold the one `&mut`
            // to it, or a `&` while they only read.
            Memory::Region { region, len } => unsafe {
                std::slice::from_raw_parts(region.start().cast(), *len)
            },
        }
    }
}

impl<T: Element> DerefMut for SharedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.memory {
            Memory::Ordinary { buffer, .. } => buffer,
            // SAFETY: as for `deref`; `&mut self` makes this the only reference.
            Memory::Region { region, len } => unsafe {
                std::slice::from_raw_parts_mut(region.start().cast(), *len)
            },
        }
    }
}

impl<T: Element> fmt::Debug for SharedBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.is_registered() { "registered" } else { "private" };
        write!(f, "SharedBuffer<{}>({} elements, {place})", T::TYPE, self.len())
    }
}
