//! Handlers: functions and closures, optionally with a name and a key.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::any::{Any, TypeId};
use core::error::Error;
use core::fmt;
use core::panic::Location;
use core::time::Duration;

use scopeguard::{ScopeGuard, guard};

use crate::error::{Label, Outcome, Site};
use crate::list::HandlerId;
use crate::panics::discard_or_leak;
use crate::raw::{Bound, BoxError, Closure, Task};

#[cfg(feature = "async")]
mod async_handler;

#[cfg(feature = "async")]
pub use async_handler::IntoAsyncHandler;
#[cfg(feature = "async")]
pub(crate) use async_handler::sealed::AsyncTask;

/// A closure or function without arguments that can be registered, or a [`Handler`] that wraps one.
///
/// It is called once, and returns `()`, `Result<(), E>` or `!`. A closure captures its arguments, where Python's
/// `atexit.register` takes them separately. This trait is sealed: it cannot be implemented outside this crate, and its
/// supertrait is not part of the public interface.
///
/// ```
/// use exitstack::ExitStack;
///
/// fn goodbye() {
///     println!("goodbye");
/// }
/// let mut stack = ExitStack::new();
/// stack.register(goodbye);
/// stack.register(|| std::fs::remove_file("/nonexistent/scratch")); // returns a Result; the error is kept
/// stack.register(|| Err("kept too"));
/// assert_eq!(stack.close().unwrap_err().errors().len(), 2);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an exit handler",
    label = "not a closure or function without arguments",
    note = "a handler is a closure or function without arguments that returns `()` or `Result<(), E>`",
    note = "to call something, or to block on a future, write a closure: `|| runtime.block_on(close())`"
)]
pub trait IntoHandler: Task {}

/// The return type of a handler: `()`, `Result<(), E>` where `E: Into<Box<dyn Error + Send + Sync>>`, or `!`.
///
/// `E` can be any error type that is `Send + Sync + 'static`, as nearly all are, or `String`, `&str`,
/// `Box<dyn Error + Send + Sync>` or `anyhow::Error`. It cannot be `Box<dyn Error>`, because errors are kept and may be
/// sent to another thread. A closure that uses `?` has to name its error type, as in `Ok::<(), std::io::Error>(())`.
///
/// This trait is sealed: it cannot be implemented outside this crate, and its supertrait is not part of the public
/// interface.
///
/// ```
/// let mut stack = exitstack::ExitStack::new();
/// stack.register(|| Err("a string is an error"));
/// assert!(stack.close().is_err());
/// ```
#[diagnostic::on_unimplemented(
    message = "an exit handler cannot return `{Self}`",
    label = "a handler returns `()` or `Result<(), E>`",
    note = "to ignore a value, end the handler with `;`, or the `Result` with `.map(drop)`",
    note = "a handler blocks on a future, as in `|| runtime.block_on(close())`; async ones are for `AsyncExitStack::register_async`"
)]
pub trait HandlerResult: sealed::HandlerResult {}

pub(crate) mod sealed {
    use crate::raw::BoxError;

    pub trait HandlerResult {
        fn into_result(self) -> Result<(), BoxError>;
    }

    /// The error of a handler. A trait of its own, so that the compiler can say what to do about an error type that
    /// does not fit.
    #[diagnostic::on_unimplemented(
        message = "an exit handler cannot fail with `{Self}`",
        label = "this error does not convert into `Box<dyn Error + Send + Sync>`",
        note = "return `Box<dyn Error + Send + Sync>` instead of `Box<dyn Error>`, or end the handler with \
                `.map_err(|error| error.to_string())`",
        note = "to join a thread: `thread.join().map_err(|_| \"the thread panicked\")`"
    )]
    pub trait Failure: Into<BoxError> {}

    /// Gives access to the return type of a function pointer, as stable Rust has no other name for `!`.
    pub trait Returns {
        type Out;
    }

    impl<R> Returns for fn() -> R {
        type Out = R;
    }
}

