//! Interpreters finalized with a time limit, and what happens to handlers that do not return in time.
//!
//! A handler meant to be given up waits on a channel and has a short limit of its own. Everything else has more time
//! than it can possibly need.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use exitstack::shutdown::{Closed, Expiry, Fate, Limits, Record, running, time_left};
use exitstack::{CloseError, Exit, Handler, HandlerError, HandlerErrorKind, Interpreter, SharedExitStack};

use crate::watched::Watched;
use crate::{Log, file_reports, message, reports_of, within_a_minute};

/// The time limit of a handler that is meant to be given up.
const SHORT: Duration = Duration::from_millis(100);

/// Long enough for anything, but still bounded.
const LONG: Duration = Duration::from_secs(20);

/// How far `finalize_within` may exceed its total on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

/// Waits until the condition holds; fails if that takes too long.
fn until(is_so: impl Fn() -> bool) {
    let end = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < end, "it never happens");
        thread::yield_now();
    }
}

/// Returns a handler that runs until it is released, and the means to wait for its start and to release it.
fn held<R: 'static>(name: &'static str, then: fn() -> R) -> (Handler<impl FnOnce() -> R + Send + 'static>, Held) {
    let (release, released) = channel::<()>();
    let (begins, begun) = channel();
    let handler = move || {
        let _ = begins.send(Watched::this());
        let _ = released.recv();
        then()
    };
    (Handler::new(handler).named(name), Held { release, begun })
}

struct Held {
    release: Sender<()>,
    begun: Receiver<Watched>,
}

impl Held {
    fn until_it_runs(&self) -> Watched {
        self.begun.recv_timeout(LONG).expect("it begins")
    }

    fn release(self) {
        drop(self.release);
    }
}

fn fate(record: &Record) -> String {
    let fate = match record.fate() {
        Fate::Done => "done",
        Fate::Failed(error) => return format!("{} failed with {}", record.name().unwrap_or("?"), message(error)),
        Fate::GivenUp => "given up",
        Fate::NotRun => "not run",
        Fate::Running => "running",
        _ => "something else",
    };
    format!("{} {fate}", record.name().unwrap_or("?"))
}

fn fates(closed: &Closed) -> Vec<String> {
    closed.records().iter().map(fate).collect()
}

fn kinds(result: &Result<(), CloseError>) -> Vec<String> {
    let errors = result.as_ref().err().map_or(&[][..], CloseError::errors);
    let kind = |kind: &HandlerErrorKind| match kind {
        HandlerErrorKind::Failed(_) => "failed",
        HandlerErrorKind::Panicked(_) => "panicked",
        HandlerErrorKind::TimedOut(_) => "timed out",
        HandlerErrorKind::NotRun => "not run",
        _ => "something else",
    };
    errors.iter().map(|error| format!("{} {}", error.name().unwrap_or("?"), kind(error.kind()))).collect()
}

fn named(interpreter: &Interpreter, log: &Log, name: &'static str) {
    interpreter.stack().register(Handler::new(log.handler(name)).named(name));
}

#[test]
fn without_a_handler_that_hangs_all_is_done() {
    let (plugin, log) = (Interpreter::new("bounded-done"), Log::default());
    named(&plugin, &log, "A");
    plugin.stack().register(Handler::new(|| Err("full")).named("B"));
    named(&plugin, &log, "C");
    let closed = plugin.finalize_within(&Limits::new().within(LONG).each(LONG));
    assert_eq!(log.take(), ["C", "A"]);
    assert_eq!(fates(&closed), ["C done", "B failed with full", "A done"]);
    assert_eq!(kinds(&closed.result()), ["B failed"]);
    assert!(closed.is_over());
    assert!(plugin.stack().try_register(|| ()).is_err());
    assert!(closed.records().iter().all(|record| record.path() == Some("process > bounded-done")));
    assert!(closed.records().iter().all(|record| record.thread() == Some("exitstack-drain")));
}

/// It did not run, and nothing was missed.
#[test]
fn a_handler_for_the_other_outcome_has_no_record() {
    let (plugin, log) = (Interpreter::new("bounded-outcomes"), Log::default());
    plugin.stack().on_failure(Handler::new(log.handler("undo 1")).named("undo 1"));
    plugin.stack().on_success(Handler::new(log.handler("commit")).named("commit"));
    plugin.stack().on_failure(Handler::new(log.handler("undo 2")).named("undo 2"));
    let closed = plugin.finalize_within(&Limits::new().within(LONG));
    assert_eq!(log.take(), ["commit"]);
    assert_eq!(fates(&closed), ["commit done"]);

    let plugin = Interpreter::new("bounded-outcomes-without-time");
    plugin.stack().on_failure(Handler::new(|| ()).named("undo"));
    plugin.stack().on_success(Handler::new(|| ()).named("commit"));
    let (handler, held) = held("held", || ());
    plugin.stack().register(handler);
    let closed = plugin.finalize_within(&Limits::new().each(SHORT).on_expiry(Expiry::Leave));
    assert_eq!(fates(&closed), ["held given up", "commit not run"]);
    assert_eq!(kinds(&closed.result()), ["held timed out", "commit not run"]);
    held.release();
}

#[test]
fn a_handler_that_hangs_is_given_up() {
    file_reports();
    let (plugin, log) = (Interpreter::new("bounded-hangs"), Log::default());
    named(&plugin, &log, "A");
    let (handler, held) = held("B", || Err::<(), _>("late"));
    plugin.stack().register(handler.within(SHORT));
    named(&plugin, &log, "C");
    let closed = within_a_minute({
        let plugin = plugin.clone();
        move || plugin.finalize_within(&Limits::new().within(LONG))
    });
    assert_eq!(log.take(), ["C", "A"]);
    assert_eq!(fates(&closed), ["C done", "B given up", "A done"]);
    assert_eq!(kinds(&closed.result()), ["B timed out"]);
    let took = closed.records()[1].took();
    assert!(took >= SHORT && took < LONG, "{took:?}");
    assert!(!closed.is_over());
    assert!(running().iter().any(|running| running.path() == Some("process > bounded-hangs")));
    held.release();
    until(|| closed.is_over());
    let reports = reports_of("bounded-hangs");
    assert_eq!(reports.iter().map(message).collect::<Vec<_>>(), ["late"], "only what came late");
    assert_eq!(closed.result().unwrap_err().errors().len(), 1);
}

