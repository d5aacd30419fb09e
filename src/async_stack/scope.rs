//! Async stacks that are closed with the outcome of a body: [`scope_async`].

use std::fmt;
use std::future::poll_fn;
use std::panic::{Location, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread;

use scopeguard::{ScopeGuard, guard};

use super::flight::Deferred;
use super::queue::Queue;
use super::teardown::{Failing, Teardown};
use crate::error::{CloseError, Outcome, Refused};
use crate::handler::{IntoAsyncHandler, IntoHandler, Only, PendingHandler};
use crate::list::HandlerId;
use crate::panics::{catch, discard};
use crate::raw::Task;

/// Runs an async `body` with a new stack, then drains the stack with the outcome of the body.
///
/// Available with the feature `async`.
///
/// This is Python's `async with AsyncExitStack() as stack:`, and [`scope`](crate::scope) for async handlers. The
/// outcome is success if the body returns `Ok`, and failure if it returns `Err` or panics. The stack is closed, and its
/// async handlers are awaited, in all three cases.
///
/// | body | handlers | result |
/// | --- | --- | --- |
/// | `Ok(value)` | none failed | `Ok(value)` |
/// | `Ok(_)` | some failed or requested an exit status | `Err(E::from(close_error))` |
/// | `Err(error)` | | `Err(error)`; failures of handlers go to the [report hook](crate::report) |
/// | panics | | the panic propagates when all handlers are done; their failures go to the report hook |
/// | the future is dropped | async handlers do not run | |
///
/// **If the future is dropped before it is ready, by a timeout, a `select!` or the abort of its task, async handlers do
/// not run**: each is reported as [not run](crate::HandlerErrorKind::NotRun), one that is in flight as
/// [cancelled](crate::HandlerErrorKind::Cancelled), and the other handlers run in the drop, with failure as the
/// outcome. Where that must not happen, put the timeout inside the body, or spawn the scope as a task of its own that
/// nobody aborts.
///
/// The body gets a handle, which it may clone and move to other tasks. A handler that is registered while the handlers
/// run, with a handle that was kept, runs next. Once the last handler is done, a handle
/// [refuses](AsyncScope::try_register).
///
/// The body is a closure that returns a future, so that the future of the scope is `Send`, and can be spawned, if the
/// closure, the body's future and `Result<T, E>` are. (The future of an `AsyncFnOnce` that is lent the stack cannot be
/// proven to be `Send`.) If the body failed, exit statuses that handlers request are ignored.
///
/// # Errors
///
/// Returns the error of the body, or that of the drain if the body succeeded. All handlers have run then.
///
/// # Panics
///
/// Panics if the body panics. All handlers have run then.
///
/// ```
/// use exitstack::scope_async;
/// use std::error::Error;
///
/// async fn transfer(ok: bool) -> Result<(), Box<dyn Error + Send + Sync>> {
///     scope_async(|stack| async move {
///         println!("begin");
///         stack.on_failure_async(async || println!("rollback"));
///         stack.on_success_async(async || println!("commit"));
///         if ok { Ok(()) } else { Err("insufficient funds".into()) }
///     })
///     .await
/// }
/// # pollster::block_on(async {
/// assert!(transfer(true).await.is_ok());
/// assert_eq!(transfer(false).await.unwrap_err().to_string(), "insufficient funds");
/// # });
/// ```
#[doc(alias = "async with")]
#[doc(alias = "transaction")]
pub async fn scope_async<'a, T, E, F>(body: impl FnOnce(AsyncScope<'a>) -> F) -> Result<T, E>
where
    E: From<CloseError>,
    F: Future<Output = Result<T, E>>,
{
    // Declared before the body's future, and so dropped after it.
    let mut stack = ScopeStack { queue: Arc::new(Queue::of_scope()), teardown: Teardown::new() };
    let scope = AsyncScope { queue: Arc::clone(&stack.queue) };
    let ended = guard(caught(|| body(scope)).await, discard); // if this future is dropped, nobody receives it
    let (outcome, failing) = match &*ended {
        Ok(Ok(_)) => (Outcome::Success, Failing::Returned),
        _ => (Outcome::Failure, Failing::Reported),
    };
    let closed = stack.close(outcome, failing).await;
    match ScopeGuard::into_inner(ended) {
        Ok(Ok(value)) => closed.map(|()| value).map_err(E::from),
        Ok(Err(error)) => Err(error),
        Err(payload) => resume_unwind(payload),
    }
}

