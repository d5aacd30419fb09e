//! A stack between threads: [`SharedExitStack`], and the protocol by which it and the stacks nested in it drain.
//!
//! 1. No lock is held while user code runs: handlers, the drop of what they capture, `==`, the report hook. What is
//!    taken out of a list is dropped after the lock was released.
//! 2. At most one stack's lock is held at a time, but for that of an interpreter which takes its place in its parent: the
//!    parent's first. A state and its lock belong to one process ([`PerProcess`]): a child begins with another one, and what
//!    its parent left is looked at by adoption alone.
//! 3. `State::drain` is `Some` while a drain of this stack runs. Its owner, or a thread for which the owner waits
//!    (invariant 4 of `waits`), takes entries out to run them. Its owner ends it, in the same critical section that found
//!    the lists empty: what was registered before that ran, what is registered after that waits for the next drain.
//! 4. What a drain gathered is kept in `State::drain`, not in the owner's frame: a handler that calls C `exit` never
//!    returns to that frame. The drains that such a thread was in are nobody's then (invariant 5 of `waits`): the thread goes
//!    on with them, the innermost first, unless another one comes by before.
//! 5. A nested stack stays in its parent's `nested` until it is settled: over, without a drain, and with nothing nested
//!    in it. Its place among the parent's handlers is its id.
//! 6. Once `State::phase` is `Over` it stays so, and `handlers` stays empty.

use std::any::Any;
use std::cell::Cell;
use std::cmp::Reverse;
use std::fmt;
use std::mem::{self, ManuallyDrop};
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use crate::chain::{Chain, Link};
use crate::drain::{Note, Source, discard, drain, drop_all, drop_counted, report_if, run_one, status_of};
use crate::error::{Asked, CloseError, Gathered, HandlerError, HandlerErrorKind, Outcome, Refused, Site, joined};
use crate::handler::{IntoHandler, PendingHandler, SharedEntry, identity};
use crate::list::{Found, HandlerId, HandlerList, Storage};
use crate::raw::{self, Bound, Closure};
use crate::report::report;
use crate::sync::{MutexGuard, PerProcess, const_fn, per_thread};
use crate::waits::{Drained, ThreadKey, Waited, Waiter, Who, wait};

/// How many handlers a stack, together with the interpreters made in it meanwhile, takes while it drains for the last
/// time.
pub(crate) const LATE: usize = 65_536;

/// Handlers that any thread may register and any thread may run: the stack between threads.
///
/// ```
/// use exitstack::SharedExitStack;
/// use std::sync::Mutex;
///
/// static CLEANUP: SharedExitStack = SharedExitStack::new();
/// static LOG: Mutex<Vec<&str>> = Mutex::new(Vec::new());
///
/// CLEANUP.register(|| LOG.lock().unwrap().push("runs second"));
/// std::thread::spawn(|| CLEANUP.register(|| LOG.lock().unwrap().push("runs first"))).join().unwrap();
/// CLEANUP.close()?;
/// assert_eq!(*LOG.lock().unwrap(), ["runs first", "runs second"]);
/// # Ok::<(), exitstack::CloseError>(())
/// ```
///
/// All that [`ExitStack`](crate::ExitStack) promises of order, failures and cost holds here, with handlers that are
/// `Send + 'static` (and their keys `Sync`), and every method on `&self`. There is no `enter`, `on_success` or
/// `on_failure`: they need one owner.
///
/// ```compile_fail,E0277
/// let stack = exitstack::SharedExitStack::new();
/// let local = std::rc::Rc::new(());
/// stack.register(move || drop(local)); // error: `Rc<()>` cannot be sent between threads safely
/// ```
///
/// # While it drains
///
/// - One drain runs at a time. A second `close()` from another thread waits for it and returns the same result. From
///   inside a handler of the same drain it returns `Ok(())` at once; so does a close that would wait in a circle (of
///   two handlers on two threads that close each other's stacks, one). Only waits for drains are seen: a handler that
///   joins a thread which closes the handler's own stack waits for ever.
/// - A handler registered meanwhile, by a handler or by another thread, runs next: as in C and `contextlib`, unlike
///   CPython's `atexit`, which accepts it and loses it. So handlers that register one another for ever keep `close()`
///   busy for ever.
/// - A handler unregistered meanwhile does not run.
/// - Nothing of the library is locked while a handler, the drop of a capture, a key's `==` or the report hook runs: each
///   may register, unregister, close or panic.
///
/// # A runtime with one big lock
///
/// A second `close()` waits for the drain that runs. If it waits with a lock held that a handler of that drain needs, both
/// wait forever: only waits for drains are seen. So a runtime with a global interpreter lock releases it around `close()`
/// (and [`finalize`](crate::Interpreter::finalize)), and each handler takes it:
///
/// ```
/// use exitstack::SharedExitStack;
/// use std::sync::{Mutex, MutexGuard};
///
/// static GIL: Mutex<()> = Mutex::new(());
/// static STACK: SharedExitStack = SharedExitStack::new();
///
/// fn close(held: MutexGuard<'static, ()>) -> MutexGuard<'static, ()> {
///     drop(held); // another thread may drain, and its handlers take the lock
///     let result = STACK.close();
///     let held = GIL.lock().unwrap();
///     drop(result); // raise it in the language, with the lock held
///     held
/// }
///
/// STACK.register(|| {
///     let _held = GIL.lock().unwrap();
///     // run the language's callback
/// });
/// std::thread::scope(|scope| {
///     for _ in 0..2 {
///         scope.spawn(|| drop(close(GIL.lock().unwrap())));
///     }
/// });
/// ```
///
/// # Elsewhere
///
/// A stack that is dropped drains, and hands its failures to the [report hook](crate::report). In a `static` it is
/// never dropped: the [process stack](crate::process_stack) is the one that drains when the process ends. A handler that
/// calls C's `exit` never returns to the drain it is in. The drains of the process stack and of interpreters are resumed
/// then; that of a value is taken over by the next `close()`, if one comes.
///
/// In a forked child every shared stack is empty and usable, whatever other threads of the parent did at the fork. The
/// child neither runs nor drops what its parent registered, unless it [adopts](Self::adopt_after_fork) that.
#[doc(alias = "atexit")]
#[doc(alias = "cleanup")]
#[must_use = "a stack that is not bound to a name is dropped, and drained, at once"]
pub struct SharedExitStack {
    state: PerProcess<State>,
    owner: Owner,
    /// The epoch of the process in which it was drained for good; zero if it was not.
    over_in: AtomicUsize,
}

/// Whom a stack belongs to.
enum Owner {
    /// The user: it is a value.
    User,
    /// The process. `arm` sets up what drains it at the end, and says whether that worked.
    Process { arm: fn() -> bool },
    /// An interpreter.
    Interpreter(Weak<dyn Node>),
}

