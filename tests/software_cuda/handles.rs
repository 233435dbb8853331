//! What a caller holds for a stream, an event, a module …: a number that is never used twice, so that a stale one is noticed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Numbers of all kinds of things: a stream's is no event's. CUDA gives 1 and 2 a meaning as streams; addresses look otherwise.
static NEXT: AtomicUsize = AtomicUsize::new(1);
const STEP: usize = 16;

/// The living things of one kind.
#[derive(Debug)]
pub(crate) struct Handles<T>(Mutex<Option<HashMap<usize, Arc<T>>>>);

impl<T> Handles<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn with<R>(&self, body: impl FnOnce(&mut HashMap<usize, Arc<T>>) -> R) -> R {
        body(self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
    }

    pub(crate) fn add<H>(&self, thing: Arc<T>) -> *mut H {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) * STEP;
        self.with(|living| living.insert(number, thing));
        std::ptr::without_provenance_mut(number)
    }

    pub(crate) fn get<H>(&self, handle: *mut H) -> Option<Arc<T>> {
        self.with(|living| living.get(&handle.addr()).cloned())
    }

    pub(crate) fn remove<H>(&self, handle: *mut H) -> Option<Arc<T>> {
        self.with(|living| living.remove(&handle.addr()))
    }

    pub(crate) fn remove_all(&self, of: impl Fn(&T) -> bool) {
        self.with(|living| living.retain(|_, thing| !of(thing)));
    }
}
