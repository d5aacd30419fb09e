//! A write to standard error that does not end the process.
//!
//! **Need.** A report that cannot be written must not end the drain that it tells of. A `write` to a pipe that nobody
//! reads any more raises SIGPIPE, one past the limit of a file's size SIGXFSZ. Both end the process by default; Rust's
//! own start-up ignores only the first, and many command-line tools put that one back to its default.
//!
//! **Mechanism.** A write raises these signals on the thread that writes. There they are blocked around the write; one
//! that it raised, and that was not pending before, is taken back before the thread's mask is restored. Signals that
//! come from elsewhere are left alone. Where standard error is non-blocking and full, `poll` waits for its reader.
//!
//! **Assumption.** The signal goes to the thread. macOS and NetBSD send it to the process: there it ends the process
//! after all if its action is the default one and another thread does not block it.
//!
//! Every function called here is one of C's or POSIX's, called with arguments that are valid by their types: slices and
//! variables that live until it returns.

use std::ffi::c_int;
use std::io::{Error, ErrorKind};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long one report waits, in all, for a standard error that is non-blocking and full.
const PATIENCE: Duration = Duration::from_secs(2);

/// A report has waited in vain. None waits again before standard error has taken something: a reader that has stopped
/// does not cost each of them its patience.
static IN_VAIN: AtomicBool = AtomicBool::new(false);

/// Writes to standard error, without a lock and without a buffer; what cannot be written is lost. Raises no signal.
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
        // SAFETY: pointer and length are those of a live slice.
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

/// Waits for standard error to take more, or to fail for good; false if neither is to be expected by `deadline`.
fn wait_until(deadline: Instant) -> bool {
    while !IN_VAIN.load(Ordering::Relaxed) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            IN_VAIN.store(true, Ordering::Relaxed);
            break;
        }
        let millis = c_int::try_from(left.as_millis()).map_or(c_int::MAX, |millis| millis.saturating_add(1));
        let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
        // SAFETY: one entry, which lives until the call returns.
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
        // SAFETY: a `sigset_t` is numbers, which may be zero.
        let mut set = Self(unsafe { MaybeUninit::zeroed().assume_init() });
        // SAFETY: fills the set it is given.
        unsafe { libc::sigemptyset(&raw mut set.0) };
        for &signal in signals {
            // SAFETY: changes the set it is given, which was filled above.
            unsafe { libc::sigaddset(&raw mut set.0, signal) };
        }
        set
    }

    /// Those that wait for this thread to unblock them.
    fn pending() -> Self {
        let mut set = Self::of(&[]);
        // SAFETY: fills the set it is given.
        unsafe { libc::sigpending(&raw mut set.0) };
        set
    }

    fn contains(&self, signal: c_int) -> bool {
        // SAFETY: reads the set it is given.
        unsafe { libc::sigismember(&raw const self.0, signal) == 1 }
    }

    /// Blocks them on this thread; returns all that were blocked there before.
    fn block(&self) -> Self {
        let mut before = Self::of(&[]);
        // SAFETY: reads the one set and fills the other.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const self.0, &raw mut before.0) };
        before
    }

    /// Lets no others be blocked on this thread.
    fn restore(&self) {
        // SAFETY: reads the set; null stands for what is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }

    /// Takes one of them that is pending, as if it had not come.
    fn take(&self) {
        let mut taken = 0;
        // SAFETY: reads the set and fills the variable. They are blocked on this thread, and one is pending: it returns.
        unsafe { libc::sigwait(&raw const self.0, &raw mut taken) };
    }
}
