//! Panics, which cannot be caught without std: the rest runs while they unwind, nothing is lost, and they go on.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};
use core::error::Error;
use core::fmt;
use std::process::{Command, Output};
use std::{env, println};

use exitstack::{CloseError, ExitStack, Handler, scope};

use crate::support::{Log, alone, panic_of, quiet_panic, reported};

/// A stack with a failure, a panic and a handler, and again a failure, in the order in which they run.
fn stack(log: &Log) -> ExitStack<'static> {
    let stack = ExitStack::new();
    stack.register(log.handler("last"));
    stack.register(|| Err("after"));
    stack.on_success(log.handler("success"));
    stack.register(log.handler("below"));
    stack.register(Handler::new(|| quiet_panic("boom")).named("panics"));
    stack.register(|| Err("before"));
    stack.register(log.handler("first"));
    stack
}

#[test]
fn a_panic_goes_on_when_the_rest_has_run() {
    let log = Log::default();
    let mut stack = stack(&log);
    let reports = reported(|| assert_eq!(panic_of(|| stack.close()), "boom"));
    assert_eq!(log.take(), ["first", "below", "success", "last"]);
    assert_eq!(reports, ["before", ": (the panic goes on)", "after"]);
    // As after every `close()`.
    assert!(stack.is_empty() && stack.close().is_ok());
    stack.register(log.handler("again"));
    stack.close().unwrap();
    assert_eq!(log.take(), ["again"]);
}

#[test]
fn a_panic_goes_on_out_of_a_drop() {
    let log = Log::default();
    let reports = reported(|| assert_eq!(panic_of(|| drop(stack(&log))), "boom"));
    assert_eq!(log.take(), ["first", "below", "last"]);
    assert_eq!(reports, ["before", ": (the panic goes on)", "after"]);
}

#[test]
fn a_panic_goes_on_out_of_a_scope() {
    let log = Log::default();
    let reports = reported(|| {
        let message = panic_of(|| {
            scope(|stack| {
                stack.on_success(log.handler("success"));
                stack.register(|| quiet_panic("boom"));
                Ok::<(), CloseError>(())
            })
        });
        assert_eq!(message, "boom");
    });
    assert_eq!(log.take(), ["success"]);
    assert_eq!(reports, [": (the panic goes on)"]);
}

/// It is known which handler that was, and so nothing is reported.
#[test]
fn a_panic_goes_on_out_of_turn() {
    let mut stack = ExitStack::new();
    let id = stack.register(|| quiet_panic("boom"));
    let reports = reported(|| assert_eq!(panic_of(|| stack.run_now(id)), "boom"));
    assert_eq!((stack.len(), reports), (0, Vec::<String>::new()));
}

#[test]
fn a_panic_in_a_drop_leaves_nothing_undropped() {
    struct Captured<'l>(&'l Log, &'static str);
    impl Drop for Captured<'_> {
        fn drop(&mut self) {
            self.0.handler(self.1)();
            if self.1 == "panics" {
                quiet_panic("boom");
            }
        }
    }
    let log = Log::default();
    let captured = ["last", "below", "panics", "first"].map(|name| Captured(&log, name));
    let mut stack = ExitStack::new();
    for captured in captured {
        stack.register(move || drop(captured));
    }
    assert_eq!(panic_of(|| stack.clear()), "boom");
    assert!(stack.is_empty());
    drop(stack);
    assert_eq!(log.take(), ["first", "panics", "below", "last"]);
}

#[test]
fn a_keys_drop_that_panics_loses_nothing() {
    #[derive(PartialEq)]
    struct Rude;
    impl Drop for Rude {
        fn drop(&mut self) {
            quiet_panic("the key's");
        }
    }
    let log = Log::default();
    let mut stack = ExitStack::new();
    stack.register(log.handler("below"));
    stack.register(Handler::new(|| Err("disk full")).keyed(Rude));
    let error = stack.close().unwrap_err();
    assert!(format!("{error:#}").ends_with("failed: disk full"));
    stack.register(log.handler("below a panic"));
    stack.register(Handler::new(|| quiet_panic("boom")).keyed(Rude));
    let reports = reported(|| assert_eq!(panic_of(|| stack.close()), "boom"));
    stack.register(log.handler("below a key"));
    stack.register(Handler::new(|| ()).keyed(Rude));
    let more = reported(|| assert_eq!(panic_of(|| stack.close()), "the key's"));
    assert_eq!((reports, more), (vec![": (the panic goes on)".into()], vec![": (the panic goes on)".into()]));
    assert_eq!(log.take(), ["below", "below a panic", "below a key"]);
}

