//! Without std: a line of hooks, the last of which counts, and nothing to write to.
//!
//! There is no lock here: a hook may be set in an interrupt handler, and so may a stack be dropped there, while what was
//! interrupted does the same. So a hook that was replaced cannot be dropped either, as it may be in use.

use alloc::boxed::Box;
use alloc::sync::Arc;

use once_cell::race::OnceBox;

use super::Hook;
use crate::error::HandlerError;

/// A hook, or none, that counts until the next one is set.
struct Setting {
    hook: Option<Arc<Hook>>,
    next: OnceBox<Self>,
}

static FIRST: Setting = Setting { hook: None, next: OnceBox::new() };

fn last() -> &'static Setting {
    let mut last = &FIRST;
    while let Some(next) = last.next.get() {
        last = next;
    }
    last
}

/// Returns the hook, if one is set.
pub(super) fn current() -> Option<Arc<Hook>> {
    last().hook.clone()
}

/// Calls a hook.
pub(super) fn call(hook: &Hook, error: &HandlerError) {
    hook(error);
}

/// Replaces the hook and returns the earlier one.
pub(super) fn replace(hook: Option<Arc<Hook>>) -> Option<Arc<Hook>> {
    let mut setting = Box::new(Setting { hook, next: OnceBox::new() });
    loop {
        let last = last();
        match last.next.set(setting) {
            Ok(()) => return last.hook.clone(),
            Err(refused) => setting = refused, // another one was set in between
        }
    }
}

/// Does nothing, where std writes to standard error.
pub(super) fn show(_: &HandlerError) {}
