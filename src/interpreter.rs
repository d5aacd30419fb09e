//! Nested, isolated stacks: [`Interpreter`], and the functions that register with the current one.
//!
//! 1. Each interpreter has a stack and a lock of its own. What is registered or removed in one takes no other's lock. An
//!    interpreter enters its parent's list when it is created and leaves it when it is finalized; a drain, and adoption,
//!    go through all that is nested in a stack.
//! 2. A parent holds its children until they are finalized; a child holds its parent, whose name is part of its path.
//!    Finalizing breaks this reference cycle, at the latest when the last handle is dropped.
//! 3. Handles are counted separately from references: while the drop of the last handle finalizes the interpreter, its
//!    handlers can still use it.
//! 4. How a tree drains is in `tree`: one loop, whatever the depth.

use std::borrow::Cow;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

mod instrumented;

pub use instrumented::Instrumented;

use scopeguard::ScopeGuard;

use crate::error::{CloseError, HandlerError, HandlerErrorKind, Outcome, Site, merged};
use crate::handler::IntoHandler;
use crate::list::HandlerId;
use crate::process::process_stack;
use crate::shutdown::{self, Closed, Limits};
use crate::tree::{Node, Parent, Purpose, SharedExitStack, current, enter};

/// A named [`SharedExitStack`] that is nested in its parent and isolated from others.
///
/// It is meant for language runtimes, plugin hosts, subsystems of a service, and tests that must not leak their
/// registrations. CPython gives each subinterpreter an `atexit` list of its own, which runs when that interpreter ends,
/// whatever the others do. Here an interpreter is a value; cloning it creates another handle to the same interpreter.
///
/// ```
/// use exitstack::Interpreter;
///
/// let plugin = Interpreter::new("plugin-a");
/// plugin.enter(|| exitstack::register(|| Err("disk full"))); // on the plugin's stack
/// let error = plugin.finalize().unwrap_err();
/// assert!(error.to_string().starts_with("process > plugin-a: exit handler"));
/// ```
///
/// Dropping the last handle finalizes the interpreter. As there is no caller to return them to, its failures then go to
/// the [report hook](crate::report).
///
/// # Guarantees
///
/// - Registering, closing, failing, panicking or hanging in one interpreter never runs, removes, delays or locks the
///   handlers of another. (Draining a parent does drain its children, in order, and so waits for them.)
/// - An interpreter that is alive when its parent drains is finalized at its position: handlers that the parent
///   registered after it was created run before, those registered earlier run after. This holds at any depth. (CPython
///   runs the handlers of subinterpreters that are still alive at its end after all handlers of the main interpreter.)
/// - An interpreter that is finalized, or whose last handle is dropped, leaves nothing behind in its parent. One that
///   is still alive when the process exits (leaked, in a `static`, held by another thread) is finalized then, and its
///   failures are reported.
/// - Failures carry the path of the interpreter, such as `process > plugin-a > db`.
/// - It is not a handler of its parent: `len`, `pending`, `clear`, `pop_all` and `unregister` of the parent neither
///   count it nor affect it.
/// - In a forked child it is empty, as the [process stack](crate::process_stack) is.
///
/// # Which type for which runtime
///
/// | the runtime | what it uses |
/// | --- | --- |
/// | registers closures that are `Send + 'static` | an interpreter for each of its own, and [`register`] |
/// | has handler objects that it compares with a `==` of its own, lists, or removes one by one | a [`HandlerList`](crate::HandlerList) of them under its lock, and one handler of its interpreter, which [runs the list](crate::HandlerList#three-ways-to-run-the-values) |
/// | has objects that are not `Send` | a `HandlerList` that stays on their thread, which runs it there before it ends: a handler may run on any thread |
/// | has one big lock, such as a GIL | an interpreter; **release the lock around `finalize` and `close`, and take it in each handler**: see [the example](crate::SharedExitStack#a-runtime-with-one-big-lock) |
/// | has an `_exit` that is built on `std::process::exit` | [`detached`](Self::detached), and [`finalize`](Self::finalize) on every other exit path |
///
/// Of the examples in the repository, `embed` is a toy runtime of the second kind, and `runtime` is one of the third
/// kind, for an existing language.
#[doc(alias = "subinterpreter")]
#[doc(alias = "atexit")]
#[must_use = "dropping the last handle finalizes the interpreter: bind it to a name, which `let _ =` does not do"]
pub struct Interpreter(Arc<Node>);