/// That of its report is told, and what it leaves is no handler's.
#[test]
fn a_panic_of_an_errors_drop_is_no_handlers() {
    #[derive(Debug)]
    struct Rude;
    impl fmt::Display for Rude {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("rude")
        }
    }
    impl Error for Rude {}
    impl Drop for Rude {
        fn drop(&mut self) {
            quiet_panic("the error's");
        }
    }
    let log = Log::default();
    let stack = ExitStack::new();
    stack.register(log.handler("last"));
    stack.register(|| Err("after"));
    stack.register(|| Err(Rude));
    let reports = reported(|| assert_eq!(panic_of(|| drop(stack)), "the error's"));
    assert_eq!((log.take(), reports), (vec!["last"], vec!["rude".into(), "after".into()]));
}

#[test]
fn a_panic_of_the_hook_goes_on_when_the_rest_has_run() {
    let _alone = alone();
    let log = Log::default();
    let stack = ExitStack::new();
    stack.register(log.handler("last"));
    stack.register(|| Err("disk full"));
    exitstack::report::set_hook(Box::new(|_| quiet_panic("the hook's")));
    assert_eq!(panic_of(|| drop(stack)), "the hook's");
    drop(exitstack::report::take_hook());
    assert_eq!(log.take(), ["last"]);
}

/// Runs a test again in a process of its own, with a word that says so, and returns what became of it.
fn in_a_process(test: &str, case: &str) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", &format!("panics::{test}"), "--nocapture"]).env(CASE, case);
    command.output().unwrap()
}

/// Returns whether the process ended neither well nor by a test that failed.
fn aborted(output: &Output) -> bool {
    !matches!(output.status.code(), Some(0 | 101))
}

const CASE: &str = "EXITSTACK_CASE";

/// The rest runs all the same, also where the first panic is not the stack's.
#[test]
fn a_second_panic_aborts_when_the_rest_has_run() {
    let test = "a_second_panic_aborts_when_the_rest_has_run";
    if let Ok(case) = env::var(CASE) {
        let mut stack = ExitStack::new();
        stack.register(|| println!("last"));
        stack.register(|| quiet_panic("second or third"));
        stack.register(|| println!("below"));
        stack.register(|| quiet_panic("first or second"));
        match &*case {
            "close" => drop(stack.close()),
            "drop" => drop(stack),
            _ => panic!("the body's"),
        }
        return println!("not aborted");
    }
    for case in ["close", "drop", "unwinding"] {
        let output = in_a_process(test, case);
        let ran = String::from_utf8_lossy(&output.stdout);
        let ran: Vec<_> = ran.lines().filter(|line| ["below", "last", "not aborted"].contains(line)).collect();
        assert_eq!(ran, vec!["below", "last"], "{case}: {output:?}");
        assert!(aborted(&output), "{case}: {output:?}");
    }
}

/// What was gathered is reported before the next handler runs, so that an abort does not lose it.
#[test]
fn failures_so_far_outlive_an_abort() {
    let test = "failures_so_far_outlive_an_abort";
    if env::var(CASE).is_ok() {
        exitstack::report::set_hook(Box::new(|error| println!("told: {error:#}")));
        let mut stack = ExitStack::new();
        stack.register(|| quiet_panic("second"));
        stack.register(|| quiet_panic("first"));
        stack.register(|| Err("disk full"));
        drop(stack.close());
        return;
    }
    let output = in_a_process(test, "abort");
    let told = String::from_utf8_lossy(&output.stdout);
    let told: Vec<_> = told.lines().filter(|line| line.contains("told: ")).collect();
    assert_eq!(told.len(), 3, "{output:?}");
    assert!(told[0].ends_with(" failed: disk full"), "{output:?}");
    assert!(told[1..].iter().all(|line| line.ends_with(" panicked: (the panic goes on)")), "{output:?}");
    assert!(aborted(&output), "{output:?}");
}

/// It is called for each of two failures, and so its panics are two.
#[test]
fn a_hook_that_panics_aborts_when_the_rest_has_run() {
    let test = "a_hook_that_panics_aborts_when_the_rest_has_run";
    if env::var(CASE).is_ok() {
        exitstack::report::set_hook(Box::new(|_| quiet_panic("the hook's")));
        let stack = ExitStack::new();
        stack.register(|| println!("last"));
        stack.register(|| Err("disk full"));
        stack.register(|| Err("disk full"));
        return;
    }
    let output = in_a_process(test, "abort");
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().filter(|line| *line == "last").count(), 1, "{output:?}");
    assert!(aborted(&output), "{output:?}");
}
