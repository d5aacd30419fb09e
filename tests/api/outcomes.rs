//! Outcomes: values whose exit receives the outcome, shared stacks that commit or roll back, scopes that return both
//! errors, and futures that run in an interpreter.

use std::cell::RefCell;
use std::error::Error;
use std::fmt::Write as _;
use std::future::{pending, poll_fn};
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;

use exitstack::{
    CloseError, Exit, ExitStack, Handler, HandlerErrorKind, Interpreter, Outcome, ScopeError, ScopeFailure,
    SharedExitStack, scope, try_scope,
};

use crate::log;
use crate::panicking::{panic_of, quiet_panic};
use crate::support::{Counter, reported};

type Log = log::Log<&'static str>;

const FAILED: Outcome = Outcome::Failure;
const DONE: Outcome = Outcome::Success;

// ---------------------------------------------------------------------------------------------------------------------
// `enter_with`

/// Returns the outcome that the exit of an entered value receives if its stack ends this way.
fn told(end: impl FnOnce(ExitStack<'_>)) -> Vec<Outcome> {
    let told = RefCell::new(Vec::new());
    let stack = ExitStack::new();
    *stack.enter_with(1, |value, outcome| {
        assert_eq!(value, 2, "what was written to it");
        told.borrow_mut().push(outcome);
    }) += 1;
    end(stack);
    told.into_inner()
}

#[test]
fn the_exit_of_a_value_is_told_the_outcome() {
    assert_eq!(told(|mut stack| stack.close().unwrap()), [DONE]);
    assert_eq!(told(|mut stack| stack.close_with(DONE).unwrap()), [DONE]);
    assert_eq!(told(|mut stack| stack.close_with(FAILED).unwrap()), [FAILED]);
    assert_eq!(told(|stack| drop(stack)), [FAILED]);
    let panicked = told(|stack| {
        panic_of(|| {
            let _stack = stack;
            quiet_panic("the work's")
        });
    });
    assert_eq!(panicked, [FAILED]);
}

#[test]
fn a_popped_value_is_told_its_new_stacks_outcome() {
    assert_eq!(told(|mut stack| stack.pop_all().close().unwrap()), [DONE]);
    assert_eq!(told(|mut stack| drop(stack.pop_all())), [FAILED]);
}

#[test]
fn a_value_that_is_left_out_of_turn_has_failed() {
    let ended = told(|mut stack| {
        let id = stack.pending()[0].id();
        stack.run_now(id).unwrap().unwrap();
        stack.close().unwrap();
    });
    assert_eq!(ended, [FAILED]);
}

#[test]
fn a_value_whose_exit_is_removed_is_dropped() {
    let counter = Counter::default();
    let mut stack = ExitStack::new();
    for cleared in [false, true] {
        stack.enter_with(counter.bomb(), |_, _| unreachable!("it was removed"));
        let id = stack.pending()[0].id();
        if cleared { stack.clear() } else { assert!(stack.unregister(id)) }
    }
    assert_eq!((counter.used(), counter.dropped()), (0, 2));
}

#[test]
fn a_value_in_a_scope_is_told_how_that_ends() {
    let told = RefCell::new(Vec::new());
    let works = |end: fn() -> Result<(), Box<dyn Error>>| {
        scope(|stack| {
            stack.enter_with((), |(), outcome| told.borrow_mut().push(outcome));
            end()
        })
    };
    works(|| Ok(())).unwrap();
    works(|| Err("no".into())).unwrap_err();
    panic_of(|| works(|| quiet_panic("the body's")));
    assert_eq!(told.into_inner(), [DONE, FAILED, FAILED]);
}

#[test]
fn a_values_exit_may_fail_for_either_outcome() {
    let mut stack = ExitStack::new();
    for outcome in [DONE, FAILED] {
        stack.enter_with("value", |value, outcome| Err::<(), _>(format!("{value}: {outcome:?}")));
        let line = line!() - 1;
        stack.enter_with((), |(), _| quiet_panic("boom"));
        stack.enter_with((), |(), _| Err(Exit(3)));
        let error = stack.close_with(outcome).unwrap_err();
        assert_eq!((error.exit_code(), error.errors().len()), (Some(3), 2));
        assert!(matches!(error.errors()[0].kind(), HandlerErrorKind::Panicked(message) if message == "boom"));
        assert_eq!(error.errors()[1].source().unwrap().to_string(), format!("value: {outcome:?}"));
        assert_eq!(error.errors()[1].location().line(), line);
    }
}

#[test]
fn a_value_commits_or_rolls_back() {
    struct Transaction<'l>(&'l RefCell<Vec<String>>, Vec<u32>);
    impl Transaction<'_> {
        fn end(self, how: &str) {
            self.0.borrow_mut().push(format!("{how} {:?}", self.1));
        }
    }
    let log = RefCell::new(Vec::new());
    let works = |well: bool| -> Result<(), CloseError> {
        let mut stack = ExitStack::new();
        let transaction = stack.enter_with(Transaction(&log, Vec::new()), |transaction, outcome| match outcome {
            DONE => transaction.end("commit"),
            FAILED => transaction.end("roll back"),
        });
        transaction.1.push(7);
        if well { stack.close() } else { Ok(()) }
    };
    works(true).unwrap();
    works(false).unwrap();
    assert_eq!(log.into_inner(), ["commit [7]", "roll back [7]"]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Shared stacks

fn register_both(stack: &SharedExitStack, log: &Log) {
    stack.register(log.handler("always"));
    stack.on_success(log.handler("success"));
    stack.on_failure(log.handler("failure"));
}

/// Returns which handlers run, of every kind, if their stack ends this way.
fn runs(end: impl FnOnce(SharedExitStack)) -> Vec<&'static str> {
    let (stack, log) = (SharedExitStack::new(), Log::default());
    register_both(&stack, &log);
    end(stack);
    log.take()
}

