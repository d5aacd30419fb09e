//! Stacks that are local variables: [`ExitStack`].

use alloc::vec::Vec;
use core::fmt;
use core::mem;
use core::panic::Location;

use scopeguard::guard;

use crate::drain::{HandlerOutcome, Source, drain, run_one};
use crate::error::{CloseError, Failures, Outcome};
use crate::handler::{HandlerResult, IntoHandler, LocalEntry, Only, PendingHandler, identity};
use crate::list::{HandlerId, HandlerList, NewestFirst};
use crate::panics::{drop_all, drop_all_then};
use crate::raw::{Appendable, Bound};
use crate::report::report;

#[doc = include_str!("stack.md")]
#[doc(alias = "atexit")]
#[doc(alias = "defer")]
#[doc(alias = "cleanup")]
#[doc(alias = "scope guard")]
#[doc(alias = "finally")]
#[must_use = "a stack that is not bound to a name is dropped, and drained, at once; `let _ =` does not bind it"]
pub struct ExitStack<'a> {
    list: Appendable<'a>,
}

impl<'a> ExitStack<'a> {
    /// Creates an empty stack. Does not allocate.
    ///
    /// ```
    /// let stack = exitstack::ExitStack::new();
    /// assert!(stack.is_empty());
    /// ```
    #[inline]
    pub const fn new() -> Self {
        Self { list: Appendable::new() }
    }

    /// Registers a handler, which will run before all handlers that are registered already.
    ///
    /// Amortized O(1). A function that is registered twice runs twice, as with `atexit`.
    ///
    /// ```
    /// let stack = exitstack::ExitStack::new();
    /// stack.register(|| println!("bye"));
    /// ```
    #[doc(alias = "callback")]
    #[doc(alias = "push")]
    #[doc(alias = "defer")]
    #[inline]
    #[track_caller]
    pub fn register(&self, handler: impl IntoHandler + 'a) -> HandlerId {
        self.list.push(handler, Location::caller())
    }

    /// Registers a handler that runs only if the work succeeded; otherwise it is dropped when its turn comes.
    ///
    /// **Without [`close()`](Self::close) it does not run**: a stack that is dropped counts as failed, whatever led to
    /// the drop. Success is [`close()`](Self::close), [`close_with(Success)`](Self::close_with), or a [`scope`](crate::scope) whose
    /// body returns `Ok`.
    ///
    /// **The outcome is that of the work: a handler that fails does not change it for the handlers below.** If a commit
    /// can fail and then needs a rollback, commit in the work, not in a handler.
    ///
    /// ```
    /// use exitstack::ExitStack;
    ///
    /// fn transfer(amount: u32) -> Result<(), Box<dyn std::error::Error>> {
    ///     let mut stack = ExitStack::new();
    ///     stack.on_success(|| println!("commit"));
    ///     stack.on_failure(|| println!("roll back"));
    ///     if amount > 100 {
    ///         return Err("insufficient funds".into()); // the stack is dropped: rolls back
    ///     }
    ///     stack.close()?; // success: commits
    ///     Ok(())
    /// }
    /// # assert!(transfer(10).is_ok() && transfer(200).is_err());
    /// ```
    #[track_caller]
    pub fn on_success(&self, handler: impl IntoHandler + 'a) -> HandlerId {
        self.list.push(Only::<_, true>(handler), Location::caller())
    }

    /// Registers a handler that runs only if the work failed; otherwise it is dropped when its turn comes.
    ///
    /// **It runs unless [`close()`](Self::close) is reached**, as described at [`on_success`](Self::on_success).
    ///
    /// ```
    /// use exitstack::{ExitStack, Outcome};
    /// let mut rolled_back = false;
    /// let mut stack = ExitStack::new();
    /// stack.on_failure(|| rolled_back = true);
    /// stack.close_with(Outcome::Failure)?;
    /// drop(stack);
    /// assert!(rolled_back);
    /// # Ok::<(), exitstack::CloseError>(())
    /// ```
    #[doc(alias = "rollback")]
    #[track_caller]
    pub fn on_failure(&self, handler: impl IntoHandler + 'a) -> HandlerId {
        self.list.push(Only::<_, false>(handler), Location::caller())
    }

