//! The ways out of a process.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{ExitCode, Termination};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use exitstack::{Exit, ExitStack, Interpreter, exit, process_stack, register, run};

use crate::Status::{Code, Signal};
use crate::child::{DROPS_THREAD_LOCALS, Rude, another_librarys_handler, c_exit, say, says};
use crate::{Case, Ended, OK, case};

/// Calls `then` below frames with locals that would be dropped if the frames were left in any ordinary way.
fn under_frames(depth: usize, then: &dyn Fn()) {
    let _local = scopeguard::guard((), |()| say("a local was dropped"));
    match depth {
        0 => then(),
        _ => under_frames(depth - 1, then),
    }
}

fn on_a_thread(body: impl FnOnce() + Send + 'static) {
    let _ = thread::spawn(body).join();
}

/// A value that panics when `main` reports it.
struct Unreportable;

impl Termination for Unreportable {
    fn report(self) -> ExitCode {
        panic!("in the report");
    }
}

fn says_status(code: ExitCode) {
    let status = (0..=u8::MAX).find(|status| code == ExitCode::from(*status));
    say(&format!("status {}", status.unwrap()));
}

/// Redirects standard error to standard output.
fn errors_join_output() {
    // SAFETY: duplicates open descriptors.
    assert_eq!(unsafe { libc::dup2(libc::STDOUT_FILENO, libc::STDERR_FILENO) }, libc::STDERR_FILENO);
}

/// A thread-local whose drop registers a handler.
struct Registers;

impl Drop for Registers {
    fn drop(&mut self) {
        register(|| {
            say("a thread-local's");
            Err(Exit(5))
        });
    }
}

/// A thread-local whose drop leaves.
struct Leaves;

impl Drop for Leaves {
    fn drop(&mut self) {
        exit(4)
    }
}

thread_local! {
    static REGISTERS: Cell<Option<Registers>> = const { Cell::new(None) };
    static LEAVES: Cell<Option<Leaves>> = const { Cell::new(None) };
}

fn a_thread_local_registers(name: &'static str, out: &[&str], leave: fn() -> Ended) -> Case {
    let (status, out) = if DROPS_THREAD_LOCALS { (5, out) } else { (0, &["A"][..]) };
    case(name, Code(status), out, leave)
}

/// If the thread is already in std's `exit`, this aborts, but only after the handlers.
fn a_thread_local_leaves(name: &'static str, leave: fn() -> Ended) -> Case {
    case(name, Code(if DROPS_THREAD_LOCALS { 4 } else { 0 }), &["A"], leave).or(Signal(libc::SIGABRT))
}

/// The processor time that this thread has used.
fn time_used() -> Duration {
    // SAFETY: a `timespec` is two numbers, which may be zero.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: `time` is live.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) }, 0);
    Duration::new(
        u64::try_from(time.tv_sec).expect("not negative"),
        u32::try_from(time.tv_nsec).expect("below a second"),
    )
}

/// Registers a handler that says how many registrations the process stack accepts from it.
fn counts_late_ones() {
    register(|| {
        let taken = (0..70_000).filter(|_| process_stack().try_register(|| ()).is_ok()).count();
        say(&taken.to_string());
    });
}

