//! The lock and the latch that the shared stacks are built on; loom's under `cfg(loom)`.

#[cfg(loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
use std::sync::PoisonError;
#[cfg(not(loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

/// A mutex that knows no poison: no user code runs under it, and what stands under it is whole at every moment.
#[derive(Debug)]
pub(crate) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    #[cfg(loom)]
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A value that is set once, for which threads may wait.
#[derive(Debug)]
pub(crate) struct Latch<T> {
    value: Lock<Option<T>>,
    set: Condvar,
}

impl<T> Default for Latch<T> {
    fn default() -> Self {
        Self { value: Lock::new(None), set: Condvar::new() }
    }
}

impl<T: Clone> Latch<T> {
    pub(crate) fn set(&self, value: T) {
        self.value.lock().get_or_insert(value);
        self.set.notify_all();
    }

    pub(crate) fn is_set(&self) -> bool {
        self.value.lock().is_some()
    }

    pub(crate) fn wait(&self) -> T {
        let mut value = self.value.lock();
        loop {
            match &*value {
                Some(value) => return value.clone(),
                None => value = self.set.wait(value).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}
