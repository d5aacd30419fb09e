//! CPython's `atexit` and `contextlib.ExitStack`: what they do, and what happens here, which is the same or
//! deliberately different. The rows are those of CPython's own test suite and of its bug reports; the tests are named
//! for the behavior here. Order, failures and whatever else is the same in any stack is tested in `stack.rs` and
//! `shared.rs`.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use exitstack::{Exit, ExitStack, Handler, HandlerErrorKind, Outcome, SharedExitStack};

use crate::log;
use crate::panicking::{panic_of, quiet_panic};
use crate::support::reported;

type Shared = Arc<SharedExitStack>;
type Log = log::Log<&'static str>;

// ---- atexit ----------------------------------------------------------------------------------------------------------

/// `test_order`, and rows 1 and 4: `register(f, *args, **kwargs)` stores the arguments by reference and returns `f`.
/// Here a closure captures them, by value or by reference, and the id is returned, since a function does not identify
/// one of its registrations.
#[test]
fn arguments_are_what_the_closure_captured() {
    let log = RefCell::new(Vec::new());
    let mut stack = ExitStack::new();
    for (text, number) in [("a", 1), ("b", 2), ("c", 3)] {
        let log = &log;
        stack.register(move || log.borrow_mut().push(format!("{text}{number}")));
    }
    stack.close().unwrap();
    drop(stack);
    assert_eq!(log.into_inner(), ["c3", "b2", "a1"]);
}

/// Row 3: the same function may be registered many times.
#[test]
fn a_function_runs_as_often_as_it_is_registered() {
    thread_local!(static RAN: RefCell<u32> = const { RefCell::new(0) });
    fn count() {
        RAN.with_borrow_mut(|ran| *ran += 1);
    }
    let mut stack = ExitStack::new();
    for _ in 0..3 {
        stack.register(count);
    }
    stack.close().unwrap();
    assert_eq!(RAN.take(), 3);
}

/// `test_stress`: the storage grows.
#[test]
fn all_of_128_registrations_run() {
    let ran = std::cell::Cell::new(0);
    let mut stack = ExitStack::new();
    for _ in 0..128 {
        stack.register(|| ran.set(ran.get() + 1));
    }
    stack.close().unwrap();
    drop(stack);
    assert_eq!(ran.get(), 128);
}

/// `test_raise`, `test_raise_unnormalized`, rows 18 to 20: the rest runs whatever is raised. CPython prints each
/// exception to standard error and, since 3.10, re-raises none, so a program cannot learn of them. Here all are
/// returned, in order.
#[test]
fn what_is_raised_is_returned() {
    let mut stack = ExitStack::new();
    stack.register(|| quiet_panic("attempt to divide by zero"));
    stack.register(|| Err("a type error"));
    assert_eq!(stack.close().unwrap_err().errors().len(), 2);
}

/// `test_exit`, rows 19 and 21: a `SystemExit` in a handler is printed like any other error and never changes the exit
/// status. Here `Exit` is how a handler requests a status, and it is not a failure.
#[test]
fn an_exit_request_is_no_failure_and_is_heard() {
    let mut stack = ExitStack::new();
    stack.register(|| Err(Exit(7)));
    let error = stack.close().unwrap_err();
    assert_eq!((error.exit_code(), error.errors().len()), (Some(7), 0));
}

/// `test_clear`, rows 16 and 17: `_clear` drops everything without calling it. What an entry's `__del__` registers is
/// lost up to 3.13, and kept from 3.14 on, as it is here.
#[test]
fn what_a_drop_in_clear_registers_is_kept() {
    struct Registers(Shared, Log);
    impl Drop for Registers {
        fn drop(&mut self) {
            self.0.register(self.1.handler("registered by a drop"));
        }
    }
    let (stack, log) = (Shared::default(), Log::default());
    let registers = Registers(Arc::clone(&stack), log.clone());
    stack.register(move || drop(registers));
    stack.clear();
    assert_eq!(stack.len(), 1);
    stack.close().unwrap();
    assert_eq!(log.take(), ["registered by a drop"]);
}

