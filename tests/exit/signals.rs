//! Signals that end the process, with the feature `signals`. A child sends them to itself at a known moment; in the
//! last trials, they arrive at any moment.

use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};
use std::{io, ptr, thread};

use exitstack::shutdown::{Event, Limits, set_limits, set_observer};
use exitstack::signals::{Signals, requested};
use exitstack::{Exit, Interpreter, exit, process_stack, register, run};
use libc::{SIGCHLD, SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGQUIT, SIGSEGV, SIGTERM, SIGUSR1};
use libtest_mimic::{Failed, Trial};

use crate::Status::{Code, Signal};
use crate::child::{Rude, c_exit, full_pipe, say, says};
use crate::fork::{after, fork, pid, raw_clone, say_child};
use crate::limits::{exhaust_threads, restore_threads};
use crate::random::Random;
use crate::{Case, Ended, OK, can_run, case, minutes, run_child, runs_or, status_of};

/// So long that it never expires.
const LONG: Duration = Duration::from_secs(600);

/// Sends a signal to this process.
fn send(signal: i32) {
    // SAFETY: no preconditions.
    unsafe { libc::kill(pid(), signal) };
}

/// Counts every signal, however soon it follows another.
fn signals() -> Signals {
    Signals::new().repeat(Duration::ZERO)
}

fn park() -> ! {
    loop {
        thread::park();
    }
}

/// Waits until a signal has been noticed, in a handler without which the process cannot end.
fn await_request() {
    while requested().is_none() {
        thread::yield_now();
    }
}

fn says_outcome() {
    process_stack().on_failure(|| say("failed"));
    process_stack().on_success(|| say("succeeded"));
}

/// Installs, registers, sends the signal, and finally dies by it.
fn dies_by(signal: i32) -> Ended {
    let caught = signals().install().map_err(|error| error.to_string())?;
    assert_eq!(caught, [SIGINT, SIGTERM, SIGHUP]);
    says("A");
    says_outcome();
    register(|| say(&format!("{:?}", requested())));
    send(signal);
    park()
}

/// Lets four handlers be refused.
fn is_refused() {
    let plugin = Interpreter::new("plugin");
    plugin.finalize().unwrap();
    (0..4).for_each(|_| _ = plugin.stack().register(|| ()));
    std::mem::forget(plugin);
}

/// Registers a handler that says this line, sends the next signal, and never returns.
fn sticks(line: &'static str, next: i32) {
    register(move || {
        say(line);
        send(next);
        park()
    });
}

/// Registers a handler that sends a signal, and after that another one, and never returns.
fn sticks_until_given_up() {
    register(|| {
        say("sticks");
        send(SIGTERM);
        await_request();
        send(SIGHUP);
        park()
    });
}

/// A child created by `forked` sends itself a signal that the parent catches.
fn child_dies_of_a_signal(forked: impl Fn(fn() -> Ended) -> Result<i32, Ended>) -> Ended {
    signals().install().unwrap();
    says("A");
    let child = forked(|| {
        says("not run");
        say(&format!("child {:?}", requested()));
        send(SIGINT);
        park()
    });
    after(child, |status| {
        say_child(status);
        send(SIGTERM);
        park()
    })
}

/// Registers a handler that sends a signal and waits until a thread of the library has noticed it.
fn is_interrupted(signal: i32) {
    register(move || {
        say("interrupted");
        send(signal);
        await_request();
    });
}

/// A thread-local whose drop, on the way out, takes so long that other threads get ahead.
struct Slow;

impl Drop for Slow {
    fn drop(&mut self) {
        thread::sleep(Duration::from_millis(200));
    }
}

/// A thread-local whose drop, on the way out, sends a signal and waits until all handlers have run.
struct Interrupted;

impl Drop for Interrupted {
    fn drop(&mut self) {
        send(SIGTERM);
        await_request();
        while !process_stack().is_empty() || process_stack().try_register(|| ()).is_ok() {
            thread::yield_now();
        }
    }
}

thread_local! {
    static SLOW: Slow = const { Slow };
    static INTERRUPTED: Interrupted = const { Interrupted };
}

fn action_of(signal: i32) -> (usize, i32) {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: null changes nothing, and the variable is live.
    unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeros is a valid value.
    let action = unsafe { action.assume_init() };
    (action.sa_sigaction, action.sa_flags)
}

fn set_action(signal: i32, to: usize) {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeros is a valid value.
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = to;
    // SAFETY: `to` is a function that only stores to an atomic, or one of C's constants.
    assert_eq!(unsafe { libc::sigaction(signal, action, ptr::null_mut()) }, 0);
}

/// The signals that this thread blocks.
fn mask() -> Vec<i32> {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: null changes nothing, and the variable is live.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), set.as_mut_ptr()) };
    // SAFETY: filled above.
    let set = unsafe { set.assume_init() };
    // SAFETY: the set is live.
    (1..=64).filter(|&signal| unsafe { libc::sigismember(&raw const set, signal) } == 1).collect()
}

