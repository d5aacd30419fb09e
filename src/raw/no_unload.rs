//! The unloading of this library, where nobody waits for the threads inside it: it is never unloaded (WASI, musl), or
//! what it takes is not known for the system. Nothing here is unsafe.

use std::thread;
use std::time::Duration;

use super::system;

/// Does nothing: nobody would call `wait`.
pub(crate) fn at_unload(_wait: fn()) {}

/// Whether this thread unloads this library, while its handlers run. Where nobody tells, a library takes them to run for
/// no other reason. (musl unloads none.)
pub(crate) fn unloads_here() -> bool {
    !cfg!(target_env = "musl") && !system::in_main_program()
}

/// Does nothing: `at_unload` does not call its function, nor does anybody else.
pub(crate) fn call_handlers() {}

/// Whether any thread is known to: `begin_list_anew` is for those that are.
pub(crate) fn is_unloading() -> bool {
    false
}

/// Does nothing: nobody calls it.
pub(crate) fn begin_list_anew() {}

/// Waits for the end of the process.
pub(crate) fn park() -> ! {
    loop {
        thread::sleep(Duration::MAX);
    }
}