/// What is nested in a stack: an interpreter.
pub(crate) trait Node: Any + Send + Sync + UnwindSafe + RefUnwindSafe {
    fn stack(&self) -> &SharedExitStack;

    /// The interpreter it is nested in, if it is not nested in the process stack.
    fn parent(&self) -> Option<Arc<dyn Node>>;

    /// The stack it is nested in.
    fn outer(&self) -> &SharedExitStack;

    /// Its names from the root, `process > plugin-a > db`.
    fn path(&self) -> String;

    /// Has the number of its refusals reported at the process's end, if not before.
    fn count_refusals(self: Arc<Self>);

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

pub(crate) struct State {
    handlers: HandlerList<SharedEntry>,
    nested: HandlerList<Nested>,
    out_of_turn: Chain<OutOfTurn>,
    drain: Option<Drain>,
    phase: Phase,
    /// Nothing stands in the way of a registration: the phase is `Open`, and `armed`.
    ready: bool,
    /// What drains the stack at the process's end has been set up.
    armed: bool,
    /// An interpreter's place in its parent's list, once it got one.
    place: Option<HandlerId>,
    refused: Option<Refusals>,
}

/// Registrations that were refused.
struct Refusals {
    first: &'static Location<'static>,
    /// Whose stack it is, told while the owner is there to be asked.
    path: Option<String>,
    /// How many came after the first.
    more: usize,
}

/// An interpreter in its parent's list.
struct Nested {
    node: Arc<dyn Node>,
    /// The thread that has run, in the parent's drain, all that was in it; what is left is a handler of it that this very
    /// thread is in, or that waits for this thread.
    passed: Option<ThreadKey>,
}

/// A handler that `run_now` has taken out, and that runs now: nested in the stack at the place that it had.
struct OutOfTurn {
    id: HandlerId,
    thread: ThreadKey,
    waiters: Waiters,
    passed: Option<ThreadKey>,
}

/// Where threads wait for the end of what runs.
#[derive(Default)]
struct Waiters(Chain<Arc<Waiter>>);

/// A place to wait, not among any [`Waiters`] yet.
struct Place {
    waiter: Arc<Waiter>,
    link: Option<Link<Arc<Waiter>>>,
}

impl Place {
    fn new() -> Self {
        let waiter = Arc::<Waiter>::default();
        let link = Some(Link::new(Arc::clone(&waiter)));
        Self { waiter, link }
    }
}

impl Waiters {
    /// Adds a place to wait; returns those where nobody waits any more.
    fn add(&mut self, place: &mut Place) -> Chain<Arc<Waiter>> {
        let gone = self.0.take_if(|waiter| Arc::strong_count(waiter) == 1);
        if let Some(link) = place.link.take() {
            self.0.push(link);
        }
        gone
    }

    #[inline]
    fn tell(self, drained: &Drained) {
        if !self.0.is_empty() {
            self.tell_all(drained);
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_all(self, drained: &Drained) {
        for waiter in self.0 {
            waiter.set(Waited::Drained(drained.clone()));
        }
    }
}

/// A drain that runs.
struct Drain {
    owner: ThreadKey,
    /// The descent that began it, or took it over: that one ends it.
    descent: usize,
    gathered: Gathered,
    /// What it has gathered before that, which the drain around this one has already.
    merged: Gathered,
    /// Failures go to the report hook as they happen.
    reports: bool,
    waiters: Waiters,
}

enum Phase {
    Open,
    /// Draining for the last time, or asked to: so many were registered since.
    Last {
        late: usize,
        reopen: bool,
    },
    /// Nothing is taken any more.
    Over,
}

/// Why a stack drains, which says how.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// `close()`: what failed is returned; the stack goes on.
    Close,
    /// The stack is dropped: what failed is reported, at the moment it happens.
    Drop,
    /// `finalize()`: what failed is returned; nothing is taken any more.
    Finalize,
    /// As `Finalize`, but nobody is there to be told: what failed is reported.
    Abandon,
    /// The end of `run`: as `Abandon`, but the stack goes on.
    Run,
    /// This thread ends the process, but C's `exit` is still to come: as `Exit`, but the stack goes on.
    Leave,
    /// The process ends on this thread: as `Abandon`; and no closer may be told before the end that this thread waits for.
    Exit,
}

impl Occasion {
    /// Whether no more than [`LATE`] further registrations are taken.
    fn is_last(self) -> bool {
        !matches!(self, Self::Close | Self::Drop)
    }

    /// Whether nothing of the stack is to be left.
    fn is_for_good(self) -> bool {
        matches!(self, Self::Finalize | Self::Abandon | Self::Exit)
    }

    /// Whether failures go to the report hook.
    fn reports(self) -> bool {
        !matches!(self, Self::Close | Self::Finalize)
    }

    fn waits_as(self) -> Who {
        if self.exits() { Who::Drain } else { Who::Closer }
    }

    /// How what is nested in the stack drains.
    fn for_nested(self) -> Self {
        match self {
            Self::Close | Self::Finalize => Self::Finalize,
            Self::Drop | Self::Abandon | Self::Run => Self::Abandon,
            Self::Leave | Self::Exit => Self::Exit,
        }
    }

    /// Whether the process ends on this thread.
    fn exits(self) -> bool {
        matches!(self, Self::Leave | Self::Exit)
    }
}

/// What [`SharedExitStack::claim`] answers.
enum Claim {
    /// The drain is this thread's to run.
    Taken,
    /// This thread is inside of it already.
    Inside,
    /// Another thread runs it; wait for its end at the place that was given, if one was.
    Elsewhere(ThreadKey),
    /// There is nothing to drain any more.
    Over,
}

/// What came of a thread's wish to drain a stack.
enum Came {
    /// It is to run what there is.
    In,
    /// It is inside of the drain already.
    Inside,
    /// It has waited for another thread's drain.
    After(Drained),
    /// It need not wait for that.
    NotNeeded,
    /// There is nothing to drain any more.
    Over,
}

/// What [`SharedExitStack::step`] answers.
enum Step {
    Run,
    Nested(HandlerId, Arc<dyn Node>),
    /// A handler that `run_now` runs on another thread, to be waited for.
    OutOfTurn(HandlerId, ThreadKey),
    /// The lists are empty.
    Done(Done),
}

/// What is to be done when a stack's lists are empty.
struct Done {
    drained: Drained,
    /// Who waits for the end of the drain; none if it has not come to its end, for a handler still runs in it.
    waiters: Waiters,
    settled: bool,
}

impl State {
    /// `armed`: nobody needs to set anything up.
    const fn new(armed: bool) -> Self {
        Self {
            handlers: HandlerList::new(),
            nested: HandlerList::new(),
            out_of_turn: Chain::new(),
            drain: None,
            phase: Phase::Open,
            ready: armed,
            armed,
            place: None,
            refused: None,
        }
    }

