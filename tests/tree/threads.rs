//! Several threads finalize at the same time. Every race is repeated, within a limit on count and time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use exitstack::{CloseError, Exit, HandlerId, Interpreter, SharedExitStack};

use crate::rude::Rude;
use crate::watched::Watched;
use crate::{Log, messages, within_a_minute};

const ROUNDS: usize = 3000;
const AT_MOST: Duration = Duration::from_secs(3);

type BoxedResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

pub(crate) fn rounds() -> impl Iterator<Item = usize> {
    let end = Instant::now() + AT_MOST;
    (0..ROUNDS).take_while(move |_| Instant::now() < end)
}

/// Runs all bodies at once, each on its own thread, and returns their results.
fn at_once<T: Send, const N: usize>(bodies: [&(dyn Fn() -> T + Sync); N]) -> [T; N] {
    let barrier = Barrier::new(N);
    thread::scope(|scope| {
        bodies
            .map(|body| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    body()
                })
            })
            .map(|thread| thread.join().expect("it does not panic"))
    })
}

#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl Count {
    fn handler(&self) -> impl FnOnce() + Send + 'static {
        let count = self.clone();
        move || {
            count.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// One thread finalizes the parent, another the child. Each call returns when everything it must wait for is done.
#[test]
fn two_finalizers_run_each_handler_once() {
    within_a_minute(|| {
        for round in rounds() {
            let (in_child, in_parent) = (Count::default(), Count::default());
            let parent = Interpreter::new("parent");
            parent.stack().register(in_parent.handler());
            let child = parent.subinterpreter("child");
            parent.stack().register(in_parent.handler());
            for _ in 0..round % 4 {
                child.stack().register(in_child.handler());
            }
            at_once([
                &|| {
                    parent.finalize().unwrap();
                    assert_eq!((in_parent.get(), in_child.get()), (2, round % 4));
                },
                &|| {
                    child.finalize().unwrap();
                    assert_eq!(in_child.get(), round % 4);
                },
            ]);
            assert_eq!((in_parent.get(), in_child.get()), (2, round % 4));
            assert!(parent.stack().try_register(|| ()).is_err() && child.stack().try_register(|| ()).is_err());
        }
    });
}

/// Two threads finalize a parent and its child, and no failure is lost.
#[test]
fn a_childs_failures_are_returned_to_a_closer() {
    within_a_minute(|| {
        for _ in rounds() {
            let parent = Interpreter::new("parent");
            let child = parent.subinterpreter("child");
            child.stack().register(|| Err("a"));
            child.stack().register(|| Err("b"));
            let [of_parent, of_child] = at_once([&|| parent.finalize(), &|| child.finalize()]);
            let both = ["b", "a"].map(str::to_owned).to_vec();
            for result in [&of_parent, &of_child] {
                assert!(result.is_ok() || messages(result) == both);
            }
            assert!(of_parent.is_err() || of_child.is_err());
        }
    });
}

/// A handler of the parent finalizes the child and vice versa, while both drain.
#[test]
fn handlers_that_finalize_each_other_do_not_hang() {
    within_a_minute(|| {
        for _ in rounds() {
            let count = Count::default();
            let parent = Interpreter::new("parent");
            parent.stack().register(count.handler());
            let child = parent.subinterpreter("child");
            child.stack().register(count.handler());
            let (inner, outer) = (child.clone(), parent.clone());
            parent.stack().register(move || inner.finalize());
            child.stack().register(move || outer.finalize());
            child.stack().register(count.handler());
            at_once([&|| parent.finalize().unwrap(), &|| child.finalize().unwrap()]);
            assert_eq!(count.get(), 3);
        }
    });
}

/// Three threads each finalize one generation.
#[test]
fn three_generations_finalized_at_once_end() {
    within_a_minute(|| {
        for _ in rounds() {
            let counts = [(); 3].map(|()| Count::default());
            let root = Interpreter::new("root");
            let child = root.subinterpreter("child");
            let grandchild = child.subinterpreter("grandchild");
            for (interpreter, count) in [&root, &child, &grandchild].into_iter().zip(&counts) {
                interpreter.stack().register(count.handler());
                interpreter.stack().register(count.handler());
            }
            at_once([
                &|| {
                    root.finalize().unwrap();
                    assert_eq!(counts.each_ref().map(Count::get), [2, 2, 2]);
                },
                &|| {
                    child.finalize().unwrap();
                    assert_eq!((counts[1].get(), counts[2].get()), (2, 2));
                },
                &|| {
                    grandchild.finalize().unwrap();
                    assert_eq!(counts[2].get(), 2);
                },
            ]);
            assert_eq!(counts.each_ref().map(Count::get), [2, 2, 2]);
        }
    });
}

/// Two threads register while a third finalizes.
#[test]
fn a_racing_registration_is_run_or_handed_back() {
    within_a_minute(|| {
        for _ in rounds() {
            let (ran, back) = (Count::default(), Count::default());
            let interpreter = Interpreter::new("raced");
            let register = || {
                for _ in 0..8 {
                    if interpreter.stack().try_register(ran.handler()).is_err() {
                        back.handler()();
                    }
                }
            };
            at_once([&register, &register, &|| interpreter.finalize().unwrap()]);
            assert_eq!(ran.get() + back.get(), 16);
        }
    });
}

/// One thread creates the child while another finalizes its parent.
#[test]
fn a_racing_child_is_finalized_too_or_refuses() {
    within_a_minute(|| {
        for _ in rounds() {
            let (ran, back) = (Count::default(), Count::default());
            let parent = Interpreter::new("parent");
            let make = || {
                let child = parent.subinterpreter("child");
                if child.stack().try_register(ran.handler()).is_err() {
                    back.handler()();
                }
                child
            };
            let finalize = || {
                parent.finalize().unwrap();
                parent.clone()
            };
            let handles = at_once([&make, &finalize]);
            assert_eq!(ran.get() + back.get(), 1);
            drop(handles);
        }
    });
}

/// Two threads drop a handle each, while a third finalizes the parent.
#[test]
fn last_handles_dropped_at_once_finalize_once() {
    within_a_minute(|| {
        for _ in rounds() {
            let count = Count::default();
            let parent = Interpreter::new("parent");
            let child = parent.subinterpreter("child");
            child.stack().register(count.handler());
            let handles = [Some(child.clone()), Some(child), None].map(std::sync::Mutex::new);
            let drop_one = |n: usize| drop(handles[n].lock().unwrap().take());
            at_once([&|| drop_one(0), &|| drop_one(1), &|| parent.finalize().unwrap()]);
            assert_eq!(count.get(), 1);
        }
    });
}

/// A handler of the child, on another thread, finalizes the parent while the parent's drain reaches the child. The
/// handler's call returns, and the parent's older handlers wait for all of the child's. The parent's drain first calls
/// `meet` with the handler's thread.
fn finalized_by_a_childs_handler(meet: fn(&Watched)) {
    let log = Log::default();
    let parent = Interpreter::new("parent");
    parent.stack().register(log.handler("parent, old"));
    let child = parent.subinterpreter("child");
    child.stack().register(log.handler("child, old"));
    let (runs, wait_runs) = channel();
    let (drains, wait_drains) = channel();
    let (outer, inner_log) = (parent.clone(), log.clone());
    child.stack().register(move || {
        runs.send(Watched::this()).unwrap();
        wait_drains.recv().unwrap();
        outer.finalize().unwrap();
        inner_log.push("child, new");
    });
    let thread = thread::spawn(move || child.finalize().unwrap());
    let closer = wait_runs.recv().unwrap();
    parent.stack().register(move || {
        drains.send(()).unwrap();
        meet(&closer);
    });
    parent.finalize().unwrap();
    assert_eq!(log.take(), ["child, new", "child, old", "parent, old"]);
    thread.join().unwrap();
}

#[test]
fn a_parent_waits_for_a_child_that_finalizes_it() {
    within_a_minute(|| finalized_by_a_childs_handler(|_| ()));
}

/// The handler is certain to be waiting already, so its call is made to return rather than never blocking.
#[test]
fn a_closer_that_waits_in_a_circle_is_let_go() {
    within_a_minute(|| finalized_by_a_childs_handler(Watched::until_it_sleeps));
}

/// The child's handler finalizes the grandparent, which merges the child's failure into the parent's drain. Only then
/// does the thread that drains the parent see the child end.
#[test]
fn a_failure_met_by_two_drains_is_returned_once() {
    within_a_minute(|| {
        for _ in rounds().take(200) {
            let grandparent = Interpreter::new("grandparent");
            let parent = grandparent.subinterpreter("parent");
            let child = parent.subinterpreter("child");
            let barrier = Arc::new(Barrier::new(2));
            let (around, inside) = (grandparent.clone(), Arc::clone(&barrier));
            child.stack().register(move || {
                inside.wait();
                (0..20).for_each(|_| thread::yield_now()); // gives the other thread time to start waiting
                let _ = around.finalize();
            });
            child.stack().register(|| Err("once"));
            let of_parent = at_once([
                &|| {
                    child.finalize().unwrap_err();
                    Ok(())
                },
                &|| {
                    barrier.wait();
                    parent.finalize()
                },
            ]);
            assert!(messages(&of_parent[1]).len() <= 1, "{:?}", of_parent[1]);
        }
    });
}

/// A handler of the child closes the parent while another thread finalizes the parent. The finalizer waits for the
/// close, and then for the handler.
#[test]
fn a_finalizer_waits_for_a_handler_that_closes() {
    within_a_minute(|| {
        for _ in rounds().take(200) {
            let done = Count::default();
            let parent = Interpreter::new("parent");
            let child = parent.subinterpreter("child");
            let barrier = Arc::new(Barrier::new(2));
            let (inside, begins) = (parent.clone(), Arc::clone(&barrier));
            let then = done.handler();
            child.stack().register(move || {
                inside.stack().close().unwrap();
                (0..20).for_each(|_| thread::yield_now());
                then();
            });
            parent.stack().register(|| (0..20).for_each(|_| thread::yield_now())); // time to start waiting
            parent.stack().register(move || _ = begins.wait());
            let finalize = || {
                barrier.wait();
                parent.finalize().unwrap();
                assert_eq!(done.get(), 1);
            };
            at_once([&|| child.finalize().unwrap(), &finalize]);
        }
    });
}

/// The finalizer first waits for a close inside a handler of the child, then for that handler.
#[test]
fn a_finalizer_that_waits_twice_is_told_of_both() {
    fn told(ends: impl FnOnce() -> BoxedResult + Send + 'static) -> CloseError {
        let parent = Interpreter::new("parent");
        let (runs, wait_runs) = channel();
        let (waits, wait_waits) = channel::<Watched>();
        let (then_waits, wait_then_waits) = channel();
        parent.stack().register(move || {
            runs.send(()).unwrap();
            let finalizer = wait_waits.recv().unwrap();
            finalizer.until_it_sleeps();
            then_waits.send(finalizer).unwrap();
            Err("first")
        });
        parent.stack().register(|| Err(Exit(4)));
        let child = parent.subinterpreter("child");
        let around = parent.clone();
        child.stack().register(move || {
            let _ = around.stack().close();
            wait_then_waits.recv().unwrap().until_it_sleeps();
            ends()
        });
        child.stack().register(|| Err(Exit(5)));
        let thread = thread::spawn(move || child.finalize());
        wait_runs.recv().unwrap();
        waits.send(Watched::this()).unwrap();
        let told = parent.finalize().unwrap_err();
        thread.join().unwrap().unwrap_err();
        told
    }
    within_a_minute(|| {
        for _ in rounds().take(20) {
            let both_fail = told(|| Err("second".into()));
            assert_eq!(both_fail.exit_code(), Some(4));
            assert_eq!(messages(&Err(both_fail)), ["first", "second"]);
            let both_ask = told(|| Err(Exit(5).into()));
            assert_eq!(both_ask.exit_code(), Some(5));
            assert_eq!(messages(&Err(both_ask)), ["first"]);
        }
    });
}

/// The handler closes repeatedly, so the finalizer waits for several closes. Only the first of them has a failure.
#[test]
fn what_a_finalizer_was_told_first_is_kept() {
    within_a_minute(|| {
        for _ in rounds().take(20) {
            let parent = Interpreter::new("parent");
            let (runs, wait_runs) = channel();
            let (waits, wait_waits) = channel::<Watched>();
            parent.stack().register(move || {
                runs.send(()).unwrap();
                wait_waits.recv().unwrap().until_it_sleeps();
                Err("first")
            });
            let child = parent.subinterpreter("child");
            let around = parent.clone();
            child.stack().register(move || {
                (0..1000).for_each(|_| _ = around.stack().close());
            });
            let thread = thread::spawn(move || child.finalize());
            wait_runs.recv().unwrap();
            waits.send(Watched::this()).unwrap();
            assert_eq!(messages(&parent.finalize()), ["first"]);
            thread.join().unwrap().unwrap();
        }
    });
}

/// A close of `parent` skips a handler that is waiting for the closing thread; the next close waits for it. The handler
/// belongs to the interpreter that `inside` returns, and `run` starts it.
fn closed_past_a_handler(inside: fn(&Interpreter) -> Interpreter, run: fn(&Interpreter, HandlerId)) {
    for _ in rounds().take(100) {
        let done = Count::default();
        let [parent, other] = ["parent", "other"].map(Interpreter::new);
        let (passed, inner) = (inside(&parent), other.subinterpreter("inner"));
        let (waits, wait_waits) = channel::<Watched>();
        let (closes, wait_closes) = channel();
        let both_run = Arc::new(Barrier::new(2));
        let (runs, then) = (Arc::clone(&both_run), done.handler());
        let id = passed.stack().register(move || {
            runs.wait();
            waits.send(Watched::this()).unwrap();
            other.finalize().unwrap();
            wait_closes.recv().unwrap();
            (0..200).for_each(|_| thread::yield_now());
            then();
        });
        let around = parent.clone();
        inner.stack().register(move || {
            both_run.wait();
            wait_waits.recv().unwrap().until_it_sleeps();
            around.stack().close().unwrap();
        });
        let close_again = || {
            inner.finalize().unwrap();
            closes.send(()).unwrap();
            parent.stack().close().unwrap();
            assert_eq!(done.get(), 1);
        };
        at_once([&|| run(&passed, id), &close_again]);
    }
}

#[test]
fn a_close_waits_for_a_handler_passed_before() {
    within_a_minute(|| {
        let child = |parent: &Interpreter| parent.subinterpreter("inner");
        closed_past_a_handler(child, |child, _| child.finalize().unwrap());
    });
}

#[test]
fn a_close_waits_for_a_run_now_that_was_passed() {
    within_a_minute(|| {
        closed_past_a_handler(Interpreter::clone, |parent, id| parent.stack().run_now(id).unwrap().unwrap());
    });
}

/// A handler closes `parent` while another thread does, too. That thread waits for the close, and then for the handler,
/// which belongs to the interpreter that `inside` returns; `run` starts it.
fn closed_beside_a_handler(inside: fn(&Interpreter) -> Interpreter, run: fn(&Interpreter, HandlerId)) {
    for _ in rounds().take(20) {
        let done = Count::default();
        let parent = Interpreter::new("parent");
        let passed = inside(&parent);
        let (waits, wait_waits) = channel::<Watched>();
        let (then_waits, wait_then_waits) = channel::<Watched>();
        let both_run = Arc::new(Barrier::new(2));
        let (around, then) = (parent.clone(), done.handler());
        let id = passed.stack().register(move || {
            let _ = around.stack().close();
            wait_then_waits.recv().unwrap().until_it_sleeps(); // once more, or it has ended
            then();
            Err("second")
        });
        let runs = Arc::clone(&both_run);
        parent.stack().register(move || {
            runs.wait();
            let closer = wait_waits.recv().unwrap();
            closer.until_it_sleeps();
            then_waits.send(closer).unwrap();
            Err("first")
        });
        let close = || {
            both_run.wait();
            waits.send(Watched::this()).unwrap();
            assert_eq!(messages(&parent.stack().close()), ["first", "second"]);
            assert_eq!(done.get(), 1);
        };
        at_once([&|| run(&passed, id), &close]);
    }
}

#[test]
fn a_close_waits_for_a_handler_that_closes() {
    within_a_minute(|| {
        let child = |parent: &Interpreter| parent.subinterpreter("inner");
        closed_beside_a_handler(child, |child, _| _ = child.finalize());
    });
}

#[test]
fn a_close_waits_for_a_run_now_that_closes() {
    within_a_minute(|| {
        closed_beside_a_handler(Interpreter::clone, |parent, id| _ = parent.stack().run_now(id).unwrap());
    });
}

/// Calls `wait` while two handlers of `interpreter` run out of turn on other threads, and checks that it waited for
/// both.
fn beside_run_now(interpreter: &Interpreter, wait: impl FnOnce()) {
    let done = Count::default();
    let (runs, wait_runs) = channel();
    let [first, second] = [(); 2].map(|()| {
        let (waits, wait_waits) = channel::<Watched>();
        let (runs, then, own) = (runs.clone(), done.handler(), interpreter.clone());
        let id = interpreter.stack().register(move || {
            runs.send(()).unwrap();
            wait_waits.recv().unwrap().until_it_sleeps();
            then();
        });
        (waits, thread::spawn(move || own.stack().run_now(id).unwrap().unwrap()))
    });
    (0..2).for_each(|_| wait_runs.recv().unwrap());
    for (waits, _) in [&first, &second] {
        waits.send(Watched::this()).unwrap();
    }
    wait();
    assert_eq!(done.get(), 2);
    for (_, thread) in [first, second] {
        thread.join().unwrap();
    }
}

#[test]
fn finalize_waits_for_a_handler_in_run_now() {
    within_a_minute(|| {
        let interpreter = Interpreter::new("own");
        beside_run_now(&interpreter, || {
            interpreter.stack().register(|| Err("its own"));
            assert_eq!(messages(&interpreter.finalize()), ["own"]);
        });
    });
}

#[test]
fn a_finalizer_is_told_what_run_now_failed_with() {
    within_a_minute(|| {
        let interpreter = Interpreter::new("own");
        let (runs, wait_runs) = channel();
        let (waits, wait_waits) = channel::<Watched>();
        let id = interpreter.stack().register(move || {
            runs.send(()).unwrap();
            wait_waits.recv().unwrap().until_it_sleeps();
            Err("told")
        });
        let own = interpreter.clone();
        let thread = thread::spawn(move || own.stack().run_now(id).unwrap());
        wait_runs.recv().unwrap();
        waits.send(Watched::this()).unwrap();
        assert_eq!(messages(&interpreter.finalize()), ["told"]);
        assert_eq!(messages(&thread.join().unwrap()), ["told"]);
    });
}

#[test]
fn a_parents_drain_waits_for_a_childs_run_now() {
    within_a_minute(|| {
        let parent = Interpreter::new("parent");
        let child = parent.subinterpreter("child");
        beside_run_now(&child, || parent.finalize().unwrap());
        let parent = Interpreter::new("parent");
        let child = parent.subinterpreter("child");
        beside_run_now(&child, || parent.stack().close().unwrap());
        let parent = Interpreter::new("parent");
        let child = parent.subinterpreter("child");
        beside_run_now(&child, || drop(parent));
    });
}

/// The handler finalizes its own interpreter and the parent.
#[test]
fn a_handler_in_run_now_may_finalize_both() {
    within_a_minute(|| {
        let count = Count::default();
        let parent = Interpreter::new("parent");
        parent.stack().register(count.handler());
        let child = parent.subinterpreter("child");
        child.stack().register(count.handler());
        let (around, own, then) = (parent.clone(), child.clone(), count.handler());
        let id = child.stack().register(move || {
            own.finalize().unwrap();
            around.finalize().unwrap();
            then();
        });
        child.stack().run_now(id).unwrap().unwrap();
        parent.finalize().unwrap();
        assert_eq!(count.get(), 3);
        assert!([&parent, &child].iter().all(|done| done.stack().try_register(|| ()).is_err()));
    });
}

/// Two threads each run one of the handlers, and both finish.
#[test]
fn handlers_in_run_now_may_finalize_each_other() {
    within_a_minute(|| {
        for _ in rounds() {
            let count = Count::default();
            let both = ["a", "b"].map(Interpreter::new);
            let barrier = Arc::new(Barrier::new(2));
            let ids = [0, 1].map(|n| {
                both[n].stack().register(count.handler());
                let (other, barrier, then) = (both[1 - n].clone(), Arc::clone(&barrier), count.handler());
                both[n].stack().register(move || {
                    barrier.wait();
                    other.finalize().unwrap();
                    then();
                })
            });
            let run = |n: usize| both[n].stack().run_now(ids[n]).unwrap().unwrap();
            at_once([&|| run(0), &|| run(1)]);
            for interpreter in &both {
                interpreter.finalize().unwrap();
            }
            assert_eq!(count.get(), 4);
        }
    });
}

/// A handler of the child finalizes the parent in `run_now`, while the parent's finalizer waits for that handler.
#[test]
fn run_now_may_finalize_a_parent_that_waits() {
    within_a_minute(|| {
        for _ in rounds() {
            let count = Count::default();
            let parent = Interpreter::new("parent");
            parent.stack().register(count.handler());
            let child = parent.subinterpreter("child");
            child.stack().register(count.handler());
            let barrier = Arc::new(Barrier::new(2));
            let (around, begins, then) = (parent.clone(), Arc::clone(&barrier), count.handler());
            let id = child.stack().register(move || {
                begins.wait();
                around.finalize().unwrap();
                then();
            });
            let finalize = || {
                barrier.wait();
                parent.finalize().unwrap();
            };
            at_once([&|| child.stack().run_now(id).unwrap().unwrap(), &finalize]);
            assert_eq!(count.get(), 3);
        }
    });
}

/// While thread 1 is in a handler of the first child, it finalizes the second child, whose handler finalizes the
/// grandparent. The owner of the parent's drain is waiting for thread 1, so thread 1 takes that drain over. When the
/// owner wakes, the first child's handler is still running, and the owner must wait for it. (If thread 1 starts waiting
/// before the owner does, the handler waits for the finalizer instead, which then returns first. The test requires that
/// case to be the rarer one.)
#[test]
fn a_finalizer_waits_for_what_others_passed() {
    within_a_minute(|| {
        let (all, waited) = (Count::default(), Count::default());
        for _ in rounds().take(200) {
            all.handler()();
            let done = Count::default();
            let grandparent = Interpreter::new("grandparent");
            let parent = grandparent.subinterpreter("parent");
            let [first, second] = ["first", "second"].map(|name| parent.subinterpreter(name));
            let barrier = Arc::new(Barrier::new(2));
            let begins = Arc::clone(&barrier);
            second.stack().register(move || {
                begins.wait();
                (0..200).for_each(|_| thread::yield_now()); // gives the parent's finalizer time to start waiting
                grandparent.finalize().unwrap();
            });
            let then = done.handler();
            first.stack().register(move || {
                second.finalize().unwrap();
                (0..200).for_each(|_| thread::yield_now());
                then();
            });
            let finalize = || {
                barrier.wait();
                parent.finalize().unwrap();
                if done.get() == 1 {
                    waited.handler()();
                }
            };
            at_once([&|| first.finalize().unwrap(), &finalize]);
        }
        assert!(waited.get() > all.get() / 2, "{} of {}", waited.get(), all.get());
    });
}

/// A drain that waited for another may be the last owner of an error from the other drain's handlers. Here the drop of
/// that error panics.
#[test]
fn an_error_that_panics_elsewhere_ends_no_drain() {
    fn drop_rudely(result: Result<(), CloseError>) {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(result)));
    }
    within_a_minute(|| {
        for _ in rounds().take(200) {
            let ran = Count::default();
            let parent = Interpreter::new("parent");
            parent.stack().register(ran.handler());
            let child = parent.subinterpreter("child");
            let barrier = Arc::new(Barrier::new(2));
            let (around, begins) = (parent.clone(), Arc::clone(&barrier));
            child.stack().register(move || {
                drop_rudely(around.finalize()); // receives the failure
                begins.wait();
                (0..20).for_each(|_| thread::yield_now()); // gives the other finalizer time to start waiting
            });
            child.stack().register(|| Err(Rude));
            child.stack().register(|| Err(Exit(5))); // also passed on only once
            let finalize = || {
                barrier.wait();
                assert!(parent.finalize().is_ok());
            };
            at_once([&|| drop_rudely(child.finalize()), &finalize]);
            assert!(parent.finalize().is_ok());
            assert_eq!(ran.get(), 1);
        }
    });
}

