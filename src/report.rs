//! The report hook, which receives the failures that cannot be returned to a caller.
//!
//! `close()` returns its failures. A stack that is dropped and a process that exits have no caller to return them to,
//! so each failure is reported here at the moment it happens, and a later hang or crash cannot hide it.
//!
//! Without a hook, a report is a single escaped line with the whole chain of the failure's causes, written to standard
//! error with one raw write. Unlike `eprintln!`, it takes no lock that another thread might hold forever, and no error
//! text can rewrite a terminal or look like a second line.
//!
//! A report that cannot be written stops nothing. If nobody reads standard error, or if a disk or a file is full, the
//! report is lost and the drain continues, even with SIGPIPE and SIGXFSZ at their default action. (macOS and NetBSD
//! send these signals to the process, so another thread may receive them.) If standard error is non-blocking and full,
//! a report waits for its reader for up to two seconds. Once a report has waited in vain, none waits again until
//! something has been read. If standard error is blocking, a report is written as by any program.
//!
//! **Without std there is no default report**: there is no standard error, so what is reported while no hook is set is lost.
//!
//! Each failure is reported once, even if the hook exits the process, panics or replaces itself. CPython has
//! `sys.unraisablehook` for this. A hook that fails stops nothing, there as here.

use alloc::boxed::Box;
use alloc::sync::Arc;

use crate::error::{Exit, HandlerError};
use crate::panics::{catch, discard};

#[cfg_attr(feature = "std", path = "report/with_std.rs")]
#[cfg_attr(not(feature = "std"), path = "report/without_std.rs")]
mod installed;

use installed::{call, current, replace, show};

type Hook = Box<dyn Fn(&HandlerError) + Send + Sync>;

/// Sets the hook that receives every failure that cannot be returned to a caller, replacing any earlier hook.
///
/// The hook is called on the thread that drains, while this library holds no lock: it may register, unregister and
/// close. When the process exits, thread-locals with destructors may already be gone and other threads may hold any
/// lock, so a hook that writes then should use raw writes. If the hook panics, that failure gets the default report
/// instead and the drain continues. If what the hook uses fails in turn, that is reported too, by default once a thread
/// is eight deep in the hook. If the hook exits the process, the failures of the process stack and of interpreters that
/// are not yet reported are reported on the way out. The earlier hook is dropped here; a panic of that drop goes to the
/// caller, and the new hook is set.
///
/// Without std, the panic of a hook goes on once the other handlers have run, and a second one aborts the program; a hook
/// that always fails may call itself without end. A hook that was replaced is never dropped there, and each call costs
/// the next report a step: a program sets its hook once.
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// let seen = Arc::new(Mutex::new(Vec::new()));
/// let sink = Arc::clone(&seen);
/// exitstack::report::set_hook(Box::new(move |error| sink.lock().unwrap().push(format!("{error:#}"))));
///
/// let stack = exitstack::ExitStack::new();
/// stack.register(|| Err("disk full"));
/// drop(stack);
/// assert!(seen.lock().unwrap()[0].ends_with("failed: disk full"));
/// # drop(exitstack::report::take_hook());
/// ```
pub fn set_hook(hook: Box<dyn Fn(&HandlerError) + Send + Sync>) {
    let _earlier = replace(Some(Arc::new(hook)));
}

/// Removes the current hook and returns it, restoring the default report.
///
/// If no hook is set, the default report is returned; without std, a hook that does nothing.
///
/// ```
/// let earlier = exitstack::report::take_hook();
/// exitstack::report::set_hook(Box::new(move |error| {
///     // count it, send it to the log, then report it as before
///     earlier(error);
/// }));
/// ```
pub fn take_hook() -> Box<dyn Fn(&HandlerError) + Send + Sync> {
    match replace(None) {
        // The same box, unless a report is using it: a new box around it on each call would build a chain.
        Some(hook) => Arc::try_unwrap(hook).unwrap_or_else(|hook| Box::new(move |error| hook(error))),
        None => Box::new(show),
    }
}

/// Reports a failure that has not been reported yet, through the hook or by default.
#[cold]
pub(crate) fn report(error: &HandlerError) {
    if !error.tell() {
        return;
    }
    let Some(hook) = current() else { return show(error) };
    let told = catch(|| call(&hook, error));
    discard(hook); // this may be the last reference, and the drop of a capture may panic
    if let Err(payload) = told {
        let exits = payload.is::<Exit>(); // the hook called `exit`, which has recorded the status
        discard(payload);
        if !exits {
            show(error);
        }
    }
}
