//! What the children have in common.

use std::ffi::c_int;

use exitstack::{Handler, HandlerId};

/// musl drops no thread-locals when the process ends.
pub(crate) const DROPS_THREAD_LOCALS: bool = !cfg!(target_env = "musl");

/// Writes a line to standard output, past every buffer and lock.
pub(crate) fn say(line: &str) {
    let line = format!("{line}\n");
    // SAFETY: pointer and length are those of a live string.
    unsafe { libc::write(1, line.as_ptr().cast(), line.len()) };
}

/// Registers a handler that says this.
pub(crate) fn says(line: &'static str) -> HandlerId {
    exitstack::register(Handler::new(move || say(line)).named(line))
}

/// C's `exit`, as a library in C would call it.
pub(crate) fn c_exit(status: c_int) -> ! {
    // SAFETY: the way out that is tested.
    unsafe { libc::exit(status) }
}

/// Registers, with C, what another library would.
pub(crate) fn another_librarys_handler() {
    extern "C" fn handler() {
        say("another library's");
    }
    // SAFETY: the handler is a function that does not unwind.
    assert_eq!(unsafe { libc::atexit(handler) }, 0);
}
