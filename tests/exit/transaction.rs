//! Outcomes when a process ends: transactions that this rolls back, and the outcome of the process stack itself.

use std::error::Error;
use std::process::{ExitCode, Termination};
use std::sync::mpsc::channel;
use std::sync::{Barrier, OnceLock};
use std::thread;

use exitstack::{
    CloseError, Exit, HandlerErrorKind, Interpreter, Outcome, SharedExitStack, adopt_after_fork, exit, is_exiting,
    process_stack, register, run,
};
use libtest_mimic::Trial;

use crate::Status::Code;
use crate::child::{DROPS_THREAD_LOCALS, c_exit, say, says};
use crate::fork::{Bomb, after, fork, say_child};
use crate::watched::Watched;
use crate::{Case, Ended, OK, case, run_child, runs_or, status_of};

type Done<T = ()> = Result<T, Box<dyn Error>>;

/// Registers handlers that say whether a step was committed or undone.
fn step(stack: &SharedExitStack, name: &'static str) {
    stack.on_success(move || say(&format!("commit {name}")));
    stack.on_failure(move || say(&format!("undo {name}")));
}

/// Runs a transaction of two steps between two handlers of the process stack.
fn one_deep(leave: impl FnOnce() -> Done) -> Done {
    says("below");
    Interpreter::scope("install", |install| {
        step(install.stack(), "1");
        process_stack().register(|| say("above"));
        step(install.stack(), "2");
        leave()
    })
}

/// Runs a transaction that may not return.
fn transaction(name: &'static str, body: impl FnOnce(&Interpreter) -> Done) -> Ended {
    ended(Interpreter::scope(name, body))
}

/// What `main` returns after a transaction.
fn ended(done: Done) -> Ended {
    done.map(|()| ExitCode::SUCCESS).map_err(|error| error.to_string())
}

const COMMITTED: [&str; 4] = ["commit 2", "commit 1", "above", "below"];
const UNDONE_FIRST: [&str; 4] = ["undo 2", "undo 1", "above", "below"];
const UNDONE_IN_PLACE: [&str; 4] = ["above", "undo 2", "undo 1", "below"];

/// Runs a transaction inside another one, with handlers of the outer one and of the process stack around it.
fn two_deep(leave: impl FnOnce() -> Done) -> Done {
    says("below");
    Interpreter::scope("outer", |outer| {
        step(outer.stack(), "outer 1");
        process_stack().register(|| say("above"));
        Interpreter::scope("inner", |inner| {
            step(inner.stack(), "inner 1");
            step(outer.stack(), "outer 2");
            step(inner.stack(), "inner 2");
            leave()
        })
    })
}

/// Newest first, whatever each is nested in.
const UNDONE_TWO_DEEP: [&str; 6] = ["above", "undo outer 2", "undo inner 2", "undo inner 1", "undo outer 1", "below"];

/// Makes another thread leave, and never returns.
fn on_a_thread(leave: impl FnOnce() + Send + 'static) -> Done {
    let _ = thread::spawn(leave).join();
    unreachable!("the thread left the process")
}

/// Says how a transaction ended.
fn say_result(result: &Result<(), CloseError>) {
    say(match result {
        Ok(()) => "returned Ok",
        Err(error) => match error.last().map(exitstack::HandlerError::kind) {
            Some(HandlerErrorKind::RolledBack) => "returned RolledBack",
            Some(HandlerErrorKind::Refused) => "returned Refused",
            _ => "returned another error",
        },
    });
}

/// A transaction that is refused.
fn refused_scope() {
    let begun = Interpreter::scope("late", |_| -> Result<(), CloseError> {
        say("the body runs");
        Ok(())
    });
    say_result(&begun);
    let error = begun.unwrap_err();
    say(&format!("{:?} {:?}", error.errors()[0].path(), error.errors()[0].name()));
}

/// Forks in the body of a transaction. The child ends with `child`; in the parent, the transaction succeeds.
fn forks_in_the_body(child: impl FnOnce() -> Done<Ended>) -> Ended {
    let ended: Done<Ended> = Interpreter::scope("install", |install| {
        step(install.stack(), "the parent's");
        let bombs = [Bomb::new(), Bomb::new()];
        for bomb in bombs {
            install.stack().on_failure(move || drop(bomb)); // neither run nor dropped in the child
        }
        match fork(|| {
            step(install.stack(), "the child's");
            OK
        }) {
            Err(_) => child(),
            Ok(status) => {
                say_child(status);
                Ok(OK)
            }
        }
    });
    ended.unwrap_or_else(|error| Err(error.to_string()))
}

/// Registers handlers that say the outcome of a stack.
fn says_outcome(stack: &SharedExitStack) {
    stack.on_success(|| say("success"));
    stack.on_failure(|| say("failure"));
}

/// Checks the outcome of a process that ends this way.
fn outcome(name: &'static str, status: i32, outcome: Outcome, child: fn() -> Ended) -> Case {
    let said = if outcome == Outcome::Success { "success" } else { "failure" };
    case(name, Code(status), &[said], child)
}

