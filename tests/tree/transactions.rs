//! Transactions whose parent drains, on the same thread or another: each takes effect completely or not at all, and its
//! result says which.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::thread;

use exitstack::{CloseError, HandlerErrorKind, Interpreter, Outcome, SharedExitStack};

use crate::threads::rounds;
use crate::watched::Watched;
use crate::{Log, file_reports, message, messages, reports_of, within_a_minute};

type Ended = Result<(), CloseError>;

/// Registers handlers that log a step as committed or undone.
fn step(stack: &SharedExitStack, log: &Log, name: &str) {
    stack.on_success(log.handler(format!("commit {name}")));
    stack.on_failure(log.handler(format!("undo {name}")));
}

fn is_rolled_back(result: &Ended) -> bool {
    let kinds = |error: &CloseError| error.iter().any(|error| matches!(error.kind(), HandlerErrorKind::RolledBack));
    result.as_ref().is_err_and(kinds)
}

/// Runs a transaction of two steps in `parent`; `body` runs inside it.
fn in_parent(parent: &Interpreter, log: &Log, body: impl FnOnce(&Interpreter)) -> Ended {
    parent.enter(|| {
        Interpreter::scope("tx", |tx| {
            step(tx.stack(), log, "1");
            step(tx.stack(), log, "2");
            body(tx);
            Ok(())
        })
    })
}

#[test]
fn a_body_that_is_ok_commits_and_leaves_nothing() {
    let (parent, log) = (Interpreter::new("commits"), Log::default());
    in_parent(&parent, &log, |tx| {
        assert_eq!((Interpreter::current().as_ref(), tx.name()), (Some(tx), "tx"));
    })
    .unwrap();
    assert_eq!(log.take(), ["commit 2", "commit 1"]);
    parent.finalize().unwrap();
    assert!(log.take().is_empty());
}

#[test]
fn the_interpreter_before_is_current_afterwards() {
    let (parent, log) = (Interpreter::new("restored"), Log::default());
    parent.enter(|| {
        let failed: Result<(), Box<dyn std::error::Error>> = Interpreter::scope("tx", |_| Err("no".into()));
        assert_eq!((Interpreter::current().as_ref(), failed.is_err()), (Some(&parent), true));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            Interpreter::scope("tx", |tx| -> Ended {
                step(tx.stack(), &log, "1");
                resume_unwind(Box::new("the body's"))
            })
        }));
        assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"the body's"));
        assert_eq!(Interpreter::current().as_ref(), Some(&parent));
    });
    assert!(Interpreter::current().is_none());
    assert_eq!(log.take(), ["undo 1"]);
}

#[test]
fn handles_that_are_kept_do_not_put_the_end_off() {
    let (log, mut kept) = (Log::default(), Vec::new());
    for ends_well in [true, false] {
        let ended: Result<(), Box<dyn std::error::Error>> = Interpreter::scope("kept", |tx| {
            step(tx.stack(), &log, "1");
            kept.push(tx.clone());
            if ends_well { Ok(()) } else { Err("no".into()) }
        });
        assert_eq!(ended.is_ok(), ends_well);
    }
    assert_eq!(log.take(), ["commit 1", "undo 1"]);
    assert!(kept.iter().all(|tx| tx.stack().try_register(|| ()).is_err()));
}

#[test]
fn failures_of_a_commit_are_returned() {
    file_reports();
    let parent = Interpreter::new("commit fails");
    let ended = in_parent(&parent, &Log::default(), |tx| {
        tx.stack().on_success(|| Err("later"));
        tx.stack().register(|| Err("first"));
        tx.subinterpreter("nested").stack().register(|| ()); // gone by the end
        tx.stack().on_failure(|| Err("never"));
    });
    assert_eq!(messages(&ended), ["first", "later"]);
    assert!(!is_rolled_back(&ended));
    assert!(ended.unwrap_err().iter().all(|error| error.path() == Some("process > commit fails > tx")));
    assert!(reports_of("commit fails").is_empty());
}

#[test]
fn failures_of_a_rollback_are_reported() {
    file_reports();
    let parent = Interpreter::new("rollback fails");
    let ended: Result<(), Box<dyn std::error::Error>> = parent.enter(|| {
        Interpreter::scope("tx", |tx| {
            tx.stack().on_failure(|| Err("undone"));
            tx.stack().on_success(|| Err("never"));
            Err("the body's".into())
        })
    });
    assert_eq!(ended.unwrap_err().to_string(), "the body's");
    assert_eq!(reports_of("rollback fails").iter().map(message).collect::<Vec<_>>(), ["undone"]);
}