const SUCCESS: [&str; 2] = ["success", "always"];
const FAILURE: [&str; 2] = ["failure", "always"];

#[test]
fn a_shared_stack_succeeds_only_by_its_own_close() {
    assert_eq!(runs(|stack| stack.close().unwrap()), SUCCESS);
    assert_eq!(runs(|stack| stack.close_with(DONE).unwrap()), SUCCESS);
    assert_eq!(runs(|stack| stack.close_with(FAILED).unwrap()), FAILURE);
    assert_eq!(runs(drop), FAILURE);
    let unwound = runs(|stack| {
        panic_of(|| {
            let _stack = stack;
            quiet_panic("the work's")
        });
    });
    assert_eq!(unwound, FAILURE);
}

#[test]
fn a_popped_shared_stack_keeps_for_what_each_is() {
    assert_eq!(runs(|stack| stack.pop_all().close().unwrap()), SUCCESS);
    assert_eq!(runs(|stack| stack.pop_all().close_with(FAILED).unwrap()), FAILURE);
    assert_eq!(runs(|stack| drop(stack.pop_all())), FAILURE);
}

#[test]
fn an_outcome_is_that_of_one_drain() {
    let (stack, log) = (SharedExitStack::new(), Log::default());
    for (outcome, ran) in [(FAILED, FAILURE), (DONE, SUCCESS), (FAILED, FAILURE)] {
        register_both(&stack, &log);
        stack.close_with(outcome).unwrap();
        assert_eq!(log.take(), ran);
    }
    register_both(&stack, &log);
    stack.close().unwrap();
    assert_eq!(log.take(), SUCCESS);
}

#[test]
fn run_now_runs_a_handler_for_either_outcome() {
    let ran = runs(|stack| {
        let ids: Vec<_> = stack.pending().iter().map(exitstack::PendingHandler::id).collect();
        assert!(ids.iter().all(|id| stack.run_now(*id).unwrap().is_ok()));
        stack.close().unwrap();
    });
    assert_eq!(ran, ["failure", "success", "always"]);
}

#[test]
fn an_interpreter_succeeds_only_by_its_own_end() {
    let log = Log::default();
    let made = |parent: &Interpreter| {
        let made = parent.subinterpreter("made");
        register_both(made.stack(), &log);
        made
    };
    let parent = Interpreter::new("parent");
    made(&parent).finalize().unwrap();
    assert_eq!(log.take(), SUCCESS);
    made(&parent).stack().close().unwrap();
    assert_eq!(log.take(), SUCCESS);
    made(&parent).stack().close_with(FAILED).unwrap();
    assert_eq!(log.take(), FAILURE);
    drop(made(&parent));
    assert_eq!(log.take(), FAILURE, "the last handle");
    let child = made(&parent);
    parent.stack().close().unwrap();
    assert_eq!(log.take(), FAILURE, "the parent's close");
    let _child = (child.finalize(), made(&parent));
    parent.finalize().unwrap();
    assert_eq!(log.take(), FAILURE, "the parent's end");
}

