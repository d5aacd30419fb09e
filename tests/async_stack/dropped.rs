//! Stacks dropped or forgotten without `close().await`.

use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

use exitstack::{AsyncExitStack, Handler, HandlerErrorKind, Outcome};

use crate::Log;
use crate::panicking::{panic_with_nothing, quiet_panic};
use crate::support::{Yields, polled, reported, texts};

#[test]
fn sync_handlers_run_and_async_ones_are_reported() {
    let log = Log::default();
    let stack = AsyncExitStack::new();
    stack.register(log.handler("1"));
    stack.register_async(Handler::new(async || unreachable!("nobody awaits it")).named("2"));
    stack.on_failure(log.handler("3"));
    stack.on_failure_async(Handler::new(async || unreachable!("nobody awaits it")).named("4"));
    stack.on_success_async(Handler::new(async || unreachable!("not for a failure")).named("5"));
    stack.register(Handler::new(|| Err("an error")).named("6"));
    let reports = reported(|| drop(stack));
    let not_run = "was not run: the stack was dropped without `close().await`";
    assert_eq!(texts(&reports), ["6 failed: an error".to_owned(), format!("4 {not_run}"), format!("2 {not_run}")]);
    assert!(matches!(reports[1].kind(), HandlerErrorKind::NotRun));
    assert_eq!(log.take(), ["3", "1"]);
}

/// An async handler's function is not even called, and its captures are dropped when its turn comes.
#[test]
fn an_async_handlers_captures_drop_in_order() {
    struct Says(Log, &'static str);
    impl Drop for Says {
        fn drop(&mut self) {
            self.0.push(self.1);
        }
    }
    let log = Log::default();
    let stack = AsyncExitStack::new();
    stack.register(log.handler("1"));
    let capture = Says(log.clone(), "2");
    stack.register_async(move || {
        let _ = &capture;
        unreachable!("it is not called");
        #[expect(unreachable_code, reason = "it says of what type the future is")]
        async {}
    });
    stack.register(log.handler("3"));
    assert_eq!(reported(|| drop(stack)).len(), 1);
    assert_eq!(log.take(), ["3", "2", "1"]);
}

#[test]
fn a_drop_never_panics_whatever_panics_in_it() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_with_nothing();
        }
    }
    let log = Log::default();
    let mut stack = AsyncExitStack::new();
    stack.register(log.handler("below"));
    let bomb = Bomb;
    stack.register_async(Handler::new(async move || drop(bomb)).named("capture"));
    stack.register(Handler::new(|| quiet_panic("handler")).named("handler"));
    stack.register_async(
        Handler::new(async || {
            let _bomb = Bomb;
            Yields(1).await;
        })
        .named("in flight"),
    );
    assert!(polled(&mut stack, Outcome::Success, 1).is_pending());
    let reports = reported(|| {
        // Now dropped during unwinding.
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let _stack = stack;
            quiet_panic("work");
        }));
        assert!(unwound.is_err());
    });
    let expected = [
        "in flight was cancelled before it finished",
        "handler panicked: handler",
        "capture panicked: (non-string panic payload)",
    ];
    assert_eq!(texts(&reports), expected);
    assert_eq!(log.take(), ["below"]);
}

#[test]
fn an_idle_stack_reports_nothing() {
    let reports = reported(|| {
        drop(AsyncExitStack::new());
        let mut stack = AsyncExitStack::new();
        stack.register_async(|| Yields(1));
        pollster::block_on(stack.close()).unwrap();
    });
    assert!(reports.is_empty());
}

#[test]
fn what_a_close_never_returned_is_reported() {
    let mut stack = AsyncExitStack::new();
    stack.register_async(Handler::new(|| Yields(1)).named("1"));
    stack.register(Handler::new(|| Err("first")).named("2"));
    stack.register_async(Handler::new(async || Err("second")).named("3"));
    assert!(polled(&mut stack, Outcome::Success, 1).is_pending());
    assert!(stack.cancel_in_flight());
    let reports = texts(&reported(|| drop(stack)));
    assert_eq!(reports, ["3 failed: second", "2 failed: first", "1 was cancelled before it finished"]);
}

#[test]
fn a_forgotten_stack_runs_nothing() {
    let mut stack = AsyncExitStack::new();
    stack.register_async(|| Yields(1));
    assert!(polled(&mut stack, Outcome::Success, 1).is_pending());
    std::mem::forget(stack.close());
    stack.register(|| unreachable!("it was forgotten"));
    let mut forgotten = None;
    assert!(reported(|| forgotten = Some(ManuallyDrop::new(stack.pop_all()))).is_empty());
    // Drop it after all, so that the test leaks nothing.
    let mut found = ManuallyDrop::into_inner(forgotten.unwrap());
    found.clear();
    pollster::block_on(found.close()).unwrap();
}
