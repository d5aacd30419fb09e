//! What each thread knows about itself: the current interpreter, and its budget of late registrations.
//!
//! The thread-locals have no destructors, so they can still be used on the exit path, where those with destructors are
//! gone. The code that fills one also empties it.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use super::Node;
use super::lifecycle::LateBudget;
use crate::raw;
use crate::sync::per_thread;

per_thread! {
    static CURRENT: Cell<ManuallyDrop<Option<Arc<Node>>>> = Cell::new(ManuallyDrop::new(None));
}

/// Makes this interpreter, or none, the current one on this thread, and returns the previous one.
pub(super) fn set_current(node: Option<Arc<Node>>) -> Option<Arc<Node>> {
    CURRENT.with(|current| ManuallyDrop::into_inner(current.replace(ManuallyDrop::new(node))))
}

/// Returns the interpreter that is current on this thread.
pub(crate) fn current() -> Option<Arc<Node>> {
    let current = set_current(None);
    set_current(current.clone());
    current
}

/// Makes this interpreter, or none, the current one on this thread until the guard is dropped.
pub(crate) fn enter(node: Option<Arc<Node>>) -> impl Drop {
    scopeguard::guard(set_current(node), |before| drop(set_current(before)))
}

per_thread! {
    /// The epoch of the process in which this thread is in a bounded drain, or zero; and what it has registered during
    /// that drain.
    static LATE: Cell<(usize, LateBudget)> = Cell::new((0, LateBudget::new()));
}

/// Returns the budget of this thread, if it is in a bounded drain.
#[inline]
pub(super) fn late_budget() -> Option<LateBudget> {
    let (epoch, budget) = LATE.with(Cell::get);
    // A child forked in a drain is in none itself: the budget is its parent's.
    (epoch != 0 && epoch == raw::epoch()).then_some(budget)
}

pub(super) fn set_late_budget(budget: Option<LateBudget>) {
    LATE.with(|late| late.set(budget.map_or((0, LateBudget::new()), |budget| (raw::epoch(), budget))));
}

/// Limits the registrations of this thread until the guard is dropped, unless they are limited already.
pub(super) fn limit_registrations() -> impl Drop {
    let before = late_budget();
    set_late_budget(before.or(Some(LateBudget::new())));
    scopeguard::guard(before, |before| {
        if before.is_none() {
            set_late_budget(None);
        }
    })
}
