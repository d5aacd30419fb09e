//! What a forked child runs: what it registered itself, and nothing of its parent's.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use exitstack::{
    CloseError, Exit, ExitStack, HandlerError, Interpreter, SharedExitStack, adopt_after_fork, exit, process_stack,
    register, run,
};

use crate::Status::Code;
use crate::child::{c_exit, say, says};
use crate::{Case, Ended, OK, case, minutes};

/// A captured value, or an error, that may be dropped only in the process that created it.
#[derive(Debug)]
pub(crate) struct Bomb(libc::pid_t);

impl Bomb {
    pub(crate) fn new() -> Self {
        Self(pid())
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        if pid() != self.0 {
            say("dropped in the wrong process");
        }
    }
}

impl std::fmt::Display for Bomb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "returned in process {}", self.0)
    }
}

impl std::error::Error for Bomb {}

pub(crate) fn pid() -> libc::pid_t {
    // SAFETY: no preconditions.
    unsafe { libc::getpid() }
}

/// Forks. The child runs `child` and ends with its result; the parent waits for it and returns its status.
pub(crate) fn fork(child: impl FnOnce() -> Ended) -> Result<i32, Ended> {
    // SAFETY: the child runs only what is tested.
    let forked = unsafe { libc::fork() };
    in_both(forked, child)
}

/// Forks this many times and runs `child`, with the number of earlier forks, in each child. Returns how many of them
/// ended with 7.
pub(crate) fn fork_each(times: i32, child: impl Fn(i32) -> Ended) -> Result<i32, Ended> {
    let mut ended = 0;
    for before in 0..times {
        match fork(|| child(before))? {
            7 => ended += 1,
            status => say_child(status),
        }
    }
    Ok(ended)
}

fn in_both(forked: libc::pid_t, child: impl FnOnce() -> Ended) -> Result<i32, Ended> {
    if forked == 0 {
        // SAFETY: no preconditions; a child that hangs is killed.
        unsafe { libc::alarm(20 * minutes()) };
        return Err(child());
    }
    let mut status = 0;
    // SAFETY: `status` is a live `c_int`.
    let waited = unsafe { libc::waitpid(forked, &raw mut status, 0) };
    assert_eq!(waited, forked);
    Ok(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) })
}

/// Ends the process at once, as a parent whose handlers must not run.
pub(crate) fn leave() -> ! {
    // SAFETY: no preconditions; this runs nothing.
    unsafe { libc::_exit(0) }
}

/// Forks after the process's last drain. The main thread, which exits with status 7, is then in another library's
/// handler, which was given to C either before our first hook or after it.
fn fork_past_the_last_drain(from_before: bool, child: fn() -> Ended) -> ! {
    static RUNS: Barrier = Barrier::new(2);
    static FORKED: Barrier = Barrier::new(2);
    extern "C" fn handler() {
        RUNS.wait();
        FORKED.wait();
    }
    fn add() {
        // SAFETY: the handler is a function that does not unwind.
        assert_eq!(unsafe { libc::atexit(handler) }, 0);
    }
    if from_before {
        add();
    }
    register(move || {
        say("parent's");
        if !from_before {
            add();
        }
    });
    thread::spawn(move || {
        RUNS.wait();
        if let Ok(status) = fork(child) {
            say_child(status);
            FORKED.wait();
        }
    });
    std::process::exit(7)
}

/// Forks in a way that `pthread_atfork` hooks do not notice.
pub(crate) fn raw_clone(child: impl FnOnce() -> Ended) -> Result<i32, Ended> {
    // SAFETY: `clone` without a new stack and without shared memory is a fork.
    let forked = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    in_both(libc::pid_t::try_from(forked).expect("a pid"), child)
}

/// The messages of all failures, without their prefixes.
fn last_words(error: &CloseError) -> String {
    let last_word = |error: &HandlerError| format!("{error:#}").split(": ").last().unwrap_or_default().to_owned();
    error.iter().map(last_word).collect::<Vec<_>>().join(", ")
}

/// Says with which status a child ended.
pub(crate) fn say_child(status: i32) {
    say(&format!("child {status}"));
}

fn say_child_and_leave(status: i32) {
    say_child(status);
    leave()
}

/// In the parent, calls `then` with the status of the child.
pub(crate) fn after(forked: Result<i32, Ended>, then: impl FnOnce(i32)) -> Ended {
    match forked {
        Err(in_child) => in_child,
        Ok(status) => {
            then(status);
            OK
        }
    }
}

/// Forks a child that registers a handler of its own and leaves.
fn a_child_registers_and(leave: fn() -> Ended) -> Ended {
    says("A");
    let forked = fork(|| {
        says("own");
        leave()
    });
    after(forked, say_child)
}