impl Interpreter {
    /// Creates an interpreter that is nested in the process stack.
    ///
    /// If the process stack no longer accepts handlers, because its last drain is over, the new interpreter accepts
    /// none either: nothing would be certain to run them.
    ///
    /// ```
    /// let plugin = exitstack::Interpreter::new("plugin-a");
    /// assert_eq!(plugin.name(), "plugin-a");
    /// ```
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self(Node::new(name.into(), Parent::Root(process_stack())))
    }

    /// Creates an interpreter that is nested in this one.
    ///
    /// If this interpreter no longer accepts handlers, the new one accepts none either.
    ///
    /// ```
    /// let plugin = exitstack::Interpreter::new("plugin-a");
    /// let db = plugin.subinterpreter("db");
    /// plugin.stack().register(|| println!("runs first, as it was registered after `db` was created"));
    /// db.stack().register(|| println!("runs second"));
    /// plugin.finalize()?;
    /// # Ok::<(), exitstack::CloseError>(())
    /// ```
    pub fn subinterpreter(&self, name: impl Into<Cow<'static, str>>) -> Self {
        Self(Node::new(name.into(), Parent::Node(Arc::clone(&self.0))))
    }

    /// Creates an interpreter that is the root of a tree of its own, which the end of the process does not touch.
    ///
    /// **Its handlers do not run when the process exits**: only when it is finalized, or when its last handle is
    /// dropped. [`is_exiting`](crate::is_exiting) tells whether the process is on its way out.
    ///
    /// This is for runtimes whose `_exit` is built on `std::process::exit`: a script that asks to leave without running
    /// its handlers must not have them run. Paths begin with its name. In a forked child it is empty, and
    /// [`adopt_after_fork`](SharedExitStack::adopt_after_fork) of its stack takes over what the parent registered.
    ///
    /// ```
    /// let runtime = exitstack::Interpreter::detached("runtime");
    /// let script = runtime.subinterpreter("script");
    /// script.stack().register(|| Err("disk full"));
    /// let error = runtime.finalize().unwrap_err();
    /// assert!(error.to_string().starts_with("runtime > script: exit handler"));
    /// ```
    pub fn detached(name: impl Into<Cow<'static, str>>) -> Self {
        Self(Node::new(name.into(), Parent::None))
    }

    /// Runs `body` in a transaction: its [`on_failure`](SharedExitStack::on_failure) handlers run unless the body
    /// returns `Ok`, even if the process exits first.
    ///
    /// This is [`scope`](crate::scope) for handlers that are `Send + 'static`, whose rollback also runs on
    /// `std::process::exit`, on C's `exit` and on [`exit`](crate::exit), from any thread. The transaction is an
    /// interpreter, nested in the one that is current on this thread, or in the process stack if there is none. It is
    /// current while the body runs, so [`register`] and a `scope` inside the body go to it.
    ///
    /// | body | handlers | result |
    /// | --- | --- | --- |
    /// | `Ok(value)` | all for success; none failed | `Ok(value)` |
    /// | `Ok(_)` | all for success; some failed or requested an exit status | `Err(E::from(close_error))` |
    /// | `Ok(_)` | all for failure, because the process exits or a stack around the transaction has drained | `Err(E::from(close_error))`, with a [`RolledBack`](crate::HandlerErrorKind::RolledBack) in it |
    /// | `Err(error)` | all for failure | `Err(error)`; failures of handlers go to the [report hook](crate::report) |
    /// | panics | all for failure | the panic propagates; failures of handlers go to the report hook |
    /// | exits the process | all for failure, at their place among those of the process | |
    ///
    /// So either all `on_success` handlers run, or all `on_failure` handlers, whichever threads exit at the same time.
    /// (A body that closes the transaction's own stack decides on what was registered so far, and begins anew.)
    ///
    /// **Register the handler that undoes a step before the step**: if another thread exits between the two, what is
    /// registered too late is [refused](SharedExitStack::register), and the step stays. **The handler must leave alone
    /// what was there before**, as it also runs if the step was not made: `remove_dir_all` after a `create_dir` that
    /// failed would remove a directory that was there. See [`guide::rollback`](crate::guide::rollback).
    ///
    /// In a transaction nested in another one, `Ok` commits at once: a later failure of the outer one does not undo it.
    /// **In a [detached](Self::detached) interpreter the end of the process rolls nothing back.**
    ///
    /// # Errors
    ///
    /// Returns the error of the body, or what the table says. If the stack around it no longer accepts handlers,
    /// returns an error with a [`Refused`](crate::HandlerErrorKind::Refused) in it, and does not call the body.
    ///
    /// # Panics
    ///
    /// Panics if the body panics. All handlers have run then.
    ///
    /// ```
    /// use exitstack::Interpreter;
    /// use std::error::Error;
    /// use std::fs;
    ///
    /// # let config = std::env::temp_dir().join(format!("exitstack-scope-{}", std::process::id()));
    /// # fs::write(&config, "before")?;
    /// let before = fs::read(&config)?;
    /// let updated = Interpreter::scope("update", |update| {
    ///     let undone = config.clone();
    ///     update.stack().on_failure(|| fs::write(undone, before));
    ///     fs::write(&config, "half of it")?;
    ///     Err::<(), Box<dyn Error>>("no more".into()) // or `std::process::exit(1)`
    /// });
    /// assert_eq!(updated.unwrap_err().to_string(), "no more");
    /// assert_eq!(fs::read(&config)?, b"before");
    /// # fs::remove_file(&config)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[doc(alias = "transaction")]
    #[track_caller]
    pub fn scope<T, E>(name: impl Into<Cow<'static, str>>, body: impl FnOnce(&Self) -> Result<T, E>) -> Result<T, E>
    where
        E: From<CloseError>, // as `Box<dyn Error>` is, or an error of your own; `io::Error` is not
    {
        // Where the bound is not met, the compiler shows its line, with the comment.
        let (name, location) = (name.into(), Location::caller());
        let transaction = match Self::current() {
            Some(around) => around.subinterpreter(name),
            None => Self::new(name),
        };
        if transaction.0.stack.is_closed() {
            return Err(transaction.error(location, HandlerErrorKind::Refused).into());
        }
        // Not left to the drop of the handle, because there may be other handles.
        let unless_done = scopeguard::guard(&transaction.0.stack, |stack| {
            stack.drain_unattended(Purpose::FinalizeUnattended, Outcome::Failure);
        });
        let value = transaction.enter(|| body(&transaction))?;
        ScopeGuard::into_inner(unless_done);
        let result = transaction.0.stack.drain(Purpose::Finalize, Outcome::Success);
        if transaction.0.stack.has_succeeded() {
            result?;
        } else {
            // Another drain has drained it before this one.
            merged(result, Err(transaction.error(location, HandlerErrorKind::RolledBack)))?;
        }
        Ok(value)
    }

    /// Returns the error of a transaction that was begun at `location`.
    fn error(&self, location: &'static Location<'static>, kind: HandlerErrorKind) -> CloseError {
        let site = Site { name: Some(self.0.name.clone().into()), location };
        CloseError::of(HandlerError::of_transaction(self.0.path(), site, kind))
    }

    /// Returns the interpreter's name, as it was given.
    ///
    /// ```
    /// assert_eq!(exitstack::Interpreter::new("db").name(), "db");
    /// ```
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the interpreter's stack.
    ///
    /// Closing the stack runs its handlers and leaves the interpreter usable, whereas [`finalize`](Self::finalize) is
    /// permanent.
    ///
    /// ```
    /// let plugin = exitstack::Interpreter::new("plugin-a");
    /// plugin.stack().register(|| println!("unloaded"));
    /// ```
    pub fn stack(&self) -> &SharedExitStack {
        &self.0.stack
    }

    /// Runs `body` with this interpreter as the current one on this thread.
    ///
    /// **The current interpreter does not follow into other threads**: a spawned thread, rayon's workers and a task
    /// that another thread polls start without one, and register with the process stack. Clone the interpreter and
    /// enter it there.
    ///
    /// Inside `body`, [`exitstack::register`](crate::register) and the other free functions use this interpreter's
    /// stack. Calls can be nested; the interpreter that was current before is current again afterwards, even if `body`
    /// panics. Nothing is locked, and other threads are not affected. While an interpreter's handlers run, it is
    /// current.
    ///
    /// ```
    /// use exitstack::Interpreter;
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.enter(|| assert_eq!(Interpreter::current().as_ref(), Some(&plugin)));
    /// assert!(Interpreter::current().is_none());
    /// ```
    pub fn enter<R>(&self, body: impl FnOnce() -> R) -> R {
        let _restored = enter(Some(Arc::clone(&self.0)));
        body()
    }

    /// Makes this interpreter the current one whenever the future is polled, on whatever thread that is.
    ///
    /// **A future that is only created inside [`enter`](Self::enter) does not run there**, and code that awaits inside
    /// `enter` does not compile: another task may be polled on the thread in between. As in `tracing`, the interpreter
    /// is entered for each poll, and not when the future is dropped. A task that the future spawns has to be
    /// instrumented as well.
    ///
    /// The future keeps a handle to the interpreter until it is dropped.
    ///
    /// ```
    /// use exitstack::Interpreter;
    ///
    /// let session = Interpreter::new("session 7");
    /// let task = session.instrument(async {
    ///     exitstack::register(|| println!("logged out"));
    /// });
    /// # pollster::block_on(task);
    /// assert_eq!(session.stack().len(), 1);
    /// ```
    pub fn instrument<F: Future>(&self, future: F) -> Instrumented<F> {
        Instrumented::new(self.clone(), future)
    }

    /// Returns the interpreter that is current on this thread, if there is one.
    ///
    /// ```
    /// assert!(exitstack::Interpreter::current().is_none());
    /// ```
    pub fn current() -> Option<Self> {
        let node = current()?;
        node.handles.fetch_add(1, Ordering::Relaxed);
        Some(Self(node))
    }

    /// Runs the handlers of this interpreter and of those nested in it, and refuses registrations from then on.
    ///
    /// - Handlers registered while it drains still run, up to 65,536 registrations, including those with interpreters
    ///   that are created in the meantime.
    /// - If another thread is draining the interpreter, the call waits for that drain and returns the same result.
    /// - From inside one of the interpreter's own handlers, the call returns `Ok(())` at once, and the drain continues.
    /// - From inside a handler of a nested interpreter, what is left of that interpreter runs at its position, before
    ///   the call returns.
    /// - A second call returns `Ok(())`. So does one after the end of the process, which has finalized the interpreter
    ///   unless it is [detached](Self::detached).
    /// - In a handler that was [given up](crate::shutdown#what-is-given-up), the call returns `Ok(())` and runs nothing.
    ///
    /// # Errors
    ///
    /// Returns an error if a handler failed, panicked, or requested an exit status with [`Exit`](crate::Exit),
    /// including handlers of nested interpreters. All handlers have run then.
    ///
    /// ```
    /// let plugin = exitstack::Interpreter::new("plugin-a");
    /// plugin.finalize()?;
    /// assert!(plugin.stack().try_register(|| ()).is_err());
    /// # Ok::<(), exitstack::CloseError>(())
    /// ```
    pub fn finalize(&self) -> Result<(), CloseError> {
        self.0.stack.drain(Purpose::Finalize, Outcome::Success)
    }
}