/// `test_unregister`, row 9: every occurrence is removed, the others stay, and finding none is not an error.
#[test]
fn unregister_fn_of_four_and_one_leaves_one() {
    thread_local!(static COUNT: RefCell<i32> = const { RefCell::new(0) });
    fn inc() {
        COUNT.with_borrow_mut(|count| *count += 1);
    }
    fn dec() {
        COUNT.with_borrow_mut(|count| *count -= 1);
    }
    let mut stack = ExitStack::new();
    for _ in 0..4 {
        stack.register(inc);
    }
    stack.register(dec);
    assert_eq!(stack.unregister_fn(inc), 4);
    assert_eq!(stack.unregister_fn(inc), 0);
    stack.close().unwrap();
    assert_eq!(COUNT.take(), -1);
}

/// Row 8: up to 3.13, `_ncallbacks` counted removed entries.
#[test]
fn len_does_not_count_what_was_removed() {
    let mut stack = ExitStack::new();
    let ids: Vec<_> = (0..9).map(|_| stack.register(|| ())).collect();
    for (removed, id) in ids.iter().enumerate() {
        assert_eq!((stack.len(), stack.pending().len()), (9 - removed, 9 - removed));
        assert!(stack.unregister(*id));
    }
    assert!(stack.is_empty());
}

/// `test_bound_methods`: equal bound methods match. Here a handler with state has no identity except its key.
#[test]
fn a_method_is_unregistered_by_its_key() {
    let list = RefCell::new(Vec::new());
    let mut stack = ExitStack::new();
    stack.register(Handler::new(|| list.borrow_mut().push(5)).keyed("list.append"));
    stack.close().unwrap();
    stack.register(Handler::new(|| list.borrow_mut().push(5)).keyed("list.append"));
    assert_eq!(stack.unregister_key(&"list.append"), 1);
    stack.close().unwrap();
    drop(stack);
    assert_eq!(list.into_inner(), [5]);
}

/// Row 10: CPython compares identity first, so it finds an object that is not equal to itself. Here `==` decides.
#[test]
fn a_key_is_what_its_own_eq_says() {
    #[derive(Clone)]
    struct NeverEqual;
    impl PartialEq for NeverEqual {
        fn eq(&self, _: &Self) -> bool {
            false
        }
    }
    let mut stack = ExitStack::new();
    stack.register(Handler::new(|| ()).keyed(NeverEqual));
    assert_eq!(stack.unregister_key(&NeverEqual), 0);
}

