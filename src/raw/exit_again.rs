//! The exit status, where C's `exit` can be called again inside itself.
//!
//! **Need.** A handler can decide the exit status. By then C's `exit` is running, with a status of its own.
//!
//! **Mechanism.** `exit` is called again, by a function that `exit` has called. The C standard leaves that undefined.
//! The C libraries for which this file is compiled take each function off their list before they call it, and hold no
//! lock that the same thread cannot take again. So the second call continues with the rest of the list, flushes the
//! streams, and ends the process with the new status. This was observed with glibc and with WASI's C library, which
//! does not have musl's trap (see `exit_once.rs`). Wine's also flushes and ends with the new status, but has lost the
//! rest of the list, which is other libraries' functions.

use std::ffi::c_int;

unsafe extern "C" {
    fn exit(status: c_int) -> !;
}

/// Whether [`exit_inside_exit`] calls what C's `exit` has not called yet.
pub(crate) const EXIT_INSIDE_EXIT_CALLS_HOOKS: bool = !cfg!(windows);

/// Makes the running call of C's `exit`, in which the caller is, end with `status`. Does not return.
pub(crate) fn end_with(status: c_int) {
    exit_inside_exit(status)
}

/// Ends the process through C's `exit` while that is running already: the functions that it has not called yet still
/// run.
pub(crate) fn exit_inside_exit(status: c_int) -> ! {
    // SAFETY: `exit` may be called at any time, and in the C libraries named above also within itself.
    unsafe { exit(status) }
}