    /// Takes a value and lends it out until the stack drains, when the value is passed to `exit`.
    ///
    /// This is Python's `enter_context`: the function uses the resource, and the stack releases it. The value is stored
    /// in an allocation of its own. If the handler is removed without being run, the value is dropped.
    ///
    /// ```
    /// use exitstack::ExitStack;
    /// use std::fs::File;
    /// use std::io::Write;
    ///
    /// # let path = std::env::temp_dir().join(format!("exitstack-enter-{}", std::process::id()));
    /// let mut stack = ExitStack::new();
    /// let file = stack.enter(File::create(&path)?, |file| file.sync_all());
    /// stack.register(|| println!("written")); // more handlers can be registered while the file is in use
    /// writeln!(file, "hello")?;
    /// stack.close()?; // syncs the file, which cannot be used from here on
    /// # std::fs::remove_file(path)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "enter_context")]
    #[track_caller]
    pub fn enter<T: 'a, R: HandlerResult>(&self, value: T, exit: impl FnOnce(T) -> R + 'a) -> &mut T {
        self.list.enter(value, |value, _| exit(value), Location::caller())
    }

    /// Takes a value and lends it out until the stack drains, when the value is passed to `exit` together with the outcome
    /// of the work.
    ///
    /// This is [`enter`](Self::enter) for a resource that is either committed or rolled back, just as Python's
    /// `__exit__` learns whether the block has raised an exception. **Without [`close()`](Self::close) the outcome is
    /// failure**, as described at [`on_success`](Self::on_success); it is also failure in [`run_now`](Self::run_now).
    ///
    /// ```
    /// use exitstack::{CloseError, ExitStack, Outcome};
    ///
    /// # struct Transaction;
    /// # impl Transaction {
    /// #     fn insert(&mut self, _: u32) {}
    /// #     fn commit(self) -> Result<(), std::io::Error> { Ok(()) }
    /// #     fn roll_back(self) -> Result<(), std::io::Error> { unreachable!() }
    /// # }
    /// # fn begin() -> Transaction { Transaction }
    /// let mut stack = ExitStack::new();
    /// let transaction = stack.enter_with(begin(), |transaction, outcome| match outcome {
    ///     Outcome::Success => transaction.commit(),
    ///     Outcome::Failure => transaction.roll_back(),
    /// });
    /// transaction.insert(7); // a `?` or a panic from here on rolls back
    /// stack.close()?; // commits
    /// # Ok::<(), CloseError>(())
    /// ```
    #[doc(alias = "__exit__")]
    #[track_caller]
    pub fn enter_with<T: 'a, R: HandlerResult>(&self, value: T, exit: impl FnOnce(T, Outcome) -> R + 'a) -> &mut T {
        self.list.enter(value, exit, Location::caller())
    }

    /// Removes a handler and drops it without running it; returns false if it is not, or no longer, in this stack.
    ///
    /// O(log n), amortized.
    ///
    /// # Panics
    ///
    /// Panics if the drop of a capture panics. The handler is removed all the same.
    ///
    /// ```
    /// let mut stack = exitstack::ExitStack::new();
    /// let id = stack.register(|| panic!("not run"));
    /// assert!(stack.unregister(id));
    /// ```
    #[doc(alias = "cancel")]
    pub fn unregister(&mut self, id: HandlerId) -> bool {
        self.list.get_mut().remove(id).is_some()
    }

    /// Removes every registration of this function and returns how many there were.
    ///
    /// Works like `atexit.unregister`, for functions and closures without captures, whose type is their identity. For
    /// function pointers and closures with captures, which have no such identity, this does not compile: use a
    /// [key](crate::Handler::keyed). O(n).
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
    /// let mut stack = exitstack::ExitStack::new();
    /// stack.register(goodbye);
    /// stack.register(goodbye);
    /// assert_eq!(stack.unregister_fn(goodbye), 2);
    /// assert_eq!(stack.unregister_fn(goodbye), 0);
    /// ```
    pub fn unregister_fn<F: FnOnce() -> R, R>(&mut self, function: F) -> usize {
        let identity = identity(&function);
        let found = self.list.get_mut().find_and_remove(|entry| entry.closure.function() == identity);
        let count = found.len();
        drop_all_then(found, [function]);
        count
    }

    /// Removes every handler with a key equal to this one and returns how many there were.
    ///
    /// Compares with the keys' own `==`, oldest first; keys of different types are unequal. O(n).
    ///
    /// # Panics
    ///
    /// Panics if an `==` panics. Nothing is removed then, whereas CPython has removed the equal ones found so far.
    ///
    /// Panics if the drop of a capture panics: every handler found is removed and dropped first, then the first panic
    /// is resumed.
    ///
    /// ```
    /// use exitstack::{ExitStack, Handler};
    ///
    /// let mut stack = ExitStack::new();
    /// stack.register(Handler::new(|| println!("remove a")).keyed("a.tmp"));
    /// stack.register(Handler::new(|| println!("remove b")).keyed("b.tmp"));
    /// assert_eq!(stack.unregister_key(&"a.tmp"), 1);
    /// ```
    pub fn unregister_key<K: PartialEq + 'static>(&mut self, key: &K) -> usize {
        let found = self.list.get_mut().find_and_remove(|entry| entry.has_key(key));
        let count = found.len();
        drop_all(found);
        count
    }

    /// Removes a handler and runs it now, out of turn and whatever outcome it is for; returns `None` if it is not, or
    /// no longer, in this stack.
    ///
    /// # Errors
    ///
    /// Returns `Some(Err(_))` if the handler fails, panics or requests an exit status. It is removed all the same.
    ///
    /// ```
    /// let mut stack = exitstack::ExitStack::new();
    /// let id = stack.register(|| println!("now"));
    /// assert!(stack.run_now(id).unwrap().is_ok());
    /// assert!(stack.run_now(id).is_none());
    /// ```
    #[must_use = "the result says whether the handler failed"]
    pub fn run_now(&mut self, id: HandlerId) -> Option<Result<(), CloseError>> {
        let entry = self.list.get_mut().remove(id)?;
        Some(run_one(entry, || None))
    }

    /// Moves all handlers to a new stack without running them, and leaves this stack empty.
    ///
    /// **The new stack has to be closed like any other: if it is dropped without [`close()`](Self::close), it counts as
    /// failed.** The ids stay valid in the new stack, and only there.
    ///
    /// This is the usual end of a function that must undo its steps unless all of them succeed:
    ///
    /// ```
    /// use exitstack::ExitStack;
    ///
    /// fn open_all<'a>() -> Result<ExitStack<'a>, std::io::Error> {
    ///     let mut stack = ExitStack::new();
    ///     stack.register(|| println!("close first")); // a `?` from here on closes what was opened
    ///     stack.register(|| println!("close second"));
    ///     Ok(stack.pop_all())
    /// }
    /// # open_all()?.clear();
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[doc(alias = "take")]
    #[doc(alias = "move")]
    pub fn pop_all(&mut self) -> ExitStack<'a> {
        mem::take(self)
    }

    /// Drops all handlers without running them, the newest first.
    ///
    /// # Panics
    ///
    /// Panics if the drop of a capture panics: every handler is dropped first, then the first panic is resumed. The
    /// stack is empty then.
    ///
    /// ```
    /// let mut stack = exitstack::ExitStack::new();
    /// stack.register(|| unreachable!());
    /// stack.clear();
    /// ```
    #[doc(alias = "dismiss")]
    #[doc(alias = "disarm")]
    pub fn clear(&mut self) {
        drop_all(mem::take(self).list.get_mut().clear().into_iter().rev());
    }

    /// Returns the number of pending handlers.
    ///
    /// ```
    /// let stack = exitstack::ExitStack::new();
    /// stack.register(|| ());
    /// assert_eq!(stack.len(), 1);
    /// # drop(stack);
    /// ```
    pub fn len(&self) -> usize {
        self.list.read(HandlerList::len)
    }

    /// Returns whether there are no pending handlers.
    ///
    /// ```
    /// assert!(exitstack::ExitStack::new().is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.list.read(HandlerList::is_empty)
    }

    /// Returns a list of the pending handlers, the next to run first.
    ///
    /// O(n); allocates the list.
    ///
    /// ```
    /// use exitstack::{ExitStack, Handler};
    /// let stack = ExitStack::new();
    /// stack.register(Handler::new(|| ()).named("flush log"));
    /// for handler in stack.pending() {
    ///     println!("{:?}, registered at {}", handler.name(), handler.location());
    /// }
    /// ```
    pub fn pending(&self) -> Vec<PendingHandler> {
        let mut pending = Vec::new();
        // The list is not borrowed while memory is allocated: the global allocator may register handlers itself.
        while pending.capacity() < self.len() {
            pending.reserve(self.len());
        }
        self.list.read(|list| pending.extend(list.iter().rev().map(|(id, entry)| entry.pending(id))));
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
    /// let stack = exitstack::ExitStack::new();
    /// stack.reserve(100);
    /// ```
    pub fn reserve(&self, additional: usize) {
        self.list.reserve(additional);
    }

    /// Runs all handlers, the last registered first, with success as the outcome.
    ///
    /// Reaching this call is what success means: [`on_success`](Self::on_success) handlers run here, and not in a drop.
    /// The stack is empty afterwards, and can be used again.
    ///
    /// # Errors
    ///
    /// Returns an error if a handler failed, panicked, or requested an exit status with [`Exit`](crate::Exit). All
    /// handlers have run then, and nothing is printed. If a handler ends the process, those below it do not run, and
    /// failures so far are lost.
    ///
    /// ```
    /// let mut stack = exitstack::ExitStack::new();
    /// stack.register(|| Err("disk full"));
    /// let error = stack.close().unwrap_err();
    /// assert!(format!("{error:#}").ends_with("failed: disk full"));
    /// assert!(stack.close().is_ok());
    /// ```
    #[doc(alias = "dispose")]
    #[doc(alias = "finish")]
    pub fn close(&mut self) -> Result<(), CloseError> {
        self.close_with(Outcome::Success)
    }

    /// Runs all handlers, the last registered first, with the given outcome of the work.
    ///
    /// The outcome decides which of the [`on_success`](Self::on_success) and [`on_failure`](Self::on_failure) handlers
    /// run. The others are dropped, each when its turn comes.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`close`](Self::close).
    ///
    /// ```
    /// use exitstack::{ExitStack, Outcome};
    /// let mut stack = ExitStack::new();
    /// stack.on_failure(|| println!("rolling back"));
    /// stack.close_with(Outcome::Failure)?;
    /// # Ok::<(), exitstack::CloseError>(())
    /// ```
    pub fn close_with(&mut self, outcome: Outcome) -> Result<(), CloseError> {
        let mut failures = Failures::default();
        self.drain(outcome, Some(&mut failures));
        failures.into_result()
    }

    /// Drains the stack. Failures are added to `failures`, or reported if that is `None`.
    #[inline(never)]
    fn drain(&mut self, outcome: Outcome, failures: Option<&mut Failures>) {
        // Emptied also if a panic that cannot be caught goes on.
        let mut list = guard(self.list.get_mut(), HandlerList::forget_all);
        drain(&mut Local { entries: list.newest_first(), failures, outcome });
    }

    #[inline]
    fn drain_dropped(&mut self) {
        self.drain(Outcome::Failure, None); // nothing says that the work was done
    }
}