#[test]
fn it_returns_by_its_total() {
    let (plugin, log) = (Interpreter::new("bounded-total"), Log::default());
    let token = Arc::new(());
    let alive: Weak<()> = Arc::downgrade(&token);
    plugin.stack().register(Handler::new(move || drop(token)).named("A"));
    let (handler, held) = held("B", || ());
    plugin.stack().register(handler);
    named(&plugin, &log, "C");
    let total = Duration::from_millis(500);
    let began = Instant::now();
    let closed = plugin.finalize_within(&Limits::new().within(total));
    let took = began.elapsed();
    assert!(took >= total && took < total + SLACK, "{took:?}");
    assert_eq!(log.take(), ["C"]);
    assert_eq!(fates(&closed)[..2], ["C done", "B given up"]);
    until(|| plugin.stack().is_empty());
    assert!(alive.upgrade().is_some(), "what has no time is not dropped");
    assert!(!closed.is_over());
    held.release();
    until(|| closed.is_over());
    assert!(alive.upgrade().is_some(), "what has no time is not dropped");
}

#[test]
fn what_is_not_run_is_among_the_failures() {
    let (plugin, log) = (Interpreter::new("bounded-not-run"), Log::default());
    named(&plugin, &log, "A");
    named(&plugin, &log, "B");
    let (handler, held) = held("C", || ());
    plugin.stack().register(handler.within(SHORT));
    // With `Leave`, nothing below the first handler given up runs.
    let closed = plugin.finalize_within(&Limits::new().within(LONG).on_expiry(Expiry::Leave));
    assert_eq!(fates(&closed), ["C given up", "B not run", "A not run"]);
    assert_eq!(kinds(&closed.result()), ["C timed out", "B not run", "A not run"]);
    assert!(log.take().is_empty());
    assert!(closed.records()[1..].iter().all(|record| record.took().is_zero()));
    held.release();
    until(|| closed.is_over());
    assert!(log.take().is_empty());
}

#[test]
fn expiry_that_waits_gives_nothing_up() {
    let plugin = Interpreter::new("bounded-waits");
    let (handler, held) = held("A", || ());
    plugin.stack().register(handler.within(Duration::ZERO));
    let limits = Limits::new().each(Duration::ZERO).on_expiry(Expiry::Wait);
    let second = thread::spawn(move || plugin.finalize_within(&limits));
    held.until_it_runs().until_it_sleeps();
    held.release();
    let closed = second.join().expect("no panic");
    assert_eq!(fates(&closed), ["A done"]);
    assert!(closed.result().is_ok() && closed.is_over());
}

/// The handler goes on.
#[test]
fn expiry_that_waits_returns_when_the_time_is_over() {
    let plugin = Interpreter::new("bounded-waits-in-vain");
    let (handler, held) = held("A", || ());
    plugin.stack().register(handler);
    let limits = Limits::new().within(5 * SHORT).on_expiry(Expiry::Wait); // time enough for it to begin
    let own = plugin.clone(); // the drop of the last handle would wait for the handler
    let closed = within_a_minute(move || own.finalize_within(&limits));
    assert_eq!(fates(&closed), ["A running"]);
    assert!(!closed.is_over());
    held.release();
    until(|| closed.is_over());
}

#[test]
fn several_are_given_up_one_after_the_other() {
    let (plugin, log) = (Interpreter::new("bounded-several"), Log::default());
    named(&plugin, &log, "A");
    let inner = plugin.subinterpreter("inner");
    let mut all = Vec::new();
    for (at, name) in [(&plugin, "first"), (&inner, "second"), (&plugin, "third"), (&inner, "fourth")] {
        let (handler, held) = held(name, || ());
        at.stack().register(handler.within(SHORT));
        named(at, &log, name);
        all.push(held);
    }
    let closed = within_a_minute(move || plugin.finalize_within(&Limits::new().within(LONG)));
    // `inner` was created after "A" and before the plugin's other handlers.
    assert_eq!(log.take(), ["third", "first", "fourth", "second", "A"]);
    let names = ["third", "first", "fourth", "second"];
    let expected: Vec<_> = names.iter().flat_map(|name| [format!("{name} done"), format!("{name} given up")]).collect();
    assert_eq!(fates(&closed)[..8], expected);
    assert_eq!(closed.records().len(), 9);
    assert_eq!(kinds(&closed.result()), names.map(|name| format!("{name} timed out")));
    for held in all {
        assert!(!closed.is_over());
        held.release();
    }
    until(|| closed.is_over());
}

/// The first handler gets all the time except the reserve, which those that still wait then share evenly: with "quick"
/// ones in between, the second gets a quarter of it, and the third half of what is then left.
#[test]
fn a_reserve_is_shared_evenly() {
    let plugin = Interpreter::new("bounded-reserve");
    let (kept, reserve) = (Duration::from_millis(600), Duration::from_millis(1200));
    let total = kept + reserve;
    let mut all = Vec::new();
    for name in ["C", "B", "A"] {
        let (handler, held) = held(name, || ());
        plugin.stack().register(Handler::new(|| ()).named("quick"));
        plugin.stack().register(handler);
        all.push(held);
    }
    let closed = plugin.finalize_within(&Limits::new().within(total).reserve(reserve));
    let given_up: Vec<_> =
        closed.records().iter().filter(|record| matches!(record.fate(), Fate::GivenUp)).map(Record::took).collect();
    let [first, second, third] = given_up[..] else { panic!("{:?}", fates(&closed)) };
    let least = |time: Duration| time.saturating_sub(Duration::from_millis(250)); // slack for a busy machine
    assert!(first >= least(kept) && first < total, "{given_up:?}");
    assert!(second + third <= reserve + SLACK && second >= least(reserve / 4), "{given_up:?}");
    let is_done = |name: &str| fates(&closed).iter().filter(|fate| *fate == name).count();
    assert_eq!(is_done("quick done"), 3, "{:?}", fates(&closed));
    drop(all);
    until(|| closed.is_over());
}

#[test]
fn a_parents_drain_does_not_wait_for_what_is_given_up() {
    let (parent, log) = (Interpreter::new("bounded-parent"), Log::default());
    named(&parent, &log, "A");
    let child = parent.subinterpreter("child");
    let (handler, held) = held("stuck", || ());
    child.stack().register(handler.within(SHORT));
    named(&parent, &log, "B");
    let closed = child.finalize_within(&Limits::new());
    assert!(!closed.is_over());
    within_a_minute(move || parent.finalize()).unwrap();
    assert_eq!(log.take(), ["B", "A"]);
    assert!(!closed.is_over());
    held.release();
    until(|| closed.is_over());
}