type Never = <fn() -> ! as sealed::Returns>::Out;

#[diagnostic::do_not_recommend]
impl HandlerResult for () {}
impl sealed::HandlerResult for () {
    #[inline]
    fn into_result(self) -> Result<(), BoxError> {
        Ok(())
    }
}

#[diagnostic::do_not_recommend]
impl HandlerResult for Never {}
impl sealed::HandlerResult for Never {
    fn into_result(self) -> Result<(), BoxError> {
        self
    }
}

impl<E: sealed::Failure> HandlerResult for Result<(), E> {}
#[diagnostic::do_not_recommend]
impl<E: Into<Box<dyn Error + Send + Sync>>> sealed::Failure for E {}

impl<E: sealed::Failure> sealed::HandlerResult for Result<(), E> {
    #[inline]
    fn into_result(self) -> Result<(), BoxError> {
        self.map_err(Into::into)
    }
}

impl<F: FnOnce() -> R, R: HandlerResult> IntoHandler for F {}
impl<F: FnOnce() -> R, R: HandlerResult> Task for F {
    #[inline]
    fn run(self, _: Outcome) -> Result<(), BoxError> {
        self().into_result()
    }

    fn function() -> TypeId {
        typeid::of::<F>()
    }
}

/// The key type of a [`Handler`] without a key.
///
/// ```
/// use exitstack::{Handler, NoKey};
///
/// fn nameless<F>(handler: F) -> Handler<F, NoKey> {
///     Handler::new(handler)
/// }
/// let stack = exitstack::ExitStack::new();
/// stack.register(nameless(|| println!("done")));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKey {}

/// A handler with a name, a key, a time limit, or a place of its own.
///
/// The *name* is for people: errors and [`pending`](crate::ExitStack::pending) show it. The *key* is for
/// [`unregister_key`](crate::ExitStack::unregister_key), which removes every handler with an equal key. For handlers
/// that capture something, and so have no other identity, this does what `atexit.unregister(f)` does for functions.
///
/// A `Handler` is boxed when it is registered, which is one allocation. A key costs one more, an `Arc`.
///
/// ```
/// use exitstack::{ExitStack, Handler};
/// use std::path::PathBuf;
///
/// let mut stack = ExitStack::new();
/// let scratch = PathBuf::from("/tmp/scratch");
/// let path = scratch.clone();
/// stack.register(Handler::new(move || std::fs::remove_file(path)).named("remove scratch").keyed(scratch.clone()));
/// assert_eq!(stack.unregister_key(&scratch), 1); // keep the file after all
/// ```
pub struct Handler<F, K = NoKey> {
    function: F,
    label: Label,
    key: Option<Arc<K>>,
    location: Option<&'static Location<'static>>,
}

impl<F> Handler<F> {
    /// Creates a handler without a name or a key.
    ///
    /// ```
    /// let stack = exitstack::ExitStack::new();
    /// stack.register(exitstack::Handler::new(|| println!("bye")));
    /// ```
    pub fn new(function: F) -> Self {
        Self { function, label: Label::default(), key: None, location: None }
    }
}

impl<F, K> Handler<F, K> {
    /// Sets the name, replacing any earlier one.
    ///
    /// ```
    /// use exitstack::{ExitStack, Handler};
    /// let stack = ExitStack::new();
    /// stack.register(Handler::new(|| ()).named("flush log"));
    /// assert_eq!(stack.pending()[0].name(), Some("flush log"));
    /// ```
    #[must_use]
    pub fn named(self, name: impl Into<Cow<'static, str>>) -> Self {
        Self { label: Label { name: Some(name.into().into()), ..self.label }, ..self }
    }

