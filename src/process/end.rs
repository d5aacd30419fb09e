//! What is known about the end of the process: its exit status, which thread leaves, and refusals that are still to be
//! reported.

use std::sync::{Arc, Weak};
use std::time::Instant;

use super::process_stack;
use crate::chain::{Chain, Link};
use crate::error::ExitRequest;
use crate::sync::{PerProcess, global};
use crate::tree::{Node, ThreadKey};

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
    /// The thread that ends the process, once the last drain is over. The others must not disturb it.
    leaver: Option<ThreadKey>,
    /// Interpreters that have refused more than one handler.
    refusing: Chain<Weak<Node>>,
    /// The length of `refusing` at which those that were dropped are next removed.
    prune_at: usize,
}

global! {
    static END: PerProcess<End> = PerProcess::new(End {
        signal: None,
        began: None,
        request: None,
        given: None,
        leaver: None,
        refusing: Chain::new(),
        prune_at: 0,
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

/// Returns whether this thread is the one that ends the process, which is the first to call this.
pub(super) fn leaves_first() -> bool {
    let me = ThreadKey::current();
    *END.lock().leaver.get_or_insert(me) == me
}

/// Remembers an interpreter that has refused more than one handler, because it may never be dropped.
pub(super) fn note_refusals(node: &Arc<Node>) {
    let link = Link::new(Arc::downgrade(node));
    let mut gone = Chain::new();
    let mut end = END.lock();
    if end.refusing.len() >= end.prune_at {
        gone = end.refusing.take_if(|node| node.strong_count() == 0);
        end.prune_at = 2 * end.refusing.len().max(8);
    }
    end.refusing.push(link);
    drop(end);
    drop(gone);
}

/// Reports the refusals that were only counted.
pub(super) fn report_refused() {
    process_stack().report_refused();
    END.lock().refusing.reverse();
    loop {
        // One at a time: if the report hook exits, the others are still there to be reported.
        let next = END.lock().refusing.pop();
        let Some(node) = next else { return };
        if let Some(node) = node.into_value().upgrade() {
            node.stack.report_refused();
        }
    }
}
