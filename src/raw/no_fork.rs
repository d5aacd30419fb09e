//! Which process this is, where no process has another's memory: always the same. Nothing here is unsafe.

/// The epoch of this process.
#[inline]
pub(crate) fn peek() -> usize {
    1
}

/// The epoch of this process.
#[inline]
pub(crate) fn epoch() -> usize {
    peek()
}
