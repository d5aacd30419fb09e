//! CPython's `contextlib.AsyncExitStack` and JavaScript's `AsyncDisposableStack`: what they do, and what happens here,
//! which is the same or deliberately different. The rows are those of `test_contextlib_async.py` (3.13) and of
//! test262's `built-ins/AsyncDisposableStack`.
//!
//! `TestAsyncExitStack` also runs every row of `TestBaseExitStack`, which `cpython.rs` covers for `ExitStack`. These
//! rows test something that has no counterpart here:
//!
//! - `test_async_push`, `test_enter_async_context_errors`, `test_instance_bypass_async`, and in test262 all of `use`:
//!   what an object's `__aexit__` or `Symbol.asyncDispose` is, and what happens if it is missing. Here a handler is a
//!   function.
//! - `test_async_callback`, as far as it concerns arguments: a closure captures them.
//! - In test262 `not-a-constructor`, `length`, `name`, `prop-desc`, `proto`, `is-a-constructor`, `constructor`, and
//!   what each method does if `this` has another type.
//! - In test262 `*-on-disposed-stack`, `throws-if-disposed` and `disposed`: here a closed stack is an empty one that
//!   accepts handlers.

use exitstack::{AsyncExitStack, AsyncScope, Handler, scope_async};
use pollster::block_on;

use crate::Log;
use crate::support::{closed_midway, failures, finished, reported, texts};

// ---- contextlib.AsyncExitStack --------------------------------------------------------------------------------------

/// `test_async_callback`: callbacks run newest first, at the end of the block.
#[test]
fn callbacks_run_newest_first_at_the_end() {
    let log = Log::default();
    block_on(scope_async(|stack| {
        let log = log.clone();
        async move {
            for name in ["c", "b", "a"] {
                let log = log.clone();
                stack.register_async(async move || log.push(name));
            }
            log.push("block");
            Ok::<_, exitstack::CloseError>(())
        }
    }))
    .unwrap();
    assert_eq!(log.take(), ["block", "a", "b", "c"]);
}

/// `test_enter_async_context`: enter, body, exit, earlier callback.
#[test]
fn what_is_entered_is_left_before_what_was_there() {
    let log = Log::default();
    let mut stack = AsyncExitStack::new();
    stack.register_async(async || log.push("4"));
    log.push("1");
    let value = stack.enter_async("2", async |_| log.push("3"));
    log.push(*value);
    block_on(stack.close()).unwrap();
    drop(stack);
    assert_eq!(log.take(), ["1", "2", "3", "4"]);
}

/// `test_async_exit_exception_chaining`: three callbacks fail below one that suppresses what came before. Here nothing
/// is suppressed and all failures are kept, in order; the body's error is the result.
#[test]
fn failures_are_a_list_and_none_is_suppressed() {
    let mut result = Ok(());
    let reports = reported(|| {
        result = block_on(scope_async(async |stack: AsyncScope<'_>| {
            for name in ["IndexError", "KeyError", "AttributeError", "ValueError"] {
                stack.register_async(Handler::new(async || Err("raised")).named(name));
            }
            Err::<(), Box<dyn std::error::Error + Send + Sync>>("ZeroDivisionError".into())
        }));
    });
    assert_eq!(result.unwrap_err().to_string(), "ZeroDivisionError");
    let expected =
        ["ValueError", "AttributeError", "KeyError", "IndexError"].map(|name| format!("{name} failed: raised"));
    assert_eq!(texts(&reports), expected);
}

/// If the task of an `aclose()` is cancelled, Python cancels the callback in flight and runs the others. Here it stays.
#[test]
fn a_close_that_is_cancelled_cancels_no_handler() {
    let log = Log::default();
    let mut stack = closed_midway(&log);
    assert!(log.take().is_empty());
    block_on(stack.close()).unwrap();
    drop(stack);
    assert_eq!(log.take(), ["in flight", "below"]);
}