/// The same if the body of `run` ends this way.
#[expect(clippy::unnecessary_wraps, reason = "it is what a child returns")]
fn run_ends<T: Termination>(body: impl FnOnce() -> T) -> Ended {
    Ok(run(|| {
        says_outcome(process_stack());
        body()
    }))
}

/// A value whose meaning only its author knows.
struct Unknown;

impl Termination for Unknown {
    fn report(self) -> ExitCode {
        ExitCode::from(7)
    }
}

/// A thread-local whose drop registers with the process stack.
struct Late;

impl Drop for Late {
    fn drop(&mut self) {
        says_outcome(process_stack());
    }
}

thread_local! {
    static LATE: std::cell::Cell<Option<Late>> = const { std::cell::Cell::new(None) };
}

/// The same lines with one more at the front.
fn first<'l>(line: &'l str, lines: &[&'l str]) -> Vec<&'l str> {
    [&[line], lines].concat()
}

pub(crate) fn cases() -> Vec<Case> {
    [rolled_back(), ended_by_the_body(), committing(), forked(), detached(), refused(), outcomes(), exiting()]
        .into_iter()
        .flatten()
        .collect()
}

/// The process ends while a body runs.
#[expect(clippy::too_many_lines, reason = "a table")]
fn rolled_back() -> Vec<Case> {
    let all = &UNDONE_IN_PLACE;
    let deep = &UNDONE_TWO_DEEP;
    vec![
        case("std_exit_in_a_body_rolls_back", Code(3), all, || ended(one_deep(|| std::process::exit(3)))),
        case("c_exit_in_a_body_rolls_back", Code(3), all, || ended(one_deep(|| c_exit(3)))),
        case("exit_in_a_body_rolls_back", Code(3), all, || ended(one_deep(|| exit(3)))),
        case("exit_0_in_a_body_rolls_back", Code(0), all, || ended(one_deep(|| exit(0)))),
        case("std_exit_in_a_body_in_a_body", Code(3), deep, || ended(two_deep(|| std::process::exit(3)))),
        case("c_exit_in_a_body_in_a_body", Code(3), deep, || ended(two_deep(|| c_exit(3)))),
        case("exit_in_a_body_in_a_body", Code(3), deep, || ended(two_deep(|| exit(3)))),
        case("std_exit_on_a_thread_rolls_a_body_back", Code(3), deep, || {
            ended(two_deep(|| on_a_thread(|| std::process::exit(3))))
        }),
        case("c_exit_on_a_thread_rolls_a_body_back", Code(3), deep, || ended(two_deep(|| on_a_thread(|| c_exit(3))))),
        case("exit_on_a_thread_rolls_a_body_back", Code(3), deep, || ended(two_deep(|| on_a_thread(|| exit(3))))),
        case("the_end_of_main_rolls_a_threads_body_back", Code(0), deep, || {
            let (begun, has_begun) = channel();
            thread::spawn(move || {
                two_deep(|| {
                    begun.send(()).unwrap();
                    loop {
                        thread::park();
                    }
                })
                .unwrap();
            });
            has_begun.recv().unwrap();
            OK
        }),
        case("the_end_of_run_rolls_a_threads_body_back", Code(0), &first("in run", deep), || {
            Ok(run(|| {
                let (begun, has_begun) = channel();
                thread::spawn(move || {
                    two_deep(|| {
                        process_stack().register(|| say("in run"));
                        begun.send(()).unwrap();
                        loop {
                            thread::park();
                        }
                    })
                    .unwrap();
                });
                has_begun.recv().unwrap();
            }))
        }),
        case("exit_in_run_rolls_a_body_back", Code(3), deep, || {
            Ok(run(|| {
                two_deep(|| exit(3)).unwrap();
            }))
        }),
        case("std_exit_in_run_rolls_a_body_back", Code(3), deep, || {
            Ok(run(|| {
                two_deep(|| std::process::exit(3)).unwrap();
            }))
        }),
        // A scope's body inside a handler is left by unwinding, as the handler is.
        case("exit_in_a_scope_of_a_handler_rolls_back", Code(3), &["undo in the handler", "A"], || {
            says("A");
            register(|| {
                let _: Done = Interpreter::scope("in a handler", |own| {
                    step(own.stack(), "in the handler");
                    exit(3)
                });
            });
            OK
        }),
        case("c_exit_in_a_scope_of_a_handler_rolls_back", Code(3), &["undo in the handler", "A"], || {
            says("A");
            register(|| {
                let _: Done = Interpreter::scope("in a handler", |own| {
                    step(own.stack(), "in the handler");
                    c_exit(3)
                });
            });
            OK
        }),
        case("a_rollback_that_fails_is_told_with_its_path", Code(3), &["undo 1"], || {
            transaction("install", |install| {
                step(install.stack(), "1");
                install.stack().on_failure(|| Err("the disk is gone"));
                std::process::exit(3)
            })
        })
        .err("process > install: exit handler registered at ")
        .err(" failed: the disk is gone"),
        case("a_rollback_that_calls_c_exit_goes_on", Code(4), &["undo 2", "undo 1", "A"], || {
            says("A");
            transaction("install", |install| {
                step(install.stack(), "1");
                install.stack().on_failure(|| c_exit(4));
                step(install.stack(), "2");
                std::process::exit(3)
            })
        }),
        // What comes too late is refused, and the body learns that its earlier work was rolled back.
        case(
            "a_body_rolled_back_is_told_when_it_is_done",
            Code(3),
            &["undo 1", "refused", "returned RolledBack"],
            || {
                static OVER: Barrier = Barrier::new(2);
                let (ended, has_ended) = channel();
                // Older than the transaction: when this runs, the transaction has been rolled back.
                register(move || {
                    OVER.wait();
                    say_result(&has_ended.recv().unwrap());
                });
                let (begun, has_begun) = channel();
                thread::spawn(move || {
                    let result = Interpreter::scope("install", |install| {
                        step(install.stack(), "1");
                        begun.send(()).unwrap();
                        OVER.wait();
                        say(if install.stack().try_register(|| ()).is_err() { "refused" } else { "taken" });
                        Ok(())
                    });
                    ended.send(result).unwrap();
                });
                has_begun.recv().unwrap();
                std::process::exit(3)
            },
        ),
        // The rollback waits until the body is done, and the end of the scope waits for the rollback.
        case(
            "a_body_done_while_it_is_rolled_back_waits",
            Code(3),
            &["undo 2", "undo 1", "returned RolledBack"],
            || {
                static BEGUN: Barrier = Barrier::new(2);
                let (ended, has_ended) = channel();
                register(move || say_result(&has_ended.recv().unwrap()));
                let (this, body) = channel::<Watched>();
                let (rolls_back, is_rolled_back) = channel();
                thread::spawn(move || {
                    let result = Interpreter::scope("install", |install| {
                        step(install.stack(), "1");
                        install.stack().on_failure(move || {
                            rolls_back.send(()).unwrap();
                            body.recv().unwrap().until_it_sleeps(); // at the end of its scope
                        });
                        step(install.stack(), "2");
                        BEGUN.wait();
                        is_rolled_back.recv().unwrap();
                        this.send(Watched::this()).unwrap();
                        Ok(())
                    });
                    ended.send(result).unwrap();
                });
                BEGUN.wait();
                exit(3)
            },
        ),
    ]
}

/// The body ends before the process does.
fn ended_by_the_body() -> Vec<Case> {
    let deep = ["undo inner 2", "undo inner 1", "undo outer 2", "undo outer 1", "above", "below"];
    let committed = ["commit inner 2", "commit inner 1", "commit outer 2", "commit outer 1", "above", "below"];
    vec![
        case("a_body_that_is_done_commits_before_exit", Code(0), &COMMITTED, || {
            one_deep(|| Ok(())).unwrap();
            exit(0)
        }),
        case("a_body_that_fails_rolls_back_before_exit", Code(1), &UNDONE_FIRST, || {
            ended(one_deep(|| Err("no".into())))
        })
        .err("Error: \"no\""),
        case("a_body_that_panics_rolls_back_before_exit", Code(101), &UNDONE_FIRST, || {
            ended(one_deep(|| panic!("in the body")))
        })
        .err("in the body"),
        case("bodies_that_are_done_commit_inside_out", Code(0), &committed, || ended(two_deep(|| Ok(())))),
        case("bodies_that_fail_roll_back_inside_out", Code(1), &deep, || ended(two_deep(|| Err("no".into()))))
            .err("Error: \"no\""),
        case("bodies_that_panic_roll_back_inside_out", Code(101), &deep, || ended(two_deep(|| panic!("in the body"))))
            .err("in the body"),
        case("run_with_bodies_that_are_done", Code(0), &committed, || Ok(run(|| two_deep(|| Ok(()))))),
        case("run_with_bodies_that_fail", Code(1), &deep, || Ok(run(|| two_deep(|| Err("no".into()))))),
        case("run_with_bodies_that_panic", Code(101), &deep, || Ok(run(|| two_deep(|| panic!("in the body"))))),
        case("an_inner_commit_stays_if_the_outer_fails", Code(0), &["commit inner", "undo outer", "failed"], || {
            let failed: Done = Interpreter::scope("outer", |outer| {
                step(outer.stack(), "outer");
                Interpreter::scope("inner", |inner| -> Done {
                    step(inner.stack(), "inner");
                    Ok(())
                })?;
                Err("no".into())
            });
            say(if failed.is_err() { "failed" } else { "done" });
            OK
        }),
        case("an_inner_commit_stays_if_the_outer_exits", Code(3), &["commit inner", "undo outer"], || {
            transaction("outer", |outer| {
                step(outer.stack(), "outer");
                Interpreter::scope("inner", |inner| -> Done {
                    step(inner.stack(), "inner");
                    Ok(())
                })
                .unwrap();
                std::process::exit(3)
            })
        }),
        case("an_inner_rollback_leaves_the_outer_to_commit", Code(0), &["undo inner", "commit outer"], || {
            Interpreter::scope("outer", |outer| -> Done {
                step(outer.stack(), "outer");
                let failed: Done = Interpreter::scope("inner", |inner| {
                    step(inner.stack(), "inner");
                    Err("no".into())
                });
                assert!(failed.is_err());
                Ok(())
            })
            .unwrap();
            OK
        }),
        // The free functions reach the transaction while its body runs, but not afterwards.
        case("register_in_a_body_goes_to_the_transaction", Code(0), &["in the body", "outside"], || {
            says("outside");
            Interpreter::scope("install", |_| -> Done {
                says("in the body");
                Ok(())
            })
            .unwrap();
            assert_eq!(process_stack().len(), 1);
            OK
        }),
    ]
}

/// What handlers do at the end of their transaction.
#[expect(clippy::too_many_lines, reason = "a table")]
fn committing() -> Vec<Case> {
    vec![
        case("a_commit_that_calls_c_exit_goes_on", Code(3), &["commit 2", "commit 1", "A"], || {
            says("A");
            Interpreter::scope("install", |install| -> Done {
                step(install.stack(), "1");
                install.stack().on_success(|| c_exit(3));
                step(install.stack(), "2");
                Ok(())
            })
            .unwrap();
            OK
        }),
        case("a_commit_that_calls_std_exit_goes_on", Code(3), &["commit 2", "commit 1", "A"], || {
            says("A");
            Interpreter::scope("install", |install| -> Done {
                step(install.stack(), "1");
                install.stack().on_success(|| std::process::exit(3));
                step(install.stack(), "2");
                Ok(())
            })
            .unwrap();
            OK
        }),
        case("a_commit_that_calls_exit_goes_on", Code(3), &["commit 2", "commit 1", "A"], || {
            says("A");
            Interpreter::scope("install", |install| -> Done {
                step(install.stack(), "1");
                install.stack().on_success(|| exit(3));
                step(install.stack(), "2");
                Ok(())
            })
            .unwrap();
            OK
        }),
        // The outer transaction is not done yet, so it is rolled back.
        case("a_commit_that_calls_c_exit_in_a_body", Code(3), &["commit 2", "commit 1", "undo outer", "A"], || {
            says("A");
            transaction("outer", |outer| {
                step(outer.stack(), "outer");
                Interpreter::scope("inner", |inner| -> Done {
                    step(inner.stack(), "1");
                    inner.stack().on_success(|| c_exit(3));
                    step(inner.stack(), "2");
                    Ok(())
                })
            })
            .unwrap();
            OK
        }),
        case("a_rollback_of_an_err_that_calls_c_exit", Code(3), &["undo 2", "undo 1", "A"], || {
            says("A");
            let _: Done = Interpreter::scope("install", |install| {
                step(install.stack(), "1");
                install.stack().on_failure(|| c_exit(3));
                step(install.stack(), "2");
                Err("no".into())
            });
            OK
        }),
        // Another thread that leaves waits for the commit, and does not undo half of it.
        case("a_commit_that_runs_is_finished_by_exit", Code(3), &["commit 2", "commit 1", "A"], || {
            static COMMITS: Barrier = Barrier::new(2);
            says("A");
            let (this, thread) = channel::<Watched>();
            thread::spawn(move || {
                COMMITS.wait();
                this.send(Watched::this()).unwrap();
                std::process::exit(3)
            });
            Interpreter::scope("install", |install| -> Done {
                step(install.stack(), "1");
                install.stack().on_success(move || {
                    COMMITS.wait();
                    thread.recv().unwrap().until_it_sleeps();
                });
                step(install.stack(), "2");
                Ok(())
            })
            .unwrap();
            loop {
                thread::park();
            }
        }),
        // A commit is a drain like any other: what its handlers request reaches `main`.
        case("an_exit_request_of_a_commit_is_returned", Code(0), &["Some(5)"], || {
            let ended: Result<(), CloseError> = Interpreter::scope("install", |install| {
                install.stack().register(|| Err(Exit(5)));
                Ok(())
            });
            say(&format!("{:?}", ended.unwrap_err().exit_code()));
            OK
        }),
        case("a_scope_in_a_handler_of_the_end_commits", Code(0), &["commit in the handler", "A"], || {
            says("A");
            register(|| {
                let done: Done = Interpreter::scope("in a handler", |own| {
                    step(own.stack(), "in the handler");
                    Ok(())
                });
                done.unwrap();
            });
            OK
        }),
    ]
}

/// A child is forked in a body.
fn forked() -> Vec<Case> {
    let parents = "commit the parent's";
    let (own, undone) = ("commit the child's", "undo the child's");
    vec![
        case("a_child_that_ends_a_body_well", Code(0), &[own, "child 0", parents], || forks_in_the_body(|| Ok(OK))),
        case("a_child_that_ends_a_body_with_an_error", Code(0), &[undone, "child 1", parents], || {
            forks_in_the_body(|| Err("no".into()))
        })
        .err("Error: \"no\""),
        case("a_child_that_panics_in_a_body", Code(0), &[undone, "child 101", parents], || {
            forks_in_the_body(|| panic!("in the child"))
        })
        .err("in the child"),
        case("a_child_that_calls_std_exit_in_a_body", Code(0), &[undone, "child 3", parents], || {
            forks_in_the_body(|| std::process::exit(3))
        }),
        case("a_child_that_calls_c_exit_in_a_body", Code(0), &[undone, "child 3", parents], || {
            forks_in_the_body(|| c_exit(3))
        }),
        case("a_child_that_calls_exit_in_a_body", Code(0), &[undone, "child 3", parents], || {
            forks_in_the_body(|| exit(3))
        }),
        case("a_child_that_adopts_commits_all", Code(0), &[own, parents, "child 0", parents], || {
            let ended: Done<Ended> = Interpreter::scope("install", |install| {
                step(install.stack(), "the parent's");
                match fork(|| OK) {
                    Err(ended) => {
                        step(install.stack(), "the child's");
                        assert!(adopt_after_fork());
                        Ok(ended)
                    }
                    Ok(status) => {
                        say_child(status);
                        Ok(OK)
                    }
                }
            });
            ended.unwrap()
        }),
        case("a_child_that_adopts_rolls_all_back", Code(0), &[undone, "undo the parent's", "child 3", parents], || {
            let ended: Done<Ended> = Interpreter::scope("install", |install| {
                step(install.stack(), "the parent's");
                match fork(|| OK) {
                    Err(_) => {
                        step(install.stack(), "the child's");
                        assert!(adopt_after_fork());
                        std::process::exit(3)
                    }
                    Ok(status) => {
                        say_child(status);
                        Ok(OK)
                    }
                }
            });
            ended.unwrap()
        }),
        // A child forked during a commit gets nothing of it: neither the rest of the commit nor a rollback.
        case("a_child_forked_by_a_commit_has_none_of_it", Code(0), &["child 0", "commit 1"], || {
            let done: Done = Interpreter::scope("install", |install| {
                step(install.stack(), "1");
                install.stack().on_success(|| match fork(|| OK) {
                    Err(_) => std::process::exit(0),
                    Ok(status) => say_child(status),
                });
                Ok(())
            });
            done.unwrap();
            OK
        }),
        case("a_scope_in_a_child_is_the_childs", Code(0), &["commit own", "undo own", "child 3", "A"], || {
            says("A");
            let forked = fork(|| {
                let done: Done = Interpreter::scope("own", |own| {
                    step(own.stack(), "own");
                    Ok(())
                });
                done.unwrap();
                transaction("own", |own| {
                    step(own.stack(), "own");
                    std::process::exit(3)
                })
            });
            after(forked, say_child)
        }),
    ]
}

/// Interpreters that the end of the process does not affect.
fn detached() -> Vec<Case> {
    /// A tree that outlives `main`.
    fn runtime() -> &'static Interpreter {
        static RUNTIME: OnceLock<(Interpreter, Interpreter)> = OnceLock::new();
        let (runtime, script) = RUNTIME.get_or_init(|| {
            let runtime = Interpreter::detached("runtime");
            let script = runtime.subinterpreter("script");
            (runtime, script)
        });
        script.stack().register(|| say("script"));
        runtime.stack().register(|| say("runtime"));
        runtime
    }
    vec![
        case("std_exit_leaves_a_detached_tree_alone", Code(3), &["A"], || {
            says("A");
            runtime();
            std::process::exit(3)
        }),
        case("c_exit_leaves_a_detached_tree_alone", Code(3), &["A"], || {
            says("A");
            runtime();
            c_exit(3)
        }),
        case("exit_leaves_a_detached_tree_alone", Code(3), &["A"], || {
            says("A");
            runtime();
            exit(3)
        }),
        case("run_leaves_a_detached_tree_alone", Code(0), &["A", "after"], || {
            let code = run(|| {
                says("A");
                runtime();
            });
            say("after");
            Ok(code)
        }),
        case("a_detached_tree_is_finalized_by_a_handler", Code(0), &["runtime", "script", "A"], || {
            says("A");
            register(|| runtime().finalize());
            OK
        }),
        // Its own drain ends where the process does.
        case("c_exit_in_a_detached_drain_leaves_the_rest", Code(3), &["runtime", "A"], || {
            says("A");
            let runtime = runtime();
            let leaves = runtime.subinterpreter("leaves");
            leaves.stack().register(|| c_exit(3));
            runtime.stack().register(|| say("runtime"));
            runtime.finalize().unwrap();
            OK
        }),
        case("a_scope_in_a_detached_tree_is_left_alone", Code(3), &["A"], || {
            says("A");
            runtime().enter(|| {
                transaction("install", |install| {
                    step(install.stack(), "1");
                    std::process::exit(3)
                })
            })
        }),
        case("a_child_has_nothing_of_a_detached_tree", Code(0), &["own", "child 0", "runtime", "script"], || {
            let runtime = runtime();
            let forked = fork(|| {
                runtime.stack().register(|| say("own"));
                runtime.finalize().unwrap();
                OK
            });
            after(forked, |status| {
                say_child(status);
                runtime.finalize().unwrap();
            })
        }),
        case(
            "a_child_adopts_a_detached_tree_by_itself",
            Code(0),
            &["nothing adopted", "runtime", "script", "child 0"],
            || {
                let runtime = runtime();
                let forked = fork(|| {
                    assert!(adopt_after_fork());
                    say(if runtime.stack().is_empty() { "nothing adopted" } else { "adopted" });
                    assert!(runtime.stack().adopt_after_fork());
                    runtime.finalize().unwrap();
                    OK
                });
                after(forked, say_child)
            },
        ),
    ]
}