/// Two threads each drain an interpreter with a handler that finalizes the other interpreter's parent. No waiting call
/// can be made to return early, so one thread runs the rest of the other's drain.
#[test]
fn drains_that_come_to_each_other_end() {
    within_a_minute(|| {
        for _ in rounds() {
            let counts = [(); 2].map(|()| Count::default());
            let parents = ["a", "b"].map(Interpreter::new);
            let children = parents.each_ref().map(|parent| parent.subinterpreter("child"));
            let barrier = Arc::new(Barrier::new(2));
            for n in 0..2 {
                parents[n].stack().register(counts[n].handler());
                // No cycle of `Arc`s is left: each handler drops the handle it holds when it has run.
                children[n].stack().register(counts[n].handler());
                let (other, barrier) = (parents[1 - n].clone(), Arc::clone(&barrier));
                children[n].stack().register(move || {
                    barrier.wait();
                    other.finalize()
                });
            }
            at_once([&|| children[0].finalize().unwrap(), &|| children[1].finalize().unwrap()]);
            for parent in &parents {
                parent.finalize().unwrap();
            }
            assert_eq!(counts.each_ref().map(Count::get), [2, 2]);
        }
    });
}

/// The thread that drains comes to that one at its place.
#[test]
fn handlers_newer_than_one_in_run_now_do_not_wait_for_it() {
    within_a_minute(|| {
        let log = Log::default();
        let interpreter = Interpreter::new("interpreter");
        let (begins, begun) = channel();
        let (release, released) = channel::<()>();
        let older = log.handler("older");
        let id = interpreter.stack().register(move || {
            begins.send(()).unwrap();
            released.recv().unwrap();
            older();
        });
        let newer = log.handler("newer");
        interpreter.stack().register(move || {
            newer();
            release.send(()).unwrap();
        });
        let own = interpreter.clone();
        let thread = thread::spawn(move || own.stack().run_now(id).unwrap().unwrap());
        begun.recv().unwrap();
        interpreter.finalize().unwrap();
        assert_eq!(log.take(), ["newer", "older"]);
        thread.join().unwrap();
    });
}

