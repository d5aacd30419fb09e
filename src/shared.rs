//! A stack between threads: [`SharedExitStack`], and the protocol by which it and the stacks nested in it drain.
//!
//! 1. No lock is held while user code runs: handlers, the drop of what they capture, `==`, the report hook. What is
//!    taken out of a list is dropped after the lock was released.
//! 2. At most one stack's lock is held at a time (but for a `fork`, which takes them all, outer ones first).
//! 3. `State::drain` is `Some` while a drain of this stack runs; only its owner takes entries out to run them. It is
//!    cleared in the same critical section that found the lists empty: what was registered before that ran, what is
//!    registered after that waits for the next drain.
//! 4. What a drain gathered is kept in `State::drain`, not in the owner's frame: a handler that calls C `exit` never
//!    returns to that frame, and the drain is resumed from the hook.
//! 5. A nested stack stays in its parent's `nested` until it is drained for good, for the same reason. Its place among
//!    the parent's handlers is its id.
//! 6. Once `State::phase` is `Over` it stays so, and both lists stay empty.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::mem::{self, ManuallyDrop};
use std::panic::Location;
use std::sync::{Arc, Weak};

use crate::drain::{Note, Source, discard, drain, drop_all, drop_counted, report_if, run_one};
use crate::error::{CloseError, Gathered, HandlerError, HandlerErrorKind, Outcome, Refused, Site};
use crate::handler::{IntoHandler, PendingHandler, SharedEntry, identity};
use crate::list::{HandlerId, HandlerList};
use crate::raw::{self, Bound, Closure};
use crate::report::report;
use crate::sync::{Latch, Lock, MutexGuard, const_fn, per_thread};
use crate::waits::{Circle, Drained, ThreadKey, wait};

/// How many handlers a stack takes while it drains for the last time.
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
///   two handlers on two threads that close each other's stacks, the one that would close the circle).
/// - A handler registered meanwhile, by a handler or by another thread, runs next: as in C and `contextlib`, unlike
///   CPython's `atexit`, which accepts it and loses it. So handlers that register one another for ever keep `close()`
///   busy for ever.
/// - A handler unregistered meanwhile does not run.
/// - Nothing of the library is locked while a handler, the drop of a capture, a key's `==` or the report hook runs: each
///   may register, unregister, close or panic.
///
/// # Elsewhere
///
/// A stack that is dropped drains, and hands its failures to the [report hook](crate::report). In a `static` it is
/// never dropped: the [process stack](crate::process_stack) is the one that drains when the process ends. A forked
/// child has its own copy, like any value's (the process stack and interpreters are the exception).
#[doc(alias = "atexit")]
#[doc(alias = "cleanup")]
#[must_use = "a stack that is not bound to a name is dropped, and drained, at once"]
pub struct SharedExitStack {
    state: Lock<State>,
    owner: Owner,
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
pub(crate) trait Node: Any + Send + Sync {
    fn stack(&self) -> &SharedExitStack;

    /// Its names from the root, `process > plugin-a > db`.
    fn path(&self) -> String;

    /// Takes it out of its parent's list.
    fn detach(&self);

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

pub(crate) struct State {
    handlers: HandlerList<SharedEntry>,
    nested: HandlerList<Arc<dyn Node>>,
    drain: Option<Drain>,
    phase: Phase,
    /// What drains the stack at the process's end has been set up.
    armed: bool,
    refused: Option<Refusals>,
    /// In which process, counted by forks, this was last touched.
    epoch: u64,
    /// What this process's parent had registered: never run and never dropped here, hence leaked.
    inherited: Option<&'static mut HandlerList<SharedEntry>>,
}

/// Registrations that were refused.
struct Refusals {
    first: &'static Location<'static>,
    /// Whose stack it is, told while the owner is there to be asked.
    path: Option<String>,
    /// How many came after the first.
    more: usize,
}

/// A drain that runs.
struct Drain {
    owner: ThreadKey,
    gathered: Option<Box<Gathered>>,
    /// Failures go to the report hook as they happen.
    reports: bool,
    /// Where other closers wait for its end; made by the first of them.
    latch: Option<Arc<Latch<Drained>>>,
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
    /// The process exits on this thread: as `Abandon`; and a drain that this thread is in the middle of will never be
    /// gone back to, so it is resumed.
    Exit,
}

impl Occasion {
    /// Whether no more than [`LATE`] further registrations are taken.
    fn is_last(self) -> bool {
        !matches!(self, Self::Close | Self::Drop)
    }