/// Once unlinked, an interpreter is dropped with its last handle.
#[test]
fn a_child_is_unlinked_when_the_last_one_returns() {
    struct Dropped(Arc<()>);
    let parent = Interpreter::new("bounded-unlinked");
    let alive = Arc::new(());
    for _ in 0..20 {
        let child = parent.subinterpreter("child");
        let grandchild = child.subinterpreter("grandchild");
        let (handler, held) = held("stuck", || ());
        grandchild.stack().register(handler.within(Duration::ZERO));
        let kept = Dropped(Arc::clone(&alive));
        child.stack().register(move || drop(kept.0));
        let closed = child.finalize_within(&Limits::new().within(LONG));
        assert!(!closed.is_over());
        held.release();
        until(|| closed.is_over());
    }
    assert_eq!(Arc::strong_count(&alive), 1);
    assert!(!format!("{parent:?}").contains("child"));
    let closed = parent.finalize_within(&Limits::new().within(LONG));
    assert!(closed.records().is_empty() && closed.is_over());
}

#[test]
fn inside_its_own_handler_it_returns_at_once() {
    let (plugin, log) = (Interpreter::new("bounded-own"), Log::default());
    named(&plugin, &log, "A");
    let (own, inside) = (plugin.clone(), log.clone());
    plugin.stack().register(move || {
        let closed = own.finalize_within(&Limits::new().within(LONG));
        inside.push(format!("{:?}, over: {}", closed.result(), closed.is_over()));
    });
    let result = within_a_minute(move || plugin.finalize());
    assert!(result.is_ok());
    assert_eq!(log.take(), ["Ok(()), over: false", "A"]);
}

#[test]
fn inside_its_own_bounded_drain_it_returns_at_once() {
    let (plugin, log) = (Interpreter::new("bounded-twice"), Log::default());
    named(&plugin, &log, "A");
    let (own, inside) = (plugin.clone(), log.clone());
    plugin.stack().register(move || {
        let closed = own.finalize_within(&Limits::new().within(LONG));
        inside.push(format!("{:?}", closed.result()));
    });
    let closed = within_a_minute(move || plugin.finalize_within(&Limits::new().within(LONG)));
    assert!(closed.result().is_ok() && closed.is_over());
    assert_eq!(log.take(), ["Ok(())", "A"]);
}

/// What it waits for has limits of its own, or none.
#[test]
fn who_waits_in_finalize_within_is_given_up_itself() {
    let [outer, inner] = ["outer", "inner"].map(Interpreter::detached);
    let (stuck, held) = held("stuck", || ());
    inner.stack().register(stuck);
    let (tells, told) = channel();
    let waits = move || tells.send(inner.finalize_within(&Limits::new())).unwrap();
    outer.stack().register(Handler::new(waits).named("waits").within(SHORT));
    let closed = within_a_minute(move || outer.finalize_within(&Limits::new()));
    assert_eq!(fates(&closed), ["waits given up"]);
    held.release();
    assert_eq!(fates(&told.recv_timeout(LONG).unwrap()), ["stuck done"]);
}

/// The drain reaches the child whose handler is waiting for it; it waits for that handler, and the handler's call
/// returns.
#[test]
fn inside_a_childs_handler_there_is_no_deadlock() {
    let (plugin, log) = (Interpreter::new("bounded-from-child"), Log::default());
    named(&plugin, &log, "A");
    let child = plugin.subinterpreter("child");
    named(&child, &log, "c1");
    let (outer, inside) = (plugin.clone(), log.clone());
    child.stack().register(move || {
        let closed = outer.finalize_within(&Limits::new());
        inside.push(format!("over: {}", closed.is_over()));
    });
    named(&plugin, &log, "B");
    within_a_minute(move || child.finalize()).unwrap();
    within_a_minute({
        let plugin = plugin.clone();
        move || plugin.finalize()
    })
    .unwrap();
    assert_eq!(log.take(), ["B", "over: false", "c1", "A"]);
}

#[test]
fn a_child_may_be_finalized_inside_a_handler() {
    let (plugin, log) = (Interpreter::new("bounded-child"), Log::default());
    let child = plugin.subinterpreter("child");
    let (handler, held) = held("stuck", || ());
    named(&child, &log, "c1");
    child.stack().register(handler.within(SHORT));
    named(&plugin, &log, "A");
    let (inner, inside) = (child.clone(), log.clone());
    plugin.stack().register(move || {
        let closed = inner.finalize_within(&Limits::new().within(LONG));
        inside.push(kinds(&closed.result()).join(", "));
    });
    let closed = within_a_minute(move || plugin.finalize_within(&Limits::new().within(LONG)));
    assert_eq!(log.take(), ["c1", "stuck timed out", "A"]);
    assert!(!closed.is_over(), "the child's handler is part of it");
    held.release();
    until(|| closed.is_over());
}

#[test]
fn two_threads_may_finalize_it_at_once() {
    let (plugin, log) = (Interpreter::new("bounded-two"), Log::default());
    named(&plugin, &log, "A");
    let (handler, held) = held("stuck", || ());
    plugin.stack().register(handler.within(SHORT));
    named(&plugin, &log, "B");
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let plugin = plugin.clone();
            // No total limit, yet neither call may wait for the thread that was given up.
            thread::spawn(move || within_a_minute(move || plugin.finalize_within(&Limits::new())))
        })
        .collect();
    let all: Vec<Closed> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
    assert_eq!(log.take(), ["B", "A"]);
    // Whichever gives it up first records that; the one whose thread runs it does so as well.
    let given_up = |closed: &Closed| fates(closed).iter().filter(|fate| *fate == "stuck given up").count();
    let counts: Vec<usize> = all.iter().map(given_up).collect();
    assert!([[0, 1], [1, 0], [1, 1]].iter().any(|expected| counts == expected), "{all:?}");
    held.release();
    until(|| all.iter().all(Closed::is_over));
}

/// The other thread started its drain without limits.
#[test]
fn a_finalize_that_hangs_elsewhere_is_given_up() {
    let (plugin, log) = (Interpreter::new("bounded-elsewhere"), Log::default());
    named(&plugin, &log, "A");
    let (handler, held) = held("stuck", || ());
    plugin.stack().register(handler.within(SHORT));
    // Drains are watched only after something has asked for it.
    let _ = Interpreter::new("bounded-watch").finalize_within(&Limits::new());
    let other = plugin.clone();
    let finalizes = thread::spawn(move || other.finalize());
    held.until_it_runs();
    let closed = within_a_minute(move || plugin.finalize_within(&Limits::new().within(LONG)));
    assert_eq!(log.take(), ["A"]);
    assert_eq!(fates(&closed), ["stuck given up", "A done"]);
    assert!(!closed.is_over());
    held.release();
    // Its caller gets what the drain came to, although that ended on another thread.
    assert_eq!(kinds(&finalizes.join().expect("no panic")), ["stuck timed out"]);
    until(|| closed.is_over());
}

