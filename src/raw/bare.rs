//! Where there is no C library, as on `wasm32-unknown-unknown`: nothing is called, there is no unsafe code.
//!
//! No way out of such a program can be hooked. `exitstack::exit` and `run` drain the process stack by themselves, so it
//! takes handlers there too.

/// Whether `std::process::exit` calls what was registered with `atexit`.
pub(crate) const EXIT_CALLS_HOOKS: bool = false;

/// Does nothing: nobody would call `hook`.
pub(crate) fn at_exit(_hook: extern "C" fn()) -> bool {
    true
}

/// Drops the bytes: there is no standard error.
pub(crate) fn write_stderr(_bytes: &[u8]) {}

/// Whether this code is part of the program itself: there is nothing else.
pub(crate) fn in_main_program() -> bool {
    true
}
