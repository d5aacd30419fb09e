//! The exit status, where C's `exit` must not be entered again: musl, newer versions of which trap that.
//!
//! **Need.** A handler may decide the exit status. By then C's `exit` runs, with a status of its own, and it has other
//! libraries' handlers to run yet, and the streams to flush.
//!
//! **Mechanism.** The status is kept, and `exit` goes on. After the last `atexit` handler it calls the functions of the
//! program's `.fini_array`, from the end; one of ours stands at its beginning. That one, if a status was decided,
//! flushes the streams and ends the process by `_exit`. What is left out by that are the functions in the `.fini_array`
//! of shared libraries; C gives no order in which they could come before.
//!
//! **What a caller cannot do.** The function in `.fini_array` has the type that it must have, and does nothing unless
//! [`end_with`] was called before.

use std::ffi::c_int;
use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

static DECIDED: AtomicBool = AtomicBool::new(false);
static STATUS: AtomicI32 = AtomicI32::new(0);

// SAFETY: the section is an array of pointers to functions without arguments, which are called one by one at the end.
#[unsafe(link_section = ".fini_array.00000")]
#[used]
static LAST: extern "C" fn() = last;

extern "C" fn last() {
    if DECIDED.load(Ordering::Acquire) {
        exit_inside_exit(STATUS.load(Ordering::Relaxed));
    }
}

/// Lets the call of C's `exit` that the caller is in end with this status. Returns, so that it can go on.
pub(crate) fn end_with(status: c_int) {
    black_box(&LAST); // named, so that no linker leaves it out of the program
    STATUS.store(status, Ordering::Relaxed);
    DECIDED.store(true, Ordering::Release);
}

/// Ends the process, where C's `exit` runs already, without entering that again: other libraries' handlers that it has
/// not run yet do not run.
pub(crate) fn exit_inside_exit(status: c_int) -> ! {
    // SAFETY: null means every stream.
    unsafe { libc::fflush(ptr::null_mut()) };
    // SAFETY: may be called at any time.
    unsafe { libc::_exit(status) }
}
