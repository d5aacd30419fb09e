//! Writes to standard error that cannot end the process.
//!
//! **Need.** A report that cannot be written must not end the drain that it comes from. A `write` to a pipe without a
//! reader raises SIGPIPE, and one beyond the file size limit raises SIGXFSZ. Both end the process by default; Rust's
//! runtime ignores only the first, and many command-line tools restore its default action.
//!
//! **Mechanism.** A write raises these signals on the thread that writes, so that thread blocks them around the write.
//! A signal that the write raised and that was not pending before is consumed before the signal mask is restored.
//! Signals from elsewhere are left alone. If standard error is non-blocking and full, `poll` waits for its reader.
//!
//! **Assumption.** The signal goes to the thread. macOS and NetBSD send it to the process, which it can still end if
//! its action is the default one and another thread does not block it.
//!
//! All functions called here are C's or POSIX's, called with arguments that are valid by their types: slices and
//! variables that live until the function returns.

use std::ffi::c_int;
use std::io::{Error, ErrorKind};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The time that one report waits, in all, for a standard error that is non-blocking and full.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether a report has waited in vain. None waits again until standard error has taken something, so that a reader
/// that has stopped does not delay every report.
static IN_VAIN: AtomicBool = AtomicBool::new(false);

/// Writes to standard error without a lock or a buffer. What cannot be written is lost, and no signal is raised.
pub(crate) fn write_stderr(bytes: &[u8]) {
    let mask = Signals::of(&[libc::SIGPIPE, libc::SIGXFSZ]).block();
    let before = Signals::pending();
    let raised = match write_all(bytes).map_err(|error| error.raw_os_error()) {
        Err(Some(libc::EPIPE)) => Some(libc::SIGPIPE),
        Err(Some(libc::EFBIG)) => Some(libc::SIGXFSZ),
        Ok(()) | Err(_) => None,
    };
    if let Some(signal) = raised.filter(|&signal| !before.contains(signal) && Signals::pending().contains(signal)) {
        Signals::of(&[signal]).take();
    }
    mask.restore();
}

fn write_all(mut bytes: &[u8]) -> Result<(), Error> {
    let mut deadline = None;
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length are those of a live slice.
        let written = unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
        let error = match usize::try_from(written) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                IN_VAIN.store(false, Ordering::Relaxed);
                bytes = &bytes[written..];
                continue;
            }
            Err(_) => Error::last_os_error(),
        };
        let again = match error.kind() {
            ErrorKind::Interrupted => true,
            ErrorKind::WouldBlock => wait_until(*deadline.get_or_insert_with(|| Instant::now() + PATIENCE)),
            _ => false,
        };
        if !again {
            return Err(error);
        }
    }
    Ok(())
}

/// Waits until standard error can be written to or has failed; returns false if neither happens before `deadline`.
fn wait_until(deadline: Instant) -> bool {
    while !IN_VAIN.load(Ordering::Relaxed) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            IN_VAIN.store(true, Ordering::Relaxed);
            break;
        }
        let millis = c_int::try_from(left.as_millis()).map_or(c_int::MAX, |millis| millis.saturating_add(1));
        let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
        // SAFETY: there is one entry, which lives until the call returns.
        let ready = unsafe { libc::poll(&raw mut stderr, 1, millis) };
        if ready > 0 {
            return true;
        }
        if ready < 0 && Error::last_os_error().kind() != ErrorKind::Interrupted {
            break;
        }
    }
    false
}

/// A set of signals.
struct Signals(libc::sigset_t);

impl Signals {
    fn of(signals: &[c_int]) -> Self {
        // SAFETY: a `sigset_t` consists of integers, which may be zero.
        let mut set = Self(unsafe { MaybeUninit::zeroed().assume_init() });
        // SAFETY: the call fills the set that it is given.
        unsafe { libc::sigemptyset(&raw mut set.0) };
        for &signal in signals {
            // SAFETY: the call changes the set that it is given, which was filled above.
            unsafe { libc::sigaddset(&raw mut set.0, signal) };
        }
        set
    }

    /// Returns the signals that are pending for this thread.
    fn pending() -> Self {
        let mut set = Self::of(&[]);
        // SAFETY: the call fills the set that it is given.
        unsafe { libc::sigpending(&raw mut set.0) };
        set
    }

    fn contains(&self, signal: c_int) -> bool {
        // SAFETY: the call reads the set that it is given.
        unsafe { libc::sigismember(&raw const self.0, signal) == 1 }
    }

    /// Blocks these signals on this thread; returns the set that was blocked before.
    fn block(&self) -> Self {
        let mut before = Self::of(&[]);
        // SAFETY: the call reads one set and fills the other.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const self.0, &raw mut before.0) };
        before
    }

    /// Blocks exactly these signals on this thread.
    fn restore(&self) {
        // SAFETY: the call reads the set; null means that the old set is not returned.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }

    /// Consumes one of these signals that is pending, as if it had not been raised.
    fn take(&self) {
        let mut taken = 0;
        // SAFETY: the call reads the set and fills the variable. It returns, because one of these signals is pending
        // and all of them are blocked on this thread.
        unsafe { libc::sigwait(&raw const self.0, &raw mut taken) };
    }
}
