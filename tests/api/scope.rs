//! `scope`: the outcome is exact, and no error is lost.

use std::cell::RefCell;
use std::error::Error;
use std::rc::Rc;

use exitstack::{CloseError, Exit, ExitStack, scope};

use crate::panicking::{panic_of, quiet_panic};
use crate::support::reported;

type Log = Rc<RefCell<Vec<&'static str>>>;

fn register_all(stack: &ExitStack<'_>, log: &Log) {
    let say = |word| {
        let log = Rc::clone(log);
        move || log.borrow_mut().push(word)
    };
    stack.register(say("always"));
    stack.on_success(say("success"));
    stack.on_failure(say("failure"));
}

#[test]
fn a_body_that_is_ok_commits() {
    let log = Log::default();
    let value = scope(|stack| {
        register_all(stack, &log);
        Ok::<_, CloseError>(7)
    });
    assert_eq!(value.unwrap(), 7);
    assert_eq!(*log.borrow(), ["success", "always"]);
}

/// The result is the body's error.
#[test]
fn a_body_that_fails_rolls_back() {
    let log = Log::default();
    let result: Result<(), Box<dyn Error>> = scope(|stack| {
        register_all(stack, &log);
        Err("the body's".into())
    });
    assert_eq!(result.unwrap_err().to_string(), "the body's");
    assert_eq!(*log.borrow(), ["failure", "always"]);
}

/// The panic propagates to the caller of the scope.
#[test]
fn a_body_that_panics_rolls_back() {
    let log = Log::default();
    let message = panic_of(|| {
        scope::<(), CloseError>(|stack| {
            register_all(stack, &log);
            quiet_panic("the body's")
        })
    });
    assert_eq!(message, "the body's");
    assert_eq!(*log.borrow(), ["failure", "always"]);
}

#[test]
fn a_scope_is_exact_while_the_thread_unwinds() {
    struct Works(Log, bool);
    impl Drop for Works {
        fn drop(&mut self) {
            let _ = scope(|stack| {
                register_all(stack, &self.0);
                if self.1 { Ok(()) } else { Err::<(), Box<dyn Error>>("no".into()) }
            });
        }
    }
    for (ok, word) in [(true, "success"), (false, "failure")] {
        let log = Log::default();
        panic_of(|| {
            let _works = Works(Rc::clone(&log), ok);
            quiet_panic("outside")
        });
        assert_eq!(*log.borrow(), [word, "always"]);
    }
}

#[test]
fn a_failed_cleanup_after_ok_is_the_result() {
    let reports = reported(|| {
        let result: Result<u8, CloseError> = scope(|stack| {
            stack.register(|| Err("first registered"));
            stack.register(|| quiet_panic("last registered"));
            Ok(1)
        });
        assert_eq!(result.unwrap_err().errors().len(), 2);
    });
    assert!(reports.is_empty(), "{reports:?}");
}

#[test]
fn a_failed_cleanup_after_an_error_is_reported() {
    let reports = reported(|| {
        let result: Result<(), Box<dyn Error>> = scope(|stack| {
            stack.register(|| Err("the cleanup's"));
            Err("the body's".into())
        });
        assert_eq!(result.unwrap_err().to_string(), "the body's");
    });
    assert_eq!(reports, ["//failed: the cleanup's"]);
}

#[test]
fn a_failed_cleanup_after_a_panic_is_reported() {
    let reports = reported(|| {
        let message = panic_of(|| {
            scope::<(), CloseError>(|stack| {
                stack.register(|| Err("the cleanup's"));
                stack.register(|| quiet_panic("the cleanup's too"));
                quiet_panic("the body's")
            })
        });
        assert_eq!(message, "the body's");
    });
    assert_eq!(reports, ["//panicked: the cleanup's too", "//failed: the cleanup's"]);
}

#[test]
fn an_exit_request_after_ok_is_the_result() {
    let result: Result<(), CloseError> = scope(|stack| {
        stack.register(|| Err(Exit(9)));
        Ok(())
    });
    let error = result.unwrap_err();
    assert_eq!((error.exit_code(), error.errors().len()), (Some(9), 0));
}

#[test]
fn a_scope_in_a_scope_hands_its_failure_outwards() {
    let result: Result<(), CloseError> = scope(|outer| {
        outer.register(|| Err("outer"));
        outer.register(|| {
            scope::<(), CloseError>(|inner| {
                inner.register(|| Err("inner"));
                inner.register(|| Err(Exit(2)));
                Ok(())
            })
        });
        Ok(())
    });
    let error = result.unwrap_err();
    assert_eq!((error.errors().len(), error.exit_code()), (2, Some(2)));
    let nested = error.errors()[0].source().unwrap().downcast_ref::<CloseError>().unwrap();
    assert_eq!(nested.errors().len(), 1);
}

/// Here the handler is the exit of an entered value.
#[test]
fn a_scopes_handlers_borrow_what_outlives_it() {
    let mut written = String::new();
    scope::<_, CloseError>(|stack| {
        let buffer = stack.enter(String::new(), |buffer| written.push_str(&buffer));
        buffer.push_str("entered");
        Ok(())
    })
    .unwrap();
    assert_eq!(written, "entered");
}
