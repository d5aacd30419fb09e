//! With std, a panic is caught, and is a value.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::{Payload, discard};

/// Runs `work`, and returns what it panics with as an error.
#[inline]
pub(crate) fn catch<R>(work: impl FnOnce() -> R) -> Result<R, Payload> {
    catch_unwind(AssertUnwindSafe(work))
}

/// A value, where a panic that cannot be caught would do something with it. There is none.
pub(crate) struct Armed<S>(S);

/// Keeps `state` for work that may panic. The function is for panics that cannot be caught.
#[inline]
pub(crate) fn arm<S>(state: S, _: impl FnOnce(S)) -> Armed<S> {
    Armed(state)
}

impl<S> Armed<S> {
    #[inline]
    pub(crate) fn state(&mut self) -> &mut S {
        &mut self.0
    }

    /// Says that the work is done.
    #[inline]
    #[expect(clippy::unused_self, reason = "without std it is disarmed")]
    pub(crate) fn disarm(self) {}
}

/// Drops what something that has failed leaves behind, whatever its drop does.
pub(crate) fn discard_or_leak<T>(value: T) {
    discard(value);
}

/// Continues a panic that was caught.
pub(super) fn resume(payload: Payload) -> ! {
    resume_unwind(payload)
}