    /// Whether failures go to the report hook.
    fn reports(self) -> bool {
        !matches!(self, Self::Close | Self::Finalize)
    }

    /// How what is nested in the stack drains.
    fn for_nested(self) -> Self {
        match self {
            Self::Close | Self::Finalize => Self::Finalize,
            Self::Drop | Self::Abandon | Self::Run => Self::Abandon,
            Self::Exit => Self::Exit,
        }
    }
}

/// What [`SharedExitStack::claim`] answers.
enum Claim {
    /// The drain is this thread's to run.
    Taken,
    /// Another thread runs it; wait there for its end.
    Elsewhere(ThreadKey, Arc<Latch<Drained>>),
    /// There is nothing to wait for: it is over, or this thread is inside of it.
    Nothing,
}

/// What [`SharedExitStack::step`] answers.
enum Step {
    Run(SharedEntry),
    Nested(HandlerId, Arc<dyn Node>),
    /// The lists are empty, the drain is over; `closed` if it was the last one.
    Done {
        drain: Option<Drain>,
        closed: bool,
    },
}

impl State {
    const fn new(armed: bool) -> Self {
        Self {
            handlers: HandlerList::new(),
            nested: HandlerList::new(),
            drain: None,
            phase: Phase::Open,
            armed,
            refused: None,
            epoch: 0,
            inherited: None,
        }
    }

    /// Whether one more registration is taken.
    #[inline]
    fn admits(&mut self) -> bool {
        match &mut self.phase {
            Phase::Open => true,
            Phase::Last { late, .. } => {
                *late += 1;
                *late <= LATE
            }
            Phase::Over => false,
        }
    }

    /// Brings the state up to date with a fork: in the child, what the parent registered steps aside, and a drain that
    /// another thread ran is no more.
    #[cold]
    fn forked(&mut self, epoch: u64) {
        let first = mem::replace(&mut self.epoch, epoch) == 0;
        if first {
            return;
        }
        let parents = mem::take(&mut self.handlers);
        match &mut self.inherited {
            Some(inherited) => inherited.append(parents),
            None if parents.is_empty() => {}
            None => self.inherited = Some(Box::leak(Box::new(parents))),
        }
        self.refused = None;
        if self.drain.as_ref().is_some_and(|drain| drain.owner != ThreadKey::current()) {
            self.drain = None;
        }
        if let Some(drain) = &mut self.drain {
            drain.latch = None;
        }
    }

    fn adopt(&mut self) {
        if let Some(inherited) = self.inherited.take() {
            let own = mem::replace(&mut self.handlers, mem::take(inherited));
            self.handlers.append(own);
        }
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
            Self { state: Lock::new(State::new(true)), owner: Owner::User }
        }
    }

    const_fn! {
        pub(crate) const fn of_process(arm: fn() -> bool) -> Self {
            Self { state: Lock::new(State::new(false)), owner: Owner::Process { arm } }
        }
    }

    pub(crate) fn of_interpreter(node: Weak<dyn Node>) -> Self {
        Self { state: Lock::new(State::new(true)), owner: Owner::Interpreter(node) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        if !matches!(self.owner, Owner::User) {
            let epoch = raw::epoch();
            if state.epoch != epoch {
                state.forked(epoch);
            }
        }
        state
    }

    /// Locks the state for a registration, if the stack takes one.
    #[inline]
    fn lock_to_admit(&self) -> Option<MutexGuard<'_, State>> {
        let mut state = self.lock();
        if !state.armed {
            drop(state);
            state = self.arm()?;
        }
        state.admits().then_some(state)
    }