    /// Whether one more registration is taken. In a last drain it counts with the stack, whichever thread makes it, and with
    /// the thread, on whichever stack it is made.
    fn admits(&mut self) -> bool {
        let mut unlimited = 0;
        let own = match &mut self.phase {
            Phase::Open => &mut unlimited,
            Phase::Last { late, .. } => late,
            Phase::Over => return false,
        };
        let here = late_here();
        if *own == LATE || here == Some(LATE) {
            return false;
        }
        *own += 1;
        set_late_here(here.map(|late| late + 1));
        true
    }

    /// Whether there is nothing to drain and nothing to report.
    fn is_idle(&self) -> bool {
        self.handlers.is_empty() && self.nothing_nested() && self.drain.is_none() && self.refused.is_none()
    }

    /// Whether nothing is left of it, nor will be.
    fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Over) && self.drain.is_none() && self.nothing_nested()
    }

    #[inline]
    fn nothing_nested(&self) -> bool {
        self.nested.is_empty() && self.out_of_turn.is_empty()
    }

    /// What is nested before the newest handler, and is not passed yet.
    #[cold]
    fn next_nested(&self) -> Option<Step> {
        let me = ThreadKey::current();
        let node = self.nested.iter().rev().find(|(_, nested)| nested.passed != Some(me));
        // What this thread runs itself is what drains here.
        let others = self.out_of_turn.iter().filter(|handler| handler.thread != me && handler.passed != Some(me));
        let handler = others.max_by_key(|handler| handler.id);
        let newest = self.handlers.last_id().max(node.map(|(id, _)| id)).max(handler.map(|handler| handler.id));
        match (node, handler) {
            (Some((id, nested)), _) if Some(id) == newest => Some(Step::Nested(id, Arc::clone(&nested.node))),
            (_, Some(handler)) if Some(handler.id) == newest => Some(Step::OutOfTurn(handler.id, handler.thread)),
            _ => None,
        }
    }

    /// Lets a stack go on after its last drain.
    fn reopen(&mut self) {
        if matches!(self.phase, Phase::Last { .. }) {
            self.phase = Phase::Open;
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new(false)
    }
}

impl SharedExitStack {
    const_fn! {
        /// An empty stack. Allocates nothing.
        ///
        /// ```
        /// static STACK: exitstack::SharedExitStack = exitstack::SharedExitStack::new();
        /// assert!(STACK.is_empty());
        /// ```
        pub const fn new() -> Self {
            Self::of(Owner::User, true)
        }
    }

    const_fn! {
        pub(crate) const fn of_process(arm: fn() -> bool) -> Self {
            Self::of(Owner::Process { arm }, false)
        }
    }

    pub(crate) fn of_interpreter(node: Weak<dyn Node>) -> Self {
        Self::of(Owner::Interpreter(node), false)
    }

    const_fn! {
        const fn of(owner: Owner, armed: bool) -> Self {
            Self { state: PerProcess::new(State::new(armed)), owner, over_in: AtomicUsize::new(0) }
        }
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock_or(|| self.fresh())
    }

    /// The state with which a forked child begins: empty, but what was finalized stays so.
    fn fresh(&self) -> State {
        let mut fresh = State::new(matches!(self.owner, Owner::User));
        fresh.handlers = HandlerList::after_fork();
        if matches!(self.owner, Owner::Interpreter(_)) && self.over_in.load(Ordering::Acquire) != 0 {
            fresh.phase = Phase::Over;
        }
        fresh
    }

    /// Lets this forked child have the handlers that its parent registered here, and in interpreters nested in the stack.
    ///
    /// Returns false if some cannot be had: another thread was in a method of one of these stacks at the fork, or one of
    /// them takes no more handlers. What such a stack held neither runs nor drops in this process. For the process stack
    /// there is [`adopt_after_fork`](crate::adopt_after_fork), which says when this is wanted.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// assert!(stack.adopt_after_fork()); // in a process that did not fork: nothing
    /// ```
    pub fn adopt_after_fork(&self) -> bool {
        let mut all = self.adopt_own();
        self.descendants(|node| all &= node.stack().adopt_own());
        all
    }

    /// Locks the state for a registration, if the stack takes one.
    #[inline]
    fn lock_to_admit(&self) -> Option<MutexGuard<'_, State>> {
        let state = self.lock();
        if state.ready && !state.handlers.is_full() && late_here().is_none() {
            return Some(state);
        }
        drop(state);
        self.lock_and_ask()
    }

