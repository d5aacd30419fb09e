//! A lock held for longer than a function: across `fork`.
//!
//! **Need.** A `fork` while another thread holds a stack's lock would leave that lock taken for ever in the child. So
//! all locks are taken before it and released after it, in parent and child: in two functions that C calls, between
//! which no Rust frame remains. A `MutexGuard` borrows its mutex, which for an interpreter stands in an `Arc`.
//!
//! **Mechanism.** [`Held`] keeps the guard and the `Arc` together, and drops the guard first.

use std::mem::{ManuallyDrop, transmute};
use std::sync::Arc;

use crate::sync::MutexGuard;

/// A guard, and what keeps its mutex alive and in its place.
///
/// Invariant: `guard` borrows from `*keeper` (or from nothing that ends), and is dropped before `keeper` is.
pub(crate) struct Held<N: ?Sized + 'static, T: 'static> {
    guard: ManuallyDrop<MutexGuard<'static, T>>,
    keeper: Arc<N>,
}

impl<N: ?Sized + 'static, T: 'static> Held<N, T> {
    /// Takes the lock that `lock` finds in `keeper`.
    pub(crate) fn new(keeper: Arc<N>, lock: impl for<'n> FnOnce(&'n N) -> MutexGuard<'n, T>) -> Self {
        let guard = lock(&keeper);
        // SAFETY: only the lifetime changes. The guard borrows from `*keeper` at most, for that is all that `lock`
        // was lent, for any lifetime; an `Arc`'s content neither moves nor ends while the `Arc` is here, and `drop`
        // below ends the guard first. The longer lifetime is never seen outside: `get_mut` lends the guard for its own.
        let guard = unsafe { transmute::<MutexGuard<'_, T>, MutexGuard<'static, T>>(guard) };
        Self { guard: ManuallyDrop::new(guard), keeper }
    }

    /// Releases the lock, and hands over what kept it.
    pub(crate) fn release(self) -> Arc<N> {
        Arc::clone(&self.keeper)
    }

    /// What the lock guards.
    pub(crate) fn get(&self) -> &T {
        &self.guard
    }

    /// What the lock guards.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<N: ?Sized + 'static, T: 'static> Drop for Held<N, T> {
    fn drop(&mut self) {
        // SAFETY: nobody uses the guard after this. `keeper` is dropped after this function has returned.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
        let _ = &self.keeper;
    }
}