/// Installs with a grace period, sends a signal, waits for the request, and calls `then`.
fn on_request(then: impl FnOnce() + Send + 'static) {
    let (asked, when) = mpsc::channel();
    signals().grace(LONG).on_request(move |signal| asked.send(signal).unwrap()).install().unwrap();
    says("A");
    says_outcome();
    send(SIGTERM);
    assert_eq!(when.recv(), Ok(SIGTERM));
    then();
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("ctrl_c_kills_after_the_handlers", Signal(SIGINT), &["Some(2)", "failed", "A"], || dies_by(SIGINT)),
        case("sigterm_kills_after_the_handlers", Signal(SIGTERM), &["Some(15)", "failed", "A"], || dies_by(SIGTERM)),
        case("sighup_kills_after_the_handlers", Signal(SIGHUP), &["Some(1)", "failed", "A"], || dies_by(SIGHUP)),
        case("a_signal_kills_though_nothing_is_registered", Signal(SIGTERM), &[], || {
            signals().install().unwrap();
            send(SIGTERM);
            park()
        }),
        case("a_signal_drains_interpreters_too", Signal(SIGINT), &["current Some(\"plugin\")", "A"], || {
            signals().install().unwrap();
            says("A");
            let plugin = Interpreter::new("plugin");
            plugin.stack().register(|| {
                let current = Interpreter::current();
                say(&format!("current {:?}", current.as_ref().map(Interpreter::name)));
            });
            send(SIGINT);
            park()
        }),
        case("only_the_signals_asked_for_are_caught", Signal(SIGINT), &["[10]"], || {
            say(&format!("{:?}", signals().only(&[SIGUSR1]).install().unwrap()));
            says("A");
            send(SIGINT);
            park()
        }),
        case("a_user_signal_can_end_the_process", Signal(SIGUSR1), &["A"], || {
            signals().only(&[SIGUSR1]).install().unwrap();
            says("A");
            send(SIGUSR1);
            park()
        }),
        #[cfg(target_os = "linux")]
        case("a_real_time_signal_can_end_the_process", Signal(libc::SIGRTMIN() + 3), &["A"], || {
            signals().only(&[libc::SIGRTMIN() + 3]).install().unwrap();
            says("A");
            send(libc::SIGRTMIN() + 3);
            park()
        }),
        #[cfg(target_os = "linux")]
        case("a_power_failure_can_end_the_process", Signal(libc::SIGPWR), &["A"], || {
            signals().only(&[libc::SIGPWR]).install().unwrap();
            says("A");
            send(libc::SIGPWR);
            park()
        }),
        #[cfg(target_os = "linux")]
        case("input_that_is_ready_can_end_the_process", Signal(libc::SIGIO), &["A"], || {
            signals().only(&[libc::SIGIO]).install().unwrap();
            says("A");
            send(libc::SIGIO);
            park()
        }),
        #[cfg(target_os = "linux")]
        case("any_signal_has_its_default_in_a_child", Code(0), &["true", "true", "true"], || {
            let all = [libc::SIGRTMIN() + 3, libc::SIGPWR, libc::SIGIO];
            signals().only(&all).install().unwrap();
            for signal in all {
                let forked = fork(|| {
                    send(signal);
                    park()
                });
                match forked {
                    Ok(status) => say(&(status == -signal).to_string()),
                    Err(ended) => return ended,
                }
            }
            OK
        }),
        // What other libraries have registered for it is still called then.
        case("a_signal_that_is_ignored_by_default_stays_caught_in_a_child", Code(0), &["true", "child 0"], || {
            signals().only(&[libc::SIGURG]).install().unwrap();
            let forked = fork(|| {
                let before = action_of(libc::SIGURG);
                send(libc::SIGURG);
                say(&(action_of(libc::SIGURG) == before).to_string());
                OK
            });
            after(forked, say_child)
        }),
        // By default it is ignored, so the process ends with the status that a shell would show.
        case("an_urgent_condition_can_end_the_process", Code(128 + libc::SIGURG), &["A"], || {
            signals().only(&[libc::SIGURG]).install().unwrap();
            says("A");
            send(libc::SIGURG);
            park()
        }),
        case("an_end_with_nothing_registered_is_observed", Code(0), &["began", "ended"], || {
            set_observer(Box::new(|event| match event {
                Event::Began(_) => say("began"),
                Event::Ended(_) => say("ended"),
                _ => {}
            }));
            signals().install().unwrap();
            OK
        }),
        case("without_threads_no_signal_is_caught", Signal(SIGTERM), &["A"], || {
            set_limits(Limits::new()).unwrap(); // the thread for these is there already
            let before = action_of(SIGTERM);
            exhaust_threads();
            assert!(signals().install().is_err());
            restore_threads();
            assert_eq!(action_of(SIGTERM), before);
            says("A");
            assert_eq!(signals().install().unwrap(), [SIGINT, SIGTERM, SIGHUP]);
            send(SIGTERM);
            park()
        }),
        case("a_signal_kills_though_nobody_reads_the_output", Signal(SIGTERM), &[], || {
            full_pipe(libc::STDOUT_FILENO);
            print!("held back");
            signals().install().unwrap();
            send(SIGTERM);
            park()
        }),
        case("exit_decides_though_nobody_reads_the_output", Code(7), &[], || {
            full_pipe(libc::STDOUT_FILENO);
            print!("held back");
            signals().install().unwrap();
            register(|| Err(Exit(7)));
            send(SIGTERM);
            park()
        }),
        case("refusals_are_counted_on_the_way_out_by_a_signal", Signal(SIGTERM), &[], || {
            signals().install().unwrap();
            is_refused();
            send(SIGTERM);
            park()
        })
        .err("process > plugin: 3 more exit handlers were refused"),
        case("refusals_are_counted_if_main_returns_in_time", Signal(SIGTERM), &["succeeded", "A"], || {
            is_refused();
            on_request(|| std::process::exit(5));
            OK
        })
        .err("process > plugin: 3 more exit handlers were refused"),
        // What decides the status.
        case("exit_of_a_handler_decides_over_a_signal", Code(7), &["B", "A", "another library's"], || {
            crate::child::another_librarys_handler();
            signals().install().unwrap();
            says("A");
            register(|| Err(Exit(7)));
            says("B");
            send(SIGTERM);
            park()
        }),
        case("exit_called_in_a_handler_decides_over_it", Code(8), &["A"], || {
            signals().install().unwrap();
            says("A");
            register(|| exit(8));
            send(SIGTERM);
            park()
        }),
        case("exit_during_the_grace_decides", Code(5), &["failed", "A"], || {
            on_request(|| exit(5));
            OK
        }),
        case("std_exit_during_the_grace_does_not", Signal(SIGTERM), &["succeeded", "A"], || {
            on_request(|| std::process::exit(5));
            OK
        }),
        case("c_exit_during_the_grace_does_not", Signal(SIGTERM), &["succeeded", "A"], || {
            on_request(|| c_exit(5));
            OK
        }),
        // Grace.
        case("main_may_return_during_the_grace", Signal(SIGTERM), &["on main true", "succeeded", "A"], || {
            on_request(|| ());
            let main = thread::current().id();
            register(move || say(&format!("on main {}", thread::current().id() == main)));
            OK
        }),
        case("main_may_fail_during_the_grace", Signal(SIGTERM), &["succeeded", "A"], || {
            on_request(|| ());
            Err("failed".into())
        })
        .err("Error: \"failed\""),
        case("run_may_return_during_the_grace", Signal(SIGTERM), &["on main true", "failed", "A", "ran"], || {
            let main = thread::current().id();
            let status = run(|| {
                on_request(|| ());
                register(move || say(&format!("on main {}", thread::current().id() == main)));
                Err::<(), _>("asked")
            });
            say("ran");
            Ok(status)
        })
        .err("asked"),
        case("the_grace_ends_if_main_does_not", Signal(SIGTERM), &["failed", "A"], || {
            signals().grace(Duration::from_millis(50)).install().unwrap();
            says("A");
            says_outcome();
            send(SIGTERM);
            park()
        }),
        case("the_request_is_told_once_on_a_thread", Signal(SIGTERM), &["asked 15 true", "A"], || {
            let main = thread::current().id();
            let told = move |signal| {
                say(&format!("asked {signal} {}", thread::current().id() != main));
                send(SIGHUP); // the second step: the handlers run although the grace period is not over
            };
            signals().grace(LONG).on_request(told).install().unwrap();
            says("A");
            send(SIGTERM);
            park()
        }),
        case("the_request_is_told_without_grace_too", Signal(SIGINT), &["asked 2", "A"], || {
            signals().on_request(|signal| say(&format!("asked {signal}"))).install().unwrap();
            says("A");
            send(SIGINT);
            park()
        }),
        case("a_request_that_panics_stops_nothing", Signal(SIGINT), &["A"], || {
            signals().on_request(|_| panic!("told")).install().unwrap();
            says("A");
            send(SIGINT);
            park()
        })
        .err("told"),
        case("a_request_whose_capture_panics_stops_nothing", Signal(SIGINT), &["asked", "A"], || {
            let rude = Rude;
            let asked = move |_| {
                let _ = &rude;
                say("asked");
            };
            signals().on_request(asked).install().unwrap();
            says("A");
            send(SIGINT);
            park()
        }),
        // Steps.
        case("the_second_signal_gives_up_what_runs", Signal(SIGINT), &["sticks", "B", "failed", "A"], || {
            signals().install().unwrap();
            says("A");
            says_outcome();
            says("B");
            sticks("sticks", SIGTERM);
            send(SIGINT);
            park()
        })
        .err("exit handler registered at "),
        case("the_third_signal_kills", Signal(SIGINT), &["B", "sticks", "sticks too"], || {
            signals().install().unwrap();
            says("A");
            sticks("sticks too", SIGHUP);
            sticks("sticks", SIGTERM);
            says("B");
            send(SIGINT);
            park()
        }),
        case("with_grace_the_third_signal_gives_up", Signal(SIGINT), &["asked", "sticks", "A"], || {
            let asked = |_| {
                say("asked");
                send(SIGTERM);
            };
            signals().grace(LONG).on_request(asked).install().unwrap();
            says("A");
            sticks("sticks", SIGHUP);
            send(SIGINT);
            park()
        }),
        case("with_grace_the_fourth_signal_kills", Signal(SIGINT), &["asked", "sticks", "sticks too"], || {
            let asked = |_| {
                say("asked");
                send(SIGTERM);
            };
            signals().grace(LONG).on_request(asked).install().unwrap();
            says("A");
            sticks("sticks too", SIGTERM);
            sticks("sticks", SIGHUP);
            send(SIGINT);
            park()
        }),
        case("signals_without_a_pause_count_in_time", Signal(SIGINT), &["sticks", "A"], || {
            static IS_OVER: AtomicBool = AtomicBool::new(false);
            Signals::new().repeat(Duration::from_millis(300)).install().unwrap();
            register(|| IS_OVER.store(true, Ordering::Relaxed));
            says("A");
            register(|| {
                say("sticks");
                while !IS_OVER.load(Ordering::Relaxed) {
                    send(SIGINT);
                    thread::sleep(Duration::from_millis(10));
                }
                park()
            });
            send(SIGINT);
            park()
        }),
        case("repeated_signals_count_once", Signal(SIGINT), &["A"], || {
            Signals::new().repeat(LONG).install().unwrap();
            register(|| {
                for signal in [SIGTERM, SIGHUP, SIGINT] {
                    send(signal);
                }
                // If they counted, this handler would be given up and say nothing.
                thread::sleep(Duration::from_millis(200));
                say("A");
            });
            send(SIGINT);
            park()
        }),
        case("two_signals_at_once_count_once_by_default", Signal(SIGTERM), &["A"], || {
            Signals::new().only(&[SIGTERM]).install().unwrap();
            register(|| {
                send(SIGTERM);
                thread::sleep(Duration::from_millis(200));
                say("A");
            });
            send(SIGTERM);
            park()
        }),
        case("limits_hold_on_the_way_out_by_a_signal", Signal(SIGTERM), &["sticks", "A"], || {
            set_limits(Limits::new().each(Duration::from_millis(50)).status(3)).unwrap();
            signals().install().unwrap();
            says("A");
            register(|| {
                say("sticks");
                park()
            });
            send(SIGTERM);
            park()
        }),
        case("a_code_decides_though_a_handler_was_given_up", Code(9), &["sticks", "A"], || {
            signals().install().unwrap();
            says("A");
            register(|| Err(Exit(9)));
            sticks("sticks", SIGTERM);
            send(SIGINT);
            park()
        }),
        // std's `exit` is the parent's: in the child it would wait for a thread that is not there.
        case("exit_decides_in_a_child_of_an_exiting_process", Code(0), &["the child's", "child 7"], || {
            register(|| {
                let forked = fork(|| {
                    signals().install().unwrap();
                    says("the child's");
                    register(|| Err(Exit(7)));
                    send(SIGTERM);
                    park()
                });
                if let Ok(status) = forked {
                    say_child(status);
                }
            });
            std::process::exit(0)
        }),
        // While something is already draining.
        case("a_signal_during_exit_runs_nothing_twice", Code(4), &["B", "interrupted", "failed", "A"], || {
            signals().install().unwrap();
            says("A");
            says_outcome();
            is_interrupted(SIGTERM);
            says("B");
            exit(4)
        }),
        case("a_signal_does_not_stop_an_exit_under_way", Code(4), &["interrupted", "A"], || {
            // The thread that answers the signal finishes the last drain before this one does.
            SLOW.with(|_| ());
            signals().install().unwrap();
            says("A");
            is_interrupted(SIGTERM);
            exit(4)
        }),
        case("a_signals_code_is_that_of_an_exit_under_way", Code(7), &["A"], || {
            INTERRUPTED.with(|_| ());
            signals().install().unwrap();
            says("A");
            register(|| Err(Exit(7)));
            std::process::exit(4)
        }),
        case("a_signal_during_std_exit_decides_the_end", Signal(SIGTERM), &["interrupted", "A"], || {
            signals().install().unwrap();
            says("A");
            is_interrupted(SIGTERM);
            std::process::exit(4)
        }),
        case("a_signal_during_c_exit_decides_the_end", Signal(SIGTERM), &["interrupted", "A"], || {
            signals().install().unwrap();
            says("A");
            is_interrupted(SIGTERM);
            c_exit(4)
        }),
        case("a_signal_while_main_has_returned_decides_too", Signal(SIGTERM), &["interrupted", "A"], || {
            signals().install().unwrap();
            says("A");
            is_interrupted(SIGTERM);
            OK
        }),
        case("a_signal_during_the_end_of_run_decides_too", Signal(SIGINT), &["interrupted", "A"], || {
            Ok(run(|| {
                signals().install().unwrap();
                says("A");
                is_interrupted(SIGINT);
            }))
        }),
        case("a_signal_during_a_close_goes_on_after_it", Signal(SIGINT), &["interrupted", "A"], || {
            signals().install().unwrap();
            says("A");
            is_interrupted(SIGINT);
            process_stack().close().unwrap();
            park()
        }),
        case("a_signal_during_a_finalize_waits_for_it", Signal(SIGINT), &["interrupted", "plugin's", "A"], || {
            signals().install().unwrap();
            says("A");
            let plugin = Interpreter::new("plugin");
            plugin.stack().register(|| say("plugin's"));
            plugin.stack().register(|| {
                say("interrupted");
                send(SIGINT);
                await_request();
            });
            plugin.finalize().unwrap();
            park()
        }),
        // The step that gives up the handler on the main thread must not also give up what runs after it.
        case("one_step_gives_up_one_handler", Signal(SIGTERM), &["sticks", "slow", "slow", "A"], || {
            signals().install().unwrap();
            says("A");
            for _ in 0..2 {
                register(|| {
                    thread::sleep(Duration::from_millis(100)); // time in which it could be given up
                    say("slow");
                });
            }
            sticks_until_given_up();
            exit(4)
        }),
        case("what_sticks_in_a_close_is_given_up_too", Signal(SIGTERM), &["sticks", "A"], || {
            signals().install().unwrap();
            says("A");
            sticks_until_given_up();
            let _ = process_stack().close();
            park()
        }),
        // Forked children.
        case("a_forked_child_has_the_default_action", Signal(SIGTERM), &["child None", "child -2", "A"], || {
            child_dies_of_a_signal(fork)
        }),
        case("a_raw_clone_has_the_default_action", Signal(SIGTERM), &["child None", "child -2", "A"], || {
            child_dies_of_a_signal(raw_clone)
        }),
        case("a_child_forked_after_the_signal_is_not_asked", Signal(SIGINT), &["child None", "child 3", "A"], || {
            signals().install().unwrap();
            says("A");
            register(|| {
                let forked = fork(|| {
                    say(&format!("child {:?}", requested()));
                    exit(3)
                });
                let _ = after(forked, say_child);
            });
            send(SIGINT);
            park()
        }),
        case(
            "a_forked_child_may_install_its_own",
            Signal(SIGTERM),
            &["[15]", "own", "child -15", "child -2", "A"],
            || {
                signals().install().unwrap();
                says("A");
                let own = fork(|| {
                    say(&format!("{:?}", signals().only(&[SIGTERM]).install().unwrap()));
                    says("own");
                    send(SIGTERM);
                    park()
                });
                let other = after(own, say_child);
                let not_caught = fork(|| {
                    signals().only(&[SIGTERM]).install().unwrap();
                    send(SIGINT);
                    park()
                });
                other.and(after(not_caught, |status| {
                    say_child(status);
                    send(SIGTERM);
                    park()
                }))
            },
        ),
        // Beside other users of signals.
        case("a_signal_flushes_what_print_holds_back", Signal(SIGINT), &["A", "held back"], || {
            signals().install().unwrap();
            says("A");
            print!("held back");
            send(SIGINT);
            park()
        }),
        case("a_locked_stdout_delays_the_end_but_little", Signal(SIGINT), &["A"], || {
            let (locked, is_locked) = mpsc::channel();
            thread::spawn(move || {
                let stdout = io::stdout().lock();
                locked.send(()).unwrap();
                let _stdout = stdout;
                park()
            });
            is_locked.recv().unwrap();
            signals().install().unwrap();
            says("A");
            send(SIGINT);
            park()
        }),
        case("no_mask_and_no_other_action_is_changed", Code(0), &["[10] true true", "here [10]"], || {
            // SAFETY: all zeros is a valid value.
            let mut blocked: libc::sigset_t = unsafe { std::mem::zeroed() };
            // SAFETY: the set is live.
            unsafe { libc::sigaddset(&raw mut blocked, SIGUSR1) };
            // SAFETY: the set is live.
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, ptr::null_mut()) };
            let others = || (1..=31).filter(|signal| ![SIGINT, SIGTERM, SIGHUP].contains(signal)).map(action_of);
            let before: Vec<_> = others().collect();
            signals().install().unwrap();
            let same = before == others().collect::<Vec<_>>();
            say(&format!("{:?} {same} {}", mask(), before.contains(&action_of(SIGQUIT)) && action_of(SIGPIPE).0 == 1));
            register(|| say(&format!("here {:?}", mask())));
            OK
        }),
        case("signals_are_installed_once", Code(0), &["AlreadyExists"], || {
            signals().install().unwrap();
            say(&format!("{:?}", signals().install().unwrap_err().kind()));
            OK
        }),
        case("what_cannot_be_caught_is_an_error", Code(0), &["InvalidInput", "InvalidInput", "InvalidInput"], || {
            for signal in [SIGKILL, SIGSEGV, 1000] {
                let kind = signals().only(&[SIGUSR1, signal]).install().unwrap_err().kind();
                say(&format!("{kind:?}"));
            }
            // That changed nothing.
            assert_eq!(action_of(SIGUSR1).0, libc::SIG_DFL);
            assert_eq!(signals().install().unwrap(), [SIGINT, SIGTERM, SIGHUP]);
            OK
        }),
        case("a_later_sigaction_replaces_ours", Code(0), &["theirs", "None", "A"], || {
            static CAME: AtomicBool = AtomicBool::new(false);
            extern "C" fn theirs(_: i32) {
                CAME.store(true, Ordering::SeqCst);
            }
            signals().install().unwrap();
            says("A");
            set_action(SIGTERM, theirs as *const () as usize);
            send(SIGTERM);
            while !CAME.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            say("theirs");
            say(&format!("{:?}", requested()));
            OK
        }),
        beside_another_iterator("an_iterator_made_before_is_told_too", true),
        beside_another_iterator("an_iterator_made_afterwards_is_told_too", false),
        case("a_child_that_ends_is_no_request", Code(0), &["child 0", "None"], || {
            signals().install().unwrap();
            let forked = fork(|| std::process::exit(0));
            after(forked, |status| {
                say_child(status);
                say(&format!("{:?}", requested()));
            })
        }),
    ]
}