#[test]
fn what_runs_is_listed_with_its_path_and_thread() {
    let outer = Interpreter::new("bounded-listed");
    outer.stack().register(Handler::new(|| ()).named("waits"));
    let inner = outer.subinterpreter("inner");
    inner.stack().register(Handler::new(|| ()).named("waits, too"));
    let (handler, held) = held("listed", || ());
    inner.stack().register(handler);
    inner.stack().register(Handler::new(|| ()).named("before"));
    outer.stack().register(Handler::new(|| ()).named("before, too"));
    let below = outer.subinterpreter("newer");
    below.stack().register(|| ());
    let list = || -> Vec<_> {
        running().into_iter().filter(|running| running.path() == Some("process > bounded-listed > inner")).collect()
    };
    assert!(list().is_empty());
    let before = Instant::now();
    let finalizes = {
        let outer = outer.clone();
        thread::Builder::new().name("finalizes".into()).spawn(move || outer.finalize_within(&Limits::new()))
    };
    held.until_it_runs();
    let all = list();
    let [running] = &all[..] else { panic!("{all:?}") };
    assert_eq!((running.name(), running.waiting()), (Some("listed"), 2));
    assert!(running.location().file().ends_with("bounded.rs"));
    assert!(running.since() >= before && running.since() <= Instant::now());
    assert!(running.thread().is_none_or(|thread| thread == "exitstack-drain"), "{running:?}");
    held.release();
    let closed = finalizes.expect("a thread").join().expect("no panic");
    assert_eq!(closed.records().len(), 6);
    assert!(list().is_empty());
}

#[test]
fn a_handler_can_ask_how_much_time_it_has() {
    let (plugin, seen) = (Interpreter::new("bounded-left"), Arc::<Mutex<Vec<Option<Duration>>>>::default());
    for limit in [None, Some(LONG / 4)] {
        let seen = Arc::clone(&seen);
        let handler = Handler::new(move || seen.lock().unwrap_or_else(PoisonError::into_inner).push(time_left()));
        match limit {
            Some(limit) => plugin.stack().register(handler.within(limit)),
            None => plugin.stack().register(handler),
        };
    }
    let _ = plugin.finalize_within(&Limits::new().within(LONG));
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let [Some(own), Some(total)] = seen[..] else { panic!("{seen:?}") };
    assert!(own <= LONG / 4 && own > LONG / 8, "{own:?}");
    assert!(total <= LONG && total > LONG / 2, "{total:?}");
    assert_eq!(time_left(), None);
}

#[test]
fn the_interpreter_is_current_on_the_librarys_thread() {
    let (plugin, log) = (Interpreter::new("bounded-current"), Log::default());
    let inner = plugin.subinterpreter("inner");
    for at in [&plugin, &inner] {
        // Two run before the stuck handler is given up and two after, so both the first thread and its relief are
        // covered.
        for _ in 0..2 {
            let log = log.clone();
            at.stack().register(move || {
                log.push(Interpreter::current().map(|current| current.name().to_owned()).unwrap_or_default());
            });
        }
    }
    let (handler, held) = held("stuck", || ());
    inner.stack().register(handler.within(SHORT));
    inner.stack().register({
        let log = log.clone();
        move || log.push(Interpreter::current().map(|current| current.name().to_owned()).unwrap_or_default())
    });
    let closed = plugin.finalize_within(&Limits::new().within(LONG));
    // The plugin's own handlers were registered after `inner` was created.
    let expected = ["bounded-current", "bounded-current", "inner", "inner", "inner"];
    assert_eq!(log.take(), expected);
    assert_eq!(kinds(&closed.result()), ["stuck timed out"]);
    assert!(Interpreter::current().is_none());
    held.release();
    until(|| closed.is_over());
}

#[test]
fn a_panic_or_an_exit_is_kept_as_ever() {
    let plugin = Interpreter::new("bounded-panics");
    plugin.stack().register(Handler::new(|| Err(Exit(7))).named("exits"));
    let (handler, held) = held("stuck", || ());
    plugin.stack().register(handler.within(SHORT));
    plugin.stack().register(Handler::new(|| -> () { std::panic::resume_unwind(Box::new("oh")) }).named("panics"));
    let closed = plugin.finalize_within(&Limits::new().within(LONG));
    let result = closed.result();
    assert_eq!(kinds(&result), ["panics panicked", "stuck timed out"]);
    assert_eq!(result.unwrap_err().exit_code(), Some(7));
    assert_eq!(closed.records().len(), 3);
    held.release();
    until(|| closed.is_over());
    assert_eq!(closed.result().unwrap_err().exit_code(), Some(7));
}

/// A handler that was given up can no longer set the exit status.
#[test]
fn a_late_exit_status_is_not_among_the_results() {
    let plugin = Interpreter::new("bounded-late-exit");
    let (handler, held) = held("stuck", || Err::<(), _>(Exit(9)));
    plugin.stack().register(handler.within(SHORT));
    let closed = plugin.finalize_within(&Limits::new().within(LONG));
    held.release();
    until(|| closed.is_over());
    assert_eq!(closed.result().unwrap_err().exit_code(), None);
}

/// The handler that called `finalize` was given up, so it never receives them.
#[test]
fn failures_of_a_lost_inner_finalize_are_reported() {
    file_reports();
    let (outer, log) = (Interpreter::new("bounded-outer"), Log::default());
    let inner = Interpreter::new("bounded-inner");
    inner.stack().register(Handler::new(|| Err("below")).named("below"));
    let (handler, held) = held("stuck", || ());
    inner.stack().register(handler.within(SHORT));
    inner.stack().register(Handler::new(|| Err("above")).named("above"));
    named(&outer, &log, "A");
    let (finalizes, inside) = (inner.clone(), log.clone());
    outer.stack().register(
        Handler::new(move || {
            let result = finalizes.finalize();
            inside.push(format!("told of {} failures", kinds(&result).len()));
        })
        .named("finalizes"),
    );
    let closed = within_a_minute(move || outer.finalize_within(&Limits::new().within(LONG)));
    assert_eq!(log.take(), ["A"]);
    assert_eq!(fates(&closed)[..3], ["above failed with above", "stuck given up", "finalizes given up"]);
    assert_eq!(kinds(&closed.result()), ["finalizes timed out"]);
    let mut reported: Vec<_> = reports_of("bounded-inner").iter().filter_map(|e| e.name().map(str::to_owned)).collect();
    reported.sort();
    assert_eq!(reported, ["above", "below", "stuck"]);
    held.release();
    until(|| closed.is_over());
    until(|| inner.stack().try_register(|| ()).is_err());
    assert_eq!(log.take(), ["told of 0 failures"], "it runs on, though late");
}

