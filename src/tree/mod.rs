//! The tree of stacks: what a stack consists of, and the protocol by which it and everything nested in it drain.
//!
//! # Tables
//!
//! Which registrations a stack accepts:
//!
//! | lifecycle | registrations | once the lists are empty |
//! | --- | --- | --- |
//! | open | accepted | stays open |
//! | reopening (end of `run`, `exit`) | up to 65,536 | open |
//! | closing (finalize, last handle, process exit) | up to 65,536 | closed |
//! | closed, busy: a handler or a child has not ended | refused | settled when the last one ends |
//! | settled | refused | unlinked from its parent, which may settle in turn |
//!
//! Why it drains:
//!
//! | purpose | bounded | closes | failures | children get | waits as | outcome |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | close | – | – | returned | finalize | closer | as the caller says |
//! | drop | – | – | reported | finalize, unattended | closer | failure |
//! | finalize | yes | yes | returned | finalize | closer | success |
//! | finalize, unattended (last handle) | yes | yes | reported | finalize, unattended | closer | failure |
//! | end of `run` | yes | – | reported | finalize, unattended | closer | what the body returned |
//! | before exit (`exit`; C's `exit` follows) | yes | – | reported | exit | must wait | the status |
//! | exit | yes | yes | reported | exit | must wait | the status, if known, else success |
//!
//! The outcome for children is always failure: only their own `finalize` says that their work was done. A drain keeps
//! the outcome it began with, whichever thread resumes it.
//!
//! What a thread does when it reaches a drain:
//!
//! | the drain is | a closer | the parent's teardown, or a thread that exits |
//! | --- | --- | --- |
//! | nobody's | drains | drains |
//! | settled | returns `Ok` | unlinks it |
//! | this thread's | returns `Ok` | runs the rest here; the teardown that began it ends it |
//! | of a thread that has left, or was given up | resumes it | resumes it |
//! | another thread's | waits | waits |
//! | … and that closes a cycle | returns `Ok` | frees a closer in the cycle, else runs the rest here |
//!
//! # Invariants
//!
//! 1. No lock is held while foreign code runs: a handler, the drop of what it captures, a key's `==`, the report hook,
//!    the global allocator. Values taken out of a list are dropped, and memory is allocated and freed, while no lock is
//!    held but that by which watches take turns (see [`relief`]).
//! 2. At most one stack's lock is held at a time, except while an interpreter takes its position in its parent: the
//!    parent's lock is taken first, then its own. A state and its lock belong to one process ([`PerProcess`]): a forked
//!    child begins with a fresh state, and only adoption looks at those of earlier processes.
//! 3. [`State::drain`] is `Some` while a drain of this stack runs. Its owner, or a thread that has taken over (see
//!    [`wait_graph`]), takes handlers out to run them. The teardown that began or last resumed the drain ends it, in
//!    the same critical section that found the lists empty: everything registered before has run, and everything
//!    registered later waits for the next drain.
//! 4. The failures and exit requests of a drain are kept in [`State::drain`], not in the owner's call frame: a handler
//!    that calls C's `exit` never returns to that. The drains of such a thread then have no owner; the thread resumes
//!    them, the innermost first, unless another thread reaches them earlier.
//! 5. A child stays in its parent's list until it is settled: closed, with no drain, and nothing nested in it. Its id
//!    there is its position among the parent's handlers.
//! 6. Once a stack is closed it stays closed, and `handlers` stays empty.

mod admission;
mod adoption;
mod behind;
mod current;
mod drains;
mod frames;
mod lifecycle;
mod record;
mod relief;
mod run;
mod start;
mod teardown;
mod wait_graph;
mod watch;
mod watched;

use std::borrow::Cow;
use std::mem;
use std::panic::Location;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

pub(crate) use self::current::{current, enter};
use self::drains::Drain;
pub(crate) use self::frames::{Late, end_gave_up, forget_frames, is_lost_here, run_here, running};
use self::lifecycle::Lifecycle;
pub(crate) use self::lifecycle::Purpose;
pub use self::record::{Fate, Record, Running};
pub(crate) use self::relief::Blocking;
pub(crate) use self::run::{Run, Spot};
use self::wait_graph::Waiters;
pub(crate) use self::wait_graph::{Lean, ThreadKey, leave};
pub(crate) use self::watch::{Tell, Watch, here, leave_watched, turn_on};
use crate::chain::Chain;
use crate::error::{ExitRequest, Outcome};
use crate::handler::SharedEntry;
use crate::list::{HandlerId, HandlerList, Storage};
use crate::raw;
use crate::sync::{MutexGuard, PerProcess, const_fn};

