//! What signal-hook leaves to its callers: whether a signal is ignored, what a signal does in a forked child, and how to die
//! by one.
//!
//! **Need.** A signal that a program was started to ignore, as by `nohup`, must stay ignored. A forked child has the signal
//! handlers of its parent, but not the thread that answers them. And a process that has cleaned up after a signal has to die
//! by it, so that a shell sees that.
//!
//! **Mechanism.** `sigaction` is asked for the action that is set, without setting one. In a child that has not installed
//! signals itself, the handler does at once what the signal does by default.
//!
//! **Why the handler is safe to call at any time.** It loads atomics, compares them, and calls `getpid`, `_exit` and
//! signal-hook's emulation of the default action, all of which are async-signal-safe. It takes no lock, allocates nothing
//! and cannot panic.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use signal_hook::consts::{FORBIDDEN, SIGHUP, SIGINT, SIGTERM};
pub(crate) use signal_hook::iterator::Signals as Incoming;
use signal_hook::low_level::{emulate_default_handler, register};

use super::fork;

/// The signals that ask a process to end.
pub(crate) const ENDING: [c_int; 3] = [SIGINT, SIGTERM, SIGHUP];

/// For each signal, the epoch of the last process of this line of forks that has caught it.
static CAUGHT_IN: [AtomicUsize; 129] = [const { AtomicUsize::new(0) }; 129];

/// Returns whether this process ignores the signal, or an error if no process can catch it.
pub(crate) fn is_ignored(signal: c_int) -> io::Result<bool> {
    let is_known = usize::try_from(signal).is_ok_and(|signal| signal < CAUGHT_IN.len());
    if !is_known || FORBIDDEN.contains(&signal) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("signal {signal} cannot be caught")));
    }
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: null leaves the action as it is; the other pointer is to a live variable of the right type.
    if unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a `sigaction` of zeros is valid, and the call has filled it.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN)
}

/// Catches these signals from now on.
pub(crate) fn catch(signals: &[c_int]) -> io::Result<Incoming> {
    // Before the action changes in any other way: what comes from here on is answered, if a little later.
    let incoming = Incoming::new(signals)?;
    for &signal in signals {
        only_here(signal)?;
    }
    Ok(incoming)
}

/// Makes a signal that this process catches do in its children what it does by default, until they catch it themselves.
fn only_here(signal: c_int) -> io::Result<()> {
    let Some(caught_in) = usize::try_from(signal).ok().and_then(|signal| CAUGHT_IN.get(signal)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    caught_in.store(fork::epoch(), Ordering::Relaxed);
    // In a child there is a second one of these then, and the first does no more.
    let in_child = move || {
        if !fork::is_still(caught_in.load(Ordering::Relaxed)) {
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
