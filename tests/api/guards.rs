//! Values captured by handlers: dropped when the handler has run, failed or been removed, and kept if it never ran.

use std::mem::ManuallyDrop;

use exitstack::{ExitStack, Handler, Interpreter, Outcome, SharedExitStack};

use crate::log;
use crate::panicking::quiet_panic;
use crate::support::reported;

type Log = log::Log<&'static str>;

fn guard(log: &Log, dropped: &'static str) -> Guard {
    Guard { log: log.clone(), dropped }
}

/// Logs when it is used and when it is dropped.
struct Guard {
    log: Log,
    dropped: &'static str,
}

impl Guard {
    fn used(&self) {
        self.log.push("ran");
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.log.push(self.dropped);
    }
}

/// Runs the same code with each kind of stack.
macro_rules! on_each_stack {
    (|$stack:ident| $body:block) => {{
        {
            #[allow(unused_mut, reason = "some bodies only register")]
            let mut $stack = ExitStack::new();
            $body
        }
        {
            let $stack = SharedExitStack::new();
            $body
        }
        {
            let interpreter = Interpreter::new("guards");
            let $stack = interpreter.stack();
            $body
        }
    }};
}

#[test]
fn a_guard_is_dropped_once_its_handler_ran() {
    on_each_stack!(|stack| {
        let log = Log::default();
        let (small, large, named) = (guard(&log, "small"), guard(&log, "large"), guard(&log, "named"));
        let words = [7_usize; 8];
        stack.register(move || small.used());
        stack.register(move || {
            assert_eq!(words, [7; 8]);
            large.used();
        });
        stack.register(Handler::new(move || named.used()).named("named"));
        assert_eq!(log.take(), [""; 0], "it is kept until then");
        stack.close().unwrap();
        assert_eq!(log.take(), ["ran", "named", "ran", "large", "ran", "small"], "each before the next handler");
    });
}

#[test]
fn a_guard_is_dropped_if_its_handler_failed() {
    on_each_stack!(|stack| {
        let log = Log::default();
        let (fails, panics, named) = (guard(&log, "fails"), guard(&log, "panics"), guard(&log, "named"));
        let words = [7_usize; 8];
        stack.register(move || {
            fails.used();
            Err("failed")
        });
        stack.register(move || {
            panics.used();
            quiet_panic(if words[0] == 7 { "panicked" } else { "corrupted" })
        });
        let fails = move || {
            named.used();
            Err("failed")
        };
        stack.register(Handler::new(fails).named("named"));
        let failed = stack.close().unwrap_err();
        assert_eq!(log.take(), ["ran", "named", "ran", "panics", "ran", "fails"], "each before the next handler");
        assert_eq!(failed.errors().len(), 3);
        drop(failed);
        assert_eq!(log.take(), [""; 0]);
    });
}

#[test]
fn a_guard_is_dropped_if_its_handler_is_removed() {
    on_each_stack!(|stack| {
        let log = Log::default();
        let (by_id, by_key, cleared) = (guard(&log, "by id"), guard(&log, "by key"), guard(&log, "cleared"));
        let id = stack.register(move || by_id.used());
        stack.register(Handler::new(move || by_key.used()).keyed("key"));
        stack.register(move || cleared.used());
        assert!(stack.unregister(id));
        assert_eq!(log.take(), ["by id"]);
        assert_eq!(stack.unregister_key(&"key"), 1);
        assert_eq!(log.take(), ["by key"]);
        stack.clear();
        assert_eq!(log.take(), ["cleared"]);
        stack.close().unwrap();
        assert_eq!(log.take(), [""; 0], "and none of them ran");
    });
}

#[test]
fn a_guard_is_dropped_if_its_handler_is_refused() {
    let log = Log::default();
    let plugin = Interpreter::new("plugin");
    plugin.finalize().unwrap();
    let (refused, handed_back) = (guard(&log, "refused"), guard(&log, "handed back"));
    let reports = reported(|| _ = plugin.stack().register(move || refused.used()));
    assert_eq!((log.take(), reports.len()), (vec!["refused"], 1));
    let handler = plugin.stack().try_register(move || handed_back.used()).unwrap_err().into_handler();
    assert_eq!(log.take(), [""; 0], "it is the caller's");
    drop(handler);
    assert_eq!(log.take(), ["handed back"]);
}

#[test]
fn a_guard_of_the_other_outcome_drops_in_turn() {
    let log = Log::default();
    let (below, other, above) = (guard(&log, "below"), guard(&log, "other"), guard(&log, "above"));
    let mut stack = ExitStack::new();
    stack.register(move || below.used());
    stack.on_failure(move || other.used());
    stack.register(move || above.used());
    stack.close_with(Outcome::Success).unwrap();
    assert_eq!(log.take(), ["ran", "above", "other", "ran", "below"]);
}

#[test]
fn a_guard_is_kept_if_its_handler_never_ran() {
    static NEVER_CLOSED: SharedExitStack = SharedExitStack::new();
    let log = Log::default();
    let (local, shared, moved, in_static) =
        (guard(&log, "local"), guard(&log, "shared"), guard(&log, "moved"), guard(&log, "static"));
    // Like `mem::forget`, except that the stack can be cleared at the end, so that the test leaks nothing.
    let mut forgotten = ManuallyDrop::new(ExitStack::new());
    forgotten.register(move || local.used());
    let forgotten_shared = ManuallyDrop::new(SharedExitStack::new());
    forgotten_shared.register(move || shared.used());
    let emptied = SharedExitStack::new();
    emptied.register(move || moved.used());
    let forgotten_handlers = ManuallyDrop::new(emptied.pop_all());
    drop(emptied);
    NEVER_CLOSED.register(move || in_static.used());
    assert_eq!(log.take(), [""; 0]);

    forgotten.clear();
    forgotten_shared.clear();
    forgotten_handlers.clear();
    NEVER_CLOSED.clear();
    assert_eq!(log.take(), ["local", "shared", "moved", "static"], "they were there, and none of them ran");
}
