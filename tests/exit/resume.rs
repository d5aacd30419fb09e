//! Ways out from inside nested drains, and beside drains of other threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::thread;

use exitstack::{
    Exit, ExitStack, Handler, HandlerErrorKind, Interpreter, SharedExitStack, exit, process_stack, register, run,
};

use crate::Status::Code;
use crate::child::{c_exit, say};
use crate::watched::Watched;
use crate::{Case, Ended, OK, case};

fn says_on(stack: &SharedExitStack, line: &'static str) {
    stack.register(move || say(line));
}

/// A handler finalizes what its own interpreter is nested in, and the next handler leaves with `leave`.
fn leaves_below(leave: fn()) -> Ended {
    says_on(process_stack(), "process");
    let outer = Interpreter::new("outer");
    says_on(outer.stack(), "outer");
    let inner = outer.subinterpreter("inner");
    says_on(inner.stack(), "inner");
    inner.stack().register(leave);
    inner.stack().register(move || outer.finalize());
    let _ = inner.finalize();
    OK
}

/// Two unrelated interpreters: a handler of one finalizes the other, which has a handler that leaves.
fn leaves_in_another(order: [&'static str; 2]) -> Ended {
    let [first, second] = order.map(Interpreter::new);
    let (x, y) = if order[0] == "x" { (first, second) } else { (second, first) };
    says_on(process_stack(), "process");
    says_on(x.stack(), "x");
    says_on(y.stack(), "y");
    y.stack().register(|| c_exit(3));
    x.stack().register(move || y.finalize());
    let _ = x.finalize();
    OK
}

/// Counts reports from now on, and registers a handler that says how many there were.
fn says_how_many_reports() {
    static REPORTS: AtomicUsize = AtomicUsize::new(0);
    exitstack::report::set_hook(Box::new(|_| _ = REPORTS.fetch_add(1, Ordering::SeqCst)));
    register(|| say(&format!("{} reports", REPORTS.load(Ordering::SeqCst))));
}

/// Ends the process while a handler of this stack runs out of turn on another thread.
fn ends_while_run_now_runs(stack: &'static SharedExitStack) -> Ended {
    let (runs, wait_runs) = channel();
    let (ends, wait_ends) = channel::<Watched>();
    let id = stack.register(move || {
        runs.send(()).unwrap();
        wait_ends.recv().unwrap().until_it_sleeps();
        say("out of turn");
    });
    thread::spawn(move || stack.run_now(id));
    wait_runs.recv().unwrap();
    ends.send(Watched::this()).unwrap();
    OK
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("c_exit_below_a_finalized_parent_loses_nothing", Code(3), &["inner", "outer", "process"], || {
            leaves_below(|| c_exit(3))
        }),
        case("std_exit_below_a_finalized_parent_drains_all", Code(3), &["inner", "outer", "process"], || {
            leaves_below(|| std::process::exit(3))
        }),
        case("exit_below_a_finalized_parent_loses_nothing", Code(3), &["inner", "outer", "process"], || {
            leaves_below(|| exit(3))
        }),
        case("failures_are_reported_in_order_before_the_process_ends", Code(3), &["first", "second"], || {
            exitstack::report::set_hook(Box::new(|error| {
                if let HandlerErrorKind::Failed(why) = error.kind() {
                    say(&why.to_string());
                }
            }));
            let outer = Interpreter::new("outer");
            outer.stack().register(|| c_exit(3));
            let inner = outer.subinterpreter("inner");
            let around = outer.clone();
            inner.stack().register(move || _ = around.stack().close()); // comes back to `inner` after `second`
            inner.stack().register(|| Err("first"));
            outer.stack().register(|| Err("second"));
            let _ = inner.finalize();
            OK
        }),
        // One that hangs must not hide them.
        case(
            "failures_are_reported_before_any_drain_goes_on",
            Code(3),
            &["process", "outer", "inner", "goes on"],
            || {
                exitstack::report::set_hook(Box::new(|error| say(error.name().unwrap_or("?"))));
                let fails = |name| Handler::new(|| Err("full")).named(name);
                let [outer, inner] = ["outer", "inner"].map(Interpreter::new);
                inner.stack().register(|| say("goes on"));
                inner.stack().register(|| c_exit(3));
                inner.stack().register(fails("inner"));
                outer.stack().register(move || inner.finalize());
                outer.stack().register(fails("outer"));
                register(move || outer.finalize());
                register(fails("process"));
                let _ = process_stack().close();
                OK
            },
        ),
        case("the_innermost_drain_is_resumed_first", Code(3), &["y", "x", "process"], || leaves_in_another(["x", "y"])),
        // Its interpreter is older than the outer one.
        case("the_innermost_drain_goes_first_even_if_older", Code(3), &["y", "x", "process"], || {
            leaves_in_another(["y", "x"])
        }),
        case("an_inner_drain_is_resumed_before_the_process", Code(3), &["y", "middle", "old"], || {
            says_on(process_stack(), "old");
            says_on(process_stack(), "middle");
            let y = Interpreter::new("y");
            says_on(y.stack(), "y");
            y.stack().register(|| c_exit(3));
            register(move || y.finalize());
            OK
        }),
        // The plugin is the oldest, so it would come last if the drain of the process stack went on first.
        case("a_drain_begun_inside_that_of_run_goes_first", Code(3), &["plugin", "process"], || {
            let plugin = Interpreter::new("plugin");
            std::mem::forget(plugin.clone());
            says_on(plugin.stack(), "plugin");
            plugin.stack().register(|| c_exit(3));
            says_on(process_stack(), "process");
            register(move || drop(plugin.finalize()));
            Ok(run(|| ()))
        }),
        // The plugin is a part of the drain of the process stack, and has no drain of its own to go first.
        case("a_plugin_that_run_drains_goes_on_at_its_place", Code(3), &["newest", "plugin", "process"], || {
            says_on(process_stack(), "process");
            let plugin = Interpreter::new("plugin");
            says_on(plugin.stack(), "plugin");
            plugin.stack().register(|| {
                says_on(process_stack(), "newest");
                c_exit(3)
            });
            std::mem::forget(plugin);
            Ok(run(|| ()))
        }),
        case("a_drain_around_the_process_stacks_comes_later", Code(3), &["new", "x", "old"], || {
            says_on(process_stack(), "old");
            let x = Interpreter::new("x");
            says_on(x.stack(), "x");
            x.stack().register(|| process_stack().close());
            says_on(process_stack(), "new");
            register(|| c_exit(3));
            let _ = x.finalize();
            OK
        }),
        case("what_another_resumed_is_waited_for_first", Code(3), &["x new", "x", "new", "old"], || {
            // The main thread leaves in `y`, inside `x`. While it drains the rest of `y`, a second thread resumes `x`
            // and closes the process stack there. That close must return early, and `x` must end before the newer
            // handlers run.
            says_on(process_stack(), "old");
            let [x, y] = ["x", "y"].map(Interpreter::new);
            says_on(process_stack(), "new");
            let (begins, wait_begins) = channel();
            let (closes, wait_closes) = channel();
            says_on(x.stack(), "x");
            x.stack().register(move || {
                closes.send(Watched::this()).unwrap();
                let _ = process_stack().close();
                say("x new");
            });
            y.stack().register(move || {
                begins.send(()).unwrap();
                wait_closes.recv().unwrap().until_it_sleeps();
            });
            y.stack().register(|| c_exit(3));
            x.stack().register(move || y.finalize());
            let resumed = x.clone();
            thread::spawn(move || {
                wait_begins.recv().unwrap();
                let _ = resumed.finalize();
            });
            let _ = x.finalize();
            OK
        }),
        case("a_failure_in_a_close_that_was_left_is_told", Code(3), &["old"], || {
            says_on(process_stack(), "old");
            let x = Interpreter::new("x");
            x.stack().register(|| Err("after it was left"));
            x.stack().register(|| c_exit(3));
            let _ = x.stack().close();
            OK
        })
        .err("after it was left"),
        case("exit_in_a_resumed_drain_leaves_its_handler", Code(7), &["unwound", "old"], || {
            struct Says(&'static str);
            impl Drop for Says {
                fn drop(&mut self) {
                    say(self.0);
                }
            }
            says_on(process_stack(), "old");
            register(|| {
                let _unwound = Says("unwound");
                exit(7)
            });
            register(|| c_exit(3));
            OK
        }),
        case("a_requested_status_survives_another_c_exit", Code(5), &[], || {
            register(|| c_exit(0));
            let x = Interpreter::new("x");
            x.stack().register(|| c_exit(0));
            x.stack().register(|| Err(Exit(5)));
            let _ = x.finalize();
            OK
        }),
        // Every thread that leaves uses the status, whichever thread requested it.
        case("a_requested_status_holds_for_every_thread", Code(7), &[], || {
            let (drains, wait_drains) = channel();
            register(move || {
                drains.send(()).unwrap();
                (0..1000).for_each(|_| thread::yield_now()); // gives `main` time to start waiting
            });
            thread::spawn(|| {
                let x = Interpreter::new("x");
                x.stack().register(|| c_exit(0));
                x.stack().register(|| Err(Exit(7)));
                let _ = x.finalize();
            });
            wait_drains.recv().unwrap();
            OK
        }),
        // Another thread has resumed the drain.
        case("exit_in_a_resumed_drain_beats_older_requests", Code(7), &[], || {
            let root = Interpreter::new("root");
            let x = root.subinterpreter("x");
            x.stack().register(|| exit(7));
            let inner = x.subinterpreter("inner");
            let (asks, wait_asks) = channel();
            x.stack().register(move || {
                asks.send(()).unwrap();
                Err(Exit(5))
            });
            let (runs, wait_runs) = channel();
            inner.stack().register(move || {
                runs.send(()).unwrap();
                wait_asks.recv().unwrap();
                (0..1000).for_each(|_| thread::yield_now()); // gives the owner of x time to start waiting
                let _ = root.finalize();
            });
            thread::spawn(move || {
                wait_runs.recv().unwrap();
                let _ = x.finalize();
            });
            let _ = inner.finalize();
            OK
        }),
        // Another handler of the same interpreter made the request.
        case("exit_in_a_handler_beats_an_older_request", Code(7), &[], || {
            let x = Interpreter::new("x");
            x.stack().register(|| assert!(std::panic::catch_unwind(|| exit(7)).is_err()));
            x.stack().register(|| Err(Exit(5)));
            std::mem::forget(x);
            OK
        }),
        case("exit_in_a_local_stack_beats_an_older_request", Code(7), &[], || {
            let x = Interpreter::new("x");
            x.stack().register(|| {
                let local = ExitStack::new();
                local.register(|| exit(7));
            });
            x.stack().register(|| Err(Exit(5)));
            std::mem::forget(x);
            OK
        }),
        case("exit_in_a_finalize_beats_an_older_request", Code(7), &[], || {
            let x = Interpreter::new("x");
            x.stack().register(|| exit(7));
            x.stack().register(|| Err(Exit(5)));
            let _ = x.finalize();
            OK
        }),
        case("a_nested_request_beats_an_older_one_around_it", Code(6), &["x"], || {
            let x = Interpreter::new("x");
            says_on(x.stack(), "x");
            x.stack().register(|| c_exit(0));
            x.stack().register(|| Err(Exit(6)));
            register(move || drop(x));
            register(|| Err(Exit(5)));
            OK
        }),
        case("a_thread_in_c_exit_waits_if_a_cycle_is_broken", Code(9), &["x new", "x old", "old"], || {
            // The main thread drains the process stack and reaches `x`. On a second thread, a handler of `x` closes the
            // process stack. A third thread is in C's exit and waits as well.
            static DRAINS: LazyLock<(Sender<()>, Mutex<Receiver<()>>)> = LazyLock::new(|| {
                let (sender, receiver) = channel();
                (sender, Mutex::new(receiver))
            });
            says_on(process_stack(), "old");
            let x = Interpreter::new("x");
            says_on(x.stack(), "x old");
            let (runs, wait_runs) = channel();
            x.stack().register(move || {
                runs.send(()).unwrap();
                DRAINS.1.lock().unwrap().recv().unwrap();
                let _ = process_stack().close();
                say("x new");
            });
            thread::spawn(move || x.finalize());
            wait_runs.recv().unwrap();
            register(|| {
                thread::spawn(|| c_exit(9));
                DRAINS.0.send(()).unwrap();
            });
            // Whichever of the three leaves, everything has run before that. The status is that of the first in C's
            // exit.
            let _ = process_stack().close();
            thread::park();
            OK
        }),
        // A thread that leaves waits for the close, and then for the handler.
        case("a_closing_handler_is_waited_for_to_its_end", Code(9), &["old", "goes on"], || {
            // A handler of an interpreter closes the process stack and then goes on. Another thread that is leaving
            // waits for that close.
            says_on(process_stack(), "old");
            let (runs, wait_runs) = channel();
            register(move || {
                runs.send(()).unwrap();
                thread::yield_now(); // gives the other thread time to start waiting
            });
            let x = Interpreter::new("x");
            x.stack().register(|| {
                process_stack().close().unwrap();
                (0..1000).for_each(|_| thread::yield_now());
                say("goes on");
            });
            thread::spawn(move || {
                let _ = x.finalize();
                thread::park();
            });
            wait_runs.recv().unwrap();
            exit(9)
        }),
        // The close is waiting for that thread.
        case("a_close_returns_if_the_other_thread_leaves", Code(3), &["closed", "old"], || {
            // A handler of the process stack closes a plain value, which has a handler that leaves on another thread.
            static VALUE: SharedExitStack = SharedExitStack::new();
            says_on(process_stack(), "old");
            let (runs, wait_runs) = channel();
            let (closes, wait_closes) = channel::<Watched>();
            register(move || {
                wait_runs.recv().unwrap();
                closes.send(Watched::this()).unwrap();
                VALUE.close().unwrap();
                say("closed");
            });
            VALUE.register(move || {
                runs.send(()).unwrap();
                wait_closes.recv().unwrap().until_it_sleeps();
                c_exit(3)
            });
            thread::spawn(|| VALUE.close());
            let _ = process_stack().close();
            thread::park();
            OK
        }),
        case("exit_in_another_librarys_handler_between_ours", Code(5), &["handler", "another library's"], || {
            extern "C" fn another_librarys() {
                say("another library's");
                exit(5)
            }
            // SAFETY: the handler is a function that does not unwind: no drain runs any more when C calls it, so `exit`
            // leaves by C's `exit`.
            register(|| assert_eq!(unsafe { libc::atexit(another_librarys) }, 0));
            says_on(process_stack(), "handler");
            std::process::exit(3)
        }),
        case("an_exiting_threads_drain_does_not_block_exit", Code(3), &["closed"], || {
            // A handler of a plain value leaves on another thread, and waits for the main thread, which drains the
            // process stack. Then the main thread runs another library's handler, which closes the value.
            static VALUE: SharedExitStack = SharedExitStack::new();
            extern "C" fn another_librarys() {
                let _ = VALUE.close();
                say("closed");
            }
            // SAFETY: the handler is a function that does not unwind. Registered first, it runs last.
            assert_eq!(unsafe { libc::atexit(another_librarys) }, 0);
            let (drains, wait_drains) = channel();
            let (leaves, wait_leaves) = channel::<Watched>();
            register(move || {
                drains.send(()).unwrap();
                wait_leaves.recv().unwrap().until_it_sleeps();
            });
            VALUE.register(move || {
                wait_drains.recv().unwrap();
                leaves.send(Watched::this()).unwrap();
                exit(3)
            });
            thread::spawn(|| VALUE.close());
            std::process::exit(7)
        })
        .or(Code(7)),
        case("the_process_waits_for_a_handler_in_run_now", Code(0), &["out of turn"], || {
            ends_while_run_now_runs(process_stack())
        }),
        case("the_process_waits_for_an_interpreters_run_now", Code(0), &["out of turn"], || {
            static PLUGIN: LazyLock<Interpreter> = LazyLock::new(|| Interpreter::new("plugin"));
            ends_while_run_now_runs(PLUGIN.stack())
        }),
        // A close waits for both, each on a thread of its own.
        case("of_two_in_run_now_only_the_one_that_leaves_is_passed", Code(3), &["stays", "oldest"], || {
            let plugin = Interpreter::new("plugin");
            std::mem::forget(plugin.clone());
            says_on(plugin.stack(), "oldest");
            let (runs, wait_runs) = channel();
            let (leaves, wait_leaves) = channel::<Watched>();
            let (closes, wait_closes) = channel::<Watched>();
            let (leave, wait_leave) = channel::<Watched>();
            let stays_runs = runs.clone();
            let stays = plugin.stack().register(move || {
                stays_runs.send(()).unwrap();
                wait_leaves.recv().unwrap().until_it_sleeps();
                wait_closes.recv().unwrap().until_it_sleeps();
                say("stays");
            });
            let left = plugin.stack().register(move || {
                runs.send(()).unwrap();
                wait_leave.recv().unwrap().until_it_sleeps();
                leaves.send(Watched::this()).unwrap();
                c_exit(3)
            });
            for id in [stays, left] {
                let plugin = plugin.clone();
                thread::spawn(move || plugin.stack().run_now(id));
                wait_runs.recv().unwrap();
            }
            leave.send(Watched::this()).unwrap();
            closes.send(Watched::this()).unwrap();
            let _ = plugin.stack().close();
            thread::park();
            OK
        }),
        case("exit_in_run_now_drains_the_rest", Code(9), &["old"], || {
            says_on(process_stack(), "old");
            let id = register(|| exit(9));
            let _ = process_stack().run_now(id);
            OK
        }),
        case("c_exit_in_run_now_drains_the_rest", Code(9), &["plugin", "old"], || {
            says_on(process_stack(), "old");
            let plugin = Interpreter::new("plugin");
            says_on(plugin.stack(), "plugin");
            let id = plugin.stack().register(|| c_exit(9));
            let _ = plugin.stack().run_now(id);
            OK
        }),
        case("exit_in_run_now_works_as_the_process_ends", Code(3), &["old"], || {
            says_on(process_stack(), "old");
            let (runs, wait_runs) = channel();
            let (ends, wait_ends) = channel::<Watched>();
            let id = register(move || {
                runs.send(()).unwrap();
                wait_ends.recv().unwrap().until_it_sleeps();
                exit(3)
            });
            thread::spawn(move || process_stack().run_now(id));
            wait_runs.recv().unwrap();
            ends.send(Watched::this()).unwrap();
            OK
        })
        .or(Code(0)),
        // The outer drain has reported a failure before a handler leaves.
        case("an_outer_drains_report_is_not_repeated", Code(3), &["1 reports"], || {
            says_how_many_reports();
            let parent = Interpreter::new("parent");
            let child = parent.subinterpreter("child");
            child.stack().register(move || {
                drop(parent);
                c_exit(3)
            });
            child.stack().register(|| Err("once"));
            let _ = child.finalize();
            OK
        }),
        // A `finalize()` returned the failure to a handler, which then leaves.
        case("a_failure_told_to_a_handler_is_not_reported", Code(3), &["0 reports"], || {
            says_how_many_reports();
            let parent = Interpreter::new("parent");
            let child = parent.subinterpreter("child");
            child.stack().register(move || {
                assert_eq!(parent.finalize().unwrap_err().errors().len(), 1);
                c_exit(3)
            });
            child.stack().register(|| Err("told"));
            let _ = child.finalize();
            OK
        }),
        // Another thread leaves, so the close may never return.
        case("a_failure_of_an_interrupted_close_is_reported", Code(4), &["old"], || {
            let (fails, wait_fails) = channel();
            let (go, wait_go) = channel();
            says_on(process_stack(), "old");
            register(move || {
                fails.send(()).unwrap();
                wait_go.recv().unwrap();
            });
            register(|| Err("disk full"));
            thread::spawn(|| process_stack().close());
            wait_fails.recv().unwrap();
            let main = Watched::this();
            thread::spawn(move || {
                main.until_it_sleeps(); // in exit: until then, the closer does not return
                go.send(())
            });
            c_exit(4)
        })
        .err("failed: disk full"),
        // Those of a value are lost, and its other handlers do not run.
        case("a_values_failures_are_lost_if_a_handler_exits", Code(3), &["0 reports"], || {
            says_how_many_reports();
            let value = SharedExitStack::new();
            value.register(|| say("below"));
            value.register(|| exit(3));
            value.register(|| Err("disk full"));
            let _ = value.close();
            OK
        }),
        case("a_detached_interpreters_failures_are_lost_if_a_handler_exits", Code(3), &["0 reports"], || {
            says_how_many_reports();
            let detached = Interpreter::detached("detached");
            detached.stack().register(|| say("below"));
            detached.stack().register(|| exit(3));
            detached.stack().register(|| Err("disk full"));
            let _ = detached.stack().close();
            OK
        }),
        case("a_report_hook_that_is_refused_comes_to_an_end", Code(0), &["Failed", "Refused", "Refused"], || {
            static LOG: LazyLock<Interpreter> = LazyLock::new(|| Interpreter::new("log"));
            register(|| Err("disk full")); // runs when `LOG` has been finalized
            LazyLock::force(&LOG);
            exitstack::report::set_hook(Box::new(|error| {
                say(if matches!(error.kind(), HandlerErrorKind::Refused) { "Refused" } else { "Failed" });
                LOG.stack().register(|| ()); // the first is reported at once, the second is counted
            }));
            OK
        }),
        case("refusals_are_counted_though_the_report_hook_exits", Code(1), &["a: 2", "b: 2", "c: 2"], || {
            exitstack::report::set_hook(Box::new(|_| ()));
            for name in ["a", "b", "c"] {
                let plugin = Interpreter::new(name);
                plugin.finalize().unwrap();
                (0..3).for_each(|_| _ = plugin.stack().register(|| ()));
                std::mem::forget(plugin);
            }
            exitstack::report::set_hook(Box::new(|error| {
                let text = error.to_string();
                say(text.strip_prefix("process > ").and_then(|text| text.split_once(" more")).unwrap().0);
                exit(1)
            }));
            OK
        }),
        // The interpreters are never dropped.
        case(
            "refusals_of_leaked_interpreters_are_counted",
            Code(0),
            &["process > a > nested: 999 more", "process > a: 999 more", "process > b: 999 more"],
            || {
                static PLUGINS: LazyLock<[Interpreter; 2]> = LazyLock::new(|| ["a", "b"].map(Interpreter::new));
                static NESTED: LazyLock<Interpreter> = LazyLock::new(|| PLUGINS[0].subinterpreter("nested"));
                exitstack::report::set_hook(Box::new(|error| {
                    if let Some((count, _)) = error.to_string().split_once(" exit handlers were refused") {
                        say(count);
                    }
                }));
                for plugin in [&*NESTED].into_iter().chain(&*PLUGINS) {
                    plugin.finalize().unwrap();
                    for _ in 0..1000 {
                        plugin.stack().register(|| ());
                    }
                }
                OK
            },
        ),
        // A handler of each creates the next, until the limit is reached.
        case("endless_nested_interpreters_starve_no_handler", Code(0), &["old"], || {
            fn deeper() {
                let child = Interpreter::current().map_or_else(|| Interpreter::new("d"), |d| d.subinterpreter("d"));
                child.stack().register(deeper);
                std::mem::forget(child);
            }
            exitstack::report::set_hook(Box::new(|_| ())); // the path alone is half a megabyte
            says_on(process_stack(), "old");
            register(deeper);
            OK
        }),
    ]
}