/// The drain waits for the newer of two, and not for the older, before it runs what is between them.
#[test]
fn each_in_run_now_is_waited_for_at_its_place() {
    within_a_minute(|| {
        let log = Log::default();
        let interpreter = Interpreter::new("interpreter");
        let (begins, begun) = channel();
        let out_of_turn = |name| {
            let (release, released) = channel::<Option<Watched>>();
            let (begins, then, own) = (begins.clone(), log.handler(name), interpreter.clone());
            let id = interpreter.stack().register(move || {
                begins.send(()).unwrap();
                released.recv().unwrap().iter().for_each(Watched::until_it_sleeps);
                then();
            });
            (release, move || thread::spawn(move || own.stack().run_now(id).unwrap().unwrap()))
        };
        let (release_older, run_older) = out_of_turn("older");
        let between = log.handler("between");
        interpreter.stack().register(move || {
            between();
            release_older.send(None).unwrap();
        });
        let (release_newer, run_newer) = out_of_turn("newer");
        let newer = run_newer();
        begun.recv().unwrap();
        let older = run_older();
        begun.recv().unwrap();
        release_newer.send(Some(Watched::this())).unwrap();
        interpreter.finalize().unwrap();
        assert_eq!(log.take(), ["newer", "between", "older"]);
        for thread in [newer, older] {
            thread.join().unwrap();
        }
    });
}

