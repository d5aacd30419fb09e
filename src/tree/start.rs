//! How drains start: with a `close()`, at the end of an interpreter or of the process, or on a thread that resumes
//! another's; and how a handler runs out of turn.

use std::cmp::Reverse;
use std::mem;
use std::sync::Arc;

use super::current::limit_registrations;
use super::drains::Acquired;
use super::frames::{Late, forget_frames, is_given_up_here, is_lost_here};
use super::lifecycle::Purpose;
use super::teardown::{Teardown, next_number};
use super::wait_graph::{DrainResult, Slot, ThreadKey, Waiters, Who};
use super::watch::is_on;
use super::watched::{drain_watched, run_watched};
use super::{Node, OutOfTurn, SharedExitStack};
use crate::chain::Link;
use crate::drain::{drain, run_one};
use crate::error::{CloseError, ExitRequest, Outcome, merged, request_of};
use crate::list::HandlerId;
use crate::raw;

impl SharedExitStack {
    /// Drains the stack and what is nested in it, and returns the failures.
    pub(crate) fn drain(&self, purpose: Purpose, outcome: Outcome) -> Result<(), CloseError> {
        // A thread that its own watch has given up gets no failures: another one ends the drain.
        self.drain_after(purpose, outcome, None, None, || ()).unwrap_or(Ok(()))
    }

    /// Does what [`drain`](Self::drain) does, and returns an error if this thread was given up.
    pub(crate) fn drain_watched(&self, purpose: Purpose, outcome: Outcome) -> Result<Result<(), CloseError>, Late> {
        self.drain_after(purpose, outcome, None, None, || ())
    }

    /// Resumes the drain of the owner that has `left`, or waits for the thread that has, at this slot if there is one. This
    /// thread may be given up in turn.
    pub(super) fn resume(
        &self,
        purpose: Purpose,
        left: Option<ThreadKey>,
        slot: Option<Slot>,
    ) -> Result<Result<(), CloseError>, Late> {
        // The outcome is ignored: the drain keeps the one it began with.
        self.drain_after(purpose, Outcome::Failure, left, slot, || ())
    }

    /// Does what [`drain`](Self::drain) does, but calls `first` once the drain is this thread's. The drain of an owner that
    /// has `left` becomes that at once. With a `slot`, it is the drain that this was added to.
    #[inline]
    fn drain_after(
        &self,
        purpose: Purpose,
        outcome: Outcome,
        mut left: Option<ThreadKey>,
        mut slot: Option<Slot>,
        first: impl FnOnce(),
    ) -> Result<Result<(), CloseError>, Late> {
        let mut first = Some(first);
        let _limited = purpose.is_bounded().then(limit_registrations);
        let who = if purpose.exits() { Who::MustWait } else { Who::Closer };
        let mut before = Ok(());
        loop {
            let mut teardown = Teardown::new(self, purpose);
            // What comes before a drain of this thread has to be done, whatever the thread is.
            if is_on(teardown.epoch) && left.is_none() && self.is_refused_here() {
                return Err(if is_lost_here() { Late::Lost } else { Late::Replaced });
            }
            // Only in the first round. Later ones are for what the first has skipped, or of a forked child.
            let acquired = match (left.take(), slot.take()) {
                (left, Some(slot)) => self.acquire_at(slot, purpose, outcome, teardown.number, left, who),
                (left, None) => self.acquire(purpose, outcome, teardown.number, left, who),
            };
            let result = match acquired {
                // Nobody else runs it, or its owner waits for this thread.
                Acquired::Mine => run(&mut teardown, first.take(), &mut slot),
                // The other thread may have skipped a handler that it was in itself and that still runs, so look again.
                Acquired::Ended(ended) if purpose.closes() || self.has_skipped() => {
                    before = merged(before, ended.all);
                    continue;
                }
                // A second `close()` returns the same result.
                Acquired::Ended(ended) => ended.all,
                // The drain goes on further up the call stack or on the thread that waits for this one, or it is over.
                Acquired::AlreadyMine | Acquired::CycleBroken | Acquired::Settled => Ok(()),
            };
            if teardown.is_parents() {
                // A handler has forked, and this is the child. It goes on with what it has registered itself. The
                // result so far is its parent's: it is neither returned nor dropped here.
                mem::forget(mem::replace(&mut before, result));
                continue;
            }
            match teardown.late {
                None => return Ok(merged(before, result)),
                // What is left is nobody's, or another thread's by now.
                Some(Late::ForAnother) => {
                    let rest = self.resume(purpose, None, slot)?;
                    return Ok(merged(before, merged(result, rest)));
                }
                // Another thread goes on with all of it.
                Some(late) => return Err(late),
            }
        }
    }

    /// Does what [`drain`](Self::drain) does where there is no caller to return failures to: they were reported.
    /// Returns the exit status that was requested.
    pub(crate) fn drain_unattended(&self, purpose: Purpose, outcome: Outcome) -> Option<ExitRequest> {
        request_of(self.drain(purpose, outcome))
    }