/// An interpreter nested in another, each with a handler. A second handler of the inner one leaves.
fn plugin_whose_db_leaves(leave: fn() -> !) -> [Interpreter; 2] {
    let plugin = Interpreter::new("plugin");
    plugin.stack().register(|| say("plugin"));
    let db = plugin.subinterpreter("db");
    db.stack().register(|| say("db 1"));
    db.stack().register(move || {
        say("db 2");
        leave();
    });
    [plugin, db]
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(crate) fn cases() -> Vec<Case> {
    vec![
        // Ways out that drain.
        case("main_returns_ok", Code(0), &["B", "A"], || {
            says("A");
            says("B");
            OK
        }),
        case("main_returns_err", Code(1), &["B", "A"], || {
            says("A");
            says("B");
            Err("failed".into())
        })
        .err("Error: \"failed\""),
        case("main_panics", Code(101), &["B", "A"], || {
            says("A");
            says("B");
            panic!("in main")
        })
        .err("in main"),
        case("another_thread_panics_and_main_returns", Code(0), &["A"], || {
            says("A");
            on_a_thread(|| panic!("on a thread"));
            OK
        })
        .err("on a thread"),
        case("std_exit_on_main", Code(4), &["B", "A"], || {
            says("A");
            says("B");
            std::process::exit(4)
        }),
        case("std_exit_on_a_thread", Code(5), &["B", "A"], || {
            says("A");
            says("B");
            on_a_thread(|| std::process::exit(5));
            OK
        }),
        // It is called below ten frames.
        case("std_exit_runs_handlers_and_drops_no_local", Code(6), &["A"], || {
            says("A");
            under_frames(10, &|| std::process::exit(6));
            OK
        }),
        case("c_exit_on_main", Code(7), &["B", "A"], || {
            says("A");
            says("B");
            c_exit(7)
        }),
        case("c_exit_on_a_thread", Code(8), &["B", "A"], || {
            says("A");
            says("B");
            on_a_thread(|| c_exit(8));
            OK
        }),
        case("exit_on_main", Code(9), &["B", "A", "another library's"], || {
            another_librarys_handler();
            says("A");
            says("B");
            exit(9)
        }),
        case("exit_on_a_thread", Code(10), &["B", "A"], || {
            says("A");
            says("B");
            on_a_thread(|| exit(10));
            OK
        }),
        // The drain continues with the handlers below.
        case("exit_inside_a_handler_drops_its_locals", Code(3), &["B", "a local", "A", "another library's"], || {
            another_librarys_handler();
            says("A");
            register(|| {
                let _local = scopeguard::guard((), |()| say("a local"));
                say("B");
                exit(3)
            });
            OK
        }),
        // The handler itself catches the unwinding.
        case("exit_inside_a_handler_counts_though_caught", Code(3), &["caught", "A"], || {
            says("A");
            register(|| {
                assert!(std::panic::catch_unwind(|| exit(3)).is_err());
                say("caught");
            });
            OK
        }),
        case("exit_inside_a_handler_that_unwinds_already", Code(3), &["B", "A"], || {
            says("A");
            says("B");
            register(|| {
                let _leaves = scopeguard::guard((), |()| exit(3));
                panic!("in the handler")
            });
            OK
        }),
        case("exit_while_main_unwinds", Code(3), &["panicking", "A"], || {
            says("A");
            register(|| say(if thread::panicking() { "panicking" } else { "not" }));
            let _local = scopeguard::guard((), |()| say("a local was dropped"));
            let _leaves = scopeguard::guard((), |()| exit(3));
            panic!("in main")
        }),
        case("exit_in_the_panic_hook", Code(3), &["B", "A"], || {
            says("A");
            register(|| {
                say("B");
                Err(std::io::Error::other("disk full"))
            });
            std::panic::set_hook(Box::new(|_| exit(3)));
            let _local = scopeguard::guard((), |()| say("a local was dropped"));
            panic!("in main")
        })
        .err("failed: disk full"),
        case("exit_inside_an_exit", Code(12), &["A"], || {
            says("A");
            register(|| exit(12));
            exit(11)
        }),
        case("ten_thousand_exiting_handlers_do_not_pile_up", Code(42), &["A"], || {
            says("A");
            register(|| exit(42));
            for code in 0..10_000 {
                register(move || exit(code));
            }
            OK
        }),
        case("run_ok", Code(0), &["body", "A", "after"], || {
            let code = run(|| {
                says("A");
                say("body");
                Ok::<_, String>(())
            });
            say("after");
            Ok(code)
        }),
        // A handler closed the stack, which accepts handlers again afterwards.
        case("a_stack_closed_in_run_is_open_after_it", Code(0), &["A", "after", "B"], || {
            let code = run(|| {
                says("A");
                register(|| process_stack().close());
                Ok::<_, String>(())
            });
            say("after");
            says("B");
            Ok(code)
        }),
        case("handlers_are_taken_after_a_run_inside_a_run", Code(0), &["inner", "after", "A"], || {
            let code = run(|| {
                register(|| {
                    let _ = run(|| Ok::<_, String>(()));
                    say("inner");
                });
                Ok::<_, String>(())
            });
            say("after");
            says("A");
            Ok(code)
        }),
        case("after_a_c_exit_inside_run_none_is_taken", Code(3), &["A", "refused"], || {
            extern "C" fn later() {
                let refused = process_stack().try_register(|| ()).is_err();
                say(if refused { "refused" } else { "taken" });
            }
            // SAFETY: the handler is a function that does not unwind. Registered first, it runs last.
            unsafe { libc::atexit(later) };
            Ok(run(|| {
                says("A");
                register(|| c_exit(3));
                Ok::<_, String>(())
            }))
        }),
        case("run_err", Code(1), &["A", "after"], || {
            let code = run(|| {
                says("A");
                Err::<(), _>("bad")
            });
            say("after");
            Ok(code)
        })
        .err("Error: \"bad\""),
        case("after_run_there_is_no_limit", Code(0), &["all"], || {
            let code = run(|| {
                register(|| ());
                Ok::<_, String>(())
            });
            let all = (0..70_000).all(|_| process_stack().try_register(|| ()).is_ok());
            say(if all { "all" } else { "some" });
            Ok(code)
        }),
        // The body's error is printed; a handler decides the status.
        case("run_prints_the_error_under_a_handlers_status", Code(4), &[], || {
            Ok(run(|| {
                register(|| Err(Exit(4)));
                Err::<(), _>("bad")
            }))
        })
        .err("Error: \"bad\""),
        case("run_without_a_value", Code(0), &["A"], || Ok(run(|| _ = says("A")))),
        case("run_keeps_an_exit_codes_status", Code(3), &["A", "after"], || {
            let code = run(|| {
                says("A");
                ExitCode::from(3)
            });
            say("after");
            Ok(code)
        }),
        case("run_keeps_an_exit_codes_status_in_a_result", Code(3), &["A"], || {
            Ok(run(|| {
                says("A");
                Ok::<_, String>(ExitCode::from(3))
            }))
        }),
        case(
            "run_shows_an_error_after_what_handlers_print",
            Code(1),
            &["B", "restored Error: \"bad\"", "after"],
            || {
                errors_join_output();
                let code = run(|| {
                    register(|| print!("restored "));
                    register(|| println!("B"));
                    Err::<(), _>("bad")
                });
                say("after");
                Ok(code)
            },
        ),
        case("run_shows_an_error_in_an_ok_after_it_too", Code(1), &["restored Error: \"bad\""], || {
            errors_join_output();
            Ok(run(|| {
                register(|| print!("restored "));
                Ok::<_, String>(Err::<(), _>("bad"))
            }))
        }),
        case("run_shows_an_error_after_what_handlers_report", Code(1), &["told", "Error: \"bad\""], || {
            errors_join_output();
            exitstack::report::set_hook(Box::new(|_| say("told")));
            Ok(run(|| {
                register(|| Err("disk full"));
                Err::<(), _>("bad")
            }))
        }),
        case("run_reports_a_failure_when_it_happens", Signal(libc::SIGABRT), &["told"], || {
            exitstack::report::set_hook(Box::new(|_| say("told")));
            let plugin = Interpreter::new("plugin");
            plugin.stack().register(|| std::process::abort());
            plugin.stack().register(|| Err("disk full"));
            Ok(run(|| ()))
        }),
        // Another thread holds the lock forever.
        case("run_ends_though_standard_output_is_locked", Code(1), &["A"], || {
            let (locked, is_locked) = mpsc::channel();
            thread::spawn(move || {
                let _out = std::io::stdout().lock();
                locked.send(()).unwrap();
                loop {
                    thread::park();
                }
            });
            is_locked.recv().unwrap();
            Ok(run(|| {
                says("A");
                Err::<(), _>("bad")
            }))
        })
        .err("Error: \"bad\""),
        case("run_waits_for_a_slow_reader_before_it_reports", Code(0), &[], || {
            static READS: AtomicBool = AtomicBool::new(false);
            struct Reports;
            impl Termination for Reports {
                fn report(self) -> ExitCode {
                    u8::from(!READS.load(Ordering::SeqCst)).into()
                }
            }
            let (mut reads, mut writes) = UnixStream::pair().unwrap();
            writes.set_nonblocking(true).unwrap();
            while writes.write(&[b'.'; 1000]).is_ok() {}
            writes.set_nonblocking(false).unwrap();
            // SAFETY: duplicates open descriptors.
            assert_eq!(unsafe { libc::dup2(writes.as_raw_fd(), libc::STDOUT_FILENO) }, libc::STDOUT_FILENO);
            Ok(run(|| {
                register(|| print!("more than there is room for"));
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(600)); // only slow; the result does not depend on it
                    READS.store(true, Ordering::SeqCst);
                    std::io::copy(&mut reads, &mut std::io::sink())
                });
                Reports
            }))
        }),
        case("run_contains_a_report_that_panics", Code(101), &["A", "after"], || {
            let code = run(|| {
                says("A");
                Unreportable
            });
            say("after");
            Ok(code)
        })
        .err("in the report"),
        case("an_exit_code_decides_after_a_panicking_report", Code(8), &[], || {
            Ok(run(|| {
                register(|| Err(Exit(8)));
                Unreportable
            }))
        }),
        case("run_contains_a_payload_whose_drop_panics", Code(101), &["A", "after"], || {
            let code = run(|| {
                says("A");
                std::panic::panic_any(Rude)
            });
            say("after");
            Ok(code)
        })
        .err("an error's drop"),
        case("an_exit_code_decides_after_a_panic_in_run", Code(8), &[], || {
            Ok(run(|| {
                register(|| Err(Exit(8)));
                panic!("in the body")
            }))
        }),
        // The outer drain runs the rest.
        case(
            "run_inside_a_handler_leaves_the_rest_alone",
            Code(0),
            &["status 7", "A", "status 0", "taken by the hook"],
            || {
                says("A");
                register(|| says_status(run(|| ExitCode::from(7))));
                let code = run(|| ());
                says_status(code);
                says("taken by the hook");
                Ok(code)
            },
        ),
        case("run_inside_a_handler_of_the_hook", Code(0), &["status 7", "A"], || {
            says("A");
            register(|| says_status(run(|| ExitCode::from(7))));
            OK
        }),
        // Later the process gets a third status, from a handler that the exit hook runs.
        case("run_twice_returns_two_statuses", Code(5), &["A", "status 3", "B", "status 4", "C"], || {
            let run_with = |name, code: u8| {
                says(name);
                register(move || Err(Exit(code.into())));
                run(|| ())
            };
            for (name, code) in [("A", 3), ("B", 4)] {
                says_status(run_with(name, code));
            }
            says("C");
            register(|| Err(Exit(5)));
            OK
        }),
        // `Exit` as the value of `main`.
        case("exit_as_mains_value_is_the_status", Code(3), &["A"], || {
            says("A");
            Ok(Exit(3).report())
        }),
        case("exit_as_mains_value_keeps_the_low_byte", Code(2), &[], || Ok(Exit(-254).report())),
        case("exit_as_the_value_of_run", Code(3), &["A"], || {
            Ok(run(|| {
                says("A");
                Exit(3)
            }))
        }),
        case("exit_in_an_ok_is_the_status", Code(3), &[], || Ok(run(|| Ok::<_, String>(Exit(3))))),
        case("exit_in_an_err_is_an_error", Code(1), &[], || Ok(run(|| Err::<(), _>(Exit(3))))).err("Error: Exit(3)"),
        case("exit_of_a_handler_beats_exit_of_the_body", Code(8), &[], || {
            Ok(run(|| {
                register(|| Err(Exit(8)));
                Exit(3)
            }))
        }),
        case("run_keeps_the_low_byte_of_a_status", Code(0), &[], || {
            Ok(run(|| {
                register(|| Err(Exit(256)));
                Err::<(), _>("bad")
            }))
        }),
        case("a_report_is_one_write", Code(0), &["one"], || {
            let (reads, writes) = UnixDatagram::pair().unwrap();
            // SAFETY: duplicates open descriptors.
            assert_eq!(unsafe { libc::dup2(writes.as_raw_fd(), libc::STDERR_FILENO) }, libc::STDERR_FILENO);
            ExitStack::new().register(|| Err("bad"));
            let mut report = [0; 1000];
            let length = reads.recv(&mut report).unwrap();
            say(if report[..length].ends_with(b"failed: bad\n") { "one" } else { "more" });
            OK
        }),
        case("a_hook_may_look_at_the_stack_that_refuses", Code(0), &["0 wait"], || {
            static PLUGIN: LazyLock<Interpreter> = LazyLock::new(|| Interpreter::new("plugin"));
            exitstack::report::set_hook(Box::new(|_| say(&format!("{} wait", PLUGIN.stack().len()))));
            PLUGIN.finalize().unwrap();
            PLUGIN.stack().register(|| ());
            OK
        }),
        case("run_panics", Code(101), &["A", "after"], || {
            let code = run(|| -> Result<(), String> {
                says("A");
                panic!("in the body")
            });
            say("after");
            Ok(code)
        })
        .err("in the body"),
        case("run_contains_a_panic_whose_payload_panics", Code(101), &["A", "after"], || {
            struct Rude;
            impl Drop for Rude {
                fn drop(&mut self) {
                    panic!("a payload's drop");
                }
            }
            let code = run(|| -> Result<(), String> {
                says("A");
                std::panic::panic_any(Rude)
            });
            say("after");
            Ok(code)
        }),
        case("run_reports_an_interpreters_failure_at_once", Signal(libc::SIGABRT), &[], || {
            let plugin = Interpreter::new("plugin");
            plugin.stack().register(|| std::process::abort());
            plugin.stack().register(|| Err("before the abort"));
            Ok(run(|| Ok::<_, String>(())))
        })
        .err("failed: before the abort"),
        case("run_with_std_exit_inside", Code(4), &["A"], || {
            Ok(run(|| -> Result<(), String> {
                says("A");
                std::process::exit(4)
            }))
        }),
        case("run_with_exit_inside_a_handler", Code(3), &["A", "after"], || {
            let code = run(|| {
                says("A");
                register(|| exit(3));
                Ok::<_, String>(())
            });
            say("after");
            Ok(code)
        }),
        // The exit hook runs what comes later.
        case("run_drains_while_thread_locals_live", Code(0), &["alive", "A", "after", "late"], || {
            struct Log(Vec<u8>);
            impl Drop for Log {
                fn drop(&mut self) {
                    self.0.clear();
                }
            }
            thread_local!(static LOG: RefCell<Log> = const { RefCell::new(Log(Vec::new())) });
            LOG.with_borrow_mut(|log| log.0.push(1));
            let code = run(|| {
                says("A");
                register(|| say(if LOG.try_with(|_| ()).is_ok() { "alive" } else { "gone" }));
                Ok::<_, String>(())
            });
            say("after");
            says("late");
            Ok(code)
        }),
        // Ways out that do not drain.
        case("abort_runs_nothing", Signal(libc::SIGABRT), &[], || {
            says("A");
            std::process::abort()
        }),
        case("underscore_exit_runs_nothing", Code(6), &[], || {
            says("A");
            // SAFETY: this way out is what is tested.
            unsafe { libc::_exit(6) }
        }),
        case("sigterm_runs_nothing", Signal(libc::SIGTERM), &[], || {
            says("A");
            // SAFETY: this way out is what is tested.
            unsafe { libc::raise(libc::SIGTERM) };
            OK
        }),
        case("sigkill_runs_nothing", Signal(libc::SIGKILL), &[], || {
            says("A");
            // SAFETY: this way out is what is tested.
            unsafe { libc::raise(libc::SIGKILL) };
            OK
        }),
        case("exec_runs_nothing", Code(0), &["the new image"], || {
            use std::os::unix::process::CommandExt;
            says("A");
            Err(std::process::Command::new("echo").arg("the new image").exec().to_string())
        }),
        case("quick_exit_runs_nothing", Code(6), &[], || {
            unsafe extern "C" {
                fn quick_exit(status: std::ffi::c_int) -> !;
            }
            says("A");
            // SAFETY: this way out is what is tested.
            unsafe { quick_exit(6) }
        }),
        case("std_exit_inside_a_handler_aborts", Signal(libc::SIGABRT), &[], || {
            says("A");
            register(|| std::process::exit(3));
            OK
        }),
        // What is registered when.
        case("registered_by_a_thread_that_has_ended", Code(0), &["A"], || {
            on_a_thread(|| {
                says("A");
            });
            OK
        }),
        case("registered_by_a_handler_runs_next", Code(0), &["C", "B", "A"], || {
            says("A");
            register(|| {
                says("B");
                say("C");
            });
            OK
        }),
        // The thread registers while the process stack drains.
        case("what_another_thread_registers_runs_next", Code(0), &["C", "B", "A"], || {
            says("A");
            let (ask, asked) = mpsc::channel();
            let (answer, answered) = mpsc::channel();
            thread::spawn(move || {
                asked.recv().unwrap();
                says("B");
                answer.send(()).unwrap();
            });
            register(move || {
                ask.send(()).unwrap();
                answered.recv().unwrap();
                say("C");
            });
            OK
        }),
        case("registered_after_the_last_drain_is_refused", Code(0), &["A", "refused, and handed back: 7"], || {
            extern "C" fn later() {
                let seven = Box::new(7);
                let Err(refused) =
                    process_stack().try_register(move || say(&format!("refused, and handed back: {seven}")))
                else {
                    return say("taken");
                };
                refused.into_handler()();
                for _ in 0..40 {
                    register(|| say("unreachable"));
                }
            }
            // SAFETY: the handler is a function that does not unwind. Registered first, it runs last.
            unsafe { libc::atexit(later) };
            says("A");
            OK
        })
        .err("process: exit handler registered at")
        .err("was refused: the stack no longer accepts handlers"),
        // It would otherwise go on forever.
        case("a_handler_that_registers_itself_starves_none", Code(0), &["A"], || {
            fn again() {
                register(again);
            }
            says("A");
            again();
            OK
        })
        .err("refused"),
        case("a_single_further_refusal_is_counted", Code(0), &[], || {
            let plugin = Interpreter::new("plugin");
            plugin.finalize().unwrap();
            plugin.stack().register(|| ());
            plugin.stack().register(|| ());
            std::mem::forget(plugin);
            register(|| ()); // so that the process stack has something to drain
            OK
        })
        .err("process > plugin: 1 more exit handler was refused"),
        case("what_the_process_stack_refuses_is_counted", Code(0), &["A"], || {
            says("A");
            register(|| (0..65_539).for_each(|_| _ = register(|| ()))); // three too many, the first reported separately
            OK
        })
        .err("process: 2 more exit handlers were refused"),
        case("run_takes_65_536_late_ones", Code(0), &["65536"], || {
            counts_late_ones();
            Ok(run(|| ()))
        }),
        case("exit_takes_65_536_late_ones", Code(0), &["65536"], || {
            counts_late_ones();
            exit(0)
        }),
        case("c_exit_takes_65_536_late_ones", Code(0), &["65536"], || {
            counts_late_ones();
            c_exit(0)
        }),
        case("a_storm_of_registrations_by_threads_ends", Code(0), &["A"], || {
            says("A");
            for _ in 0..2 {
                thread::spawn(|| {
                    loop {
                        register(|| ());
                    }
                });
            }
            thread::sleep(std::time::Duration::from_millis(20)); // lets the storm build up; nothing depends on it
            c_exit(0)
        }),
        // C's exit from inside a drain. Here the drain continues where it was.
        case("c_exit_inside_a_handler_resumes_the_drain", Code(3), &["C", "B", "A", "another library's"], || {
            another_librarys_handler();
            says("A");
            says("B");
            register(|| {
                say("C");
                c_exit(3)
            });
            register(|| Err("reported once"));
            OK
        })
        .err("failed: reported once"),
        case(
            "c_exit_inside_a_nested_interpreters_handler",
            Code(3),
            &["C", "db 2", "db 1", "plugin", "A", "another library's"],
            || {
                another_librarys_handler();
                says("A");
                let [plugin, db] = plugin_whose_db_leaves(|| c_exit(3));
                db.stack().register(|| Err("disk full"));
                std::mem::forget((plugin, db));
                says("C");
                OK
            },
        )
        .err("process > plugin > db: exit handler registered at tests/exit/ways.rs"),
        case("exit_inside_a_nested_interpreters_handler", Code(3), &["db 2", "db 1", "plugin", "A"], || {
            says("A");
            let [plugin, db] = plugin_whose_db_leaves(|| exit(3));
            std::mem::forget((plugin, db));
            c_exit(1)
        }),
        // The process stack drains after that.
        case("exit_inside_a_finalize_resumes_it", Code(3), &["db 2", "db 1", "plugin", "C", "A"], || {
            says("A");
            let [plugin, db] = plugin_whose_db_leaves(|| exit(3));
            db.stack().register(|| Err("gathered before the exit"));
            says("C");
            let _ = plugin.finalize();
            say("never reached");
            OK
        })
        .err("process > plugin > db: exit handler")
        .err("gathered before the exit"),
        // The close had collected the failure, and never returns.
        case("c_exit_inside_a_close_reports_what_failed", Code(3), &["B", "A"], || {
            says("A");
            says("B");
            register(|| c_exit(3));
            register(|| Err("gathered before the exit"));
            let _ = process_stack().close();
            say("never reached");
            OK
        })
        .err("gathered before the exit"),
        case("interpreters_are_finalized_in_place_at_exit", Code(0), &["C", "plugin", "A"], || {
            says("A");
            let plugin = Interpreter::new("plugin");
            plugin.stack().register(|| say("plugin"));
            plugin.stack().register(|| Err("reported"));
            std::mem::forget(plugin);
            says("C");
            OK
        })
        .err("process > plugin: exit handler"),
        case("exit_waits_for_another_threads_finalize", Code(0), &["plugin", "A"], || {
            says("A");
            let (entered, inside) = mpsc::channel();
            let (let_go, released) = mpsc::channel::<()>();
            let plugin = Interpreter::new("plugin");
            plugin.stack().register(|| say("plugin"));
            plugin.stack().register(move || {
                entered.send(()).unwrap();
                let _ = released.recv();
            });
            thread::spawn(move || plugin.finalize());
            inside.recv().unwrap();
            register(move || drop(let_go));
            OK
        }),
        // The status.
        case("the_last_exit_code_asked_for_decides", Code(8), &["A", "another library's"], || {
            another_librarys_handler();
            says("A");
            register(|| Err(Exit(8)));
            register(|| Err(Exit(9)));
            OK
        }),
        case("an_exit_code_decides_after_a_panic_in_main", Code(8), &[], || {
            register(|| Err(Exit(8)));
            panic!("in main")
        }),
        case("an_exit_code_decides_after_std_exit", Code(8), &[], || {
            register(|| Err(Exit(8)));
            std::process::exit(1)
        }),
        case("an_exit_code_decides_after_a_threads_std_exit", Code(8), &[], || {
            register(|| Err(Exit(8)));
            on_a_thread(|| std::process::exit(1));
            OK
        }),
        case("an_exit_code_decides_after_c_exit", Code(8), &[], || {
            register(|| Err(Exit(8)));
            c_exit(1)
        }),
        case("an_exit_code_decides_after_exit", Code(8), &[], || {
            register(|| Err(Exit(8)));
            exit(1)
        }),
        case("an_exit_code_decides_what_run_returns", Code(8), &[], || {
            Ok(run(|| {
                register(|| Err(Exit(8)));
                Err::<(), _>("bad")
            }))
        }),
        case("an_exit_code_of_a_nested_interpreter_decides", Code(8), &[], || {
            let plugin = Interpreter::new("plugin");
            plugin.stack().register(|| Err(Exit(8)));
            std::mem::forget(plugin);
            OK
        }),
        case("an_exit_code_gathered_before_a_c_exit_decides", Code(8), &[], || {
            register(|| c_exit(3));
            register(|| Err(Exit(8)));
            OK
        }),
        case("a_failing_handler_does_not_change_the_status", Code(0), &[], || {
            register(|| Err("failed"));
            register(|| panic!("panicked"));
            OK
        })
        .err("failed: failed")
        .err("panicked: panicked"),
        // One of the buffers is Rust's, the other C's.
        case("buffers_are_flushed_under_a_decided_status", Code(8), &["C's buffer", "Rust's buffer"], || {
            register(|| Err(Exit(8)));
            // SAFETY: a NUL-terminated literal without directives.
            unsafe { libc::printf(c"C's buffer\n".as_ptr()) };
            // SAFETY: null means every stream.
            unsafe { libc::fflush(std::ptr::null_mut()) };
            print!("Rust's buffer");
            std::process::exit(1)
        }),
        case("cs_buffer_is_flushed_under_a_decided_status", Code(8), &["A", "C's buffer"], || {
            says("A");
            register(|| Err(Exit(8)));
            // SAFETY: a NUL-terminated literal without directives. It has no newline, at which musl might flush the
            // buffer.
            unsafe { libc::printf(c"C's buffer".as_ptr()) };
            c_exit(1)
        }),
        // Late thread-locals.
        a_thread_local_registers("what_a_thread_local_registers_runs_on_return", &["a thread-local's", "A"], || {
            REGISTERS.set(Some(Registers));
            says("A");
            OK
        }),
        a_thread_local_registers("what_thread_locals_register_runs_on_std_exit", &["a thread-local's", "A"], || {
            REGISTERS.set(Some(Registers));
            says("A");
            std::process::exit(0)
        }),
        a_thread_local_registers("what_a_thread_local_registers_runs_on_c_exit", &["a thread-local's", "A"], || {
            REGISTERS.set(Some(Registers));
            says("A");
            c_exit(0)
        }),
        a_thread_local_registers("what_a_thread_local_registers_runs_on_exit", &["A", "a thread-local's"], || {
            REGISTERS.set(Some(Registers));
            says("A");
            exit(0)
        }),
        // The interpreter is closed by then.
        a_thread_local_registers("what_a_thread_local_registers_runs_inside_enter", &["A", "a thread-local's"], || {
            REGISTERS.set(Some(Registers));
            says("A");
            Interpreter::new("plugin").enter(|| exit(0))
        }),
        a_thread_local_registers("what_a_thread_local_registers_runs_in_a_scope", &["A", "a thread-local's"], || {
            REGISTERS.set(Some(Registers));
            says("A");
            let _: Result<(), exitstack::CloseError> = Interpreter::scope("transaction", |_| exit(0));
            OK
        }),
        // The status that handlers decide is the one that `exit` was called with, but not the one that C's was.
        case(
            "the_status_of_exit_survives_another_c_exit",
            Code(5),
            if DROPS_THREAD_LOCALS { &["leaves", "a thread-local's"] } else { &[] },
            || {
                struct LeavesLater;
                impl Drop for LeavesLater {
                    fn drop(&mut self) {
                        drop(Registers);
                        register(|| {
                            say("leaves");
                            c_exit(3)
                        });
                    }
                }
                thread_local!(static LATER: Cell<Option<LeavesLater>> = const { Cell::new(None) });
                LATER.set(Some(LeavesLater));
                exit(5)
            },
        ),
        // A thread other than the main one calls `exit`.
        a_thread_local_registers("what_a_threads_thread_local_registers_runs", &["A", "a thread-local's"], || {
            says("A");
            on_a_thread(|| {
                REGISTERS.set(Some(Registers));
                exit(0)
            });
            OK
        }),
        a_thread_local_registers("what_a_thread_local_registers_runs_after_run", &["A", "a thread-local's"], || {
            REGISTERS.set(Some(Registers));
            Ok(run(|| {
                says("A");
                Ok::<_, String>(())
            }))
        }),
        a_thread_local_leaves("exit_in_a_thread_locals_drop_on_return", || {
            LEAVES.set(Some(Leaves));
            says("A");
            OK
        }),
        a_thread_local_leaves("exit_in_a_thread_locals_drop_on_std_exit", || {
            LEAVES.set(Some(Leaves));
            says("A");
            std::process::exit(0)
        }),
        a_thread_local_leaves("exit_in_a_thread_locals_drop_on_c_exit", || {
            LEAVES.set(Some(Leaves));
            says("A");
            c_exit(0)
        }),
        a_thread_local_leaves("exit_in_a_thread_locals_drop_on_exit", || {
            LEAVES.set(Some(Leaves));
            says("A");
            exit(0)
        }),
        // A thread other than the main one is in std's `exit`.
        a_thread_local_leaves("exit_works_in_a_threads_thread_locals_drop", || {
            says("A");
            on_a_thread(|| {
                LEAVES.set(Some(Leaves));
                std::process::exit(0)
            });
            OK
        }),
        // Large numbers. Here there are ten thousand.
        case("exits_inside_a_close_do_not_pile_up", Code(3), &["A", "10000"], || {
            static RAN: AtomicUsize = AtomicUsize::new(0);
            register(|| say(&RAN.load(Ordering::Relaxed).to_string()));
            says("A");
            for _ in 0..10_000 {
                register(|| {
                    RAN.fetch_add(1, Ordering::Relaxed);
                    exit(3)
                });
            }
            exit(process_stack().close().unwrap_err().exit_code().unwrap())
        }),
        // There are ten thousand.
        case("exits_inside_a_finalize_do_not_pile_up", Code(3), &["A", "10000"], || {
            static RAN: AtomicUsize = AtomicUsize::new(0);
            register(|| say(&RAN.load(Ordering::Relaxed).to_string()));
            says("A");
            let plugin = Interpreter::new("plugin");
            for _ in 0..10_000 {
                plugin.stack().register(|| {
                    RAN.fetch_add(1, Ordering::Relaxed);
                    exit(3)
                });
            }
            let _ = plugin.finalize();
            OK
        }),
        // Many interpreters refuse a few handlers each.
        case("many_refusals_are_counted_in_linear_time", Code(0), &["linear"], || {
            fn refuse_twice(interpreters: usize) -> Duration {
                let all: Vec<_> = (0..interpreters).map(|_| Interpreter::new("plugin")).collect();
                for plugin in &all {
                    plugin.finalize().unwrap();
                }
                let before = time_used();
                for plugin in &all {
                    plugin.stack().register(|| ());
                    plugin.stack().register(|| ());
                }
                time_used().saturating_sub(before)
            }
            exitstack::report::set_hook(Box::new(|_| ()));
            let least = |interpreters| refuse_twice(interpreters).min(refuse_twice(interpreters));
            let [few, many] = [10_000, 40_000].map(least);
            // Four times as many take four times as long, not sixteen times.
            if many < 9 * few {
                say("linear");
            } else {
                say(&format!("{few:?}, then {many:?}"));
            }
            OK
        }),
        // Locks held by others. Here another thread holds those of standard output and standard error forever.
        case("the_process_ends_though_its_output_is_locked", Code(0), &["B", "A"], || {
            says("A");
            register(|| Err("failed"));
            register(|| panic!("panicked"));
            says("B");
            let (locked, both) = mpsc::channel();
            thread::spawn(move || {
                let _out = std::io::stdout().lock();
                let _err = std::io::stderr().lock();
                locked.send(()).unwrap();
                loop {
                    thread::park();
                }
            });
            both.recv().unwrap();
            OK
        })
        .err("failed: failed")
        .err("panicked: panicked"),
        // The thread-local is gone when a handler accesses it.
        case("a_panic_over_a_lost_thread_local_is_contained", Code(0), &["A"], || {
            struct Log;
            impl Drop for Log {
                fn drop(&mut self) {
                    let _ = std::io::stdout().flush();
                }
            }
            thread_local!(static LOG: RefCell<Log> = const { RefCell::new(Log) });
            says("A");
            register(|| LOG.with(|_| ()));
            LOG.with(|_| ());
            OK
        })
        .err(if cfg!(target_env = "musl") {
            ""
        } else {
            "panicked: cannot access a Thread Local Storage value"
        }),
        case("a_hook_that_panics_stops_and_hides_nothing", Code(0), &["A"], || {
            says("A");
            register(|| Err("failed"));
            exitstack::report::set_hook(Box::new(|_| panic!("the hook")));
            OK
        })
        .err("failed: failed"),
        case("an_error_whose_drop_panics_stops_nothing", Code(8), &["A"], || {
            says("A");
            register(|| Err(Exit(8)));
            register(|| Err(Rude));
            OK
        })
        .err("failed: rude"),
        case("an_error_whose_drop_panics_does_not_stop_exit", Code(8), &["A"], || {
            says("A");
            register(|| Err(Rude));
            exitstack::exit(8)
        })
        .err("failed: rude"),
        case("an_error_whose_drop_panics_does_not_leave_run", Code(8), &["A"], || {
            Ok(exitstack::run(|| {
                says("A");
                register(|| Err(Exit(8)));
                register(|| Err(Rude));
                Ok::<(), String>(())
            }))
        })
        .err("failed: rude"),
        // Thread-locals are gone when the handlers run.
        case("current_follows_a_drain_past_thread_locals", Code(0), &["Some(\"plugin\")", "None"], || {
            let name = || say(&format!("{:?}", Interpreter::current().map(|current| current.name().to_owned())));
            register(name);
            let plugin = Interpreter::new("plugin");
            plugin.stack().register(name);
            std::mem::forget(plugin.clone());
            plugin.enter(|| std::process::exit(0))
        }),
    ]
}