/// `test_close` and `test_pop_all` of the base suite, with `await`.
#[test]
fn aclose_is_awaited_where_the_handlers_are() {
    let log = Log::default();
    let mut stack = AsyncExitStack::new();
    stack.register_async(async || log.push("moved"));
    let mut moved = stack.pop_all();
    block_on(stack.close()).unwrap();
    assert!(log.take().is_empty());
    block_on(moved.close()).unwrap();
    drop((stack, moved));
    assert_eq!(log.take(), ["moved"]);
}

// ---- AsyncDisposableStack -------------------------------------------------------------------------------------------

/// `disposeAsync/disposes-resources-in-reverse-order`, `defer/puts-onDisposeAsync-on-top-of-stack`,
/// `adopt/puts-value-onDisposeAsync-on-top-of-stack`: deferred functions and adopted values share one order.
#[test]
fn all_is_disposed_of_in_reverse_order() {
    let log = Log::default();
    let mut stack = AsyncExitStack::new();
    stack.register_async(async || log.push("defer, async"));
    stack.enter_async("adopt, async", async |value| log.push(value));
    stack.enter("adopt", |value| log.push(value));
    stack.register(|| log.push("defer"));
    block_on(stack.close()).unwrap();
    drop(stack);
    assert_eq!(log.take(), ["defer", "adopt", "adopt, async", "defer, async"]);
}

/// `adopt/allows-any-value`: even one that is nothing.
#[test]
fn any_value_can_be_adopted() {
    let mut stack = AsyncExitStack::new();
    stack.enter_async((), async |()| ());
    stack.enter_async(None::<String>, async |none| assert!(none.is_none()));
    block_on(stack.close()).unwrap();
}

/// `disposeAsync/does-not-reinvoke-disposers-if-already-disposed`, `does-not-reject-if-already-disposed`,
/// `resolves-to-undefined`.
#[test]
fn a_second_disposal_runs_nothing_and_succeeds() {
    let log = Log::default();
    let mut stack = AsyncExitStack::new();
    stack.register_async(async || {
        log.push("once");
        Err("fails")
    });
    assert!(block_on(stack.close()).is_err());
    block_on(stack.close()).unwrap();
    drop(stack);
    assert_eq!(log.take(), ["once"]);
}

/// `disposeAsync/rejects-with-suppressederror-if-multiple-errors-during-disposal`: there the last error is outermost
/// and the first innermost; here they are a list.
#[test]
fn three_errors_are_three_errors() {
    let mut stack = AsyncExitStack::new();
    stack.register(Handler::new(|| Err("thrown")).named("error1"));
    stack.register_async(Handler::new(async || Err("thrown")).named("error2"));
    stack.register(Handler::new(|| Err("thrown")).named("error3"));
    let result = block_on(stack.close());
    assert_eq!(failures(&result), ["error3 failed: thrown", "error2 failed: thrown", "error1 failed: thrown"]);
    assert_eq!(result.unwrap_err().last().unwrap().name(), Some("error1"));
}

/// `move/returns-new-asyncdisposablestack-that-contains-moved-resources`,
/// `async-disposable-stack-move-not-same-objects`. There the old stack is disposed; here it is empty and accepts
/// handlers.
#[test]
fn a_move_takes_the_resources_along() {
    let log = Log::default();
    let mut old = AsyncExitStack::new();
    old.register_async(async || log.push("1"));
    old.register(|| log.push("2"));
    let mut new = old.pop_all();
    assert!(log.take().is_empty() && old.is_empty());
    old.register(|| log.push("the old one"));
    block_on(new.close()).unwrap();
    assert_eq!(log.take(), ["2", "1"]);
    block_on(old.close()).unwrap();
    assert_eq!(log.take(), ["the old one"]);
}

/// `disposeAsync/returns-promise`: even for a stack without async handlers. JavaScript waits for a turn of the event
/// loop; here a stack that is ready does not wait.
#[test]
fn a_sync_disposal_is_ready_at_once() {
    let mut stack = AsyncExitStack::new();
    stack.register(|| ());
    assert_eq!(finished(stack.close()).1, 1);
}