    /// Drains the root of a tree on a thread that ends the process, and whose key was `left`. The drains that it was in
    /// are resumed before, from the innermost outwards. They count as part of the root's, so `exit` in one of their
    /// handlers leaves only that handler.
    ///
    /// # Errors
    ///
    /// Returns an error if this thread was given up; then another thread ends the process.
    pub(crate) fn drain_to_leave(
        &self,
        purpose: Purpose,
        outcome: Outcome,
        left: ThreadKey,
    ) -> Result<Result<(), CloseError>, Late> {
        forget_frames(left);
        let drains = self.left_by(left);
        self.drain_after(purpose, outcome, None, None, || {
            // All of them before any handler runs: what is resumed first may hang.
            drains.iter().rev().for_each(|node| node.stack.report_all());
            for node in &drains {
                // The outcome is ignored: each keeps the one it began with.
                let request = node.stack.drain_unattended(Purpose::Exit, Outcome::Failure);
                // Kept in the drain, not here: another handler may call C's `exit`, and this would never return.
                if let Some(request) = request {
                    self.request_exit(request);
                }
            }
        })
    }

    /// Returns whether this thread is in a handler that was given up, and so runs no further handler of the tree. It
    /// still runs those of a stack in no tree, because no other thread would.
    #[cold]
    fn is_refused_here(&self) -> bool {
        is_given_up_here() && self.tree().is_some()
    }

    /// Takes a handler out and runs it now. While it runs, it counts as nested in the stack.
    pub(crate) fn run_out_of_turn(&self, id: HandlerId) -> Option<Result<(), CloseError>> {
        if is_on(raw::epoch()) && self.is_refused_here() {
            return None; // it stays, for the thread that has gone on
        }
        let thread = ThreadKey::current();
        let teardown = next_number();
        let waiters = Waiters::default();
        let handler = Link::new(OutOfTurn { id, thread, waiters, skipped_by: None, teardown, is_given_up: false });
        let mut state = self.lock();
        let entry = state.handlers.take_out(id)?;
        state.out_of_turn.push(handler);
        let excess = state.handlers.excess();
        drop(state);
        if excess.is_some() {
            self.shrink();
        }
        let result = {
            let _restored = self.make_current();
            match self.spot().filter(|_| is_on(raw::epoch())) {
                Some(spot) => run_watched(teardown, entry, spot, |entry| run_one(entry, || self.path())),
                None => run_one(entry, || self.path()),
            }
        };
        let mut state = self.lock();
        let ended = state.out_of_turn.take_if(|handler| handler.id == id);
        let settled = state.is_settled();
        drop(state);
        for handler in ended {
            handler.waiters.tell(&DrainResult { all: result.clone(), unmerged: result.clone() });
        }
        if settled {
            self.unlink_settled();
        }
        Some(result)
    }

    /// Returns whether something that the last drain had to skip still runs on another thread.
    fn has_skipped(&self) -> bool {
        let me = ThreadKey::current();
        let state = self.lock();
        state.children.iter().any(|(_, child)| child.skipped_by.is_some_and(|by| by != me))
            || state.out_of_turn.iter().any(|handler| handler.thread != me && !handler.is_given_up)
    }

    /// Returns the interpreters nested in this stack whose drains the thread with this key was in, the last begun first.
    /// If it was in this stack's own drain too, only drains that it began inside that one are included.
    fn left_by(&self, thread: ThreadKey) -> Vec<Arc<Node>> {
        let begun_by_it = |stack: &Self| {
            let state = stack.lock();
            state.drain.as_ref().filter(|drain| drain.owner == thread).map(|drain| drain.teardown)
        };
        let own = begun_by_it(self);
        let mut found = Vec::new();
        self.visit_descendants(|node| {
            // Teardowns are numbered in the order in which they began.
            if let Some(teardown) = begun_by_it(&node.stack).filter(|teardown| own.is_none_or(|own| *teardown > own)) {
                found.push((teardown, Arc::clone(node)));
            }
        });
        found.sort_by_key(|(teardown, _)| Reverse(*teardown)); // stable: within one teardown, the outermost comes first
        found.into_iter().map(|(_, node)| node).collect()
    }
}

/// Calls `first`, runs a drain that was acquired, and returns its result. If this thread is given up, `slot` is where it is
/// to wait for the drain.
#[inline]
fn run(teardown: &mut Teardown<'_>, first: Option<impl FnOnce()>, slot: &mut Option<Slot>) -> Result<(), CloseError> {
    let _restored = teardown.root.make_current();
    let first = || {
        if let Some(first) = first {
            first();
        }
    };
    if is_on(teardown.epoch) {
        *slot = run_if_watched(teardown, first);
    } else {
        first();
        drain(teardown);
    }
    mem::replace(&mut teardown.result, Ok(()))
}

/// Does what was left behind, calls `first` and runs a drain, watched if the stack is in a tree.
#[cold]
fn run_if_watched(teardown: &mut Teardown<'_>, first: impl FnOnce()) -> Option<Slot> {
    let Some(spot) = teardown.root.spot() else {
        first();
        drain(teardown);
        return None;
    };
    let (root, number) = (teardown.root, teardown.number);
    drain_watched(teardown, spot, || {
        // If this thread is given up there, the drain notices.
        if root.catch_up(number).is_ok() {
            first();
        }
    })
}
