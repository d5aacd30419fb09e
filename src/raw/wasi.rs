//! The C boundary on WASI: `atexit` and `write` of its C library, with which Rust's std is linked in any case.
//!
//! The two functions are declared here, as in C and POSIX, rather than taken from a crate. They are called with
//! arguments that are valid by their types: a function of this program, which is never unloaded, and slices.

use std::ffi::{c_int, c_void};

unsafe extern "C" {
    fn atexit(hook: extern "C" fn()) -> c_int;
    fn write(file: c_int, bytes: *const c_void, length: usize) -> isize;
}

/// Whether `std::process::exit` calls the functions registered with `atexit`.
pub(crate) const EXIT_CALLS_HOOKS: bool = true;

/// Registers `hook` for C to call when the process exits; returns false if C refuses.
pub(crate) fn at_exit(hook: extern "C" fn()) -> bool {
    // SAFETY: `hook` is a function of this program.
    unsafe { atexit(hook) == 0 }
}

/// Writes to standard error without a lock or a buffer. What cannot be written is lost.
pub(crate) fn write_stderr(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length are those of a live slice.
        let written = unsafe { write(2, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(written) {
            Ok(written @ 1..) => bytes = &bytes[written..],
            Ok(_) | Err(_) => return,
        }
    }
}

/// Returns whether this code is part of the program itself: always, as there is nothing else.
pub(crate) fn in_main_program() -> bool {
    true
}

/// Ends the process at once, without calling anything that was registered.
pub(crate) fn end_now(status: i32) -> ! {
    std::process::exit(status) // no thread could be left behind
}

/// Returns the name of this thread, if the system knows one: it does not.
pub(crate) fn thread_name() -> Option<String> {
    None
}
