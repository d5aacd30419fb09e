//! Handlers registered during an interpreter's last drain.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use exitstack::{Interpreter, SharedExitStack};

use crate::{Log, file_reports, reports_of, within_a_minute};

const LATE: usize = 65_536;

/// The limit is 65,536; the registration after that is refused.
#[test]
fn late_registrations_run_up_to_the_limit() {
    file_reports();
    let ran = Arc::new(AtomicUsize::new(0));
    let interpreter = Interpreter::new("counts the late");
    let (own, counter) = (interpreter.clone(), Arc::clone(&ran));
    interpreter.stack().register(move || {
        for n in 0..=LATE {
            let ran = Arc::clone(&counter);
            let late = move || {
                ran.fetch_add(1, Ordering::Relaxed);
            };
            assert_eq!(own.stack().try_register(late).is_ok(), n < LATE);
        }
    });
    interpreter.finalize().unwrap();
    assert_eq!(ran.load(Ordering::Relaxed), LATE);
}

/// It would otherwise go on forever. Once the limit is reached, all older handlers run.
#[test]
fn a_handler_that_registers_itself_starves_none() {
    fn again(ran: Arc<AtomicUsize>) {
        ran.fetch_add(1, Ordering::Relaxed);
        exitstack::register(move || again(ran));
    }
    file_reports();
    within_a_minute(|| {
        let (ran, log) = (Arc::new(AtomicUsize::new(0)), Log::default());
        let outer = Interpreter::new("goes on outer");
        outer.stack().register(log.handler("outer, older"));
        let interpreter = outer.subinterpreter("goes on");
        for n in 0..100 {
            interpreter.stack().register(log.handler(n.to_string()));
        }
        let counter = Arc::clone(&ran);
        interpreter.stack().register(move || again(counter));
        outer.finalize().unwrap();
        assert_eq!(ran.load(Ordering::Relaxed), LATE + 1);
        let older = (0..100).rev().map(|n| n.to_string()).chain(["outer, older".to_owned()]);
        assert_eq!(log.take(), older.collect::<Vec<_>>());
        assert_eq!(reports_of("goes on").len(), 1, "the refusal");
    });
}

/// A handler creates an interpreter whose handler creates another, and so on.
#[test]
fn interpreters_made_late_are_bounded_too() {
    within_a_minute(|| {
        fn again(made: &Arc<AtomicUsize>) {
            made.fetch_add(1, Ordering::Relaxed);
            let outer = Interpreter::current().unwrap();
            let inner = outer.subinterpreter("inner");
            let next = Arc::clone(made);
            // Registered on the outer stack, so that the drain never gets any deeper.
            let _ = outer.stack().try_register(move || {
                again(&next);
                drop(inner);
            });
        }
        let made = Arc::new(AtomicUsize::new(0));
        let interpreter = Interpreter::new("makes more");
        let counter = Arc::clone(&made);
        interpreter.stack().register(move || again(&counter));
        interpreter.finalize().unwrap();
        assert!(made.load(Ordering::Relaxed) <= LATE / 2 + 2);
    });
}

/// Handlers create interpreters at positions that the drain only reaches later.
#[test]
fn interpreters_made_elsewhere_are_bounded_too() {
    static MADE: Mutex<Vec<Interpreter>> = Mutex::new(Vec::new()); // a handler that dropped a last handle would recurse
    fn again(under: &Interpreter) {
        let [older, newer] = ["older", "newer"].map(|name| under.subinterpreter(name));
        let mut made = MADE.lock().unwrap();
        made.extend([older.clone(), newer.clone()]);
        if made.len() < 2 * LATE {
            let _ = newer.stack().try_register(move || again(&older));
        }
    }
    within_a_minute(|| {
        let root = Interpreter::new("root");
        let [older, newer] = ["older", "newer"].map(|name| root.subinterpreter(name));
        MADE.lock().unwrap().push(older.clone());
        newer.stack().register(move || again(&older));
        root.finalize().unwrap();
        assert!(MADE.lock().unwrap().len() < 2 * LATE);
    });
}

/// An interpreter created during a drain, but outside the tree being drained, has no limit once that drain is over.
#[test]
fn made_elsewhere_it_is_ordinary_after_the_drain() {
    let parent = Interpreter::new("parent");
    let made = Arc::new(Mutex::new(None));
    let drained = Interpreter::new("drained");
    let (under, place) = (parent.clone(), Arc::clone(&made));
    drained.stack().register(move || *place.lock().unwrap() = Some(under.subinterpreter("made")));
    drained.finalize().unwrap();
    let made = made.lock().unwrap().take().unwrap();
    assert!((0..2 * LATE).all(|_| made.stack().try_register(|| ()).is_ok()));
    made.stack().clear();
    let ran = Arc::new(AtomicUsize::new(0));
    let (own, counter) = (made.clone(), Arc::clone(&ran));
    made.stack().register(move || {
        let taken = (0..=LATE).filter(|_| own.stack().try_register(|| ()).is_ok()).count();
        counter.store(taken, Ordering::Relaxed);
    });
    parent.finalize().unwrap();
    assert_eq!(ran.load(Ordering::Relaxed), LATE);
}

