//! The atomics of [`protocol`](super::protocol). `tests/loom_shared.rs` puts loom's in their place.

pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