/// A program that also uses signal-hook's own iterator.
fn beside_another_iterator(name: &'static str, before: bool) -> Case {
    fn iterator() -> mpsc::Receiver<i32> {
        let (came, when) = mpsc::channel();
        let mut theirs = signal_hook::iterator::Signals::new([SIGTERM, SIGCHLD]).unwrap();
        thread::spawn(move || theirs.forever().for_each(|signal| came.send(signal).unwrap()));
        when
    }
    fn program(before: bool) -> Ended {
        let first = before.then(iterator);
        signals().install().unwrap();
        let theirs = first.unwrap_or_else(iterator);
        register(move || say(&format!("theirs {:?}", theirs.recv())));
        send(SIGTERM);
        park()
    }
    let child: fn() -> Ended = if before { || program(true) } else { || program(false) };
    case(name, Signal(SIGTERM), &["theirs Ok(15)"], child)
}

/// The cases, programs that are started in a special way, and random runs.
pub(crate) fn trials() -> Vec<Trial> {
    let cases = cases().into_iter().filter(can_run);
    let mut trials: Vec<Trial> = cases.map(|case| trial(case.name, move || case.check())).collect();
    trials.extend([
        trial("an_ignored_signal_stays_ignored", ignored),
        trial("process_1_ends_with_a_status", process_1),
        trial("ctrl_c_stops_a_shells_loop", shells_loop),
        trial("a_locked_stdout_costs_a_tenth_of_a_second", locked_stdout),
        trial("an_exit_under_way_may_still_decide", decided_late),
        trial("debug_shows_what_is_caught_and_when", shown),
    ]);
    for way in WAYS {
        trials.push(trial(&format!("signals_race_with_{way}"), move || race_with(way)));
    }
    trials
}

