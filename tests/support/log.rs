//! A log of what happened, in order.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A list of entries, in the order in which any thread added them.
#[derive(Debug)]
pub struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T> Clone for Log<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Log<T> {
    fn entries(&self) -> MutexGuard<'_, Vec<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an entry.
    pub fn push(&self, what: impl Into<T>) {
        let what = what.into();
        self.entries().push(what);
    }

    /// Removes and returns all entries.
    pub fn take(&self) -> Vec<T> {
        std::mem::take(&mut self.entries())
    }

    /// Returns a handler that adds an entry.
    pub fn handler(&self, what: impl Into<T>) -> impl FnOnce() + Send + 'static
    where
        T: Send + 'static,
    {
        let (log, what) = (self.clone(), what.into());
        move || log.push(what)
    }
}
