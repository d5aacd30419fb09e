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

/// Replaces a descriptor by a pipe that is full and that nobody reads.
pub(crate) fn full_pipe(replaced: c_int) {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    let set_flags = |flags: c_int| {
        // SAFETY: the descriptor is open.
        assert_eq!(unsafe { libc::fcntl(ends[1], libc::F_SETFL, flags) }, 0);
    };
    set_flags(libc::O_WRONLY | libc::O_NONBLOCK);
    for length in [4096, 1] {
        // SAFETY: the array is at least as long.
        while unsafe { libc::write(ends[1], [0_u8; 4096].as_ptr().cast(), length) } > 0 {}
    }
    set_flags(libc::O_WRONLY);
    // SAFETY: both descriptors are open.
    assert_eq!(unsafe { libc::dup2(ends[1], replaced) }, replaced);
}
