//! How a stack drains, and everything nested in it: one loop, whatever the depth. The tables are in [`tree`](super).

use std::cmp::Reverse;
use std::mem;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::current::{limit_registrations, set_current};
use super::drains::Acquired;
use super::frames::{Late, forget_frames, is_given_up_here};
use super::lifecycle::{Lifecycle, Purpose};
use super::relief::go_on_for;
use super::wait_graph::{DrainResult, Slot, ThreadKey, Waited, Waiters, Who, wait};
use super::watch::is_on;
use super::{Node, OutOfTurn, SharedExitStack, State, watched};
use crate::chain::Link;
use crate::drain::{HandlerOutcome, Source, Work, drain, run_one};
use crate::error::{CloseError, ExitRequest, Failures, HandlerError, Outcome, merged};
use crate::handler::SharedEntry;
use crate::list::HandlerId;
use crate::panics::discard;
use crate::raw::{self, Bound};
use crate::report::report;
use crate::sync::MutexGuard;

/// What [`SharedExitStack::next`] answers.
enum Next {
    /// A handler, which is where the one before was.
    Handler,
    /// An interpreter, at this position.
    Child(HandlerId, Arc<Node>),
    /// A handler that `run_now` runs on this other thread.
    OutOfTurn(HandlerId, ThreadKey),
    /// The lists are empty.
    Finished(Finished),
}

struct Finished {
    result: DrainResult,
    /// Who waits for the end of the drain; nobody, if this teardown does not end it.
    waiters: Waiters,
    settled: bool,
}

impl State {
    /// What is nested above the newest handler and not skipped.
    #[cold]
    fn next_nested(&self) -> Option<Next> {
        let me = ThreadKey::current();
        let child = self.children.iter().rev().find(|(_, child)| child.skipped_by != Some(me));
        // What this thread runs out of turn is what drains here.
        let is_awaited =
            |handler: &&OutOfTurn| handler.thread != me && handler.skipped_by != Some(me) && !handler.is_given_up;
        let others = self.out_of_turn.iter().filter(is_awaited);
        let handler = others.max_by_key(|handler| handler.id);
        let newest = self.handlers.last_id().max(child.map(|(id, _)| id)).max(handler.map(|handler| handler.id));
        match (child, handler) {
            (Some((id, child)), _) if Some(id) == newest => Some(Next::Child(id, Arc::clone(&child.node))),
            (_, Some(handler)) if Some(handler.id) == newest => Some(Next::OutOfTurn(handler.id, handler.thread)),
            _ => None,
        }
    }
}

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
                Acquired::Mine => teardown.run(first.take()),
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

    /// Whether this thread is in a handler that was given up: it runs no further ones of the tree.
    #[cold]
    fn is_refused_here(&self) -> bool {
        self.spot().is_some() && is_given_up_here()
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
                Some(spot) => watched::run_watched(teardown, entry, spot, |entry| run_one(entry, || self.path())),
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

    /// Says what is next in the drain that this teardown runs. A handler is put where the one before was, which has run.
    #[inline]
    fn next(&self, running: &mut Option<SharedEntry>, teardown: usize) -> Next {
        let mut state = self.lock();
        if !state.nothing_nested() {
            if let Some(next) = state.next_nested() {
                return next;
            }
        }
        state.handlers.pop_to(running);
        if running.is_some() { Next::Handler } else { Next::Finished(self.finish(state, teardown)) }
    }

    /// The lists are empty: ends the drain, if it is this teardown's to end.
    #[inline]
    fn finish(&self, mut state: MutexGuard<'_, State>, teardown: usize) -> Finished {
        let storage = state.handlers.release();
        state.lifecycle.drained();
        if matches!(state.lifecycle, Lifecycle::Closed) {
            self.note_closed();
        }
        let ended = state.drain.take_if(|drain| drain.teardown == teardown);
        let settled = state.is_settled();
        if let Some(drain) = ended {
            drop(state);
            drop(storage);
            let unmerged = drain.failures.into_result();
            let all = merged(drain.merged.into_result(), unmerged.clone());
            return Finished { result: DrainResult { all, unmerged }, waiters: drain.waiters, settled };
        }
        // One of its handlers is still running, further up the call stack or on the thread that was taken over from: the
        // drain around this one is told what there is so far.
        let failures = state.drain.as_mut().map(|drain| mem::take(&mut drain.failures)).unwrap_or_default();
        drop(state);
        let unmerged = failures.into_result();
        if let Err(error) = &unmerged {
            let failures = Failures::from(error);
            let mut state = self.lock();
            let emptied = state.drain.as_mut().map(|drain| drain.merged.merge(failures));
            drop(state);
            drop(emptied);
        }
        let result = DrainResult { all: unmerged.clone(), unmerged };
        Finished { result, waiters: Waiters::default(), settled }
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

    /// Unlinks the interpreter that this settled stack belongs to; and its parent, if that is settled by it; and so on.
    pub(super) fn unlink_settled(&self) {
        let mut settled = self.node();
        while let Some(node) = settled.take() {
            let Some((parent, position)) = node.parent_stack().zip(node.position()) else { return };
            if parent.unlink(position) {
                settled = parent.node();
            }
        }
    }
}

/// The exit status that a result asks for.
pub(crate) fn request_of(result: Result<(), CloseError>) -> Option<ExitRequest> {
    let error = result.err()?;
    let request = error.exit_request();
    discard(error); // a user's error, whose drop may panic
    request
}

/// A drain of a stack and of everything nested in it.
pub(super) struct Teardown<'s> {
    root: &'s SharedExitStack,
    /// The interpreter that drains now, if it is not the root.
    top: Option<Arc<Node>>,
    running: Option<SharedEntry>,
    purpose: Purpose,
    /// Tells it apart from all others.
    number: usize,
    /// The process that it belongs to. A child that one of its handlers has forked leaves it.
    epoch: usize,
    /// What the drain of the root returns; in a process that one of its handlers has forked, what became of that handler.
    result: Result<(), CloseError>,
    /// Its handler was given up, and another thread has gone on.
    is_late: bool,
}