#[doc = include_str!("../shared.md")]
#[doc(alias = "atexit")]
#[doc(alias = "cleanup")]
#[must_use = "a stack that is not bound to a name is dropped, and drained, at once; `let _ =` does not bind it"]
pub struct SharedExitStack {
    state: PerProcess<State>,
    place: Place,
    /// The epoch of the process in which the stack was closed; zero if it was not.
    closed_in: AtomicUsize,
}

/// The place of a stack in a tree.
enum Place {
    /// No tree: the stack is a value.
    Value,
    /// The root of a tree.
    Root(&'static Root),
    /// The interpreter that the stack belongs to.
    Nested(Weak<Node>),
}

/// What a tree needs from its root.
pub(crate) struct Root {
    pub(crate) name: &'static str,
    pub(crate) stack: fn() -> &'static SharedExitStack,
    /// Arranges for the root to be drained at the end of the process; returns whether that worked.
    pub(crate) arm: fn() -> bool,
    /// Remembers an interpreter that has refused more than one handler, so that the number is reported at the end.
    pub(crate) note_refusals: fn(&Arc<Node>),
    /// Called before a drain that may call `decide`, which allocates at its first use in a forked child otherwise.
    pub(crate) prepare: fn(),
    /// Keeps the exit status that was requested in a drain. Called under a stack's lock, so it must not allocate.
    pub(crate) decide: fn(ExitRequest),
}

/// An interpreter: a stack with a name, nested in another one.
pub(crate) struct Node {
    pub(crate) name: Cow<'static, str>,
    parent: Parent,
    pub(crate) handles: AtomicUsize,
    pub(crate) stack: SharedExitStack,
}

/// What an interpreter is nested in.
pub(crate) enum Parent {
    Root(&'static SharedExitStack),
    Node(Arc<Node>),
    /// Nothing: the interpreter is detached, or is being dropped.
    None,
}

pub(crate) struct State {
    handlers: HandlerList<SharedEntry>,
    children: HandlerList<Child>,
    out_of_turn: Chain<OutOfTurn>,
    drain: Option<Drain>,
    /// The outcome for which the drain runs, or for which the last one ran.
    outcome: Outcome,
    lifecycle: Lifecycle,
    /// Whether a registration is accepted without further checks: the stack is open and armed.
    ready: bool,
    /// Whether it has been arranged that the stack is drained at the end.
    armed: bool,
    /// An interpreter's position in its parent, once it has one.
    position: Option<HandlerId>,
    refused: Option<Box<Refusals>>,
}

/// Registrations that were refused.
struct Refusals {
    first: &'static Location<'static>,
    /// The path of the stack, recorded while its interpreter exists.
    path: Option<Arc<str>>,
    /// The number of refusals after the first that are still to be reported.
    more: usize,
}

/// An interpreter in its parent's list.
struct Child {
    node: Arc<Node>,
    /// The thread that has run, in the parent's drain, all it can of this child. What is left is a handler that this
    /// thread is in, or that waits for this thread.
    skipped_by: Option<ThreadKey>,
}

/// A handler that counts as nested in its stack while it runs: one that `run_now` has taken out, at the position it
/// had, or one that was given up.
struct OutOfTurn {
    id: HandlerId,
    thread: ThreadKey,
    waiters: Waiters,
    skipped_by: Option<ThreadKey>,
    /// Identifies it: the number of the teardown that it runs in, or one of its own from the same sequence.
    teardown: usize,
    /// Whether it was given up (see [`relief`]): nothing waits for it any more, but it has not returned.
    is_given_up: bool,
}

impl State {
    /// Creates an open, empty state. With `armed`, nothing has to be arranged before the first registration.
    const fn new(armed: bool) -> Self {
        Self {
            handlers: HandlerList::new(),
            children: HandlerList::new(),
            out_of_turn: Chain::new(),
            drain: None,
            outcome: Outcome::Success,
            lifecycle: Lifecycle::Open,
            ready: armed,
            armed,
            position: None,
            refused: None,
        }
    }

    /// Returns whether there is nothing to drain and nothing to report.
    fn is_idle(&self) -> bool {
        self.handlers.is_empty() && self.nothing_nested() && self.drain.is_none() && self.refused.is_none()
    }