/// Row 11: the left operand changed in 3.14. Here it is the registered key, as it was before.
#[test]
fn the_registered_key_is_the_left_operand() {
    struct Side(&'static str);
    impl PartialEq for Side {
        fn eq(&self, other: &Self) -> bool {
            assert_eq!((self.0, other.0), ("registered", "asked for"));
            true
        }
    }
    let (mut stack, shared) = (ExitStack::new(), SharedExitStack::new());
    stack.register(Handler::new(|| ()).keyed(Side("registered")));
    shared.register(Handler::new(|| ()).keyed(Side("registered")));
    assert_eq!((stack.unregister_key(&Side("asked for")), shared.unregister_key(&Side("asked for"))), (1, 1));
}

/// `test_atexit_with_unregistered_function`, row 27: a handler that unregisters itself and raises crashed 3.10.
#[test]
fn a_handler_that_removes_itself_may_fail() {
    let stack = Shared::default();
    let inner = Arc::clone(&stack);
    stack.register(
        Handler::new(move || {
            assert_eq!(inner.unregister_key(&"self"), 0, "it left the stack before it was called");
            Err("and then fails")
        })
        .keyed("self")
        .named("self"),
    );
    let error = stack.close().unwrap_err();
    assert_eq!(error.errors()[0].name(), Some("self"));
}

/// A key whose `==` does something on its nth call.
struct Meddling {
    name: &'static str,
    meddle: Arc<dyn Fn() + Send + Sync>,
}

impl PartialEq for Meddling {
    fn eq(&self, other: &Self) -> bool {
        (self.meddle)();
        self.name == other.name
    }
}

/// `test_eq_unregister_clear`, row 13a: up to 3.13, an `==` that unregisters or clears caused a crash. Here
/// `unregister_key` then finds nothing left to remove.
#[test]
fn an_eq_may_clear_or_pop_the_stack() {
    let meddlers: [fn(&SharedExitStack); 2] = [SharedExitStack::clear, |stack| drop(stack.pop_all())];
    for meddler in meddlers {
        let stack = Shared::default();
        let inner = Arc::downgrade(&stack);
        let meddle: Arc<dyn Fn() + Send + Sync> = Arc::new(move || meddler(&inner.upgrade().unwrap()));
        for _ in 0..3 {
            stack.register(Handler::new(|| ()).keyed(Meddling { name: "x", meddle: Arc::clone(&meddle) }));
        }
        assert_eq!(stack.unregister_key(&Meddling { name: "x", meddle }), 0);
        assert!(stack.is_empty());
    }
}

/// `test_eq_unregister`, row 13b: three handlers, a key equal to the second, and an `==` whose nth call unregisters one
/// of them. Exactly the others remain. CPython removed the wrong one, because an index had shifted.
#[test]
fn an_eq_that_unregisters_removes_no_wrong_one() {
    for at_call in 1..=3 {
        for victim in 0..3 {
            let (stack, log) = (Shared::default(), Log::default());
            let ids = Arc::new(Mutex::new(Vec::new()));
            let calls = Arc::new(Mutex::new(0));
            let (inner, all) = (Arc::downgrade(&stack), Arc::clone(&ids));
            let meddle: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
                let mut calls = calls.lock().unwrap();
                *calls += 1;
                if *calls == at_call {
                    inner.upgrade().unwrap().unregister(all.lock().unwrap()[victim]);
                }
            });
            for name in ["f1", "f2", "f3"] {
                let key = Meddling { name, meddle: Arc::clone(&meddle) };
                let id = stack.register(Handler::new(log.handler(name)).keyed(key));
                ids.lock().unwrap().push(id);
            }
            stack.unregister_key(&Meddling { name: "f2", meddle });
            stack.close().unwrap();
            let mut remain = vec!["f3", "f2", "f1"];
            remain.retain(|name| *name != "f2" && *name != ["f1", "f2", "f3"][victim]);
            assert_eq!(log.take(), remain, "f{} unregistered at call {at_call}", victim + 1);
        }
    }
}

/// Row 13c, still present in 3.14 and 3.15: something is registered while `==` runs, and the match is missed.
#[test]
fn an_eq_that_registers_does_not_hide_the_match() {
    let (stack, log) = (Shared::default(), Log::default());
    let (inner, inner_log) = (Arc::downgrade(&stack), log.clone());
    let meddle: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
        inner.upgrade().unwrap().register(inner_log.handler("meanwhile"));
    });
    for name in ["a", "b"] {
        let key = Meddling { name, meddle: Arc::clone(&meddle) };
        stack.register(Handler::new(log.handler(name)).keyed(key));
    }
    assert_eq!(stack.unregister_key(&Meddling { name: "a", meddle }), 1);
    stack.close().unwrap();
    assert_eq!(log.take(), ["meanwhile", "meanwhile", "b"]);
}

/// Rows 14 and 15: if `==` raises, CPython has already removed the entries found so far. Here none is removed.
#[test]
fn an_eq_that_panics_removes_nothing() {
    let stack = Shared::default();
    let calls = Arc::new(Mutex::new(0));
    let meddle: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
        let mut calls = calls.lock().unwrap();
        *calls += 1;
        if *calls == 2 {
            drop(calls);
            quiet_panic("==")
        }
    });
    for _ in 0..3 {
        stack.register(Handler::new(|| ()).keyed(Meddling { name: "x", meddle: Arc::clone(&meddle) }));
    }
    assert_eq!(panic_of(|| stack.unregister_key(&Meddling { name: "x", meddle })), "==");
    assert_eq!(stack.len(), 3);
}

