//! The unloading of this library, where nothing waits for the threads inside it: either it is never unloaded (WASI,
//! musl), or there is no known way to wait for them on this system. Nothing here is unsafe.

use std::thread;
use std::time::Duration;

use super::system;

/// Does nothing: there is nothing that would call `wait`.
pub(crate) fn at_unload(_wait: fn()) {}

/// Returns whether this thread unloads this library, when its handlers run. As there is no way to know, a library
/// assumes that they run for no other reason, except with musl, which unloads no library.
pub(crate) fn unloads_here() -> bool {
    !cfg!(target_env = "musl") && !system::in_main_program()
}

/// Does nothing: it is for the function passed to `at_unload`, which is never called.
pub(crate) fn call_handlers() {}

/// Returns whether any thread is known to unload this library, which requires `begin_list_anew`.
pub(crate) fn is_unloading() -> bool {
    false
}

/// Does nothing: it is never called.
pub(crate) fn begin_list_anew() {}

/// Waits for the end of the process.
pub(crate) fn park() -> ! {
    loop {
        thread::sleep(Duration::MAX);
    }
}
