//! Shared by the children.

use std::ffi::c_int;

use exitstack::{Handler, HandlerId};

/// Whether thread-locals are dropped when the process ends. musl does not do that.
pub(crate) const DROPS_THREAD_LOCALS: bool = !cfg!(target_env = "musl");

/// Writes a line to standard output, bypassing all buffers and locks.
pub(crate) fn say(line: &str) {
    let line = format!("{line}\n");
    // SAFETY: pointer and length are those of a live string.
    unsafe { libc::write(1, line.as_ptr().cast(), line.len()) };
}

/// Registers a handler that says this line.
pub(crate) fn says(line: &'static str) -> HandlerId {
    exitstack::register(Handler::new(move || say(line)).named(line))
}

/// Calls C's `exit`, as a C library would.
pub(crate) fn c_exit(status: c_int) -> ! {
    // SAFETY: this way out is what is tested.
    unsafe { libc::exit(status) }
}

/// Registers a handler with C's `atexit`, as another library would.
pub(crate) fn another_librarys_handler() {
    extern "C" fn handler() {
        say("another library's");
    }
    // SAFETY: the handler is a function that does not unwind.
    assert_eq!(unsafe { libc::atexit(handler) }, 0);
}

/// An error whose drop panics.
#[derive(Debug, thiserror::Error)]
#[error("rude")]
pub(crate) struct Rude;

impl Drop for Rude {
    fn drop(&mut self) {
        panic!("an error's drop");
    }
}