    #[cold]
    #[inline(never)]
    fn lock_and_ask(&self) -> Option<MutexGuard<'_, State>> {
        let mut state = self.lock();
        if !state.armed {
            drop(state);
            state = self.arm()?;
        }
        while state.handlers.is_full() {
            drop(state);
            self.make_room(1);
            state = self.lock();
        }
        if matches!(state.phase, Phase::Open) {
            state.ready = true;
        }
        state.admits().then_some(state)
    }

    /// Makes room for so many more handlers, with memory that is got and given back where no lock is held.
    fn make_room(&self, additional: usize) {
        loop {
            let wanted = self.lock().handlers.wanted(additional);
            let Some(capacity) = wanted else { return };
            let mut storage = Storage::with_capacity(capacity);
            self.lock().handlers.exchange(&mut storage);
        }
    }

    /// Gives back memory that the list has too much of, where no lock is held. Where there is none to move to, it waits.
    fn shrink(&self) {
        let excess = self.lock().handlers.excess();
        if let Some(Ok(mut storage)) = excess.map(Storage::try_with_capacity) {
            self.lock().handlers.exchange(&mut storage);
        }
    }

    /// Takes a handler out of the list.
    fn take_out(&self, id: HandlerId) -> Option<SharedEntry> {
        let mut state = self.lock();
        let entry = state.handlers.take_out(id);
        let excess = state.handlers.excess();
        drop(state);
        if excess.is_some() {
            self.shrink();
        }
        entry
    }

    /// Sees to it that something will drain it.
    #[cold]
    fn arm(&self) -> Option<MutexGuard<'_, State>> {
        match &self.owner {
            Owner::Process { arm } if !arm() => return None,
            Owner::User | Owner::Process { .. } => {}
            Owner::Interpreter(node) => node.upgrade().into_iter().for_each(take_places),
        }
        let mut state = self.lock();
        state.armed = true;
        Some(state)
    }

    #[inline]
    fn admit<H: IntoHandler + Send + 'static>(
        &self,
        handler: H,
        location: &'static Location<'static>,
    ) -> Result<HandlerId, H> {
        let Some(mut state) = self.lock_to_admit() else { return Err(handler) };
        Ok(state
            .handlers
            .push_with(|| SharedEntry { closure: Closure::<dyn Bound + Send>::new_send(handler), location }))
    }

    /// Registers a handler, to run before all that are there already.
    ///
    /// One lock and one append. A stack that takes no more handlers (a finalized
    /// [interpreter](crate::Interpreter)'s, or the [process stack](crate::process_stack) past its last drain) refuses:
    /// the handler is dropped unrun, the first refusal is reported to the [report hook](crate::report) and the others
    /// counted in one report at the stack's end, and the id returned is unknown everywhere. To get the handler back
    /// instead, use [`try_register`](Self::try_register).
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// stack.register(|| println!("bye"));
    /// ```
    #[doc(alias = "callback")]
    #[doc(alias = "push")]
    #[inline]
    #[track_caller]
    pub fn register(&self, handler: impl IntoHandler + Send + 'static) -> HandlerId {
        self.register_at(handler, Location::caller())
    }

    #[inline]
    pub(crate) fn register_at(
        &self,
        handler: impl IntoHandler + Send + 'static,
        location: &'static Location<'static>,
    ) -> HandlerId {
        self.admit(handler, location).unwrap_or_else(|handler| self.refuse(&handler, location))
    }

    #[cold]
    fn refuse<H: IntoHandler>(&self, handler: &H, location: &'static Location<'static>) -> HandlerId {
        let before = {
            let mut state = self.lock();
            let before = state.refused.as_ref().map(|refused| refused.more);
            let none = Refusals { first: location, path: None, more: 0 };
            state.refused.get_or_insert(none).more = before.map_or(0, |more| more + 1);
            before
        };
        match before {
            None => {
                let path = self.path();
                let mut copy = path.clone();
                if let Some(refused) = &mut self.lock().refused {
                    mem::swap(&mut refused.path, &mut copy);
                }
                let site = Site { name: handler.name().cloned(), location };
                report(&HandlerError::new(path, site, HandlerErrorKind::Refused));
            }
            Some(0) => self.node().into_iter().for_each(Node::count_refusals),
            Some(_) => {}
        }
        HandlerId::unknown()
    }

    /// Reports the refusals that were only counted.
    pub(crate) fn report_refused(&self) {
        let refused = self.lock().refused.take();
        if let Some(Refusals { first, path, more: more @ 1.. }) = refused {
            report(&HandlerError::more_refused(path, first, more));
        }
    }

    /// [`register`](Self::register), but a handler that is refused comes back.
    ///
    /// # Errors
    ///
    /// If the stack takes no more handlers: [`Refused`] holds the handler as it was. Nothing is reported.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// let id = stack.try_register(|| println!("bye"))?;
    /// # stack.unregister(id);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn try_register<H: IntoHandler + Send + 'static>(&self, handler: H) -> Result<HandlerId, Refused<H>> {
        let location = Location::caller();
        self.admit(handler, location).map_err(|handler| Refused::new(handler, location))
    }

    /// Removes this registration and drops its handler unrun; false if it is not in this stack (any more).
    ///
    /// An id of another stack is unknown here. O(log n), amortised.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// let id = stack.register(|| panic!("not run"));
    /// assert!(stack.unregister(id));
    /// assert!(!stack.unregister(id));
    /// ```
    #[doc(alias = "cancel")]
    pub fn unregister(&self, id: HandlerId) -> bool {
        self.take_out(id).is_some()
    }

    /// Removes every registration of this function and returns how many there were: see
    /// [`ExitStack::unregister_fn`](crate::ExitStack::unregister_fn).
    ///
    /// ```
    /// fn goodbye() {
    ///     println!("goodbye");
    /// }
    /// let stack = exitstack::SharedExitStack::new();
    /// stack.register(goodbye);
    /// assert_eq!(stack.unregister_fn(goodbye), 1);
    /// ```
    pub fn unregister_fn<F: FnOnce() -> R, R>(&self, function: F) -> usize {
        let identity = identity(function);
        let mut found = Found::new();
        loop {
            let mut state = self.lock();
            let taken = state.handlers.take_out_if(&mut found, |entry| entry.closure.function() == identity);
            drop(state);
            match taken {
                Ok(()) => break,
                Err(count) => found.reserve(count),
            }
        }
        self.shrink();
        drop_counted(found)
    }

    /// Removes every registration under a key equal to this one and returns how many there were.
    ///
    /// The keys' own `==` is called without any lock, oldest first, and may do what it likes with this stack: a handler
    /// that ran or was removed meanwhile does not count, one that was registered meanwhile is not looked at. (CPython
    /// held an index across the comparison, and crashed or missed entries.) A key of another type is unequal. O(n). If
    /// an `==` panics, the panic goes on and nothing was removed. Every handler found is dropped, also if the drop of one
    /// panics; the first such panic goes on then.
    ///
    /// ```
    /// use exitstack::{Handler, SharedExitStack};
    ///
    /// let stack = SharedExitStack::new();
    /// stack.register(Handler::new(|| println!("close")).keyed("session 7"));
    /// assert_eq!(stack.unregister_key(&"session 7"), 1);
    /// ```
    pub fn unregister_key<K: PartialEq + 'static>(&self, key: &K) -> usize {
        let mut keys: Vec<(HandlerId, Arc<K>)> = Vec::new();
        loop {
            let state = self.lock();
            let keyed = || state.handlers.iter().filter_map(|(id, entry)| Some((id, entry.key_of::<K>()?)));
            let count = keyed().count();
            if count <= keys.capacity() {
                keys.extend(keyed().map(|(id, key)| (id, Arc::clone(key))));
                break;
            }
            drop(state);
            keys.reserve(count);
        }
        let equal: Vec<HandlerId> = keys.into_iter().filter(|(_, own)| **own == *key).map(|(id, _)| id).collect();
        let mut found = Found::with_capacity(equal.len());
        {
            let mut state = self.lock();
            found.extend(equal.iter().filter_map(|id| state.handlers.take_out(*id)));
        }
        self.shrink();
        drop_counted(found)
    }

    /// Takes this handler out and runs it now on this thread, whatever its turn; `None` if it is not in this stack (any
    /// more).
    ///
    /// It waits for nothing. A drain of the stack (a close, the parent's, the process's end) that comes to the handler's place
    /// while it runs waits for it, and is told of its failure as well.
    ///
    /// # Errors
    ///
    /// If the handler fails, panics or asks for an exit status. It is used up all the same.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// let id = stack.register(|| println!("now"));
    /// assert!(stack.run_now(id).unwrap().is_ok());
    /// ```
    #[must_use = "it tells whether the handler failed"]
    pub fn run_now(&self, id: HandlerId) -> Option<Result<(), CloseError>> {
        let handler = OutOfTurn { id, thread: ThreadKey::current(), waiters: Waiters::default(), passed: None };
        let handler = Link::new(handler);
        let mut state = self.lock();
        let entry = state.handlers.take_out(id)?;
        state.out_of_turn.push(handler);
        drop(state);
        let result = {
            let _restored = self.make_current();
            run_one(entry, || self.path())
        };
        let mut state = self.lock();
        let ended = state.out_of_turn.take_if(|handler| handler.id == id);
        let settled = state.is_settled();
        drop(state);
        for handler in ended {
            handler.waiters.tell(&Drained { whole: result.clone(), new: result.clone() });
        }
        if settled {
            self.node().into_iter().for_each(detach);
        }
        Some(result)
    }

    /// Moves all handlers to a new stack, unrun; this one is empty then.
    ///
    /// Their ids stay valid in the new stack, and there alone. Interpreters that are nested here stay.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// let id = stack.register(|| ());
    /// let moved = stack.pop_all();
    /// assert!(!stack.unregister(id) && moved.unregister(id));
    /// ```
    pub fn pop_all(&self) -> SharedExitStack {
        let handlers = self.lock().handlers.take();
        let moved = Self::new();
        moved.lock().handlers = handlers;
        moved
    }

    /// Drops all handlers, the newest first, and runs none. Interpreters that are nested here stay.
    ///
    /// # Panics
    ///
    /// If the drop of a capture panics: every handler is dropped first, then the first panic goes on. The stack is
    /// empty then.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// stack.register(|| unreachable!());
    /// stack.clear();
    /// ```
    pub fn clear(&self) {
        let mut handlers = self.lock().handlers.take();
        drop_all(handlers.clear().into_iter().rev());
    }

    /// How many handlers wait.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// stack.register(|| ());
    /// assert_eq!(stack.len(), 1);
    /// ```
    pub fn len(&self) -> usize {
        self.lock().handlers.len()
    }

    /// Whether none does.
    ///
    /// ```
    /// assert!(exitstack::SharedExitStack::new().is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.lock().handlers.is_empty()
    }

    /// Lists the handlers that wait, the next to run first. O(n), allocates the list; the stack is locked meanwhile.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// stack.register(|| ());
    /// println!("registered at {}", stack.pending()[0].location());
    /// ```
    pub fn pending(&self) -> Vec<PendingHandler> {
        let mut pending = Vec::new();
        loop {
            let state = self.lock();
            let count = state.handlers.len();
            if pending.capacity() >= count {
                pending.extend(state.handlers.iter().rev().map(|(id, entry)| entry.pending(id)));
                return pending;
            }
            drop(state);
            pending.reserve(count);
        }
    }

    /// Makes room for this many more handlers, so that registering small ones allocates nothing, until the next drain or
    /// removal.
    ///
    /// # Panics
    ///
    /// If the capacity overflows. Without memory the process aborts, as with any collection.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// stack.reserve(100);
    /// ```
    pub fn reserve(&self, additional: usize) {
        self.make_room(additional);
    }

    /// Runs all handlers, the last registered first, until none is left. The stack is usable again then.
    ///
    /// If another thread drains the stack already, waits for that drain and returns its result. From inside a handler
    /// of the drain, or where waiting would close a circle, returns `Ok(())` at once: the drain goes on below.
    /// Interpreters nested in the stack are finalized at their place.
    ///
    /// # Errors
    ///
    /// If any handler failed or panicked (all run all the same), or asked for an exit status with
    /// [`Exit`](crate::Exit). Nothing is printed, unless the process exits before this could return: then what failed is
    /// reported as well.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// stack.register(|| Err("disk full"));
    /// assert!(stack.close().is_err());
    /// assert!(stack.close().is_ok());
    /// ```
    #[doc(alias = "dispose")]
    pub fn close(&self) -> Result<(), CloseError> {
        self.drain(Occasion::Close)
    }

    /// [`close`](Self::close), and says how the work ended. No handler of a stack between threads asks for the outcome,
    /// so it makes no difference; it is here so that code may be moved from one kind of stack to the other.
    ///
    /// # Errors
    ///
    /// As [`close`](Self::close).
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// stack.close_with(exitstack::Outcome::Failure)?;
    /// # Ok::<(), exitstack::CloseError>(())
    /// ```
    pub fn close_with(&self, outcome: Outcome) -> Result<(), CloseError> {
        let _ = outcome;
        self.close()
    }

    /// Drains the stack and what is nested in it.
    pub(crate) fn drain(&self, occasion: Occasion) -> Result<(), CloseError> {
        let _restored = occasion.is_last().then(count_late);
        let mut before = Ok(());
        loop {
            let mut descent = Descent::new(self, occasion);
            let then = match self.come(occasion, descent.number, occasion.waits_as()) {
                Came::In => descent.run(),
                Came::After(drained) if occasion.is_for_good() => {
                    // It may have passed an interpreter in which a handler still runs.
                    before = joined(before, drained.whole);
                    continue;
                }
                Came::After(drained) => drained.whole,
                Came::Inside | Came::NotNeeded | Came::Over => Ok(()),
            };
            if descent.is_parents() {
                // A child of this moment goes on with what it has registered itself. What came before is its parent's to be
                // told, and to drop.
                mem::forget(mem::replace(&mut before, then));
                continue;
            }
            return joined(before, then);
        }
    }

    /// [`drain`](Self::drain) where nobody is told: what failed was reported. The exit status asked for.
    pub(crate) fn drain_untold(&self, occasion: Occasion) -> Option<Asked> {
        status_of(self.drain(occasion))
    }

    /// Lets this descent drain this stack, or waits for the thread that does.
    #[inline]
    fn come(&self, occasion: Occasion, descent: usize, who: Who) -> Came {
        let (mut place, mut left) = (None, None);
        loop {
            let owner = match self.claim(occasion, descent, left, place.as_mut()) {
                Claim::Taken => return Came::In,
                Claim::Inside => return Came::Inside,
                Claim::Over => return Came::Over,
                Claim::Elsewhere(owner) => owner,
            };
            let Some(place) = place.take() else {
                place = Some(Place::new());
                continue;
            };
            let waited = wait(owner, &place.waiter, who);
            discard(place); // it may hold the last of a result
            match waited {
                Waited::Drained(drained) => return Came::After(drained),
                Waited::NotNeeded => return Came::NotNeeded,
                Waited::Inside => return Came::In,
                Waited::Left(owner) => left = Some(owner),
            }
        }
    }

    /// Makes the drain of this stack this descent's, or says whose it is. What the thread `left` ran is taken over.
    fn claim(&self, occasion: Occasion, descent: usize, left: Option<ThreadKey>, place: Option<&mut Place>) -> Claim {
        let me = ThreadKey::current();
        let mut gone = Chain::new();
        let mut state = self.lock();
        if state.is_settled() {
            return Claim::Over;
        }
        match &mut state.phase {
            Phase::Last { reopen, .. } => *reopen &= !occasion.is_for_good(),
            open @ Phase::Open if occasion.is_last() => {
                *open = Phase::Last { late: 0, reopen: !occasion.is_for_good() };
                state.ready = false;
            }
            Phase::Open | Phase::Over => {}
        }
        let Some(drain) = &mut state.drain else {
            let (gathered, merged) = (Gathered::default(), Gathered::default());
            let (reports, waiters) = (occasion.reports(), Waiters::default());
            state.drain = Some(Drain { owner: me, descent, gathered, merged, reports, waiters });
            state.nested.newest_first().for_each(|nested| nested.passed = None);
            state.out_of_turn.iter_mut().for_each(|handler| handler.passed = None);
            return Claim::Taken;
        };
        let claim = if left == Some(drain.owner) {
            (drain.owner, drain.descent) = (me, descent);
            Claim::Taken
        } else if drain.owner == me {
            Claim::Inside
        } else {
            if let Some(place) = place {
                gone = drain.waiters.add(place);
            }
            Claim::Elsewhere(drain.owner)
        };
        drop(state);
        drop(gone);
        if occasion.exits() {
            self.report_all();
        }
        claim
    }

    /// Lets the failures of the drain that runs go to the report hook from now on; and those that there are already, for who
    /// is to be told of them may not live to be told.
    #[cold]
    fn report_all(&self) {
        let mut errors = Vec::new();
        loop {
            let mut state = self.lock();
            let Some(drain) = &mut state.drain else { return };
            drain.reports = true;
            let wanted = drain.gathered.len();
            if wanted <= errors.capacity() {
                errors.extend(drain.gathered.errors().cloned());
                break;
            }
            drop(state);
            errors.reserve(wanted);
        }
        errors.iter().rev().for_each(report);
        discard(errors);
    }

    /// What is next in the drain that this thread runs; a handler is put in the place of the one before, which has run.
    #[inline]
    fn step(&self, running: &mut Option<SharedEntry>, descent: usize) -> Step {
        let mut state = self.lock();
        if !state.nothing_nested() {
            if let Some(step) = state.next_nested() {
                return step;
            }
        }
        state.handlers.pop_to(running);
        if running.is_some() { Step::Run } else { Step::Done(self.done(state, descent)) }
    }

    /// The lists are empty.
    #[inline]
    fn done(&self, mut state: MutexGuard<'_, State>, descent: usize) -> Done {
        let storage = state.handlers.release();
        match &state.phase {
            Phase::Last { reopen: false, .. } => {
                state.phase = Phase::Over;
                self.over_in.store(raw::epoch(), Ordering::Release);
            }
            Phase::Last { reopen: true, .. } if matches!(self.owner, Owner::Process { .. }) => state.reopen(),
            Phase::Last { .. } | Phase::Open | Phase::Over => {}
        }
        let ended = state.drain.take_if(|drain| drain.descent == descent);
        let settled = state.is_settled();
        if let Some(drain) = ended {
            drop(state);
            drop(storage);
            let new = drain.gathered.into_result();
            let whole = joined(drain.merged.into_result(), new.clone());
            return Done { drained: Drained { whole, new }, waiters: drain.waiters, settled };
        }
        // A handler still runs in it: the drain around this one is told of what there is so far.
        let gathered = state.drain.as_mut().map(|drain| mem::take(&mut drain.gathered)).unwrap_or_default();
        drop(state);
        let new = gathered.into_result();
        if let Err(error) = &new {
            let merged = error.gathered();
            let mut state = self.lock();
            let emptied = state.drain.as_mut().map(|drain| drain.merged.merge(merged));
            drop(state);
            drop(emptied);
        }
        Done { drained: Drained { whole: new.clone(), new }, waiters: Waiters::default(), settled }
    }

    /// Adds to what the drain of this stack has gathered; true if it reports.
    fn gather(&self, new: Gathered) -> bool {
        let mut state = self.lock();
        let Some(drain) = &mut state.drain else {
            drop(state);
            discard(new); // nobody will ask for it
            return true;
        };
        let reports = drain.reports;
        let emptied = drain.gathered.merge(new);
        drop(state);
        drop(emptied);
        reports
    }

    /// The path of whom it belongs to.
    fn path(&self) -> Option<String> {
        match &self.owner {
            Owner::User => None,
            Owner::Process { .. } => Some("process".to_owned()),
            Owner::Interpreter(node) => node.upgrade().map(|node| node.path()),
        }
    }

    /// The interpreter whose stack this is.
    fn node(&self) -> Option<Arc<dyn Node>> {
        match &self.owner {
            Owner::User | Owner::Process { .. } => None,
            Owner::Interpreter(node) => node.upgrade(),
        }
    }

    /// Makes the interpreter whose stack this is the current one on this thread; for the process stack, none. What was
    /// current before is restored when the guard is dropped.
    fn make_current(&self) -> Option<impl Drop> {
        let node = match &self.owner {
            Owner::User => return None,
            Owner::Process { .. } => None,
            Owner::Interpreter(node) => node.upgrade(),
        };
        Some(enter(node))
    }

    /// Puts an interpreter in at the place that a handler registered now would have; false if that is refused.
    pub(crate) fn nest(&self, node: Arc<dyn Node>) -> bool {
        drop(node.stack().lock()); // its first use in a child allocates
        loop {
            let wanted = self.lock().nested.wanted(1);
            if let Some(capacity) = wanted {
                let mut storage = Storage::with_capacity(capacity);
                self.lock().nested.exchange(&mut storage);
                continue;
            }
            let Some(mut state) = self.lock_to_admit() else { return false };
            if state.nested.is_full() {
                continue; // another thread was faster
            }
            let mut own = node.stack().lock();
            if own.place.is_some() {
                return true; // another thread of this child used it first, too
            }
            let id = state.handlers.next_id();
            own.place = Some(id);
            own.armed = true;
            drop(own);
            state.nested.push_as(id, Nested { node, passed: None });
            return true;
        }
    }

    /// An interpreter's place in its parent's list.
    fn place(&self) -> Option<HandlerId> {
        self.lock().place
    }

    /// Takes an interpreter out; true if the stack is settled now.
    fn unnest(&self, id: HandlerId) -> bool {
        let mut state = self.lock();
        let nested = state.nested.take_out(id);
        let settled = nested.is_some() && state.is_settled();
        let excess = state.nested.excess();
        drop(state);
        drop(nested);
        if let Some(Ok(mut storage)) = excess.map(Storage::try_with_capacity) {
            self.lock().nested.exchange(&mut storage);
        }
        settled
    }

    /// Notes that this thread, in a drain of this stack, has passed an interpreter that is not settled.
    fn pass(&self, id: HandlerId) {
        if let Some(nested) = self.lock().nested.get_mut(id) {
            nested.passed = Some(ThreadKey::current());
        }
    }

    /// Refuses all registrations from now on; for a stack that nobody else knows yet.
    pub(crate) fn refuse_all(&self) {
        self.lock().phase = Phase::Over;
        self.over_in.store(raw::epoch(), Ordering::Release);
    }

    /// Whether this thread is inside a handler of this stack's drain, or of one nested in it.
    pub(crate) fn drains_here(&self) -> bool {
        self.lock().drain.as_ref().is_some_and(|drain| drain.owner == ThreadKey::current())
    }

    /// Whether it was drained for good in this process; takes no lock.
    pub(crate) fn is_over(&self) -> bool {
        self.over_in.load(Ordering::Acquire) == raw::epoch()
    }

    /// Records an exit status that is asked for with the drain that runs.
    pub(crate) fn ask_exit(&self, asked: Asked) {
        self.gather(Gathered::exit(asked));
    }

    /// Adds the interpreters nested in it.
    fn children(&self, found: &mut Vec<Arc<dyn Node>>) {
        loop {
            let state = self.lock();
            let count = state.nested.len();
            if found.capacity() - found.len() >= count {
                return found.extend(state.nested.iter().map(|(_, nested)| Arc::clone(&nested.node)));
            }
            drop(state);
            found.reserve(count);
        }
    }

    /// Visits all interpreters nested in it, at any depth, each before its children are looked up.
    fn descendants(&self, mut visit: impl FnMut(&Arc<dyn Node>)) {
        let mut found = Vec::new();
        self.children(&mut found);
        while let Some(node) = found.pop() {
            visit(&node);
            node.stack().children(&mut found);
        }
    }

    /// The interpreters nested in it whose drains this thread began, the last begun first; none of those around which it was
    /// in this stack's own.
    pub(crate) fn left_by(&self, thread: ThreadKey) -> Vec<Arc<dyn Node>> {
        let begun = |stack: &Self| {
            let state = stack.lock();
            state.drain.as_ref().filter(|drain| drain.owner == thread).map(|drain| drain.descent)
        };
        let own = begun(self);
        let mut found = Vec::new();
        self.descendants(|node| {
            let descent = begun(node.stack()).filter(|descent| own.is_none_or(|own| *descent > own));
            found.extend(descent.map(|descent| (descent, Arc::clone(node))));
        });
        found.sort_by_key(|(descent, _)| Reverse(*descent)); // stable: of one descent the outermost first
        found.into_iter().map(|(_, node)| node).collect()
    }

    /// Takes over what the processes before this one registered with this stack; false if some of that cannot be had.
    fn adopt_own(&self) -> bool {
        let mut left = Vec::with_capacity(self.state.earlier().count());
        let mut all = true;
        {
            let state = self.lock();
            let takes = !matches!(state.phase, Phase::Over);
            for earlier in self.state.earlier() {
                match earlier {
                    // It was locked at the fork, whatever it holds.
                    None => all = false,
                    Some(earlier) if !takes => all &= earlier.handlers.is_empty(),
                    Some(mut earlier) => left.push((earlier.handlers.take(), earlier.nested.take())),
                }
            }
        }
        let (mut handlers, mut nested) = (HandlerList::new(), HandlerList::new());
        for (mut older, mut its_nested) in left {
            handlers.append(&mut older);
            nested.append(&mut its_nested);
        }
        let later = settle_places(&mut nested);
        let mut dropped = Vec::with_capacity(later.len());
        loop {
            let mut state = self.lock();
            // What this process has registered itself comes on top.
            let room = [handlers.wanted(state.handlers.len()), nested.wanted(state.nested.len())];
            if let [None, None] = room {
                dropped.extend(later.iter().filter_map(|id| state.nested.take_out(*id)));
                mem::swap(&mut state.handlers, &mut handlers);
                state.handlers.append(&mut handlers);
                mem::swap(&mut state.nested, &mut nested);
                state.nested.append(&mut nested);
                return all;
            }
            drop(state);
            room[0].into_iter().for_each(|room| handlers.exchange(&mut Storage::with_capacity(room)));
            room[1].into_iter().for_each(|room| nested.exchange(&mut Storage::with_capacity(room)));
        }
    }
}

