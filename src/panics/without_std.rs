//! Without std, a panic cannot be caught: what has to be done after it is done while it unwinds, and then it goes on.
//!
//! A panic that leaves a destructor which runs because of another panic aborts the program. So does a second panic in the
//! same work, but only when the rest is done, in a destructor within the one that the second panic leaves.

use core::mem;

use scopeguard::{ScopeGuard, guard};

use super::Payload;

/// Runs `work`, whose panics go on through here.
#[inline]
#[expect(clippy::unnecessary_wraps, reason = "with std it may fail")]
pub(crate) fn catch<R>(work: impl FnOnce() -> R) -> Result<R, Payload> {
    Ok(work())
}

/// A value, and what a panic does with it while it unwinds.
pub(crate) struct Armed<S, F: FnOnce(S)>(ScopeGuard<S, F>);

/// Keeps `state` for work that may panic: then `unwinding` is called with it, before the panic goes on.
#[inline]
pub(crate) fn arm<S, F: FnOnce(S)>(state: S, unwinding: F) -> Armed<S, F> {
    Armed(guard(state, unwinding))
}

impl<S, F: FnOnce(S)> Armed<S, F> {
    #[inline]
    pub(crate) fn state(&mut self) -> &mut S {
        &mut self.0
    }

    /// Says that the work is done.
    #[inline]
    pub(crate) fn disarm(self) {
        ScopeGuard::into_inner(self.0);
    }
}

/// Leaks what something that has failed leaves behind: a panic of its drop could not be caught.
pub(crate) fn discard_or_leak<T>(value: T) {
    mem::forget(value);
}

/// Does nothing: a panic that was not caught goes on by itself.
pub(super) fn resume(_: Payload) {}
