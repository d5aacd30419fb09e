//! Stacks whose handlers may be async: [`AsyncExitStack`].

use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::panic::Location;
use std::sync::Arc;

use crate::error::{CloseError, Outcome};
use crate::handler::{HandlerResult, IntoAsyncHandler, IntoHandler, Only, PendingHandler, SendEntry, identity};
use crate::list::{HandlerId, HandlerList};
use crate::panics::{drop_all, drop_all_then};
use crate::raw::Lending;
use crate::sync::const_fn;

mod flight;
mod queue;
mod scope;
mod teardown;

pub(crate) use flight::Slot;
pub(crate) use queue::Queue;
pub use scope::{AsyncScope, scope_async};

use flight::Deferred;
use teardown::{Failing, Teardown};

#[doc = include_str!("../async_stack.md")]
#[doc(alias = "AsyncDisposableStack")]
#[doc(alias = "async drop")]
#[doc(alias = "cleanup")]
#[must_use = "a stack that is not bound to a name is dropped at once, and its async handlers are not run"]
pub struct AsyncExitStack<'a> {
    handlers: Lending<'a>,
    teardown: Teardown,
}

impl<'a> AsyncExitStack<'a> {
    const_fn! {
        /// Creates an empty stack. Does not allocate.
        ///
        /// ```
        /// let stack = exitstack::AsyncExitStack::new();
        /// assert!(stack.is_empty());
        /// ```
        pub const fn new() -> Self {
            Self { handlers: Lending::new(), teardown: Teardown::new() }
        }
    }

    /// Registers a handler that is not async, which will run before all handlers that are registered already.
    ///
    /// It may run on any thread, and it must not block for long: it runs in a poll of [`close()`](Self::close), on a
    /// thread of the runtime. Amortized O(1).
    ///
    /// ```
    /// # pollster::block_on(async {
    /// let mut stack = exitstack::AsyncExitStack::new();
    /// stack.register(|| println!("bye"));
    /// stack.close().await?;
    /// # Ok::<(), exitstack::CloseError>(())
    /// # }).unwrap();
    /// ```
    #[doc(alias = "callback")]
    #[doc(alias = "push")]
    #[doc(alias = "defer")]
    #[track_caller]
    pub fn register(&self, handler: impl IntoHandler + Send + 'a) -> HandlerId {
        self.handlers.push(handler, Location::caller())
    }

    /// Registers an async handler, which will run before all handlers that are registered already.
    ///
    /// **It runs only in [`close().await`](Self::close)**; if the stack is dropped without that, the handler is
    /// reported as [not run](crate::HandlerErrorKind::NotRun). The function is called, and its future created, when its
    /// turn comes.
    ///
    /// The future is stored in an allocation of its own while it is in flight.
    ///
    /// ```
    /// # async fn flush(_: &str) -> Result<(), std::io::Error> { Ok(()) }
    /// # pollster::block_on(async {
    /// let name = String::from("log");
    /// let mut stack = exitstack::AsyncExitStack::new();
    /// stack.register_async(async || flush(&name).await);
    /// stack.close().await?;
    /// # Ok::<(), exitstack::CloseError>(())
    /// # }).unwrap();
    /// ```
    #[doc(alias = "push_async_callback")]
    #[doc(alias = "push_async_exit")]
    #[doc(alias = "defer")]
    #[track_caller]
    pub fn register_async(&self, handler: impl IntoAsyncHandler + 'a) -> HandlerId {
        self.handlers.push(self.deferred(handler), Location::caller())
    }

    /// Registers a handler that runs only if the work succeeded; otherwise it is dropped when its turn comes.
    ///
    /// **Without [`close()`](Self::close) it does not run**, as described at
    /// [`ExitStack::on_success`](crate::ExitStack::on_success).
    ///
    /// ```
    /// # pollster::block_on(async {
    /// let mut stack = exitstack::AsyncExitStack::new();
    /// stack.on_success(|| println!("commit"));
    /// stack.close().await?; // commits
    /// # Ok::<(), exitstack::CloseError>(())
    /// # }).unwrap();
    /// ```
    #[track_caller]
    pub fn on_success(&self, handler: impl IntoHandler + Send + 'a) -> HandlerId {
        self.handlers.push(Only::<_, true>(handler), Location::caller())
    }

