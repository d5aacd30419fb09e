//! Nested, isolated stacks: [`Interpreter`], and the functions that register with the current one.
//!
//! 1. Each interpreter has a stack and a lock of its own. Nothing done in one takes another's lock, except that it
//!    takes its position in its parent's list when it is created and gives it up when it is finalized.
//! 2. A parent holds its children until they are finalized; a child holds its parent for the sake of its path.
//!    Finalizing breaks this reference cycle, at the latest when the last handle is dropped.
//! 3. Handles are counted separately from references: while the drop of the last handle finalizes the interpreter, its
//!    handlers can still use it.
//! 4. How a tree drains is in `tree`: one loop, whatever the depth.

use std::borrow::Cow;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::error::CloseError;
use crate::handler::IntoHandler;
use crate::list::HandlerId;
use crate::process::process_stack;
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
/// A runtime with one big lock releases it around [`finalize`](Self::finalize) and `close`, and takes it in each
/// handler: see [`SharedExitStack`](crate::SharedExitStack#a-runtime-with-one-big-lock).
#[doc(alias = "subinterpreter")]
#[doc(alias = "atexit")]
#[must_use = "dropping the last handle finalizes the interpreter"]
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
    /// - If another thread drains the interpreter, the call waits for that drain and returns the same result.
    /// - From inside one of the interpreter's own handlers, the call returns `Ok(())` at once, and the drain continues.
    /// - From inside a handler of a nested interpreter, what is left of that interpreter runs at its position, before
    ///   the call returns.
    /// - A second call returns `Ok(())`.
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
        self.0.stack.drain(Purpose::Finalize)
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
            self.0.stack.drain_unattended(Purpose::FinalizeUnattended);
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
/// ```
/// use exitstack::Handler;
///
/// exitstack::register(Handler::new(|| println!("not run")).keyed("session 7"));
/// assert_eq!(exitstack::unregister_key(&"session 7"), 1);
/// ```
pub fn unregister_key<K: PartialEq + 'static>(key: &K) -> usize {
    with_stack(|stack| stack.unregister_key(key))
}