/// A thread that was given up may still drain stacks that are plain values, but nothing in the tree.
#[test]
fn a_late_thread_drains_values_and_nothing_else() {
    static OTHER: OnceLock<(Interpreter, Log)> = OnceLock::new();
    let (plugin, log) = (Interpreter::new("bounded-late"), Log::default());
    let other = Interpreter::new("bounded-late-other");
    named(&other, &log, "the other's");
    let _ = OTHER.set((other.clone(), log.clone()));
    named(&plugin, &log, "A");
    let (handler, held) = held("stuck", || {
        let Some((other, log)) = OTHER.get() else { return };
        let value = SharedExitStack::new();
        value.register(log.handler("a value's"));
        assert!(value.close().is_ok());
        let local = exitstack::ExitStack::new();
        local.register(log.handler("a local's"));
        drop(local);
        assert!(other.finalize().is_ok() && other.stack().close().is_ok());
        log.push("late");
    });
    plugin.stack().register(handler.within(SHORT));
    let closed = plugin.finalize_within(&Limits::new().within(LONG));
    assert_eq!(log.take(), ["A"]);
    held.release();
    until(|| closed.is_over());
    assert_eq!(log.take(), ["a value's", "a local's", "late"]);
    other.finalize().unwrap();
    assert_eq!(log.take(), ["the other's"]);
}

/// A running handler is listed last and has no outcome yet.
#[test]
fn records_say_what_still_runs() {
    let (plugin, log) = (Interpreter::new("bounded-records"), Log::default());
    let inner = Interpreter::new("bounded-records-inner");
    named(&plugin, &log, "A");
    let (handler, held) = held("runs", || ());
    inner.stack().register(handler);
    plugin.stack().register(Handler::new(move || drop(inner.finalize())).named("finalizes"));
    let limits = Limits::new().within(Duration::from_millis(300));
    let closed = plugin.finalize_within(&limits);
    // The innermost handler is given up; everything else is left without time.
    assert_eq!(fates(&closed).first().map(String::as_str), Some("runs given up"));
    held.release();
    until(|| closed.is_over());
    assert!(log.take().is_empty());
}

/// Makes the drains that begin from now on watched ones.
fn watch_drains() {
    let _ = Interpreter::new("bounded-watch").finalize_within(&Limits::new());
}

#[test]
fn a_drain_goes_on_after_one_inside_it_was_given_up() {
    watch_drains();
    let log = Log::default();
    let runtime = Interpreter::detached("runtime");
    runtime.stack().register(log.handler("oldest"));
    let plugin = runtime.subinterpreter("plugin");
    plugin.stack().register(log.handler("inner"));
    let (slow, held) = held("slow", || ());
    plugin.stack().register(slow.within(SHORT));
    let outer = runtime.clone();
    let finalizing = thread::spawn(move || outer.finalize());
    held.until_it_runs();
    let closed = plugin.finalize_within(&Limits::new());
    assert_eq!(kinds(&closed.result()), ["slow timed out"]);
    assert_eq!(log.take(), ["inner"]);
    held.release();
    assert!(within_a_minute(move || finalizing.join().unwrap()).is_ok());
    assert_eq!(log.take(), ["oldest"]);
    assert!(runtime.stack().is_empty());
}

#[test]
fn a_transaction_whose_commit_is_given_up_says_so() {
    watch_drains();
    let log = Log::default();
    let runtime = Interpreter::detached("runtime");
    let (slow, held) = held("slow", || ());
    let (around, first) = (runtime.clone(), log.handler("committed"));
    let committing = thread::spawn(move || {
        around.enter(|| {
            Interpreter::scope("transaction", |transaction| {
                transaction.stack().on_success(first);
                transaction.stack().on_success(slow.within(SHORT));
                Ok::<(), CloseError>(())
            })
        })
    });
    held.until_it_runs();
    let closed = runtime.finalize_within(&Limits::new());
    assert_eq!(kinds(&closed.result()), ["slow timed out"]);
    assert_eq!(log.take(), ["committed"]);
    held.release();
    assert_eq!(kinds(&within_a_minute(move || committing.join().unwrap())), ["slow timed out"]);
}

/// Three interpreters. A handler of the first finalizes the second, and one of that the third.
fn three_in_a_row(log: &Log) -> [Interpreter; 3] {
    let all = ["outer", "middle", "inner"].map(Interpreter::detached);
    for (interpreter, rest) in all.iter().zip(["outer's", "middle's", "inner's"]) {
        named(interpreter, log, rest);
    }
    for pair in all.windows(2) {
        let inside = pair[1].clone();
        pair[0].stack().register(Handler::new(move || drop(inside.finalize())).named("finalizes"));
    }
    all
}

/// A drain in a drain in a drain, the innermost with two handlers that do not return: whoever goes on for the first is given
/// up in turn, and whoever goes on for that still owes it what comes first.
#[test]
fn what_is_left_behind_twice_still_comes_first() {
    watch_drains();
    let log = Log::default();
    let all = three_in_a_row(&log);
    let (second, held_second) = held("second", || ());
    all[2].stack().register(second.within(SHORT));
    let (first, held_first) = held("first", || ());
    all[2].stack().register(first.within(SHORT));
    let outer = all[0].clone();
    let finalizes = thread::spawn(move || outer.finalize());
    held_first.until_it_runs();
    let outer = all[0].clone();
    let closed = within_a_minute(move || outer.finalize_within(&Limits::new()));
    assert_eq!(log.take(), ["inner's", "middle's", "outer's"]);
    let given_up = fates(&closed).into_iter().filter(|fate| fate.ends_with("given up")).collect::<Vec<_>>();
    assert_eq!(given_up, ["first given up", "finalizes given up", "finalizes given up", "second given up"]);
    held_first.release();
    held_second.release();
    assert_eq!(kinds(&within_a_minute(move || finalizes.join().unwrap())), ["finalizes timed out"]);
    until(|| all.iter().all(|interpreter| interpreter.stack().is_empty()));
}

