//! The public methods of [`SharedExitStack`], the stack for several threads. How it works is in [`tree`](crate::tree).

use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use crate::error::{CloseError, Outcome, Refused};
use crate::handler::{IntoHandler, PendingHandler, identity};
use crate::list::HandlerId;
use crate::panics::drop_all;
use crate::sync::const_fn;
use crate::tree::{Purpose, SharedExitStack};

impl SharedExitStack {
    const_fn! {
        /// An empty stack. Allocates nothing.
        ///
        /// ```
        /// static STACK: exitstack::SharedExitStack = exitstack::SharedExitStack::new();
        /// assert!(STACK.is_empty());
        /// ```
        pub const fn new() -> Self {
            Self::value()
        }
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
        let found = self.take_out_if(|entry| entry.closure.function() == identity);
        let count = found.len();
        drop_all(found);
        count
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
        let keys = self.collect(|id, entry| Some((id, Arc::clone(entry.key_of::<K>()?))));
        let equal: Vec<HandlerId> = keys.into_iter().filter(|(_, own)| **own == *key).map(|(id, _)| id).collect();
        let found = self.take_out_all(&equal);
        let count = found.len();
        drop_all(found);
        count
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
        self.run_out_of_turn(id)
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
        let moved = Self::new();
        moved.fill(self.take_all());
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
        let entries = self.take_all().clear();
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
        self.count()
    }

    /// Whether none does.
    ///
    /// ```
    /// assert!(exitstack::SharedExitStack::new().is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lists the handlers that wait, the next to run first. O(n), allocates the list; the stack is locked meanwhile.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// stack.register(|| ());
    /// println!("registered at {}", stack.pending()[0].location());
    /// ```
    pub fn pending(&self) -> Vec<PendingHandler> {
        let mut pending = self.collect(|id, entry| Some(entry.pending(id)));
        pending.reverse();
        pending
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
        self.drain(Purpose::Close)
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
        self.adopt()
    }
}

impl Drop for SharedExitStack {
    fn drop(&mut self) {
        if !self.is_idle() {
            self.drain_unattended(Purpose::Drop);
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