/// If nothing could guarantee a rollback, the body is not called.
fn refused() -> Vec<Case> {
    /// Another library's handler, which runs after the process stack has closed.
    extern "C" fn later() {
        refused_scope();
    }
    fn add_later() {
        // SAFETY: the handler is a function that does not unwind. Registered first, it runs last.
        assert_eq!(unsafe { libc::atexit(later) }, 0);
    }
    let late = ["A", "returned Refused", "Some(\"process > late\") Some(\"late\")"];
    vec![
        case("a_scope_past_std_exit_is_refused", Code(3), &late, || {
            add_later();
            says("A");
            std::process::exit(3)
        }),
        case("a_scope_past_exit_is_refused", Code(3), &late, || {
            add_later();
            says("A");
            exit(3)
        }),
        case("a_scope_past_main_is_refused", Code(0), &late, || {
            add_later();
            says("A");
            OK
        }),
        case(
            "a_scope_in_a_finalized_interpreter_is_refused",
            Code(0),
            &["returned Refused", "Some(\"process > plugin > late\") Some(\"late\")"],
            || {
                let plugin = Interpreter::new("plugin");
                plugin.finalize().unwrap();
                plugin.enter(refused_scope);
                OK
            },
        ),
        case(
            "a_scope_in_one_of_a_finalized_interpreter",
            Code(0),
            &["returned Refused", "Some(\"process > outer > plugin > late\") Some(\"late\")"],
            || {
                let outer = Interpreter::new("outer");
                let plugin = outer.subinterpreter("plugin");
                outer.finalize().unwrap();
                plugin.enter(refused_scope);
                OK
            },
        ),
        case(
            "a_scope_in_a_body_rolled_back_is_refused",
            Code(3),
            &["undo 1", "returned Refused", "Some(\"process > install > late\") Some(\"late\")"],
            || {
                static OVER: Barrier = Barrier::new(2);
                static TOLD: Barrier = Barrier::new(2);
                register(|| {
                    OVER.wait();
                    TOLD.wait();
                });
                let (begun, has_begun) = channel();
                thread::spawn(move || {
                    Interpreter::scope("install", |install| -> Done {
                        step(install.stack(), "1");
                        begun.send(()).unwrap();
                        OVER.wait();
                        refused_scope();
                        TOLD.wait();
                        Ok(())
                    })
                    .unwrap_err();
                });
                has_begun.recv().unwrap();
                std::process::exit(3)
            },
        ),
    ]
}