    /// Registers a handler that runs only if the work failed; otherwise it is dropped when its turn comes.
    ///
    /// **It runs unless [`close()`](Self::close) is reached**, as described at
    /// [`ExitStack::on_success`](crate::ExitStack::on_success).
    ///
    /// ```
    /// let stack = exitstack::AsyncExitStack::new();
    /// stack.on_failure(|| println!("roll back"));
    /// drop(stack); // rolls back
    /// ```
    #[doc(alias = "rollback")]
    #[track_caller]
    pub fn on_failure(&self, handler: impl IntoHandler + Send + 'a) -> HandlerId {
        self.handlers.push(Only::<_, false>(handler), Location::caller())
    }

    /// Registers an async handler that runs only if the work succeeded; otherwise it is dropped when its turn comes.
    ///
    /// **Without [`close().await`](Self::close) it does not run**, and because a stack that is dropped has failed, that
    /// is not reported.
    ///
    /// ```
    /// # pollster::block_on(async {
    /// let mut stack = exitstack::AsyncExitStack::new();
    /// stack.on_success_async(async || println!("commit"));
    /// stack.close().await?; // commits
    /// # Ok::<(), exitstack::CloseError>(())
    /// # }).unwrap();
    /// ```
    #[track_caller]
    pub fn on_success_async(&self, handler: impl IntoAsyncHandler + 'a) -> HandlerId {
        self.handlers.push(Only::<_, true>(self.deferred(handler)), Location::caller())
    }

    /// Registers an async handler that runs only if the work failed; otherwise it is dropped when its turn comes.
    ///
    /// **A drop cannot run it: after an early `?`, or when its task is cancelled, it is reported as [not
    /// run](crate::HandlerErrorKind::NotRun).** Close the stack with [`close_with(Failure)`](Self::close_with), or use
    /// [`scope_async`], which does so when its body returns an `Err` or panics.
    ///
    /// ```
    /// use exitstack::{AsyncExitStack, Outcome};
    ///
    /// # async fn transfer() -> Result<(), String> { Err(String::from("insufficient funds")) }
    /// # pollster::block_on(async {
    /// let mut stack = AsyncExitStack::new();
    /// stack.on_failure_async(async || println!("roll back"));
    /// let outcome = if transfer().await.is_ok() { Outcome::Success } else { Outcome::Failure };
    /// stack.close_with(outcome).await?;
    /// # Ok::<(), exitstack::CloseError>(())
    /// # }).unwrap();
    /// ```
    #[doc(alias = "rollback")]
    #[track_caller]
    pub fn on_failure_async(&self, handler: impl IntoAsyncHandler + 'a) -> HandlerId {
        self.handlers.push(Only::<_, false>(self.deferred(handler)), Location::caller())
    }

