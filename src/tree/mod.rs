//! The tree of stacks: what a stack consists of, and the protocol by which it and everything nested in it drains.
//!
//! # Tables
//!
//! What a stack takes:
//!
//! | lifecycle | registrations | once the lists are empty |
//! | --- | --- | --- |
//! | open | taken | stays open |
//! | reopening (end of `run`, `exit`) | up to 65,536 | open |
//! | closing (finalize, last handle, process exit) | up to 65,536 | closed |
//! | closed, busy: a handler or a child has not ended | refused | settled when the last one ends |
//! | settled | refused | unlinked from its parent, which may settle in turn |
//!
//! Why it drains:
//!
//! | purpose | bounded | closes | failures | children get | waits as | outcome |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | close | – | – | returned | finalize | closer | as it says |
//! | drop | – | – | reported | finalize, unattended | closer | failure |
//! | finalize | yes | yes | returned | finalize | closer | success |
//! | finalize, unattended (last handle) | yes | yes | reported | finalize, unattended | closer | failure |
//! | end of `run` | yes | – | reported | finalize, unattended | closer | what the body returned |
//! | before exit (`exit`, C's is to come) | yes | – | reported | exit | must wait | the status |
//! | exit | yes | yes | reported | exit | must wait | the status, if known, else success |
//!
//! The outcome for children is always failure: only their own `finalize` says that their work was done. A drain keeps the
//! outcome that it has begun with, whoever resumes it.
//!
//! Who comes to a drain, and whose it is:
//!
//! | the drain is | a closer | the parent's teardown, or a thread that exits |
//! | --- | --- | --- |
//! | nobody's | drains | drains |
//! | settled | returns `Ok` | unlinks it |
//! | this thread's | returns `Ok` | runs the rest here; its owner ends it |
//! | of a thread that has left | resumes it | resumes it |
//! | another thread's | waits | waits |
//! | … and that closes a cycle | returns `Ok` | frees a closer in the cycle, else runs the rest here |
//!
//! # Invariants
//!
//! 1. No lock is held while foreign code runs: a handler, the drop of what it captures, a key's `==`, the report hook, the
//!    global allocator. What is taken out of a list is dropped, and memory is allocated and freed, where no lock is held.
//! 2. At most one stack's lock is held at a time, except for that of an interpreter that takes its position in its parent:
//!    the parent's first. A state and its lock belong to one process ([`PerProcess`]): a child begins with another one, and
//!    only adoption looks at what its parent left.
//! 3. [`State::drain`] is `Some` while a drain of this stack runs. Its owner, or a thread that has taken over (see
//!    [`wait_graph`]), takes handlers out to run them. The teardown that began it ends it, in the same critical section that
//!    found the lists empty: what was registered before that has run, what is registered after that waits for the next one.
//! 4. What a drain gathers is kept in [`State::drain`], not in the owner's frame: a handler that calls C's `exit` never
//!    returns to that frame. The drains of such a thread have no owner then; the thread resumes them, the innermost first,
//!    unless another one comes by before.
//! 5. A child stays in its parent's list until it is settled: closed, with no drain, and nothing nested in it. Its position
//!    among the parent's handlers is its id.
//! 6. Once a stack is closed it stays closed, and `handlers` stays empty.

mod admission;
mod adoption;
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
pub(crate) use self::frames::{Late, end_gave_up, is_lost_here, run_here, running};
use self::lifecycle::Lifecycle;
pub(crate) use self::lifecycle::Purpose;
pub use self::record::{Fate, Record, Running};
pub(crate) use self::relief::Blocking;
pub(crate) use self::run::{Run, Spot};
use self::wait_graph::Waiters;
pub(crate) use self::wait_graph::{Lean, ThreadKey, leave};
pub(crate) use self::watch::{Tell, Watch, here, turn_on};
use crate::chain::Chain;
use crate::error::Outcome;
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
    /// The epoch of the process in which it was closed; zero if it was not.
    closed_in: AtomicUsize,
}

/// Where in a tree a stack is.
enum Place {
    /// In none: it is a value.
    Value,
    /// At the root.
    Root(Root),
    /// In the interpreter that it belongs to.
    Nested(Weak<Node>),
}

/// What the root of a tree is asked.
pub(crate) struct Root {
    pub(crate) name: &'static str,
    pub(crate) stack: fn() -> &'static SharedExitStack,
    /// Sets up what drains the root at the end; says whether that worked.
    pub(crate) arm: fn() -> bool,
    /// Remembers an interpreter that has refused several handlers, to report at the end how many.
    pub(crate) note_refusals: fn(&Arc<Node>),
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
    /// Nothing: it is detached, or it is being dropped.
    None,
}

pub(crate) struct State {
    handlers: HandlerList<SharedEntry>,
    children: HandlerList<Child>,
    out_of_turn: Chain<OutOfTurn>,
    drain: Option<Drain>,
    /// How the work ended whose cleanup the drain runs, or whose cleanup the last one ran.
    outcome: Outcome,
    lifecycle: Lifecycle,
    /// Nothing stands in the way of a registration: the stack is open and armed.
    ready: bool,
    /// What drains the stack at the end has been set up.
    armed: bool,
    /// An interpreter's position in its parent, once it has one.
    position: Option<HandlerId>,
    refused: Option<Refusals>,
}

/// Registrations that were refused.
struct Refusals {
    first: &'static Location<'static>,
    /// Whose stack it is, told while its owner exists.
    path: Option<String>,
    /// How many came after the first.
    more: usize,
}