/// An interpreter created during a drain, inside the tree being drained.
#[test]
fn made_late_it_stays_bounded_when_it_is_closed() {
    let taken = Arc::new(AtomicUsize::new(0));
    let interpreter = Interpreter::new("makes one");
    let (own, counter) = (interpreter.clone(), Arc::clone(&taken));
    interpreter.stack().register(move || {
        let made = own.subinterpreter("made");
        made.stack().close().unwrap();
        let taken = (0..2 * LATE).filter(|_| made.stack().try_register(|| ()).is_ok()).count();
        counter.store(taken, Ordering::Relaxed);
    });
    interpreter.finalize().unwrap();
    assert!(taken.load(Ordering::Relaxed) <= LATE);
}

/// Another thread finalizes it, and continues after the drain in which it was created.
#[test]
fn made_elsewhere_it_stays_finalized_and_bounded() {
    within_a_minute(|| {
        let parent = Interpreter::new("parent");
        let (give, made) = channel::<Interpreter>();
        let (runs, wait_runs) = channel();
        let (over, wait_over) = channel();
        let finalizes = thread::spawn(move || {
            let made = made.recv().unwrap();
            let (own, taken) = (made.clone(), Arc::new(AtomicUsize::new(0)));
            let counter = Arc::clone(&taken);
            made.stack().register(move || {
                runs.send(()).unwrap();
                wait_over.recv().unwrap();
                let taken = (0..2 * LATE).filter(|_| own.stack().try_register(|| ()).is_ok()).count();
                counter.store(taken, Ordering::Relaxed);
            });
            made.finalize().unwrap();
            assert!(made.stack().try_register(|| ()).is_err());
            assert_eq!(taken.load(Ordering::Relaxed), LATE);
        });
        let drained = Interpreter::new("drained");
        let under = parent.clone();
        drained.stack().register(move || {
            give.send(under.subinterpreter("made")).unwrap();
            wait_runs.recv().unwrap();
        });
        drained.finalize().unwrap();
        over.send(()).unwrap();
        finalizes.join().unwrap();
    });
}

#[test]
fn an_ordinary_close_counts_nothing() {
    let ran = Arc::new(AtomicUsize::new(0));
    let interpreter = Interpreter::new("closes");
    let (own, counter) = (interpreter.clone(), Arc::clone(&ran));
    interpreter.stack().register(move || {
        for _ in 0..=LATE {
            let ran = Arc::clone(&counter);
            own.stack().register(move || {
                ran.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    interpreter.stack().close().unwrap();
    assert_eq!(ran.load(Ordering::Relaxed), LATE + 1);
}

/// Its handlers register on other stacks, where its own limit does not count them.
#[test]
fn a_dropped_value_counts_nothing() {
    let elsewhere = Interpreter::new("elsewhere");
    let value = SharedExitStack::new();
    let under = elsewhere.clone();
    value.register(move || assert!((0..=LATE).all(|_| under.stack().try_register(|| ()).is_ok())));
    drop(value);
    assert_eq!(elsewhere.stack().len(), LATE + 1);
    elsewhere.stack().clear();
}

/// A drain within a drain neither restarts nor ends the count.
#[test]
fn a_threads_late_ones_count_across_inner_drains() {
    let elsewhere = Interpreter::new("elsewhere");
    let drained = Interpreter::new("drained");
    let under = elsewhere.clone();
    drained.stack().register(move || {
        let in_a_drain_of_its_own = |times: usize| {
            let inner = Interpreter::new("inner");
            let (under, (tell, taken)) = (under.clone(), channel());
            inner.stack().register(move || {
                tell.send((0..times).filter(|_| under.stack().try_register(|| ()).is_ok()).count()).unwrap();
            });
            inner.finalize().unwrap();
            taken.recv().unwrap()
        };
        // The other two are the interpreter inside and its handler.
        assert_eq!(in_a_drain_of_its_own(LATE), LATE - 2);
        assert!(under.stack().try_register(|| ()).is_err());
        assert!(Interpreter::new("refuses").stack().try_register(|| ()).is_err());
    });
    drained.finalize().unwrap();
    assert_eq!(elsewhere.stack().len(), LATE - 2);
    elsewhere.stack().clear();
}

/// A stack that is a value is drained by the handler that has it. What its handlers register in the tree counts.
#[test]
fn a_threads_late_ones_do_not_count_in_values() {
    within_a_minute(|| {
        let drained = Interpreter::new("uses values");
        let own = drained.clone();
        let (tell, taken) = channel();
        drained.stack().register(move || {
            let in_a_value = || {
                let (value, own, tell) = (SharedExitStack::new(), own.clone(), tell.clone());
                assert!(
                    value.try_register(move || tell.send(own.stack().try_register(|| ()).is_ok()).unwrap()).is_ok()
                );
                value.close().unwrap();
            };
            (0..=LATE).for_each(|_| in_a_value());
        });
        drained.finalize().unwrap();
        assert_eq!(taken.try_iter().filter(|is_taken| *is_taken).count(), LATE);
    });
}

#[test]
fn a_stacks_late_ones_count_on_any_thread() {
    within_a_minute(|| {
        let interpreter = Interpreter::new("counts for all");
        let own = interpreter.clone();
        let (tell, taken) = channel();
        interpreter.stack().register(move || {
            let register = || (0..LATE).filter(|_| own.stack().try_register(|| ()).is_ok()).count();
            let both = thread::scope(|scope| {
                let others = [scope.spawn(register), scope.spawn(register)];
                others.map(|other| other.join().unwrap())
            });
            tell.send(both[0] + both[1]).unwrap();
        });
        interpreter.finalize().unwrap();
        assert_eq!(taken.recv(), Ok(LATE));
    });
}
