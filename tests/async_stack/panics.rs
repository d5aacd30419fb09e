//! Panics at every position: in the function, in each poll, and in the drop of a future, a capture or an output.

use std::error::Error;
use std::future::{Ready, ready};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use exitstack::{AsyncExitStack, CloseError, Exit, Handler, scope_async};

use crate::Log;
use crate::panicking::{panic_with_nothing, quiet_panic};
use crate::rude::Rude;
use crate::support::{Yields, failures, finished, idle, reported};

type Failure = Box<dyn Error + Send + Sync>;

/// Panics when dropped.
#[derive(PartialEq)]
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic_with_nothing();
    }
}

/// A future that panics in its nth poll or is ready in its third, and may also panic when dropped.
struct Panics {
    at: usize,
    polls: usize,
    _bomb: Option<Bomb>,
}

impl Future for Panics {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.polls += 1;
        if self.polls == self.at {
            quiet_panic("poll");
        }
        if self.polls == 3 {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// One of three handlers panics, at each position and in each way; the other two run.
#[test]
fn a_panic_at_any_position_stops_nothing() {
    for position in 0..3 {
        for at in 0..=4 {
            for twice in [false, true] {
                let log = Log::default();
                let mut stack = AsyncExitStack::new();
                for (n, name) in ["third", "second", "first"].into_iter().enumerate() {
                    let log = &log;
                    if n == position {
                        let handler = move || {
                            if at == 0 {
                                quiet_panic("function");
                            }
                            Panics { at, polls: 0, _bomb: twice.then(|| Bomb) }
                        };
                        stack.register_async(Handler::new(handler).named(name));
                    } else {
                        stack.register_async(async move || {
                            Yields(1).await;
                            log.push(name);
                        });
                    }
                }
                let (result, _) = finished(stack.close());
                let name = ["third", "second", "first"][position];
                let expected = match at {
                    0 => vec![format!("{name} panicked: function")],
                    1..=3 => vec![format!("{name} panicked: poll")],
                    _ if twice => vec![format!("{name} panicked: (non-string panic payload)")],
                    _ => vec![],
                };
                assert_eq!(failures(&result), expected, "position {position}, at {at}, twice {twice}");
                drop(stack);
                let rest: Vec<_> = ["first", "second", "third"].into_iter().filter(|n| *n != name).collect();
                assert_eq!(log.take(), rest);
            }
        }
    }
}

#[test]
fn drops_of_captures_and_payloads_may_panic() {
    let mut stack = AsyncExitStack::new();
    stack.register_async(Handler::new(|| async { std::panic::resume_unwind(Box::new(Bomb)) }).named("payload"));
    let bomb = Bomb;
    stack.on_failure_async(Handler::new(async move || drop(bomb)).named("not for this outcome"));
    let bomb = Bomb;
    stack.register_async(Handler::new(async move || drop(bomb)).named("capture"));
    let (result, _) = finished(stack.close());
    let expected = [
        "capture panicked: (non-string panic payload)",
        "not for this outcome panicked: (non-string panic payload)",
        "payload panicked: (non-string panic payload)",
    ];
    assert_eq!(failures(&result), expected);
}

/// The handler is called before its key is dropped, and its future is awaited afterwards.
#[test]
fn a_keys_drop_that_panics_stops_no_future() {
    let log = Log::default();
    let mut stack = AsyncExitStack::new();
    stack.register(log.handler("below"));
    stack.register_async(Handler::new(|| -> Yields { quiet_panic("function") }).named("panics").keyed(Bomb));
    let yields = async || {
        Yields(1).await;
        log.push("future");
        Err("disk full")
    };
    stack.register_async(Handler::new(yields).named("fails").keyed(Bomb));
    let (result, polls) = finished(stack.close());
    let expected =
        ["fails panicked: (non-string panic payload)", "fails failed: disk full", "panics panicked: function"];
    assert_eq!((failures(&result), polls), (expected.map(String::from).to_vec(), 2));
    drop(stack);
    assert_eq!(log.take(), ["future", "below"]);
}

/// The function that was passed is dropped last.
#[test]
fn a_functions_drop_that_panics_stops_no_removal() {
    fn rude() -> impl FnOnce() -> Ready<()> + Send {
        let bomb = Bomb;
        move || {
            drop(bomb);
            ready(())
        }
    }
    let mut stack = AsyncExitStack::new();
    stack.register_async(rude());
    stack.on_success_async(rude());
    assert!(catch_unwind(AssertUnwindSafe(|| stack.unregister_fn(rude()))).is_err());
    assert!(stack.is_empty());
}

/// A future that fails in its first poll.
struct Fails<E> {
    error: Option<E>,
    _bomb: Bomb,
}

impl<E> Unpin for Fails<E> {}

impl<E> Future for Fails<E> {
    type Output = Result<(), E>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(self.error.take().map_or(Ok(()), Err))
    }
}

/// Even if the error's own drop panics as well.
#[test]
fn a_futures_drop_that_panics_loses_no_failure() {
    fn fails<E: Send>(error: E) -> impl FnOnce() -> Fails<E> + Send {
        || Fails { error: Some(error), _bomb: Bomb }
    }
    let log = Log::default();
    let mut stack = AsyncExitStack::new();
    stack.register(log.handler("below"));
    stack.register_async(Handler::new(fails(Exit(3))).named("exits"));
    stack.register_async(Handler::new(fails("disk full")).named("fails"));
    let (result, _) = finished(stack.close());
    assert_eq!(failures(&result), ["fails failed: disk full"]);
    assert_eq!(result.unwrap_err().exit_code(), Some(3));
    assert_eq!(log.take(), ["below"]);
    stack.register_async(Handler::new(fails(Rude)).named("rude"));
    let (result, _) = finished(stack.close());
    assert_eq!(failures(&result), ["rude failed: rude"]);
    drop(result); // nor does the drop of that panic here
}

/// A body whose future ends in its first poll, with a panic if there is no result, and panics when dropped.
struct Body(Option<Result<(), Failure>>, Bomb);

impl Future for Body {
    type Output = Result<(), Failure>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(self.0.take().unwrap_or_else(|| quiet_panic("poll")))
    }
}

