//! `SharedExitStack` on one thread: what handlers, captured values, keys and the report hook may do while it drains.

use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::{Arc, Mutex};

use exitstack::{Exit, Handler, HandlerErrorKind, Interpreter, Outcome, SharedExitStack};

use crate::log;
use crate::panicking::{panic_of, panic_with_nothing, quiet_panic};
use crate::rude::Rude;
use crate::stderr::Capture;
use crate::support::{Counter, alone, collect_reports, reported, routed};

type Shared = Arc<SharedExitStack>;
type Log = log::Log<i32>;

#[test]
fn handlers_run_last_in_first_out() {
    let (stack, log) = (SharedExitStack::new(), Log::default());
    for n in 0..20 {
        stack.register(log.handler(n));
    }
    stack.close().unwrap();
    assert!(log.take().into_iter().eq((0..20).rev()));
}

/// None of them is reported, because they are returned.
#[test]
fn all_failures_are_returned_in_order() {
    let reports = reported(|| {
        let stack = SharedExitStack::new();
        stack.register(|| Err("third"));
        stack.register(|| quiet_panic("second"));
        stack.register(|| Err(Exit(2)));
        stack.register(|| Err("first"));
        let error = stack.close().unwrap_err();
        let text = error.to_string();
        let at = |word| text.find(word).unwrap();
        assert!(at("first") < at("second") && at("second") < at("third"));
        assert_eq!((error.errors().len(), error.exit_code()), (3, Some(2)));
        assert!(error.iter().all(|error| error.path().is_none()));
    });
    assert!(reports.is_empty(), "{reports:?}");
}

#[test]
fn a_dropped_stack_drains_and_reports_failures() {
    let log = Log::default();
    let reports = reported(|| {
        let stack = SharedExitStack::new();
        stack.register(log.handler(1));
        stack.register(|| quiet_panic("boom"));
        stack.register(log.handler(2));
        stack.register(|| Err("no"));
    });
    assert_eq!(log.take(), [2, 1]);
    assert_eq!(reports, ["//failed: no", "//panicked: boom"]);
}

/// A handler's panic is reported, and the body's panic propagates.
#[test]
fn a_drop_during_unwinding_runs_all() {
    let log = Log::default();
    let reports = reported(|| {
        let message = panic_of(|| {
            let stack = SharedExitStack::new();
            stack.register(log.handler(1));
            stack.register(|| quiet_panic("a handler's"));
            quiet_panic("the body's")
        });
        assert_eq!(message, "the body's");
    });
    assert_eq!((log.take(), reports.len()), (vec![1], 1));
}

#[test]
fn a_handler_registered_by_a_handler_runs_next() {
    let (stack, log) = (Shared::default(), Log::default());
    stack.register(log.handler(1));
    let (inner, inner_log) = (Arc::clone(&stack), log.clone());
    stack.register(move || {
        inner.register(inner_log.handler(3));
        let (innermost, innermost_log) = (Arc::clone(&inner), inner_log.clone());
        inner.register(move || {
            innermost.register(innermost_log.handler(5));
            innermost_log.push(4);
        });
        inner_log.push(2);
    });
    stack.close().unwrap();
    assert_eq!(log.take(), [2, 4, 5, 3, 1]);
    assert!(stack.is_empty());
}

#[test]
fn what_a_handler_unregisters_does_not_run() {
    fn by_function() {
        unreachable!("unregistered");
    }
    let (stack, log) = (Shared::default(), Log::default());
    let by_id = stack.register(log.handler(1));
    stack.register(by_function);
    stack.register(Handler::new(log.handler(2)).keyed("key"));
    stack.register(log.handler(3));
    let inner = Arc::clone(&stack);
    stack.register(move || {
        assert!(inner.unregister(by_id));
        assert_eq!((inner.unregister_fn(by_function), inner.unregister_key(&"key")), (1, 1));
    });
    stack.close().unwrap();
    assert_eq!(log.take(), [3]);
}