/// Row 24: accepted, counted and then lost in every version of CPython; its documentation says "undefined".
#[test]
fn what_is_registered_during_the_drain_runs() {
    let (stack, log) = (Shared::default(), Log::default());
    stack.register(log.handler("first"));
    let (inner, inner_log) = (Arc::clone(&stack), log.clone());
    stack.register(move || {
        inner.register(inner_log.handler("registered during the drain"));
    });
    stack.close().unwrap();
    assert_eq!(log.take(), ["registered during the drain", "first"]);
}

/// Rows 25 and 26: respected up to 3.13, ignored from 3.14 on, which iterates over a copy.
#[test]
fn what_is_removed_during_the_drain_does_not_run() {
    let (stack, log) = (Shared::default(), Log::default());
    stack.register(log.handler("cleared"));
    let inner = Arc::clone(&stack);
    stack.register(move || inner.clear());
    let id = stack.register(log.handler("unregistered"));
    let inner = Arc::clone(&stack);
    stack.register(move || assert!(inner.unregister(id)));
    stack.close().unwrap();
    assert_eq!(log.take(), [""; 0]);
}

/// Row 28: `_run_exitfuncs` in a handler ran the others once up to 3.13, and once per level from 3.14 on. In
/// `contextlib` a nested `close()` runs them all. Here it returns at once and the outer drain continues, so neither can
/// overtake the other, and nothing runs twice.
#[test]
fn a_nested_drain_runs_nothing_out_of_turn() {
    let (stack, log) = (Shared::default(), Log::default());
    stack.register(log.handler("older"));
    let (inner, inner_log) = (Arc::clone(&stack), log.clone());
    stack.register(move || {
        inner.close().unwrap();
        inner_log.push("after the nested close");
    });
    stack.close().unwrap();
    assert_eq!(log.take(), ["after the nested close", "older"]);
}

/// Row 23: a handler there cannot tell success from failure.
#[test]
fn a_handler_may_ask_for_the_outcome() {
    let log = RefCell::new(Vec::new());
    let mut stack = ExitStack::new();
    stack.on_failure(|| log.borrow_mut().push("roll back"));
    stack.on_success(|| log.borrow_mut().push("commit"));
    stack.close_with(Outcome::Failure).unwrap();
    drop(stack);
    assert_eq!(log.into_inner(), ["roll back"]);
}

/// Row 22: a hook that raises is reported and the rest runs, as `report.rs` tests. A `repr` that raises has no
/// counterpart, since a name is a string.
#[test]
fn a_report_names_its_handler() {
    let reports = reported(|| {
        ExitStack::new().register(Handler::new(|| Err("no")).named("flush"));
    });
    assert_eq!(reports, ["/flush/failed: no"]);
}

/// Row 7: from 3.14 on, `register` is O(n). Here a million are registered and unregistered in either order.
#[test]
fn a_million_registrations_take_a_moment() {
    let mut stack = ExitStack::new();
    let ids: Vec<_> = (0..1_000_000).map(|_| stack.register(|| ())).collect();
    assert!(ids[..500_000].iter().all(|id| stack.unregister(*id)));
    assert!(ids[500_000..].iter().rev().all(|id| stack.unregister(*id)));
    assert!(stack.is_empty());
}

/// Row 44: nothing is kept of a handler that is gone.
#[test]
fn what_ran_or_was_removed_is_dropped_at_once() {
    let kept = Arc::new(());
    let mut stack = ExitStack::new();
    let captured = Arc::clone(&kept);
    stack.register(move || drop(captured));
    stack.close().unwrap();
    let captured = Arc::clone(&kept);
    let id = stack.register(move || drop(captured));
    stack.unregister(id);
    assert_eq!(Arc::strong_count(&kept), 1);
}

