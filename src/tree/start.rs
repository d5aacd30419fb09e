//! What starts a drain: a `close()`, the end of an interpreter or of the process, or a thread that goes on for another one;
//! and a handler that runs out of turn.

use std::cmp::Reverse;
use std::mem;
use std::sync::Arc;

use super::current::limit_registrations;
use super::drains::Acquired;
use super::frames::{Late, forget_frames, is_given_up_here};
use super::lifecycle::Purpose;
use super::teardown::{Teardown, next_number};
use super::wait_graph::{DrainResult, ThreadKey, Waiters, Who};
use super::watch::is_on;
use super::watched::{drain_watched, run_watched};
use super::{Node, OutOfTurn, SharedExitStack};
use crate::chain::Link;
use crate::drain::{drain, run_one};
use crate::error::{CloseError, ExitRequest, Outcome, merged, request_of};
use crate::list::HandlerId;
use crate::raw;

impl SharedExitStack {
    /// Drains the stack and what is nested in it; returns what failed.
    pub(crate) fn drain(&self, purpose: Purpose, outcome: Outcome) -> Result<(), CloseError> {
        // A thread that comes back from a handler that was given up is not told: the drain is another's.
        self.drain_after(purpose, outcome, || ()).unwrap_or(Ok(()))
    }

    /// [`drain`](Self::drain), by a thread that may be given up.
    pub(crate) fn drain_watched(&self, purpose: Purpose, outcome: Outcome) -> Result<Result<(), CloseError>, Late> {
        self.drain_after(purpose, outcome, || ())
    }

    /// [`drain`](Self::drain) by a thread that goes on for another one; it may be given up in turn.
    pub(super) fn resume(&self, purpose: Purpose) -> Result<Result<(), CloseError>, Late> {
        self.drain_after(purpose, Outcome::Failure, || ()) // for the outcome that it has begun with
    }

    /// [`drain`](Self::drain), with something to do first once the drain is this thread's.
    #[inline]
    fn drain_after(
        &self,
        purpose: Purpose,
        outcome: Outcome,
        first: impl FnOnce(),
    ) -> Result<Result<(), CloseError>, Late> {
        let mut first = Some(first);
        let _limited = purpose.is_bounded().then(limit_registrations);
        let who = if purpose.exits() { Who::MustWait } else { Who::Closer };
        let mut before = Ok(());
        loop {
            let mut teardown = Teardown::new(self, purpose);
            if is_on(teardown.epoch) && self.is_refused_here() {
                return Err(Late);
            }
            let result = match self.acquire(purpose, outcome, teardown.number, who) {
                Acquired::Mine => run(&mut teardown, first.take()),
                // The other thread may have skipped an interpreter that still has a handler running: look again.
                Acquired::Ended(ended) if purpose.closes() => {
                    before = merged(before, ended.all);
                    continue;
                }
                Acquired::Ended(ended) => ended.all,
                // The drain goes on further up the call stack, or on the thread that waits for this one; or it is over.
                Acquired::AlreadyMine | Acquired::CycleBroken | Acquired::Settled => Ok(()),
                Acquired::Late => return Err(Late),
            };
            if teardown.is_parents() {
                // A handler has forked, and this is the child. It goes on with what it has registered itself; what came
                // before is its parent's to be told, and to drop.
                mem::forget(mem::replace(&mut before, result));
                continue;
            }
            if teardown.is_late {
                return Err(Late);
            }
            return Ok(merged(before, result));
        }
    }

    /// [`drain`](Self::drain) where nobody is returned to: what failed was reported. Returns the exit status asked for.
    pub(crate) fn drain_unattended(&self, purpose: Purpose, outcome: Outcome) -> Option<ExitRequest> {
        request_of(self.drain(purpose, outcome))
    }

    /// Drains the root of a tree where this thread leaves, which had the key `left` before: the drains that it was in are
    /// resumed first, the innermost first. They count as part of the root's, so `exit` in one of their handlers leaves just
    /// that handler.
    ///
    /// # Errors
    ///
    /// Returns an error if this thread was given up, and another one ends the process.
    pub(crate) fn drain_to_leave(
        &self,
        purpose: Purpose,
        outcome: Outcome,
        left: ThreadKey,
    ) -> Result<Result<(), CloseError>, Late> {
        forget_frames(left);
        let drains = self.left_by(left);
        self.drain_after(purpose, outcome, || {
            for node in &drains {
                // For the outcome that each has begun with.
                let request = node.stack.drain_unattended(Purpose::Exit, Outcome::Failure);
                // Kept in the drain, not here: another handler may call C's `exit` before this returns.
                if let Some(request) = request {
                    self.request_exit(request);
                }
            }
        })
    }

    /// Whether this thread is in a handler that was given up: it runs no further handlers of the tree. What is in no tree
    /// it still runs, because no other thread would.
    #[cold]
    fn is_refused_here(&self) -> bool {
        is_given_up_here() && self.is_in_the_tree()
    }

    /// Takes a handler out and runs it now; while it runs, it counts as nested in the stack.
    pub(crate) fn run_out_of_turn(&self, id: HandlerId) -> Option<Result<(), CloseError>> {
        if is_on(raw::epoch()) && self.is_refused_here() {
            return None; // it stays for the thread that goes on
        }
        let thread = ThreadKey::current();
        let teardown = next_number();
        let waiters = Waiters::default();
        let handler = Link::new(OutOfTurn { id, thread, waiters, skipped_by: None, teardown, is_given_up: false });
        let mut state = self.lock();
        let entry = state.handlers.take_out(id)?;
        state.out_of_turn.push(handler);
        drop(state);
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

    /// The interpreters nested in this stack whose drains the thread with this key was in, the innermost first; but none around
    /// which it was in this stack's own drain.
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
        found.sort_by_key(|(teardown, _)| Reverse(*teardown)); // stable: of one teardown, the outermost first
        found.into_iter().map(|(_, node)| node).collect()
    }
}

/// Runs a drain that was acquired, after something else, and returns what it comes to.
#[inline]
fn run(teardown: &mut Teardown<'_>, first: Option<impl FnOnce()>) -> Result<(), CloseError> {
    let _restored = teardown.root.make_current();
    let first = || {
        if let Some(first) = first {
            first();
        }
    };
    // A value is in no tree, and not watched.
    let spot = if is_on(teardown.epoch) { teardown.root.spot() } else { None };
    if let Some(spot) = spot {
        drain_watched(teardown, spot, first);
    } else {
        first();
        drain(teardown);
    }
    mem::replace(&mut teardown.result, Ok(()))
}