    /// Returns whether the stack is closed, with no drain and nothing nested in it.
    fn is_settled(&self) -> bool {
        matches!(self.lifecycle, Lifecycle::Closed) && self.drain.is_none() && self.nothing_nested()
    }

    #[inline]
    fn nothing_nested(&self) -> bool {
        self.children.is_empty() && self.out_of_turn.is_empty()
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new(false)
    }
}

impl SharedExitStack {
    const_fn! {
        /// Creates a stack that is a value, in no tree.
        pub(crate) const fn value() -> Self {
            Self::at(Place::Value, true)
        }
    }

    const_fn! {
        pub(crate) const fn root(root: &'static Root) -> Self {
            Self::at(Place::Root(root), false)
        }
    }

    const_fn! {
        const fn at(place: Place, armed: bool) -> Self {
            Self { state: PerProcess::new(State::new(armed)), place, closed_in: AtomicUsize::new(0) }
        }
    }

    #[inline]
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock_or(|| self.fresh())
    }

    /// Returns the state that a forked child begins with: empty, and closed if the interpreter was finalized.
    fn fresh(&self) -> State {
        let mut fresh = State::new(matches!(self.place, Place::Value));
        fresh.handlers = HandlerList::after_fork();
        if matches!(self.place, Place::Nested(_)) && self.closed_in.load(Ordering::Acquire) != 0 {
            fresh.lifecycle = Lifecycle::Closed;
            fresh.outcome = Outcome::Failure; // nothing that this process does can turn it into a success
        }
        fresh
    }

    /// Returns whether the stack was closed in this process. Takes no lock.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed_in.load(Ordering::Acquire) == raw::epoch()
    }

    fn note_closed(&self) {
        self.closed_in.store(raw::epoch(), Ordering::Release);
    }

    /// Returns whether the stack has no pending handler, no drain, and nothing nested in it.
    pub(crate) fn is_quiet(&self) -> bool {
        let state = self.lock();
        state.handlers.is_empty() && state.drain.is_none() && state.nothing_nested()
    }

    /// Returns whether a drain of the stack runs, on whichever thread.
    pub(crate) fn is_draining(&self) -> bool {
        self.lock().drain.is_some()
    }

    /// Returns whether the stack was closed, or is about to be, by a drain for success.
    pub(crate) fn has_succeeded(&self) -> bool {
        let state = self.lock();
        state.outcome == Outcome::Success && !matches!(state.lifecycle, Lifecycle::Open)
    }

    /// Returns the outcome for which the drain runs, or for which the last one ran.
    pub(crate) fn outcome(&self) -> Outcome {
        self.lock().outcome
    }

    /// Returns whether there is nothing to drain or to report. Needs no lock where `&mut self` rules out other users.
    pub(crate) fn is_idle(&mut self) -> bool {
        self.state.look(State::is_idle).unwrap_or(true)
    }

    /// Returns the names from the root of the tree down to this stack, or `None` for a value.
    fn path(&self) -> Option<String> {
        match &self.place {
            Place::Value => None,
            Place::Root(root) => Some(root.name.to_owned()),
            Place::Nested(node) => node.upgrade().map(|node| node.path()),
        }
    }