#[test]
fn what_a_drain_registers_is_for_its_outcome() {
    for (outcome, ran) in [(DONE, SUCCESS), (FAILED, FAILURE)] {
        let (stack, log) = (Arc::new(SharedExitStack::new()), Log::default());
        let (inner, inner_log) = (Arc::clone(&stack), log.clone());
        stack.register(move || {
            register_both(&inner, &inner_log);
            inner.close_with(if outcome == DONE { FAILED } else { DONE }) // returns at once
        });
        stack.close_with(outcome).unwrap();
        assert_eq!(log.take(), ran);
    }
}

#[test]
fn a_failing_handler_does_not_change_the_outcome() {
    let (stack, log) = (SharedExitStack::new(), Log::default());
    register_both(&stack, &log);
    stack.on_success(|| Err("no"));
    stack.on_success(|| Err(Exit(3)));
    stack.register(|| quiet_panic("boom"));
    let error = stack.close().unwrap_err();
    assert_eq!((error.errors().len(), error.exit_code()), (2, Some(3)));
    assert_eq!(log.take(), SUCCESS);
}

#[test]
fn what_does_not_run_is_dropped_in_turn() {
    let (counter, log) = (Counter::default(), Log::default());
    let stack = SharedExitStack::new();
    let seen = counter.clone();
    stack.register(move || assert_eq!(seen.dropped(), 1));
    let bomb = counter.bomb();
    stack.on_failure(move || drop(bomb));
    let seen = counter.clone();
    stack.register(move || assert_eq!(seen.dropped(), 0));
    let bomb = counter.bomb_that_panics();
    stack.on_failure(Handler::new(move || drop(bomb)).named("not run"));
    stack.close().unwrap_err();
    assert!(log.take().is_empty());
}

#[test]
fn a_drop_that_panics_unrun_is_a_failure() {
    let counter = Counter::default();
    let stack = SharedExitStack::new();
    let bomb = counter.bomb_that_panics();
    stack.on_failure(Handler::new(move || drop(bomb)).named("not run"));
    let error = stack.close().unwrap_err();
    assert_eq!((error.errors()[0].name(), counter.dropped()), (Some("not run"), 1));
    assert!(matches!(error.errors()[0].kind(), HandlerErrorKind::Panicked(message) if message == "dropped"));
}

fn undo() -> Result<(), &'static str> {
    Err("no")
}

#[test]
fn conditional_handlers_have_names_and_keys() {
    let stack = SharedExitStack::new();
    stack.on_failure(Handler::new(undo).named("undo").keyed("step 7"));
    let line = line!() - 1;
    stack.on_success(Handler::new(undo).keyed(7));
    stack.on_failure(undo);
    let pending = stack.pending();
    assert_eq!((pending[2].name(), pending[2].location().line()), (Some("undo"), line));
    assert_eq!((stack.unregister_key(&7), stack.unregister_key(&"step 8")), (1, 0));
    assert_eq!(stack.unregister_fn(undo), 2, "also inside a `Handler`");
    stack.on_failure(Handler::new(undo).named("undo").keyed("step 7"));
    stack.on_failure(Handler::new(undo).named("again"));
    assert_eq!(stack.unregister_key(&"step 7"), 1);
    let error = stack.close_with(FAILED).unwrap_err();
    assert_eq!((error.errors().len(), error.errors()[0].name()), (1, Some("again")));
}

#[test]
fn a_refused_handler_for_an_outcome_is_reported() {
    let counter = Counter::default();
    let closed = Interpreter::new("closed");
    closed.finalize().unwrap();
    let reports = reported(|| {
        let bomb = counter.bomb();
        let id = closed.stack().on_failure(Handler::new(move || drop(bomb)).named("too late"));
        assert!(!closed.stack().unregister(id));
    });
    assert_eq!(reports, ["process > closed/too late/Refused"]);
    assert_eq!((counter.used(), counter.dropped()), (0, 1));
}

// ---------------------------------------------------------------------------------------------------------------------
// `Handler::at`

#[track_caller]
fn here() -> &'static Location<'static> {
    Location::caller()
}

