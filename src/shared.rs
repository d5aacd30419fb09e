//! A stack between threads: [`SharedExitStack`], and the protocol by which it and the stacks nested in it drain.
//!
//! 1. No lock is held while user code runs: handlers, the drop of what they capture, `==`, the report hook. What is
//!    taken out of a list is dropped after the lock was released.
//! 2. At most one stack's lock is held at a time, but for a `fork`, which takes them all, and for a stack that is nested
//!    anew, which nobody else knows yet; outer ones first.
//! 3. `State::drain` is `Some` while a drain of this stack runs. Its owner, or a thread for which the owner waits
//!    (invariant 4 of `waits`), takes entries out to run them. Its owner ends it, in the same critical section that found
//!    the lists empty: what was registered before that ran, what is registered after that waits for the next drain.
//! 4. What a drain gathered is kept in `State::drain`, not in the owner's frame: a handler that calls C `exit` never
//!    returns to that frame. The drains that a thread has begun in the tree of interpreters are linked, the innermost in
//!    `INNERMOST`, each other one in the `outer` of the next: the way out goes on with them in this order.
//! 5. A nested stack stays in its parent's `nested` until it is settled: over, without a drain, and with nothing nested
//!    in it. Its place among the parent's handlers is its id.
//! 6. Once `State::phase` is `Over` it stays so, and `handlers` stays empty.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::mem::{self, ManuallyDrop};
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use crate::drain::{Note, Source, discard, drain, drop_all, drop_counted, report_if, run_one, status_of};
use crate::error::{CloseError, Gathered, Handed, HandlerError, HandlerErrorKind, Outcome, Refused, Site, joined};
use crate::handler::{IntoHandler, PendingHandler, SharedEntry, identity};
use crate::list::{Found, HandlerId, HandlerList, Storage};
use crate::raw::{self, Bound, Closure};
use crate::report::report;
use crate::sync::{Lock, MutexGuard, const_fn, per_thread};
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
/// # Elsewhere
///
/// A stack that is dropped drains, and hands its failures to the [report hook](crate::report). In a `static` it is
/// never dropped: the [process stack](crate::process_stack) is the one that drains when the process ends. A handler that
/// calls C's `exit` never returns to the drain it is in; of the stacks, only the process stack and the interpreters are
/// gone on with. A forked
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
    /// The process. `arm` sets up what drains it at the end, and says whether that worked; `stack` is this very one.
    Process { arm: fn() -> bool, stack: fn() -> &'static SharedExitStack },
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

    /// Its place there, once it got one.
    fn place(&self) -> &OnceLock<HandlerId>;

    /// Its names from the root, `process > plugin-a > db`.
    fn path(&self) -> String;

    /// Has the number of its refusals reported at the process's end, if not before.
    fn count_refusals(self: Arc<Self>);

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

pub(crate) struct State {
    handlers: HandlerList<SharedEntry>,
    nested: HandlerList<Nested>,
    drain: Option<Drain>,
    phase: Phase,
    /// The epoch in which nothing stands in the way of a registration: the phase is `Open`, and `armed`. Zero if there is
    /// anything to be looked at first.
    ready: u64,
    /// What drains the stack at the process's end has been set up.
    armed: bool,
    refused: Option<Refusals>,
    /// Interpreters that have refused more than one, to be reported with this stack's own refusals.
    refusing: Vec<Weak<dyn Node>>,
    /// The exit status that handlers have asked for in drains which the way out of the process went on with.
    status: Option<i32>,
    /// The thread that is to leave the process, once the drain is over; the others are not to disturb it.
    leaver: Option<ThreadKey>,
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

/// An interpreter in its parent's list.
struct Nested {
    node: Arc<dyn Node>,
    /// The thread that has run, in the parent's drain, all that was in it; what is left is a handler of it that this very
    /// thread is in, or that waits for this thread.
    passed: Option<ThreadKey>,
}

/// A drain that runs.
struct Drain {
    owner: ThreadKey,
    /// The drain in which its owner began this one.
    outer: Option<Begun>,
    gathered: Option<Box<Gathered>>,
    /// What of it the drain around this one has.
    handed: Handed,
    /// Failures go to the report hook as they happen.
    reports: bool,
    /// Where others wait for its end.
    waiters: Vec<Arc<Waiter>>,
}

impl Drain {
    /// Lets failures go to the report hook from now on; returns those that have not, and are not the drain's around.
    fn report_all(&mut self) -> Vec<HandlerError> {
        let all = mem::replace(&mut self.reports, true);
        let gathered = self.gathered.as_ref().filter(|_| !all);
        gathered.map_or(Vec::new(), |gathered| gathered.new_since(self.handed).0.to_vec())
    }

    /// A place to wait for its end.
    fn waiter(&mut self) -> Arc<Waiter> {
        self.waiters.retain(|waiter| Arc::strong_count(waiter) > 1);
        let waiter = Arc::<Waiter>::default();
        self.waiters.push(Arc::clone(&waiter));
        waiter
    }
}

enum Phase {
    Open,
    /// Draining for the last time, or asked to: so many were registered since.
    Last {
        late: Late,
        reopen: bool,
    },
    /// Nothing is taken any more.
    Over,
}

/// How many registrations were taken in a last drain, those with interpreters that were made meanwhile included: they
/// would be a way round the limit.
enum Late {
    Own(usize),
    /// Its own, and that of interpreters too.
    Lent(Arc<AtomicUsize>),
    /// That of the drain in which this stack was made.
    Borrowed(Arc<AtomicUsize>),
}

impl Late {
    /// What a shared count is set to when there is no limit any more.
    const NO_LIMIT: usize = usize::MAX;

    fn admits(&mut self) -> bool {
        let one_more = |taken| match taken {
            Self::NO_LIMIT => Some(taken),
            ..LATE => Some(taken + 1),
            _ => None,
        };
        match self {
            Self::Own(taken) => one_more(*taken).map(|more| *taken = more).is_some(),
            Self::Lent(taken) | Self::Borrowed(taken) => {
                taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
            }
        }
    }

    fn lend(&mut self) -> Self {
        let taken = match self {
            Self::Own(taken) => Arc::new(AtomicUsize::new(*taken)),
            Self::Lent(taken) => Arc::clone(taken),
            Self::Borrowed(taken) => return Self::Borrowed(Arc::clone(taken)),
        };
        *self = Self::Lent(Arc::clone(&taken));
        Self::Borrowed(taken)
    }

    /// The drain whose count it is is over.
    fn lift(&self) {
        if let Self::Lent(taken) = self {
            taken.store(Self::NO_LIMIT, Ordering::Relaxed);
        }
    }

    fn is_lifted(&self) -> bool {
        matches!(self, Self::Borrowed(taken) if taken.load(Ordering::Relaxed) == Self::NO_LIMIT)
    }
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

    /// Whether nothing of the stack is to be left.
    fn is_for_good(self) -> bool {
        matches!(self, Self::Finalize | Self::Abandon | Self::Exit)
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
    /// This thread is inside of it already.
    Inside,
    /// Another thread runs it; wait there for its end.
    Elsewhere(ThreadKey, Arc<Waiter>),
    /// There is nothing to drain any more.
    Over,
}

/// What [`SharedExitStack::step`] answers.
enum Step {
    Run,
    Nested(HandlerId, Arc<dyn Node>),
    /// The lists are empty.
    Done(Done),
}

/// What is to be done when a stack's lists are empty.
struct Done {
    drained: Drained,
    /// Who waits for the end of the drain; none if it has not come to its end, for a handler still runs in it.
    waiters: Vec<Arc<Waiter>>,
    /// What the thread-locals held of the drain that ended, to be dropped where no lock is held.
    ended: [Option<Begun>; 2],
    /// What the list of handlers had for more of them, to be freed there too.
    storage: Storage<SharedEntry>,
    settled: bool,
}

impl State {
    const fn new(armed: bool) -> Self {
        Self {
            handlers: HandlerList::new(),
            nested: HandlerList::new(),
            drain: None,
            phase: Phase::Open,
            ready: 0,
            armed,
            refused: None,
            refusing: Vec::new(),
            status: None,
            leaver: None,
            epoch: 0,
            inherited: None,
        }
    }

    /// Whether one more registration is taken.
    #[inline]
    fn admits(&mut self) -> bool {
        match &mut self.phase {
            Phase::Open => true,
            Phase::Last { late, .. } => late.admits(),
            Phase::Over => false,
        }
    }

    /// Whether nothing is left of it, nor will be.
    fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Over) && self.drain.is_none() && self.nested.is_empty()
    }

    /// Brings the state up to date with a fork: in the child, what the parent registered steps aside, and a drain that
    /// another thread ran is no more.
    #[cold]
    fn forked(&mut self, epoch: u64) {
        let first = mem::replace(&mut self.epoch, epoch) == 0;
        if first {
            return;
        }
        let mut parents = self.handlers.take();
        match &mut self.inherited {
            Some(inherited) => inherited.append(&mut parents),
            None if parents.is_empty() => {}
            None => self.inherited = Some(Box::leak(Box::new(parents))),
        }
        self.refused = None;
        self.refusing.clear();
        self.status = None;
        self.leaver = None;
        if let Some(lost) = self.drain.take_if(|drain| drain.owner != ThreadKey::current()) {
            mem::forget(lost);
            self.reopen();
        }
        if let Some(drain) = &mut self.drain {
            drain.waiters.clear();
            // The parent's to be told, and to drop.
            mem::forget(drain.gathered.take());
            drain.handed = Handed::default();
        }
    }

    /// What counts the registrations in its last drain, if it is in that, for interpreters that are made meanwhile.
    fn late(&mut self) -> Option<Late> {
        match &mut self.phase {
            Phase::Last { late, .. } => Some(late.lend()),
            Phase::Open | Phase::Over => None,
        }
    }

    /// Lets a stack go on after its last drain, with all that was made in it meanwhile.
    fn reopen(&mut self) {
        if let Phase::Last { late, .. } = &self.phase {
            late.lift();
            self.phase = Phase::Open;
        }
    }

    /// Lets a stack that was made in a last drain go by itself, if that drain is over.
    fn let_go(&mut self) {
        match &mut self.phase {
            Phase::Last { late, reopen: true } if late.is_lifted() => self.phase = Phase::Open,
            Phase::Last { late, reopen: false } if late.is_lifted() => *late = Late::Own(0),
            Phase::Open | Phase::Last { .. } | Phase::Over => {}
        }
    }

    fn adopt(&mut self) {
        if let Some(inherited) = self.inherited.take() {
            let mut own = mem::replace(&mut self.handlers, mem::take(inherited));
            self.handlers.append(&mut own);
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
        pub(crate) const fn of_process(arm: fn() -> bool, stack: fn() -> &'static SharedExitStack) -> Self {
            Self { state: Lock::new(State::new(false)), owner: Owner::Process { arm, stack } }
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

    /// The number of this process, as far as it matters to this stack.
    #[inline]
    fn epoch(&self) -> u64 {
        if matches!(self.owner, Owner::User) { 1 } else { raw::epoch() }
    }

    /// Locks the state for a registration, if the stack takes one.
    #[inline]
    fn lock_to_admit(&self) -> Option<MutexGuard<'_, State>> {
        let state = self.state.lock();
        if state.ready == self.epoch() && !state.handlers.is_full() {
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
        state.let_go();
        if matches!(state.phase, Phase::Open) {
            state.ready = self.epoch();
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

    #[cold]
    fn arm(&self) -> Option<MutexGuard<'_, State>> {
        if let Owner::Process { arm, .. } = self.owner {
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
        self.admit(handler, location).unwrap_or_else(|handler| self.refuse(handler, location))
    }

    #[cold]
    fn refuse<H: IntoHandler>(&self, mut handler: H, location: &'static Location<'static>) -> HandlerId {
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
                if let Some(refused) = &mut self.lock().refused {
                    refused.path.clone_from(&path);
                }
                let site = Site { name: handler.take_name(), location };
                report(&HandlerError::new(path, site, HandlerErrorKind::Refused));
            }
            Some(0) => self.node().into_iter().for_each(Node::count_refusals),
            Some(_) => {}
        }
        HandlerId::unknown()
    }

    /// Has the refusals of this interpreter reported with the stack's own.
    pub(crate) fn count_refusals_of(&self, node: &Arc<dyn Node>) {
        let mut state = self.lock();
        state.refusing.retain(|node| node.strong_count() > 0);
        state.refusing.push(Arc::downgrade(node));
    }

    /// Reports the refusals that were only counted.
    pub(crate) fn report_refused(&self) {
        let (refused, refusing) = {
            let mut state = self.lock();
            (state.refused.take(), mem::take(&mut state.refusing))
        };
        if let Some(Refusals { first, path, more: more @ 1.. }) = refused {
            report(&HandlerError::more_refused(path, first, more));
        }
        for node in refusing.iter().filter_map(Weak::upgrade) {
            node.stack().report_refused();
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
    #[must_use = "it tells whether the handler failed"]
    pub fn run_now(&self, id: HandlerId) -> Option<Result<(), CloseError>> {
        let entry = self.take_out(id)?;
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
        self.lock().handlers.iter().rev().map(|(id, entry)| entry.pending(id)).collect()
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
        let who = if occasion == Occasion::Exit { Who::Drain } else { Who::Closer };
        let mut before = Ok(());
        loop {
            let then = match self.claim(occasion) {
                Claim::Taken => self.descend(occasion),
                Claim::Elsewhere(owner, waiter) => match wait(owner, &waiter, who) {
                    Waited::Drained(drained) if occasion.is_for_good() => {
                        // It may have passed an interpreter in which a handler still runs.
                        before = joined(before, drained.result);
                        continue;
                    }
                    Waited::Drained(drained) => drained.result,
                    Waited::NotNeeded => Ok(()),
                    Waited::Inside => self.descend(occasion),
                },
                Claim::Inside | Claim::Over => Ok(()),
            };
            return joined(before, then);
        }
    }

    fn descend(&self, occasion: Occasion) -> Result<(), CloseError> {
        let _restored = self.make_current();
        let mut descent = Descent { root: self, depth: 0, top: None, running: None, occasion, result: Ok(()) };
        drain(&mut descent, Outcome::Success);
        descent.result
    }

    /// [`drain`](Self::drain) where nobody is told: what failed was reported. The exit status asked for.
    pub(crate) fn drain_untold(&self, occasion: Occasion) -> Option<i32> {
        status_of(self.drain(occasion))
    }

    /// Makes the drain of this stack this thread's, or says whose it is.
    fn claim(&self, occasion: Occasion) -> Claim {
        let me = ThreadKey::current();
        let mut state = self.lock();
        if state.is_settled() {
            return Claim::Over;
        }
        state.let_go();
        match &mut state.phase {
            Phase::Last { reopen, .. } => *reopen &= !occasion.is_last() || occasion == Occasion::Run,
            open @ Phase::Open if occasion.is_last() => {
                *open = Phase::Last { late: Late::Own(0), reopen: occasion == Occasion::Run };
                state.ready = 0;
            }
            Phase::Open | Phase::Over => {}
        }
        let Some(drain) = &mut state.drain else {
            let outer = self.begun().and_then(|this| set_innermost(Some(this)));
            let (handed, reports) = (Handed::default(), occasion.reports());
            state.drain = Some(Drain { owner: me, outer, gathered: None, handed, reports, waiters: Vec::new() });
            state.nested.newest_first().for_each(|nested| nested.passed = None);
            self.note_outermost(occasion);
            return Claim::Taken;
        };
        let claim = match occasion {
            _ if drain.owner != me => Claim::Elsewhere(drain.owner, drain.waiter()),
            Occasion::Exit => Claim::Taken,
            _ => Claim::Inside,
        };
        // Whoever is told what has failed may not live to tell it.
        let unreported = if occasion == Occasion::Exit { drain.report_all() } else { Vec::new() };
        drop(state);
        unreported.iter().for_each(report);
        discard(unreported);
        claim
    }

    /// What is next in the drain that this thread runs; a handler is put in the place of the one before, which has run.
    #[inline]
    fn step(&self, running: &mut Option<SharedEntry>) -> Step {
        let mut state = self.lock();
        if !state.nested.is_empty() {
            let me = Some(ThreadKey::current());
            let newest = state.nested.iter().rev().find(|(_, nested)| nested.passed != me);
            if let Some((id, nested)) = newest.filter(|(id, _)| Some(*id) > state.handlers.last_id()) {
                return Step::Nested(id, Arc::clone(&nested.node));
            }
        }
        state.handlers.pop_to(running);
        if running.is_some() { Step::Run } else { Step::Done(self.done(state)) }
    }

    /// The lists are empty.
    fn done(&self, mut state: MutexGuard<'_, State>) -> Done {
        let storage = state.handlers.release();
        match &state.phase {
            Phase::Last { late, reopen: false } => {
                late.lift();
                state.phase = Phase::Over;
            }
            Phase::Last { reopen: true, .. } if matches!(self.owner, Owner::Process { .. }) => state.reopen(),
            Phase::Last { .. } | Phase::Open | Phase::Over => {}
        }
        let in_tree = !matches!(self.owner, Owner::User);
        let ends = |drain: &mut Drain| drain.owner == ThreadKey::current() && (!in_tree || is_innermost(self));
        if let Some(drain) = state.drain.take_if(ends) {
            let ended = if in_tree { [set_innermost(drain.outer), self.take_outermost()] } else { [None, None] };
            let (result, reported) = (Gathered::into_result(drain.gathered), drain.reports);
            let drained = Drained { result, reported, handed: drain.handed };
            return Done { drained, waiters: drain.waiters, ended, storage, settled: state.is_settled() };
        }
        // A handler still runs in it, or a fork took the drain away under its owner.
        let mut drained = Drained { result: Ok(()), reported: true, handed: Handed::default() };
        if let Some(drain) = &mut state.drain {
            let all = drain.gathered.as_ref().map_or(Handed::default(), |gathered| gathered.all());
            let handed = mem::replace(&mut drain.handed, all);
            let (result, reported) = (Gathered::into_result(drain.gathered.clone()), drain.reports);
            drained = Drained { result, reported, handed };
        }
        Done { drained, waiters: Vec::new(), ended: [None, None], storage, settled: state.is_settled() }
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

    /// The interpreter whose stack this is.
    fn node(&self) -> Option<Arc<dyn Node>> {
        match &self.owner {
            Owner::User | Owner::Process { .. } => None,
            Owner::Interpreter(node) => node.upgrade(),
        }
    }

    /// This stack, as a drain that a thread has begun; none for a value, which the way out does not go on with.
    fn begun(&self) -> Option<Begun> {
        match &self.owner {
            Owner::User => None,
            Owner::Process { stack, .. } => Some(Begun::Process(*stack)),
            Owner::Interpreter(node) => node.upgrade().map(Begun::Interpreter),
        }
    }

    /// Notes that this thread has begun to drain this stack for the last time, if it is in no other such drain.
    fn note_outermost(&self, occasion: Occasion) {
        if occasion.is_last() && outermost().is_none() {
            set_outermost(self.begun());
        }
    }

    /// Notes that this thread's drain of this stack has ended.
    fn take_outermost(&self) -> Option<Begun> {
        outermost().filter(|begun| begun.is_of(self)).and_then(|_| set_outermost(None))
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
        // A handler may make it where this drain will come only later: it counts all the same.
        let mut late = outermost().and_then(|begun| begun.stack().lock().late());
        let Some(mut state) = self.lock_to_admit() else { return false };
        if let Some(own) = state.late() {
            late = Some(own);
        } else if !late.as_mut().is_none_or(Late::admits) {
            return false;
        }
        let id = state.handlers.next_id();
        node.place().get_or_init(|| id);
        if let Some(late) = late {
            node.stack().lock().phase = Phase::Last { late, reopen: true };
        }
        state.nested.push_as(id, Nested { node, passed: None });
        true
    }

    /// Takes an interpreter out; true if the stack is settled now.
    fn unnest(&self, id: HandlerId) -> bool {
        let mut state = self.lock();
        let node = state.nested.remove(id);
        let settled = node.is_some() && state.is_settled();
        drop(state);
        drop(node);
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
    }

    /// Whether this thread is inside a handler of this stack's drain, or of one nested in it.
    pub(crate) fn drains_here(&self) -> bool {
        self.lock().drain.as_ref().is_some_and(|drain| drain.owner == ThreadKey::current())
    }

    /// Whether it was drained for good.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.lock().phase, Phase::Over)
    }

    /// Whether it was drained for good, and no handler of an interpreter nested in it runs any more.
    pub(crate) fn is_settled(&self) -> bool {
        self.lock().is_settled()
    }

    /// Records an exit status with the drain that runs, and returns the one in which it was begun.
    pub(crate) fn ask_exit(&self, code: i32) -> Option<Begun> {
        self.gather(|gathered| gathered.get_or_insert_default().ask_exit(code));
        self.lock().drain.as_ref()?.outer.clone()
    }

    /// Keeps an exit status that handlers asked for, for whichever thread leaves the process.
    pub(crate) fn decide(&self, code: i32) {
        self.lock().status = Some(code);
    }

    /// The exit status that handlers asked for.
    pub(crate) fn decided(&self) -> Option<i32> {
        self.lock().status
    }

    /// Whether this thread is the first to ask: that is the one to leave the process.
    pub(crate) fn leaves_first(&self) -> bool {
        let me = ThreadKey::current();
        *self.lock().leaver.get_or_insert(me) == me
    }

    /// All interpreters nested in it, at any depth, outer ones first.
    pub(crate) fn descendants(&self) -> Vec<Arc<dyn Node>> {
        let children =
            |stack: &Self| stack.lock().nested.iter().map(|(_, nested)| Arc::clone(&nested.node)).collect::<Vec<_>>();
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
    state.nested.iter().map(|(_, nested)| &nested.node)
}

/// Whether a stack whose lock a fork holds drains for the last time, or has.
pub(crate) fn ends(state: &State) -> bool {
    matches!(state.phase, Phase::Over | Phase::Last { reopen: false, .. })
}

/// Brings a stack whose lock a fork holds up to date, in the child.
pub(crate) fn forked(state: &mut State) {
    state.forked(raw::epoch());
}

/// Takes an interpreter that is settled out of its parent's list; and that one out of its own, if it is settled now; and so
/// on.
fn detach(node: Arc<dyn Node>) {
    let mut settled = Some(node);
    while let Some(node) = settled {
        let outer_settled = node.place().get().is_some_and(|place| node.outer().unnest(*place));
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
    result: Result<(), CloseError>,
}

impl Descent<'_> {
    fn top(&self) -> &SharedExitStack {
        self.top.as_ref().map_or(self.root, |node| node.stack())
    }

    /// Begins to drain what is nested in the top, or waits for its end.
    #[cold]
    fn descend(&mut self, id: HandlerId, node: Arc<dyn Node>) {
        match node.stack().claim(self.occasion.for_nested()) {
            Claim::Taken | Claim::Inside => self.enter(node),
            Claim::Elsewhere(owner, waiter) => match wait(owner, &waiter, Who::Drain) {
                Waited::Drained(drained) => {
                    self.absorb(&drained);
                    discard((waiter, drained));
                }
                Waited::NotNeeded => {}
                Waited::Inside => self.enter(node),
            },
            Claim::Over => drop(self.top().unnest(id)),
        }
    }

    fn enter(&mut self, node: Arc<dyn Node>) {
        set_current(Some(Arc::clone(&node)));
        self.depth += 1;
        self.top = Some(node);
    }

    /// The top is drained: hands on what it gathered. False if it was the root.
    #[cold]
    fn ascend(&mut self, done: Done) -> bool {
        let node = self.top.take();
        let drained = done.drained;
        let own = node.clone().or_else(|| self.root.node());
        match &node {
            _ if done.settled => own.into_iter().for_each(detach),
            Some(node) => node.place().get().into_iter().for_each(|place| node.outer().pass(*place)),
            None => {}
        }
        for waiter in done.waiters {
            waiter.set(Some(drained.clone()));
        }
        drop((done.ended, done.storage));
        let Some(node) = node else {
            self.result = drained.result;
            return false;
        };
        self.depth -= 1;
        if self.depth > 0 {
            self.top = node.parent();
        }
        set_current(self.top.clone().or_else(|| self.root.node()));
        self.absorb(&drained);
        discard(drained);
        true
    }

    /// Adds what a nested drain gathered to what the top has gathered.
    fn absorb(&self, nested: &Drained) {
        let Err(error) = &nested.result else { return };
        let (errors, exit) = error.gathered().new_since(nested.handed);
        let reports = self.top().gather(|gathered| Gathered::absorb(gathered, errors, exit));
        if reports && !nested.reported {
            errors.iter().for_each(report);
        }
    }
}

impl Source<dyn Bound + Send> for Descent<'_> {
    #[inline]
    fn next(&mut self) -> Option<&mut SharedEntry> {
        loop {
            let top = self.top.as_ref().map_or(self.root, |node| node.stack());
            match top.step(&mut self.running) {
                Step::Run => return self.running.as_mut(),
                Step::Nested(id, node) => self.descend(id, node),
                Step::Done(done) => {
                    if !self.ascend(done) {
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

/// A drain in the tree of interpreters that a thread has begun.
#[derive(Clone)]
pub(crate) enum Begun {
    Process(fn() -> &'static SharedExitStack),
    Interpreter(Arc<dyn Node>),
}

impl Begun {
    pub(crate) fn stack(&self) -> &SharedExitStack {
        match self {
            Self::Process(stack) => stack(),
            Self::Interpreter(node) => node.stack(),
        }
    }

    /// Whether it is this stack's. (Does not ask for the process stack: loom has none left when it drops that.)
    fn is_of(&self, stack: &SharedExitStack) -> bool {
        match self {
            Self::Process(_) => matches!(stack.owner, Owner::Process { .. }),
            Self::Interpreter(node) => ptr::eq(node.stack(), stack),
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
    /// The drain that this thread has begun last.
    static INNERMOST: Cell<ManuallyDrop<Option<Begun>>> = Cell::new(ManuallyDrop::new(None));
}

per_thread! {
    /// The outermost drain that this thread has begun, of those that are the last of their stack.
    static OUTERMOST: Cell<ManuallyDrop<Option<Begun>>> = Cell::new(ManuallyDrop::new(None));
}

/// Forgets all drains that this thread has begun.
pub(crate) fn forget_begun() {
    drop([set_innermost(None), set_outermost(None)]);
}

fn set_innermost(begun: Option<Begun>) -> Option<Begun> {
    INNERMOST.with(|innermost| ManuallyDrop::into_inner(innermost.replace(ManuallyDrop::new(begun))))
}

/// The drain that this thread has begun last, of those that have not ended.
pub(crate) fn innermost() -> Option<Begun> {
    let begun = set_innermost(None);
    set_innermost(begun.clone());
    begun
}

fn set_outermost(begun: Option<Begun>) -> Option<Begun> {
    OUTERMOST.with(|outermost| ManuallyDrop::into_inner(outermost.replace(ManuallyDrop::new(begun))))
}

fn outermost() -> Option<Begun> {
    let begun = set_outermost(None);
    set_outermost(begun.clone());
    begun
}

/// Whether this stack's drain is the one that this thread has begun last.
pub(crate) fn is_innermost(stack: &SharedExitStack) -> bool {
    innermost().is_some_and(|begun| begun.is_of(stack))
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
        self.drain_untold(Occasion::Drop);
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
