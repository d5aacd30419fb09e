//! The epoch, where no process has a copy of another's memory: it is always the same. Nothing here is unsafe.

/// Returns the epoch of this process.
#[inline]
pub(crate) fn peek() -> usize {
    1
}

/// Returns the epoch of this process.
#[inline]
pub(crate) fn epoch() -> usize {
    peek()
}