#[test]
fn a_handler_may_be_placed_elsewhere() {
    let place = here();
    let (mut local, shared) = (ExitStack::new(), SharedExitStack::new());
    local.register(Handler::new(undo).at(place));
    local.on_failure(Handler::new(undo).named("named").at(here()).at(place));
    shared.register(Handler::new(undo).at(place).keyed("key"));
    shared.on_failure(Handler::new(undo).at(place).named("named"));
    let pending = [local.pending(), shared.pending()].concat();
    assert!(pending.len() == 4 && pending.iter().all(|handler| handler.location() == place));
    for error in [local.close_with(FAILED).unwrap_err(), shared.close_with(FAILED).unwrap_err()] {
        assert!(error.errors().len() == 2 && error.iter().all(|error| error.location() == place));
    }
    let closed = Interpreter::new("closed");
    closed.finalize().unwrap();
    let refused = closed.stack().try_register(Handler::new(undo).at(place)).unwrap_err();
    let _ = refused.into_handler(); // the handler is kept in the refusal
    local.register(Handler::new(undo));
    assert_eq!(local.pending()[0].location().line(), line!() - 1);
    local.clear();
}

// ---------------------------------------------------------------------------------------------------------------------
// `try_scope`

/// An error with a cause. Neither of them is a string.
#[derive(Debug, thiserror::Error)]
#[error("no such user")]
struct Work(#[source] Cause);

#[derive(Debug, thiserror::Error)]
#[error("the table is empty")]
struct Cause;

fn work() -> Result<(), Work> {
    Err(Work(Cause))
}

/// Returns the result of a scope with this body and these cleanup failures.
fn tried<E>(body: Result<(), E>, cleanup: &'static [&'static str]) -> Result<(), ScopeError<E>> {
    try_scope(|stack| {
        for text in cleanup.iter().rev() {
            stack.register(Handler::new(|| Err::<(), _>(*text)).named("undo"));
        }
        body
    })
}

#[test]
fn a_tried_scope_returns_what_failed() {
    let reports = reported(|| {
        assert_eq!(try_scope(|_| Ok::<_, ()>(7)).unwrap(), 7);
        let Err(ScopeError::Work("no")) = tried(Err("no"), &[]) else { panic!("the work's") };
        let Err(ScopeError::Cleanup(error)) = tried(Ok::<_, ()>(()), &["a", "b"]) else { panic!("the cleanup's") };
        assert_eq!(error.errors().len(), 2);
        let Err(ScopeError::Both("no", error)) = tried(Err("no"), &["a", "b"]) else { panic!("both") };
        assert_eq!(error.errors().len(), 2);
    });
    assert!(reports.is_empty(), "{reports:?}");
}

#[test]
fn a_tried_scope_has_the_outcome_of_its_body() {
    let log = Rc::new(RefCell::new(Vec::new()));
    let works = |body: fn() -> Result<(), &'static str>| {
        try_scope(|stack| {
            let say = |word| {
                let log = Rc::clone(&log);
                move || log.borrow_mut().push(word)
            };
            stack.register(say("always"));
            stack.on_success(say("success"));
            stack.on_failure(say("failure"));
            body()
        })
    };
    works(|| Ok(())).unwrap();
    assert_eq!(log.take(), SUCCESS);
    works(|| Err("no")).unwrap_err();
    assert_eq!(log.take(), FAILURE);
    assert_eq!(panic_of(|| works(|| quiet_panic("the body's"))), "the body's");
    assert_eq!(log.take(), FAILURE);
}

#[test]
fn a_tried_scope_that_panics_reports_its_cleanup() {
    let reports = reported(|| {
        let panics = || {
            try_scope(|stack| -> Result<(), ()> {
                stack.register(|| Err("the cleanup's"));
                stack.register(|| Err(Exit(3)));
                quiet_panic("the body's")
            })
        };
        assert_eq!(panic_of(panics), "the body's");
    });
    assert_eq!(reports, ["//failed: the cleanup's"]);
}

#[test]
fn a_tried_scope_returns_an_exit_request() {
    for body in [Ok(()), Err("no")] {
        let error = try_scope(|stack| {
            stack.register(|| Err(Exit(3)));
            body
        })
        .unwrap_err();
        let cleanup = error.cleanup().unwrap();
        assert_eq!((cleanup.exit_code(), cleanup.errors().len()), (Some(3), 0));
        assert_eq!(matches!(error, ScopeError::Both("no", _)), body.is_err());
    }
}