/// A second thread waits for one further in. What comes first does, whichever of the two gets there first.
#[test]
fn two_threads_that_go_on_keep_the_order() {
    watch_drains();
    for second in 0..3 {
        let log = Log::default();
        let all = three_in_a_row(&log);
        let (stuck, held) = held("stuck", || ());
        all[2].stack().register(stuck.within(SHORT));
        let [outer, own] = [all[0].clone(), all[0].clone()];
        let finalizes = thread::spawn(move || outer.finalize());
        held.until_it_runs();
        let also = all[second].clone();
        let (begins, begun) = channel();
        let waits = thread::spawn(move || {
            let _ = begins.send(Watched::this());
            also.finalize()
        });
        begun.recv_timeout(LONG).expect("it begins").until_it_sleeps();
        within_a_minute(move || own.finalize_within(&Limits::new()));
        assert_eq!(log.take(), ["inner's", "middle's", "outer's"], "{second}");
        // Each is told what that drain came to.
        let told = kinds(&within_a_minute(move || waits.join().unwrap()));
        assert_eq!(told, [["finalizes timed out"], ["finalizes timed out"], ["stuck timed out"]][second]);
        held.release();
        assert_eq!(kinds(&within_a_minute(move || finalizes.join().unwrap())), ["finalizes timed out"]);
    }
}

/// The drain is resumed on behalf of the one with less time, and ends there. The other one's thread never comes back.
#[test]
fn both_who_wait_for_a_drain_are_told_what_it_came_to() {
    let log = Log::default();
    let plugin = Interpreter::detached("plugin");
    named(&plugin, &log, "oldest");
    let (stuck, held) = held("stuck", || ());
    plugin.stack().register(stuck);
    plugin.stack().register(Handler::new(|| Err("full")).named("fails"));
    let [patient, own] = [plugin.clone(), plugin.clone()];
    let waits = thread::spawn(move || patient.finalize_within(&Limits::new().within(2 * LONG)));
    held.until_it_runs();
    let hurries = within_a_minute(move || own.finalize_within(&Limits::new().each(SHORT)));
    let waits = within_a_minute(move || waits.join().unwrap());
    for closed in [hurries, waits] {
        assert_eq!(kinds(&closed.result()), ["fails failed", "stuck timed out"], "{closed:?}");
    }
    assert_eq!(log.take(), ["oldest"]);
    held.release();
}

/// Of two threads that wait for a drain, one resumes it and ends it, perhaps before the other one looks again, and before the
/// thread that was given up comes back.
#[test]
fn all_who_have_to_do_with_a_drain_are_told_what_it_came_to() {
    watch_drains();
    let runtime = Interpreter::detached("runtime");
    runtime.stack().register(Handler::new(|| Err("full")).named("oldest"));
    let (stuck, held) = held("stuck", || ());
    runtime.stack().register(stuck.within(SHORT));
    runtime.stack().register(Handler::new(|| Err("full")).named("newest"));
    let [own, other] = [runtime.clone(), runtime.clone()];
    let late = thread::spawn(move || own.finalize());
    held.until_it_runs();
    let (begins, begun) = channel();
    let waits = thread::spawn(move || {
        let _ = begins.send(Watched::this());
        other.finalize()
    });
    begun.recv_timeout(LONG).expect("it begins").until_it_sleeps();
    let closed = within_a_minute(move || runtime.finalize_within(&Limits::new()));
    let expected = ["newest failed", "stuck timed out", "oldest failed"];
    assert_eq!(kinds(&closed.result()), expected);
    assert_eq!(kinds(&within_a_minute(move || waits.join().unwrap())), expected);
    held.release();
    assert_eq!(kinds(&within_a_minute(move || late.join().unwrap())), expected);
}

/// Another thread has ended its drain, and the stack is open again.
#[test]
fn a_thread_that_comes_back_late_begins_no_drain() {
    watch_drains();
    let log = Log::default();
    let outer = Interpreter::detached("outer");
    let inner = outer.subinterpreter("inner");
    let (stuck, held) = held("stuck", || ());
    inner.stack().register(stuck.within(SHORT));
    let own = outer.clone();
    let late = thread::spawn(move || own.stack().close());
    held.until_it_runs();
    let _ = within_a_minute(move || inner.finalize_within(&Limits::new()));
    outer.stack().close().unwrap();
    outer.stack().on_failure(log.handler("rolled back"));
    outer.stack().on_success(log.handler("committed"));
    held.release();
    let _ = within_a_minute(move || late.join().unwrap());
    outer.stack().close().unwrap();
    assert_eq!(log.take(), ["committed"]);
}

/// What has failed before is returned, and not reported as well.
#[test]
fn failures_after_an_early_return_are_reported() {
    file_reports();
    let plugin = Interpreter::detached("bounded-early");
    plugin.stack().register(Handler::new(|| Err("full")).named("oldest"));
    let inner = plugin.subinterpreter("inner");
    inner.stack().register(Handler::new(|| Err("full")).named("inner"));
    let (slow, held) = held("slow", || Err("late"));
    inner.stack().register(slow);
    plugin.stack().register(Handler::new(|| Err("full")).named("newest"));
    let limits = Limits::new().within(5 * SHORT).on_expiry(Expiry::Wait); // time enough for it to begin
    let own = plugin.clone();
    let closed = within_a_minute(move || own.finalize_within(&limits));
    assert_eq!(kinds(&closed.result()), ["newest failed", "slow timed out"]);
    assert!(!closed.is_over());
    held.release();
    until(|| closed.is_over());
    let names = |reports: Vec<_>| -> Vec<String> {
        reports.iter().filter_map(|error: &HandlerError| error.name().map(str::to_owned)).collect()
    };
    until(|| names(reports_of("bounded-early")).len() == 3);
    assert_eq!(names(reports_of("bounded-early")), ["slow", "inner", "oldest"]);
}

/// It returns at once in a handler that the drain has to wait for, and the drain goes on afterwards.
#[test]
fn limits_hold_after_an_early_return() {
    let log = Log::default();
    let outer = Interpreter::detached("outer");
    outer.stack().register(log.handler("oldest"));
    let (stuck, held) = held("stuck", || ());
    outer.stack().register(stuck.within(SHORT));
    let inner = outer.subinterpreter("inner");
    let (around, is_over) = (outer.clone(), Arc::new(OnceLock::new()));
    let kept = Arc::clone(&is_over);
    inner.stack().register(move || {
        let closed = around.finalize_within(&Limits::new());
        let _ = kept.set(closed.is_over());
    });
    within_a_minute(move || inner.finalize()).unwrap();
    assert_eq!(is_over.get(), Some(&false));
    until(|| log.take() == ["oldest"]);
    held.release();
}

