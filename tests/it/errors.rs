//! `CloseError`, `HandlerError`, `Exit`.

use std::error::Error;

use exitstack::{CloseError, Exit, ExitStack, Handler, HandlerErrorKind, SharedExitStack};

use crate::support::{quiet_panic, reported};

#[test]
fn the_last_exit_status_asked_for_wins_and_is_no_failure() {
    let mut stack = ExitStack::new();
    stack.register(|| Err(Exit(3)));
    stack.register(|| ());
    stack.register(|| Err(Box::new(Exit(2))));
    stack.register(|| Err::<(), Box<dyn Error + Send + Sync>>(Exit(1).into()));
    let error = stack.close().unwrap_err();
    assert_eq!(error.exit_code(), Some(3));
    assert!(error.errors().is_empty() && error.source().is_none());
    assert_eq!(error.to_string(), "an exit handler asked for exit status 3");
}

#[test]
fn a_box_in_a_box_that_holds_an_exit_is_one_too() {
    let mut stack = ExitStack::new();
    stack.register(|| Err::<(), Box<dyn Error + Send + Sync>>(Box::new(Box::new(Exit(5)))));
    let error = stack.close().unwrap_err();
    assert_eq!((error.exit_code(), error.errors().len()), (Some(5), 0));
}

#[test]
fn failures_and_an_exit_status_are_both_kept() {
    let mut stack = ExitStack::new();
    stack.register(|| Err("later"));
    stack.register(|| Err(Exit(3)));
    stack.register(|| quiet_panic("earlier"));
    let error = stack.close().unwrap_err();
    assert_eq!((error.exit_code(), error.errors().len()), (Some(3), 2));
    assert!(error.source().unwrap().to_string().ends_with("failed: later"));
}

#[test]
fn a_nested_stacks_exit_status_is_asked_for_outside_too() {
    let nested = |fails: bool, code: i32| {
        move || {
            let mut inner = ExitStack::new();
            if fails {
                inner.register(|| Err("inner"));
            }
            inner.register(move || Err(Exit(code)));
            inner.close()
        }
    };
    let mut stack = ExitStack::new();
    stack.register(nested(false, 4));
    let error = stack.close().unwrap_err();
    assert_eq!((error.exit_code(), error.errors().len()), (Some(4), 0));
    assert!(error.source().is_none());

    stack.register(nested(true, 5));
    stack.register(nested(false, 6));
    let error = stack.close().unwrap_err();
    assert_eq!((error.exit_code(), error.errors().len()), (Some(5), 1));
    let inner = error.source().unwrap().source().unwrap().downcast_ref::<CloseError>().unwrap();
    assert_eq!(inner.exit_code(), Some(5));

    let twice = move || -> Result<(), CloseError> {
        let mut middle = ExitStack::new();
        middle.register(nested(false, 7));
        middle.close()
    };
    stack.register(move || twice().map_err(Box::new));
    assert_eq!(stack.close().unwrap_err().exit_code(), Some(7));
}

#[test]
fn an_exit_request_of_a_dropped_stack_is_forgotten_and_not_reported() {
    let reports = reported(|| {
        let stack = ExitStack::new();
        stack.register(|| Err(Exit(1)));
        drop(stack);
        let stack = SharedExitStack::new();
        stack.register(|| Err(Exit(1)));
    });
    assert!(reports.is_empty(), "{reports:?}");
}

#[test]
fn the_source_is_the_last_failure_and_its_source_the_handlers_error() {
    let mut stack = ExitStack::new();
    stack.register(|| Err(std::io::Error::other("last")));
    stack.register(|| Err("first"));
    let error = stack.close().unwrap_err();
    let last = error.source().unwrap().downcast_ref::<exitstack::HandlerError>().unwrap();
    assert_eq!(last.source().unwrap().downcast_ref::<std::io::Error>().unwrap().to_string(), "last");
    stack.register(|| quiet_panic("boom"));
    let error = stack.close().unwrap_err();
    assert!(error.source().unwrap().source().is_none());
}

#[test]
fn errors_are_told_in_words() {
    let mut stack = ExitStack::new();
    stack.register(Handler::new(|| Err("disk full")).named("flush"));
    let one = stack.close().unwrap_err().to_string();
    assert!(one.starts_with("exit handler `flush` registered at ") && one.ends_with(" failed: disk full"), "{one}");
    stack.register(|| quiet_panic("boom"));
    stack.register(|| Err("no"));
    let two = stack.close().unwrap_err().to_string();
    assert!(two.starts_with("2 exit handlers failed: exit handler registered at "), "{two}");
    assert!(two.contains(" failed: no; exit handler ") && two.ends_with(" panicked: boom"), "{two}");
}

/// As `main` shows what it returns: what the methods return, and no more.
#[test]
fn an_error_shows_its_facts() {
    let mut stack = ExitStack::new();
    stack.register(Handler::new(|| Err("disk full")).named("flush"));
    stack.register(|| Err(Exit(3)));
    let shown = format!("{:?}", stack.close().unwrap_err());
    let location = r#"CloseError { errors: [HandlerError { path: None, name: Some("flush"), location: "#;
    assert!(shown.starts_with(location), "{shown}");
    let place = concat!(file!(), ":");
    assert!(shown[location.len()..].starts_with(place), "{shown}");
    assert!(shown.ends_with(r#", kind: Failed("disk full"), .. }], exit_code: Some(3) }"#), "{shown}");
}

#[test]
fn each_failure_has_the_place_of_its_own_handler() {
    let mut stack = ExitStack::new();
    let first = line!() + 1;
    stack.register(|| quiet_panic("1"));
    stack.register(|| Err("2"));
    stack.register(|| ());
    stack.register(|| quiet_panic("4"));
    stack.register(|| ());
    let error = stack.close().unwrap_err();
    let lines: Vec<u32> = error.iter().map(|error| error.location().line()).collect();
    assert_eq!(lines, [first + 3, first + 1, first]);
}

#[test]
fn a_clone_of_an_error_is_the_same_error() {
    let mut stack = ExitStack::new();
    stack.register(|| Err("no"));
    stack.register(|| Err(Exit(1)));
    let error = stack.close().unwrap_err();
    let clone = error.clone();
    drop(error);
    assert_eq!((clone.errors().len(), clone.exit_code()), (1, Some(1)));
    assert_eq!((&clone).into_iter().count(), clone.iter().count());
    assert!(matches!(clone.errors()[0].clone().kind(), HandlerErrorKind::Failed(_)));
    assert_eq!(clone.errors()[0].path(), None);
}

#[test]
fn an_exit_is_told_in_words() {
    assert_eq!(Exit(3).to_string(), "exit with status 3");
}