    #[cold]
    fn arm(&self) -> Option<MutexGuard<'_, State>> {
        if let Owner::Process { arm } = self.owner {
            if !arm() {
                return None;
            }
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
        let closure = Closure::<dyn Bound + Send>::new_send(handler);
        Ok(state.handlers.push(SharedEntry { closure, location }))
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
        self.admit(handler, location).unwrap_or_else(|handler| self.refuse(handler, location))
    }

    #[cold]
    fn refuse<H: IntoHandler>(&self, mut handler: H, location: &'static Location<'static>) -> HandlerId {
        let is_first = {
            let mut state = self.lock();
            let more = state.refused.as_mut().map(|refused| refused.more += 1);
            more.is_none() && state.refused.insert(Refusals { first: location, path: None, more: 0 }).more == 0
        };
        if is_first {
            let path = self.path();
            if let Some(refused) = &mut self.lock().refused {
                refused.path.clone_from(&path);
            }
            let site = Site { name: handler.take_name(), location };
            report(&HandlerError::new(path, site, HandlerErrorKind::Refused));
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
        let entry = self.lock().handlers.remove(id);
        entry.is_some()
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
        let entries = self.lock().handlers.remove_if(|entry| entry.closure.function() == identity);
        drop_counted(entries)
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
        let keys: Vec<(HandlerId, Arc<K>)> = {
            let state = self.lock();
            let keyed = state.handlers.iter().filter_map(|(id, entry)| Some((id, Arc::clone(entry.key_of::<K>()?))));
            keyed.collect()
        };
        let equal: Vec<HandlerId> = keys.into_iter().filter(|(_, own)| **own == *key).map(|(id, _)| id).collect();
        let entries: Vec<_> = {
            let mut state = self.lock();
            equal.into_iter().filter_map(|id| state.handlers.remove(id)).collect()
        };
        drop_counted(entries)
    }

    /// Takes this handler out and runs it now on this thread, whatever its turn; `None` if it is not in this stack (any
    /// more).
    ///
    /// It is no drain: it neither waits for one nor makes one wait.
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
    pub fn run_now(&self, id: HandlerId) -> Option<Result<(), CloseError>> {
        let entry = self.lock().handlers.remove(id)?;
        let _restored = self.make_current();
        Some(run_one(entry, || self.path()))
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
        let handlers = mem::take(&mut self.lock().handlers);
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
        let entries = self.lock().handlers.clear();
        drop_all(entries.into_iter().rev());
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
        self.lock().handlers.iter().rev().map(|(id, entry)| entry.pending(id)).collect()
    }

    /// Makes room for this many more handlers, so that registering small ones allocates nothing.
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
        self.lock().handlers.reserve(additional);
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
    /// [`Exit`](crate::Exit). Nothing is printed.
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
        match self.claim(occasion) {
            Claim::Taken => {
                let _restored = self.make_current();
                let mut descent = Descent { root: self, below: Vec::new(), running: None, occasion, result: Ok(()) };
                drain(&mut descent, Outcome::Success);
                descent.result
            }
            Claim::Elsewhere(owner, latch) => {
                wait_for(owner, &latch, occasion).map_or(Ok(()), |drained| drained.result)
            }
            Claim::Nothing => Ok(()),
        }
    }

    /// Makes the drain of this stack this thread's, or says whose it is.
    fn claim(&self, occasion: Occasion) -> Claim {
        let me = ThreadKey::current();
        let mut state = self.lock();
        match &mut state.phase {
            Phase::Over => return Claim::Nothing,
            Phase::Last { reopen, .. } => *reopen &= !occasion.is_last() || occasion == Occasion::Run,
            open @ Phase::Open if occasion.is_last() => {
                *open = Phase::Last { late: 0, reopen: occasion == Occasion::Run };
            }
            Phase::Open => {}
        }
        let unreported = match &mut state.drain {
            None => {
                state.drain = Some(Drain { owner: me, gathered: None, reports: occasion.reports(), latch: None });
                return Claim::Taken;
            }
            Some(drain) if drain.owner != me => {
                return Claim::Elsewhere(drain.owner, Arc::clone(drain.latch.get_or_insert_default()));
            }
            Some(_) if occasion != Occasion::Exit => return Claim::Nothing,
            Some(drain) => {
                let reported = mem::replace(&mut drain.reports, true);
                let gathered = drain.gathered.as_ref().filter(|_| !reported);
                gathered.map_or(Vec::new(), |gathered| gathered.errors.clone())
            }
        };
        drop(state);
        unreported.iter().for_each(report);
        Claim::Taken
    }

