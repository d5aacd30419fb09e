//! `ExitStack`.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use exitstack::{Exit, ExitStack, Handler, HandlerErrorKind, Outcome};

use crate::panicking::{panic_of, panic_with_nothing, quiet_panic};
use crate::rude::Rude;
use crate::support::{Counter, reported};

#[test]
fn handlers_run_last_in_first_out() {
    let log = RefCell::new(Vec::new());
    let mut stack = ExitStack::new();
    for n in 0..20 {
        let log = &log;
        stack.register(move || log.borrow_mut().push(n));
    }
    stack.close().unwrap();
    drop(stack);
    assert!(log.into_inner().into_iter().eq((0..20).rev()));
}

#[test]
fn a_dropped_stack_drains() {
    let ran = Cell::new(0);
    {
        let stack = ExitStack::new();
        stack.register(|| ran.set(ran.get() + 1));
    }
    assert_eq!(ran.get(), 1);
}

#[test]
fn a_handler_may_borrow_and_need_not_be_send() {
    let local = Rc::new(Cell::new(1));
    let mut text = String::from("before");
    let mut stack = ExitStack::new();
    let moved = Rc::clone(&local);
    stack.register(move || moved.set(2));
    stack.register(|| text.push_str(" and after"));
    stack.close().unwrap();
    drop(stack);
    assert_eq!((local.get(), text.as_str()), (2, "before and after"));
}

