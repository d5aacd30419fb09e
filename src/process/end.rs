//! What is known about the end of the process: its exit status, which thread leaves, and refusals that are still to be
//! reported.

use std::cell::Cell;
use std::mem;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::process_stack;
use crate::chain::{Chain, Link};
use crate::error::ExitRequest;
use crate::raw;
use crate::sync::{PerProcess, global};
use crate::tree::Node;

/// What is known about the end of a process.
#[derive(Default)]
pub(crate) struct End {
    /// The signal that requested the end.
    signal: Option<i32>,
    /// When the process began to exit.
    began: Option<Instant>,
    /// The exit status that a handler requested last.
    request: Option<ExitRequest>,
    /// The exit status that was passed to `exit` last.
    given: Option<ExitRequest>,
    /// Whether a thread is ending the process, after the last drain. The others must not disturb it.
    is_ending: bool,
    refusing: Refusing,
}

/// Interpreters that have refused more than one handler, and may never be dropped.
enum Refusing {
    /// They are noted, the last one first.
    Noted {
        nodes: Chain<Weak<Node>>,
        /// The length of `nodes` at which those that were dropped are next removed.
        prune_at: usize,
    },
    /// They are being reported, the first one first. No further ones are noted: a report hook that registers with one of
    /// them would never come to an end.
    Reported(Chain<Weak<Node>>),
}

impl Refusing {
    const fn new() -> Self {
        Self::Noted { nodes: Chain::new(), prune_at: 0 }
    }
}

impl Default for Refusing {
    fn default() -> Self {
        Self::new()
    }
}

global! {
    static END: PerProcess<End> = PerProcess::new(End {
        signal: None,
        began: None,
        request: None,
        given: None,
        is_ending: false,
        refusing: Refusing::new(),
    });
}

/// Allocates what the first use in a forked child allocates.
pub(super) fn prepare() {
    drop(END.lock());
}

/// Notes an exit status that a handler requested. The last request counts.
pub(super) fn decide(request: ExitRequest) {
    let mut end = END.lock();
    end.request = end.request.max(Some(request));
}

/// Notes an exit status that was passed to `exit`. The last request counts.
pub(super) fn give(request: ExitRequest) {
    let mut end = END.lock();
    end.given = end.given.max(Some(request));
}

/// Returns the exit status that was requested last, by a handler or with `exit`.
pub(super) fn decided() -> Option<i32> {
    let end = END.lock();
    end.request.max(end.given).map(|request| request.code)
}

/// Returns the exit status that a handler requested last.
pub(super) fn decided_by_handlers() -> Option<i32> {
    END.lock().request.map(|request| request.code)
}

/// Returns the signal that requested the end.
pub(crate) fn signal() -> Option<i32> {
    END.lock().signal
}

/// Notes that a signal requested the end. The first one counts.
#[cfg(all(any(unix, windows), feature = "signals"))]
pub(crate) fn note_signal(signal: i32) {
    END.lock().signal.get_or_insert(signal);
}

/// Returns when the process began to exit: now, if it has not.
pub(super) fn began() -> Instant {
    *END.lock().began.get_or_insert_with(Instant::now)
}

thread_local! {
    /// The epoch of the process that this thread ends; zero if it ends none. Not the thread's key, which changes if what
    /// another library has registered with C calls `exit`.
    static ENDS_IN: Cell<usize> = const { Cell::new(0) };
}

/// Returns whether this thread is the one that ends the process, which is the first to call this.
pub(super) fn leaves_first() -> bool {
    let process = raw::epoch();
    let is_first = !mem::replace(&mut END.lock().is_ending, true);
    if is_first {
        ENDS_IN.set(process);
    }
    ENDS_IN.get() == process
}

/// Remembers an interpreter that has refused more than one handler, because it may never be dropped.
pub(super) fn note_refusals(node: &Arc<Node>) {
    let link = Link::new(Arc::downgrade(node));
    let mut gone = Chain::new();
    let mut end = END.lock();
    let Refusing::Noted { nodes, prune_at } = &mut end.refusing else { return };
    if nodes.len() >= *prune_at {
        gone = nodes.take_if(|node| node.strong_count() == 0);
        *prune_at = 2 * nodes.len().max(8);
    }
    nodes.push(link);
    drop(end);
    drop(gone);
}

/// Returns whether an interpreter has refusals that are still to be reported.
pub(super) fn has_refusals() -> bool {
    match &END.lock().refusing {
        Refusing::Noted { nodes, .. } | Refusing::Reported(nodes) => !nodes.is_empty(),
    }
}

/// Reports the refusals that were only counted.
pub(super) fn report_refused() {
    if stop_noting() {
        process_stack().report_refused();
    }
    // One at a time: if the report hook exits, the others are still there to be reported.
    while let Some(node) = next_refusing() {
        if let Some(node) = node.into_value().upgrade() {
            node.stack.report_refused();
        }
    }
}

/// Notes no further interpreter. Returns whether this is the first call.
fn stop_noting() -> bool {
    let mut end = END.lock();
    let Refusing::Noted { nodes, .. } = &mut end.refusing else { return false };
    let mut nodes = mem::take(nodes);
    nodes.reverse();
    end.refusing = Refusing::Reported(nodes);
    true
}

fn next_refusing() -> Option<Link<Weak<Node>>> {
    match &mut END.lock().refusing {
        Refusing::Noted { .. } => None, // this process was forked in the report hook
        Refusing::Reported(nodes) => nodes.pop(),
    }
}