#[test]
fn of_a_scopes_errors_either_can_be_had() {
    let error = |body, cleanup| tried(body, cleanup).unwrap_err();
    assert_eq!(error(Err("no"), &[]).into_work().unwrap(), "no");
    assert_eq!(error(Err("no"), &["a"]).into_work().unwrap(), "no");
    assert_eq!(error(Ok(()), &["a", "b"]).into_work().unwrap_err().errors().len(), 2);
    assert!(error(Err("no"), &[]).cleanup().is_none());
    assert_eq!(error(Err("no"), &["a"]).cleanup().unwrap().errors().len(), 1);
    assert_eq!(error(Ok(()), &["a", "b"]).cleanup().unwrap().errors().len(), 2);
}

/// Checks that, in each way to print the error, each of these texts appears exactly once, and in this order.
fn assert_told_once<E: Error + Send + Sync + 'static>(error: impl Fn() -> E, texts: &[&str]) {
    let mut chain = error().to_string();
    let (first, mut next) = (error(), 0);
    let mut cause = first.source();
    while let Some(error) = cause {
        write!(chain, ": {error}").unwrap();
        (cause, next) = (error.source(), next + 1);
        assert!(next < 10, "no end");
    }
    let whole = anyhow::Error::new(error());
    let outside = anyhow::Context::context(Err::<(), _>(error()), "outside").unwrap_err();
    let shown = [chain, format!("{whole:#}"), format!("{whole:?}"), format!("{outside:#}"), format!("{outside:?}")];
    for shown in shown {
        // anyhow numbers the causes if there are several, and appends a backtrace if that is enabled.
        let shown = shown.split("\n\nStack backtrace").next().unwrap();
        let places: Vec<_> = texts.iter().map(|text| shown.match_indices(text).map(|(at, _)| at).collect()).collect();
        let once = places.iter().all(|places: &Vec<usize>| places.len() == 1) && places.is_sorted();
        assert!(once, "{texts:?} in {shown:?}");
    }
}

const WORK: [&str; 2] = ["no such user", "the table is empty"];

/// Checks the same for a scope's error, and for what remains of it once its type is erased.
fn assert_scope_told_once(body: fn() -> Result<(), Work>, cleanup: &'static [&'static str], texts: &[&str]) {
    assert_told_once(|| tried(body(), cleanup).unwrap_err(), texts);
    assert_told_once(|| tried(body(), cleanup).unwrap_err().erased(), texts);
}

#[test]
fn each_text_of_a_scopes_errors_is_printed_once() {
    assert_scope_told_once(work, &[], &WORK);
    assert_scope_told_once(|| Ok(()), &["disk full"], &["`undo`", "disk full"]);
    assert_scope_told_once(|| Ok(()), &["disk full", "disk gone"], &["disk full", "disk gone"]);
    assert_scope_told_once(work, &["disk full"], &[&WORK[..], &["`undo`", "disk full"]].concat());
    assert_scope_told_once(work, &["disk full", "disk gone"], &[&WORK[..], &["disk full", "disk gone"]].concat());
}

#[test]
fn a_scopes_error_is_shown_as_what_is_in_it() {
    let one = tried(work(), &[]).unwrap_err();
    assert_eq!((one.to_string(), format!("{one:#}")), ("no such user".into(), "no such user".into()));
    assert!(one.source().unwrap().is::<Cause>());

    let cleanup = tried(Ok::<_, Work>(()), &["disk full"]).unwrap_err();
    let inside = cleanup.cleanup().unwrap();
    assert_eq!((cleanup.to_string(), format!("{cleanup:#}")), (inside.to_string(), format!("{inside:#}")));
    assert_eq!(cleanup.source().unwrap().to_string(), "disk full");

    let both = tried(work(), &["disk full"]).unwrap_err();
    let inside = format!("{:#}", both.cleanup().unwrap());
    let shown = format!("no such user: the table is empty; then its cleanup failed: {inside}");
    assert_eq!((both.to_string(), format!("{both:#}")), (shown.clone(), shown));
    assert!(both.source().is_none());

    let exits = try_scope(|stack| {
        stack.register(|| Err(Exit(3)));
        work()
    });
    let expected = "no such user: the table is empty; then its cleanup failed: an exit handler requested exit status 3";
    assert_eq!(exits.unwrap_err().to_string(), expected);
}

