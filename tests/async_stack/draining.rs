//! Order, failures, outcomes, names and removal, without interruptions.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use exitstack::{AsyncExitStack, Exit, Handler, HandlerErrorKind, Outcome};
use pollster::block_on;

use crate::Log;
use crate::panicking::quiet_panic;
use crate::support::{Yields, failures, finished, polled};

#[test]
fn handlers_run_newest_first_async_or_not() {
    let log = Log::default();
    let mut stack = AsyncExitStack::new();
    stack.register(log.handler("1"));
    stack.register_async(async || {
        Yields(2).await;
        log.push("2");
    });
    stack.register(log.handler("3"));
    stack.register_async(async || log.push("4"));
    block_on(stack.close()).unwrap();
    drop(stack);
    assert_eq!(log.take(), ["4", "3", "2", "1"]);
}

#[test]
fn the_next_handler_begins_when_one_is_ready() {
    let log = Log::default();
    let mut stack = AsyncExitStack::new();
    for (begins, ends) in [("2 begins", "2 ends"), ("1 begins", "1 ends")] {
        let log = &log;
        stack.register_async(move || {
            log.push(begins);
            async move {
                Yields(3).await;
                log.push(ends);
            }
        });
    }
    block_on(stack.close()).unwrap();
    drop(stack);
    assert_eq!(log.take(), ["1 begins", "1 ends", "2 begins", "2 ends"]);
}

#[test]
fn one_poll_goes_on_until_a_future_is_pending() {
    let ran = AtomicUsize::new(0);
    let mut stack = AsyncExitStack::new();
    for _ in 0..10 {
        stack.register_async(async || _ = ran.fetch_add(1, Ordering::Relaxed));
    }
    stack.register_async(|| Yields(1));
    for _ in 0..10 {
        stack.register(|| _ = ran.fetch_add(1, Ordering::Relaxed));
        stack.register_async(async || _ = ran.fetch_add(1, Ordering::Relaxed));
    }
    assert!(polled(&mut stack, Outcome::Success, 1).is_pending());
    assert_eq!(ran.load(Ordering::Relaxed), 20);
    let (result, polls) = finished(stack.close());
    result.unwrap();
    assert_eq!((ran.load(Ordering::Relaxed), polls), (30, 1));
}

#[test]
fn nothing_runs_until_the_future_is_polled() {
    let mut stack = AsyncExitStack::new();
    let log = Log::default();
    stack.on_success(log.handler("success"));
    stack.on_failure(log.handler("failure"));
    drop(stack.close());
    assert!(log.take().is_empty());
    drop(stack);
    assert_eq!(log.take(), ["failure"]);
}

#[test]
fn every_failure_is_kept_in_the_order_of_events() {
    let mut stack = AsyncExitStack::new();
    stack.register(Handler::new(|| Err("5")).named("sync error"));
    stack.register_async(Handler::new(async || Err::<(), _>(Exit(4))).named("exit"));
    stack.register_async(Handler::new(|| async { quiet_panic("3") }).named("panics in a poll"));
    #[expect(unreachable_code, reason = "it says of what type the future is")]
    stack.register_async(Handler::new(|| (quiet_panic("2"), async {}).1).named("panics before"));
    let error = async {
        Yields(1).await;
        Err("1")
    };
    stack.register_async(Handler::new(|| error).named("error"));
    let result = block_on(stack.close());
    let expected =
        ["error failed: 1", "panics before panicked: 2", "panics in a poll panicked: 3", "sync error failed: 5"];
    assert_eq!(failures(&result), expected);
    assert_eq!(result.unwrap_err().exit_code(), Some(4));
    assert!(block_on(stack.close()).is_ok());
}

#[test]
fn a_failure_bears_the_place_of_its_registration() {
    let mut stack = AsyncExitStack::new();
    let line = line!() + 1;
    stack.register_async(async || Err("unnamed"));
    let elsewhere = std::panic::Location::caller();
    stack.register_async(Handler::new(async || Err("elsewhere")).at(elsewhere));
    let error = block_on(stack.close()).unwrap_err();
    let [moved, plain] = error.errors() else { panic!("two") };
    assert_eq!((plain.location().line(), plain.location().file(), plain.name()), (line, file!(), None));
    assert_eq!(moved.location(), elsewhere);
    assert!(matches!(plain.kind(), HandlerErrorKind::Failed(_)));
}