/// `.ci/run` selects these by their prefix, since the others need no feature.
fn trial(name: &str, run: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    Trial::test(format!("signals::{name}"), run)
}

/// This program as the child of that case. It must kill itself if it hangs.
fn command(case: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a test has a path"));
    command.env("EXITSTACK_CASE", case).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    command
}

fn shown() -> Result<(), Failed> {
    let signals = Signals::new().only(&[SIGTERM]).grace(Duration::from_secs(3)).repeat(Duration::from_secs(4));
    let shown = format!("{:?}", signals.on_request(|_| ()));
    let is_right = shown == "Signals { caught: [15], grace: 3s, repeat: 4s, .. }";
    if is_right { Ok(()) } else { Err(shown.into()) }
}

/// As with `nohup`, or in the background of a shell without job control.
fn ignored() -> Result<(), Failed> {
    let mut command = command("signals_ignored");
    let ignore = || {
        set_action(SIGHUP, libc::SIG_IGN);
        set_action(SIGINT, libc::SIG_IGN);
        Ok(())
    };
    // SAFETY: the closure, which runs in the child, makes only system calls.
    let output = unsafe { command.pre_exec(ignore) }.output()?;
    let out = String::from_utf8_lossy(&output.stdout);
    if (status_of(&output), &*out) == (Signal(SIGTERM), "[15]\nignored\nSome(15)\n") {
        return Ok(());
    }
    Err(format!("{output:?}").into())
}

