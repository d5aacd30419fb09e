//! Isolation and nesting: [`Interpreter`], and the functions that register with the current one.
//!
//! 1. Each interpreter has a stack and a lock of its own. Nothing done in one locks another's, except that it takes its
//!    place in its parent's list when it is made and leaves it when it is finalized.
//! 2. A parent holds its children until they are finalized; a child holds its parent for its name's sake. The circle is
//!    broken by finalizing, which the last handle's drop does.
//! 3. Handles are counted apart from references: while the last handle's drop finalizes, the interpreter is still there
//!    for its handlers.
//! 4. How a tree drains is in `tree`, one loop whatever the depth.

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

/// A named stack of its own, nested in its parent: for language runtimes, plugin hosts, subsystems of a service, and
/// tests that must not leak their registrations.
///
/// CPython gives each subinterpreter an `atexit` list of its own, run when that interpreter ends, whatever the others do.
/// Here the same is a value; cloning it makes another handle to the same interpreter.
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
/// # What it promises
///
/// - Isolation: registering, closing, failing, panicking or hanging in one never runs, removes, delays or locks
///   another's handlers. (Draining a parent does drain its children, in order, and so waits for them.)
/// - An interpreter that is alive when its parent drains is finalized at its place: what the parent registered after it
///   was made runs first, what was registered before it runs after; likewise at any depth. (CPython runs the handlers
///   of subinterpreters that are still alive at its end after all of the main one's.)
/// - Finalized, or dropped by its last handle, it leaves nothing behind in its parent. One that is still alive when the
///   process exits (leaked, in a `static`, held by another thread) is finalized then, and its failures reported.
/// - Failures carry the path, `process > plugin-a > db`.
/// - A runtime with one big lock releases it around [`finalize`](Self::finalize) and `close`, and takes it in each handler:
///   see [`SharedExitStack`](crate::SharedExitStack#a-runtime-with-one-big-lock).
/// - It is no handler of its parent: `len`, `pending`, `clear`, `pop_all` and `unregister` there neither count nor touch
///   it.
/// - In a forked child it is empty, as the [process stack](crate::process_stack) is.
///
/// The drop of the last handle finalizes too; as nobody is told, failures go to the [report hook](crate::report).
#[doc(alias = "subinterpreter")]
#[doc(alias = "atexit")]
#[must_use = "dropping the last handle finalizes the interpreter"]
pub struct Interpreter(Arc<Node>);

impl Interpreter {
    /// A child of the process stack.
    ///
    /// If the parent takes no more handlers (the process is past its last drain), the new interpreter takes none either:
    /// nothing would be sure to run them.
    ///
    /// ```
    /// let plugin = exitstack::Interpreter::new("plugin-a");
    /// assert_eq!(plugin.name(), "plugin-a");
    /// ```
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self(Node::new(name.into(), Parent::Root(process_stack())))
    }

    /// A child of this interpreter.
    ///
    /// ```
    /// let plugin = exitstack::Interpreter::new("plugin-a");
    /// let db = plugin.subinterpreter("db");
    /// db.stack().register(|| println!("first: the inner one"));
    /// plugin.finalize()?;
    /// # Ok::<(), exitstack::CloseError>(())
    /// ```
    pub fn subinterpreter(&self, name: impl Into<Cow<'static, str>>) -> Self {
        Self(Node::new(name.into(), Parent::Node(Arc::clone(&self.0))))
    }

    /// Its name, as it was given.
    ///
    /// ```
    /// assert_eq!(exitstack::Interpreter::new("db").name(), "db");
    /// ```
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its stack.
    ///
    /// Closing the stack runs what is registered and leaves the interpreter usable, where
    /// [`finalize`](Self::finalize) is for good.
    ///
    /// ```
    /// let plugin = exitstack::Interpreter::new("plugin-a");
    /// plugin.stack().register(|| println!("unloaded"));
    /// ```
    pub fn stack(&self) -> &SharedExitStack {
        &self.0.stack
    }

    /// Runs `body` with this interpreter current on this thread: [`exitstack::register`](crate::register) and its kin
    /// go to its stack. Nests; what was current before is so again afterwards, also if `body` panics.
    ///
    /// Nothing is locked, and other threads are not touched. **The current interpreter does not follow into other threads**:
    /// a spawned thread, rayon's workers and a task that another thread polls start without one, and register with the
    /// process stack. Clone the interpreter and enter it there. While an interpreter's handlers run, it is current.
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

    /// The interpreter that is current on this thread, if any.
    ///
    /// ```
    /// assert!(exitstack::Interpreter::current().is_none());
    /// ```
    pub fn current() -> Option<Self> {
        let node = current()?;
        node.handles.fetch_add(1, Ordering::Relaxed);
        Some(Self(node))
    }

    /// Runs its handlers, and those of the interpreters nested in it, for good: from then on it refuses registrations.
    ///
    /// What is registered while it drains still runs, up to 65,536 registrations (those with interpreters made meanwhile
    /// included). If another thread drains it, waits for that and returns the same result. From inside one of its own
    /// handlers returns `Ok(())` at once, and the drain goes on. From inside a handler of an interpreter nested in it, what
    /// is left of that one runs at its place, before this returns. A second time: `Ok(())`.
    ///
    /// # Errors
    ///
    /// If any handler failed or panicked (all run all the same), or asked for an exit status with
    /// [`Exit`](crate::Exit): those of nested interpreters too.
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

/// Two handles are equal if they are to the same interpreter.
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

/// Does `action` with the stack that registrations on this thread go to.
#[inline]
fn with_stack<R>(action: impl FnOnce(&SharedExitStack) -> R) -> R {
    match current() {
        None => action(process_stack()),
        Some(node) => action(&node.stack),
    }
}

/// Registers a handler with the interpreter that is current on this thread, or else with the process stack: see
/// [`SharedExitStack::register`].
///
/// What `atexit.register` is in Python.
///
/// ```no_run
/// exitstack::register(|| println!("goodbye")); // whichever way the process ends
/// std::process::exit(0);
/// ```
#[doc(alias = "atexit")]
#[inline]
#[track_caller]
pub fn register(handler: impl IntoHandler + Send + 'static) -> HandlerId {
    let location = Location::caller();
    with_stack(|stack| stack.register_at(handler, location))
}

/// Removes this registration from the stack that [`register`] goes to on this thread: see
/// [`SharedExitStack::unregister`].
///
/// ```
/// let id = exitstack::register(|| println!("not run"));
/// assert!(exitstack::unregister(id));
/// ```
pub fn unregister(id: HandlerId) -> bool {
    with_stack(|stack| stack.unregister(id))
}

/// Removes every registration of this function from the stack that [`register`] goes to on this thread: see
/// [`SharedExitStack::unregister_fn`].
///
/// What `atexit.unregister` is in Python.
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

/// Removes every registration under a key equal to this one from the stack that [`register`] goes to on this thread: see
/// [`SharedExitStack::unregister_key`].
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
