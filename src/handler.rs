//! What is registered: functions and closures, bare or with a name and a key.

use std::any::{Any, TypeId};
use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use crate::error::{Name, Outcome, Site};
use crate::list::HandlerId;
use crate::raw::{Bound, BoxError, Closure, Task};

/// What can be registered: any closure or function that is called once, without arguments, and returns `()`,
/// `Result<(), E>` or nothing at all (type `!`); and such a one dressed as a [`Handler`].
///
/// Arguments are bound by the closure that captures them, where Python's `atexit.register` takes them beside the
/// function. The trait is sealed: its implementations are listed here, and what it is built on is no part of the
/// interface.
///
/// ```
/// use exitstack::ExitStack;
///
/// fn goodbye() {
///     println!("goodbye");
/// }
/// let mut stack = ExitStack::new();
/// stack.register(goodbye);
/// stack.register(|| std::fs::remove_file("/nonexistent/scratch")); // a Result: its error is kept
/// stack.register(|| panic!("kept too"));
/// assert_eq!(stack.close().unwrap_err().errors().len(), 2);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an exit handler",
    label = "not an exit handler",
    note = "a handler is a closure or function without arguments that returns `()` or `Result<(), E>`, \
            where `E` converts into `Box<dyn Error + Send + Sync>`"
)]
pub trait IntoHandler: Task {}

/// What a handler may return: `()`, `Result<(), E>` where `E: Into<Box<dyn Error + Send + Sync>>`, or `!`.
///
/// The trait is sealed, and what it is built on is no part of the interface. `E` may be an error that is
/// `Send + Sync + 'static`, as nearly all are, `String`, `&str`, `Box<dyn Error + Send + Sync>` or `anyhow::Error`. A
/// `Box<dyn Error>` may not: what failed is kept, and may be handed to another thread. A closure that uses `?` needs to be
/// told its type, as in `Ok::<(), std::io::Error>(())`.
///
/// ```
/// let mut stack = exitstack::ExitStack::new();
/// stack.register(|| Err("a text is an error"));
/// assert!(stack.close().is_err());
/// ```
#[diagnostic::on_unimplemented(
    message = "an exit handler cannot return `{Self}`",
    label = "this handler's return type",
    note = "a handler returns `()` or `Result<(), E>`, where `E` converts into `Box<dyn Error + Send + Sync>`; \
            end it with `;` or `.map(drop)` to ignore a value"
)]
pub trait HandlerResult: sealed::HandlerResult {}

pub(crate) mod sealed {
    use crate::raw::BoxError;

    pub trait HandlerResult {
        fn into_result(self) -> Result<(), BoxError>;
    }

    /// `!` in a place where stable Rust lets it be named.
    pub trait Returns {
        type Out;
    }

    impl<R> Returns for fn() -> R {
        type Out = R;
    }
}

type Never = <fn() -> ! as sealed::Returns>::Out;

impl HandlerResult for () {}
impl sealed::HandlerResult for () {
    #[inline]
    fn into_result(self) -> Result<(), BoxError> {
        Ok(())
    }
}

impl HandlerResult for Never {}
impl sealed::HandlerResult for Never {
    fn into_result(self) -> Result<(), BoxError> {
        self
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> HandlerResult for Result<(), E> {}
impl<E: Into<Box<dyn Error + Send + Sync>>> sealed::HandlerResult for Result<(), E> {
    #[inline]
    fn into_result(self) -> Result<(), BoxError> {
        self.map_err(Into::into)
    }
}

impl<F: FnOnce() -> R, R: HandlerResult> IntoHandler for F {}
impl<F: FnOnce() -> R, R: HandlerResult> Task for F {
    #[inline]
    fn run(self) -> Result<(), BoxError> {
        self().into_result()
    }

    fn function() -> TypeId {
        typeid::of::<F>()
    }
}

/// Stands for "no key" in [`Handler`]'s type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKey {}

/// A handler with a name, a key, or both.
///
/// The *name* is for people: errors and [`pending`](crate::ExitStack::pending) show it. The *key* is for
/// [`unregister_key`](crate::ExitStack::unregister_key), which removes every handler under an equal key: what
/// `atexit.unregister(f)` does for functions, for a handler that captures something and so has no other identity.
/// Costs: a dressed handler is larger and usually boxed, a key is one allocation more (an `Arc`).
///
/// ```
/// use exitstack::{ExitStack, Handler};
/// use std::path::PathBuf;
///
/// let mut stack = ExitStack::new();
/// let scratch = PathBuf::from("/tmp/scratch");
/// let path = scratch.clone();
/// stack.register(Handler::new(move || std::fs::remove_file(path)).named("remove scratch").keyed(scratch.clone()));
/// assert_eq!(stack.unregister_key(&scratch), 1); // kept after all
/// ```
pub struct Handler<F, K = NoKey> {
    function: F,
    name: Option<Name>,
    key: Option<Arc<K>>,
}

impl<F> Handler<F> {
    /// A handler without name and key, to be dressed.
    ///
    /// ```
    /// let stack = exitstack::ExitStack::new();
    /// stack.register(exitstack::Handler::new(|| println!("bye")));
    /// ```
    pub fn new(function: F) -> Self {
        Self { function, name: None, key: None }
    }
}

impl<F, K> Handler<F, K> {
    /// Gives it a name, in place of an earlier one.
    ///
    /// ```
    /// use exitstack::{ExitStack, Handler};
    /// let stack = ExitStack::new();
    /// stack.register(Handler::new(|| ()).named("flush log"));
    /// assert_eq!(stack.pending()[0].name(), Some("flush log"));
    /// ```
    #[must_use]
    pub fn named(self, name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: Some(name.into().into()), ..self }
    }

    /// Gives it a key, in place of an earlier one. For a handler of a stack between threads the key must be
    /// `Send + Sync`: other threads may compare it.
    ///
    /// ```
    /// use exitstack::{ExitStack, Handler};
    /// let mut stack = ExitStack::new();
    /// stack.register(Handler::new(|| ()).keyed("session 7"));
    /// assert_eq!(stack.unregister_key(&"session 7"), 1);
    /// ```
    #[must_use]
    pub fn keyed<L: PartialEq + 'static>(self, key: L) -> Handler<F, L> {
        Handler { function: self.function, name: self.name, key: Some(Arc::new(key)) }
    }
}