/// All failures are kept, in the order in which they happened.
#[test]
fn no_failure_stops_the_handlers_below() {
    let counter = Counter::default();
    let mut stack = ExitStack::new();
    for n in 0..9 {
        let mut bomb = counter.bomb();
        stack.register(move || {
            bomb.use_up();
            match n % 3 {
                0 => Err(format!("failure {n}")),
                1 => quiet_panic("panic"),
                _ => Ok(()),
            }
        });
    }
    let error = stack.close().unwrap_err();
    assert_eq!((counter.used(), counter.dropped()), (9, 9));
    let kinds: Vec<String> = error
        .iter()
        .map(|error| match error.kind() {
            HandlerErrorKind::Failed(error) => error.to_string(),
            HandlerErrorKind::Panicked(message) => message.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(kinds, ["panic", "failure 6", "panic", "failure 3", "panic", "failure 0"]);
}

#[test]
fn a_panic_with_any_payload_is_recorded() {
    struct Payload(Counter);
    impl Drop for Payload {
        fn drop(&mut self) {
            drop(self.0.bomb());
            panic_with_nothing();
        }
    }
    let counter = Counter::default();
    let payload = Payload(counter.clone());
    let mut stack = ExitStack::new();
    stack.register(|| ());
    stack.register(move || std::panic::resume_unwind(Box::new(payload)));
    stack.register(|| std::panic::resume_unwind(Box::new(String::from("owned text"))));
    stack.register(|| std::panic::resume_unwind(Box::new(17)));
    let error = stack.close().unwrap_err();
    let messages: Vec<&str> = error
        .iter()
        .map(|error| if let HandlerErrorKind::Panicked(message) = error.kind() { message } else { "" })
        .collect();
    assert_eq!(messages, ["(non-string panic payload)", "owned text", "(non-string panic payload)"]);
    assert_eq!(counter.dropped(), 1);
}

/// The other handlers run.
#[test]
fn a_capture_whose_drop_panics_is_recorded() {
    let counter = Counter::default();
    let mut stack = ExitStack::new();
    for _ in 0..3 {
        let mut bomb = counter.bomb_that_panics();
        stack.register(move || bomb.use_up());
    }
    assert_eq!(stack.close().unwrap_err().errors().len(), 3);
    assert_eq!((counter.used(), counter.dropped()), (3, 3));
}

/// The payload's drop panics with another payload of the same kind.
#[test]
fn a_payload_whose_drop_panics_again_is_leaked() {
    struct Again;
    impl Drop for Again {
        fn drop(&mut self) {
            resume_unwind(Box::new(Again));
        }
    }
    let ran = Cell::new(false);
    let mut stack = ExitStack::new();
    stack.register(|| ran.set(true));
    stack.register(|| resume_unwind(Box::new(Again)));
    assert_eq!(stack.close().unwrap_err().errors().len(), 1);
    assert!(ran.get());
}

#[test]
fn close_returns_what_failed_and_reports_nothing() {
    let reports = reported(|| {
        let mut stack = ExitStack::new();
        stack.register(|| Err("kept"));
        assert!(stack.close().is_err());
    });
    assert!(reports.is_empty(), "{reports:?}");
}

/// The drop itself does not panic.
#[test]
fn drop_reports_failures_when_they_happen() {
    use crate::model::{Event, log, take_log};
    let _routed = crate::support::routed();
    take_log();
    let stack = ExitStack::new();
    stack.register(|| log(Event::Ran(1)));
    stack.register(|| quiet_panic("boom"));
    stack.register(|| log(Event::Ran(2)));
    stack.register(|| Err("no"));
    drop(stack);
    let expected = [
        Event::Reported("//failed: no".into()),
        Event::Ran(2),
        Event::Reported("//panicked: boom".into()),
        Event::Ran(1),
    ];
    assert_eq!(take_log(), expected);
}

/// The handlers' panics are reported, and the body's panic propagates.
#[test]
fn drop_during_unwinding_runs_all() {
    let counter = Counter::default();
    let reports = reported(|| {
        let message = panic_of(|| {
            let stack = ExitStack::new();
            for _ in 0..3 {
                let mut bomb = counter.bomb();
                stack.register(move || {
                    bomb.use_up();
                    quiet_panic("from a handler")
                });
            }
            quiet_panic("from the body")
        });
        assert_eq!(message, "from the body");
    });
    assert_eq!(reports.len(), 3);
    assert_eq!((counter.used(), counter.dropped()), (3, 3));
}

#[test]
fn a_closed_stack_is_empty_and_usable_again() {
    let ran = Cell::new(0);
    let mut stack = ExitStack::new();
    for _ in 0..3 {
        stack.register(|| ran.set(ran.get() + 1));
        stack.register(|| Err("each time"));
        assert!(stack.close().is_err());
        assert!(stack.is_empty());
        assert!(stack.close().is_ok());
    }
    drop(stack);
    assert_eq!(ran.get(), 3);
}

#[test]
fn a_failing_errors_own_drop_may_panic() {
    let ran = Cell::new(0);
    let reports = reported(|| {
        let stack = ExitStack::new();
        stack.register(|| ran.set(1));
        stack.register(|| Err(Rude));
        stack.register(|| Err(Rude));
        drop(stack);
    });
    assert_eq!(ran.get(), 1);
    assert_eq!(reports.iter().filter(|report| report.contains("failed: rude")).count(), 2);
    assert_eq!(reports.len(), 2);
}

#[test]
fn unregister_works_once_for_an_id_of_the_stack() {
    let counter = Counter::default();
    let mut stack = ExitStack::new();
    let mut other = ExitStack::new();
    let bomb = counter.bomb();
    let id = stack.register(move || drop(bomb));
    let foreign = other.register(|| ());
    assert!(!stack.unregister(foreign));
    assert!(!other.unregister(id));
    assert!(stack.unregister(id));
    assert_eq!((counter.used(), counter.dropped()), (0, 1));
    assert!(!stack.unregister(id));
    assert_eq!((stack.len(), other.len()), (0, 1));
}

#[test]
fn an_id_is_used_up_when_its_handler_ran() {
    let mut stack = ExitStack::new();
    let id = stack.register(|| ());
    stack.close().unwrap();
    stack.register(|| ());
    assert!(!stack.unregister(id));
    assert_eq!(stack.len(), 1);
}

/// The panic of the capture's drop propagates to the caller of `unregister`.
#[test]
fn a_panicking_capture_is_gone_when_unregistered() {
    let counter = Counter::default();
    let mut stack = ExitStack::new();
    let bomb = counter.bomb_that_panics();
    let id = stack.register(move || drop(bomb));
    assert_eq!(panic_of(|| stack.unregister(id)), "dropped");
    assert_eq!((counter.dropped(), stack.len()), (1, 0));
    assert!(!stack.unregister(id));
}

#[test]
fn run_now_runs_one_handler_once_out_of_turn() {
    let log = RefCell::new(Vec::new());
    let mut stack = ExitStack::new();
    stack.register(|| log.borrow_mut().push(1));
    let id = stack.register(|| log.borrow_mut().push(2));
    stack.register(|| log.borrow_mut().push(3));
    assert!(stack.run_now(id).unwrap().is_ok());
    assert!(stack.run_now(id).is_none());
    stack.close().unwrap();
    drop(stack);
    assert_eq!(log.into_inner(), [2, 3, 1]);
}

/// `run_now` runs a handler regardless of its outcome.
#[test]
fn run_now_returns_what_its_handler_did() {
    let ran = Cell::new(0);
    let mut stack = ExitStack::new();
    let success = stack.on_success(|| ran.set(ran.get() + 1));
    let failure = stack.on_failure(|| ran.set(ran.get() + 10));
    let fails = stack.register(Handler::new(|| Err("no")).named("fails"));
    let panics = stack.register(|| quiet_panic("boom"));
    let exits = stack.register(|| Err(Exit(4)));
    assert!(stack.run_now(success).unwrap().is_ok());
    assert!(stack.run_now(failure).unwrap().is_ok());
    assert_eq!(ran.get(), 11);
    let error = stack.run_now(fails).unwrap().unwrap_err();
    assert_eq!(error.errors()[0].name(), Some("fails"));
    assert!(matches!(stack.run_now(panics).unwrap().unwrap_err().errors()[0].kind(), HandlerErrorKind::Panicked(_)));
    let exit = stack.run_now(exits).unwrap().unwrap_err();
    assert_eq!((exit.exit_code(), exit.errors().len()), (Some(4), 0));
    assert!(stack.is_empty());
}

#[test]
fn pop_all_moves_the_handlers_and_their_ids() {
    let ran = Cell::new(0);
    let mut stack = ExitStack::new();
    let first = stack.register(|| ran.set(ran.get() + 1));
    let second = stack.register(|| ran.set(ran.get() + 10));
    let mut moved = stack.pop_all();
    assert!(stack.is_empty());
    let third = stack.register(|| ran.set(ran.get() + 100));
    assert!(!stack.unregister(first) && !moved.unregister(third));
    assert!(moved.unregister(first));
    drop(stack);
    assert_eq!(ran.get(), 100);
    let fourth = moved.register(|| ran.set(ran.get() + 1000));
    assert!(second < fourth);
    drop(moved);
    assert_eq!(ran.get(), 1110);
}

#[test]
fn clear_drops_all_and_runs_none_newest_first() {
    struct Logs<'l>(&'l RefCell<Vec<u32>>, u32);
    impl Drop for Logs<'_> {
        fn drop(&mut self) {
            self.0.borrow_mut().push(self.1);
        }
    }
    let log = RefCell::new(Vec::new());
    let mut stack = ExitStack::new();
    for n in 0..6 {
        let logs = Logs(&log, n);
        stack.register(move || {
            let _captured = &logs;
            unreachable!("cleared");
        });
    }
    stack.clear();
    assert!(stack.is_empty());
    assert_eq!(*log.borrow(), [5, 4, 3, 2, 1, 0]);
}

