//! The public methods of [`SharedExitStack`], the stack that threads share. How it works is in [`tree`](crate::tree).

use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use scopeguard::{ScopeGuard, guard};

use crate::error::{CloseError, Outcome, Refused};
use crate::handler::{IntoHandler, Only, PendingHandler, identity};
use crate::list::HandlerId;
use crate::panics::{discard, drop_all, drop_all_then};
use crate::raw::Task;
use crate::sync::const_fn;
use crate::tree::{Purpose, SharedExitStack};

impl SharedExitStack {
    const_fn! {
        /// Creates an empty stack. Does not allocate.
        ///
        /// ```
        /// static STACK: exitstack::SharedExitStack = exitstack::SharedExitStack::new();
        /// assert!(STACK.is_empty());
        /// ```
        pub const fn new() -> Self {
            Self::value()
        }
    }

    /// Registers a handler, which will run before all handlers that are registered already.
    ///
    /// **A stack that no longer accepts handlers drops the handler without running it.** This is the case for the stack
    /// of a finalized [interpreter](crate::Interpreter), and for the [process stack](crate::process_stack) after its
    /// last drain. The first such refusal is reported to the [report hook](crate::report), further ones are counted in
    /// one report at the stack's end, and the id returned is unknown to every stack. To get the handler back instead,
    /// use [`try_register`](Self::try_register).
    ///
    /// Amortized O(1): takes one lock and appends to a list.
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
        handler: impl Task + Send + 'static,
        location: &'static Location<'static>,
    ) -> HandlerId {
        self.admit(handler, location).unwrap_or_else(|refused| self.refuse(&refused))
    }

    /// Registers a handler that runs only if the work succeeded; otherwise it is dropped when its turn comes.
    ///
    /// **Only the stack's own [`close()`](Self::close) is success**, or [`close_with(Success)`](Self::close_with), or
    /// [`finalize()`](crate::Interpreter::finalize) of the interpreter that the stack belongs to. A stack that is
    /// drained in any other way counts as failed: by its parent, by the drop of its last handle, or by the end of the
    /// process. For a transaction, [`Interpreter::scope`](crate::Interpreter::scope) finalizes the interpreter at the
    /// right moment.
    ///
    /// **The [process stack](crate::process_stack) counts as failed only where the end is known to be bad**: where the
    /// body of [`run`](crate::run) panics or returns an `Err` or a status other than 0, and in
    /// [`exit(code)`](crate::exit) with any other `code` than 0. The status of a process that ends with
    /// `std::process::exit`, C's `exit` or a return from `main` is unknown, so these count as success.
    ///
    /// The outcome is that of the work: a handler that fails does not change it for the handlers below. A handler that
    /// is refused is treated as by [`register`](Self::register).
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// stack.on_success(|| println!("commit"));
    /// stack.on_failure(|| println!("roll back"));
    /// stack.close()?; // commits
    /// # Ok::<(), exitstack::CloseError>(())
    /// ```
    #[track_caller]
    pub fn on_success(&self, handler: impl IntoHandler + Send + 'static) -> HandlerId {
        self.register_at(Only::<_, true>(handler), Location::caller())
    }

    /// Registers a handler that runs only if the work failed; otherwise it is dropped when its turn comes.
    ///
    /// **It runs unless the stack's own [`close()`](Self::close) is reached**, as described at
    /// [`on_success`](Self::on_success).
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// stack.on_failure(|| println!("roll back"));
    /// drop(stack); // rolls back
    /// ```
    #[doc(alias = "rollback")]
    #[track_caller]
    pub fn on_failure(&self, handler: impl IntoHandler + Send + 'static) -> HandlerId {
        self.register_at(Only::<_, false>(handler), Location::caller())
    }

    /// Registers a handler as [`register`](Self::register) does, but hands back a handler that is refused.
    ///
    /// # Errors
    ///
    /// Returns [`Refused`], which holds the handler unchanged, if the stack no longer accepts handlers. Nothing is
    /// reported.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// let id = stack.try_register(|| println!("bye"))?;
    /// # stack.unregister(id);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn try_register<H: IntoHandler + Send + 'static>(&self, handler: H) -> Result<HandlerId, Refused<H>> {
        self.admit(handler, Location::caller())
    }

    /// Removes a handler and drops it without running it; returns false if it is not, or no longer, in this stack.
    ///
    /// An id of another stack is unknown to this one. O(log n), amortized.
    ///
    /// # Panics
    ///
    /// Panics if the drop of a capture panics. The handler is removed all the same.
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

    /// Removes every registration of this function and returns how many there were.
    ///
    /// Works like [`ExitStack::unregister_fn`](crate::ExitStack::unregister_fn).
    ///
    /// # Panics
    ///
    /// Panics if the drop of a key or of a zero-sized capture panics: every handler found is removed and dropped first,
    /// then the first panic is resumed.
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
        let identity = identity(&function);
        let found = self.take_out_if(|entry| entry.closure.function() == identity);
        let count = found.len();
        drop_all_then(found, [function]);
        count
    }

    /// Removes every handler with a key equal to this one and returns how many there were.
    ///
    /// The keys' own `==` is called while no lock is held, oldest first, and may use this stack freely. A handler that
    /// runs or is removed in the meantime does not count, and one that is registered in the meantime is not compared.
    /// (CPython held an index across the comparison, and crashed or missed entries.) Keys of different types are
    /// unequal. O(n).
    ///
    /// # Panics
    ///
    /// Panics if an `==` panics. Nothing is removed then.
    ///
    /// Panics if the drop of a capture panics: every handler found is removed and dropped first, then the first panic
    /// is resumed.
    ///
    /// ```
    /// use exitstack::{Handler, SharedExitStack};
    ///
    /// let stack = SharedExitStack::new();
    /// stack.register(Handler::new(|| println!("close")).keyed("session 7"));
    /// assert_eq!(stack.unregister_key(&"session 7"), 1);
    /// ```
    pub fn unregister_key<K: PartialEq + 'static>(&self, key: &K) -> usize {
        // A handler may be removed meanwhile, so any of these may be the last reference to its key.
        let keys = self.collect(|id, entry| Some((id, Arc::clone(entry.key_of::<K>()?))));
        let keys = guard(keys, |keys| keys.into_iter().for_each(discard)); // if an `==` panics
        let equal: Vec<HandlerId> = keys.iter().filter(|(_, own)| **own == *key).map(|(id, _)| *id).collect();
        let found = self.take_out_all(&equal);
        let count = found.len();
        let last = ScopeGuard::into_inner(keys).into_iter().filter_map(|(_, key)| Arc::into_inner(key));
        drop_all_then(found, last);
        count
    }

    /// Removes a handler and runs it now on this thread, out of turn; returns `None` if it is not, or no longer, in
    /// this stack.
    ///
    /// It does not wait for other threads. If a drain of the stack (by `close`, by the parent, or when the process
    /// exits) reaches the handler's position while it runs, that drain waits for it, and returns or reports its failure
    /// as well.
    ///
    /// # Errors
    ///
    /// Returns `Some(Err(_))` if the handler fails, panics or requests an exit status. It is removed all the same.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// let id = stack.register(|| println!("now"));
    /// assert!(stack.run_now(id).unwrap().is_ok());
    /// ```
    #[must_use = "the result says whether the handler failed"]
    pub fn run_now(&self, id: HandlerId) -> Option<Result<(), CloseError>> {
        self.run_out_of_turn(id)
    }

    /// Moves all handlers to a new stack without running them, and leaves this stack empty.
    ///
    /// **The new stack has to be closed like any other: if it is dropped without [`close()`](Self::close), it counts as
    /// failed.** The ids stay valid in the new stack, and only there. Interpreters that are nested in this stack stay
    /// here.
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

    /// Drops all handlers without running them, the newest first.
    ///
    /// Interpreters that are nested in this stack stay.
    ///
    /// # Panics
    ///
    /// Panics if the drop of a capture panics: every handler is removed and dropped first, then the first panic is
    /// resumed.
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

    /// Returns the number of pending handlers.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// stack.register(|| ());
    /// assert_eq!(stack.len(), 1);
    /// ```
    pub fn len(&self) -> usize {
        self.count()
    }

    /// Returns whether there are no pending handlers.
    ///
    /// ```
    /// assert!(exitstack::SharedExitStack::new().is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a list of the pending handlers, the next to run first.
    ///
    /// O(n); allocates the list. The stack is locked while its handlers are listed.
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

    /// Reserves room for `additional` more handlers, so that registering small ones does not allocate until the next
    /// drain or removal.
    ///
    /// # Panics
    ///
    /// Panics if the capacity overflows. The stack is unchanged then. If there is no memory, the process aborts, as
    /// with any collection.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// stack.reserve(100);
    /// ```
    pub fn reserve(&self, additional: usize) {
        self.make_room(additional);
    }

    /// Runs all handlers, the last registered first, until none is left, with success as the outcome.
    ///
    /// Interpreters nested in the stack are finalized at their positions. The stack can be used again afterwards.
    ///
    /// If another thread is draining the stack, the call waits for that drain and returns its result. It also waits for a
    /// handler that the other thread was in when it began to drain. From inside a handler of the drain, or if waiting would
    /// close a cycle, it returns `Ok(())` at once, and the drain continues with the handlers below.
    ///
    /// # Errors
    ///
    /// Returns an error if a handler failed, panicked, or requested an exit status with [`Exit`](crate::Exit). All
    /// handlers have run then, and nothing is printed.
    ///
    /// If the process exits before the call can return, because a handler or another thread calls `exit`, the failures of
    /// the process stack and of the interpreters nested in it are reported as well. **Those of a stack that is a value, or
    /// of a [detached](crate::Interpreter::detached) interpreter, are lost, and its other handlers do not run**, unless
    /// another `close()` resumes the drain on the way out.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// stack.register(|| Err("disk full"));
    /// assert!(stack.close().is_err());
    /// assert!(stack.close().is_ok());
    /// ```
    #[doc(alias = "dispose")]
    pub fn close(&self) -> Result<(), CloseError> {
        self.close_with(Outcome::Success)
    }

    /// Runs all handlers as [`close`](Self::close) does, with the given outcome of the work.
    ///
    /// The outcome decides which of the [`on_success`](Self::on_success) and [`on_failure`](Self::on_failure) handlers
    /// run; the others are dropped, each when its turn comes. If the stack is draining already, that drain keeps the
    /// outcome that it began with. Interpreters nested in the stack have failed: only their own
    /// [`finalize`](crate::Interpreter::finalize) says otherwise.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`close`](Self::close).
    ///
    /// ```
    /// use exitstack::{Outcome, SharedExitStack};
    ///
    /// let stack = SharedExitStack::new();
    /// stack.on_failure(|| println!("roll back"));
    /// stack.close_with(Outcome::Failure)?;
    /// # Ok::<(), exitstack::CloseError>(())
    /// ```
    pub fn close_with(&self, outcome: Outcome) -> Result<(), CloseError> {
        self.drain(Purpose::Close, outcome)
    }

    /// Takes over, in a forked child, the handlers that its parent process registered in this stack and in interpreters
    /// nested in it.
    ///
    /// Returns false if that is not possible for some stack, because another thread was in one of its methods at the
    /// fork, or because it no longer accepts handlers. The handlers of such a stack are neither run nor dropped in this
    /// process. For the process stack there is [`adopt_after_fork`](crate::adopt_after_fork), which describes when to
    /// use this.
    ///
    /// ```
    /// let stack = exitstack::SharedExitStack::new();
    /// assert!(stack.adopt_after_fork()); // does nothing in a process that was not forked
    /// ```
    pub fn adopt_after_fork(&self) -> bool {
        self.adopt()
    }
}

impl Drop for SharedExitStack {
    fn drop(&mut self) {
        if !self.is_idle() {
            self.drain_unattended(Purpose::Drop, Outcome::Failure);
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