impl Drop for ExitStack<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.list.get_mut().is_bare() {
            self.drain_dropped();
        }
    }
}

impl Default for ExitStack<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ExitStack<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExitStack").field("pending", &self.pending()).finish()
    }
}

/// The entries of a local stack, as the source of a drain. They run in place: no handler can reach the stack that is
/// being drained.
struct Local<'l, 'a> {
    entries: NewestFirst<'l, LocalEntry<'a>>,
    failures: Option<&'l mut Failures>,
    outcome: Outcome,
}

impl<'a> Source<dyn Bound + 'a> for Local<'_, 'a> {
    type Work = Outcome;

    #[inline]
    fn next(&mut self) -> Option<(&mut LocalEntry<'a>, &Outcome)> {
        let entry = self.entries.next()?;
        Some((entry, &self.outcome))
    }

    // Only `failures` is borrowed by the cold function, so that the iterator can stay in registers.
    #[inline]
    fn note(&mut self, outcome: HandlerOutcome) {
        keep_or_report(outcome, self.failures.as_deref_mut());
    }

    fn unwinds(&mut self) {
        if let Some(Err(so_far)) = self.failures.take().map(|failures| mem::take(failures).into_result()) {
            so_far.iter().for_each(report);
        }
    }
}

/// Adds the outcome of a handler of a value to `failures`, or reports it if that is `None`.
#[cold]
pub(crate) fn keep_or_report(outcome: HandlerOutcome, failures: Option<&mut Failures>) {
    let (new, error) = outcome.into_failures(None);
    if let Some(failures) = failures {
        drop(failures.merge(new));
    } else {
        error.iter().for_each(report);
    }
}
