//! `ExitStack`.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::error::Error;
use std::thread;

use exitstack::{Exit, ExitStack, Handler, HandlerErrorKind, Outcome};

use crate::support::{Log, reported};

#[test]
fn handlers_run_last_in_first_out() {
    let log = RefCell::new(Vec::new());
    let mut stack = ExitStack::new();
    for n in 0..20 {
        let log = &log;
        stack.register(move || log.borrow_mut().push(n));
    }
    stack.close().unwrap();
    assert!(stack.is_empty() && stack.close().is_ok());
    drop(stack);
    assert!(log.into_inner().into_iter().eq((0..20).rev()));
}

#[test]
fn every_failure_is_returned_in_order() {
    let log = Log::default();
    let mut stack = ExitStack::new();
    stack.register(log.handler("ran"));
    stack.register(Handler::new(|| Err("second")).named("flush"));
    stack.register(|| Err(Exit(3)));
    stack.register(|| Err("first"));
    let error = stack.close().unwrap_err();
    let causes: Vec<String> = error.errors().iter().map(|error| error.source().unwrap().to_string()).collect();
    assert_eq!(causes, ["first", "second"]);
    assert_eq!((error.exit_code(), error.last().unwrap().name()), (Some(3), Some("flush")));
    assert!(matches!(error.errors()[0].kind(), HandlerErrorKind::Failed(_)));
    assert_eq!(log.take(), ["ran"]);
}

#[test]
fn what_is_unregistered_does_not_run() {
    fn unwanted() {
        unreachable!();
    }
    let log = Log::default();
    let mut stack = ExitStack::new();
    let id = stack.register(|| unreachable!());
    stack.register(unwanted);
    stack.register(log.handler("ran"));
    stack.register(unwanted);
    stack.register(Handler::new(|| unreachable!()).keyed(7));
    assert!(stack.unregister(id) && !stack.unregister(id));
    assert_eq!((stack.unregister_fn(unwanted), stack.unregister_key(&7)), (2, 1));
    stack.close().unwrap();
    assert_eq!(log.take(), ["ran"]);
}

#[test]
fn a_handler_can_run_out_of_turn() {
    let log = Log::default();
    let mut stack = ExitStack::new();
    let id = stack.register(log.handler("now"));
    stack.register(log.handler("later"));
    assert!(stack.run_now(id).unwrap().is_ok() && stack.run_now(id).is_none());
    stack.close().unwrap();
    assert_eq!(log.take(), ["now", "later"]);
}

#[test]
fn an_entered_value_is_passed_on_at_the_end() {
    let seen = RefCell::new(Vec::new());
    let exit = |text: String, outcome| seen.borrow_mut().push((text, outcome));
    for outcome in [Outcome::Success, Outcome::Failure] {
        let mut stack = ExitStack::new();
        let text = stack.enter_with(String::from("entered"), exit);
        stack.enter(1, drop);
        text.push_str(" and used");
        stack.close_with(outcome).unwrap();
    }
    let text = String::from("entered and used");
    assert_eq!(seen.into_inner(), [(text.clone(), Outcome::Success), (text, Outcome::Failure)]);
}

#[test]
fn popped_handlers_run_in_their_new_stack() {
    let log = Log::default();
    let mut stack = ExitStack::new();
    stack.register(log.handler("moved"));
    stack.on_success(log.handler("success"));
    let mut moved = stack.pop_all();
    stack.close().unwrap();
    assert_eq!((moved.len(), log.take()), (2, Vec::new()));
    moved.close().unwrap();
    assert_eq!(log.take(), ["success", "moved"]);
}

#[test]
fn a_dropped_stack_has_failed() {
    let log = Log::default();
    let reports = reported(|| {
        let stack = ExitStack::new();
        stack.register(log.handler("always"));
        stack.on_failure(log.handler("failure"));
        stack.on_success(log.handler("success"));
        stack.register(|| Err("second"));
        stack.register(|| Err("first"));
    });
    assert_eq!(log.take(), ["failure", "always"]);
    assert_eq!(reports, ["first", "second"]);
}

#[test]
fn many_handlers_drain_without_recursion() {
    let ran = Cell::new(0);
    let mut stack = ExitStack::new();
    for _ in 0..1_000_000 {
        stack.register(|| ran.set(ran.get() + 1));
    }
    stack.close().unwrap();
    drop(stack);
    assert_eq!(ran.get(), 1_000_000);
}

#[test]
fn ids_of_all_threads_are_different() {
    const EACH: usize = 1000;
    let ids = || {
        let stack = ExitStack::new();
        (0..EACH).map(|_| stack.register(|| ())).collect::<Vec<_>>()
    };
    let threads: Vec<_> = (0..4).map(|_| thread::spawn(ids)).collect();
    let ids: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(ids.iter().all(|of_one| of_one.is_sorted()));
    assert_eq!(ids.iter().flatten().collect::<BTreeSet<_>>().len(), 4 * EACH);
}