/// Returns what the body returns, or the payload if it panics: when it is called, in a poll of its future, or in the drop
/// of the future, unless it has failed before.
///
/// An `async` block around it would drop a future that panics while it unwinds, and a second panic in that drop would
/// abort the process.
async fn caught<T, E, F: Future<Output = Result<T, E>>>(body: impl FnOnce() -> F) -> thread::Result<F::Output> {
    let mut future = pin!(Some(catch(body)?));
    let ended = poll_fn(|context| {
        let future = future.as_mut().as_pin_mut();
        match catch(|| future.map_or(Poll::Pending, |future| future.poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(payload) => Poll::Ready(Err(payload)),
        }
    })
    .await;
    match (ended, catch(|| future.set(None))) {
        (ended, Ok(())) => ended,
        (Ok(Ok(value)), Err(payload)) => {
            discard(value);
            Err(payload)
        }
        (ended, Err(payload)) => {
            discard(payload);
            ended
        }
    }
}

/// The stack of a scope. Its handles share the queue.
struct ScopeStack<'a> {
    queue: Arc<Queue<'a>>,
    teardown: Teardown,
}

impl ScopeStack<'_> {
    async fn close(&mut self, outcome: Outcome, failing: Failing) -> Result<(), CloseError> {
        poll_fn(|context| self.teardown.poll(&self.queue, context.waker(), outcome, failing)).await
    }
}

impl Drop for ScopeStack<'_> {
    fn drop(&mut self) {
        if !self.queue.is_closed() {
            self.teardown.abandon(&self.queue);
        }
    }
}

/// A handle to the stack of a [`scope_async`], which registers handlers.
///
/// Available with the feature `async`.
///
/// Clones are handles to the same stack. **A handle that is kept until the scope has ended refuses handlers**:
/// [`register`](Self::register) and the other methods report that and drop the handler without running it, whereas
/// [`try_register`](Self::try_register) and [`try_register_async`](Self::try_register_async) hand it back.
///
/// ```
/// use exitstack::{AsyncScope, CloseError, scope_async};
///
/// async fn connect(stack: &AsyncScope<'_>) {
///     stack.register_async(async || println!("disconnect"));
/// }
/// # pollster::block_on(async {
/// scope_async(|stack| async move {
///     connect(&stack).await;
///     Ok::<_, CloseError>(())
/// })
/// .await
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct AsyncScope<'a> {
    queue: Arc<Queue<'a>>,
}

impl<'a> AsyncScope<'a> {
    /// Registers a handler that is not async, which will run before all handlers that are registered already.
    ///
    /// **A scope that has ended drops the handler without running it.** The first such refusal is reported to the
    /// [report hook](crate::report), further ones are counted in one report when the last handle is dropped, and the id
    /// returned is unknown to every stack.
    ///
    /// ```
    /// # pollster::block_on(exitstack::scope_async(|stack| async move {
    /// stack.register(|| println!("bye"));
    /// # Ok::<_, exitstack::CloseError>(())
    /// # })).unwrap();
    /// ```
    #[track_caller]
    pub fn register(&self, handler: impl IntoHandler + Send + 'a) -> HandlerId {
        self.push(handler, Location::caller())
    }

    /// Registers an async handler, which will run before all handlers that are registered already.
    ///
    /// **If the future of the scope is dropped, the handler does not run**, which is reported. A scope that has ended
    /// refuses it as [`register`](Self::register) does.
    ///
    /// ```
    /// # pollster::block_on(exitstack::scope_async(|stack| async move {
    /// stack.register_async(async || println!("bye"));
    /// # Ok::<_, exitstack::CloseError>(())
    /// # })).unwrap();
    /// ```
    #[track_caller]
    pub fn register_async(&self, handler: impl IntoAsyncHandler + 'a) -> HandlerId {
        self.push(self.deferred(handler), Location::caller())
    }

    /// Registers a handler that runs only if the body returns `Ok`; otherwise it is dropped when its turn comes.
    ///
    /// A scope that has ended refuses it as [`register`](Self::register) does.
    ///
    /// ```
    /// # pollster::block_on(exitstack::scope_async(|stack| async move {
    /// stack.on_success(|| println!("commit"));
    /// # Ok::<_, exitstack::CloseError>(())
    /// # })).unwrap();
    /// ```
    #[track_caller]
    pub fn on_success(&self, handler: impl IntoHandler + Send + 'a) -> HandlerId {
        self.push(Only::<_, true>(handler), Location::caller())
    }

    /// Registers a handler that runs unless the body returns `Ok`; otherwise it is dropped when its turn comes.
    ///
    /// It also runs if the future of the scope is dropped. A scope that has ended refuses it as
    /// [`register`](Self::register) does.
    ///
    /// ```
    /// # pollster::block_on(exitstack::scope_async(|stack| async move {
    /// stack.on_failure(|| println!("roll back"));
    /// # Ok::<_, exitstack::CloseError>(())
    /// # })).unwrap();
    /// ```
    #[track_caller]
    pub fn on_failure(&self, handler: impl IntoHandler + Send + 'a) -> HandlerId {
        self.push(Only::<_, false>(handler), Location::caller())
    }