/// Numbers teardowns, in the order in which they begin.
fn next_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl<'s> Teardown<'s> {
    #[inline]
    fn new(root: &'s SharedExitStack, purpose: Purpose) -> Self {
        let number = next_number();
        Self { root, top: None, running: None, purpose, number, epoch: raw::epoch(), result: Ok(()), is_late: false }
    }

    /// Drains what was acquired, after something else.
    #[inline]
    fn run(&mut self, first: Option<impl FnOnce()>) -> Result<(), CloseError> {
        let _restored = self.root.make_current();
        let first = || {
            if let Some(first) = first {
                first();
            }
        };
        if is_on(self.epoch) {
            self.run_watched(first);
        } else {
            first();
            drain(self);
        }
        mem::replace(&mut self.result, Ok(()))
    }

    #[cold]
    fn run_watched(&mut self, first: impl FnOnce()) {
        if let Some(spot) = self.root.spot() {
            watched::drain_watched(self, spot, first);
        } else {
            first();
            drain(self); // a value is in no tree
        }
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    pub(super) fn purpose(&self) -> Purpose {
        self.purpose
    }

    pub(super) fn set_late(&mut self) {
        self.is_late = true;
    }

    /// The handler that was lent last, and the stack that it is from.
    pub(super) fn lent(&mut self) -> Option<(&mut SharedEntry, &SharedExitStack)> {
        let top = self.top.as_ref().map_or(self.root, |node| &node.stack);
        self.running.as_mut().map(|entry| (entry, top))
    }

    pub(super) fn take_lent(&mut self) -> Option<SharedEntry> {
        self.running.take()
    }

    /// Whether one of its handlers has forked this process.
    #[inline]
    fn is_parents(&self) -> bool {
        raw::peek() != self.epoch && raw::epoch() != self.epoch
    }

    fn top(&self) -> &SharedExitStack {
        self.top.as_ref().map_or(self.root, |node| &node.stack)
    }

    /// Begins to drain the interpreter at this position of the top, or waits until another thread has.
    #[cold]
    fn descend(&mut self, id: HandlerId, node: Arc<Node>) {
        match node.stack.acquire(self.purpose.for_children(), Outcome::Failure, self.number, Who::MustWait) {
            // If this thread is in its drain already, what is left of it runs here, at its position.
            Acquired::Mine | Acquired::AlreadyMine => {
                set_current(Some(Arc::clone(&node)));
                self.top = Some(node);
            }
            Acquired::Ended(result) => self.merge(result),
            Acquired::CycleBroken => {} // not where one must wait
            Acquired::Late => self.is_late = true,
            Acquired::Settled => {
                self.top().unlink(id);
            }
        }
    }

    /// Waits for a handler that `run_now` runs on another thread.
    #[cold]
    fn wait_for_handler(&mut self, id: HandlerId, thread: ThreadKey) {
        let mut slot = Slot::new();
        let mut state = self.top().lock();
        let Some(handler) = state.out_of_turn.iter_mut().find(|handler| handler.id == id) else {
            return; // it has ended
        };
        let theirs = handler.teardown;
        let abandoned = handler.waiters.add(&mut slot);
        drop(state);
        drop(abandoned);
        match wait(thread, theirs, &slot, Who::MustWait) {
            Waited::Ended(result) => self.merge(result),
            // It waits for this thread.
            Waited::CycleBroken | Waited::TakeOver => {
                let mut state = self.top().lock();
                if let Some(handler) = state.out_of_turn.iter_mut().find(|handler| handler.id == id) {
                    handler.skipped_by = Some(ThreadKey::current());
                }
            }
            // It never returns, or it was given up.
            Waited::OwnerLeft(owner) => {
                self.is_late = go_on_for(owner).is_err();
                let left = self.top().lock().out_of_turn.take_if(|handler| handler.id == id && !handler.is_given_up);
                drop(left);
            }
        }
        discard(slot);
    }

    /// The root is drained.
    #[inline]
    fn finish(&mut self, finished: Finished) {
        if finished.settled {
            self.root.unlink_settled();
        }
        finished.waiters.tell(&finished.result);
        self.result = finished.result.all;
    }

    /// What is nested in the root is drained, or as much of it as this thread can: the drain around it is given the result.
    #[cold]
    fn ascend(&mut self, node: &Arc<Node>, finished: Finished) {
        if finished.settled {
            node.stack.unlink_settled();
        } else if let Some((parent, position)) = node.parent_stack().zip(node.position()) {
            // A handler of it is still running; its thread waits for this one, or is this one.
            if let Some(child) = parent.lock().children.get_mut(position) {
                child.skipped_by = Some(ThreadKey::current());
            }
        }
        finished.waiters.tell(&finished.result);
        self.top = node.parent_node().filter(|parent| !ptr::eq(&raw const parent.stack, self.root)).cloned();
        set_current(self.top.clone().or_else(|| self.root.node()));
        self.merge(finished.result);
    }

    /// Keeps what a handler has failed with, and reports it if there is nobody to return it to.
    pub(super) fn keep(&mut self, failures: Failures, error: Option<&HandlerError>) {
        if !self.is_parents() {
            return self.top().gather_and_report(failures, error);
        }
        self.result = failures.into_result();
        if self.purpose.reports() {
            error.into_iter().for_each(report);
        }
    }

    /// Merges the result of a nested drain into the top's.
    fn merge(&self, nested: DrainResult) {
        if let Err(error) = &nested.unmerged {
            if self.top().gather(error.into()) {
                error.iter().for_each(report);
            }
        }
        discard(nested); // a user's error, whose drop may panic
    }
}

impl Work for SharedExitStack {
    fn outcome(&self) -> Outcome {
        Self::outcome(self)
    }
}

impl Source<dyn Bound + Send> for Teardown<'_> {
    type Work = SharedExitStack;

    #[inline]
    fn next(&mut self) -> Option<(&mut SharedEntry, &SharedExitStack)> {
        loop {
            if self.is_parents() || self.is_late {
                return None;
            }
            let top = self.top.as_ref().map_or(self.root, |node| &node.stack);
            match top.next(&mut self.running, self.number) {
                Next::Handler => return self.lent(),
                Next::Child(id, node) => self.descend(id, node),
                Next::OutOfTurn(id, thread) => self.wait_for_handler(id, thread),
                Next::Finished(finished) => {
                    let Some(node) = self.top.take() else {
                        self.finish(finished);
                        return None;
                    };
                    self.ascend(&node, finished);
                }
            }
        }
    }

    #[cold]
    fn note(&mut self, outcome: HandlerOutcome) {
        let (failures, error) = outcome.into_failures(self.top().path());
        self.keep(failures, error.as_ref());
    }
}