pub(crate) fn child_with_ignored() -> Ended {
    // SAFETY: no preconditions.
    unsafe { libc::alarm(60 * minutes()) };
    say(&format!("{:?}", signals().install().unwrap()));
    assert_eq!([action_of(SIGINT).0, action_of(SIGHUP).0], [libc::SIG_IGN; 2]);
    send(SIGINT);
    send(SIGHUP);
    say("ignored");
    register(|| say(&format!("{:?}", requested())));
    send(SIGTERM);
    park()
}

fn process_1() -> Result<(), Failed> {
    let may = Command::new("unshare").args(["--pid", "--fork", "true"]).output();
    if !may.is_ok_and(|output| output.status.success()) {
        eprintln!("process_1_ends_with_a_status: skipped, this user may not make a PID namespace");
        return Ok(());
    }
    for (case, status, out) in [
        ("sigterm_kills_after_the_handlers", 128 + SIGTERM, "Some(15)\nfailed\nA\n"),
        ("the_third_signal_kills", 128 + SIGINT, "B\nsticks\nsticks too\n"),
        ("std_exit_during_the_grace_does_not", 128 + SIGTERM, "succeeded\nA\n"),
        ("exit_during_the_grace_decides", 5, "failed\nA\n"),
    ] {
        let mut unshare = crate::timeout();
        unshare.args(["unshare", "--pid", "--fork", "--kill-child"]).arg(std::env::current_exe()?);
        let output = unshare.env("EXITSTACK_CASE", case).env("RUST_BACKTRACE", "0").output()?;
        if status_of(&output) != Code(status) || output.stdout != out.as_bytes() {
            return Err(format!("{case}: {output:?}").into());
        }
    }
    Ok(())
}