    /// What is next in the drain that this thread runs.
    #[inline]
    fn step(&self) -> Step {
        let mut state = self.lock();
        if !state.nested.is_empty() {
            let newest = state.nested.iter().next_back();
            if let Some((id, node)) = newest.filter(|(id, _)| Some(*id) > state.handlers.last_id()) {
                return Step::Nested(id, Arc::clone(node));
            }
        }
        if let Some((_, entry)) = state.handlers.pop() {
            return Step::Run(entry);
        }
        match state.phase {
            Phase::Last { reopen: false, .. } => state.phase = Phase::Over,
            Phase::Last { reopen: true, .. } => state.phase = Phase::Open,
            Phase::Open | Phase::Over => {}
        }
        state.handlers.release();
        Step::Done { drain: state.drain.take(), closed: matches!(state.phase, Phase::Over) }
    }

    /// Adds to what the drain of this stack has gathered; true if it reports.
    fn gather(&self, add: impl FnOnce(&mut Option<Box<Gathered>>)) -> bool {
        let mut state = self.lock();
        let Some(drain) = &mut state.drain else {
            // A fork took the drain away under its owner: nobody will ask for its result.
            add(&mut None);
            return true;
        };
        add(&mut drain.gathered);
        drain.reports
    }

    /// The path of whom it belongs to.
    fn path(&self) -> Option<String> {
        match &self.owner {
            Owner::User => None,
            Owner::Process { .. } => Some("process".to_owned()),
            Owner::Interpreter(node) => node.upgrade().map(|node| node.path()),
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

    /// Puts an interpreter in at the place that a handler registered now would have; `None` if that is refused.
    pub(crate) fn nest(&self, node: Arc<dyn Node>) -> Option<HandlerId> {
        let mut state = self.lock_to_admit()?;
        let id = state.handlers.next_id();
        state.nested.push_as(id, node);
        Some(id)
    }

    /// Takes an interpreter out.
    pub(crate) fn unnest(&self, id: HandlerId) {
        let node = self.lock().nested.remove(id);
        drop(node);
    }

    /// Refuses all registrations from now on; for a stack that nobody else knows yet.
    pub(crate) fn refuse_all(&self) {
        self.lock().phase = Phase::Over;
    }

    /// Whether this thread is inside a handler of this stack's drain, or of one nested in it.
    pub(crate) fn drains_here(&self) -> bool {
        self.lock().drain.as_ref().is_some_and(|drain| drain.owner == ThreadKey::current())
    }

    /// Records an exit status with the drain that runs.
    pub(crate) fn ask_exit(&self, code: i32) {
        self.gather(|gathered| gathered.get_or_insert_default().exit_code = Some(code));
    }

    /// All interpreters nested in it, at any depth, outer ones first.
    pub(crate) fn descendants(&self) -> Vec<Arc<dyn Node>> {
        let children = |stack: &Self| stack.lock().nested.iter().map(|(_, node)| Arc::clone(node)).collect::<Vec<_>>();
        let mut found = children(self);
        let mut at = 0;
        while at < found.len() {
            let more = children(found[at].stack());
            found.extend(more);
            at += 1;
        }
        found
    }

    /// Takes over what the parent process registered.
    pub(crate) fn adopt(&self) {
        self.lock().adopt();
    }
}

/// The children of a stack whose lock a fork holds.
pub(crate) fn nested(state: &State) -> impl Iterator<Item = &Arc<dyn Node>> {
    state.nested.iter().map(|(_, node)| node)
}

/// Brings a stack whose lock a fork holds up to date, in the child.
pub(crate) fn forked(state: &mut State) {
    state.forked(raw::epoch());
}

fn wait_for(owner: ThreadKey, latch: &Arc<Latch<Drained>>, occasion: Occasion) -> Option<Drained> {
    wait(owner, latch, if occasion == Occasion::Exit { Circle::Break } else { Circle::GiveUp })
}

/// A drain of a stack and of all that is nested in it, at any depth, in one loop: `below` is the way down from `root`
/// to the stack that drains now.
struct Descent<'s> {
    root: &'s SharedExitStack,
    below: Vec<Arc<dyn Node>>,
    /// What runs.
    running: Option<SharedEntry>,
    occasion: Occasion,
    result: Result<(), CloseError>,
}

impl Descent<'_> {
    fn top(&self) -> &SharedExitStack {
        self.below.last().map_or(self.root, |node| node.stack())
    }

