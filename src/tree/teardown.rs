//! How a stack drains together with everything nested in it: in one loop, whatever the depth. The tables are in
//! [`tree`](super).

use std::mem;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::current::set_current;
use super::drains::Acquired;
use super::frames::{Late, set_run};
use super::lifecycle::{Lifecycle, Purpose};
use super::wait_graph::{DrainResult, Slot, ThreadKey, Waited, Waiters, Who, wait};
use super::watch::is_on;
use super::{Node, OutOfTurn, Place, SharedExitStack, State};
use crate::drain::{HandlerOutcome, Source, Work};
use crate::error::{CloseError, Failures, HandlerError, Outcome, merged};
use crate::handler::SharedEntry;
use crate::list::HandlerId;
use crate::raw::{self, Bound};
use crate::report::report;
use crate::sync::MutexGuard;

/// The answer of [`SharedExitStack::next`].
enum Next {
    /// A handler, which was moved to where the previous one was.
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
    /// The threads that wait for the drain; none if this teardown does not end it.
    waiters: Waiters,
    settled: bool,
}

impl State {
    /// Returns what is nested above the newest handler, except for what this thread has skipped.
    #[cold]
    fn next_nested(&self) -> Option<Next> {
        let me = ThreadKey::current();
        let child = self.children.iter().rev().find(|(_, child)| child.skipped_by != Some(me));
        // A handler that this thread runs out of turn is the one that drains here: it is not waited for.
        let is_awaited =
            |handler: &&OutOfTurn| handler.thread != me && handler.skipped_by != Some(me) && !handler.is_given_up;
        let others = self.out_of_turn.iter().filter(is_awaited);
        let handler = others.max_by_key(|handler| handler.id);
        let newest = self.handlers.last_id().max(child.map(|(id, _)| id)).max(handler.map(|handler| handler.id));
        match (child, handler) {
            // The newest of all is an interpreter: it drains at its position.
            (Some((id, child)), _) if Some(id) == newest => Some(Next::Child(id, Arc::clone(&child.node))),
            // The newest of all runs out of turn: what is below waits until it has ended.
            (_, Some(handler)) if Some(handler.id) == newest => Some(Next::OutOfTurn(handler.id, handler.thread)),
            // The newest of all is a handler in the list, or nothing is left.
            _ => None,
        }
    }
}

impl SharedExitStack {
    /// Returns what is next in the drain that this teardown runs, and which is its outermost or nested in that. A
    /// handler is moved to `running`, where the previous one has run.
    #[inline]
    fn next(&self, running: &mut Option<SharedEntry>, teardown: usize, is_outermost: bool) -> Next {
        let mut state = self.lock();
        if !state.nothing_nested() {
            if let Some(next) = state.next_nested() {
                return next;
            }
        }
        state.handlers.pop_to(running);
        if running.is_some() { Next::Handler } else { Next::Finished(self.finish(state, teardown, is_outermost)) }
    }