/// bash continues a loop if its command caught the signal and exited, but not if the command died by the signal.
fn shells_loop() -> Result<(), Failed> {
    let mut bash = Command::new("bash");
    bash.args(["-c", "for i in 1 2 3; do \"$0\"; done; echo after"]).arg(std::env::current_exe()?);
    bash.env("EXITSTACK_CASE", "signals_to_the_group").env("RUST_BACKTRACE", "0").process_group(0);
    // A shell cannot catch a signal that was ignored when it started, for example if these tests run in the background.
    let reset = || {
        set_action(SIGINT, libc::SIG_DFL);
        Ok(())
    };
    // SAFETY: the closure, which runs in the child, makes only system calls.
    let output = unsafe { bash.pre_exec(reset) }.output()?;
    if (status_of(&output), &*output.stdout) == (Signal(SIGINT), b"A\n") {
        return Ok(());
    }
    Err(format!("{output:?}").into())
}

pub(crate) fn child_of_a_shell() -> Ended {
    // SAFETY: no preconditions.
    unsafe { libc::alarm(60 * minutes()) };
    signals().install().unwrap();
    says("A");
    // SAFETY: no preconditions. The shell is in the process group, as with Ctrl-C.
    unsafe { libc::kill(0, SIGINT) };
    park()
}