    /// Begins to drain what is nested in the top, or sees to its end.
    #[cold]
    fn descend(&mut self, id: HandlerId, node: Arc<dyn Node>) {
        let claim = node.stack().claim(self.occasion.for_nested());
        match claim {
            Claim::Taken => {
                set_current(Some(Arc::clone(&node)));
                self.below.push(node);
                return;
            }
            Claim::Elsewhere(owner, latch) => {
                if let Some(drained) = wait_for(owner, &latch, self.occasion) {
                    self.absorb(&drained);
                }
            }
            Claim::Nothing => {}
        }
        self.top().unnest(id);
    }

    /// The top is drained: hands on what it gathered. False if it was the root.
    #[cold]
    fn ascend(&mut self, drain: Option<Drain>, closed: bool) -> bool {
        let drain = drain.unwrap_or(Drain { owner: ThreadKey::current(), gathered: None, reports: true, latch: None });
        let drained = Drained { result: Gathered::into_result(drain.gathered), reported: drain.reports };
        let node = self.below.pop();
        match (&node, &self.root.owner) {
            (Some(node), _) => node.detach(),
            (None, Owner::Interpreter(root)) if closed => root.upgrade().iter().for_each(|root| root.detach()),
            _ => {}
        }
        if let Some(latch) = drain.latch {
            latch.set(drained.clone());
        }
        if node.is_none() {
            self.result = drained.result;
            return false;
        }
        set_current(match (self.below.last(), &self.root.owner) {
            (Some(node), _) => Some(Arc::clone(node)),
            (None, Owner::Interpreter(root)) => root.upgrade(),
            (None, _) => None,
        });
        self.absorb(&drained);
        true
    }

    /// Adds what a nested drain gathered to what the top has gathered.
    fn absorb(&self, nested: &Drained) {
        if let Err(error) = &nested.result {
            let reports = self.top().gather(|gathered| gathered.get_or_insert_default().absorb(error));
            if reports && !nested.reported {
                error.iter().for_each(report);
            }
        }
    }
}

impl Source<dyn Bound + Send> for Descent<'_> {
    #[inline]
    fn next(&mut self) -> Option<&mut SharedEntry> {
        loop {
            match self.top().step() {
                Step::Run(entry) => return Some(self.running.insert(entry)),
                Step::Nested(id, node) => self.descend(id, node),
                Step::Done { drain, closed } => {
                    if !self.ascend(drain, closed) {
                        return None;
                    }
                }
            }
        }
    }

    #[cold]
    fn note(&mut self, note: Note) {
        let top = self.top();
        let path = top.path();
        let mut error = None;
        if top.gather(|gathered| error = note.gather(gathered, || path)) {
            report_if(error);
        }
    }
}

per_thread! {
    /// The interpreter that is current on this thread. `ManuallyDrop` leaves the thread-local without a destructor, so
    /// that it can be asked also when those are over, as on the way out of the process; it is emptied by what filled it.
    static CURRENT: Cell<ManuallyDrop<Option<Arc<dyn Node>>>> = Cell::new(ManuallyDrop::new(None));
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
        // An error has nobody to return to: each was reported.
        discard(self.drain(Occasion::Drop));
        self.report_refused();
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