/// A handler waits for one in a sibling, which is given up first, as its interpreter is newer.
#[test]
fn what_waits_for_a_handler_given_up_is_given_up_too() {
    watch_drains();
    let log = Log::default();
    let parent = Interpreter::detached("parent");
    named(&parent, &log, "parent's");
    let [older, newer] = ["older", "newer"].map(|name| parent.subinterpreter(name));
    named(&older, &log, "older's");
    named(&newer, &log, "newer's");
    let (stuck, held) = held("stuck", || ());
    newer.stack().register(stuck.within(SHORT));
    older.stack().register(Handler::new(move || newer.finalize()).named("waits"));
    let finalizes = thread::spawn(move || older.finalize());
    held.until_it_runs();
    let closed = within_a_minute(move || parent.finalize_within(&Limits::new()));
    assert_eq!(log.take(), ["newer's", "older's", "parent's"]);
    let expected = ["stuck given up", "newer's done", "waits given up", "older's done", "parent's done"];
    assert_eq!(fates(&closed), expected);
    held.release();
    assert_eq!(kinds(&within_a_minute(move || finalizes.join().expect("no panic"))), ["waits timed out"]);
    until(|| closed.is_over());
}

/// The thread that goes on comes to a drain further out, which drains what was given up with the one further in.
#[test]
fn what_is_reached_from_further_in_is_ended() {
    watch_drains();
    let log = Log::default();
    let grandparent = Interpreter::detached("grandparent");
    named(&grandparent, &log, "grandparent's");
    let parent = grandparent.subinterpreter("parent");
    named(&parent, &log, "parent's");
    let [older, newer] = ["older", "newer"].map(|name| parent.subinterpreter(name));
    named(&newer, &log, "newer's");
    named(&older, &log, "older's");
    let (stuck, held) = held("stuck", || ());
    older.stack().register(stuck.within(SHORT));
    let [inner, outer] = [parent.clone(), grandparent.clone()];
    grandparent.stack().register(move || inner.finalize());
    newer.stack().register(move || outer.finalize());
    let closes = thread::spawn(move || newer.stack().close());
    held.until_it_runs();
    within_a_minute(move || parent.finalize_within(&Limits::new()));
    assert_eq!(log.take(), ["newer's", "older's", "parent's", "grandparent's"]);
    within_a_minute(move || older.finalize()).unwrap();
    held.release();
    within_a_minute(move || closes.join().expect("no panic")).unwrap_err();
}

/// Gives up a handler for the sake of `other`, which waits for its stack and goes on with that, and then its thread's own
/// drain, which is further out.
#[test]
fn who_goes_on_waits_for_what_another_has_resumed() {
    let log = Log::default();
    let [outer, inner, other] = ["outer", "inner", "other"].map(Interpreter::detached);
    let (rest, (goes_on, is_early)) = (log.clone(), channel::<()>());
    inner.stack().register(move || {
        let _ = is_early.recv_timeout(SHORT);
        rest.push("inner's");
    });
    let (stuck, held) = held("stuck", || ());
    inner.stack().register(stuck);
    let rest = log.clone();
    outer.stack().register(move || {
        let _ = goes_on.send(());
        rest.push("outer's");
    });
    let [inside, also] = [inner.clone(), inner];
    outer.stack().register(move || inside.finalize());
    other.stack().register(move || also.finalize());
    let finalizes = thread::spawn(move || outer.finalize_within(&Limits::new()));
    held.until_it_runs();
    within_a_minute(move || other.finalize_within(&Limits::new().each(4 * SHORT)));
    within_a_minute(move || finalizes.join().expect("no panic"));
    assert_eq!(log.take(), ["inner's", "outer's"]);
    held.release();
}

/// A drain is in another handler when one that runs out of turn is given up, inside a drain that goes on.
#[test]
fn what_is_inside_a_handler_run_out_of_turn_comes_first() {
    let log = Log::default();
    let [plugin, inner, other] = ["plugin", "inner", "other"].map(Interpreter::detached);
    let (rest, (goes_on, is_early), (resumes, on_resume)) = (log.clone(), channel::<()>(), channel::<()>());
    inner.stack().register(move || {
        let _ = resumes.send(());
        let _ = is_early.recv_timeout(SHORT);
        rest.push("inner's");
    });
    let (stuck, held) = held("stuck", || ());
    inner.stack().register(stuck.within(SHORT));
    let rest = log.clone();
    plugin.stack().register(move || {
        let _ = goes_on.send(());
        rest.push("plugin's");
    });
    let id = plugin.stack().register(move || inner.finalize());
    plugin.stack().register(move || _ = on_resume.recv_timeout(LONG));
    let runs = plugin.clone();
    other.stack().register(move || drop(runs.stack().run_now(id)));
    let finalizes = thread::spawn(move || other.finalize_within(&Limits::new()));
    held.until_it_runs();
    let _ = within_a_minute(move || plugin.finalize());
    assert_eq!(log.take(), ["inner's", "plugin's"]);
    within_a_minute(move || finalizes.join().expect("no panic"));
    held.release();
}

/// It waits for a detached interpreter, whose thread is given up inside one that is not.
#[test]
fn a_late_thread_that_goes_on_with_a_drain_does_what_comes_first() {
    let log = Log::default();
    let [plugin, given_up, other] = ["plugin", "given up", "other"].map(Interpreter::detached);
    named(&plugin, &log, "plugin's");
    let (child, inner) = (plugin.subinterpreter("child"), Interpreter::new("inner"));
    named(&inner, &log, "inner's");
    let (stuck, held) = held("stuck", || ());
    inner.stack().register(stuck);
    named(&child, &log, "child's");
    child.stack().register(move || inner.finalize());
    let [waits, also, again] = [0; 3].map(|_| plugin.clone());
    let ((release, released), (begins, begun)) = (channel::<()>(), channel());
    let begins_too = begins.clone();
    given_up.stack().register(move || {
        let _ = released.recv();
        let _ = begins.send(Watched::this());
        waits.finalize()
    });
    within_a_minute(move || given_up.finalize_within(&Limits::new().each(SHORT)));
    let finalizes = thread::spawn(move || plugin.finalize());
    held.until_it_runs();
    other.stack().register(move || {
        let _ = begins_too.send(Watched::this());
        also.finalize()
    });
    let waits_too = thread::spawn(move || other.finalize_within(&Limits::new().each(4 * SHORT)));
    begun.recv_timeout(LONG).expect("it begins").until_it_sleeps();
    drop(release); // the last to wait is the first to be woken
    begun.recv_timeout(LONG).expect("it begins").until_it_sleeps();
    within_a_minute(move || waits_too.join().expect("no panic"));
    let _ = within_a_minute(move || again.finalize());
    assert_eq!(log.take(), ["inner's", "child's", "plugin's"]);
    held.release();
    let _ = within_a_minute(move || finalizes.join().expect("no panic"));
}

