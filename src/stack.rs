//! A stack as a value in a function: [`ExitStack`] and [`scope`].

use std::fmt;
use std::mem;
use std::panic::Location;

use crate::drain::{HandlerOutcome, Source, drain, run_one};
use crate::error::{CloseError, Failures, Outcome};
use crate::handler::{HandlerResult, IntoHandler, LocalEntry, Only, PendingHandler, identity};
use crate::list::{HandlerId, HandlerList, NewestFirst};
use crate::panics::{discard, drop_all};
use crate::raw::{Appendable, Bound};
use crate::report::report;

/// A stack of handlers that run when it is closed or dropped, the last registered first.
///
/// **It is a local variable: it does not run on `std::process::exit` or Ctrl-C**, nor on
/// [`exitstack::exit`](crate::exit), which drop no locals. What has to run on an `exit` belongs in the
/// [process stack](crate::process_stack) or in an [`Interpreter`](crate::Interpreter).
///
/// **A stack that is dropped without [`close()`](Self::close) has failed**: its [`on_failure`](Self::on_failure)
/// handlers run and its [`on_success`](Self::on_success) handlers do not, whether the drop comes from an early `?`, from a
/// panic, or because nobody closed it. So nothing is ever committed by accident.
///
/// ```
/// use exitstack::ExitStack;
/// use std::cell::RefCell;
///
/// let log = RefCell::new(Vec::new());
/// {
///     let stack = ExitStack::new();
///     stack.register(|| log.borrow_mut().push("opened first, closed last"));
///     stack.register(|| log.borrow_mut().push("opened last, closed first"));
/// }
/// assert_eq!(log.into_inner(), ["opened last, closed first", "opened first, closed last"]);
/// ```
///
/// # What it promises
///
/// - Strictly last-in, first-out. A handler leaves the stack *before* it is called: it runs at most once.
/// - Success means that [`close()`](Self::close) was reached, or [`close_with(Success)`](Self::close_with), or that the
///   body of a [`scope`] returned `Ok`. Every other end is a failure.
/// - Every handler runs: an `Err` or a panic never stops the ones below it. `close()` returns all failures, in the
///   order they happened. A drop has nobody to return them to and hands each to the [report hook](crate::report) at
///   the moment it happens; it never panics, also not during unwinding.
/// - A closed stack is empty and can be used again; closing it a second time is `Ok(())`.
/// - Handlers may borrow anything that outlives the stack, and need not be `Send`.
/// - Draining ten million handlers neither recurses nor allocates, unless a handler fails.
/// - A handler of up to three words (and of no more than a word's alignment) is stored without an allocation of its
///   own; the first four stand in the stack value.
/// - [`mem::forget`] of a stack leaks it and runs nothing; it is never unsound.
///
/// # Appending shares, everything else owns
///
/// Methods that append take `&self`; all that remove or run take `&mut self`. So a value that was
/// [entered](Self::enter) can be worked with while more is registered, and cannot be used after the stack was closed:
///
/// ```compile_fail,E0502
/// let mut stack = exitstack::ExitStack::new();
/// let text = stack.enter(String::from("open"), |text| drop(text));
/// stack.close();
/// text.push('!'); // error: `stack` was closed while `text` was borrowed from it
/// ```
///
/// A handler cannot borrow what ends before the stack does:
///
/// ```compile_fail,E0597
/// let stack = exitstack::ExitStack::new();
/// {
///     let name = String::from("short-lived");
///     stack.register(|| println!("{name}"));
/// }
/// ```
///
/// # Python's `contextlib.ExitStack`
///
/// The same list of callbacks, with differences that are meant: dropping the stack runs them (Python's does nothing
/// when it is garbage-collected); no earlier failure is lost; no handler can swallow the error of the work; one handler
/// can be removed. `pop_all`, `close` and re-use are as there.
#[doc(alias = "atexit")]
#[doc(alias = "defer")]
#[doc(alias = "cleanup")]
#[doc(alias = "scope guard")]
#[doc(alias = "finally")]
#[must_use = "a stack that is not bound to a name is dropped, and drained, at once"]
pub struct ExitStack<'a> {
    list: Appendable<'a>,
}

impl<'a> ExitStack<'a> {
    /// An empty stack. Allocates nothing.
    ///
    /// ```
    /// let stack = exitstack::ExitStack::new();
    /// assert!(stack.is_empty());
    /// ```
    #[inline]
    pub const fn new() -> Self {
        Self { list: Appendable::new() }
    }