impl Interpreter {
    /// Finalizes the interpreter as [`finalize`](Self::finalize) does, but returns when its time is over, if not
    /// before.
    ///
    /// The handlers run on a thread of the library, where those that are not done by then go on; see [`shutdown`] for
    /// what happens to a handler whose time is over. Called in a handler of the interpreter itself, it returns at once.
    /// Called in a handler of an interpreter nested in it, it returns when the drain reaches that interpreter; the drain
    /// goes on, within the same limits, once that handler has returned.
    ///
    /// Where it returns early, the interpreter is being finalized: it still accepts what its own handlers register, and
    /// is closed when the drain ends. Another [`finalize`](Self::finalize) waits for that. Failures that are not in the
    /// result go to the [report hook](crate::report).
    ///
    /// Without [`Limits::within`](crate::shutdown::Limits::within), it returns when the drain is over; with it, up to 50
    /// ms later than that time. If no thread can be started, the handlers run on this thread, without limits.
    ///
    /// ```
    /// use exitstack::Interpreter;
    /// use exitstack::shutdown::Limits;
    /// use std::time::Duration;
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(|| println!("unloaded"));
    /// let closed = plugin.finalize_within(&Limits::new().within(Duration::from_secs(5)));
    /// assert!(closed.result().is_ok() && closed.is_over());
    /// ```
    pub fn finalize_within(&self, limits: &Limits) -> Closed {
        shutdown::finalize_within(&self.0, *limits)
    }

