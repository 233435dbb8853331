//! Buffers that the other ranks of a host can address.

use crate::buffer::FlatBuffer;
use crate::reduce::Element;
use std::fmt;
use std::ops::{Deref, DerefMut};

/// A fixed number of elements, made by [`Communicator::alloc`](super::super::Communicator::alloc): a slice like any other,
/// except that ranks of the same host can address it where the transport allows it. It may outlive its communicator.
pub struct SharedBuffer<T: Element> {
    memory: FlatBuffer<T>,
}

impl<T: Element> SharedBuffer<T> {
    /// Memory of this process alone.
    pub(in crate::collective) fn private(len: usize) -> Self {
        SharedBuffer { memory: FlatBuffer::new(len) }
    }

    /// Whether the other ranks of this host can address it. If not it is ordinary memory, which every collective takes as
    /// well.
    pub fn is_registered(&self) -> bool {
        false
    }
}

impl<T: Element> Deref for SharedBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.memory
    }
}

impl<T: Element> DerefMut for SharedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory
    }
}

impl<T: Element> fmt::Debug for SharedBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.is_registered() { "registered" } else { "private" };
        write!(f, "SharedBuffer<{}>({} elements, {place})", T::TYPE, self.len())
    }
}