    /// Sets the key, replacing any earlier one.
    ///
    /// In a [`SharedExitStack`](crate::SharedExitStack) the key must be `Send + Sync`, because other threads may
    /// compare it.
    ///
    /// The key is dropped when the handler has run. (Without std, the key of one that fails is leaked: a panic of its
    /// drop could not be caught, and would take the place of the failure.)
    ///
    /// ```
    /// use exitstack::{ExitStack, Handler};
    /// let mut stack = ExitStack::new();
    /// stack.register(Handler::new(|| ()).keyed("session 7"));
    /// assert_eq!(stack.unregister_key(&"session 7"), 1);
    /// ```
    #[must_use]
    pub fn keyed<L: PartialEq + 'static>(self, key: L) -> Handler<F, L> {
        Handler { function: self.function, label: self.label, key: Some(Arc::new(key)), location: self.location }
    }

    /// Sets how long the handler may run where drains are bounded, replacing any earlier limit.
    ///
    /// The limit applies in a drain that is bounded by [`set_limits`](crate::shutdown::set_limits) or by
    /// [`finalize_within`](crate::Interpreter::finalize_within). Of this limit and those set there, the first to expire
    /// counts. Elsewhere it has no effect.
    ///
    /// ```
    /// use exitstack::Handler;
    /// use std::time::Duration;
    ///
    /// # #[cfg(feature = "std")] {
    /// let interpreter = exitstack::Interpreter::new("session");
    /// interpreter.stack().register(Handler::new(|| println!("log out")).within(Duration::from_secs(1)));
    /// # }
    /// ```
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self { label: Label { limit: Some(limit), ..self.label }, ..self }
    }

    /// Sets the place that errors and [`pending`](crate::ExitStack::pending) show, instead of where the handler is
    /// registered.
    ///
    /// For functions that register on behalf of their callers and are not `#[track_caller]` all the way, and for
    /// runtimes that know a better place.
    ///
    /// ```
    /// use exitstack::{ExitStack, Handler};
    /// use std::panic::Location;
    ///
    /// struct Session {
    ///     stack: ExitStack<'static>,
    ///     opened: &'static Location<'static>,
    /// }
    ///
    /// impl Session {
    ///     #[track_caller]
    ///     fn open() -> Self {
    ///         Self { stack: ExitStack::new(), opened: Location::caller() }
    ///     }
    ///
    ///     fn log_out_at_end(&self) {
    ///         self.stack.register(Handler::new(|| Err("no connection")).at(self.opened));
    ///     }
    /// }
    ///
    /// let mut session = Session::open();
    /// session.log_out_at_end();
    /// let error = session.stack.close().unwrap_err();
    /// assert_eq!(error.errors()[0].location(), session.opened);
    /// ```
    #[must_use]
    pub fn at(self, location: &'static Location<'static>) -> Self {
        Self { location: Some(location), ..self }
    }
}

impl<F, K> fmt::Debug for Handler<F, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler")
            .field("name", &self.label.name.as_deref())
            .field("keyed", &self.key.is_some())
            .finish_non_exhaustive()
    }
}

#[diagnostic::do_not_recommend]
impl<F: FnOnce() -> R, R: HandlerResult, K: 'static> IntoHandler for Handler<F, K> {}
impl<F: FnOnce() -> R, R: HandlerResult, K: 'static> Task for Handler<F, K> {
    const LABELLED: bool = true;

    fn run(self, outcome: Outcome) -> Result<(), BoxError> {
        let Self { function, key, .. } = self;
        let key = guard(key, discard_or_leak); // the handler's own failure or panic is the one to tell
        let result = function.run(outcome);
        if result.is_ok() {
            drop(ScopeGuard::into_inner(key)); // a panic here is the handler's
        }
        result
    }

    fn function() -> TypeId {
        F::function()
    }

    fn label(&self) -> Option<&Label> {
        Some(&self.label)
    }

    fn location(&self) -> Option<&'static Location<'static>> {
        self.location
    }

    fn key(&self) -> Option<&dyn Any> {
        self.key.as_ref().map(|key| key as _)
    }
}

/// A handler that runs only for success if `SUCCESS` is true, otherwise only for failure.
pub(crate) struct Only<T, const SUCCESS: bool>(pub(crate) T);