/// Lets each interpreter that is inherited have the first place that it had in a process before this one. Returns the places
/// of those that have another one in this process already.
fn settle_places(inherited: &mut HandlerList<Nested>) -> Vec<HandlerId> {
    let (mut again, mut later) = (Vec::new(), Vec::new());
    for (id, nested) in inherited.iter() {
        let mut own = nested.node.stack().lock();
        match own.place {
            Some(place) if place < id => again.push(id),
            Some(place) if place > id => later.push(place),
            _ => {}
        }
        own.place = own.place.min(Some(id)).or(Some(id));
    }
    for id in again {
        drop(inherited.remove(id));
    }
    inherited.newest_first().for_each(|nested| nested.passed = None);
    later
}

/// Gives an interpreter, and those that it is nested in, their places where they have none in this process yet.
fn take_places(node: Arc<dyn Node>) {
    let mut without = Vec::new();
    let mut next = Some(node);
    while let Some(node) = next {
        let has = {
            let state = node.stack().lock();
            state.place.is_some() || matches!(state.phase, Phase::Over)
        };
        if has {
            break;
        }
        next = node.parent();
        without.push(node);
    }
    while let Some(node) = without.pop() {
        if !node.outer().nest(Arc::clone(&node)) {
            node.stack().refuse_all();
        }
    }
}