/// The captures of several handlers panic when dropped.
#[test]
fn clear_drops_all_and_the_first_panic_goes_on() {
    struct Tells(&'static str, Counter);
    impl Drop for Tells {
        fn drop(&mut self) {
            drop(self.1.bomb());
            quiet_panic(self.0);
        }
    }
    let counter = Counter::default();
    let mut stack = ExitStack::new();
    for name in ["oldest", "middle", "newest"] {
        let tells = Tells(name, counter.clone());
        let bomb = counter.bomb();
        stack.register(move || drop(bomb));
        stack.register(move || drop(tells));
    }
    assert_eq!(panic_of(|| stack.clear()), "newest");
    assert_eq!((counter.dropped(), stack.len()), (6, 0));
    stack.register(|| ());
    stack.close().unwrap();
}

#[test]
fn a_value_is_lent_until_its_exit_gets_it() {
    let mut stack = ExitStack::new();
    let seen = Rc::new(RefCell::new(String::new()));
    let sink = Rc::clone(&seen);
    let text = stack.enter(String::from("a"), move |text| *sink.borrow_mut() = text);
    let number = stack.enter(1_u64, |number| if number == 42 { Ok(()) } else { Err("not written to") });
    for _ in 0..100 {
        stack.register(|| ()); // the list moves its handlers when it grows
    }
    text.push('b');
    *number = 42;
    text.push('c');
    stack.close().unwrap();
    assert_eq!(*seen.borrow(), "abc");
}

/// The stack may be drained, cleared, popped or dropped, and the value's exit may be unregistered.
#[test]
fn an_entered_value_is_dropped_exactly_once() {
    let counter = Counter::default();
    let enter = |stack: &ExitStack<'_>| {
        let _lent = stack.enter(counter.bomb(), |mut bomb| bomb.use_up());
    };
    let mut stack = ExitStack::new();
    enter(&stack);
    stack.close().unwrap();
    assert_eq!((counter.used(), counter.dropped()), (1, 1));
    enter(&stack);
    stack.clear();
    assert_eq!((counter.used(), counter.dropped()), (1, 2));
    enter(&stack);
    let id = stack.pending()[0].id();
    assert!(stack.unregister(id));
    assert_eq!((counter.used(), counter.dropped()), (1, 3));
    enter(&stack);
    drop(stack.pop_all());
    assert_eq!((counter.used(), counter.dropped()), (2, 4));
    enter(&stack);
    let id = stack.pending()[0].id();
    stack.run_now(id).unwrap().unwrap();
    assert_eq!((counter.used(), counter.dropped()), (3, 5));
}