#[test]
fn a_handler_that_runs_is_no_longer_in_the_stack() {
    let stack = Shared::default();
    let id = Arc::new(Mutex::new(None));
    let (inner, own) = (Arc::clone(&stack), Arc::clone(&id));
    let registered = stack.register(move || {
        let own = own.lock().unwrap().take().unwrap();
        assert!(!inner.unregister(own) && inner.run_now(own).is_none() && inner.is_empty());
        Err::<(), _>("and then fails")
    });
    *id.lock().unwrap() = Some(registered);
    assert_eq!(stack.close().unwrap_err().errors().len(), 1);
}

/// The drain then continues with the handlers below.
#[test]
fn close_from_an_own_handler_returns_at_once() {
    let (stack, log) = (Shared::default(), Log::default());
    stack.register(log.handler(1));
    let (inner, inner_log) = (Arc::clone(&stack), log.clone());
    stack.register(move || {
        inner.close().unwrap();
        inner_log.push(2);
        Err::<(), _>("kept")
    });
    stack.register(|| Err("kept too"));
    assert_eq!(stack.close().unwrap_err().errors().len(), 2);
    assert_eq!(log.take(), [2, 1]);
}

#[test]
fn close_with_drains_whatever_the_outcome() {
    for outcome in [Outcome::Success, Outcome::Failure] {
        let (stack, log) = (SharedExitStack::new(), Log::default());
        stack.register(log.handler(1));
        stack.register(|| Err("no"));
        assert_eq!(stack.close_with(outcome).unwrap_err().errors().len(), 1);
        assert_eq!((log.take(), stack.len()), (vec![1], 0));
    }
}

#[test]
fn clear_and_pop_all_in_a_handler_end_the_drain() {
    let (stack, log) = (Shared::default(), Log::default());
    stack.register(log.handler(1));
    let inner = Arc::clone(&stack);
    stack.register(move || inner.clear());
    stack.close().unwrap();
    assert_eq!(log.take(), [0; 0]);

    let moved = Arc::new(Mutex::new(None));
    stack.register(log.handler(1));
    let (inner, taken) = (Arc::clone(&stack), Arc::clone(&moved));
    stack.register(move || *taken.lock().unwrap() = Some(inner.pop_all()));
    stack.close().unwrap();
    assert_eq!(log.take(), [0; 0]);
    drop(moved.lock().unwrap().take());
    assert_eq!(log.take(), [1]);
}

#[test]
fn a_captures_drop_may_do_anything_to_the_stack() {
    struct Busy(Shared, Log);
    impl Drop for Busy {
        fn drop(&mut self) {
            self.0.register(self.1.handler(2));
            let id = self.0.register(|| unreachable!("unregistered"));
            assert!(self.0.unregister(id) && !self.0.is_empty());
            self.0.unregister_key(&0);
            self.0.close().unwrap();
        }
    }
    type Road = fn(&Shared);
    let roads: [Road; 5] = [
        |stack| stack.close().unwrap(),
        |stack| stack.clear(),
        |stack| drop(stack.pop_all()),
        |stack| assert!(stack.unregister(stack.pending()[0].id())),
        |stack| assert_eq!(stack.unregister_key(&1), 1),
    ];
    for road in roads {
        let (stack, log) = (Shared::default(), Log::default());
        let busy = Busy(Arc::clone(&stack), log.clone());
        stack.register(Handler::new(move || drop(busy)).keyed(1));
        road(&stack);
        stack.close().unwrap();
        assert_eq!(log.take(), [2]);
    }
}