    /// Registers a handler, to run before all that are there already.
    ///
    /// Amortised O(1). Registering the same function twice runs it twice, as with `atexit`.
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
    /// **Without [`close()`](Self::close) it does not run**: a stack that is dropped has failed, however the drop came
    /// about. Success is [`close()`](Self::close), [`close_with(Success)`](Self::close_with), or a [`scope`] whose body
    /// returns `Ok`.
    ///
    /// The outcome is that of the work. A handler that fails does not change it for those below: if it is the commit that
    /// may fail, and then needs a rollback, commit in the work.
    ///
    /// ```
    /// use exitstack::ExitStack;
    ///
    /// fn transfer(amount: u32) -> Result<(), Box<dyn std::error::Error>> {
    ///     let mut stack = ExitStack::new();
    ///     stack.on_success(|| println!("commit"));
    ///     stack.on_failure(|| println!("roll back"));
    ///     if amount > 100 {
    ///         return Err("insufficient funds".into()); // drops the stack: rolls back
    ///     }
    ///     stack.close()?; // commits
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
    /// **It runs unless [`close()`](Self::close) is reached**: see [`on_success`](Self::on_success).
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

    /// Takes a value, and lends it out until the stack drains; then `exit` gets it.
    ///
    /// What `enter_context` is in Python: the resource is used in the function and given back by the stack. The value
    /// stands in an allocation of its own. A handler that is removed without being run drops the value.
    ///
    /// ```
    /// use exitstack::ExitStack;
    /// use std::fs::File;
    /// use std::io::Write;
    ///
    /// # let path = std::env::temp_dir().join(format!("exitstack-enter-{}", std::process::id()));
    /// let mut stack = ExitStack::new();
    /// let file = stack.enter(File::create(&path)?, |file| file.sync_all());
    /// stack.register(|| println!("written")); // more may be registered while the file is in use
    /// writeln!(file, "hello")?;
    /// stack.close()?; // here the file is synced, and no longer to be used
    /// # std::fs::remove_file(path)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "enter_context")]
    #[track_caller]
    pub fn enter<T: 'a, R: HandlerResult>(&self, value: T, exit: impl FnOnce(T) -> R + 'a) -> &mut T {
        self.list.enter(value, exit, Location::caller())
    }

    /// Removes this registration and drops its handler unrun; false if it is not in this stack (any more).
    ///
    /// O(log n), amortised. If the drop of a capture panics, the panic goes on; the handler is gone.
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

    /// Removes every registration of this function and returns how many there were; none is not an error.
    ///
    /// As `atexit.unregister`, for functions and closures without captures: their type is their identity. For anything
    /// else, which would have none, this does not compile and says so: use a [key](crate::Handler::keyed). O(n). Every
    /// handler found is dropped, also if the drop of one panics; the first such panic goes on then.
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
        let identity = identity(function);
        let found = self.list.get_mut().find_and_remove(|entry| entry.closure.function() == identity);
        let count = found.len();
        drop_all(found);
        count
    }

    /// Removes every registration under a key equal to this one and returns how many there were.
    ///
    /// Compares with the keys' own `==`, oldest first; a key of another type is unequal. O(n). If an `==` panics, the
    /// panic goes on and nothing was removed. (CPython keeps what it had removed until then.) Every handler found is
    /// dropped, also if the drop of one panics; the first such panic goes on then.
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

    /// Takes this handler out and runs it now, whatever its turn and whatever outcome it waits for; `None` if it is not
    /// in this stack (any more).
    ///
    /// # Errors
    ///
    /// If the handler fails, panics or asks for an exit status. It is used up all the same.
    ///
    /// ```
    /// let mut stack = exitstack::ExitStack::new();
    /// let id = stack.register(|| println!("now"));
    /// assert!(stack.run_now(id).unwrap().is_ok());
    /// assert!(stack.run_now(id).is_none());
    /// ```
    #[must_use = "it tells whether the handler failed"]
    pub fn run_now(&mut self, id: HandlerId) -> Option<Result<(), CloseError>> {
        let entry = self.list.get_mut().remove(id)?;
        Some(run_one(entry, || None))
    }

    /// Moves all handlers to a new stack, unrun; this one is empty then.
    ///
    /// Their ids stay valid in the new stack, and there alone. It has to be closed as any other: **if it is dropped without
    /// [`close()`](Self::close), it has failed**. The usual end of a function that must undo its steps unless all succeed:
    ///
    /// ```
    /// use exitstack::ExitStack;
    ///
    /// fn open_all<'a>() -> Result<ExitStack<'a>, std::io::Error> {
    ///     let mut stack = ExitStack::new();
    ///     stack.register(|| println!("close first")); // a `?` after this closes what was opened
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

    /// Drops all handlers, the newest first, and runs none.
    ///
    /// # Panics
    ///
    /// If the drop of a capture panics: every handler is dropped first, then the first panic goes on. The stack is
    /// empty then.
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

    /// How many handlers wait.
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

    /// Whether none does.
    ///
    /// ```
    /// assert!(exitstack::ExitStack::new().is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.list.read(HandlerList::is_empty)
    }

    /// Lists the handlers that wait, the next to run first. O(n), allocates the list.
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
        self.list.read(|list| list.iter().rev().map(|(id, entry)| entry.pending(id)).collect())
    }

    /// Makes room for this many more handlers, so that registering small ones allocates nothing, until the next drain or
    /// removal.
    ///
    /// # Panics
    ///
    /// If the capacity overflows. Without memory the process aborts, as with any collection.
    ///
    /// ```
    /// let stack = exitstack::ExitStack::new();
    /// stack.reserve(100);
    /// ```
    pub fn reserve(&self, additional: usize) {
        self.list.reserve(additional);
    }

    /// Runs all handlers, the last registered first, and says that the work succeeded. The stack is empty then, and usable
    /// again.
    ///
    /// Reaching it is what success means: an [`on_success`](Self::on_success) handler runs here, and not in a drop.
    ///
    /// # Errors
    ///
    /// If any handler failed or panicked (all run all the same), or asked for an exit status with
    /// [`Exit`](crate::Exit). Nothing is printed.
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

    /// [`close`](Self::close), and says how the work ended: which of the [`on_success`](Self::on_success) and
    /// [`on_failure`](Self::on_failure) handlers run. The others are dropped, each at its turn.
    ///
    /// # Errors
    ///
    /// As [`close`](Self::close).
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

    /// Drains. What fails is added to `failures`, or reported if there is no such place.
    #[inline(never)]
    fn drain(&mut self, outcome: Outcome, failures: Option<&mut Failures>) {
        let list = self.list.get_mut();
        drain(&mut Local { entries: list.newest_first(), failures }, outcome);
        list.forget_all();
    }

    #[inline]
    fn drain_dropped(&mut self) {
        self.drain(Outcome::Failure, None); // nobody said that the work was done
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

/// The entries of a stack on one thread, as what a drain takes from. They run where they stand: no handler can reach the
/// stack that is being drained.
struct Local<'l, 'a> {
    entries: NewestFirst<'l, LocalEntry<'a>>,
    failures: Option<&'l mut Failures>,
}

impl<'a> Source<dyn Bound + 'a> for Local<'_, 'a> {
    #[inline]
    fn next(&mut self) -> Option<&mut LocalEntry<'a>> {
        self.entries.next()
    }

    // Only the place for failures is lent out, so that the iterator can stay in registers.
    #[inline]
    fn note(&mut self, outcome: HandlerOutcome) {
        keep_or_report(outcome, self.failures.as_deref_mut());
    }
}