#[test]
fn a_scopes_error_without_a_type_is_shown_alike() {
    fn assert_alike<E: Into<Box<dyn Error + Send + Sync>>>(error: impl Fn() -> E, texts: &[&str]) {
        for cleanup in [&[][..], &["disk full"], &["disk full", "disk gone"]] {
            let texts = [texts, cleanup].concat();
            assert_told_once(|| tried(Err(error()), cleanup).unwrap_err().erased(), &texts);
        }
        let failure = tried(Err(error()), &["disk full"]).unwrap_err().erased();
        assert!(failure.source().is_none());
        assert_eq!(failure.work().unwrap().to_string(), error().into().to_string());
        assert!(format!("{failure:?}").contains(&format!("{:?}", failure.work().unwrap())));
        assert_eq!(failure.cleanup().unwrap().errors().len(), 1);
        let failure = tried(Err(error()), &[]).unwrap_err().erased();
        assert_eq!(failure.to_string(), error().into().to_string());
        assert_eq!(failure.source().map(ToString::to_string), error().into().source().map(ToString::to_string));
        let failure = try_scope(|stack| {
            stack.register(|| Err("disk full"));
            if stack.is_empty() { Err(error()) } else { Ok(()) }
        });
        let failure = failure.unwrap_err().erased();
        assert!(failure.work().is_none() && failure.cleanup().is_some());
        assert_eq!(failure.source().unwrap().to_string(), "disk full");
    }
    assert_alike(|| "no such user", &["no such user"]);
    assert_alike(|| String::from("no such user"), &["no such user"]);
    assert_alike(|| Box::<dyn Error + Send + Sync>::from(Work(Cause)), &WORK);
    assert_alike(|| Work(Cause), &WORK);
    assert_alike(|| anyhow::Error::new(Work(Cause)), &WORK);
    assert_alike(|| anyhow::Error::new(Work(Cause)).context("log in"), &[&["log in"], &WORK[..]].concat());
}

#[test]
fn a_scopes_error_goes_where_errors_go() {
    fn to_anyhow(cleanup: &'static [&'static str]) -> anyhow::Result<()> {
        Ok(tried(work(), cleanup)?)
    }
    fn to_a_box(cleanup: &'static [&'static str]) -> Result<(), Box<dyn Error + Send + Sync>> {
        tried(Err(String::from("no such user")), cleanup).map_err(ScopeError::erased)?;
        Ok(())
    }
    for cleanup in [&[][..], &["disk full"]] {
        assert!(to_anyhow(cleanup).unwrap_err().downcast::<ScopeError<Work>>().is_ok());
        assert!(to_a_box(cleanup).unwrap_err().downcast::<ScopeFailure>().is_ok());
    }
    // Returned by a handler, it is like any other error; the failures in it are not shown twice.
    let mut stack = ExitStack::new();
    stack.register(|| tried(work(), &["disk full"]));
    let error = stack.close().unwrap_err();
    assert_eq!(format!("{error:#}").matches("disk full").count(), 1);
}

// ---------------------------------------------------------------------------------------------------------------------
// The error of a transaction

#[test]
fn a_rolled_back_transaction_is_told_in_words() {
    let parent = Interpreter::new("parent");
    let ended: Result<(), CloseError> = parent.enter(|| {
        Interpreter::scope("two\nlines", |_| {
            parent.finalize().unwrap();
            Ok(())
        })
    });
    let error = ended.unwrap_err();
    let line = line!() - 6;
    let expected = format!(
        "process > parent > two\\nlines: transaction `two\\nlines` begun at {}:{line}:9 was rolled back: an enclosing \
         stack drained before its body had ended",
        file!()
    );
    assert_eq!((error.to_string(), format!("{error:#}")), (expected.clone(), expected));
    assert!(error.source().is_none());
    assert!(format!("{error:?}").contains("kind: RolledBack"));
}

#[test]
fn a_refused_transaction_is_told_in_words() {
    let parent = Interpreter::new("parent");
    parent.finalize().unwrap();
    let ended: Result<(), CloseError> =
        parent.enter(|| Interpreter::scope("late", |_| unreachable!("it has not begun")));
    let shown = ended.unwrap_err().to_string();
    assert!(shown.starts_with("process > parent > late: transaction `late` begun at "), "{shown}");
    assert!(shown.ends_with(" was refused: the stack no longer accepts handlers"), "{shown}");
}