#[test]
fn a_keys_eq_may_do_anything_to_the_stack() {
    struct Key(Shared, u32);
    impl PartialEq for Key {
        fn eq(&self, other: &Self) -> bool {
            if let Some(newest) = self.0.pending().first() {
                self.0.unregister(newest.id());
            }
            self.0.register(|| ());
            self.1 == other.1
        }
    }
    let stack = Shared::default();
    for n in [1, 2, 1, 2] {
        stack.register(Handler::new(|| ()).keyed(Key(Arc::clone(&stack), n)));
    }
    // The first comparison removes the newest handler, and each later one removes what the previous one registered.
    assert_eq!(stack.unregister_key(&Key(Arc::clone(&stack), 2)), 1);
    assert_eq!(stack.len(), 3);
    stack.clear();
}

#[test]
fn a_keys_eq_may_drain_the_stack() {
    struct Key(Shared);
    impl PartialEq for Key {
        fn eq(&self, _: &Self) -> bool {
            self.0.close().unwrap();
            true
        }
    }
    let (stack, log) = (Shared::default(), Log::default());
    for n in 0..3 {
        stack.register(Handler::new(log.handler(n)).keyed(Key(Arc::clone(&stack))));
    }
    assert_eq!(stack.unregister_key(&Key(Arc::clone(&stack))), 0, "they all ran meanwhile");
    assert_eq!(log.take(), [2, 1, 0]);
}

/// An `==` removes the newest handler, whose key is then dropped by `unregister_key`, for it is yet to be compared.
#[test]
fn a_keys_drop_that_panics_stops_no_removal() {
    struct Key(Shared, u32);
    impl PartialEq for Key {
        fn eq(&self, other: &Self) -> bool {
            if self.1 == 1 {
                self.0.unregister(self.0.pending()[0].id());
            }
            if (self.1, other.1) == (1, 9) {
                quiet_panic("==");
            }
            true
        }
    }
    impl Drop for Key {
        fn drop(&mut self) {
            if self.1 == 2 {
                panic_with_nothing();
            }
        }
    }
    let stack = Shared::default();
    let key = |n| Key(Arc::clone(&stack), n);
    for n in [0, 1, 2] {
        stack.register(Handler::new(|| ()).keyed(key(n)));
    }
    assert_eq!(panic_of(|| stack.unregister_key(&key(9))), "==");
    assert_eq!(stack.len(), 2, "nothing else is removed");
    stack.register(Handler::new(|| ()).keyed(key(2)));
    assert!(catch_unwind(AssertUnwindSafe(|| stack.unregister_key(&key(8)))).is_err());
    assert!(stack.is_empty());
}

#[test]
fn the_report_hook_may_do_anything_to_the_stack() {
    let _alone = alone();
    let (stack, log) = (Shared::default(), Log::default());
    let victim = stack.register(|| unreachable!("unregistered by the hook"));
    stack.register(|| Err("no"));
    let weak = Arc::downgrade(&stack);
    let interpreter = Interpreter::new("hooked");
    interpreter.stack().register(log.handler(1));
    let inner = interpreter.clone();
    let inner_log = log.clone();
    exitstack::report::set_hook(Box::new(move |_| {
        assert!(weak.upgrade().is_none(), "the stack is being dropped");
        inner.stack().register(inner_log.handler(2));
        inner.stack().close().unwrap();
        quiet_panic("the hook")
    }));
    assert!(stack.unregister(victim));
    Capture::new().during(|| drop(stack));
    assert_eq!(log.take(), [2, 1]);
    drop(exitstack::report::take_hook());
    drop(interpreter);
}

#[test]
fn a_panicking_hook_stops_nothing() {
    let _alone = alone();
    let log = Log::default();
    exitstack::report::set_hook(Box::new(|_| quiet_panic("the hook")));
    let written = Capture::new().during(|| {
        let stack = SharedExitStack::new();
        stack.register(log.handler(1));
        stack.register(|| Err("no"));
        stack.register(|| quiet_panic("boom"));
        let stack = exitstack::ExitStack::new();
        stack.register(log.handler(2));
        stack.register(|| Err("no"));
    });
    assert_eq!(log.take(), [2, 1]);
    assert_eq!(String::from_utf8(written).unwrap().lines().count(), 3, "the default report, in the hook's place");
}