    /// Returns a drain that the models in `tests` give up.
    #[cfg(any(fuzzing, all(loom, feature = "loom")))]
    #[doc(hidden)]
    pub fn modelled(&self) -> shutdown::Modelled {
        shutdown::Modelled::new(&self.0)
    }
}

impl Clone for Interpreter {
    fn clone(&self) -> Self {
        self.0.handles.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Interpreter {
    fn drop(&mut self) {
        if self.0.handles.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            self.0.stack.drain_unattended(Purpose::FinalizeUnattended, Outcome::Failure);
        }
    }
}

/// Two handles are equal if they refer to the same interpreter.
impl PartialEq for Interpreter {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Interpreter {}

impl fmt::Debug for Interpreter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interpreter").field("path", &self.0.path()).field("stack", &self.0.stack).finish()
    }
}

/// Calls `action` with the stack that registrations on this thread go to.
#[inline]
fn with_stack<R>(action: impl FnOnce(&SharedExitStack) -> R) -> R {
    match current() {
        None => action(process_stack()),
        Some(node) => action(&node.stack),
    }
}

/// Registers a handler with the interpreter that is current on this thread, or with the process stack if there is none.
///
/// This is Python's `atexit.register`. See [`SharedExitStack::register`] for details.
///
/// ```no_run
/// exitstack::register(|| println!("goodbye")); // runs on every normal exit of the process
/// std::process::exit(0);
/// ```
#[doc(alias = "atexit")]
#[inline]
#[track_caller]
pub fn register(handler: impl IntoHandler + Send + 'static) -> HandlerId {
    let location = Location::caller();
    with_stack(|stack| stack.register_at(handler, location))
}