#[test]
fn a_handler_runs_for_the_outcome_that_it_is_for() {
    for (outcome, expected) in [
        (Outcome::Success, ["async success", "success", "any"]),
        (Outcome::Failure, ["async failure", "failure", "any"]),
    ] {
        let log = Log::default();
        let mut stack = AsyncExitStack::new();
        stack.register(log.handler("any"));
        stack.on_failure(log.handler("failure"));
        stack.on_success(log.handler("success"));
        stack.on_failure_async(async || log.push("async failure"));
        stack.on_success_async(async || log.push("async success"));
        block_on(stack.close_with(outcome)).unwrap();
        drop(stack);
        assert_eq!(log.take(), expected);
    }
}

#[test]
fn a_closed_stack_is_empty_and_can_be_used_again() {
    static STACK: Mutex<AsyncExitStack<'static>> = Mutex::new(AsyncExitStack::new()); // it can be created in a `const`
    let log = Log::default();
    let mut stack = STACK.lock().unwrap();
    for round in ["one", "two"] {
        let log = log.clone();
        stack.register_async(async move || log.push(round));
        assert_eq!(stack.len(), 1);
        finished(stack.close()).0.unwrap();
        assert!(stack.is_empty());
        finished(stack.close()).0.unwrap();
    }
    assert_eq!(log.take(), ["one", "two"]);
}

#[test]
fn handlers_are_removed_by_id_function_and_key() {
    async fn function() {
        unreachable!("it was removed");
    }
    let mut stack = AsyncExitStack::new();
    let id = stack.register_async(async || unreachable!("it was removed"));
    let other = stack.register_async(Handler::new(async || unreachable!("it was removed")).keyed(7));
    stack.register_async(function);
    stack.on_success_async(function);
    stack.register(|| ());
    assert!(stack.unregister(id) && !stack.unregister(id));
    assert_eq!((stack.unregister_key(&8), stack.unregister_key(&7)), (0, 1));
    assert!(!stack.unregister(other));
    assert_eq!(stack.unregister_fn(function), 2);
    assert_eq!(stack.len(), 1);
    block_on(stack.close()).unwrap();
}

#[test]
fn pending_lists_the_next_to_run_first() {
    let mut stack = AsyncExitStack::new();
    let first = stack.register(Handler::new(|| ()).named("first"));
    stack.register_async(async || ());
    stack.on_failure_async(Handler::new(async || ()).named("last"));
    let pending = stack.pending();
    let names: Vec<_> = pending.iter().map(exitstack::PendingHandler::name).collect();
    assert_eq!(names, [Some("last"), None, Some("first")]);
    assert_eq!(pending[2].id(), first);
    assert!(format!("{stack:?}").contains("last"));
    stack.clear();
    assert!(stack.pending().is_empty());
}

/// A hundred thousand handlers.
#[test]
fn many_handlers_drain_without_recursion() {
    let ran = AtomicUsize::new(0);
    let mut stack = AsyncExitStack::new();
    stack.reserve(100_000);
    for n in 0..100_000 {
        let ran = &ran;
        stack.register_async(async move || {
            Yields(n % 2).await;
            ran.fetch_add(1, Ordering::Relaxed);
        });
    }
    let (result, polls) = finished(stack.close());
    result.unwrap();
    assert_eq!((ran.load(Ordering::Relaxed), polls), (100_000, 50_001));
}

#[test]
fn a_stack_and_its_futures_cross_threads() {
    fn crosses<T: Send>(_: &T) {}
    fn is_shared<T: Sync>(_: &T) {}
    let text = String::from("borrowed");
    let mut stack = AsyncExitStack::new();
    stack.register_async(async || assert_eq!(text, "borrowed"));
    crosses(&stack);
    is_shared(&stack);
    crosses(&stack.close());
    crosses(&stack.close_with(Outcome::Failure));
    block_on(stack.close()).unwrap();
}

#[test]
fn room_that_was_reserved_is_there() {
    let mut stack = AsyncExitStack::new();
    stack.reserve(100);
    let asked = allocation_counter::measure(|| {
        for _ in 0..100 {
            stack.register(|| ());
        }
        finished(stack.close()).0.unwrap();
    });
    assert_eq!(asked.count_total, 0);
    let asked = allocation_counter::measure(|| (0..5).for_each(|_| _ = stack.register(|| ())));
    assert_eq!(asked.count_total, 1, "the first four are stored in the stack");
}
