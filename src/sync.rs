//! The lock and the latch that the shared stacks are built on.
//!
//! Under `cfg(loom)`, with the feature of that name, they and the statics and thread-locals of the protocol are loom's: it
//! runs all threads of a model on one, and each model anew. Little else of the crate knows of it.

#[cfg(all(loom, feature = "loom"))]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
use std::sync::PoisonError;
#[cfg(not(all(loom, feature = "loom")))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

/// A `const fn`; a mere `fn` under loom, whose mutex cannot be made in one.
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

/// A `static`; under loom one that each run of a model makes anew.
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

/// A thread-local without a destructor, or none that matters.
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

/// A mutex that knows no poison: no user code runs under it, and what stands under it is whole at every moment.
#[derive(Debug)]
pub(crate) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    const_fn! {
        pub(crate) const fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }
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
