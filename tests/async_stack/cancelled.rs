//! A `close()` that is dropped midway, at every point.

use exitstack::{AsyncExitStack, Handler, HandlerErrorKind, Outcome};
use pollster::block_on;

use crate::Log;
use crate::log;
use crate::panicking::{panic_of, quiet_panic};
use crate::support::{Yields, closed_midway, failures, finished, polled, reported, texts};

/// A stack with handlers of all kinds, each of which logs its beginning and its end.
fn filled(log: &log::Log<String>) -> AsyncExitStack<'static> {
    let stack = AsyncExitStack::new();
    for n in 0..12 {
        let log = log.clone();
        match n % 4 {
            0 => {
                stack.register(Handler::new(move || log.push(format!("{n}"))).named(format!("{n}")));
            }
            kind => {
                let future = async move || {
                    log.push(format!("{n} begins"));
                    Yields(n % 3).await;
                    log.push(format!("{n} goes on"));
                    Yields(1).await;
                    log.push(format!("{n} ends"));
                    match kind {
                        1 => Ok(()),
                        2 => Err(format!("error {n}")),
                        _ => quiet_panic("a panic"),
                    }
                };
                stack.register_async(Handler::new(future).named(format!("{n}")));
            }
        }
    }
    stack
}

/// What happens without an interruption: the log, the failures and the number of polls.
fn undisturbed() -> (Vec<String>, Vec<String>, usize) {
    let log = log::Log::default();
    let (result, polls) = finished(filled(&log).close());
    (log.take(), failures(&result), polls)
}

#[test]
fn a_drain_dropped_after_any_poll_loses_nothing() {
    let (expected, failed, polls) = undisturbed();
    assert!(polls > 15 && failed.len() == 6);
    for first in 0..polls {
        for second in 0..polls - first {
            let log = log::Log::default();
            let mut stack = filled(&log);
            assert!(polled(&mut stack, Outcome::Success, first).is_pending());
            assert_eq!(stack.in_flight().is_some(), first > 0);
            assert!(polled(&mut stack, Outcome::Success, second).is_pending());
            let (result, rest) = finished(stack.close());
            assert_eq!(first + second + rest, polls, "no poll is wasted");
            assert_eq!(log.take(), expected, "after {first} and {second} polls");
            assert_eq!(failures(&result), failed, "after {first} and {second} polls");
            assert!(stack.in_flight().is_none() && stack.is_empty());
            assert!(block_on(stack.close()).is_ok());
        }
    }
}

/// Handlers that never began are reported as not run, the one in flight as cancelled, and failures so far as failures.
#[test]
fn a_stack_dropped_midway_accounts_for_handlers() {
    let (all, failed, polls) = undisturbed();
    for n in 0..polls {
        let log = log::Log::default();
        let mut stack = filled(&log);
        assert!(polled(&mut stack, Outcome::Success, n).is_pending());
        let flying = stack.in_flight().map(|handler| handler.name().unwrap().to_owned());
        let before = log.take();
        assert_eq!(before, all[..before.len()]);
        let reports = texts(&reported(|| drop(stack)));
        let mut expected = Vec::new();
        let done = |name: &str| before.contains(&format!("{name} ends"));
        expected.extend(failed.iter().filter(|text| done(text.split(' ').next().unwrap())).cloned());
        expected.extend(flying.iter().map(|name| format!("{name} was cancelled before it finished")));
        let begun = |n: usize| before.iter().any(|entry| entry.split(' ').next() == Some(&n.to_string()));
        let unrun = (0..12).rev().filter(|&n| n % 4 != 0 && !begun(n));
        expected.extend(unrun.map(|n| format!("{n} was not run: the stack was dropped without `close().await`")));
        assert_eq!(reports, expected, "after {n} polls");
        let rest: Vec<_> = [8, 4, 0].into_iter().filter(|&n| !begun(n)).map(|n| n.to_string()).collect();
        assert_eq!(log.take(), rest, "after {n} polls");
    }
}