/// An interpreter with a handler, positioned between two handlers of the process stack.
fn plugin_between_handlers() -> Interpreter {
    says("A");
    let plugin = Interpreter::new("plugin");
    plugin.stack().register(|| say("p1"));
    says("B");
    plugin
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(crate) fn cases() -> Vec<Case> {
    vec![
        // Two threads of the parent leave while a handler forks.
        case("a_child_forked_as_two_threads_leave_ends", Code(3), &["child: 3"], || {
            let (leave, wait_leave) = mpsc::channel();
            register(move || {
                leave.send(()).unwrap();
                (0..1000).for_each(|_| thread::yield_now()); // gives `main` time to return before the fork
                if let Ok(status) = fork(|| OK) {
                    say(&format!("child: {status}"));
                }
            });
            thread::spawn(|| exit(3));
            wait_leave.recv().unwrap();
            Ok(ExitCode::from(3))
        }),
        // The failure was merged into the outer drain before a handler forks.
        case("a_child_of_a_nested_drain_inherits_no_failure", Code(0), &["child: 5"], || {
            let root = Interpreter::new("root");
            let parent = root.subinterpreter("parent");
            let child = parent.subinterpreter("child");
            child.stack().register(move || {
                let _ = parent.finalize(); // receives the failure
                match fork(|| Ok(ExitCode::from(u8::from(root.finalize().is_ok()) * 5))) {
                    Ok(status) => say(&format!("child: {status}")),
                    Err(ended) => std::process::exit(if ended.is_ok() { 5 } else { 1 }),
                }
            });
            child.stack().register(|| Err("the parent's"));
            let _ = child.finalize();
            OK
        }),
        // A handler forks in a drain that already has failures.
        case("a_child_is_told_its_own_failure_alone", Code(0), &["in the child", "child 0", "two, one"], || {
            let root = Interpreter::new("root");
            let parent = root.subinterpreter("parent");
            let child = parent.subinterpreter("child");
            child.stack().register(move || {
                assert_eq!(root.finalize().unwrap_err().errors().len(), 2);
                match fork(|| OK) {
                    Err(_) => Err("in the child"),
                    Ok(status) => {
                        say_child(status);
                        Ok(())
                    }
                }
            });
            child.stack().register(|| Err("one"));
            child.stack().register(|| Err("two"));
            say(&last_words(&parent.finalize().unwrap_err()));
            OK
        }),
        // The child was forked after its parent's last drain.
        case("c_exit_past_the_last_drain_runs_a_childs_own", Code(7), &["parent's", "own", "child 4"], || {
            fork_past_the_last_drain(false, || {
                says("own");
                c_exit(4)
            })
        }),
        // The child was forked after its parent's last drain.
        case("exit_past_the_last_drain_runs_a_childs_own", Code(7), &["parent's", "own", "child 4"], || {
            fork_past_the_last_drain(false, || {
                says("own");
                exit(4)
            })
        }),
        // The child was forked when all exit hooks of its parent had run.
        case("c_exit_past_every_hook_runs_a_childs_own", Code(7), &["parent's", "plugin", "own", "child 4"], || {
            fork_past_the_last_drain(true, || {
                says("own");
                let plugin = Interpreter::new("plugin");
                plugin.stack().register(|| say("plugin"));
                c_exit(4)
            })
        }),
        // The child was forked when all exit hooks of its parent had run.
        case("exit_past_every_hook_runs_a_childs_own", Code(7), &["parent's", "own", "child 4"], || {
            fork_past_the_last_drain(true, || {
                says("own");
                exit(4)
            })
        }),
        case("what_comes_past_the_last_drain_is_not_adopted", Code(0), &["adopted: false, 0 wait", "child 0"], || {
            extern "C" fn later() {
                let adopted = adopt_after_fork();
                say(&format!("adopted: {adopted}, {} wait", process_stack().len()));
            }
            // SAFETY: the handler is a function that does not unwind. Registered first, it runs last.
            assert_eq!(unsafe { libc::atexit(later) }, 0);
            says("parent's");
            after(fork(|| OK), say_child_and_leave)
        }),
        case("what_was_refused_a_place_is_in_a_child_too", Code(0), &["refuses", "child 0"], || {
            let parent = Interpreter::new("parent");
            let own = parent.clone();
            parent.stack().register(move || {
                while own.stack().try_register(|| ()).is_ok() {}
                let late = own.subinterpreter("late"); // refused, because the drain accepts no more
                let refuses = || late.stack().try_register(|| ()).is_err();
                assert!(refuses());
                let in_child = || {
                    say(if refuses() { "refuses" } else { "takes" });
                    leave()
                };
                if let Ok(status) = fork(in_child) {
                    say_child(status);
                }
            });
            parent.finalize().unwrap();
            OK
        }),
        case("a_child_forked_in_a_drain_has_its_own_count", Code(0), &["takes", "child 0"], || {
            let elsewhere = Interpreter::new("elsewhere");
            let drained = Interpreter::new("drained");
            drained.stack().register(move || {
                let takes = || elsewhere.stack().try_register(|| ()).is_ok();
                while takes() {} // until this thread's limit in this drain is reached
                let in_child = || {
                    say(if takes() { "takes" } else { "refuses" });
                    leave()
                };
                if let Ok(status) = fork(in_child) {
                    say_child(status);
                }
            });
            drained.finalize().unwrap();
            OK
        }),
        case(
            "a_forked_childs_failure_is_told_or_reported",
            Code(0),
            &["told", "child 0", "reported", "child 0"],
            || {
                fn forks() -> Result<(), &'static str> {
                    match fork(|| OK) {
                        Err(_) => Err("in the child"),
                        Ok(status) => {
                            say_child(status);
                            Ok(())
                        }
                    }
                }
                exitstack::report::set_hook(Box::new(|_| say("reported")));
                let parent = pid();
                let closed = Interpreter::new("closed");
                closed.stack().register(forks);
                if closed.stack().close().is_err() {
                    say("told");
                    leave();
                }
                let dropped = Interpreter::new("dropped");
                dropped.stack().register(forks);
                drop(dropped);
                if pid() != parent {
                    leave();
                }
                OK
            },
        ),
        case("a_finalized_interpreter_does_not_adopt", Code(0), &["adopted: false, 0 wait", "child 0"], || {
            let plugin = Interpreter::new("plugin");
            plugin.stack().register(|| say("parent's"));
            let forked = fork(|| {
                plugin.finalize().unwrap();
                let adopted = plugin.stack().adopt_after_fork();
                say(&format!("adopted: {adopted}, {} wait", plugin.stack().len()));
                OK
            });
            after(forked, say_child_and_leave)
        }),
        // The child neither runs nor drops them.
        case("a_child_ignores_a_values_inherited_handlers", Code(0), &["own", "child 0", "parent's"], || {
            let bomb = Bomb::new();
            let mut value = Some(SharedExitStack::new());
            let stack = value.as_ref().unwrap();
            let id = stack.register(move || {
                let _bomb = bomb;
                say("parent's");
            });
            let forked = fork(|| {
                let stack = value.take().unwrap();
                assert!(stack.is_empty() && !stack.unregister(id) && stack.run_now(id).is_none());
                stack.clear();
                drop(stack.pop_all());
                stack.register(|| say("own"));
                assert_eq!(stack.len(), 1);
                OK // dropping the stack drains it
            });
            after(forked, say_child)
        }),
        case("a_raw_clone_has_values_of_its_own", Code(0), &["own", "child 0", "parent's"], || {
            let value = SharedExitStack::new();
            value.register(|| say("parent's"));
            let cloned = raw_clone(|| {
                assert!(value.is_empty());
                value.register(|| say("own"));
                value.close().unwrap();
                leave()
            });
            after(cloned, say_child)
        }),
        // A handler forks and then registers in the child.
        case(
            "a_fork_in_a_close_leaves_the_child_its_own",
            Code(0),
            &["own", "in the child", "child 0", "below", "above"],
            || {
                let value = Arc::new(SharedExitStack::new());
                value.register(|| say("below"));
                let stack = Arc::clone(&value);
                value.register(move || match fork(|| OK) {
                    Err(_) => {
                        stack.register(|| say("own"));
                        Err("in the child")
                    }
                    Ok(status) => {
                        say_child(status);
                        Ok(())
                    }
                });
                value.register(|| Err("above"));
                say(&last_words(&value.close().unwrap_err()));
                OK
            },
        ),
        case("a_daemon_adopts_a_value_by_itself", Code(0), &["copied", "value", "plugin", "A", "child 0"], || {
            says("A");
            let value = SharedExitStack::new();
            value.register(|| say("value"));
            let mut local = Some(ExitStack::new());
            local.as_ref().unwrap().register(|| say("copied"));
            let plugin = Interpreter::new("plugin");
            plugin.stack().register(|| say("plugin"));
            let forked = fork(|| {
                assert!(adopt_after_fork());
                assert_eq!((process_stack().len(), plugin.stack().len(), value.len()), (1, 1, 0));
                assert!(value.adopt_after_fork());
                assert!(value.adopt_after_fork() && adopt_after_fork());
                assert_eq!((process_stack().len(), plugin.stack().len(), value.len()), (1, 1, 1));
                drop(local.take()); // a plain value, which was copied
                value.close().unwrap();
                exit(0)
            });
            after(forked, say_child_and_leave)
        }),
        case("a_grandchild_adopts_a_value_of_both_before_it", Code(0), &["own", "B", "A", "grandchild 0"], || {
            let value = SharedExitStack::new();
            value.register(|| say("A"));
            let forked = fork(|| {
                value.register(|| say("B"));
                let forked = fork(|| {
                    value.register(|| say("own"));
                    assert!(value.adopt_after_fork());
                    value.close().unwrap();
                    OK
                });
                after(forked, |status| {
                    say(&format!("grandchild {status}"));
                    leave()
                })
            });
            after(forked, |_| leave())
        }),
        case("a_child_may_use_the_innermost_of_10_000_first", Code(0), &["own", "child 0"], || {
            let mut line = vec![Interpreter::new("0")];
            for n in 1..10_000 {
                line.push(line[n - 1].subinterpreter("inside"));
            }
            let forked = fork(|| {
                // Everything around it gets its position as well: one after the other, not recursively.
                line[9_999].stack().register(|| say("own"));
                line[0].finalize().unwrap();
                leave()
            });
            after(forked, say_child)
        }),
        case("a_child_that_refuses_below_takes_above", Code(0), &["takes", "child 0"], || {
            let plugin = Interpreter::new("plugin");
            let inner = plugin.subinterpreter("inner");
            let forked = fork(|| {
                plugin.stack().register(|| ()); // has its position in the child; the inner one has none
                let elsewhere = Interpreter::new("elsewhere");
                let drained = Interpreter::new("drained");
                drained.stack().register(move || {
                    while elsewhere.stack().try_register(|| ()).is_ok() {}
                    assert!(inner.stack().try_register(|| ()).is_err());
                });
                drained.finalize().unwrap();
                say(if plugin.stack().try_register(|| ()).is_ok() { "takes" } else { "refuses" });
                leave()
            });
            after(forked, say_child)
        }),
        case("a_child_registers_above_any_threads_handlers", Code(0), &["own", "A", "child 0"], || {
            says("A");
            // More than the forking thread has reserved ids for: these ids belong to the other thread and are greater.
            thread::spawn(|| (0..40).for_each(|_| _ = register(|| ()))).join().unwrap();
            let forked = fork(|| {
                let id = register(|| say("not run"));
                assert!(adopt_after_fork());
                assert!(process_stack().unregister(id));
                says("own");
                OK
            });
            after(forked, say_child_and_leave)
        }),
        case("a_grandchild_does_not_drop_what_failed_before", Code(0), &["grandchild 0", "child 0"], || {
            let x = Interpreter::new("x");
            let own = x.clone();
            x.stack().register(move || match fork(|| OK) {
                Err(_) => {
                    own.stack().register(|| {
                        if let Ok(status) = fork(|| OK) {
                            say(&format!("grandchild {status}"));
                        }
                    });
                    Err(Bomb::new())
                }
                Ok(status) => {
                    say_child(status);
                    Ok(())
                }
            });
            let _ = x.stack().close();
            OK
        }),
        case("a_value_emptied_before_a_fork_drains_after_it", Code(0), &["own", "child 0"], || {
            let value = SharedExitStack::new();
            value.register(|| ());
            value.close().unwrap();
            let forked = fork(|| {
                value.register(|| say("own"));
                drop(value);
                leave()
            });
            after(forked, say_child)
        }),
        case("a_grandchild_adopts_one_of_both_at_one_place", Code(0), &["B", "A", "old", "end"], || {
            says("old");
            let plugin = Interpreter::new("plugin");
            plugin.stack().register(|| say("A"));
            let forked = fork(|| {
                plugin.stack().register(|| say("B")); // gives it a position in this process as well
                let forked = fork(|| {
                    assert!(adopt_after_fork());
                    // The handler's drain must skip the plugin, and so looks for the plugin's position.
                    plugin.stack().register(|| process_stack().close());
                    plugin.finalize().unwrap();
                    say("end");
                    leave()
                });
                after(forked, |_| leave())
            });
            after(forked, |_| leave())
        }),
        case("adopting_an_unforked_value_changes_nothing", Code(0), &["B", "A"], || {
            let value = SharedExitStack::new();
            value.register(|| say("A"));
            value.register(|| say("B"));
            assert!(value.adopt_after_fork() && adopt_after_fork());
            value.close().unwrap();
            OK
        }),
        case(
            "a_child_adopts_in_the_order_of_registration",
            Code(0),
            &["Y", "X", "B", "p2", "p1", "A", "child 4"],
            || {
                let plugin = plugin_between_handlers();
                let forked = fork(|| {
                    says("X");
                    plugin.stack().register(|| say("p2"));
                    says("Y");
                    assert!(adopt_after_fork());
                    exit(4)
                });
                after(forked, say_child_and_leave)
            },
        ),
        case("a_child_adopts_below_its_own_interpreter", Code(0), &["o", "B", "p1", "A", "child 4"], || {
            let _alive = plugin_between_handlers();
            let forked = fork(|| {
                let own = Interpreter::new("own");
                own.stack().register(|| say("o"));
                assert!(adopt_after_fork());
                exit(4)
            });
            after(forked, say_child_and_leave)
        }),
        case(
            "a_child_places_an_interpreter_at_first_use",
            Code(0),
            &["Y", "p2", "X", "child 4", "B", "p1", "A"],
            || {
                let plugin = plugin_between_handlers();
                let forked = fork(|| {
                    says("X");
                    plugin.stack().register(|| say("p2"));
                    says("Y");
                    exit(4)
                });
                let ended = after(forked, say_child);
                std::mem::forget(plugin);
                ended
            },
        ),
        case("adopting_twice_keeps_a_childs_interpreter", Code(0), &["Y", "B", "q", "p1", "A", "child 4"], || {
            let plugin = plugin_between_handlers();
            let forked = fork(|| {
                let made = plugin.subinterpreter("made");
                made.stack().register(|| say("q"));
                says("Y");
                assert!(adopt_after_fork() && adopt_after_fork());
                exit(4)
            });
            after(forked, say_child_and_leave)
        }),
        // Other threads use the stacks at the moment of the fork.
        case("no_child_hangs_if_values_are_used_at_the_fork", Code(0), &["100 children"], || {
            static VALUE: SharedExitStack = SharedExitStack::new();
            static DONE: AtomicBool = AtomicBool::new(false);
            static RAN: AtomicUsize = AtomicUsize::new(0);
            fn counts() {
                RAN.fetch_add(1, Ordering::Relaxed);
            }
            exitstack::report::set_hook(Box::new(|_| ()));
            let shared = Arc::new(SharedExitStack::new());
            let over = Interpreter::new("over");
            over.finalize().unwrap();
            let (busy, started) = mpsc::channel();
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let (shared, over, busy) = (Arc::clone(&shared), over.clone(), busy.clone());
                    thread::spawn(move || {
                        busy.send(()).unwrap();
                        while !DONE.load(Ordering::Relaxed) {
                            for stack in [&VALUE, &shared] {
                                let bomb = Bomb::new();
                                stack.register(move || drop(bomb));
                                let id = stack.register(counts);
                                stack.unregister(id);
                                let _ = stack.pending();
                                stack.close().unwrap();
                            }
                            over.stack().register(counts);
                            exitstack::report::set_hook(Box::new(|_| ()));
                            let plugin = Interpreter::new("plugin");
                            plugin.stack().register(counts);
                            plugin.finalize().unwrap();
                        }
                    })
                })
                .collect();
            (0..3).for_each(|_| started.recv().unwrap());
            let forked = fork_each(100, |n| {
                if n % 2 == 0 {
                    adopt_after_fork(); // what other threads were using at the fork cannot be adopted
                }
                for stack in [&VALUE, &shared] {
                    let before = RAN.load(Ordering::Relaxed);
                    assert!(stack.is_empty());
                    (0..10).for_each(|_| _ = stack.register(counts));
                    assert_eq!(stack.len(), 10);
                    stack.close().unwrap();
                    assert_eq!(RAN.load(Ordering::Relaxed), before + 10);
                    drop(stack.pop_all());
                }
                assert!(over.stack().try_register(counts).is_err());
                let thread = thread::spawn(|| {
                    VALUE.register(counts);
                    VALUE.close().unwrap();
                    drop(exitstack::report::take_hook());
                });
                thread.join().unwrap();
                let plugin = Interpreter::new("plugin");
                plugin.stack().register(counts);
                plugin.finalize().unwrap();
                exit(7)
            });
            after(forked, |ended| {
                DONE.store(true, Ordering::Relaxed);
                for thread in threads {
                    thread.join().unwrap();
                }
                say(&format!("{ended} children"));
            })
        }),
        case("adoption_says_if_a_stack_was_busy_at_the_fork", Code(0), &["50 children"], || {
            static DONE: AtomicBool = AtomicBool::new(false);
            static RAN: AtomicUsize = AtomicUsize::new(0);
            fn counts() {
                RAN.fetch_add(1, Ordering::Relaxed);
            }
            let value = Arc::new(SharedExitStack::new());
            let plugin = Interpreter::new("plugin");
            let outer = plugin.clone();
            for stack in [process_stack(), plugin.stack(), &value] {
                (0..3).for_each(|_| _ = stack.register(counts));
            }
            let theirs = Arc::clone(&value);
            let (busy, started) = mpsc::channel();
            let thread = thread::spawn(move || {
                busy.send(()).unwrap();
                while !DONE.load(Ordering::Relaxed) {
                    for stack in [process_stack(), outer.stack(), &theirs] {
                        let id = stack.register(|| ());
                        stack.unregister(id);
                    }
                    drop(outer.subinterpreter("inner"));
                }
            });
            started.recv().unwrap();
            let mut right = 0;
            for _ in 0..50 {
                let forked = fork(|| {
                    if adopt_after_fork() {
                        assert!(process_stack().len() >= 3 && plugin.stack().len() >= 3);
                        process_stack().close().unwrap();
                        assert_eq!(RAN.load(Ordering::Relaxed), 6);
                    }
                    RAN.store(0, Ordering::Relaxed);
                    let all = value.adopt_after_fork();
                    value.close().unwrap();
                    assert_eq!(RAN.load(Ordering::Relaxed), if all { 3 } else { 0 });
                    leave()
                });
                right += i32::from(matches!(forked, Ok(0)));
            }
            DONE.store(true, Ordering::Relaxed);
            thread.join().unwrap();
            say(&format!("{right} children"));
            leave()
        }),
        case("a_child_forked_past_the_last_drain_ends", Code(7), &["parent's", "child 4"], || {
            fork_past_the_last_drain(false, || c_exit(4))
        }),
        // A handler forks in `run` and then registers in the child.
        case("what_a_child_of_run_registers_runs", Code(0), &["own", "child 4", "A"], || {
            Ok(run(|| {
                says("A");
                let plugin = Interpreter::new("plugin");
                plugin.stack().register(|| match fork(|| OK) {
                    Err(_) => {
                        register(|| {
                            say("own");
                            Err(Exit(4))
                        });
                    }
                    Ok(status) => say_child(status),
                });
                std::mem::forget(plugin);
                Ok::<_, String>(())
            }))
        }),
        // The code decides the status of the child, not of the parent.
        case("a_forking_handlers_exit_code_is_the_childs", Code(5), &["child 9", "child 8"], || {
            fn forks(code: i32) {
                register(move || match fork(|| OK) {
                    Err(_) => Err(Exit(code)),
                    Ok(status) => {
                        say_child(status);
                        Ok(())
                    }
                });
            }
            forks(8);
            forks(9);
            exit(5)
        }),
        case("a_child_inherits_the_report_hook", Code(0), &["hook", "child 0"], || {
            exitstack::report::set_hook(Box::new(|_| say("hook")));
            register(|| ());
            let forked = fork(|| {
                SharedExitStack::new().register(|| Err("reported"));
                OK
            });
            after(forked, say_child)
        }),
        case("a_hundred_generations_each_run_their_own", Code(0), &["child 100"], || {
            static RAN: AtomicI32 = AtomicI32::new(0);
            fn generation(left: i32) -> i32 {
                if left == 0 {
                    return 0;
                }
                let forked = fork(|| {
                    register(|| _ = RAN.fetch_add(1, Ordering::Relaxed));
                    let below = generation(left - 1);
                    process_stack().close().unwrap();
                    exit(below + RAN.load(Ordering::Relaxed))
                });
                forked.unwrap_or_default()
            }
            let status = generation(100);
            say_child(status);
            OK
        }),
        // Where no page is wiped, forks are counted while they are in progress. This many would reach the next epoch.
        case("generations_that_fork_often_stay_themselves", Code(0), &["C", "child 0", "B", "child 0", "A"], || {
            fn generation(name: &'static str, below: &[&'static str]) -> Ended {
                assert!(process_stack().is_empty(), "{name} has handlers of another process");
                says(name);
                for _ in 0..300 {
                    match fork(|| if process_stack().is_empty() { leave() } else { Ok(1.into()) }) {
                        Ok(0) => assert_eq!(process_stack().len(), 1, "{name} has lost its handler"),
                        Ok(status) => say_child(status),
                        Err(in_child) => return in_child,
                    }
                }
                let [next, below @ ..] = below else { return OK };
                after(fork(|| generation(next, below)), say_child)
            }
            generation("A", &["B", "C"])
        }),
        // Several threads are the first to use a stack in the child.
        case("the_first_threads_of_a_child_lose_nothing", Code(0), &["50 children"], || {
            static RAN: AtomicUsize = AtomicUsize::new(0);
            static REPORTED: AtomicUsize = AtomicUsize::new(0);
            fn counts() {
                RAN.fetch_add(1, Ordering::Relaxed);
            }
            exitstack::report::set_hook(Box::new(|_| _ = REPORTED.fetch_add(1, Ordering::Relaxed)));
            register(|| _ = RAN.fetch_add(1000, Ordering::Relaxed));
            let outer = Interpreter::new("outer");
            let middle = outer.subinterpreter("middle");
            let inner = middle.subinterpreter("inner");
            inner.stack().register(|| _ = RAN.fetch_add(1000, Ordering::Relaxed));
            let mut right = 0;
            for adopts in (0..50).map(|n| n % 2 == 0) {
                let forked = fork(|| {
                    let start = Barrier::new(4);
                    thread::scope(|scope| {
                        for _ in 0..4 {
                            scope.spawn(|| {
                                start.wait();
                                SharedExitStack::new().register(|| Err("reported"));
                                for _ in 0..10 {
                                    inner.stack().register(counts);
                                }
                                middle.subinterpreter("new").stack().register(counts);
                                register(counts);
                            });
                        }
                    });
                    if adopts {
                        adopt_after_fork();
                    }
                    process_stack().close().unwrap();
                    let (ran, reported) = (RAN.load(Ordering::Relaxed), REPORTED.load(Ordering::Relaxed));
                    let all = 4 * 12 + if adopts { 2000 } else { 0 };
                    if (ran, reported) != (all, 4) {
                        say(&format!("{ran} of {all} ran, {reported} were reported"));
                    }
                    leave()
                });
                right += i32::from(matches!(forked, Ok(0)));
            }
            say(&format!("{right} children"));
            leave()
        }),
        // The parent's drain has already received a status when a handler forks.
        case("a_child_does_not_take_over_its_parents_status", Code(5), &["child: 0"], || {
            register(|| {
                if let Ok(status) = fork(|| exit(0)) {
                    say(&format!("child: {status}"));
                }
            });
            register(|| Err(exitstack::Exit(5)));
            OK
        }),
        // C's exit has resumed an interpreter's drain when a handler forks.
        case("a_child_takes_over_no_resumed_drains_status", Code(5), &["child: 0"], || {
            register(|| {
                if let Ok(status) = fork(|| OK) {
                    say(&format!("child: {status}"));
                }
            });
            let x = Interpreter::new("x");
            x.stack().register(|| c_exit(0));
            x.stack().register(|| Err(exitstack::Exit(5)));
            let _ = x.finalize();
            OK
        }),
        // Handlers of the parent returned the errors before another one forks.
        case("a_child_drops_none_of_its_parents_errors", Code(0), &["child: 0"], || {
            register(|| {
                if let Ok(status) = fork(|| OK) {
                    say(&format!("child: {status}"));
                }
            });
            register(|| Err(Bomb::new()));
            OK
        }),
        // Another thread of the parent is in a last drain at the fork. The limit of that drain does not apply in the
        // child.
        case(
            "a_child_of_a_last_drain_is_like_any_other",
            Code(0),
            &["plugin", "first", "plugin again", "second", "third", "child 0", "A"],
            || {
                says("A");
                let plugin = Interpreter::new("plugin");
                let own = plugin.clone();
                plugin.stack().register(move || {
                    let made = own.subinterpreter("made meanwhile");
                    let forked = thread::spawn(move || {
                        if let Ok(status) = fork(|| OK) {
                            return status;
                        }
                        assert!((0..70_000).all(|_| made.stack().try_register(|| ()).is_ok()));
                        own.stack().register(|| say("plugin"));
                        own.stack().close().unwrap();
                        own.stack().register(|| say("plugin again"));
                        says("first");
                        process_stack().close().unwrap();
                        says("second");
                        process_stack().close().unwrap();
                        says("third");
                        exit(0)
                    });
                    say(&format!("child {}", forked.join().unwrap()));
                });
                std::process::exit(0)
            },
        ),
        // Another thread of the parent is in a last drain at the fork. In the child, a handler keeps registering
        // itself.
        case("a_child_of_a_last_drain_has_its_own_limit", Code(0), &["ended"], || {
            fn again(ran: &'static AtomicUsize) {
                if ran.fetch_add(1, Ordering::Relaxed) < 200_000 {
                    register(move || again(ran));
                }
            }
            static RAN: AtomicUsize = AtomicUsize::new(0);
            register(|| {
                let made = Interpreter::new("made");
                let forked = thread::spawn(move || {
                    if let Ok(status) = fork(|| OK) {
                        return status;
                    }
                    made.stack().register(|| again(&RAN));
                    made.finalize().unwrap();
                    say(if RAN.load(Ordering::Relaxed) < 200_000 { "ended" } else { "without end" });
                    exit(0)
                });
                assert_eq!(forked.join().unwrap(), 0);
            });
            c_exit(0)
        }),
        case("what_a_child_has_printed_is_flushed_by_exit", Code(0), &["flushed, child 0"], || {
            after(
                fork(|| {
                    print!("flushed, ");
                    exit(0)
                }),
                say_child,
            )
        }),
        case("a_child_adopts_what_nested_interpreters_hold", Code(0), &["B", "C", "A", "child 0"], || {
            says("A");
            let outer = Interpreter::new("outer");
            let inner = outer.subinterpreter("inner");
            let innermost = inner.subinterpreter("innermost");
            inner.stack().register(|| say("B"));
            innermost.stack().register(|| say("C"));
            let forked = fork(|| {
                adopt_after_fork();
                exit(0)
            });
            after(forked, say_child_and_leave)
        }),
        // The child registers them after adopting, and its stack knows their ids.
        case("handlers_after_an_adoption_can_be_removed", Code(0), &["child 0"], || {
            (0..10).for_each(|_| _ = register(|| ()));
            let forked = fork(|| {
                (0..10).for_each(|_| _ = register(|| ()));
                adopt_after_fork();
                let ids: Vec<_> = (0..10).map(|_| register(|| say("removed"))).collect();
                assert!(ids.into_iter().all(|id| process_stack().unregister(id)));
                OK
            });
            after(forked, say_child)
        }),
        case("a_child_that_returns_runs_nothing_inherited", Code(0), &["child 0", "A"], || {
            says("A");
            after(fork(|| OK), say_child)
        }),
        case("a_forked_child_drops_nothing_of_its_parents", Code(0), &["child 0", "A"], || {
            let bomb = Bomb::new();
            register(move || {
                let _bomb = bomb;
                say("A");
            });
            let plugin = Interpreter::new("plugin");
            let bomb = Bomb::new();
            let kept = plugin.stack().register(move || drop(bomb));
            let forked = fork(move || {
                assert!(!plugin.stack().unregister(kept), "not the child's to remove");
                process_stack().clear();
                drop(plugin);
                OK
            });
            after(forked, say_child)
        }),
        case("a_forked_child_that_exits_runs_its_own", Code(0), &["own", "child 3", "A"], || {
            a_child_registers_and(|| std::process::exit(3))
        }),
        case("a_child_that_leaves_by_c_exit_runs_its_own", Code(0), &["own", "child 4", "A"], || {
            a_child_registers_and(|| c_exit(4))
        }),
        case("a_child_that_leaves_by_exit_runs_its_own", Code(0), &["own", "child 5", "A"], || {
            a_child_registers_and(|| exit(5))
        }),
        case("a_forked_child_that_panics_runs_its_own", Code(0), &["own", "child 101", "A"], || {
            a_child_registers_and(|| panic!("in the child"))
        }),
        case(
            "a_grandchild_runs_its_own_alone",
            Code(0),
            &["grandchild's", "grandchild 0", "child's", "child 0", "A"],
            || {
                says("A");
                let forked = fork(|| {
                    says("child's");
                    let forked = fork(|| {
                        says("grandchild's");
                        OK
                    });
                    after(forked, |status| say(&format!("grandchild {status}")))
                });
                after(forked, say_child)
            },
        ),
        case("a_fork_inside_a_handler", Code(0), &["own", "child 0", "A"], || {
            says("A");
            register(|| match fork(|| OK) {
                Err(_) => {
                    says("own");
                }
                Ok(status) => say_child(status),
            });
            OK
        }),
        case("a_fork_on_a_thread_while_main_drains", Code(0), &["own", "child 0", "A"], || {
            says("A");
            register(|| {
                let forked = thread::spawn(|| match fork(|| OK) {
                    Err(_) => {
                        says("own");
                        std::process::exit(0)
                    }
                    Ok(status) => status,
                });
                say(&format!("child {}", forked.join().unwrap()));
            });
            c_exit(0)
        }),
        case("a_raw_clone_runs_its_own_alone", Code(0), &["own", "child 3", "A"], || {
            let bomb = Bomb::new();
            register(move || {
                let _bomb = bomb;
                say("A");
            });
            let cloned = raw_clone(|| {
                says("own");
                c_exit(3)
            });
            after(cloned, say_child)
        }),
        case("a_raw_clone_of_a_raw_clone_runs_its_own_alone", Code(0), &["own", "4", "child's", "3", "A"], || {
            says("A");
            let cloned = raw_clone(|| {
                says("child's");
                let cloned = raw_clone(|| {
                    says("own");
                    c_exit(4)
                });
                if let Ok(status) = cloned {
                    say(&status.to_string());
                }
                c_exit(3)
            });
            after(cloned, |status| say(&status.to_string()))
        }),
        case("a_raw_clone_without_handlers_runs_nothing", Code(0), &["child 3", "A"], || {
            says("A");
            after(raw_clone(|| c_exit(3)), say_child)
        }),
        case("commands_run_nothing", Code(0), &["hello", "ran", "missing", "refused", "A"], || {
            says("A");
            let _ = Command::new("echo").arg("hello").status();
            say("ran");
            assert!(Command::new("/nonexistent/program").status().is_err());
            say("missing");
            let mut command = Command::new("echo");
            // SAFETY: the closure does nothing but fail.
            unsafe { command.pre_exec(|| Err(std::io::ErrorKind::Other.into())) };
            assert!(command.status().is_err());
            say("refused");
            OK
        }),
        // Other threads use the process stack and an interpreter.
        case("no_child_hangs_if_others_register_at_the_fork", Code(0), &["200 children", "A"], || {
            static DONE: AtomicBool = AtomicBool::new(false);
            says("A");
            let plugin = Interpreter::new("plugin");
            let (busy, started) = mpsc::channel();
            let (theirs, also) = (plugin.clone(), busy.clone());
            let process = thread::spawn(move || {
                busy.send(()).unwrap();
                while !DONE.load(Ordering::Relaxed) {
                    let id = register(|| ());
                    process_stack().unregister(id);
                }
            });
            let interpreter = thread::spawn(move || {
                also.send(()).unwrap();
                while !DONE.load(Ordering::Relaxed) {
                    let inner = theirs.subinterpreter("inner");
                    inner.stack().register(|| ());
                }
            });
            started.recv().unwrap();
            started.recv().unwrap();
            let forked = fork_each(200, |_| {
                register(|| ());
                plugin.stack().register(|| ());
                let _ = plugin.subinterpreter("own").finalize();
                let _ = plugin.finalize();
                exit(7)
            });
            after(forked, |ended| {
                DONE.store(true, Ordering::Relaxed);
                process.join().unwrap();
                interpreter.join().unwrap();
                say(&format!("{ended} children"));
            })
        }),
        case("a_double_forked_daemon_adopts", Code(0), &["own", "plugin", "A"], || {
            says("A");
            let plugin = Interpreter::new("plugin");
            plugin.stack().register(|| say("plugin"));
            std::mem::forget(plugin);
            // The first process and the one in the middle leave, like a daemon's parents. The test waits until no
            // process has its standard output open any more.
            for _ in 0..2 {
                // SAFETY: the child runs only what is tested.
                if unsafe { libc::fork() } != 0 {
                    leave();
                }
            }
            says("own");
            adopt_after_fork();
            OK
        }),
        case(
            "a_grandchild_adopts_from_both_before_it",
            Code(0),
            &["own", "B", "A", "grandchild 0", "B", "child 0", "A"],
            || {
                says("A");
                let forked = fork(|| {
                    says("B");
                    let forked = fork(|| {
                        says("own");
                        adopt_after_fork();
                        OK
                    });
                    after(forked, |status| say(&format!("grandchild {status}")))
                });
                after(forked, say_child)
            },
        ),
        case("adopting_without_a_fork_changes_nothing", Code(0), &["B", "A"], || {
            says("A");
            says("B");
            adopt_after_fork();
            OK
        }),
        case("an_interpreter_in_a_child_runs_the_childs_own", Code(0), &["child's", "child 0", "parent's"], || {
            let plugin = Interpreter::new("plugin");
            plugin.stack().register(|| say("parent's"));
            let forked = fork(|| {
                plugin.stack().register(|| say("child's"));
                assert_eq!(plugin.stack().len(), 1);
                plugin.finalize().map_err(|error| error.to_string())?;
                OK
            });
            if let Ok(status) = &forked {
                say_child(*status);
            }
            drop(plugin);
            after(forked, |_| ())
        }),
    ]
}