/// The value panics in its exit or in its drop.
#[test]
fn an_entered_value_that_panics_is_consumed() {
    let counter = Counter::default();
    let mut stack = ExitStack::new();
    stack.enter(counter.bomb(), |_bomb| quiet_panic("exit"));
    stack.enter(counter.bomb_that_panics(), |mut bomb| bomb.use_up());
    assert_eq!(stack.close().unwrap_err().errors().len(), 2);
    assert_eq!((counter.used(), counter.dropped()), (1, 2));
    stack.enter(counter.bomb_that_panics(), |_bomb| ());
    assert_eq!(panic_of(|| stack.clear()), "dropped");
    assert_eq!(counter.dropped(), 3);
}

/// The value may be zero-sized or have a large alignment.
#[test]
fn an_entered_value_may_be_of_any_layout() {
    #[repr(align(256))]
    struct Wide(u8);
    let stack = ExitStack::new();
    stack.enter((), |()| ());
    let wide = stack.enter(Wide(1), |wide| assert_eq!((wide.0, &raw const wide as usize % 256), (2, 0)));
    assert_eq!(std::ptr::from_ref(wide).addr() % 256, 0);
    wide.0 = 2;
    let reports = reported(|| drop(stack));
    assert!(reports.is_empty(), "{reports:?}");
}

/// Handlers for the other outcome are dropped when their turn comes.
#[test]
fn outcome_handlers_run_for_their_outcome() {
    for outcome in [Outcome::Success, Outcome::Failure] {
        let counter = Counter::default();
        let log = RefCell::new(Vec::new());
        let (mut yes, mut no) = (counter.bomb(), counter.bomb());
        let mut stack = ExitStack::new();
        stack.register(|| log.borrow_mut().push("always"));
        stack.on_success(|| {
            yes.use_up();
            log.borrow_mut().push("success");
        });
        stack.on_failure(|| {
            no.use_up();
            log.borrow_mut().push("failure");
        });
        stack.close_with(outcome).unwrap();
        assert_eq!((counter.used(), stack.len()), (1, 0));
        drop(stack);
        let word = if outcome == Outcome::Success { "success" } else { "failure" };
        assert_eq!(log.into_inner(), [word, "always"]);
    }
}

#[test]
fn close_means_success() {
    let ran = Cell::new("");
    let mut stack = ExitStack::new();
    stack.on_success(|| ran.set("success"));
    stack.on_failure(|| ran.set("failure"));
    stack.close().unwrap();
    assert_eq!(ran.get(), "success");
}

/// Records in `ran` which of the two handlers ran, so that a second one would show.
fn asks_for_the_outcome<'a>(stack: &ExitStack<'a>, ran: &'a RefCell<Vec<&'static str>>) {
    stack.on_success(|| ran.borrow_mut().push("success"));
    stack.on_failure(|| ran.borrow_mut().push("failure"));
}

/// Leaving by `?` before the stack is closed counts as a failure.
#[test]
fn an_early_return_commits_nothing() {
    fn transfer(ran: &RefCell<Vec<&'static str>>, work: Result<(), String>) -> Result<(), String> {
        let mut stack = ExitStack::new();
        asks_for_the_outcome(&stack, ran);
        work?;
        stack.close().map_err(|error| error.to_string())
    }
    let ran = RefCell::default();
    assert_eq!(transfer(&ran, Err("insufficient funds".into())).unwrap_err(), "insufficient funds");
    assert_eq!(ran.take(), ["failure"]);
    transfer(&ran, Ok(())).unwrap();
    assert_eq!(ran.take(), ["success"]);
}

#[test]
fn a_panic_is_a_failure() {
    let ran = RefCell::default();
    panic_of(|| {
        let stack = ExitStack::new();
        asks_for_the_outcome(&stack, &ran);
        quiet_panic("the work")
    });
    assert_eq!(ran.take(), ["failure"]);
}