/// Every row of the table of the process's outcome.
#[expect(clippy::too_many_lines, reason = "a table")]
fn outcomes() -> Vec<Case> {
    use Outcome::{Failure, Success};
    /// Registers the handlers, then leaves.
    fn then(leave: impl FnOnce() -> Ended) -> Ended {
        says_outcome(process_stack());
        leave()
    }
    let mut cases = vec![
        // An unknown end counts as good.
        outcome("outcome_of_main_that_returns", 0, Success, || then(|| OK)),
        outcome("outcome_of_main_that_returns_a_status", 3, Success, || then(|| Ok(ExitCode::from(3)))),
        outcome("outcome_of_main_that_returns_an_err", 1, Success, || then(|| Err("bad".into()))),
        outcome("outcome_of_main_that_panics", 101, Success, || then(|| panic!("in main"))),
        outcome("outcome_of_std_exit_0", 0, Success, || then(|| std::process::exit(0))),
        outcome("outcome_of_std_exit_3", 3, Success, || then(|| std::process::exit(3))),
        outcome("outcome_of_c_exit_0", 0, Success, || then(|| c_exit(0))),
        outcome("outcome_of_c_exit_3", 3, Success, || then(|| c_exit(3))),
        // The end is known.
        outcome("outcome_of_exit_0", 0, Success, || then(|| exit(0))),
        outcome("outcome_of_exit_3", 3, Failure, || then(|| exit(3))),
        outcome("outcome_of_exit_minus_1", 255, Failure, || then(|| exit(-1))),
        outcome("outcome_of_exit_3_on_a_thread", 3, Failure, || {
            then(|| {
                let _ = thread::spawn(|| exit(3)).join();
                OK
            })
        }),
        outcome("outcome_of_run_of_nothing", 0, Success, || run_ends(|| ())),
        outcome("outcome_of_run_of_ok", 0, Success, || run_ends(|| Ok::<_, String>(()))),
        outcome("outcome_of_run_of_an_err", 1, Failure, || run_ends(|| Err::<(), _>("bad"))),
        outcome("outcome_of_run_of_a_panic", 101, Failure, || run_ends(|| panic!("in the body"))),
        outcome("outcome_of_run_of_exit_code_0", 0, Success, || run_ends(|| ExitCode::SUCCESS)),
        outcome("outcome_of_run_of_exit_code_3", 3, Failure, || run_ends(|| ExitCode::from(3))),
        outcome("outcome_of_run_of_an_ok_exit_code_3", 3, Failure, || run_ends(|| Ok::<_, String>(ExitCode::from(3)))),
        outcome("outcome_of_run_of_exit_3", 3, Failure, || run_ends(|| Exit(3))),
        outcome("outcome_of_run_of_an_unknown_value", 7, Success, || run_ends(|| Unknown)),
        outcome("outcome_of_exit_0_in_run", 0, Success, || run_ends(|| -> () { exit(0) })),
        outcome("outcome_of_exit_3_in_run", 3, Failure, || run_ends(|| -> () { exit(3) })),
        outcome("outcome_of_std_exit_3_in_run", 3, Success, || run_ends(|| -> () { std::process::exit(3) })),
        // The outcome is that of the work: a handler's request or failure does not change it.
        outcome("outcome_after_a_handler_that_asks_for_3", 3, Success, || {
            then(|| {
                register(|| Err(Exit(3)));
                exit(0)
            })
        }),
        outcome("outcome_after_a_handler_that_asks_for_0", 0, Failure, || {
            then(|| {
                register(|| Err(Exit(0)));
                exit(3)
            })
        }),
        outcome("outcome_after_a_handler_that_fails", 0, Success, || {
            run_ends(|| {
                register(|| Err("disk full"));
                register(|| panic!("in a handler"));
            })
        }),
        outcome("outcome_after_a_handler_that_exits_with_3", 3, Success, || {
            run_ends(|| {
                register(|| exit(3));
            })
        }),
        outcome("outcome_after_a_handler_calls_c_exit_0", 0, Failure, || {
            run_ends(|| {
                register(|| c_exit(0));
                Err::<(), _>("bad")
            })
        }),
        outcome("outcome_after_a_handler_calls_c_exit_3", 3, Success, || {
            run_ends(|| {
                register(|| c_exit(3));
            })
        }),
        // Drained by hand.
        outcome("outcome_of_a_close_of_the_process_stack", 3, Success, || {
            then(|| {
                process_stack().close().unwrap();
                exit(3)
            })
        }),
        outcome("outcome_of_a_close_with_failure", 0, Failure, || {
            then(|| {
                process_stack().close_with(Failure).unwrap();
                exit(0)
            })
        }),
        // An interpreter that was never finalized has failed, however well the process ends.
        outcome("outcome_of_an_interpreter_at_exit_0", 0, Failure, || {
            static PLUGIN: OnceLock<Interpreter> = OnceLock::new();
            says_outcome(PLUGIN.get_or_init(|| Interpreter::new("plugin")).stack());
            exit(0)
        }),
        outcome("outcome_of_an_interpreter_at_the_end_of_run", 0, Failure, || {
            static PLUGIN: OnceLock<Interpreter> = OnceLock::new();
            Ok(run(|| says_outcome(PLUGIN.get_or_init(|| Interpreter::new("plugin")).stack())))
        }),
        outcome("outcome_of_an_interpreter_that_is_dropped", 0, Failure, || {
            says_outcome(Interpreter::new("plugin").stack());
            exit(0)
        }),
        case("outcome_of_each_run_is_its_own", Code(0), &["failure", "success", "success"], || {
            let _ = run_ends(|| Err::<(), _>("bad"));
            let code = run_ends(|| ());
            says_outcome(process_stack()); // for the hook
            code
        }),
        case("outcome_in_a_child_is_the_childs", Code(0), &["failure", "child 3", "success"], || {
            says_outcome(process_stack());
            let forked = fork(|| {
                says_outcome(process_stack());
                exit(3)
            });
            after(forked, say_child)
        }),
    ];
    // Thread-locals are dropped between the two drains of `exit`, so they register for the second.
    if DROPS_THREAD_LOCALS {
        cases.extend([
            outcome("outcome_for_a_thread_local_at_exit_0", 0, Success, || {
                LATE.set(Some(Late));
                register(|| ());
                exit(0)
            }),
            outcome("outcome_for_a_thread_local_at_exit_3", 3, Failure, || {
                LATE.set(Some(Late));
                register(|| ());
                exit(3)
            }),
        ]);
    }
    cases
}