/// Drains the transaction's parent inside the transaction's body, and checks that the result says so.
fn drained_in_its_body(name: &'static str, drain: impl FnOnce(&Interpreter, &SharedExitStack)) {
    file_reports();
    let (outer, log) = (Interpreter::new(name), Log::default());
    let parent = outer.subinterpreter("parent");
    let line = line!() + 3;
    let ended: Ended = parent.enter(|| {
        // The reported location is the caller's.
        Interpreter::scope("tx", |tx| {
            step(tx.stack(), &log, "1");
            tx.stack().on_failure(|| Err("undone"));
            drain(&outer, parent.stack());
            assert_eq!(log.take(), ["undo 1"]);
            Ok(())
        })
    });
    let error = ended.unwrap_err();
    let last = error.last().unwrap();
    assert!(matches!(last.kind(), HandlerErrorKind::RolledBack));
    assert_eq!(last.path(), Some(&*format!("process > {name} > parent > tx")));
    assert_eq!((last.name(), last.location().line()), (Some("tx"), line));
    assert!(log.take().is_empty());
}

#[test]
fn a_parent_finalized_in_a_body_rolls_it_back() {
    drained_in_its_body("finalized in a body", |outer, _| drop(outer.finalize().unwrap_err()));
}

#[test]
fn a_parent_closed_in_a_body_rolls_it_back() {
    drained_in_its_body("closed in a body", |_, parent| drop(parent.close().unwrap_err()));
}

#[test]
fn a_parent_closed_for_success_rolls_it_back() {
    drained_in_its_body("closed well in a body", |_, parent| {
        drop(parent.close_with(Outcome::Success).unwrap_err());
    });
}

#[test]
fn finalized_by_its_own_body_it_is_committed() {
    let (parent, log) = (Interpreter::new("by itself"), Log::default());
    let ended = in_parent(&parent, &log, |tx| {
        tx.finalize().unwrap();
        parent.finalize().unwrap();
        assert_eq!(log.take(), ["commit 2", "commit 1"]);
    });
    ended.unwrap();
    assert!(log.take().is_empty());
}

/// A rolled-back transaction remains rolled back even if one of its handlers is still running, which keeps it from
/// settling.
#[test]
fn a_busy_one_that_was_rolled_back_stays_so() {
    let (parent, log) = (Interpreter::new("busy"), Log::default());
    let ended = in_parent(&parent, &log, |tx| {
        let (own, around) = (tx.clone(), parent.clone());
        let id = tx.stack().register(move || {
            around.finalize().unwrap(); // drains the transaction that this handler belongs to
            own.finalize().unwrap();
        });
        tx.stack().run_now(id).unwrap().unwrap();
    });
    assert!(is_rolled_back(&ended), "{ended:?}");
    assert_eq!(log.take(), ["undo 2", "undo 1"]);
}

#[test]
fn a_handler_of_a_commit_cannot_turn_it_back() {
    let (parent, log) = (Interpreter::new("turned back"), Log::default());
    let ended = in_parent(&parent, &log, |tx| {
        let (own, around) = (tx.clone(), parent.clone());
        tx.stack().on_success(move || {
            own.stack().close_with(Outcome::Failure).unwrap();
            around.finalize().unwrap();
        });
    });
    ended.unwrap();
    assert_eq!(log.take(), ["commit 2", "commit 1"]);
}

/// A thread that drains the parent waits for the running commit and receives its failures.
#[test]
fn a_parent_waits_for_a_commit_that_runs() {
    within_a_minute(|| {
        let (parent, log) = (Interpreter::new("waits"), Log::default());
        let commits = Arc::new(Barrier::new(2));
        let (this, closer) = channel::<Watched>();
        let finalizes = thread::spawn({
            let (parent, commits) = (parent.clone(), Arc::clone(&commits));
            move || {
                commits.wait();
                this.send(Watched::this()).unwrap();
                parent.finalize()
            }
        });
        let ended = in_parent(&parent, &log, |tx| {
            tx.stack().on_success(move || {
                commits.wait();
                closer.recv().unwrap().until_it_sleeps();
                Err::<(), _>("committed")
            });
        });
        assert_eq!(messages(&ended), ["committed"]);
        assert_eq!(messages(&finalizes.join().unwrap()), ["committed"]);
        assert_eq!(log.take(), ["commit 2", "commit 1"]);
    });
}

/// A body that finishes while another thread rolls it back waits for the rollback and receives its failures.
#[test]
fn a_body_waits_for_a_rollback_that_runs() {
    within_a_minute(|| {
        let (parent, log) = (Interpreter::new("is waited for"), Log::default());
        let (this, body) = channel::<Watched>();
        let (rolls_back, has_begun) = channel();
        let (finalizes, ended) = thread::scope(|scope| {
            let (around, log) = (&parent, &log);
            let mut finalizes = None;
            let ended = in_parent(&parent, log, |tx| {
                tx.stack().on_failure(move || {
                    rolls_back.send(()).unwrap();
                    body.recv().unwrap().until_it_sleeps();
                    Err::<(), _>("undone")
                });
                finalizes = Some(scope.spawn(move || around.finalize()));
                has_begun.recv().unwrap();
                this.send(Watched::this()).unwrap();
            });
            (finalizes.unwrap().join().unwrap(), ended)
        });
        assert_eq!(messages(&finalizes), ["undone"]);
        assert_eq!((&*messages(&ended)[0], messages(&ended).len()), ("undone", 2));
        assert!(is_rolled_back(&ended));
        assert_eq!(log.take(), ["undo 2", "undo 1"]);
    });
}