#[test]
fn a_stack_that_nobody_closes_has_failed() {
    fn dropped<'a>(ran: &'a RefCell<Vec<&'static str>>, road: impl FnOnce(ExitStack<'a>)) {
        let stack = ExitStack::new();
        asks_for_the_outcome(&stack, ran);
        road(stack);
        assert_eq!(ran.take(), ["failure"]);
    }
    let ran = RefCell::default();
    dropped(&ran, drop);
    dropped(&ran, |mut stack| drop(stack.pop_all()));
    dropped(&ran, |stack| drop(Some(Box::new(stack))));
    dropped(&ran, |mut stack| drop(std::mem::take(&mut stack)));
}

#[test]
fn a_close_speaks_for_its_own_handlers_alone() {
    let ran = RefCell::default();
    let mut stack = ExitStack::new();
    asks_for_the_outcome(&stack, &ran);
    stack.close().unwrap();
    assert_eq!(ran.take(), ["success"]);
    asks_for_the_outcome(&stack, &ran);
    drop(stack);
    assert_eq!(ran.take(), ["failure"]);
}

#[test]
fn unwinding_around_a_stack_decides_nothing() {
    struct Works<'r>(&'r RefCell<Vec<&'static str>>, Option<Outcome>);
    impl Drop for Works<'_> {
        fn drop(&mut self) {
            assert!(std::thread::panicking());
            let mut stack = ExitStack::new();
            asks_for_the_outcome(&stack, self.0);
            if let Some(outcome) = self.1 {
                stack.close_with(outcome).unwrap();
            }
        }
    }
    for (closed, word) in [(None, "failure"), (Some(Outcome::Failure), "failure"), (Some(Outcome::Success), "success")]
    {
        let ran = RefCell::default();
        panic_of(|| {
            let _works = Works(&ran, closed);
            quiet_panic("outside")
        });
        assert_eq!(ran.take(), [word]);
    }
}

/// The handler is for the other outcome.
#[test]
fn a_panic_in_an_unrun_handlers_drop_is_recorded() {
    let counter = Counter::default();
    let mut stack = ExitStack::new();
    let bomb = counter.bomb_that_panics();
    stack.on_failure(move || drop(bomb));
    stack.register(|| ());
    assert_eq!(stack.close().unwrap_err().errors().len(), 1);
    assert_eq!(counter.dropped(), 1);
}

#[test]
fn a_forgotten_stack_runs_nothing() {
    let counter = Counter::default();
    let mut bomb = counter.bomb();
    let stack = ExitStack::new();
    stack.register(|| bomb.use_up());
    std::mem::forget(stack);
    assert_eq!(counter.used(), 0);
}

#[test]
fn pending_lists_what_waits_the_next_first() {
    let stack = ExitStack::new();
    let a = stack.register(Handler::new(|| ()).named("a"));
    let b = stack.register(|| ());
    let c = stack.register(Handler::new(|| ()).named(String::from("c")));
    let pending = stack.pending();
    let listed: Vec<_> = pending.iter().map(|pending| (pending.id(), pending.name())).collect();
    assert_eq!(listed, [(c, Some("c")), (b, None), (a, Some("a"))]);
    let debug = format!("{stack:?}");
    assert!(debug.contains("ExitStack") && debug.contains("\"c\""), "{debug}");
}

#[test]
fn a_stack_may_be_used_by_a_handler_of_another() {
    let inner_ran = Cell::new(false);
    let mut stack = ExitStack::new();
    let mut inner = ExitStack::new();
    inner.register(|| inner_ran.set(true));
    stack.register(move || inner.close());
    stack.close().unwrap();
    drop(stack);
    assert!(inner_ran.get());
}

#[test]
fn a_stack_goes_on_after_a_caught_panic() {
    let ran = Cell::new(0);
    let mut stack = ExitStack::new();
    stack.register(|| ran.set(ran.get() + 1));
    let _ = catch_unwind(AssertUnwindSafe(|| {
        stack.register(|| ran.set(ran.get() + 10));
        quiet_panic("meanwhile")
    }));
    assert_eq!(stack.len(), 2);
    stack.close().unwrap();
    drop(stack);
    assert_eq!(ran.get(), 11);
}

/// On a stack of 2 MiB, which recursion this deep would overflow.
#[test]
fn ten_million_handlers_drain_without_recursion() {
    const COUNT: u32 = 10_000_000;
    let drain = || {
        let ran = Cell::new(0_u32);
        let mut stack = ExitStack::new();
        stack.reserve(COUNT as usize);
        for _ in 0..COUNT {
            stack.register(|| ran.set(ran.get() + 1));
        }
        assert_eq!(stack.len(), COUNT as usize);
        stack.close().unwrap();
        drop(stack);
        ran.get()
    };
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(drain).unwrap();
    assert_eq!(thread.join().unwrap(), COUNT);
}