/// The payload is that of a handler's panic.
#[test]
fn a_payloads_drop_may_use_the_stack_and_panic() {
    struct Payload(Shared, Log);
    impl Drop for Payload {
        fn drop(&mut self) {
            self.0.register(self.1.handler(2));
            panic_with_nothing()
        }
    }
    let (stack, log) = (Shared::default(), Log::default());
    stack.register(log.handler(1));
    let payload = Payload(Arc::clone(&stack), log.clone());
    stack.register(move || std::panic::resume_unwind(Box::new(payload)));
    assert_eq!(stack.close().unwrap_err().errors().len(), 1);
    assert_eq!(log.take(), [2, 1]);
}

#[test]
fn ids_are_unknown_to_every_other_stack() {
    let stacks: Vec<SharedExitStack> = (0..4).map(|_| SharedExitStack::new()).collect();
    let ids: Vec<_> = (0..40).map(|n| stacks[n % 4].register(|| ())).collect();
    for (n, id) in ids.iter().enumerate() {
        for (other, stack) in stacks.iter().enumerate().filter(|(other, _)| *other != n % 4) {
            assert!(!stack.unregister(*id) && stack.run_now(*id).is_none(), "{n} in {other}");
        }
    }
    assert!(stacks.iter().all(|stack| stack.len() == 10));
}

/// The ids are valid in the stack that it returns, and nowhere else.
#[test]
fn ids_go_with_the_handlers_that_pop_all_moves() {
    let stack = SharedExitStack::new();
    let (a, b) = (stack.register(|| ()), stack.register(|| ()));
    let moved = stack.pop_all();
    let c = stack.register(|| ());
    assert!(!stack.unregister(a) && !moved.unregister(c));
    assert!(moved.unregister(a) && !moved.unregister(a));
    assert!(moved.run_now(b).unwrap().is_ok());
    assert!(stack.unregister(c));
}

#[test]
fn clear_drops_all_though_captures_panic() {
    let (counter, stack) = (Counter::default(), SharedExitStack::new());
    for n in 0..6 {
        let bomb = if n % 2 == 0 { counter.bomb() } else { counter.bomb_that_panics() };
        stack.register(move || drop(bomb));
    }
    assert_eq!(panic_of(|| stack.clear()), "dropped");
    assert_eq!((counter.dropped(), stack.len()), (6, 0));
}

#[test]
fn after_pop_all_no_stack_knows_the_others_ids() {
    let stack = SharedExitStack::new();
    stack.register(|| ());
    let moved = stack.pop_all();
    for _ in 0..100 {
        let (here, there) = (stack.register(|| ()), moved.register(|| ()));
        assert!(!stack.unregister(there) && !moved.unregister(here));
    }
    assert_eq!((stack.len(), moved.len()), (100, 101));
}

#[test]
fn a_stack_goes_on_after_a_reserve_that_panicked() {
    let (stack, log) = (SharedExitStack::new(), Log::default());
    stack.register(log.handler(1));
    panic_of(|| stack.reserve(usize::MAX));
    stack.register(log.handler(2));
    stack.close().unwrap();
    assert_eq!(log.take(), [2, 1]);
}

#[test]
fn run_now_runs_on_this_thread_out_of_turn() {
    let (stack, log) = (SharedExitStack::new(), Log::default());
    stack.register(log.handler(1));
    let id = stack.register(log.handler(2));
    stack.register(log.handler(3));
    let fails = stack.register(|| Err("no"));
    stack.run_now(id).unwrap().unwrap();
    assert_eq!(stack.run_now(fails).unwrap().unwrap_err().errors().len(), 1);
    stack.close().unwrap();
    assert_eq!(log.take(), [2, 3, 1]);
}

