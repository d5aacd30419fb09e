//! What signal-hook leaves to its callers: whether a signal is ignored, what a signal does in a forked child, and how to die
//! by one.
//!
//! **Need.** A signal that a program was started to ignore, as by `nohup`, must stay ignored. A forked child has the signal
//! handlers of its parent, but not the thread that answers them. And a process that has cleaned up after a signal has to die
//! by it, so that a shell sees that.
//!
//! **Mechanism.** `sigaction` is asked for the action that is set, without setting one. In a child that has not installed
//! signals itself, the handler does at once what the signal does by default: signal-hook emulates that for the signals that
//! it knows, and for the others the default action is set and the signal raised again.
//!
//! **Why the handler is safe to call at any time.** It loads atomics, compares them, and calls `getpid`, `_exit`,
//! `sigaction`, `pthread_sigmask`, `raise` and signal-hook's emulation of the default action, all of which are
//! async-signal-safe. It takes no lock, allocates nothing and cannot panic.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use scopeguard::ScopeGuard;
use signal_hook::SigId;
use signal_hook::consts::{FORBIDDEN, SIGHUP, SIGINT, SIGTERM};
pub(crate) use signal_hook::iterator::Signals as Incoming;
use signal_hook::low_level::{emulate_default_handler, register, unregister};

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
    let incoming = Incoming::new(signals)?; // undone by its drop
    let undo = |registered: Vec<(&AtomicUsize, usize, SigId)>| {
        for (caught_in, before, id) in registered {
            unregister(id);
            caught_in.store(before, Ordering::Relaxed);
        }
    };
    let mut registered = scopeguard::guard(Vec::new(), undo);
    for &signal in signals {
        registered.push(only_here(signal)?);
    }
    drop(ScopeGuard::into_inner(registered));
    Ok(incoming)
}

/// Makes a signal that this process catches do in its children what it does by default, until they catch it themselves.
/// Returns what undoes that: where it was caught before, and what was registered.
fn only_here(signal: c_int) -> io::Result<(&'static AtomicUsize, usize, SigId)> {
    let Some(caught_in) = usize::try_from(signal).ok().and_then(|signal| CAUGHT_IN.get(signal)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let before = caught_in.swap(fork::epoch(), Ordering::Relaxed);
    // In a child there is a second one of these then, and the first does no more.
    let in_child = move || {
        if !fork::is_still(caught_in.load(Ordering::Relaxed)) {
            default_action(signal);
        }
    };
    // SAFETY: the closure may be called at any time, as the module documentation argues.
    unsafe { register(signal, in_child) }.map(|id| (caught_in, before, id))
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
    // It takes SIGIO for a signal that is ignored, as BSD does.
    let is_misjudged = cfg!(any(target_os = "linux", target_os = "android")) && signal == libc::SIGIO;
    if is_misjudged || emulate_default_handler(signal).is_err() {
        raise_by_default(signal);
    }
}

/// Lets the kernel do what the signal does by default. Returns if that does not end this process.
fn raise_by_default(signal: c_int) {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a `sigaction` of zeros is valid.
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = libc::SIG_DFL;
    // SAFETY: the pointer is to a live variable of the right type; null means that the old action is not returned.
    unsafe { libc::sigaction(signal, action, ptr::null_mut()) };
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the call fills the set that it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the call changes the set, which was filled above.
    unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    // SAFETY: the call reads the set, which was filled above; null means that the old set is not returned.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut()) };
    // SAFETY: the action is the default one, so nothing of this process is called.
    unsafe { libc::raise(signal) };
}