/// An interpreter in its parent's list.
struct Child {
    node: Arc<Node>,
    /// The thread that has run, in the parent's drain, everything that was in it. What is left is a handler that this very
    /// thread is in, or that waits for this thread.
    skipped_by: Option<ThreadKey>,
}

/// A handler that `run_now` has taken out and that is running: nested in the stack at the position that it had. Or one that a
/// drain went on without.
struct OutOfTurn {
    id: HandlerId,
    thread: ThreadKey,
    waiters: Waiters,
    skipped_by: Option<ThreadKey>,
    /// Tells it apart from others, as a teardown's number does.
    teardown: usize,
    /// It was given up (see [`watch`]): nobody waits for it any more, but it has not ended.
    is_given_up: bool,
}

impl State {
    /// `armed`: nobody needs to set anything up.
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

    /// Whether there is nothing to drain and nothing to report.
    fn is_idle(&self) -> bool {
        self.handlers.is_empty() && self.nothing_nested() && self.drain.is_none() && self.refused.is_none()
    }

    /// Whether nothing is left of it, nor will be.
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
        /// A stack that is a value.
        pub(crate) const fn value() -> Self {
            Self::at(Place::Value, true)
        }
    }

    const_fn! {
        pub(crate) const fn root(root: Root) -> Self {
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

    /// The state with which a forked child begins: empty, but what was finalized stays finalized.
    fn fresh(&self) -> State {
        let mut fresh = State::new(matches!(self.place, Place::Value));
        fresh.handlers = HandlerList::after_fork();
        if matches!(self.place, Place::Nested(_)) && self.closed_in.load(Ordering::Acquire) != 0 {
            fresh.lifecycle = Lifecycle::Closed;
            fresh.outcome = Outcome::Failure; // nothing that this process does can still succeed
        }
        fresh
    }

    /// Whether it has been closed in this process. Takes no lock.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed_in.load(Ordering::Acquire) == raw::epoch()
    }

    fn note_closed(&self) {
        self.closed_in.store(raw::epoch(), Ordering::Release);
    }

    /// Whether nothing of it runs or waits, nor of what is nested in it.
    pub(crate) fn is_quiet(&self) -> bool {
        let state = self.lock();
        state.handlers.is_empty() && state.drain.is_none() && state.nothing_nested()
    }

    /// How the work ended whose cleanup runs, or ran last.
    pub(crate) fn outcome(&self) -> Outcome {
        self.lock().outcome
    }

    /// Whether there is nothing to drain or to report, where nobody else can use the stack.
    pub(crate) fn is_idle(&mut self) -> bool {
        self.state.look(State::is_idle).unwrap_or(true)
    }

    /// The names from the root of its tree; none for a value.
    fn path(&self) -> Option<String> {
        match &self.place {
            Place::Value => None,
            Place::Root(root) => Some(root.name.to_owned()),
            Place::Nested(node) => node.upgrade().map(|node| node.path()),
        }
    }

    /// Whether it drains with the root: it is neither a value nor detached.
    fn is_in_the_tree(&self) -> bool {
        match &self.place {
            Place::Value => false,
            Place::Root(_) => true,
            Place::Nested(node) => node.upgrade().is_some_and(|node| node.root().is_some()),
        }
    }

    /// The interpreter that it belongs to.
    fn node(&self) -> Option<Arc<Node>> {
        match &self.place {
            Place::Value | Place::Root(_) => None,
            Place::Nested(node) => node.upgrade(),
        }
    }

    /// Makes the interpreter that it belongs to the current one on this thread, or none for the root, until the guard is
    /// dropped. A value changes nothing.
    fn make_current(&self) -> Option<impl Drop> {
        match &self.place {
            Place::Value => None,
            Place::Root(_) => Some(enter(None)),
            Place::Nested(node) => Some(enter(node.upgrade())),
        }
    }

    /// Adds an interpreter, at the position that a handler registered now would have. Returns false if that is refused.
    fn link(&self, node: &Arc<Node>) -> bool {
        drop(node.stack.lock()); // its first use in a child allocates
        loop {
            let wanted = self.lock().children.wanted(1);
            if let Some(capacity) = wanted {
                let mut storage = Storage::with_capacity(capacity);
                self.lock().children.exchange(&mut storage);
                continue;
            }
            let Some(mut state) = self.lock_to_admit() else { return false };
            if state.children.is_full() {
                continue; // another thread was faster
            }
            let mut own = node.stack.lock();
            if own.position.is_some() {
                return true; // another thread of this child process used it first, too
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

    /// Adds the interpreters in it to `found`.
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

    /// Visits all interpreters nested in it, at any depth; each before its children are looked up.
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
    /// A new interpreter. If its parent no longer accepts handlers, it accepts none either: nothing would be sure to run them.
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

    /// This interpreter and those that it is nested in, the innermost first.
    fn line(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |node| node.parent_node().map(|parent| &**parent))
    }

    /// The root of its tree.
    fn root(&self) -> Option<&Root> {
        match &self.line().last()?.parent_stack()?.place {
            Place::Root(root) => Some(root),
            Place::Value | Place::Nested(_) => None,
        }
    }

    /// The names from the root of its tree, `process > plugin-a > db`.
    pub(crate) fn path(&self) -> String {
        let mut names: Vec<&str> = self.line().map(|node| &*node.name).collect();
        names.extend(self.root().map(|root| root.name));
        names.reverse();
        names.join(" > ")
    }

    /// Its position in its parent, once it has one in this process.
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
        // One after the other, where dropping the field would recurse as deep as the nesting.
        let mut parent = self.take_parent();
        while let Some(node) = parent {
            parent = Arc::into_inner(node).and_then(|mut node| node.take_parent());
        }
    }
}