/// The handler in flight is cancelled; all others run.
#[test]
fn a_handler_can_be_cancelled_at_any_point() {
    let (_, failed, polls) = undisturbed();
    for n in 0..polls {
        let log = log::Log::default();
        let mut stack = filled(&log);
        assert!(polled(&mut stack, Outcome::Success, n).is_pending());
        let flying = stack.in_flight().map(|handler| handler.name().unwrap().to_owned());
        assert_eq!(stack.cancel_in_flight(), flying.is_some());
        assert!(!stack.cancel_in_flight() && stack.in_flight().is_none());
        let result = block_on(stack.close());
        let Some(name) = flying else { continue };
        let cancelled = format!("{name} was cancelled before it finished");
        assert!(failures(&result).contains(&cancelled));
        let others = |texts: Vec<String>| texts.into_iter().filter(|text| text.split(' ').next() != Some(&name));
        assert!(others(failures(&result)).eq(others(failed.clone())), "after {n} polls");
        assert!(!log.take().contains(&format!("{name} ends")));
    }
}

#[test]
fn the_one_in_flight_is_named_and_not_pending() {
    let mut stack = AsyncExitStack::new();
    stack.register_async(Handler::new(async || ()).named("below"));
    let id = stack.register_async(Handler::new(|| Yields(1)).named("stuck"));
    assert!(stack.in_flight().is_none());
    assert!(polled(&mut stack, Outcome::Success, 1).is_pending());
    let flying = stack.in_flight().unwrap();
    assert_eq!((flying.id(), flying.name()), (id, Some("stuck")));
    assert_eq!((stack.len(), stack.pending()[0].name()), (1, Some("below")));
    assert!(!stack.unregister(id), "it has left the stack");
    assert!(format!("{stack:?}").contains("stuck"));
    block_on(stack.close()).unwrap();
}

/// The drain keeps the outcome that it began with; a later `close_with` does not change it.
#[test]
fn the_rest_keeps_the_drains_outcome() {
    let log = Log::default();
    let mut stack = AsyncExitStack::new();
    stack.on_failure_async(async || log.push("failure"));
    stack.on_success_async(async || log.push("success"));
    stack.register_async(|| Yields(1));
    assert!(polled(&mut stack, Outcome::Success, 1).is_pending());
    block_on(stack.close_with(Outcome::Failure)).unwrap();
    assert_eq!(log.take(), ["success"]);
    stack.on_failure(log.handler("the next drain has its own"));
    block_on(stack.close_with(Outcome::Failure)).unwrap();
    drop(stack);
    assert_eq!(log.take(), ["the next drain has its own"]);
}

#[test]
fn a_drop_midway_is_a_failure_for_the_rest() {
    let log = Log::default();
    let mut stack = AsyncExitStack::new();
    stack.on_failure(log.handler("failure"));
    stack.on_success(log.handler("success"));
    stack.register_async(|| Yields(1));
    assert!(polled(&mut stack, Outcome::Success, 1).is_pending());
    let reports = reported(|| drop(stack));
    assert_eq!(log.take(), ["failure"]);
    let [report] = &*reports else { panic!("one report") };
    assert!(matches!(report.kind(), HandlerErrorKind::Cancelled));
}

/// A handler registered between two polls runs after the one in flight.
#[test]
fn what_comes_in_between_runs_next() {
    let log = Log::default();
    let mut stack = closed_midway(&log);
    stack.register_async(async || log.push("registered in between"));
    block_on(stack.close()).unwrap();
    drop(stack);
    assert_eq!(log.take(), ["in flight", "registered in between", "below"]);
}