    /// Returns the root of the stack's tree, with which it drains; `None` for a value, and where that is detached.
    fn tree(&self) -> Option<&'static Root> {
        match &self.place {
            Place::Value => None,
            Place::Root(root) => Some(root),
            Place::Nested(node) => node.upgrade()?.root(),
        }
    }

    /// Returns the interpreter that the stack belongs to, if there is one.
    fn node(&self) -> Option<Arc<Node>> {
        match &self.place {
            Place::Value | Place::Root(_) => None,
            Place::Nested(node) => node.upgrade(),
        }
    }

    /// Makes the stack's interpreter current on this thread until the guard is dropped. For the root, no interpreter is
    /// current then; for a value, nothing changes.
    fn make_current(&self) -> Option<impl Drop> {
        match &self.place {
            Place::Value => None,
            Place::Root(_) => Some(enter(None)),
            Place::Nested(node) => Some(enter(node.upgrade())),
        }
    }

    /// Adds an interpreter, at the position that a handler registered now would get. Returns false if the stack refuses
    /// it.
    fn link(&self, node: &Arc<Node>) -> bool {
        drop(node.stack.lock()); // its first use in a forked child allocates, so not under the parent's lock
        loop {
            let wanted = self.lock().children.wanted(1);
            if let Some(capacity) = wanted {
                let mut storage = Storage::with_capacity(capacity);
                self.lock().children.exchange(&mut storage);
                continue;
            }
            let Some(mut state) = self.lock_to_admit() else { return false };
            if state.children.is_full() {
                continue; // another thread has used up the room
            }
            let mut own = node.stack.lock();
            if own.position.is_some() {
                return true; // another thread has already added it in this forked child
            }
            let id = state.handlers.next_id();
            own.position = Some(id);
            own.armed = true;
            drop(own);
            state.children.push_as(id, Child { node: Arc::clone(node), skipped_by: None });
            return true;
        }
    }

    /// Removes the interpreter at this position. Returns whether the stack is settled now.
    fn unlink(&self, id: HandlerId) -> bool {
        let mut state = self.lock();
        let child = state.children.take_out(id);
        let settled = child.is_some() && state.is_settled();
        let excess = state.children.excess();
        drop(state);
        drop(child);
        if let Some(Ok(mut storage)) = excess.map(Storage::try_with_capacity) {
            self.lock().children.exchange(&mut storage);
        }
        settled
    }

    /// Adds the interpreters nested directly in the stack to `found`.
    fn children(&self, found: &mut Vec<Arc<Node>>) {
        loop {
            let state = self.lock();
            let count = state.children.len();
            if found.capacity() - found.len() >= count {
                return found.extend(state.children.iter().map(|(_, child)| Arc::clone(&child.node)));
            }
            drop(state);
            found.reserve(count);
        }
    }

    /// Visits the interpreters nested in the stack at any depth, each before its children are looked up.
    fn visit_descendants(&self, mut visit: impl FnMut(&Arc<Node>)) {
        let mut found = Vec::new();
        self.children(&mut found);
        while let Some(node) = found.pop() {
            visit(&node);
            node.stack.children(&mut found);
        }
    }
}

impl Node {
    /// Creates an interpreter. If its parent no longer accepts handlers, it accepts none either: nothing would be
    /// certain to run them.
    pub(crate) fn new(name: Cow<'static, str>, parent: Parent) -> Arc<Self> {
        let node = Arc::new_cyclic(|node: &Weak<Self>| Self {
            name,
            parent,
            handles: AtomicUsize::new(1),
            stack: SharedExitStack::at(Place::Nested(node.clone()), false),
        });
        node.take_position();
        node
    }

    /// Takes a position in its parent, if it has one.
    fn take_position(self: &Arc<Self>) {
        if self.parent_stack().is_some_and(|parent| !parent.link(self)) {
            self.stack.refuse_all();
        }
    }

    fn parent_stack(&self) -> Option<&SharedExitStack> {
        match &self.parent {
            Parent::Root(stack) => Some(stack),
            Parent::Node(node) => Some(&node.stack),
            Parent::None => None,
        }
    }

    fn parent_node(&self) -> Option<&Arc<Self>> {
        match &self.parent {
            Parent::Node(node) => Some(node),
            Parent::Root(_) | Parent::None => None,
        }
    }

    /// Returns an iterator over this interpreter and those that it is nested in, the innermost first.
    fn line(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |node| node.parent_node().map(|parent| &**parent))
    }

    /// Returns the root of its tree, if it is not detached.
    fn root(&self) -> Option<&'static Root> {
        match &self.line().last()?.parent_stack()?.place {
            Place::Root(root) => Some(root),
            Place::Value | Place::Nested(_) => None,
        }
    }

    /// Returns the names from the root of its tree, such as `process > plugin-a > db`.
    pub(crate) fn path(&self) -> String {
        let mut names: Vec<&str> = self.line().map(|node| &*node.name).collect();
        names.extend(self.root().map(|root| root.name));
        names.reverse();
        names.join(" > ")
    }

    /// Returns its position in its parent, once it has one in this process.
    fn position(&self) -> Option<HandlerId> {
        self.stack.lock().position
    }

    fn take_parent(&mut self) -> Option<Arc<Self>> {
        match mem::replace(&mut self.parent, Parent::None) {
            Parent::Node(node) => Some(node),
            Parent::Root(_) | Parent::None => None,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Drops one ancestor after the other: dropping the field would recurse as deep as the nesting.
        let mut parent = self.take_parent();
        while let Some(node) = parent {
            parent = Arc::into_inner(node).and_then(|mut node| node.take_parent());
        }
    }
}