#[test]
fn a_stack_that_refuses_hands_the_handler_back() {
    let interpreter = Interpreter::new("over");
    interpreter.finalize().unwrap();
    let counter = Counter::default();
    let mut bomb = counter.bomb();
    let line = line!() + 1;
    let refused = interpreter.stack().try_register(move || bomb.use_up()).unwrap_err();
    assert_eq!((refused.location().file(), refused.location().line()), (file!(), line));
    assert_eq!(counter.dropped(), 0);
    refused.into_handler()();
    assert_eq!((counter.used(), counter.dropped()), (1, 1));
}

#[test]
fn a_refused_handlers_own_place_is_shown() {
    let _alone = alone();
    let reports = collect_reports();
    let interpreter = Interpreter::new("over");
    interpreter.finalize().unwrap();
    let place = Location::caller();
    let refused = interpreter.stack().try_register(Handler::new(|| ()).at(place)).unwrap_err();
    assert_eq!(refused.location(), place);
    assert!(refused.to_string().contains(&place.to_string()));
    interpreter.stack().register(Handler::new(|| ()).at(place));
    assert_eq!(reports.lock().unwrap()[0].location(), place);
}

#[test]
fn a_refusal_is_reported_once_then_counted() {
    let _alone = alone();
    let reports = collect_reports();
    let counter = Counter::default();
    let interpreter = Interpreter::new("over");
    interpreter.finalize().unwrap();
    let kept = SharedExitStack::new();
    let line = line!() + 3;
    for n in 0..5 {
        let bomb = counter.bomb();
        let id = interpreter.stack().register(Handler::new(move || drop(bomb)).named(format!("handler {n}")));
        assert!(!interpreter.stack().unregister(id) && !kept.unregister(id));
    }
    assert_eq!((counter.used(), counter.dropped()), (0, 5));
    assert_eq!(reports.lock().unwrap().len(), 1);
    drop(interpreter);
    let reports = reports.lock().unwrap();
    assert_eq!(reports.len(), 2);
    assert!(reports.iter().all(|error| matches!(error.kind(), HandlerErrorKind::Refused)));
    assert_eq!((reports[0].name(), reports[0].path()), (Some("handler 0"), Some("process > over")));
    assert_eq!((reports[0].location().file(), reports[0].location().line()), (file!(), line));
    assert!(reports[1].to_string().contains("4 more exit handlers were refused after the one registered at "));
}

#[test]
fn the_count_of_refusals_carries_the_path() {
    let _alone = alone();
    let reports = collect_reports();
    let interpreter = Interpreter::new("over");
    interpreter.finalize().unwrap();
    for _ in 0..3 {
        interpreter.stack().register(|| ());
    }
    drop(interpreter);
    assert_eq!(reports.lock().unwrap()[1].path(), Some("process > over"));
}

#[test]
fn a_refused_handlers_id_is_in_no_list() {
    let _routed = routed();
    let interpreter = Interpreter::new("over");
    interpreter.finalize().unwrap();
    for _ in 0..10 {
        let id = interpreter.stack().register(|| ());
        let fresh = SharedExitStack::new();
        fresh.register(|| ());
        assert!(!fresh.unregister(id));
    }
}

#[test]
fn a_single_refusal_has_no_count_after_it() {
    let _alone = alone();
    let reports = collect_reports();
    let interpreter = Interpreter::new("over");
    interpreter.finalize().unwrap();
    interpreter.stack().register(|| ());
    drop(interpreter);
    assert_eq!(reports.lock().unwrap().len(), 1);
}

#[test]
fn a_failing_errors_own_drop_may_panic() {
    let log = Log::default();
    let reports = reported(|| {
        let stack = SharedExitStack::new();
        stack.register(log.handler(1));
        stack.register(|| Err(Rude));
        drop(stack);
        let interpreter = Interpreter::new("rude");
        interpreter.stack().register(log.handler(2));
        interpreter.stack().register(|| Err(Rude));
        drop(interpreter);
    });
    assert_eq!(log.take(), [1, 2]);
    assert_eq!(reports.iter().filter(|report| report.contains("failed: rude")).count(), 2);
}