/// Takes an interpreter that is settled out of its parent's list; and that one out of its own, if it is settled now; and so
/// on.
fn detach(node: Arc<dyn Node>) {
    let mut settled = Some(node);
    while let Some(node) = settled {
        let outer_settled = node.stack().place().is_some_and(|place| node.outer().unnest(place));
        settled = node.parent().filter(|_| outer_settled);
    }
}

/// A drain of a stack and of all that is nested in it, at any depth, in one loop.
struct Descent<'s> {
    root: &'s SharedExitStack,
    /// How far below the root the stack is that drains now; and which one it is, if not the root.
    depth: usize,
    top: Option<Arc<dyn Node>>,
    /// What runs.
    running: Option<SharedEntry>,
    occasion: Occasion,
    /// Tells it apart from all others.
    number: usize,
    /// The process that it is of; a child of one of its handlers goes out of it.
    epoch: usize,
    /// What became of the handler that this process is a child of.
    orphaned: Gathered,
    result: Result<(), CloseError>,
}

impl<'s> Descent<'s> {
    fn new(root: &'s SharedExitStack, occasion: Occasion) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let epoch = raw::epoch();
        Self {
            root,
            depth: 0,
            top: None,
            running: None,
            occasion,
            number,
            epoch,
            orphaned: Gathered::default(),
            result: Ok(()),
        }
    }