/// What delays a thread that commits, so that the one that rolls back may win.
type Delay<'a> = &'a (dyn Fn() + Sync);

/// Lets a body finish while another thread runs `drain` on its surroundings, a few thousand times. Either all steps are
/// committed and the result is `Ok`, or all are undone and the result says so.
fn raced(
    name: &'static str,
    drain: impl Fn(&Interpreter, &Interpreter, &Interpreter, Delay<'_>) + Send + Sync + 'static,
) {
    const STEPS: usize = 4;
    within_a_minute(move || {
        let (mut lead, mut stride) = (0_i64, 1000_i64);
        let (mut before, mut ends) = (None, [0, 0]);
        let turn = |times: i64| (0..times).for_each(|_| std::hint::spin_loop());
        for _ in rounds() {
            let log = Log::default();
            let outer = Interpreter::new(name);
            let parent = outer.subinterpreter("parent");
            let (start, (begun, has_begun)) = (Barrier::new(2), channel::<Interpreter>());
            let ended: Ended = thread::scope(|scope| {
                let (start, outer, around, drain) = (&start, &outer, &parent, &drain);
                scope.spawn(move || {
                    let tx = has_begun.recv().unwrap();
                    start.wait();
                    turn(lead);
                    drain(outer, around, &tx, &|| turn(-lead));
                });
                parent.enter(|| {
                    Interpreter::scope("tx", |tx| {
                        (0..STEPS).for_each(|place| step(tx.stack(), &log, &place.to_string()));
                        begun.send(tx.clone()).unwrap();
                        start.wait();
                        turn(-lead);
                        Ok(())
                    })
                })
            });
            let word = if ended.is_ok() { "commit" } else { "undo" };
            assert_eq!(log.take(), (0..STEPS).rev().map(|place| format!("{word} {place}")).collect::<Vec<_>>());
            assert!(ended.is_ok() || is_rolled_back(&ended), "{ended:?}");
            ends[usize::from(ended.is_ok())] += 1;
            // Slow down whichever thread won: more while it keeps winning, less once it loses.
            stride = if before == Some(ended.is_ok()) { stride * 2 } else { (stride / 2).max(20) };
            lead += if ended.is_ok() { -stride } else { stride };
            before = Some(ended.is_ok());
        }
        assert!(ends[0] > 0 && ends[1] > 0, "{ends:?}: no race");
    });
}

#[test]
fn a_commit_raced_by_its_parents_end_is_whole() {
    raced("raced by finalize", |_, parent, _, _| parent.finalize().unwrap());
}

#[test]
fn a_commit_raced_by_its_parents_close_is_whole() {
    raced("raced by close", |_, parent, _, _| parent.stack().close().unwrap());
}

#[test]
fn a_commit_raced_from_further_out_is_whole() {
    raced("raced from outside", |outer, _, _, _| outer.finalize().unwrap());
}

/// Whichever thread commits it, it cannot be ended both by itself and by its parent.
#[test]
fn a_commit_by_two_raced_by_a_parent_is_whole() {
    raced("raced by two", |_, parent, tx, delay| {
        let start = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                delay();
                tx.finalize().unwrap();
            });
            start.wait();
            parent.finalize().unwrap();
        });
    });
}

#[test]
fn failures_of_a_raced_commit_are_not_lost() {
    within_a_minute(|| {
        for _ in rounds() {
            let parent = Interpreter::new("raced to fail");
            let start = Barrier::new(2);
            let (of_tx, of_parent) = thread::scope(|scope| {
                let finalizes = scope.spawn(|| {
                    start.wait();
                    parent.finalize()
                });
                let ended = in_parent(&parent, &Log::default(), |tx| {
                    tx.stack().on_success(|| Err("committed"));
                    tx.stack().on_failure(|| Err("undone"));
                    start.wait();
                });
                (ended, finalizes.join().unwrap())
            });
            let word = if is_rolled_back(&of_tx) { "undone" } else { "committed" };
            let told = |result| messages(result).iter().filter(|message| *message == word).count();
            let (by_tx, by_parent) = (told(&of_tx), told(&of_parent));
            assert!(by_tx <= 1 && by_parent <= 1 && by_tx + by_parent > 0, "{of_tx:?}, {of_parent:?}");
            assert!(by_tx == 1 || word == "undone", "a commit's failures are its own: {of_tx:?}");
            assert!(by_parent == 1 || word == "committed", "a rollback's failures are the parent's: {of_parent:?}");
        }
    });
}
