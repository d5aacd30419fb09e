//! The exit status, where C's `exit` may be entered again.
//!
//! **Need.** A handler may decide the exit status. By then C's `exit` runs, with a status of its own.
//!
//! **Mechanism.** `exit` is called once more, in the function that `exit` called. In the standard that is undefined. The
//! C libraries this is compiled for take each handler off their list before they call it, and keep no lock that the
//! same thread could not take again; so the second call goes on with what is left of the list, flushes the streams, and
//! ends the process under the new status. Seen on glibc and on WASI's, which has not taken over musl's trap (see
//! `exit_once.rs`). Wine's ends under the new status too, and flushes, but has forgotten the rest of the list, which is
//! other libraries' handlers.

use std::ffi::c_int;

unsafe extern "C" {
    fn exit(status: c_int) -> !;
}

/// Lets the call of C's `exit` that the caller is in end with this status. Does not return.
pub(crate) fn end_with(status: c_int) {
    exit_inside_exit(status)
}

/// Ends the process by C's `exit`, where that is what runs already: what it has not run yet runs still.
pub(crate) fn exit_inside_exit(status: c_int) -> ! {
    // SAFETY: `exit` may be called at any time, and by the C libraries named above also within itself.
    unsafe { exit(status) }
}