    /// Drains what was claimed.
    fn run(&mut self) -> Result<(), CloseError> {
        let _restored = self.root.make_current();
        drain(self, Outcome::Success);
        mem::replace(&mut self.result, Ok(()))
    }

    /// Whether this process is a child of one of its handlers.
    #[inline]
    fn is_parents(&self) -> bool {
        raw::peek() != self.epoch && raw::epoch() != self.epoch
    }

    fn top(&self) -> &SharedExitStack {
        self.top.as_ref().map_or(self.root, |node| node.stack())
    }

    /// Begins to drain what is nested in the top, or waits for its end.
    #[cold]
    fn descend(&mut self, id: HandlerId, node: Arc<dyn Node>) {
        match node.stack().come(self.occasion.for_nested(), self.number, Who::Drain) {
            Came::In | Came::Inside => self.enter(node),
            Came::After(drained) => self.merge(drained),
            Came::NotNeeded => {}
            Came::Over => {
                self.top().unnest(id);
            }
        }
    }

    /// Waits for a handler that `run_now` runs on another thread.
    #[cold]
    fn wait_for_handler(&mut self, id: HandlerId, thread: ThreadKey) {
        let mut place = Place::new();
        let mut state = self.top().lock();
        let Some(handler) = state.out_of_turn.iter_mut().find(|handler| handler.id == id) else { return };
        let gone = handler.waiters.add(&mut place);
        drop(state);
        drop(gone);
        match wait(thread, &place.waiter, Who::Drain) {
            Waited::Drained(drained) => self.merge(drained),
            // It waits for this thread.
            Waited::NotNeeded | Waited::Inside => {
                let mut state = self.top().lock();
                let handler = state.out_of_turn.iter_mut().find(|handler| handler.id == id);
                if let Some(handler) = handler {
                    handler.passed = Some(ThreadKey::current());
                }
            }
            // It never returns.
            Waited::Left(_) => {
                let left = self.top().lock().out_of_turn.take_if(|handler| handler.id == id);
                drop(left);
            }
        }
        discard(place);
    }