/// Removes a handler from the stack that [`register`] uses on this thread.
///
/// The handler is dropped without being run. Returns false if it is not, or no longer, in that stack. See
/// [`SharedExitStack::unregister`] for details.
///
/// # Panics
///
/// Panics if the drop of a capture panics. The handler is removed all the same.
///
/// ```
/// let id = exitstack::register(|| println!("not run"));
/// assert!(exitstack::unregister(id));
/// ```
pub fn unregister(id: HandlerId) -> bool {
    with_stack(|stack| stack.unregister(id))
}

/// Removes every registration of this function from the stack that [`register`] uses on this thread, and returns how
/// many there were.
///
/// This is Python's `atexit.unregister`. See [`SharedExitStack::unregister_fn`] for details.
///
/// # Panics
///
/// Panics if the drop of a key or of a zero-sized capture panics, after all that were found are removed and dropped.
///
/// ```
/// fn goodbye() {
///     println!("goodbye");
/// }
/// exitstack::register(goodbye);
/// assert_eq!(exitstack::unregister_fn(goodbye), 1);
/// ```
pub fn unregister_fn<F: FnOnce() -> R, R>(function: F) -> usize {
    with_stack(|stack| stack.unregister_fn(function))
}

/// Removes every handler with a key equal to this one from the stack that [`register`] uses on this thread, and returns
/// how many there were.
///
/// See [`SharedExitStack::unregister_key`] for details.
///
/// # Panics
///
/// Panics if an `==` panics; nothing is removed then. Panics if the drop of a capture panics, after all that were found
/// are removed and dropped.
///
/// ```
/// use exitstack::Handler;
///
/// exitstack::register(Handler::new(|| println!("not run")).keyed("session 7"));
/// assert_eq!(exitstack::unregister_key(&"session 7"), 1);
/// ```
pub fn unregister_key<K: PartialEq + 'static>(key: &K) -> usize {
    with_stack(|stack| stack.unregister_key(key))
}
