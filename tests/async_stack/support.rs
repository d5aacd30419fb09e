//! Shared by the tests: futures that are pending for a while, manual polling, and captured reports.

use std::cell::RefCell;
use std::pin::{Pin, pin};
use std::sync::Once;
use std::task::{Context, Poll, Waker};

use exitstack::{AsyncExitStack, CloseError, HandlerError, Outcome};

use crate::{Log, model};

/// A future that is pending for this many polls, and each time asks to be polled again.
pub struct Yields(pub usize);

impl Future for Yields {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// A context whose waker does nothing.
pub fn idle() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Polls a `close()` this many times, or until it is ready, and then drops it.
pub fn polled(stack: &mut AsyncExitStack<'_>, outcome: Outcome, polls: usize) -> Poll<Result<(), CloseError>> {
    let mut close = pin!(stack.close_with(outcome));
    for _ in 0..polls {
        if let Poll::Ready(result) = close.as_mut().poll(&mut idle()) {
            return Poll::Ready(result);
        }
    }
    Poll::Pending
}

/// Polls the future until it is ready, and also returns the number of polls.
pub fn finished<F: Future>(future: F) -> (F::Output, usize) {
    let mut future = pin!(future);
    for polls in 1.. {
        if let Poll::Ready(output) = future.as_mut().poll(&mut idle()) {
            return (output, polls);
        }
    }
    unreachable!("polled without end")
}

thread_local!(static REPORTED: RefCell<Vec<HandlerError>> = const { RefCell::new(Vec::new()) });

/// Reports go to this thread's list, and to the log of the models.
pub fn install_hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        model::install_hook();
        let log = exitstack::report::take_hook();
        exitstack::report::set_hook(Box::new(move |error| {
            REPORTED.with_borrow_mut(|all| all.push(error.clone()));
            log(error);
        }));
    });
}

/// Returns what `action` reports on this thread.
pub fn reported(action: impl FnOnce()) -> Vec<HandlerError> {
    install_hook();
    REPORTED.take();
    action();
    REPORTED.take()
}

/// The text of each failure, starting with the handler's name.
pub fn texts<'e>(errors: impl IntoIterator<Item = &'e HandlerError>) -> Vec<String> {
    let text = |error: &HandlerError| {
        let full = format!("{error:#}");
        let (_, after) = full.split_once(error.location().to_string().as_str()).expect("the location is in it");
        format!("{}{after}", error.name().unwrap_or("?"))
    };
    errors.into_iter().map(text).collect()
}

/// The texts of the failures that `close()` returned.
pub fn failures(result: &Result<(), CloseError>) -> Vec<String> {
    texts(result.as_ref().err().into_iter().flatten())
}

/// A stack whose `close()` was dropped while its newer handler was pending.
pub fn closed_midway(log: &Log) -> AsyncExitStack<'_> {
    let mut stack = AsyncExitStack::new();
    stack.register_async(async || log.push("below"));
    stack.register_async(async || {
        Yields(1).await;
        log.push("in flight");
    });
    assert!(polled(&mut stack, Outcome::Success, 1).is_pending());
    stack
}