impl<F, K> fmt::Debug for Handler<F, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler")
            .field("name", &self.name.as_deref())
            .field("keyed", &self.key.is_some())
            .finish_non_exhaustive()
    }
}

impl<F: FnOnce() -> R, R: HandlerResult, K: 'static> IntoHandler for Handler<F, K> {}
impl<F: FnOnce() -> R, R: HandlerResult, K: 'static> Task for Handler<F, K> {
    const LABELLED: bool = true;

    fn run(self) -> Result<(), BoxError> {
        self.function.run()
    }

    fn function() -> TypeId {
        F::function()
    }

    fn name(&self) -> Option<&Name> {
        self.name.as_ref()
    }

    fn key(&self) -> Option<&dyn Any> {
        self.key.as_ref().map(|key| key as _)
    }
}

/// A handler that runs for one outcome only: `SUCCESS` says which.
pub(crate) struct Only<T, const SUCCESS: bool>(pub(crate) T);

impl<T: Task, const SUCCESS: bool> Task for Only<T, SUCCESS> {
    const ONLY: Option<Outcome> = Some(if SUCCESS { Outcome::Success } else { Outcome::Failure });
    const LABELLED: bool = T::LABELLED;

    fn run(self) -> Result<(), BoxError> {
        self.0.run()
    }

    fn function() -> TypeId {
        T::function()
    }

    fn name(&self) -> Option<&Name> {
        self.0.name()
    }

    fn key(&self) -> Option<&dyn Any> {
        self.0.key()
    }
}

/// What waits in a stack's list: a handler and where it was registered.
pub(crate) struct Entry<B: ?Sized> {
    pub(crate) closure: Closure<B>,
    pub(crate) location: &'static Location<'static>,
}

/// An entry of a stack that lives on one thread.
pub(crate) type LocalEntry<'a> = Entry<dyn Bound + 'a>;

/// An entry of a stack between threads.
pub(crate) type SharedEntry = Entry<dyn Bound + Send>;

impl<B: ?Sized> Entry<B> {
    /// Whether it is under a key equal to `key`, by the key's own `==`.
    pub(crate) fn has_key<K: PartialEq + 'static>(&self, key: &K) -> bool {
        self.key_of::<K>().is_some_and(|own| **own == *key)
    }

    /// Its key, if it has one of this type.
    pub(crate) fn key_of<K: 'static>(&self) -> Option<&Arc<K>> {
        self.closure.key()?.downcast_ref()
    }

    pub(crate) fn pending(&self, id: HandlerId) -> PendingHandler {
        PendingHandler { id, site: Site { name: self.closure.name().cloned(), location: self.location } }
    }
}

/// A handler that waits in a stack, as [`pending`](crate::ExitStack::pending) lists it: a copy of what is known of it.
///
/// ```
/// use exitstack::{ExitStack, Handler};
///
/// let stack = ExitStack::new();
/// let id = stack.register(Handler::new(|| ()).named("flush log"));
/// let pending = stack.pending();
/// assert_eq!(pending[0].id(), id);
/// assert_eq!(pending[0].name(), Some("flush log"));
/// println!("registered at {}", pending[0].location());
/// ```
#[derive(Clone, Debug)]
pub struct PendingHandler {
    id: HandlerId,
    site: Site,
}

impl PendingHandler {
    /// Its id, as `register` returned it.
    pub fn id(&self) -> HandlerId {
        self.id
    }

    /// Its name, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.site.name.as_deref()
    }

    /// Where it was registered.
    pub fn location(&self) -> &'static Location<'static> {
        self.site.location
    }
}

/// The identity of a function: its type.
pub(crate) fn identity<F>(function: F) -> TypeId {
    const {
        assert!(
            size_of::<F>() == 0,
            "a function pointer, or a closure that captures something, is not known by its type: register it with \
             `Handler::new(f).keyed(key)` and use a key: `unregister_key(&key)`"
        );
    }
    drop(function);
    typeid::of::<F>()
}