    fn enter(&mut self, node: Arc<dyn Node>) {
        set_current(Some(Arc::clone(&node)));
        self.depth += 1;
        self.top = Some(node);
    }

    /// The root is drained.
    #[inline]
    fn finish(&mut self, done: Done) {
        if done.settled {
            self.root.node().into_iter().for_each(detach);
        }
        done.waiters.tell(&done.drained);
        self.result = done.drained.whole;
    }

    /// What is nested in the root is drained, or as much of it as this thread can: the drain around it is told.
    #[cold]
    fn ascend(&mut self, node: &Arc<dyn Node>, done: Done) {
        if done.settled {
            detach(Arc::clone(node));
        } else if let Some(place) = node.stack().place() {
            node.outer().pass(place);
        }
        done.waiters.tell(&done.drained);
        self.depth -= 1;
        if self.depth > 0 {
            self.top = node.parent();
        }
        set_current(self.top.clone().or_else(|| self.root.node()));
        self.merge(done.drained);
    }

    /// Adds what a nested drain came to to what the top has gathered.
    fn merge(&self, nested: Drained) {
        if let Err(error) = &nested.new {
            if self.top().gather(error.gathered()) {
                error.iter().for_each(report);
            }
        }
        discard(nested); // an error's own drop may panic
    }
}

impl Source<dyn Bound + Send> for Descent<'_> {
    #[inline]
    fn next(&mut self) -> Option<&mut SharedEntry> {
        loop {
            if self.is_parents() {
                self.result = mem::take(&mut self.orphaned).into_result();
                return None;
            }
            let top = self.top.as_ref().map_or(self.root, |node| node.stack());
            match top.step(&mut self.running, self.number) {
                Step::Run => return self.running.as_mut(),
                Step::Nested(id, node) => self.descend(id, node),
                Step::OutOfTurn(id, owner) => self.wait_for_handler(id, owner),
                Step::Done(done) => {
                    let Some(node) = self.top.take() else {
                        self.finish(done);
                        return None;
                    };
                    self.ascend(&node, done);
                }
            }
        }
    }

    #[cold]
    fn note(&mut self, note: Note) {
        let top = self.top();
        let (new, error) = note.gathered(top.path());
        let reports = if self.epoch == raw::epoch() {
            top.gather(new)
        } else {
            drop(self.orphaned.merge(new));
            self.occasion.reports()
        };
        if reports {
            report_if(error);
        }
    }
}

// `ManuallyDrop` leaves the thread-locals without a destructor, so that they can be asked also when those are over, as on
// the way out of the process; they are emptied by what filled them.
per_thread! {
    /// The interpreter that is current on this thread.
    static CURRENT: Cell<ManuallyDrop<Option<Arc<dyn Node>>>> = Cell::new(ManuallyDrop::new(None));
}

per_thread! {
    /// The process in which this thread is in a last drain, or zero; and how many registrations it has made in that drain.
    static LATE_HERE: Cell<(usize, usize)> = Cell::new((0, 0));
}

#[inline]
fn late_here() -> Option<usize> {
    let (epoch, late) = LATE_HERE.with(Cell::get);
    (epoch != 0 && epoch == raw::epoch()).then_some(late)
}

fn set_late_here(late: Option<usize>) {
    LATE_HERE.with(|here| here.set(late.map_or((0, 0), |late| (raw::epoch(), late))));
}

/// Counts the registrations that this thread makes until the guard is dropped, if it does not do so already.
fn count_late() -> impl Drop {
    let before = late_here();
    set_late_here(before.or(Some(0)));
    scopeguard::guard(before, |before| {
        if before.is_none() {
            set_late_here(None);
        }
    })
}

/// Makes this interpreter, or none, the current one on this thread.
fn set_current(node: Option<Arc<dyn Node>>) -> Option<Arc<dyn Node>> {
    CURRENT.with(|current| ManuallyDrop::into_inner(current.replace(ManuallyDrop::new(node))))
}

/// The interpreter that is current on this thread.
pub(crate) fn current() -> Option<Arc<dyn Node>> {
    let current = set_current(None);
    set_current(current.clone());
    current
}

/// Makes this interpreter, or none, the current one on this thread until the guard is dropped.
pub(crate) fn enter(node: Option<Arc<dyn Node>>) -> impl Drop {
    scopeguard::guard(set_current(node), |before| drop(set_current(before)))
}

impl Drop for SharedExitStack {
    fn drop(&mut self) {
        if self.state.look(State::is_idle) == Some(false) {
            self.drain_untold(Occasion::Drop);
            self.report_refused();
        }
    }
}

impl Default for SharedExitStack {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SharedExitStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedExitStack").field("pending", &self.pending()).finish()
    }
}
