//! `scope` and `try_scope`: the outcome is exact, and no error is lost.

use alloc::boxed::Box;
use alloc::string::ToString;
use core::error::Error;

use exitstack::{CloseError, ExitStack, ScopeError, scope, try_scope};

use crate::support::{Log, panic_of, quiet_panic, reported};

fn register_all(stack: &ExitStack<'_>, log: &Log) {
    stack.register(log.handler("always"));
    stack.on_success(log.handler("success"));
    stack.on_failure(log.handler("failure"));
}

#[test]
fn a_body_that_is_ok_commits() {
    let log = Log::default();
    let value = scope(|stack| {
        register_all(stack, &log);
        Ok::<_, CloseError>(7)
    });
    assert_eq!((value.unwrap(), log.take().as_slice()), (7, &["success", "always"][..]));
}

#[test]
fn a_body_that_fails_rolls_back() {
    let log = Log::default();
    let reports = reported(|| {
        let result: Result<(), Box<dyn Error>> = scope(|stack| {
            register_all(stack, &log);
            stack.register(|| Err("cleanup"));
            Err("the body's".into())
        });
        assert_eq!(result.unwrap_err().to_string(), "the body's");
    });
    assert_eq!(log.take(), ["failure", "always"]);
    assert_eq!(reports, ["cleanup"]);
}

#[test]
fn a_body_that_panics_rolls_back() {
    let log = Log::default();
    let reports = reported(|| {
        let message = panic_of(|| {
            scope(|stack| -> Result<(), CloseError> {
                register_all(stack, &log);
                stack.register(|| Err("cleanup"));
                quiet_panic("the body's");
            })
        });
        assert_eq!(message, "the body's");
    });
    assert_eq!(log.take(), ["failure", "always"]);
    assert_eq!(reports, ["cleanup"]);
}

#[test]
fn try_scope_returns_both_errors() {
    let run = |work: Result<u32, &'static str>, cleanup: Result<(), &'static str>| {
        try_scope(|stack| {
            stack.register(move || cleanup);
            work
        })
    };
    assert_eq!(run(Ok(7), Ok(())).unwrap(), 7);
    assert!(matches!(run(Ok(7), Err("cleanup")), Err(ScopeError::Cleanup(_))));
    assert!(matches!(run(Err("work"), Ok(())), Err(ScopeError::Work("work"))));
    let Err(ScopeError::Both("work", cleanup)) = run(Err("work"), Err("cleanup")) else { panic!("not both") };
    assert_eq!(cleanup.source().unwrap().to_string(), "cleanup");
    assert!(run(Err("work"), Err("cleanup")).unwrap_err().erased().work().is_some());
}