#[cold]
fn keep_or_report(outcome: HandlerOutcome, failures: Option<&mut Failures>) {
    let (new, error) = outcome.into_failures(None);
    if let Some(failures) = failures {
        drop(failures.merge(new));
    } else {
        error.iter().for_each(report);
        discard((new, error)); // an error's own drop may panic: that is not the handler's panic
    }
}

/// Runs `body` with a stack of its own, then drains the stack by how the body ended.
///
/// What `with ExitStack() as stack:` is in Python: a body that returns `Ok` is a success, one that returns `Err` or panics
/// a failure. It closes the stack by itself, so a success needs no [`close()`](ExitStack::close).
///
/// | body | cleanup | result |
/// | --- | --- | --- |
/// | `Ok(value)` | all well | `Ok(value)` |
/// | `Ok(_)` | failed | `Err(E::from(close_error))` |
/// | `Err(error)` | | `Err(error)`; what failed in the cleanup goes to the [report hook](crate::report) |
/// | panics | | the panic goes on; what failed in the cleanup goes to the report hook |
///
/// Where the body failed, an exit status that a handler asks for is forgotten.
///
/// # Errors
///
/// The body's, or the cleanup's if the body had none.
///
/// # Panics
///
/// If the body does; the handlers have run then.
///
/// ```
/// use exitstack::scope;
/// use std::error::Error;
///
/// fn transfer(ok: bool) -> Result<(), Box<dyn Error>> {
///     scope(|stack| {
///         println!("begin");
///         stack.on_failure(|| println!("rollback"));
///         stack.on_success(|| println!("commit"));
///         if ok { Ok(()) } else { Err("insufficient funds".into()) }
///     })
/// }
/// assert!(transfer(true).is_ok());
/// assert_eq!(transfer(false).unwrap_err().to_string(), "insufficient funds");
/// ```
#[doc(alias = "with")]
#[doc(alias = "transaction")]
pub fn scope<'a, T, E: From<CloseError>>(body: impl FnOnce(&ExitStack<'a>) -> Result<T, E>) -> Result<T, E> {
    let mut stack = ExitStack::new();
    let value = body(&stack)?; // an error or a panic drops the stack, which has failed then
    stack.close()?;
    Ok(value)
}
