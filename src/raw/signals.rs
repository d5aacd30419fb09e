//! What signal-hook leaves to its callers: whether a signal is ignored, what a signal does in a forked child, and how to die
//! by one.
//!
//! **Need.** A signal that a program was started to ignore, as by `nohup`, must stay ignored. A forked child has the signal
//! handlers of its parent, but not the thread that answers them. And a process that has cleaned up after a signal has to die
//! by it, so that a shell sees that.
//!
//! **Mechanism.** `sigaction` is asked for the action that is set, without setting one. In a child, the handler does at once
//! what the signal does by default.
//!
//! **Why the handler is safe to call at any time.** It loads atomics, compares them, and calls `getpid`, `_exit` and
//! signal-hook's emulation of the default action, all of which are async-signal-safe. It takes no lock, allocates nothing
//! and cannot panic.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use signal_hook::low_level::{emulate_default_handler, register};

use super::fork;

/// Returns whether this process ignores the signal.
pub(crate) fn is_ignored(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: null leaves the action as it is; the other pointer is to a live variable of the right type.
    let asked = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: a `sigaction` of zeros is valid, and the call has filled it if it succeeded.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Makes the signal do in children of this process what it does by default.
pub(crate) fn only_here(signal: c_int) -> io::Result<()> {
    let process = fork::epoch();
    let in_child = move || {
        if !fork::is_still(process) {
            default_action(signal);
        }
    };
    // SAFETY: the closure may be called at any time, as the module documentation argues.
    unsafe { register(signal, in_child) }.map(drop)
}

/// Ends this process as the signal does by default; process 1 with the status that a shell would show.
pub(crate) fn die_by(signal: c_int) -> ! {
    default_action(signal);
    super::end_now(128 + signal)
}

fn default_action(signal: c_int) {
    // The kernel spares process 1 the default action.
    if std::process::id() == 1 {
        super::end_now(128 + signal);
    }
    let _unknown = emulate_default_handler(signal);
}