fn locked_stdout() -> Result<(), Failed> {
    let began = Instant::now();
    let output = run_child("a_locked_stdout_delays_the_end_but_little", &[]);
    let took = began.elapsed();
    // The lower bound shows that the end did wait for the lock.
    if status_of(&output) == Signal(SIGINT) && (100..10_000).contains(&took.as_millis()) {
        return Ok(());
    }
    Err(format!("after {took:?}: {output:?}").into())
}

/// A signal arrives while `main` exits. What its handlers decide counts even if the thread that answers the signal finds the
/// drain over before `main` has looked at the result.
fn decided_late() -> Result<(), Failed> {
    let mut random = Random::stream(15, 1);
    for run in 0..10 * runs_or(20) {
        let way = ["return", "exit"][run % 2].to_owned();
        let spins = random.below(60_000).to_string();
        let output = run_child("signals_decided_late", &[way.clone(), spins.clone()]);
        if (status_of(&output), &*output.stdout) != (Code(7), b"A\n") {
            return Err(format!("run {run}, {way} after {spins} spins: {output:?}").into());
        }
    }
    Ok(())
}

pub(crate) fn child_that_decides_late() -> Ended {
    let mut args = std::env::args().skip(1);
    let exits = args.next().ok_or("a way out")? == "exit";
    let spins = args.next().and_then(|spins| spins.parse().ok()).ok_or("a number")?;
    signals().install().unwrap();
    says("A");
    register(move || {
        send(SIGINT);
        spin(spins);
        await_request();
        Err(Exit(7))
    });
    if exits {
        exit(3)
    }
    OK
}

/// What `main` does while signals arrive.
const WAYS: [&str; 8] = ["return", "std", "c", "exit", "run", "close", "fork", "park"];

/// The number of handlers.
const HANDLERS: usize = 50;

/// The handler that does not return in some of the runs.
const STUCK: usize = HANDLERS / 2;

