//! The C boundary where there is no C library, as on `wasm32-unknown-unknown`: nothing is called and nothing is unsafe.
//!
//! No exit path of such a program can be hooked. `exitstack::exit` and `run` drain the process stack themselves, so it
//! accepts handlers here too.

/// Whether `std::process::exit` calls the functions registered with `atexit`.
pub(crate) const EXIT_CALLS_HOOKS: bool = false;

/// Does nothing: there is no C library that would call `hook`.
pub(crate) fn at_exit(_hook: extern "C" fn()) -> bool {
    true
}

/// Discards the bytes: there is no standard error.
pub(crate) fn write_stderr(_bytes: &[u8]) {}

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