/// Three stacks, each with a handler that closes the next.
#[test]
fn handlers_that_close_in_a_circle_do_not_hang() {
    within_a_minute(|| {
        for _ in rounds() {
            let stacks = [(); 3].map(|()| Arc::new(SharedExitStack::new()));
            let count = Count::default();
            for n in 0..3 {
                let next = Arc::clone(&stacks[(n + 1) % 3]);
                stacks[n].register(count.handler());
                stacks[n].register(move || next.close());
                stacks[n].register(count.handler());
            }
            at_once([&|| stacks[0].close().unwrap(), &|| stacks[1].close().unwrap(), &|| stacks[2].close().unwrap()]);
            assert_eq!(count.get(), 6);
            // Each handler ran and was dropped, so the stacks no longer hold each other in a cycle.
            assert!(stacks.iter().all(|stack| Arc::strong_count(stack) == 1));
        }
    });
}

#[test]
fn one_that_hangs_in_a_handler_delays_no_other() {
    within_a_minute(|| {
        let (entered, wait_entered) = channel();
        let (release, wait_release) = channel::<()>();
        let parent = Interpreter::new("parent");
        let hangs = parent.subinterpreter("hangs");
        let log = Log::default();
        hangs.stack().register(log.handler("after the hang"));
        hangs.stack().register(move || {
            entered.send(()).unwrap();
            wait_release.recv().unwrap();
        });
        let own = hangs.clone();
        let thread = thread::spawn(move || own.finalize().unwrap());
        wait_entered.recv().unwrap();
        // While it hangs, use siblings, their children, unrelated interpreters, the parent's own list, and its own.
        let count = Count::default();
        for n in 0..100 {
            let sibling = parent.subinterpreter("sibling");
            let inner = sibling.subinterpreter("inner");
            let stranger = Interpreter::new("stranger");
            for interpreter in [&inner, &sibling, &stranger] {
                let id = interpreter.stack().register(|| unreachable!());
                interpreter.stack().register(count.handler());
                assert!(interpreter.stack().unregister(id));
                if n % 2 == 0 {
                    interpreter.stack().close().unwrap();
                }
            }
            stranger.finalize().unwrap();
            sibling.finalize().unwrap();
            let id = parent.stack().register(|| ());
            assert!(parent.stack().pending().len() == 1 && parent.stack().unregister(id));
            let id = hangs.stack().register(|| unreachable!());
            assert!(hangs.stack().unregister(id));
        }
        assert_eq!((count.get(), log.take().len()), (300, 0));
        release.send(()).unwrap();
        thread.join().unwrap();
        assert_eq!(log.take(), ["after the hang"]);
    });
}