// ---------------------------------------------------------------------------------------------------------------------
// `Interpreter::instrument`

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn current() -> Option<String> {
    Interpreter::current().map(|interpreter| interpreter.name().to_owned())
}

/// Returns a future that is ready at its second poll and logs the current interpreter at each.
fn two_polls(log: log::Log<Option<String>>) -> impl Future<Output = &'static str> {
    let mut polled = false;
    poll_fn(move |_| {
        log.push(current());
        if std::mem::replace(&mut polled, true) { Poll::Ready("done") } else { Poll::Pending }
    })
}

#[test]
fn an_instrumented_future_is_in_its_interpreter() {
    let (session, log) = (Interpreter::new("session"), log::Log::default());
    let mut future = pin!(session.instrument(two_polls(log.clone())));
    assert!(log.take().is_empty() && current().is_none(), "made, not polled");
    assert!(poll(future.as_mut()).is_pending());
    assert!(current().is_none(), "between its polls");
    let other = Interpreter::new("other");
    other.enter(|| {
        assert_eq!(poll(future.as_mut()), Poll::Ready("done"));
        assert_eq!(current().as_deref(), Some("other"));
    });
    assert_eq!(log.take(), [Some("session".to_owned()), Some("session".to_owned())]);
}

#[test]
fn an_instrumented_future_may_change_threads() {
    let (session, log) = (Interpreter::new("session"), log::Log::default());
    let mut future = Box::pin(session.instrument(two_polls(log.clone())));
    let mut future = thread::spawn(move || {
        assert!(poll(future.as_mut()).is_pending() && current().is_none());
        future
    })
    .join()
    .unwrap();
    assert_eq!(poll(future.as_mut()), Poll::Ready("done"));
    assert!(current().is_none());
    assert_eq!(log.take(), [Some("session".to_owned()), Some("session".to_owned())]);
}

#[test]
fn a_poll_that_panics_restores_what_was_current() {
    let (session, other) = (Interpreter::new("session"), Interpreter::new("other"));
    let mut future = pin!(session.instrument(async { quiet_panic("in a poll") }));
    other.enter(|| {
        let polled = catch_unwind(AssertUnwindSafe(|| poll(future.as_mut())));
        assert!(polled.is_err());
        assert_eq!(current().as_deref(), Some("other"));
    });
}

#[test]
fn instrumented_futures_in_turn_keep_apart() {
    let log = log::Log::default();
    let [first, second] = ["first", "second"].map(Interpreter::new);
    let inner = second.instrument(two_polls(log.clone()));
    let mut outer = pin!(first.instrument(async {
        exitstack::register(|| ());
        let done = inner.await;
        exitstack::register(|| ());
        (done, current())
    }));
    assert!(poll(outer.as_mut()).is_pending());
    assert_eq!(poll(outer.as_mut()), Poll::Ready(("done", Some("first".to_owned()))));
    assert_eq!((first.stack().len(), second.stack().len()), (2, 0));
    assert_eq!(log.take(), [Some("second".to_owned()), Some("second".to_owned())]);
}

#[test]
fn an_instrumented_future_keeps_its_interpreter() {
    let log = Log::default();
    let session = Interpreter::new("session");
    session.stack().on_failure(log.handler("failed"));
    let future = session.instrument(async { exitstack::register(|| ()) });
    assert!(format!("{future:?}").contains("process > session"));
    drop(session);
    assert!(log.take().is_empty());
    pollster::block_on(future);
    assert_eq!(log.take(), ["failed"], "with the future, its last handle is gone");
}

/// As the locals of a scope's body are dropped before its handlers run.
#[test]
fn a_future_is_dropped_before_its_interpreter() {
    let log = Log::default();
    let session = Interpreter::new("session");
    session.stack().register(log.handler("handler"));
    let mut future = Box::pin(session.instrument(async {
        let local = ExitStack::new();
        local.register(log.handler("local"));
        pending::<()>().await;
    }));
    drop(session);
    assert!(poll(future.as_mut()).is_pending());
    drop(future);
    assert_eq!(log.take(), ["local", "handler"]);
}