impl<T: Task, const SUCCESS: bool> Task for Only<T, SUCCESS> {
    const ONLY: Option<Outcome> = Some(if SUCCESS { Outcome::Success } else { Outcome::Failure });
    const LABELLED: bool = T::LABELLED;

    fn run(self, outcome: Outcome) -> Result<(), BoxError> {
        self.0.run(outcome)
    }

    fn function() -> TypeId {
        T::function()
    }

    fn label(&self) -> Option<&Label> {
        self.0.label()
    }

    fn location(&self) -> Option<&'static Location<'static>> {
        self.0.location()
    }

    fn key(&self) -> Option<&dyn Any> {
        self.0.key()
    }
}

/// An entry of a stack's list: a handler and where it was registered.
pub(crate) struct Entry<B: ?Sized> {
    pub(crate) closure: Closure<B>,
    pub(crate) location: &'static Location<'static>,
}

/// An entry of a local stack, which stays on one thread.
pub(crate) type LocalEntry<'a> = Entry<dyn Bound + 'a>;

/// An entry of an async stack, which may borrow and may be sent to another thread.
#[cfg(feature = "async")]
pub(crate) type SendEntry<'a> = Entry<dyn Bound + Send + 'a>;

/// An entry of a shared stack.
pub(crate) type SharedEntry = Entry<dyn Bound + Send>;

impl<B: ?Sized> Entry<B> {
    /// Returns whether the handler has a key equal to `key`, by the key's own `==`.
    pub(crate) fn has_key<K: PartialEq + 'static>(&self, key: &K) -> bool {
        self.key_of::<K>().is_some_and(|own| **own == *key)
    }

    /// Returns the handler's key, if it has one of type `K`.
    pub(crate) fn key_of<K: 'static>(&self) -> Option<&Arc<K>> {
        self.closure.key()?.downcast_ref()
    }

    pub(crate) fn pending(&self, id: HandlerId) -> PendingHandler {
        PendingHandler { id, site: Site { name: self.closure.name().cloned(), location: self.location } }
    }
}

/// A description of a pending handler, as listed by [`ExitStack::pending`](crate::ExitStack::pending).
///
/// It is a copy: the handler may run or be removed while it exists.
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
    /// Returns the handler's id, as `register` returned it.
    ///
    /// ```
    /// use exitstack::{ExitStack, Handler};
    ///
    /// let stack = ExitStack::new();
    /// let id = stack.register(Handler::new(|| ()).named("flush"));
    /// assert_eq!(stack.pending()[0].id(), id);
    /// ```
    pub fn id(&self) -> HandlerId {
        self.id
    }

    /// Returns the handler's name, if it has one.
    ///
    /// ```
    /// use exitstack::{ExitStack, Handler};
    ///
    /// let stack = ExitStack::new();
    /// stack.register(Handler::new(|| ()).named("flush"));
    /// assert_eq!(stack.pending()[0].name(), Some("flush"));
    /// ```
    pub fn name(&self) -> Option<&str> {
        self.site.name.as_deref()
    }

    /// Returns where the handler was registered.
    ///
    /// ```
    /// use exitstack::{ExitStack, Handler};
    ///
    /// let stack = ExitStack::new();
    /// stack.register(Handler::new(|| ()).named("flush"));
    /// assert_eq!(stack.pending()[0].location().file(), file!());
    /// ```
    pub fn location(&self) -> &'static Location<'static> {
        self.site.location
    }

    #[cfg(feature = "async")]
    pub(crate) fn site(&self) -> &Site {
        &self.site
    }
}

/// Returns the identity of a function, which is its type.
pub(crate) fn identity<F>(_: &F) -> TypeId {
    const {
        assert!(
            size_of::<F>() == 0,
            "a function pointer, or a closure that captures something, cannot be identified by its type: register it \
             with `Handler::new(f).keyed(key)` and remove it with `unregister_key(&key)`"
        );
    }
    typeid::of::<F>()
}
