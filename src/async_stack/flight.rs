//! The future in flight: how an async handler becomes one, and how it is polled from inside the one drain loop.
//!
//! To the drain loop an async handler is a handler like any other. When its turn comes, it calls the user's function
//! and puts the future into the [`Slot`] of its stack. As long as a future is there, the source of the drain lends an
//! entry that polls it once, [`Advance`], instead of the next entry of the list. A panic in a poll is therefore caught,
//! and an error noted, where those of all other handlers are.

use std::any::{Any, TypeId};
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use pin_project_lite::pin_project;
use scopeguard::{ScopeGuard, guard};

use crate::drain::NotRun;
use crate::error::{Label, Outcome};
use crate::handler::{AsyncTask, HandlerResult, sealed};
use crate::panics::discard;
use crate::raw::{BoxError, Task};
use crate::sync::Lock;

/// A future that was put into a slot.
pub(super) type Flight<'a> = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send + 'a>>;

/// The place of the future in flight. Every async handler of a stack holds a reference to it.
///
/// It holds at most one future: the next handler starts when it is empty. The future is out of the slot while it is
/// polled.
pub(crate) struct Slot<'a> {
    future: Lock<Option<Flight<'a>>>,
    /// Whether the stack was dropped, so that nobody will poll what is put here.
    abandoned: AtomicBool,
}

impl<'a> Slot<'a> {
    pub(super) fn new() -> Self {
        Self { future: Lock::new(None), abandoned: AtomicBool::new(false) }
    }

    /// Calls a handler and stores its future, or drops the handler if the stack was dropped.
    pub(crate) fn start<F: Future<Output: HandlerResult> + Send + 'a>(
        &self,
        handler: impl FnOnce() -> F,
    ) -> Result<(), BoxError> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Err(Box::new(NotRun)); // the handler is dropped too, at its turn
        }
        self.put(Box::pin(Attempt { future: handler() }));
        Ok(())
    }

    fn put(&self, future: Flight<'a>) {
        *self.future.lock() = Some(future); // there was none
    }

    pub(super) fn take(&self) -> Option<Flight<'a>> {
        self.future.lock().take()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.future.lock().is_none()
    }

    /// Prevents any further handler from being started.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

pin_project! {
    /// A user's future, whose output becomes the result of a handler.
    ///
    /// An `async` block would do the same, but would drop a future that panics while it unwinds, and a second panic in
    /// that drop would abort the process.
    struct Attempt<F> {
        #[pin]
        future: F,
    }
}

impl<F: Future<Output: HandlerResult>> Future for Attempt<F> {
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().future.poll(context).map(sealed::HandlerResult::into_result)
    }
}

/// An async handler as an entry of the list: it runs by putting its future into the slot.
pub(super) struct Deferred<'a, H> {
    handler: H,
    slot: Arc<Slot<'a>>,
}

impl<'a, H> Deferred<'a, H> {
    pub(super) fn new(handler: H, slot: &Arc<Slot<'a>>) -> Self {
        Self { handler, slot: Arc::clone(slot) }
    }

    pub(super) fn into_handler(self) -> H {
        self.handler
    }
}

impl<'a, H: AsyncTask + 'a> Task for Deferred<'a, H> {
    const LABELLED: bool = H::LABELLED;

    fn run(self, _: Outcome) -> Result<(), BoxError> {
        let Self { handler, slot } = self;
        let mut key = None; // dropped when the future is in the slot: if that panics, the future goes on
        slot.start(|| {
            let (future, rest) = handler.start();
            key = Some(rest);
            future
        })
    }

    fn function() -> TypeId {
        H::function()
    }

    fn label(&self) -> Option<&Label> {
        self.handler.label()
    }

    fn location(&self) -> Option<&'static Location<'static>> {
        self.handler.location()
    }

    fn key(&self) -> Option<&dyn Any> {
        self.handler.key()
    }
}

/// Polls the future in flight once, and puts it back if it is pending. The two words fit into an entry without an
/// allocation.
pub(super) struct Advance<'p, 'a> {
    pub(super) slot: &'p Slot<'a>,
    pub(super) waker: &'p Waker,
}

impl Task for Advance<'_, '_> {
    fn run(self, _: Outcome) -> Result<(), BoxError> {
        let Some(future) = self.slot.take() else { return Ok(()) };
        // If the poll panics or the handler fails, that is what is told, whatever the drop of the future does.
        let mut future = guard(future, discard);
        match future.as_mut().poll(&mut Context::from_waker(self.waker)) {
            Poll::Ready(result) => {
                if result.is_ok() {
                    drop(ScopeGuard::into_inner(future)); // a panic here is the handler's
                }
                result
            }
            Poll::Pending => {
                self.slot.put(ScopeGuard::into_inner(future));
                Ok(())
            }
        }
    }

    fn function() -> TypeId {
        typeid::of::<Self>()
    }
}
