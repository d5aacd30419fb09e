//! The current interpreter: per thread, when entered and left, and while handlers run.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use exitstack::{Handler, Interpreter, process_stack};

use crate::Log;

/// The current interpreter's name, or an empty string.
fn name() -> String {
    Interpreter::current().map(|current| current.name().to_owned()).unwrap_or_default()
}

#[test]
fn enter_nests_and_restores() {
    let (a, b) = (Interpreter::new("a"), Interpreter::new("b"));
    assert_eq!(name(), "");
    let value = a.enter(|| {
        assert_eq!(Interpreter::current().as_ref(), Some(&a));
        b.enter(|| {
            assert_eq!(name(), "b");
            a.enter(|| assert_eq!(name(), "a"));
            assert_eq!(name(), "b");
        });
        assert_eq!(name(), "a");
        7
    });
    assert_eq!((value, &*name()), (7, ""));
}

#[test]
fn enter_restores_when_its_body_panics() {
    let (a, b) = (Interpreter::new("a"), Interpreter::new("b"));
    a.enter(|| {
        let panicked = catch_unwind(AssertUnwindSafe(|| b.enter(|| resume_unwind(Box::new(())))));
        assert!(panicked.is_err());
        assert_eq!(name(), "a");
    });
    let panicked = catch_unwind(AssertUnwindSafe(|| a.enter(|| b.enter(|| resume_unwind(Box::new(()))))));
    assert!(panicked.is_err());
    assert_eq!(name(), "");
}

#[test]
fn a_new_thread_starts_with_none() {
    let a = Interpreter::new("a");
    a.enter(|| {
        thread::scope(|scope| {
            let other = scope.spawn(|| (name(), a.enter(name), name()));
            assert_eq!(other.join().unwrap(), (String::new(), "a".to_owned(), String::new()));
        });
        assert_eq!(name(), "a");
    });
}

#[test]
fn an_interpreter_is_current_in_its_handlers() {
    let log = Log::default();
    let tell = |what: &str| {
        let (log, what) = (log.clone(), what.to_owned());
        move || log.push(format!("{what}: {}", name()))
    };
    let (other, parent) = (Interpreter::new("other"), Interpreter::new("parent"));
    parent.stack().register(tell("below"));
    let child = parent.subinterpreter("child");
    child.stack().register(tell("older"));
    let grandchild = child.subinterpreter("grandchild");
    child.stack().register(tell("child"));
    grandchild.stack().register(tell("grandchild"));
    grandchild.stack().register(|| resume_unwind(Box::new("planned")));
    parent.stack().register(tell("above"));
    let closes = {
        let (inner, tell) = (other.clone(), tell("after the other's"));
        move || {
            inner.stack().close().unwrap();
            tell();
        }
    };
    other.stack().register(tell("other"));
    child.stack().register(closes);
    other.enter(|| {
        assert!(parent.finalize().is_err());
        assert_eq!(name(), "other");
    });
    let expected = [
        "above: parent",
        "other: other",
        "after the other's: child",
        "child: child",
        "grandchild: grandchild",
        "older: child",
        "below: parent",
    ];
    assert_eq!(log.take(), expected);
    assert_eq!(name(), "");
}

#[test]
fn an_interpreter_is_current_in_run_now() {
    let (a, b) = (Interpreter::new("a"), Interpreter::new("b"));
    let id = a.stack().register(|| assert_eq!(name(), "a"));
    b.enter(|| {
        a.stack().run_now(id).unwrap().unwrap();
        assert_eq!(name(), "b");
    });
}

#[test]
fn none_is_current_in_handlers_of_the_process() {
    let a = Interpreter::new("a");
    let id = process_stack().register(|| assert_eq!(name(), ""));
    a.enter(|| {
        process_stack().run_now(id).unwrap().unwrap();
        assert_eq!(name(), "a");
    });
}

/// No other interpreter knows their ids, functions or keys either.
#[test]
fn only_the_current_interpreter_gets_handlers() {
    fn function() {}
    let (a, b) = (Interpreter::new("a"), Interpreter::new("b"));
    let ids = a.enter(|| {
        exitstack::register(function);
        exitstack::register(Handler::new(|| ()).keyed(7));
        [exitstack::register(|| ()), b.enter(|| exitstack::register(|| ()))]
    });
    assert_eq!((a.stack().len(), b.stack().len()), (3, 1));
    b.enter(|| {
        assert!(!exitstack::unregister(ids[0]));
        assert_eq!((exitstack::unregister_fn(function), exitstack::unregister_key(&7)), (0, 0));
        assert!(exitstack::unregister(ids[1]));
    });
    assert!(!exitstack::unregister(ids[0]), "the process stack does not know it");
    a.enter(|| {
        assert!(exitstack::unregister(ids[0]));
        assert_eq!((exitstack::unregister_fn(function), exitstack::unregister_key(&7)), (1, 1));
    });
    assert!(a.stack().is_empty() && b.stack().is_empty());
}

#[test]
fn with_none_current_the_process_gets_handlers() {
    let id = exitstack::register(|| unreachable!());
    assert!(process_stack().pending().iter().any(|pending| pending.id() == id));
    assert!(process_stack().unregister(id));
}

/// A handler registers with the current interpreter, which is its own.
#[test]
fn what_a_handler_registers_runs_in_its_drain() {
    let log = Log::default();
    let parent = Interpreter::new("parent");
    parent.stack().register(log.handler("parent's"));
    let child = parent.subinterpreter("child");
    child.stack().register(log.handler("old"));
    let late = log.handler("late");
    child.stack().register(move || {
        exitstack::register(late);
    });
    parent.finalize().unwrap();
    assert_eq!(log.take(), ["late", "old", "parent's"]);
}

/// Afterwards the interpreter refuses handlers.
#[test]
fn finalized_while_entered_it_stays_current() {
    let a = Interpreter::new("a");
    a.enter(|| {
        a.finalize().unwrap();
        assert_eq!(name(), "a");
        assert!(Interpreter::current().unwrap().stack().try_register(|| ()).is_err());
    });
    let b = Interpreter::new("b");
    let again = b.clone();
    b.enter(move || {
        drop(again);
        assert_eq!(name(), "b");
    });
}

/// Dropping the last handle runs a handler, which obtains a new handle.
#[test]
fn a_handle_got_in_the_last_drop_is_harmless() {
    let log = Log::default();
    let kept = Log::default();
    let (sender, receiver) = std::sync::mpsc::channel();
    let interpreter = Interpreter::new("last");
    interpreter.stack().register(log.handler("old"));
    let inside = log.clone();
    interpreter.stack().register(move || {
        let current = Interpreter::current().unwrap();
        current.stack().register(inside.handler("late"));
        drop(current.clone()); // again the last handle
        current.finalize().unwrap();
        sender.send(current).unwrap();
    });
    drop(interpreter);
    assert_eq!(log.take(), ["late", "old"]);
    let resurrected = receiver.recv().unwrap();
    assert_eq!(resurrected.name(), "last");
    assert!(resurrected.stack().try_register(kept.handler("never")).is_err());
    resurrected.enter(|| assert_eq!(name(), "last"));
    assert!(resurrected.finalize().is_ok());
    drop(resurrected.clone());
    drop(resurrected);
    assert!(log.take().is_empty() && kept.take().is_empty());
}
