//! Where failures go that nobody can be handed: the report hook.
//!
//! `close()` returns what failed. A stack that is dropped, and the process on its way out, have nobody to return it to;
//! each failure is reported here, at the moment it happens, so that a later hang or crash cannot hide it.
//!
//! Without a hook, a report is one line with the whole chain of the failure's causes, written with one raw write to
//! standard error: no lock is taken that another thread might hold for ever, as `eprintln!` would. Control characters in
//! it are escaped, so that no error text can rewrite a terminal or look like a second line.
//!
//! A report that cannot be written ends nothing: where nobody reads standard error, where a disk or a file is full, the
//! report is lost and the drain goes on, also with SIGPIPE and SIGXFSZ at their default action. (On macOS and NetBSD,
//! which send them to the process, another thread may receive them.) Where standard error is non-blocking and full, a
//! report waits for its reader, two seconds in all, and no report waits again before something has been read. A standard
//! error that is blocking is written to as by any program.
//!
//! Each failure is reported once, whatever the hook does: it may exit the process, panic, or replace itself. CPython has
//! `sys.unraisablehook` for this; as there, a hook that fails stops nothing.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::error::{Causes, Exit, HandlerError, OneLine};
use crate::panics::discard;
use crate::raw;
use crate::sync::{MutexGuard, PerProcess, global};

type Hook = Box<dyn Fn(&HandlerError) + Send + Sync>;

#[derive(Default)]
pub(crate) struct Installed {
    hook: Option<Arc<Hook>>,
    /// A child has what its parent had: that was looked for.
    inherited: bool,
}

global! {
    static HOOK: PerProcess<Installed> = PerProcess::new(Installed { hook: None, inherited: true });
}

fn installed() -> MutexGuard<'static, Installed> {
    let mut installed = HOOK.lock();
    if !installed.inherited {
        installed.inherited = true;
        // What was locked at the fork was about to change: the default takes its place.
        installed.hook = HOOK.earlier().last().flatten().and_then(|parents| parents.hook.clone());
    }
    installed
}

/// Lets `hook` receive every failure that has nobody to return to, in place of the hook before it.
///
/// It is called on the thread that drains, with nothing of this library locked: it may register, unregister and close.
/// On the way out of the process it is called when thread-locals with destructors may be gone and other threads may
/// hold any lock: a hook that writes there should write raw. If it panics, the default report takes its place for that
/// failure, and the drain goes on. If it exits the process, the failures that were not reported yet are reported on the
/// way out.
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

/// Takes the hook away and returns it; the default report is in force again. Without a hook, the default is returned.
///
/// ```
/// let earlier = exitstack::report::take_hook();
/// exitstack::report::set_hook(Box::new(move |error| {
///     // count it, send it to the log, then show it as before
///     earlier(error);
/// }));
/// ```
pub fn take_hook() -> Box<dyn Fn(&HandlerError) + Send + Sync> {
    match replace(None) {
        // Shared only while it reports. Else the very box: one in a box of its own at each turn would be a chain.
        Some(hook) => Arc::try_unwrap(hook).unwrap_or_else(|hook| Box::new(move |error| hook(error))),
        None => Box::new(show),
    }
}

/// The earlier hook comes back, to be dropped by a caller who holds no lock.
fn replace(hook: Option<Arc<Hook>>) -> Option<Arc<Hook>> {
    std::mem::replace(&mut installed().hook, hook)
}

/// Reports one failure, if that was not done: by the hook, or by one line on standard error.
#[cold]
pub(crate) fn report(error: &HandlerError) {
    if !error.tell() {
        return;
    }
    let hook = installed().hook.clone();
    let Some(hook) = hook else { return show(error) };
    let told = catch_unwind(AssertUnwindSafe(|| hook(error)));
    discard(hook); // may be the last of it, and what it captured may panic
    if let Err(payload) = told {
        let exits = payload.is::<Exit>(); // by `exit`, which has noted the status
        discard(payload);
        if !exits {
            show(error);
        }
    }
}

/// The default report.
fn show(error: &HandlerError) {
    let mut line = String::new();
    let chain = Causes { error, show: shielded };
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| write!(line, "{chain}"))) {
        discard(payload);
        line.push_str(" (the rest panicked)");
    }
    line.push('\n');
    raw::write_stderr(line.as_bytes());
}

/// An error's own text; as much of it as there is if that fails or panics.
fn shielded(error: &dyn Error, line: &mut OneLine<'_>) -> fmt::Result {
    match catch_unwind(AssertUnwindSafe(|| write!(line, "{error}"))) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => line.write_str("(the message could not be written)"),
        Err(payload) => {
            discard(payload);
            line.write_str("(the message panicked)")
        }
    }
}