// ---- contextlib.ExitStack --------------------------------------------------------------------------------------------

/// `test_no_resources`.
#[test]
fn an_empty_stack_closes() {
    let mut stack = ExitStack::new();
    assert!(stack.close().is_ok());
    assert!(exitstack::scope(|_| Ok::<_, exitstack::CloseError>(())).is_ok());
}

/// `test_enter_context`: enter, body, exit, earlier callback.
#[test]
fn what_is_entered_is_left_before_what_was_there() {
    let log = RefCell::new(Vec::new());
    exitstack::scope::<_, exitstack::CloseError>(|stack| {
        stack.register(|| log.borrow_mut().push(4));
        log.borrow_mut().push(1);
        let entered = stack.enter(3, |three| log.borrow_mut().push(three));
        assert_eq!(*entered, 3);
        log.borrow_mut().push(2);
        Ok(())
    })
    .unwrap();
    assert_eq!(log.into_inner(), [1, 2, 3, 4]);
}

/// `test_close`: callbacks run at `close()`, and not again at the end.
#[test]
fn a_closed_stack_runs_nothing_at_its_end() {
    let log = RefCell::new(Vec::new());
    {
        let mut stack = ExitStack::new();
        stack.register(|| log.borrow_mut().push(1));
        stack.close().unwrap();
        log.borrow_mut().push(2);
    }
    assert_eq!(log.into_inner(), [1, 2]);
}

/// `test_pop_all`. If the new stack is dropped without being closed, it runs its handlers; in Python nothing would.
#[test]
fn a_popped_stack_runs_what_was_moved_to_it() {
    let ran = std::cell::Cell::new(false);
    let moved = {
        let mut stack = ExitStack::new();
        stack.register(|| ran.set(true));
        stack.pop_all()
    };
    assert!(!ran.get());
    drop(moved);
    assert!(ran.get());
}

/// `test_exit_suppress`: an exit that returns true swallows the exception. No handler can do that here; the body's
/// error is the result.
#[test]
fn no_handler_swallows_the_bodys_error() {
    let result: Result<(), String> = exitstack::scope(|stack| {
        stack.on_failure(|| Ok::<(), String>(()));
        Err(Body("the body's"))
    })
    .map_err(|error: Body| error.0.to_owned());
    assert_eq!(result, Err("the body's".to_owned()));
}

struct Body(&'static str);

impl From<exitstack::CloseError> for Body {
    fn from(_: exitstack::CloseError) -> Self {
        Self("the cleanup's")
    }
}

/// `test_exit_exception_chaining`, and the gap in it: if two callbacks fail at a normal exit, only the outer failure is
/// seen. Here both are kept, in order.
#[test]
fn no_failure_hides_another() {
    let mut stack = ExitStack::new();
    stack.register(|| Err("outer"));
    stack.register(|| Err("inner"));
    let error = stack.close().unwrap_err();
    let told: Vec<String> = error
        .iter()
        .map(|error| if let HandlerErrorKind::Failed(error) = error.kind() { error.to_string() } else { String::new() })
        .collect();
    assert_eq!(told, ["inner", "outer"]);
}

/// `test_excessive_nesting`: ten thousand callbacks.
#[test]
fn ten_thousand_failing_handlers_are_all_told() {
    let mut stack = ExitStack::new();
    for _ in 0..10_000 {
        stack.register(|| Err("no"));
    }
    assert_eq!(stack.close().unwrap_err().errors().len(), 10_000);
}

/// `pop_all()` in a callback stops the unwinding, and the rest moves to the new stack.
#[test]
fn pop_all_in_a_handler_takes_the_rest_away() {
    let (stack, log) = (Shared::default(), Log::default());
    stack.register(log.handler("rest"));
    let (inner, inner_log) = (Arc::clone(&stack), log.clone());
    stack.register(move || {
        let rest = inner.pop_all();
        inner_log.push("popped");
        rest.close()
    });
    stack.close().unwrap();
    assert_eq!(log.take(), ["popped", "rest"]);
}
