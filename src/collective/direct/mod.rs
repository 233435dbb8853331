//! Collectives of ranks that see each other's memory.

mod buffer;

pub use buffer::SharedBuffer;