    /// Takes a value and lends it out until the stack drains, when the value is passed to `exit`.
    ///
    /// Works like [`ExitStack::enter`](crate::ExitStack::enter), for a value that may be sent to another thread.
    ///
    /// ```
    /// # pollster::block_on(async {
    /// let mut stack = exitstack::AsyncExitStack::new();
    /// let lines = stack.enter(Vec::new(), |lines| println!("{} lines", lines.len()));
    /// lines.push("first");
    /// stack.close().await?; // `lines` cannot be used from here on
    /// # Ok::<(), exitstack::CloseError>(())
    /// # }).unwrap();
    /// ```
    #[doc(alias = "enter_context")]
    #[track_caller]
    pub fn enter<T: Send + 'a, R: HandlerResult>(&self, value: T, exit: impl FnOnce(T) -> R + Send + 'a) -> &mut T {
        self.handlers.enter(value, |value, _| exit(value), Location::caller())
    }

    /// Takes a value and lends it out until the stack is closed, when the value is passed to `exit`, which is async.
    ///
    /// This is Python's `enter_async_context`, and JavaScript's `adopt`. The value is stored in an allocation of its
    /// own. If the handler is removed without being run, or if the stack is dropped without
    /// [`close().await`](Self::close), **the value is dropped and `exit` is not called**; the latter is reported.
    ///
    /// ```
    /// use exitstack::AsyncExitStack;
    /// # struct Connection;
    /// # impl Connection {
    /// #     async fn open() -> Self { Self }
    /// #     async fn send(&mut self, _: &str) {}
    /// #     async fn shut_down(self) -> Result<(), std::io::Error> { Ok(()) }
    /// # }
    /// # pollster::block_on(async {
    ///
    /// let mut stack = AsyncExitStack::new();
    /// let connection = stack.enter_async(Connection::open().await, Connection::shut_down);
    /// connection.send("hello").await;
    /// stack.close().await?; // shuts the connection down, which cannot be used from here on
    /// # Ok::<(), exitstack::CloseError>(())
    /// # }).unwrap();
    /// ```
    ///
    /// The loan ends before the stack can be closed:
    ///
    /// ```compile_fail,E0502
    /// # async fn example() {
    /// let mut stack = exitstack::AsyncExitStack::new();
    /// let text = stack.enter_async(String::from("open"), async |text| drop(text));
    /// stack.close().await;
    /// text.push('!'); // error: `stack` was closed while `text` was borrowed from it
    /// # }
    /// ```
    #[doc(alias = "enter_async_context")]
    #[doc(alias = "adopt")]
    #[track_caller]
    pub fn enter_async<T: Send + 'a, R: Future<Output: HandlerResult> + Send + 'a>(
        &self,
        value: T,
        exit: impl FnOnce(T) -> R + Send + 'a,
    ) -> &mut T {
        let slot = Arc::clone(self.handlers.slot());
        self.handlers.enter(value, move |value, _| slot.start(|| exit(value)), Location::caller())
    }

    fn deferred<H>(&self, handler: H) -> Deferred<'a, H> {
        Deferred::new(handler, self.handlers.slot())
    }

    /// Takes handlers out of the list, which the caller drops.
    fn take_out<R>(&mut self, remove: impl FnOnce(&mut HandlerList<SendEntry<'a>>) -> R) -> R {
        let queue = self.handlers.get_mut();
        let removed = remove(queue.handlers());
        self.teardown.end_if_empty(queue);
        removed
    }

    /// Removes a handler and drops it without running it; returns false if it is not, or no longer, in this stack.
    ///
    /// A handler that is [in flight](Self::in_flight) has left the stack. O(log n), amortized.
    ///
    /// # Panics
    ///
    /// Panics if the drop of a capture panics. The handler is removed all the same.
    ///
    /// ```
    /// let mut stack = exitstack::AsyncExitStack::new();
    /// let id = stack.register_async(async || panic!("not run"));
    /// assert!(stack.unregister(id));
    /// ```
    #[doc(alias = "cancel")]
    pub fn unregister(&mut self, id: HandlerId) -> bool {
        self.take_out(|handlers| handlers.remove(id)).is_some()
    }

    /// Removes every registration of this function and returns how many there were.
    ///
    /// Works like [`ExitStack::unregister_fn`](crate::ExitStack::unregister_fn), for async functions too.
    ///
    /// # Panics
    ///
    /// Panics if the drop of a key or of a zero-sized capture panics: every handler found is removed and dropped first,
    /// then the first panic is resumed.
    ///
    /// ```
    /// async fn goodbye() {
    ///     println!("goodbye");
    /// }
    /// let mut stack = exitstack::AsyncExitStack::new();
    /// stack.register_async(goodbye);
    /// assert_eq!(stack.unregister_fn(goodbye), 1);
    /// ```
    pub fn unregister_fn<F: FnOnce() -> R, R>(&mut self, function: F) -> usize {
        let identity = identity(&function);
        let found = self.take_out(|handlers| handlers.find_and_remove(|entry| entry.closure.function() == identity));
        let count = found.len();
        drop_all_then(found, [function]);
        count
    }

    /// Removes every handler with a key equal to this one and returns how many there were.
    ///
    /// Works like [`ExitStack::unregister_key`](crate::ExitStack::unregister_key).
    ///
    /// # Panics
    ///
    /// Panics if an `==` panics. Nothing is removed then.
    ///
    /// Panics if the drop of a capture panics: every handler found is removed and dropped first, then the first panic
    /// is resumed.
    ///
    /// ```
    /// use exitstack::{AsyncExitStack, Handler};
    ///
    /// let mut stack = AsyncExitStack::new();
    /// stack.register_async(Handler::new(async || println!("log out")).keyed("session 7"));
    /// assert_eq!(stack.unregister_key(&"session 7"), 1);
    /// ```
    pub fn unregister_key<K: PartialEq + 'static>(&mut self, key: &K) -> usize {
        let found = self.take_out(|handlers| handlers.find_and_remove(|entry| entry.has_key(key)));
        let count = found.len();
        drop_all(found);
        count
    }

    /// Moves all handlers to a new stack without running them, and leaves this stack empty.
    ///
    /// **The new stack has to be closed like any other: if it is dropped without [`close().await`](Self::close), its
    /// async handlers do not run.** The ids stay valid in the new stack, and only there. If a `close()` was dropped
    /// midway, the new stack gets all of it: the handler in flight, the failures so far, and the outcome.
    ///
    /// ```
    /// use exitstack::AsyncExitStack;
    ///
    /// # async fn connect() -> Result<(), std::io::Error> { Ok(()) }
    /// async fn connect_all<'a>() -> Result<AsyncExitStack<'a>, std::io::Error> {
    ///     let mut stack = AsyncExitStack::new();
    ///     for server in 1..=3 {
    ///         connect().await?;
    ///         stack.register_async(async move || println!("disconnect from {server}"));
    ///     }
    ///     Ok(stack.pop_all())
    /// }
    /// # pollster::block_on(async { connect_all().await.unwrap().close().await }).unwrap();
    /// ```
    #[doc(alias = "take")]
    #[doc(alias = "move")]
    pub fn pop_all(&mut self) -> AsyncExitStack<'a> {
        mem::take(self)
    }

    /// Drops all handlers without running them, the newest first.
    ///
    /// If a `close()` was dropped midway, the handler [in flight](Self::in_flight) and the failures so far stay, for
    /// the next `close()`.
    ///
    /// # Panics
    ///
    /// Panics if the drop of a capture panics: every handler is dropped first, then the first panic is resumed. The
    /// stack is empty then.
    ///
    /// ```
    /// let mut stack = exitstack::AsyncExitStack::new();
    /// stack.register_async(async || unreachable!());
    /// stack.clear();
    /// ```
    #[doc(alias = "dismiss")]
    #[doc(alias = "disarm")]
    pub fn clear(&mut self) {
        drop_all(self.take_out(HandlerList::clear).into_iter().rev());
    }

    /// Returns the number of pending handlers, not counting one that is [in flight](Self::in_flight).
    ///
    /// ```
    /// let stack = exitstack::AsyncExitStack::new();
    /// stack.register(|| ());
    /// assert_eq!(stack.len(), 1);
    /// ```
    pub fn len(&self) -> usize {
        self.handlers.len()
    }

    /// Returns whether there are no pending handlers, not counting one that is [in flight](Self::in_flight).
    ///
    /// ```
    /// assert!(exitstack::AsyncExitStack::new().is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a list of the pending handlers, the next to run first, without one that is [in flight](Self::in_flight).
    ///
    /// O(n); allocates the list. The stack is locked while its handlers are listed.
    ///
    /// ```
    /// use exitstack::{AsyncExitStack, Handler};
    ///
    /// let mut stack = AsyncExitStack::new();
    /// stack.register_async(Handler::new(async || ()).named("flush log"));
    /// assert_eq!(stack.pending()[0].name(), Some("flush log"));
    /// # stack.clear();
    /// ```
    pub fn pending(&self) -> Vec<PendingHandler> {
        self.handlers.pending()
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
    /// let stack = exitstack::AsyncExitStack::new();
    /// stack.reserve(100);
    /// ```
    pub fn reserve(&self, additional: usize) {
        self.handlers.reserve(additional);
    }

    /// Runs all handlers, the last registered first, with success as the outcome of the work.
    ///
    /// **Nothing runs until the future is polled**, and success means that it was polled: calling this is not enough.
    ///
    /// The future may be dropped at any point, and nothing is lost: the next `close()` resumes the handler that was [in
    /// flight](Self::in_flight), and then runs the rest. What is registered in between runs next after that handler.
    ///
    /// # Errors
    ///
    /// Returns an error if a handler failed, panicked, was [cancelled](Self::cancel_in_flight), or requested an exit
    /// status with [`Exit`](crate::Exit), including in an earlier `close()` that was dropped midway. All handlers have
    /// run then, and nothing is printed. If a handler ends the process, those below it do not run, and failures so far
    /// are lost.
    ///
    /// ```
    /// # pollster::block_on(async {
    /// let mut stack = exitstack::AsyncExitStack::new();
    /// stack.register_async(async || Err("disk full"));
    /// let error = stack.close().await.unwrap_err();
    /// assert!(format!("{error:#}").ends_with("failed: disk full"));
    /// assert!(stack.close().await.is_ok());
    /// # });
    /// ```
    #[doc(alias = "aclose")]
    #[doc(alias = "disposeAsync")]
    #[must_use = "nothing runs until the future is awaited"]
    pub fn close(&mut self) -> impl Future<Output = Result<(), CloseError>> + Send {
        self.close_with(Outcome::Success)
    }

    /// Runs all handlers, the last registered first, with the given outcome of the work.
    ///
    /// The outcome decides which of the [`on_success`](Self::on_success) and [`on_failure`](Self::on_failure) handlers
    /// run. The others are dropped, each when its turn comes.
    ///
    /// **If an earlier `close()` was dropped midway, the rest runs with the outcome that it began with**, so that no
    /// work is half committed and half rolled back. Only if the stack is dropped does the rest run with failure. If all
    /// of the rest was removed and [cancelled](Self::cancel_in_flight), what is registered then has an outcome of its
    /// own.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`close`](Self::close).
    ///
    /// ```
    /// use exitstack::{AsyncExitStack, Outcome};
    /// # pollster::block_on(async {
    /// let mut stack = AsyncExitStack::new();
    /// stack.on_failure_async(async || println!("rolling back"));
    /// stack.close_with(Outcome::Failure).await?;
    /// # Ok::<(), exitstack::CloseError>(())
    /// # }).unwrap();
    /// ```
    #[must_use = "nothing runs until the future is awaited"]
    pub fn close_with(&mut self, outcome: Outcome) -> impl Future<Output = Result<(), CloseError>> + Send {
        let Self { handlers, teardown } = self;
        let queue = handlers.get_mut();
        poll_fn(move |context| teardown.poll(queue, context.waker(), outcome, Failing::Returned))
    }

    /// Returns the async handler whose future was pending when the last `close()` was dropped, if there is one.
    ///
    /// The next [`close()`](Self::close) resumes it.
    ///
    /// ```
    /// use exitstack::{AsyncExitStack, Handler};
    /// use std::pin::pin;
    /// use std::task::{Context, Waker};
    ///
    /// let mut stack = AsyncExitStack::new();
    /// stack.register_async(Handler::new(std::future::pending::<()>).named("drain queue"));
    /// assert!(pin!(stack.close()).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    /// assert_eq!(stack.in_flight().unwrap().name(), Some("drain queue"));
    /// assert!(stack.is_empty());
    /// # stack.cancel_in_flight();
    /// # pollster::block_on(stack.close()).unwrap_err();
    /// ```
    pub fn in_flight(&self) -> Option<PendingHandler> {
        self.teardown.latest().filter(|_| self.handlers.has_flight()).cloned()
    }

    /// Drops the future of the handler that is [in flight](Self::in_flight); returns false if there is none.
    ///
    /// The handler has failed then: the next [`close()`](Self::close), which runs the rest, returns that it was
    /// [cancelled](crate::HandlerErrorKind::Cancelled).
    ///
    /// # Panics
    ///
    /// Panics if the drop of the future panics. It is cancelled all the same.
    ///
    /// ```
    /// use exitstack::{AsyncExitStack, HandlerErrorKind};
    /// use std::pin::pin;
    /// use std::task::{Context, Waker};
    ///
    /// let mut stack = AsyncExitStack::new();
    /// stack.register_async(std::future::pending::<()>);
    /// assert!(pin!(stack.close()).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    /// assert!(stack.cancel_in_flight());
    /// let error = pollster::block_on(stack.close()).unwrap_err();
    /// assert!(matches!(error.errors()[0].kind(), HandlerErrorKind::Cancelled));
    /// ```
    #[doc(alias = "abort")]
    pub fn cancel_in_flight(&mut self) -> bool {
        self.teardown.cancel_in_flight(self.handlers.get_mut())
    }
}

impl Drop for AsyncExitStack<'_> {
    fn drop(&mut self) {
        let queue = self.handlers.get_mut();
        if !self.teardown.is_idle() || queue.len() > 0 {
            self.teardown.abandon(queue);
        }
    }
}

impl Default for AsyncExitStack<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for AsyncExitStack<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncExitStack")
            .field("pending", &self.pending())
            .field("in_flight", &self.in_flight())
            .finish()
    }
}