/// Whether the process is exiting, as its handlers see it.
fn exiting() -> Vec<Case> {
    fn tells(what: &'static str) {
        register(move || say(&format!("{what}: {}", is_exiting())));
    }
    vec![
        case("std_exit_is_exiting", Code(3), &["before: false", "handler: true"], || {
            tells("handler");
            say(&format!("before: {}", is_exiting()));
            std::process::exit(3)
        }),
        case("exit_is_exiting", Code(3), &["handler: true"], || {
            tells("handler");
            exit(3)
        }),
        case("the_end_of_main_is_exiting", Code(0), &["handler: true"], || {
            tells("handler");
            OK
        }),
        case("the_end_of_run_is_not_exiting", Code(0), &["run: false", "after: false", "hook: true"], || {
            let code = run(|| tells("run"));
            say(&format!("after: {}", is_exiting()));
            tells("hook");
            Ok(code)
        }),
        case("exit_in_run_is_exiting", Code(3), &["run: true"], || {
            Ok(run(|| {
                tells("run");
                exit(3)
            }))
        }),
        case("another_thread_sees_the_exit", Code(3), &["thread: true"], || {
            register(|| {
                thread::spawn(|| say(&format!("thread: {}", is_exiting()))).join().unwrap();
            });
            exit(3)
        }),
        case("a_rollback_sees_the_exit", Code(3), &["rollback: true"], || {
            transaction("install", |install| {
                install.stack().on_failure(|| say(&format!("rollback: {}", is_exiting())));
                std::process::exit(3)
            })
        }),
        case(
            "a_child_of_an_exit_is_not_exiting",
            Code(3),
            &["child: false", "child's: true", "child 4", "parent: true"],
            || {
                register(|| match fork(|| OK) {
                    Err(_) => {
                        say(&format!("child: {}", is_exiting()));
                        tells("child's");
                        exit(4)
                    }
                    Ok(status) => {
                        say_child(status);
                        say(&format!("parent: {}", is_exiting()));
                    }
                });
                std::process::exit(3)
            },
        ),
        case(
            "a_child_that_exits_leaves_its_parent_be",
            Code(0),
            &["child's: true", "child 3", "parent: false"],
            || {
                let forked = fork(|| {
                    tells("child's");
                    exit(3)
                });
                after(forked, |status| {
                    say_child(status);
                    say(&format!("parent: {}", is_exiting()));
                })
            },
        ),
    ]
}