/// Sends one, two or three signals at random moments. Each handler must run at most once and in order, and all of them
/// unless the third signal killed the process. The status must be one that was requested.
fn race_with(way: &'static str) -> Result<(), Failed> {
    let mut random = Random::stream(15, way.bytes().map(u64::from).sum());
    let (mut by_status, mut by_signal, mut gave_up, mut killed) = (0, 0, 0, 0);
    let runs = runs_or(13);
    for run in 0..runs {
        // All different: of two equal signals, the second may arrive while the first is still pending.
        let mut sent = [SIGINT, SIGTERM, SIGHUP];
        sent.rotate_left(run % 3);
        let count = 1 + run / 3 % 3;
        let sent = &sent[..count];
        let sticks = count > 1 && run % 2 == 1;
        let between = if run % 4 == 1 { 10_000 } else { 1_000_000 };
        let mut arguments = vec![way.to_owned(), sticks.to_string()];
        arguments.extend([60_000, 30_000, between].map(|limit| random.below(limit).to_string()));
        arguments.extend(sent.iter().map(i32::to_string));
        let output = run_child("signals", &arguments);
        let out = String::from_utf8_lossy(&output.stdout);
        let status = status_of(&output);
        let bad = |why: &str| Err(format!("run {run} of {runs}, {why}: {arguments:?} {output:?}").into());
        let mut seen: Vec<usize> = Vec::new();
        for line in out.lines() {
            match line.parse() {
                Ok(handler) if !seen.contains(&handler) => seen.push(handler),
                Ok(_) => return bad("a handler ran twice"),
                Err(_) => return bad("something else was said"),
            }
        }
        // A handler that was given up may say its line late.
        if seen.windows(2).filter(|pair| pair[0] < pair[1]).count() >= count {
            return bad("out of order");
        }
        let expected = match way {
            "std" => Some(4),
            "c" => Some(5),
            "exit" => Some(6),
            "return" | "run" => Some(0),
            _ => None, // it can only end by a signal
        };
        let is_killed = seen.len() < HANDLERS;
        match status {
            Signal(by) if sent.contains(&by) && is_killed && count == 3 => killed += 1,
            _ if is_killed => return bad("not all ran"),
            Signal(by) if sent.contains(&by) => by_signal += 1,
            Code(code) if Some(code) == expected => by_status += 1,
            _ => return bad("another status"),
        }
        gave_up += usize::from(sticks && !is_killed);
    }
    if std::env::var_os("EXITSTACK_RUNS").is_some() {
        let ends = format!("{by_status} by status, {by_signal} by signal, {killed} killed by the third signal");
        eprintln!("signals race with {way}: {runs} runs, {ends}; {gave_up} gave up a handler");
    }
    Ok(())
}

fn spin(times: u64) {
    (0..times).for_each(|_| std::hint::spin_loop());
}

pub(crate) fn child_that_races() -> Ended {
    static IS_STUCK: AtomicBool = AtomicBool::new(false);
    let arguments: Vec<String> = std::env::args().collect();
    let [_, way, sticks, before, until_leaving, between, sent @ ..] = &arguments[..] else {
        return Err("way, sticks, three delays, signals".into());
    };
    let number = |text: &String| text.parse::<u64>().map_err(|_| "a number");
    let (before, until_leaving, between) = (number(before)?, number(until_leaving)?, number(between)?);
    let sent: Vec<i32> = sent.iter().filter_map(|signal| signal.parse().ok()).collect();
    let (sticks, first) = (sticks == "true", sent[0]);
    signals().install().map_err(|error| error.to_string())?;
    for handler in 0..HANDLERS {
        register(move || {
            say(&handler.to_string());
            if sticks && handler == STUCK {
                IS_STUCK.store(true, Ordering::SeqCst);
                park();
            }
            spin(200);
        });
    }
    let start = Arc::new(Barrier::new(2));
    let sender = Arc::clone(&start);
    thread::spawn(move || {
        sender.wait();
        spin(before);
        send(first);
        // A signal that arrives earlier would give up another handler, and the stuck one would wait for the third.
        while sticks && !IS_STUCK.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        for &signal in &sent[1..] {
            spin(between);
            send(signal);
        }
    });
    start.wait();
    let leave = move || {
        spin(until_leaving);
        OK
    };
    match &**way {
        "return" => leave(),
        "std" => leave().map(|_| std::process::exit(4)),
        "c" => leave().map(|_| c_exit(5)),
        "exit" => leave().map(|_| exit(6)),
        "run" => Ok(run(|| drop(leave()))),
        "close" => {
            let _ = leave();
            let _ = process_stack().close();
            park()
        }
        "fork" => loop {
            let forked = fork(|| {
                if requested().is_some() {
                    say("a child was asked");
                }
                send(first);
                park()
            });
            match forked {
                Ok(status) if status == -first => {}
                Ok(status) => say_child(status),
                Err(in_child) => return in_child,
            }
        },
        _ => park(),
    }
}