    /// Registers an async handler that runs only if the body returns `Ok`; otherwise it is dropped when its turn comes.
    ///
    /// A scope that has ended refuses it as [`register`](Self::register) does.
    ///
    /// ```
    /// # pollster::block_on(exitstack::scope_async(|stack| async move {
    /// stack.on_success_async(async || println!("commit"));
    /// # Ok::<_, exitstack::CloseError>(())
    /// # })).unwrap();
    /// ```
    #[track_caller]
    pub fn on_success_async(&self, handler: impl IntoAsyncHandler + 'a) -> HandlerId {
        self.push(Only::<_, true>(self.deferred(handler)), Location::caller())
    }

    /// Registers an async handler that runs if the body returns `Err` or panics; otherwise it is dropped when its turn
    /// comes.
    ///
    /// **If the future of the scope is dropped, the handler does not run**, which is reported. A scope that has ended
    /// refuses it as [`register`](Self::register) does.
    ///
    /// ```
    /// # pollster::block_on(exitstack::scope_async(|stack| async move {
    /// stack.on_failure_async(async || println!("roll back"));
    /// # Ok::<_, exitstack::CloseError>(())
    /// # })).unwrap();
    /// ```
    #[track_caller]
    pub fn on_failure_async(&self, handler: impl IntoAsyncHandler + 'a) -> HandlerId {
        self.push(Only::<_, false>(self.deferred(handler)), Location::caller())
    }

    /// Registers a handler as [`register`](Self::register) does, but hands back a handler that is refused.
    ///
    /// # Errors
    ///
    /// Returns [`Refused`], which holds the handler unchanged, if the scope has ended. Nothing is reported.
    ///
    /// ```
    /// # pollster::block_on(async {
    /// let handle = exitstack::scope_async(async |stack| Ok::<_, exitstack::CloseError>(stack)).await?;
    /// let refused = handle.try_register(|| println!("too late")).unwrap_err();
    /// let handler = refused.into_handler();
    /// handler(); // run it now instead
    /// # Ok::<(), exitstack::CloseError>(())
    /// # }).unwrap();
    /// ```
    #[track_caller]
    pub fn try_register<H: IntoHandler + Send + 'a>(&self, handler: H) -> Result<HandlerId, Refused<H>> {
        self.queue.push(handler, Location::caller())
    }

    /// Registers an async handler as [`register_async`](Self::register_async) does, but hands back a handler that is
    /// refused.
    ///
    /// # Errors
    ///
    /// Returns [`Refused`], which holds the handler unchanged, if the scope has ended. Nothing is reported.
    ///
    /// ```
    /// # pollster::block_on(async {
    /// let handle = exitstack::scope_async(async |stack| Ok::<_, exitstack::CloseError>(stack)).await?;
    /// let refused = handle.try_register_async(async || println!("too late")).unwrap_err();
    /// let handler = refused.into_handler();
    /// handler().await; // run it now instead
    /// # Ok::<(), exitstack::CloseError>(())
    /// # }).unwrap();
    /// ```
    #[track_caller]
    pub fn try_register_async<H: IntoAsyncHandler + 'a>(&self, handler: H) -> Result<HandlerId, Refused<H>> {
        let pushed = self.queue.push(self.deferred(handler), Location::caller());
        pushed.map_err(|refused| refused.map(Deferred::into_handler))
    }

    /// Returns a list of the pending handlers, the next to run first.
    ///
    /// O(n); allocates the list. The stack is locked while its handlers are listed.
    ///
    /// ```
    /// # pollster::block_on(exitstack::scope_async(|stack| async move {
    /// stack.register(|| println!("bye"));
    /// assert_eq!(stack.pending().len(), 1);
    /// # Ok::<_, exitstack::CloseError>(())
    /// # })).unwrap();
    /// ```
    pub fn pending(&self) -> Vec<PendingHandler> {
        self.queue.pending()
    }

    fn deferred<H>(&self, handler: H) -> Deferred<'a, H> {
        Deferred::new(handler, self.queue.slot())
    }

    fn push(&self, task: impl Task + Send + 'a, location: &'static Location<'static>) -> HandlerId {
        self.queue.push(task, location).unwrap_or_else(|refused| self.queue.refuse(&refused))
    }
}

impl fmt::Debug for AsyncScope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncScope").field("pending", &self.pending()).finish_non_exhaustive()
    }
}