#[test]
fn a_bodys_drop_that_panics_stops_nothing() {
    let log = Log::default();
    let ended = |result| {
        catch_unwind(AssertUnwindSafe(|| {
            let scope = scope_async(|stack| {
                stack.register(log.handler("below"));
                stack.on_failure_async(async || log.push("failure"));
                Body(result, Bomb)
            });
            finished(scope).0
        }))
    };
    assert_eq!(*ended(None).unwrap_err().downcast::<&str>().unwrap(), "poll");
    assert!(ended(Some(Ok(()))).unwrap_err().is::<()>(), "the drop's");
    assert_eq!(ended(Some(Err("disk full".into()))).unwrap().unwrap_err().to_string(), "disk full");
    assert_eq!(log.take(), ["failure", "below"].repeat(3));
}

/// What the body ended with has nobody to be returned to any more, be it a value or the payload of a panic.
#[test]
fn a_scope_dropped_in_its_cleanup_never_panics() {
    for panics in [false, true] {
        let log = Log::default();
        let mut scope = Box::pin(scope_async(|stack| {
            stack.register(log.handler("below"));
            stack.register_async(|| Yields(1));
            async move { if panics { resume_unwind(Box::new(Bomb)) } else { Ok::<_, CloseError>(Bomb) } }
        }));
        assert!(scope.as_mut().poll(&mut idle()).is_pending());
        assert_eq!(reported(|| drop(scope)).len(), 1);
        assert_eq!(log.take(), ["below"]);
    }
}

#[test]
fn exit_in_an_async_handler_is_a_request() {
    let mut stack = AsyncExitStack::new();
    stack.register_async(|| async { std::panic::resume_unwind(Box::new(exitstack::Exit(3))) });
    let error = finished(stack.close()).0.unwrap_err();
    assert_eq!((error.exit_code(), error.errors().len()), (Some(3), 0));
}