#[test]
fn pop_all_moves_a_close_that_was_dropped_midway() {
    let log = Log::default();
    let mut stack = AsyncExitStack::new();
    stack.on_success_async(async || log.push("below"));
    stack.register_async(Handler::new(async || {
        Yields(1).await;
        log.push("in flight");
    }));
    stack.register_async(Handler::new(async || Err("so far")).named("above"));
    assert!(polled(&mut stack, Outcome::Success, 1).is_pending());
    let mut moved = stack.pop_all();
    assert!(stack.in_flight().is_none() && moved.in_flight().is_some());
    stack.register_async(async || log.push("the old stack"));
    block_on(stack.close()).unwrap();
    assert_eq!(log.take(), ["the old stack"]);
    let result = block_on(moved.close_with(Outcome::Failure));
    assert_eq!(failures(&result), ["above failed: so far"]);
    drop((stack, moved));
    assert_eq!(log.take(), ["in flight", "below"]);
}

#[test]
fn clear_leaves_the_one_in_flight() {
    let log = Log::default();
    let mut stack = AsyncExitStack::new();
    stack.register_async(async || unreachable!("cleared"));
    stack.register_async(async || {
        Yields(1).await;
        log.push("in flight");
    });
    assert!(polled(&mut stack, Outcome::Success, 1).is_pending());
    stack.clear();
    assert!(stack.is_empty() && stack.in_flight().is_some());
    block_on(stack.close()).unwrap();
    drop(stack);
    assert_eq!(log.take(), ["in flight"]);
}

/// Whichever method takes out what is left of a drain, the next one has an outcome of its own. The failures stay.
#[test]
fn what_comes_after_a_drain_has_its_own_outcome() {
    async fn function() {}
    let remove = |n, stack: &mut AsyncExitStack<'_>| match n {
        0 => stack.clear(),
        1 => assert!(stack.unregister(stack.pending()[0].id())),
        2 => assert_eq!(stack.unregister_fn(function), 1),
        3 => assert_eq!(stack.unregister_key(&7), 1),
        _ => (),
    };
    for n in 0..5 {
        for cancelled_first in [true, false] {
            let log = Log::default();
            let mut stack = AsyncExitStack::new();
            if n < 4 {
                stack.register_async(Handler::new(function).keyed(7));
            }
            stack.register_async(Handler::new(|| Yields(1)).named("stuck"));
            assert!(polled(&mut stack, Outcome::Success, 1).is_pending());
            if cancelled_first {
                assert!(stack.cancel_in_flight());
                remove(n, &mut stack);
            } else {
                remove(n, &mut stack);
                assert!(stack.cancel_in_flight());
            }
            stack.on_success(log.handler("committed"));
            stack.on_failure(log.handler("rolled back"));
            let result = block_on(stack.close_with(Outcome::Failure));
            assert_eq!(failures(&result), ["stuck was cancelled before it finished"]);
            drop(stack);
            assert_eq!(log.take(), ["rolled back"], "removal {n}, cancelled first: {cancelled_first}");
        }
    }
}

/// Nothing but the failure is left of the drain.
#[test]
fn a_failure_that_is_left_is_reported_by_the_drop() {
    let mut stack = AsyncExitStack::new();
    stack.register_async(Handler::new(|| Yields(1)).named("stuck"));
    assert!(polled(&mut stack, Outcome::Success, 1).is_pending());
    assert!(stack.cancel_in_flight());
    assert_eq!(texts(&reported(|| drop(stack))), ["stuck was cancelled before it finished"]);
}

/// If the future's drop panics, the panic propagates to the caller.
#[test]
fn a_cancelled_future_is_dropped_at_once() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            quiet_panic("dropped");
        }
    }
    let mut stack = AsyncExitStack::new();
    stack.register_async(async || {
        let _bomb = Bomb;
        Yields(1).await;
    });
    assert!(polled(&mut stack, Outcome::Success, 1).is_pending());
    assert_eq!(panic_of(|| stack.cancel_in_flight()), "dropped");
    assert!(stack.in_flight().is_none());
    let error = block_on(stack.close()).unwrap_err();
    assert!(matches!(error.errors()[0].kind(), HandlerErrorKind::Cancelled));
    assert_eq!(error.errors().len(), 1);
}