/// The thread that is given up runs that handler with `run_now`, and another one waits for it.
#[test]
fn who_waits_for_a_handler_run_out_of_turn_goes_on_without_it() {
    watch_drains();
    let log = Log::default();
    let [plugin, other] = ["plugin", "other"].map(Interpreter::detached);
    named(&other, &log, "other's");
    let (stuck, held) = held("stuck", || ());
    let id = other.stack().register(stuck.within(SHORT));
    named(&plugin, &log, "plugin's");
    let runs = other.clone();
    plugin.stack().register(move || drop(runs.stack().run_now(id)));
    let finalizes = thread::spawn(move || plugin.finalize_within(&Limits::new()));
    held.until_it_runs();
    let result = within_a_minute(move || other.finalize());
    assert_eq!(kinds(&result), ["stuck timed out"]);
    let closed = within_a_minute(move || finalizes.join().expect("no panic"));
    let mut ran = log.take();
    ran.sort_unstable();
    assert_eq!(ran, ["other's", "plugin's"]);
    held.release();
    until(|| closed.is_over());
}

/// The thread that goes on takes the drain around as well. A thread that waits for that is waited for in turn.
#[test]
fn who_waits_for_a_drain_that_changes_its_thread_notices() {
    watch_drains();
    let log = Log::default();
    let [around, inner] = ["around", "inner"].map(Interpreter::detached);
    named(&inner, &log, "inner's");
    let child = inner.subinterpreter("child");
    named(&child, &log, "child's");
    let (stuck, held) = held("stuck", || ());
    inner.stack().register(stuck.within(SHORT));
    named(&around, &log, "around's");
    around.stack().register(move || inner.finalize());
    let waits = around.clone();
    let (begins, begun) = channel();
    child.stack().register(move || {
        begins.send(()).unwrap();
        waits.finalize()
    });
    let finalizes = thread::spawn(move || around.finalize_within(&Limits::new()));
    held.until_it_runs();
    let waiting = thread::spawn(move || child.finalize());
    begun.recv_timeout(LONG).unwrap();
    let closed = within_a_minute(move || finalizes.join().expect("no panic"));
    within_a_minute(move || waiting.join().expect("no panic")).unwrap();
    assert_eq!(log.take(), ["child's", "inner's", "around's"]);
    held.release();
    until(|| closed.is_over());
}

/// The thread that goes on passes a drain in one further in, and then comes to it.
#[test]
fn a_drain_that_was_passed_further_in_is_ended() {
    watch_drains();
    let log = Log::default();
    let outer = Interpreter::detached("outer");
    let (stuck, held) = held("stuck", || ());
    outer.stack().register(stuck.within(SHORT));
    let middle = outer.subinterpreter("middle");
    named(&middle, &log, "middle's");
    let inner = middle.subinterpreter("inner");
    let (around, bounded) = (outer.clone(), middle.clone()); // not the last handles, whose drops would drain once more
    inner.stack().register(move || around.finalize());
    named(&inner, &log, "inner's");
    let closed = within_a_minute(move || bounded.finalize_within(&Limits::new()));
    held.release();
    until(|| closed.is_over());
    within_a_minute(move || inner.finalize()).unwrap();
    assert_eq!(log.take(), ["inner's", "middle's"]);
}

/// That drain goes on.
/// Three drains on one thread, each further out in the tree than the one before, which they all pass through.
#[test]
fn a_drain_that_two_further_in_have_passed_is_ended() {
    let outermost = Interpreter::detached("outermost");
    let outer = outermost.subinterpreter("outer");
    let between = outer.subinterpreter("between");
    let inner = between.subinterpreter("inner");
    let innermost = inner.subinterpreter("innermost");
    let (stuck, held) = held("stuck", || ());
    let (ends, first, second) = (outermost.clone(), innermost.clone(), innermost.clone());
    inner.stack().register(move || {
        first.stack().register(move || {
            second.stack().register(stuck.within(SHORT));
            drop(ends.finalize());
        });
        drop(outer.finalize());
    });
    let closed = within_a_minute(move || inner.finalize_within(&Limits::new()));
    assert_eq!(fates(&closed), ["stuck given up", "? given up", "? given up"]);
    held.release();
    until(|| closed.is_over());
    within_a_minute(move || outermost.finalize()).unwrap();
    assert!(innermost.stack().try_register(|| ()).is_err());
}

#[test]
fn in_a_handler_of_finalize_it_is_not_over() {
    let plugin = Interpreter::detached("plugin");
    let (inside, is_over) = (plugin.clone(), Arc::new(OnceLock::new()));
    let kept = Arc::clone(&is_over);
    plugin.stack().register(move || _ = kept.set(inside.finalize_within(&Limits::new()).is_over()));
    within_a_minute(move || plugin.finalize()).unwrap();
    assert_eq!(is_over.get(), Some(&false));
}

/// As with `finalize()`, the drain that the handler is in is the last one.
#[test]
fn in_a_handler_of_close_it_is_permanent() {
    let plugin = Interpreter::detached("plugin");
    let inside = plugin.clone();
    plugin.stack().register(move || _ = inside.finalize_within(&Limits::new()));
    plugin.stack().close().unwrap();
    assert!(plugin.stack().try_register(|| ()).is_err());
}

#[test]
fn debug_shows_what_became_of_each_handler() {
    let plugin = Interpreter::new("plugin");
    plugin.stack().register(Handler::new(|| Err("disk full")).named("save"));
    plugin.stack().register(Handler::new(|| ()).named("flush"));
    let shown = format!("{:?}", plugin.finalize_within(&Limits::new()));
    assert!(shown.starts_with("Closed { records: [") && shown.contains("], result: "), "{shown}");
    for text in ["flush", "Done", "save", "Failed", "disk full", "plugin"] {
        assert!(shown.contains(text), "no {text} in {shown}");
    }
}
