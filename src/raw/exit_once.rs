//! The exit status, where C's `exit` must not be called again inside itself: musl, whose newer versions trap that.
//!
//! **Need.** A handler can decide the exit status. By then C's `exit` is running, with a status of its own, and it
//! still has to call other libraries' functions and to flush the streams.
//!
//! **Mechanism.** The status is stored, and `exit` continues. After the last `atexit` function it calls the functions
//! of the program's `.fini_array`, from last to first; one of ours is the first of the array. If a status was decided,
//! ours flushes the streams and ends the process with `_exit`. This skips the functions in the `.fini_array` of shared
//! libraries; C defines no order in which they could run before.
//!
//! **What a caller cannot do.** The function in `.fini_array` has the required type, and does nothing unless
//! [`end_with`] was called before.

use std::ffi::c_int;
use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

static DECIDED: AtomicBool = AtomicBool::new(false);
static STATUS: AtomicI32 = AtomicI32::new(0);

// SAFETY: the section is an array of pointers to functions without arguments, which are called one by one at exit.
#[unsafe(link_section = ".fini_array.00000")]
#[used]
static LAST: extern "C" fn() = last;

extern "C" fn last() {
    if DECIDED.load(Ordering::Acquire) {
        exit_inside_exit(STATUS.load(Ordering::Relaxed));
    }
}

/// Whether [`exit_inside_exit`] calls what C's `exit` has not called yet.
pub(crate) const EXIT_INSIDE_EXIT_CALLS_HOOKS: bool = false;

/// Makes the running call of C's `exit`, in which the caller is, end with `status`. Returns, so that it can continue.
pub(crate) fn end_with(status: c_int) {
    black_box(&LAST); // a use, so that no linker leaves it out of the program
    STATUS.store(status, Ordering::Relaxed);
    DECIDED.store(true, Ordering::Release);
}

/// Ends the process while C's `exit` is running, without calling that again: other libraries' functions that it has not
/// called yet do not run.
pub(crate) fn exit_inside_exit(status: c_int) -> ! {
    // SAFETY: null means every stream.
    unsafe { libc::fflush(ptr::null_mut()) };
    // SAFETY: `_exit` may be called at any time.
    unsafe { libc::_exit(status) }
}
