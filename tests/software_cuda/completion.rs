//! A point in a stream that is passed some time: what events record and what the host waits for.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct Completion {
    passed_at: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Completion {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn pass(&self) {
        *self.passed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.changed.notify_all();
    }

    pub(crate) fn passed_at(&self) -> Option<Instant> {
        *self.passed_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_passed(&self) -> bool {
        self.passed_at().is_some()
    }

    pub(crate) fn wait(&self) {
        let mut passed = self.passed_at.lock().unwrap_or_else(PoisonError::into_inner);
        while passed.is_none() {
            passed = self.changed.wait(passed).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