/// The number of steps in a raced transaction.
const STEPS: usize = 5;

/// Another thread leaves while a body ends: either all steps are committed or all are undone, each once and in order.
pub(crate) fn trials() -> Vec<Trial> {
    let race = |way: &'static str| {
        Trial::test(format!("a_commit_raced_by_{way}_is_whole"), move || {
            let (mut lead, mut stride) = (0_i64, 1000_i64);
            let [mut committed, mut undone] = [0, 0];
            let (runs, mut before) = (runs_or(100), None);
            for _ in 0..runs {
                let output = run_child("transaction", &[way.to_owned(), lead.to_string()]);
                let was_committed = ended_whole(&output).map_err(|why| format!("{why}: {output:?}"))?;
                *if was_committed { &mut committed } else { &mut undone } += 1;
                // Slow down whichever thread won: more while it keeps winning, less once it loses.
                stride = if before == Some(was_committed) { stride * 2 } else { (stride / 2).max(50) };
                lead += if was_committed { -stride } else { stride };
                before = Some(was_committed);
            }
            // With only a few runs, all may end the same way.
            if runs >= 50 && (committed == 0 || undone == 0) {
                return Err(format!("{committed} committed and {undone} undone: no race").into());
            }
            Ok(())
        })
    };
    ["std", "c", "exit"].into_iter().map(race).collect()
}

