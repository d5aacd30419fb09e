//! The lock and the latch that shared stacks are built on.
//!
//! Under `cfg(loom)` with the `loom` feature, they use loom's types, and so do the statics and thread-locals of the
//! protocol: loom runs all threads of a model on one thread, and creates everything anew for each run. Little else in
//! the crate depends on loom.

#[cfg(all(loom, feature = "loom"))]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
use std::hint;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
#[cfg(not(all(loom, feature = "loom")))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
use std::sync::{PoisonError, TryLockError};

use once_cell::race::OnceBox;

use crate::raw;

/// Defines a `const fn`, or a plain `fn` under loom, whose mutex has no `const` constructor.
macro_rules! const_fn {
    ($(#[$attribute:meta])* $visible:vis const fn $($rest:tt)*) => {
        #[cfg(not(all(loom, feature = "loom")))]
        $(#[$attribute])*
        $visible const fn $($rest)*

        #[cfg(all(loom, feature = "loom"))]
        $(#[$attribute])*
        $visible fn $($rest)*
    };
}
pub(crate) use const_fn;

/// Defines a `static`, or under loom one that each run of a model creates anew.
macro_rules! global {
    ($(#[$attribute:meta])* $visible:vis static $name:ident: $type:ty = $value:expr;) => {
        #[cfg(not(all(loom, feature = "loom")))]
        $(#[$attribute])*
        $visible static $name: $type = $value;

        #[cfg(all(loom, feature = "loom"))]
        loom::lazy_static! {
            $(#[$attribute])*
            pub(crate) static ref $name: $type = $value;
        }
    };
}
pub(crate) use global;

/// Defines a thread-local without a destructor, or with none that matters.
macro_rules! per_thread {
    ($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;) => {
        #[cfg(not(all(loom, feature = "loom")))]
        std::thread_local! {
            $(#[$attribute])*
            static $name: $type = const { $value };
        }

        #[cfg(all(loom, feature = "loom"))]
        loom::thread_local! {
            $(#[$attribute])*
            static $name: $type = $value;
        }
    };
}
pub(crate) use per_thread;

/// The number of times that a thread tries again to take a lock before it sleeps: a few microseconds in total.
const LOOKS: u32 = 8;

/// A mutex without poisoning: no user code runs under it, and the value is consistent at every moment.
#[derive(Debug)]
pub(crate) struct Lock<T>(Mutex<T>);

impl<T: Default> Default for Lock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Lock<T> {
    const_fn! {
        pub(crate) const fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        if cfg!(all(loom, feature = "loom")) {
            return self.sleep(); // loom would explore every attempt in every order
        }
        self.try_lock().unwrap_or_else(|| self.linger())
    }

    fn sleep(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries a few more times, with growing pauses, before it sleeps: these locks are held for a few dozen
    /// instructions, and a thread that tries without a pause takes the lock's cache line from the thread that holds it.
    #[cold]
    #[inline(never)]
    fn linger(&self) -> MutexGuard<'_, T> {
        for look in 0..LOOKS {
            (0..1 << look).for_each(|_| hint::spin_loop());
            if let Some(guard) = self.try_lock() {
                return guard;
            }
        }
        self.sleep()
    }

    #[inline]
    fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A value and its lock for each process: a line of generations, one for each process in a line of forks that has used
/// it.
///
/// 1. From its first use on, a generation belongs to the process whose epoch it bears, and only that process waits for
///    its lock. So a child never waits for a lock that another thread of its parent held at the fork.
/// 2. A generation that an earlier process left is neither dropped nor waited for. A thread that holds this process's
///    own lock can look at it ([`earlier`](Self::earlier)) if it was not locked at the fork, so no two threads do so at
///    once.
/// 3. Generations are appended without a lock, with ascending epochs.
#[derive(Debug)]
pub(crate) struct PerProcess<T: Default> {
    epoch: AtomicUsize,
    value: Lock<T>,
    next: OnceBox<Self>,
}

/// The epoch of a generation that no process has used yet.
const UNUSED: usize = usize::MAX;

impl<T: Default> PerProcess<T> {
    const_fn! {
        pub(crate) const fn new(value: T) -> Self {
            Self { epoch: AtomicUsize::new(UNUSED), value: Lock::new(value), next: OnceBox::new() }
        }
    }

    /// Locks this process's own value.
    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.lock_or(T::default)
    }

    /// Locks this process's own value, which `fresh` creates on its first use in a child.
    #[inline]
    pub(crate) fn lock_or(&self, fresh: impl FnOnce() -> T) -> MutexGuard<'_, T> {
        let own = if self.epoch.load(Ordering::Relaxed) == raw::peek() { self } else { self.own(fresh) };
        own.value.lock()
    }

    #[cold]
    #[inline(never)]
    fn own(&self, fresh: impl FnOnce() -> T) -> &Self {
        let epoch = raw::epoch();
        let mut fresh = Some(fresh);
        let mut at = self;
        loop {
            match at.epoch.compare_exchange(UNUSED, epoch, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return at,
                Err(theirs) if theirs == epoch => return at,
                Err(_) => {
                    at = at.next.get_or_init(|| {
                        let next = Self::new(fresh.take().map_or_else(T::default, |fresh| fresh()));
                        next.epoch.store(epoch, Ordering::Relaxed);
                        Box::new(next)
                    });
                }
            }
        }
    }

    /// Returns the number of generations.
    pub(crate) fn generations(&self) -> usize {
        std::iter::successors(Some(self), |this| this.next.get()).count()
    }

    /// Returns an iterator over the values that earlier processes left, the oldest first, with `None` for one that was
    /// locked at the fork. The caller must hold this process's own lock.
    pub(crate) fn earlier(&self) -> impl Iterator<Item = Option<MutexGuard<'_, T>>> {
        let epoch = raw::epoch();
        let line = std::iter::successors(Some(self), |this| this.next.get());
        line.take_while(move |this| this.epoch.load(Ordering::Relaxed) < epoch).map(|this| this.value.try_lock())
    }

    /// Calls `look` with this process's own value if there is one, without a lock where `&mut self` makes it
    /// unnecessary.
    #[inline]
    pub(crate) fn look<R>(&mut self, look: impl FnOnce(&T) -> R) -> Option<R> {
        match *self.epoch.get_mut() {
            UNUSED => None,
            epoch if epoch == raw::peek() => Some(look(self.value.get_mut())),
            _ => self.look_further(look),
        }
    }

    #[cold]
    #[inline(never)]
    fn look_further<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        let own = raw::epoch();
        let mut line = std::iter::successors(Some(self), |this| this.next.get());
        line.find(|this| this.epoch.load(Ordering::Relaxed) == own).map(|this| look(&this.value.lock()))
    }
}

impl<T: Default> Drop for PerProcess<T> {
    #[inline]
    fn drop(&mut self) {
        let epoch = *self.epoch.get_mut();
        if epoch != UNUSED && epoch != raw::peek() && epoch != raw::epoch() {
            mem::forget(mem::take(self.value.get_mut()));
        }
    }
}

/// A value that threads can wait for.
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
    /// Sets the value, unless it is set to one that `lasts`.
    pub(crate) fn set(&self, value: T, lasts: impl FnOnce(&T) -> bool) {
        let mut new = Some(value);
        {
            let mut value = self.value.lock();
            if !value.as_ref().is_some_and(lasts) {
                mem::swap(&mut *value, &mut new);
            }
        }
        self.set.notify_all();
        drop(new); // while no lock is held
    }

    /// Clears the value, unless it is one that `lasts`.
    pub(crate) fn clear(&self, lasts: impl FnOnce(&T) -> bool) {
        let value = self.value.lock().take_if(|value| !lasts(value));
        drop(value); // while no lock is held
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

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use super::*;

    /// Before a thread wakes to see how its wait ended, something else may set the latch.
    #[test]
    fn a_latch_keeps_a_value_that_lasts() {
        let latch = Latch::default();
        let lasts = |value: &i32| *value == 2;
        latch.set(1, lasts);
        latch.set(2, lasts);
        latch.set(3, lasts);
        latch.clear(lasts);
        assert_eq!((latch.wait(), latch.wait()), (2, 2));
    }

    #[test]
    fn a_latch_can_be_set_again() {
        let latch = Latch::default();
        latch.set(1, |_| false);
        assert!(latch.is_set());
        latch.clear(|_| false);
        assert!(!latch.is_set());
        latch.set(2, |_| false);
        assert_eq!(latch.wait(), 2);
    }
}