    /// Ends the drain, as the lists are empty, if it is this teardown's to end.
    #[inline]
    fn finish(&self, mut state: MutexGuard<'_, State>, teardown: usize, is_outermost: bool) -> Finished {
        let storage = state.handlers.release();
        if !matches!(state.lifecycle, Lifecycle::Open) {
            self.note_drained(&mut state, teardown, is_outermost);
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
        // One of its handlers is still running, further up the call stack or on the thread that owns the drain. What
        // has failed so far is merged into the drain around this one.
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

    /// Reopens or closes a stack whose lists are empty. If the process exits, the exit status that was requested is kept
    /// before any other thread can find the stack closed: that thread may be the one that ends the process.
    #[cold]
    fn note_drained(&self, state: &mut State, teardown: usize, is_outermost: bool) {
        state.lifecycle.drained();
        // Otherwise this teardown merges it into the drain around this one.
        if is_outermost {
            let ended = state.drain.as_ref().filter(|drain| drain.teardown == teardown && drain.purpose.exits());
            let request = ended.and_then(|drain| drain.failures.exit_request().max(drain.merged.exit_request()));
            if let Some((request, root)) = request.and_then(|request| Some((request, self.tree()?))) {
                (root.decide)(request);
            }
        }
        if matches!(state.lifecycle, Lifecycle::Closed) {
            self.note_closed(); // seen without a lock
        }
    }

    /// Unlinks the interpreter that this settled stack belongs to, then its parent if that settles in turn, and so on.
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

/// A drain of a stack and of everything nested in it.
pub(super) struct Teardown<'s> {
    pub(super) root: &'s SharedExitStack,
    /// The interpreter that drains now; `None` if that is the root.
    top: Option<Arc<Node>>,
    running: Option<SharedEntry>,
    pub(super) purpose: Purpose,
    /// Identifies it; a teardown that begins later has a greater number.
    pub(super) number: usize,
    /// The epoch of the process that it belongs to. A child forked by one of its handlers leaves it.
    pub(super) epoch: usize,
    /// The result of the root's drain; in a child forked by one of its handlers, the result of that handler.
    pub(super) result: Result<(), CloseError>,
    /// Set once its handler was given up.
    pub(super) late: Option<Late>,
}

/// Returns the next number: teardowns are numbered in the order in which they begin.
pub(super) fn next_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl<'s> Teardown<'s> {
    #[inline]
    pub(super) fn new(root: &'s SharedExitStack, purpose: Purpose) -> Self {
        let number = next_number();
        if let (true, Place::Root(root)) = (purpose.exits(), &root.place) {
            (root.prepare)();
        }
        Self { root, top: None, running: None, purpose, number, epoch: raw::epoch(), result: Ok(()), late: None }
    }

    /// Returns the handler that was lent last, and its stack.
    pub(super) fn lent(&mut self) -> Option<(&mut SharedEntry, &SharedExitStack)> {
        let top = self.top.as_ref().map_or(self.root, |node| &node.stack);
        self.running.as_mut().map(|entry| (entry, top))
    }

    pub(super) fn take_lent(&mut self) -> Option<SharedEntry> {
        self.running.take()
    }

    /// Returns whether this process is a child forked by one of its handlers.
    #[inline]
    pub(super) fn is_parents(&self) -> bool {
        raw::peek() != self.epoch && raw::epoch() != self.epoch
    }

    fn top(&self) -> &SharedExitStack {
        self.top.as_ref().map_or(self.root, |node| &node.stack)
    }

    /// Begins to drain the interpreter at this position in the top, or waits until another thread has drained it.
    #[cold]
    fn descend(&mut self, id: HandlerId, node: Arc<Node>) {
        match node.stack.acquire(self.purpose.for_children(), Outcome::Failure, self.number, None, Who::MustWait) {
            // If this thread is in its drain already, what is left of that runs here, at the interpreter's position.
            Acquired::AlreadyMine => self.begin(node),
            Acquired::Mine => {
                self.begin(node);
                self.catch_up();
            }
            // Another thread has drained it: the drain around it gets the failures as well.
            Acquired::Ended(result) => self.merge(&result),
            Acquired::CycleBroken => {} // never: only a closer's wait ends like that
            // Nothing is left of it but its entry.
            Acquired::Settled => {
                self.top().unlink(id);
            }
        }
    }

    /// Does what was left behind for the drain of the top. Handlers run in that, and this teardown may be given up.
    pub(super) fn catch_up(&mut self) {
        if is_on(self.epoch) {
            self.late = self.top().catch_up(self.number).err().or_else(|| set_run(self.number, None).err());
        }
    }

    fn begin(&mut self, node: Arc<Node>) {
        set_current(Some(Arc::clone(&node)));
        self.top = Some(node);
    }

    /// Waits for a handler that `run_now` runs on another thread.
    #[cold]
    fn wait_for_handler(&mut self, id: HandlerId, thread: ThreadKey) {
        let mut slot = Slot::new();
        let mut state = self.top().lock();
        let awaited = state.out_of_turn.iter_mut().find(|handler| handler.id == id && !handler.is_given_up);
        let Some(handler) = awaited else {
            return; // it has ended, or was given up
        };
        let theirs = handler.teardown;
        let abandoned = handler.waiters.add(&mut slot);
        drop(state);
        drop(abandoned);
        match wait(thread, theirs, &slot, Who::MustWait) {
            // The drain that waited gets its failure as well.
            Waited::Ended(result) => self.merge(&result),
            // It waits for this thread, so this one goes on without it.
            Waited::CycleBroken | Waited::TakeOver => {
                let mut state = self.top().lock();
                if let Some(handler) = state.out_of_turn.iter_mut().find(|handler| handler.id == id) {
                    handler.skipped_by = Some(ThreadKey::current());
                }
            }
            // Never: a handler has one thread.
            Waited::OwnerChanged => {}
            // It never returns, or it was given up: nothing is left to wait for.
            Waited::OwnerLeft(_) => {
                self.catch_up();
                let left = self.top().lock().out_of_turn.take_if(|handler| handler.id == id && !handler.is_given_up);
                drop(left);
            }
        }
    }

    /// Ends the teardown: the root is drained.
    #[inline]
    fn finish(&mut self, finished: Finished) {
        if finished.settled {
            self.root.unlink_settled();
        }
        finished.waiters.tell(&finished.result);
        self.result = finished.result.all;
    }

    /// Leaves an interpreter that this thread has drained as far as it can, and merges the result into the drain around
    /// it.
    #[cold]
    fn ascend(&mut self, node: &Arc<Node>, finished: Finished) {
        if finished.settled {
            node.stack.unlink_settled();
        } else if let Some((parent, position)) = node.parent_stack().zip(node.position()) {
            // One of its handlers is still running, on this thread or on one that waits for this one.
            if let Some(child) = parent.lock().children.get_mut(position) {
                child.skipped_by = Some(ThreadKey::current());
            }
        }
        finished.waiters.tell(&finished.result);
        self.top = node.parent_node().filter(|parent| !ptr::eq(&raw const parent.stack, self.root)).cloned();
        set_current(self.top.clone().or_else(|| self.root.node()));
        self.merge(&finished.result);
    }

    /// Keeps the failures of a handler, and reports them if there is no caller to return them to.
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
    fn merge(&self, nested: &DrainResult) {
        if let Err(error) = &nested.unmerged {
            if self.top().gather(error.into()) {
                error.iter().for_each(report);
            }
        }
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
            if self.is_parents() || self.late.is_some() {
                return None;
            }
            let top = self.top.as_ref().map_or(self.root, |node| &node.stack);
            match top.next(&mut self.running, self.number, self.top.is_none()) {
                // The drain loop runs it.
                Next::Handler => return self.lent(),
                // It drains before the handlers below its position.
                Next::Child(id, node) => self.descend(id, node),
                // It ends before the handlers below its position run.
                Next::OutOfTurn(id, thread) => self.wait_for_handler(id, thread),
                // The root's end is the teardown's; after that of an interpreter, the stack around it goes on.
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

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::super::{Parent, Root, leave};
    use super::*;
    use crate::error::Exit;

    /// The exit statuses that a root has kept, each with whether the root was closed by then.
    type Decided = Mutex<Vec<(i32, bool)>>;

    /// Creates the root of a tree.
    macro_rules! root {
        () => {{
            static STACK: SharedExitStack = SharedExitStack::root(&ROOT);
            static DECIDED: Decided = Decided::new(Vec::new());
            static ROOT: Root = Root {
                name: "root",
                stack: || &STACK,
                arm: || true,
                note_refusals: |_| (),
                prepare: || (),
                decide: |request| DECIDED.lock().unwrap().push((request.code, STACK.is_closed())),
            };
            (&STACK, &DECIDED)
        }};
    }

    /// Does what C's `exit` does first in a handler, and lets another thread do the rest.
    fn leaves_it_to(stack: &SharedExitStack, other: impl FnOnce() -> Result<(), CloseError> + Send + 'static) {
        stack.note_exit_here();
        leave();
        let result = thread::spawn(other).join().unwrap();
        assert_eq!(result.unwrap_err().exit_code(), Some(7));
    }

    /// A thread that finds the root closed may end the process with the status that was decided by then.
    #[test]
    fn a_root_decides_before_it_is_closed() {
        let (stack, decided) = root!();
        stack.register(|| Err(Exit(7)));
        stack.drain_unattended(Purpose::Exit, Outcome::Success);
        assert_eq!(*decided.lock().unwrap(), [(7, false)]);
        assert!(stack.is_closed());
    }

    /// The thread that has called C's `exit` may find nothing left to drain.
    #[test]
    fn a_closer_that_resumes_the_drain_of_an_exit_decides() {
        for purpose in [Purpose::Close, Purpose::EndOfRun, Purpose::BeforeExit, Purpose::Exit] {
            let (stack, decided) = root!();
            stack.register(|| Err(Exit(7)));
            stack.register(|| leaves_it_to(stack, || stack.close()));
            stack.drain_unattended(purpose, Outcome::Success);
            assert_eq!(mem::take(&mut *decided.lock().unwrap()), [(7, false)], "{purpose:?}");
            assert_eq!(stack.is_closed(), purpose == Purpose::Exit);
        }
    }

    #[test]
    fn a_closer_that_resumes_an_interpreters_drain_decides() {
        for purpose in [Purpose::Close, Purpose::EndOfRun, Purpose::BeforeExit, Purpose::Exit] {
            let (stack, decided) = root!();
            let plugin = Node::new("plugin".into(), Parent::Root(stack));
            plugin.stack.register(|| Err(Exit(7)));
            let other = Arc::clone(&plugin);
            let finalize = move || other.stack.drain(Purpose::Finalize, Outcome::Success);
            plugin.stack.register(|| leaves_it_to(stack, finalize));
            stack.drain_unattended(purpose, Outcome::Success);
            assert_eq!(mem::take(&mut *decided.lock().unwrap()), [(7, false)], "{purpose:?}");
        }
    }

    #[test]
    fn a_close_that_an_exit_waits_for_decides() {
        let (stack, decided) = root!();
        stack.register(|| {
            while !matches!(stack.lock().lifecycle, Lifecycle::Closing(_)) {
                thread::yield_now();
            }
            Err(Exit(7))
        });
        let (closes, wait_closes) = channel();
        stack.register(move || closes.send(()).unwrap());
        thread::scope(|scope| {
            scope.spawn(|| stack.drain(Purpose::Close, Outcome::Success));
            wait_closes.recv().unwrap();
            stack.drain_unattended(Purpose::Exit, Outcome::Success);
        });
        assert_eq!(*decided.lock().unwrap(), [(7, false)]);
    }

    /// Unless the process exits, the status is only returned to the caller.
    #[test]
    fn an_interpreter_that_is_finalized_decides_nothing() {
        let (stack, decided) = root!();
        let plugin = Node::new("plugin".into(), Parent::Root(stack));
        plugin.stack.register(|| Err(Exit(7)));
        stack.register(move || drop(plugin.stack.drain(Purpose::Finalize, Outcome::Success)));
        stack.drain_unattended(Purpose::Exit, Outcome::Success);
        assert_eq!(*decided.lock().unwrap(), []);
    }
}
