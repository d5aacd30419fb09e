//! The exit status, where there is no C library whose `exit` could be running: nothing here is ever called, and nothing
//! is unsafe.

use std::ffi::c_int;

/// Whether [`exit_inside_exit`] calls what C's `exit` has not called yet.
pub(crate) const EXIT_INSIDE_EXIT_CALLS_HOOKS: bool = false;

/// Does nothing: there is no call of C's `exit`.
pub(crate) fn end_with(_status: c_int) {}

/// Ends the process.
pub(crate) fn exit_inside_exit(status: c_int) -> ! {
    std::process::exit(status)
}
