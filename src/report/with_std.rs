//! With std: a hook for each process, and standard error.

use std::cell::Cell;
use std::error::Error;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use scopeguard::defer;

use super::Hook;
use crate::error::{Causes, HandlerError, OneLine};
use crate::panics::{catch, discard};
use crate::raw;
use crate::sync::{MutexGuard, PerProcess, global};

#[derive(Default)]
pub(crate) struct Installed {
    hook: Option<Arc<Hook>>,
    /// Whether this process has looked up the hook of its parent process, which a forked child inherits.
    inherited: bool,
}

global! {
    static HOOK: PerProcess<Installed> = PerProcess::new(Installed { hook: None, inherited: true });
}

fn installed() -> MutexGuard<'static, Installed> {
    let mut installed = HOOK.lock();
    if !installed.inherited {
        installed.inherited = true;
        // A hook that was locked at the fork was being replaced, so the default takes its place.
        installed.hook = HOOK.earlier().last().flatten().and_then(|parents| parents.hook.clone());
    }
    installed
}

/// How often a thread may be inside the hook at once. Each time, what the hook itself uses has failed.
const DEPTH: u32 = 8;

thread_local! {
    static INSIDE: Cell<u32> = const { Cell::new(0) };
}

/// Returns the hook, if one is set and this thread is not deep inside it already.
pub(super) fn current() -> Option<Arc<Hook>> {
    if INSIDE.get() < DEPTH { installed().hook.clone() } else { None }
}

/// Calls a hook.
pub(super) fn call(hook: &Hook, error: &HandlerError) {
    INSIDE.set(INSIDE.get() + 1);
    defer! { INSIDE.set(INSIDE.get() - 1) }
    hook(error);
}

/// Replaces the hook and returns the earlier one, which the caller drops where no lock is held.
pub(super) fn replace(hook: Option<Arc<Hook>>) -> Option<Arc<Hook>> {
    std::mem::replace(&mut installed().hook, hook)
}

/// Writes the default report.
pub(super) fn show(error: &HandlerError) {
    let mut line = String::new();
    let chain = Causes { error, show: shielded };
    if let Err(payload) = catch(|| write!(line, "{chain}")) {
        discard(payload);
        line.push_str(" (the rest panicked)");
    }
    line.push('\n');
    raw::write_stderr(line.as_bytes());
}

/// Writes an error's own text, or as much of it as there is if its `Display` fails or panics.
fn shielded(error: &dyn Error, line: &mut OneLine<'_>) -> fmt::Result {
    match catch(|| write!(line, "{error}")) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => line.write_str("(the message could not be written)"),
        Err(payload) => {
            discard(payload);
            line.write_str("(the message panicked)")
        }
    }
}
