//! Async handlers: functions and closures that return a future.

use std::any::{Any, TypeId};
use std::panic::Location;

use scopeguard::{ScopeGuard, guard};

use super::{Handler, HandlerResult};
use crate::error::Label;
use crate::panics::discard;

/// A closure or function without arguments that returns a future, or a [`Handler`] that wraps one.
///
/// Available with the feature `async`.
///
/// It is called when its turn comes, and the future that it returns is polled until it is ready. The future returns `()`,
/// `Result<(), E>` or `!`, like any [handler](HandlerResult). Both the function and the future must be `Send`, so that the
/// stack can be closed in a spawned task; so must the key of a `Handler`, which must be `Sync` as well.
///
/// An `async fn` without arguments is such a function, and `async move || { … }` is such a closure. An `async` block is
/// not, because it is already a future: put `||` in front of it.
///
/// This trait is sealed: it cannot be implemented outside this crate, and its supertrait is not part of the public interface.
///
/// ```
/// use exitstack::{AsyncExitStack, Handler};
///
/// async fn goodbye() {
///     println!("goodbye");
/// }
/// # pollster::block_on(async {
/// let mut stack = AsyncExitStack::new();
/// let name = String::from("scratch");
/// stack.register_async(goodbye);
/// stack.register_async(async move || println!("{name} is removed"));
/// stack.register_async(|| async { Err("kept") });
/// stack.register_async(Handler::new(goodbye).named("say goodbye twice"));
/// assert_eq!(stack.close().await.unwrap_err().errors().len(), 1);
/// # });
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an async exit handler",
    label = "not a closure or function without arguments that returns a future",
    note = "an async handler is a closure or function that returns a future, such as `async move || {{ }}` or `|| async {{ }}`; \
            an `async` block needs `||` in front of it",
    note = "the closure and the future must be `Send`, and the future must return `()` or `Result<(), E>`"
)]
pub trait IntoAsyncHandler: sealed::AsyncTask {}

pub(crate) mod sealed {
    use super::{Any, HandlerResult, Label, Location, TypeId};

    /// The counterpart of [`Task`](crate::raw::Task) for async handlers.
    pub trait AsyncTask: Send + Sized {
        /// Whether it may have a name or a key; if not, it is never asked for one.
        const LABELLED: bool = false;

        type Future: Future<Output: HandlerResult> + Send;

        /// Calls the function. Also returns what else there was, to be dropped when nothing can be lost by a panic.
        fn start(self) -> (Self::Future, impl Sized);

        /// Returns the type of the function in it, which is the function's identity.
        fn function() -> TypeId;

        fn label(&self) -> Option<&Label> {
            None
        }

        fn location(&self) -> Option<&'static Location<'static>> {
            None
        }

        fn key(&self) -> Option<&dyn Any> {
            None
        }
    }
}

impl<F: FnOnce() -> R + Send, R: Future<Output: HandlerResult> + Send> IntoAsyncHandler for F {}
impl<F: FnOnce() -> R + Send, R: Future<Output: HandlerResult> + Send> sealed::AsyncTask for F {
    type Future = R;

    fn start(self) -> (R, impl Sized) {
        (self(), ())
    }

    fn function() -> TypeId {
        typeid::of::<F>()
    }
}

impl<F: FnOnce() -> R + Send, R: Future<Output: HandlerResult> + Send, K: Send + Sync + 'static> IntoAsyncHandler
    for Handler<F, K>
{
}
impl<F: FnOnce() -> R + Send, R: Future<Output: HandlerResult> + Send, K: Send + Sync + 'static> sealed::AsyncTask
    for Handler<F, K>
{
    const LABELLED: bool = true;

    type Future = R;

    fn start(self) -> (R, impl Sized) {
        let Self { function, key, .. } = self;
        let key = guard(key, discard); // if the function panics, the drop of the key may panic too
        let future = function();
        (future, ScopeGuard::into_inner(key))
    }

    fn function() -> TypeId {
        typeid::of::<F>()
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