/// Returns whether all steps were committed, or an error unless exactly the expected lines appear in order.
fn ended_whole(output: &std::process::Output) -> Result<bool, String> {
    let out = String::from_utf8_lossy(&output.stdout);
    // The body's thread may not get to say its result before the process ends.
    let (told, ran): (Vec<&str>, Vec<&str>) = out.lines().partition(|line| line.starts_with("returned"));
    let all = |what: &str| {
        let steps = (0..STEPS).rev().map(|step| format!("{what} {step}"));
        ran.iter().eq(&steps.chain(["below".to_owned()]).collect::<Vec<_>>())
    };
    let committed = match (all("commit"), all("undo")) {
        (true, false) => true,
        (false, true) => false,
        _ => return Err("neither committed nor undone".into()),
    };
    let right = if committed { "returned Ok" } else { "returned RolledBack" };
    if told.iter().any(|told| *told != right) {
        return Err(format!("not {right}"));
    }
    if status_of(output) != Code(3) || !output.stderr.is_empty() {
        return Err("another end".into());
    }
    Ok(committed)
}

/// One thread finishes a body while another leaves. One of them gets a head start of this many turns.
pub(crate) fn child() -> Ended {
    static START: Barrier = Barrier::new(2);
    fn turn(times: i64) {
        (0..times).for_each(|_| std::hint::spin_loop());
    }
    let arguments: Vec<String> = std::env::args().collect();
    let [_, way, lead] = &arguments[..] else { return Err("way, lead".into()) };
    let (way, lead) = (way.clone(), lead.parse::<i64>().map_err(|_| "lead")?);
    says("below");
    thread::spawn(move || {
        START.wait();
        turn(lead);
        match &*way {
            "std" => std::process::exit(3),
            "c" => c_exit(3),
            _ => exit(3),
        }
    });
    let result = Interpreter::scope("raced", |raced| {
        for place in 0..STEPS {
            raced.stack().on_success(move || say(&format!("commit {place}")));
            raced.stack().on_failure(move || say(&format!("undo {place}")));
        }
        START.wait();
        turn(-lead);
        Ok(())
    });
    say_result(&result);
    loop {
        thread::park();
    }
}
