//! Ways out with limits: handlers that never return, or return too late.
//!
//! A handler meant to be given up blocks forever and has a limit of its own, so that a slow machine gives up no others.

use std::process::{ExitCode, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use exitstack::shutdown::{Event, Expiry, Fate, Limits, Reason, Record, running, set_limits, set_observer, time_left};
use exitstack::{
    Exit, Handler, HandlerError, HandlerErrorKind, HandlerId, HandlerResult, Interpreter, exit, process_stack,
    register, report, run,
};
use libtest_mimic::{Failed, Trial};

use crate::Status::Code;
use crate::child::{DROPS_THREAD_LOCALS, Rude, c_exit, full_pipe, say, says};
use crate::fork::{after, fork, leave, say_child};
use crate::watched::Watched;
use crate::{Case, Ended, OK, Status, case, minutes, run_child, status_of};

/// The time limit of a handler that is meant to be given up.
const SHORT: Duration = Duration::from_millis(100);

/// The status of a process that has given up a handler.
const GAVE_UP: Status = Code(7);

/// The longest time to wait for something that must happen.
fn long() -> Duration {
    Duration::from_secs(20) * minutes()
}

fn forever() -> ! {
    loop {
        thread::park();
    }
}

/// No limits except those of single handlers.
fn limits() -> Limits {
    Limits::new().status(7)
}

fn limit(limits: Limits) {
    set_limits(limits).expect("there are threads");
}

/// Registers a handler that never returns and is given up.
fn stuck(name: &'static str) {
    register(Handler::new(|| forever()).named(name).within(SHORT));
}

fn says_in(plugin: &Interpreter, line: &'static str) {
    plugin.stack().register(Handler::new(move || say(line)).named(line));
}

fn stuck_in(plugin: &Interpreter) {
    plugin.stack().register(Handler::new(|| forever()).named("stuck in a plugin").within(SHORT));
}

/// An interpreter that lives until the process ends.
fn plugin(name: &'static str) -> Interpreter {
    let plugin = Interpreter::new(name);
    std::mem::forget(plugin.clone());
    plugin
}

/// Runs `body` on another thread, and waits until that thread is in the handler that has the sender.
fn until_inside<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static, inside: &Receiver<()>) {
    thread::spawn(body);
    inside.recv_timeout(long()).expect("the handler has begun");
}

/// A handler that signals its start and never returns.
fn begins_and_sticks(inside: Sender<()>) -> Handler<impl FnOnce() + Send + 'static> {
    Handler::new(move || {
        let _ = inside.send(());
        forever()
    })
    .named("stuck on another thread")
    .within(SHORT)
}

/// Registers a handler that is given up twice: for a `finalize_within` on another thread, and later by its own limit.
fn is_given_up_twice(plugin: &Interpreter) {
    let (begins, inside) = channel();
    let stuck = move || {
        let _ = begins.send(());
        forever()
    };
    plugin.stack().register(Handler::new(stuck).named("slow").within(4 * SHORT));
    let plugin = plugin.clone();
    thread::spawn(move || {
        let _ = inside.recv();
        drop(plugin.finalize_within(&Limits::new().each(SHORT)));
    });
}

/// Finalizes an interpreter, in one nested in which a handler is given up for the sake of that. Then a handler forks.
fn forks_after_one_was_given_up(comes_back: bool, finalize: fn(&Interpreter)) -> ! {
    limit(limits());
    let outer = plugin("outer");
    let (ends, ended) = channel();
    outer.stack().register(move || {
        let forked = fork(|| {
            register(|| say("the child's"));
            OK
        });
        if let Ok(status) = forked {
            say_child(status);
            let _ = ends.send(());
        }
    });
    let inner = outer.subinterpreter("inner");
    let (begins, inside) = channel();
    let (release, released) = channel::<()>();
    let stuck = move || {
        let _ = begins.send(());
        let _ = released.recv();
    };
    inner.stack().register(stuck);
    until_inside(move || finalize(&outer), &inside);
    let _ = inner.finalize_within(&Limits::new().each(SHORT));
    if comes_back {
        drop(release);
    }
    let _ = ended.recv_timeout(long());
    leave()
}

/// Returns the thread that this was called on first.
fn main_thread() -> usize {
    static MAIN: OnceLock<usize> = OnceLock::new();
    *MAIN.get_or_init(this_thread)
}

/// Returns this thread, by the address of a variable of its own, which is there on every exit path.
fn this_thread() -> usize {
    thread_local! {
        static HERE: u8 = const { 0 };
    }
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// Says a line, and on which thread.
fn says_thread(line: &'static str) -> HandlerId {
    let main = main_thread();
    register(move || say(&format!("{line} on {}", if this_thread() == main { "main" } else { "another thread" })))
}

/// A value that shows when it is dropped.
struct Drops;

impl Drop for Drops {
    fn drop(&mut self) {
        say("dropped");
    }
}

/// An error that says where it is dropped. The drop panics.
#[derive(Debug, thiserror::Error)]
#[error("somewhere")]
struct Somewhere(Sender<()>);

impl Drop for Somewhere {
    fn drop(&mut self) {
        say(if this_thread() == main_thread() { "dropped on main" } else { "dropped on another thread" });
        let _ = self.0.send(());
        panic!("an error's drop");
    }
}

/// Registers a handler that is given up, and that returns when the handler below it says so. That one waits until the
/// late thread has nothing more to do.
fn late<R>(then: fn() -> R)
where
    R: HandlerResult + 'static,
{
    let (release, released) = channel::<()>();
    let (itself, late) = mpsc::sync_channel(1);
    register(move || {
        release.send(()).expect("it waits");
        let late: Watched = late.recv_timeout(long()).expect("it has begun");
        late.until_it_sleeps();
        say("below");
    });
    let handler = move || {
        let _ = itself.send(Watched::this());
        let _ = released.recv();
        then()
    };
    register(Handler::new(handler).named("late").within(SHORT));
}

/// Leaves `run` in a handler, while there is time, and lifts the limits before. The next handler ends long after that time.
fn leaves_run(leave: fn() -> !) -> ExitCode {
    const TOTAL: Duration = Duration::from_secs(2);
    limit(limits().within(TOTAL));
    says("A");
    register(|| {
        takes(TOTAL + 15 * SHORT);
        say("slow");
    });
    register(move || {
        limit(limits());
        leave()
    });
    run(|| ())
}

/// Takes this long, however little time is left.
fn takes(time: Duration) {
    let (_never, waits) = channel::<()>();
    let _ = waits.recv_timeout(time);
}

static BEFORE: Mutex<Option<(Instant, Duration)>> = Mutex::new(None);

/// Records how much time is left, and uses some of it.
fn notes_time_left() {
    let left = time_left().expect("there is a total");
    *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), left));
    takes(Duration::from_millis(500));
}

/// Says whether the time left now continues from the recorded time.
fn says_whether_it_went_on() {
    let (at, before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take().expect("noted");
    let left = time_left().expect("there is a total");
    say(if left <= before.saturating_sub(at.elapsed()) + Duration::from_millis(1) {
        "one total"
    } else {
        "two totals"
    });
}

/// A thread-local whose drop registers a handler.
struct Registers;

impl Drop for Registers {
    fn drop(&mut self) {
        register(says_whether_it_went_on);
    }
}

thread_local! {
    static REGISTERS: std::cell::Cell<Option<Registers>> = const { std::cell::Cell::new(None) };
}

/// Sets a report hook that says which handler was reported and then calls `then`.
fn reports(then: fn()) {
    report::set_hook(Box::new(move |error: &HandlerError| {
        say(&format!("reported {}", error.name().unwrap_or("?")));
        then();
    }));
}

/// For handlers that cannot capture anything.
static ID: OnceLock<HandlerId> = OnceLock::new();
static PLUGIN: OnceLock<Interpreter> = OnceLock::new();

/// Waits until all other threads are idle.
fn until_others_sleep() {
    let this = std::fs::read_link("/proc/thread-self").expect("Linux");
    let is_asleep = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.contains(") S ") || Some(&*task.file_name()) == this.file_name()
    };
    let mut in_a_row = 0;
    while in_a_row < 100 {
        let all = std::fs::read_dir("/proc/self/task").expect("Linux").all(|task| task.is_ok_and(is_asleep));
        in_a_row = if all { in_a_row + 1 } else { 0 };
        thread::yield_now();
    }
}

/// Makes starting a thread impossible, because there is no room for its stack.
pub(crate) fn exhaust_threads() {
    until_others_sleep(); // a thread that has just been started would still allocate
    // SAFETY: an `rlimit` is two numbers, which may be zero.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: `limit` is live.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) }, 0);
    let mapped = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: libc::rlim_t = mapped.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number");
    limit.rlim_cur = pages * 4096 + (1 << 20);
    // SAFETY: `limit` is live.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
}

/// Makes it possible again.
#[cfg(feature = "signals")]
pub(crate) fn restore_threads() {
    // SAFETY: an `rlimit` is two numbers, which may be zero.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: `limit` is live.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is live.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
}

fn fate(record: &Record) -> &'static str {
    match record.fate() {
        Fate::Done => "done",
        Fate::Failed(_) => "failed",
        Fate::GivenUp => "given up",
        Fate::NotRun => "not run",
        Fate::Running => "running",
        _ => "something else",
    }
}

fn shown(record: &Record) -> String {
    format!("{} {}", record.name().unwrap_or("?"), fate(record))
}

fn says_events() {
    set_observer(Box::new(|event| match event {
        Event::Began(reason) => say(&format!("began {reason:?}")),
        Event::Slow(running) => say(&format!("slow {}", running.name().unwrap_or("?"))),
        Event::Finished(record) => say(&format!("finished {}", shown(record))),
        Event::GivenUp(record) => say(&format!("given up {}", shown(record))),
        Event::Ended(closed) => {
            let records: Vec<_> = closed.records().iter().map(shown).collect();
            let errors = closed.result().err().map_or(0, |error| error.errors().len());
            say(&format!("ended {}; {errors} failed", records.join(", ")));
        }
        _ => say("something else"),
    }));
}

/// Says, whenever a drain has ended, how many have begun.
fn says_how_many_drains() {
    let begun = AtomicUsize::new(0);
    set_observer(Box::new(move |event| match event {
        Event::Began(_) => _ = begun.fetch_add(1, Ordering::Relaxed),
        Event::Ended(_) => say(&format!("{} begun", begun.load(Ordering::Relaxed))),
        _ => {}
    }));
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = given_up();
    cases.extend(elsewhere());
    cases.extend(come_back());
    cases.extend(totals());
    cases.extend(watched());
    cases.extend(others());
    cases
}

/// Handlers of the thread that leaves.
#[expect(clippy::too_many_lines, reason = "a table")]
fn given_up() -> Vec<Case> {
    vec![
        case("three_given_up_in_a_row", GAVE_UP, &["D", "C", "B", "A"], || {
            limit(limits());
            for (line, name) in [("A", "third"), ("B", "second"), ("C", "first")] {
                says(line);
                stuck(name);
            }
            says("D");
            OK
        })
        .err("`first` registered at tests/exit/limits.rs")
        .err("`second` registered at tests/exit/limits.rs")
        .err("`third` registered at tests/exit/limits.rs"),
        case("two_given_up_with_nothing_between", GAVE_UP, &["A on another thread"], || {
            limit(limits());
            says_thread("A");
            stuck("second");
            stuck("first");
            OK
        }),
        case("what_is_above_runs_on_the_thread_that_leaves", GAVE_UP, &["B on main", "A on another thread"], || {
            limit(limits());
            says_thread("A");
            stuck("stuck");
            says_thread("B");
            OK
        }),
        case("limits_that_do_not_expire_change_nothing", Code(4), &["B on main", "A on main"], || {
            limit(limits().within(long()).each(long()));
            says_thread("A");
            says_thread("B");
            std::process::exit(4)
        }),
        case("a_plugin_that_hangs_at_its_place", GAVE_UP, &["C", "p2", "p1", "A"], || {
            limit(limits());
            says("A");
            let plugin = plugin("plugin");
            says_in(&plugin, "p1");
            stuck_in(&plugin);
            says_in(&plugin, "p2");
            says("C");
            OK
        })
        .err("process > plugin: exit handler `stuck in a plugin`"),
        case("a_plugin_in_a_plugin_that_hangs", GAVE_UP, &["q1", "p1", "A"], || {
            limit(limits());
            says("A");
            let outer = plugin("outer");
            says_in(&outer, "p1");
            let inner = outer.subinterpreter("inner");
            std::mem::forget(inner.clone());
            says_in(&inner, "q1");
            stuck_in(&inner);
            OK
        })
        .err("process > outer > inner: exit handler"),
        // The plugin is the oldest, so it would come last if the outermost drain continued first.
        case("a_handler_finalizes_a_plugin_that_hangs", GAVE_UP, &["p2", "p1", "A"], || {
            limit(limits());
            let plugin = plugin("plugin");
            says_in(&plugin, "p1");
            stuck_in(&plugin);
            says_in(&plugin, "p2");
            says("A");
            register(move || {
                let _ = plugin.finalize();
                say("back");
            });
            OK
        }),
        case("the_innermost_of_three_drains_goes_on_first", GAVE_UP, &["q1", "p1", "A"], || {
            limit(limits());
            let (inner, outer) = (plugin("inner"), plugin("outer"));
            says_in(&inner, "q1");
            stuck_in(&inner);
            says_in(&outer, "p1");
            outer.stack().register(move || drop(inner.finalize()));
            says("A");
            register(move || drop(outer.finalize()));
            OK
        }),
        case("the_rest_of_an_inner_drain_is_given_up_too", GAVE_UP, &["p1", "A"], || {
            limit(limits());
            let plugin = plugin("plugin");
            says_in(&plugin, "p1");
            stuck_in(&plugin);
            stuck_in(&plugin);
            says("A");
            stuck("below");
            register(move || drop(plugin.finalize()));
            OK
        }),
        case("a_detached_interpreter_goes_on_first", GAVE_UP, &["d1", "A"], || {
            limit(limits());
            says("A");
            let detached = Interpreter::detached("detached");
            says_in(&detached, "d1");
            stuck_in(&detached);
            register(move || drop(detached.finalize()));
            OK
        }),
        case(
            "failures_of_an_inner_close_are_reported",
            GAVE_UP,
            &["reported finalizes", "reported fails", "reported stuck in a plugin"],
            || {
                limit(limits());
                let plugin = plugin("plugin");
                stuck_in(&plugin);
                plugin.stack().register(Handler::new(|| Err("disk full")).named("fails"));
                register(Handler::new(move || drop(plugin.finalize())).named("finalizes"));
                reports(|| ());
                OK
            },
        ),
        // That stack is not the process's, and its drain goes on only if the handler returns.
        case("what_run_was_called_in_is_not_drained_if_detached", GAVE_UP, &["A"], || {
            limit(limits());
            let detached = Interpreter::detached("detached");
            says_in(&detached, "d1");
            detached.stack().register(|| {
                let _ = run(|| ());
                say("after run");
            });
            says("A");
            stuck("stuck");
            let _ = detached.stack().close();
            OK
        }),
        // Neither belongs to the process, so nobody may drain them.
        case("a_run_now_in_a_handler_that_hangs", GAVE_UP, &["A"], || {
            limit(limits());
            says("A");
            let detached = Interpreter::detached("detached");
            std::mem::forget(detached.clone());
            says_in(&detached, "d1");
            let id = detached.stack().register(Handler::new(|| forever()).within(SHORT));
            register(move || drop(detached.stack().run_now(id)));
            OK
        }),
        case("a_status_asked_for_above_is_kept", Code(5), &["A"], || {
            limit(limits());
            says("A");
            stuck("stuck");
            register(|| Err(Exit(5)));
            OK
        }),
        case("a_status_asked_for_below_counts", Code(5), &["A"], || {
            limit(limits());
            says("A");
            register(|| Err(Exit(5)));
            stuck("stuck");
            OK
        }),
        case("the_last_status_asked_for_wins", Code(6), &[], || {
            limit(limits());
            register(|| exit(6));
            stuck("stuck");
            register(|| Err(Exit(5)));
            OK
        }),
        case("the_status_is_1_if_nothing_says_otherwise", Code(1), &["A"], || {
            limit(Limits::new());
            says("A");
            stuck("stuck");
            std::process::exit(4)
        }),
        case("exits_status_does_not_outlive_giving_up", GAVE_UP, &["A"], || {
            limit(limits());
            says("A");
            stuck("stuck");
            c_exit(0)
        }),
        case("refusals_are_counted_though_one_was_given_up", GAVE_UP, &[], || {
            limit(limits());
            let plugin = plugin("plugin");
            let _ = plugin.finalize();
            (0..4).for_each(|_| _ = plugin.stack().register(|| ()));
            stuck("stuck");
            OK
        })
        .err("process > plugin: 3 more exit handlers were refused"),
        case("other_libraries_handlers_are_not_called", GAVE_UP, &["A"], || {
            crate::child::another_librarys_handler();
            limit(limits());
            says("A");
            stuck("stuck");
            OK
        }),
        case("what_print_holds_back_is_written", GAVE_UP, &["no newline"], || {
            limit(limits());
            register(|| {
                print!("no newline");
                forever()
            });
            limit(limits().each(SHORT));
            run(|| ());
            OK
        }),
    ]
}

/// A thread that leaves is in a handler that `finalize_within` gives up on another thread. It returns after that.
fn given_up_for_another() {
    Interpreter::new("before").finalize_within(&Limits::new()); // drains are watched from here on
    says("A");
    let plugin = plugin("plugin");
    says_in(&plugin, "p1");
    let ((begins, inside), (over, is_over)) = (channel(), channel());
    plugin.stack().register(move || {
        let _ = begins.send(());
        is_over.recv_timeout(long()).expect("it is given up");
        say("late");
    });
    thread::spawn(move || {
        inside.recv_timeout(long()).expect("it begins");
        let closed = plugin.finalize_within(&Limits::new().each(5 * SHORT));
        say(&format!("{} given up", closed.result().map_or_else(|error| error.errors().len(), |()| 0)));
        let _ = over.send(());
    });
}

/// Drains that wait for other threads.
#[expect(clippy::too_many_lines, reason = "a table")]
fn elsewhere() -> Vec<Case> {
    vec![
        case("a_plugin_that_hangs_on_another_thread", GAVE_UP, &["C", "p1", "A"], || {
            limit(limits());
            says("A");
            let plugin = plugin("plugin");
            says_in(&plugin, "p1");
            let (begins, inside) = channel();
            plugin.stack().register(begins_and_sticks(begins));
            says("C");
            until_inside(move || plugin.finalize(), &inside);
            OK
        })
        .err("process > plugin: exit handler `stuck on another thread`"),
        case("an_exit_goes_on_after_finalize_within", Code(3), &["p1", "1 given up", "late", "A"], || {
            given_up_for_another();
            exit(3)
        })
        .err("process > plugin: exit handler"),
        case("an_observed_exit_goes_on_after_it", Code(3), &["p1", "1 given up", "late", "A"], || {
            set_observer(Box::new(|_| ()));
            given_up_for_another();
            exit(3)
        })
        .err("process > plugin: exit handler"),
        case("an_exit_keeps_its_own_limits_after_it", Code(3), &["p1", "1 given up", "late", "A"], || {
            limit(limits().within(long()));
            given_up_for_another();
            std::process::exit(3)
        })
        .err("process > plugin: exit handler"),
        case("run_goes_on_after_finalize_within", Code(1), &["p1", "1 given up", "late", "A"], || {
            limit(limits().within(long()));
            Ok(run(|| {
                given_up_for_another();
                Err::<(), _>("bad")
            }))
        })
        .err("Error: \"bad\""),
        // It is given up for the end as well, once its time for that is over.
        case("one_is_given_up_for_two_drains", GAVE_UP, &["p1", "1 given up", "A"], || {
            limit(limits());
            says("A");
            let plugin = plugin("plugin");
            says_in(&plugin, "p1");
            let (begins, inside) = channel();
            let (over, is_over) = channel::<()>();
            let handler = move || {
                let _ = begins.send(());
                let _ = is_over.recv(); // never: it is given up
            };
            plugin.stack().register(Handler::new(handler).named("stuck twice").within(10 * SHORT));
            thread::spawn(move || {
                inside.recv_timeout(long()).expect("it begins");
                let closed = plugin.finalize_within(&Limits::new().each(SHORT));
                say(&format!("{} given up", closed.result().map_or_else(|error| error.errors().len(), |()| 0)));
                std::mem::forget(over);
            });
            OK
        })
        .err("`stuck twice`"),
        // What the process's end gives up is the handler that waits for it.
        case("one_given_up_further_in_is_not_given_up_again", GAVE_UP, &["x1", "1 given up", "p1"], || {
            limit(limits());
            let (begins, inside) = channel();
            let inner = Interpreter::detached("inner");
            says_in(&inner, "x1");
            inner.stack().register(begins_and_sticks(begins));
            let outer = plugin("outer");
            says_in(&outer, "p1");
            let waits = inner.clone();
            outer.stack().register(Handler::new(move || drop(waits.finalize())).named("waits").within(SHORT));
            until_inside(move || outer.finalize(), &inside);
            let closed = inner.finalize_within(&Limits::new());
            say(&format!("{} given up", closed.result().map_or_else(|error| error.errors().len(), |()| 0)));
            OK
        })
        .err("process > outer: exit handler `waits`"),
        case("run_in_a_handler_after_one_was_given_up", GAVE_UP, &["run", "after run", "A"], || {
            limit(limits());
            says("A");
            register(|| {
                let _ = run(|| say("run"));
                say("after run");
            });
            stuck("stuck");
            OK
        }),
        case("run_in_a_given_up_handler_returns", Code(0), &["1 given up", "run", "over true", "A"], || {
            says("A");
            let plugin = plugin("plugin");
            let (over, is_over) = channel();
            plugin.stack().register(move || {
                is_over.recv_timeout(long()).expect("it is given up");
                let _ = run(|| say("run"));
            });
            let closed = plugin.finalize_within(&Limits::new().each(SHORT));
            say(&format!("{} given up", closed.result().map_or_else(|error| error.errors().len(), |()| 0)));
            over.send(()).expect("it waits");
            let began = Instant::now();
            while !closed.is_over() && began.elapsed() < long() {
                thread::yield_now();
            }
            say(&format!("over {}", closed.is_over()));
            OK
        }),
        // More than a second after the time of that `run`, nothing has ended the process.
        case("run_in_a_given_up_handler_has_no_time", Code(0), &["still here", "A"], || {
            limit(limits().within(SHORT));
            says("A");
            let plugin = plugin("plugin");
            let ((over, is_over), (ran, has_run)) = (channel(), channel());
            plugin.stack().register(move || {
                is_over.recv_timeout(long()).expect("it is given up");
                let _ = run(|| ());
                let _ = ran.send(());
            });
            plugin.finalize_within(&Limits::new().each(SHORT));
            over.send(()).expect("it waits");
            has_run.recv_timeout(long()).expect("it returns");
            takes(20 * SHORT);
            say("still here");
            limit(limits());
            OK
        }),
        case("a_close_that_hangs_on_another_thread", GAVE_UP, &["B", "A"], || {
            limit(limits());
            says("A");
            says("B");
            let (begins, inside) = channel();
            register(begins_and_sticks(begins));
            until_inside(|| process_stack().close(), &inside);
            OK
        }),
        case("a_run_now_that_hangs_on_another_thread", GAVE_UP, &["C", "A"], || {
            limit(limits());
            says("A");
            let (begins, inside) = channel();
            let id = register(begins_and_sticks(begins));
            says("C");
            until_inside(move || process_stack().run_now(id), &inside);
            OK
        }),
        // `inner` is the oldest, so it would come last if the outer drain continued first.
        case("the_innermost_on_another_thread_goes_first", GAVE_UP, &["q1", "p1", "A"], || {
            limit(limits());
            let inner = plugin("inner");
            says_in(&inner, "q1");
            let (begins, inside) = channel();
            inner.stack().register(begins_and_sticks(begins));
            says("A");
            let outer = plugin("outer");
            says_in(&outer, "p1");
            outer.stack().register(move || drop(inner.finalize()));
            until_inside(move || outer.finalize(), &inside);
            OK
        }),
        case("the_innermost_of_three_elsewhere_goes_first", GAVE_UP, &["q1", "m1", "p1", "A"], || {
            limit(limits());
            let inner = plugin("inner");
            says_in(&inner, "q1");
            let (begins, inside) = channel();
            inner.stack().register(begins_and_sticks(begins));
            let middle = plugin("middle");
            says_in(&middle, "m1");
            middle.stack().register(move || drop(inner.finalize()));
            says("A");
            let outer = plugin("outer");
            says_in(&outer, "p1");
            outer.stack().register(move || drop(middle.finalize()));
            until_inside(move || outer.finalize(), &inside);
            OK
        }),
        case("what_a_run_now_drains_goes_on_too", GAVE_UP, &["d1", "A"], || {
            limit(limits());
            says("A");
            let detached = Interpreter::detached("detached");
            says_in(&detached, "d1");
            let (begins, inside) = channel();
            detached.stack().register(begins_and_sticks(begins));
            let id = register(move || drop(detached.finalize()));
            until_inside(move || process_stack().run_now(id), &inside);
            OK
        }),
        // The thread in `finalize` is not the one that leaves, and may do other things afterwards.
        case("a_chain_of_two_waits", GAVE_UP, &["q1", "p1", "A"], || {
            limit(limits());
            says("A");
            let outer = plugin("outer");
            says_in(&outer, "p1");
            let inner = plugin("inner");
            says_in(&inner, "q1");
            let (begins, inside) = channel();
            inner.stack().register(begins_and_sticks(begins));
            let (waits, waiting) = mpsc::sync_channel(1);
            let waited = inner.clone();
            outer.stack().register(move || {
                let _ = waits.send(Watched::this());
                drop(waited.finalize());
            });
            until_inside(move || inner.finalize(), &inside);
            thread::spawn(move || outer.finalize());
            waiting.recv_timeout(long()).expect("it begins").until_it_sleeps();
            OK
        }),
        case("two_threads_leave_and_one_is_given_up", GAVE_UP, &["B", "A"], || {
            limit(limits());
            says("A");
            says("B");
            let (begins, inside) = channel();
            register(begins_and_sticks(begins));
            until_inside(|| c_exit(3), &inside);
            c_exit(4)
        }),
        // The second thread reaches the outer drain, and must not continue it before the inner one is done.
        case("two_threads_leave_and_the_innermost_goes_first", GAVE_UP, &["p2", "p1", "A"], || {
            limit(limits());
            let plugin = plugin("plugin");
            says_in(&plugin, "p1");
            let (goes_on, resumed) = channel();
            plugin.stack().register(move || {
                let _ = goes_on.send(());
                takes(2 * SHORT); // so that the other thread could get ahead
                say("p2");
            });
            let (begins, inside) = channel();
            plugin.stack().register(begins_and_sticks(begins));
            says("A");
            register(move || drop(plugin.finalize()));
            until_inside(|| c_exit(3), &inside);
            resumed.recv_timeout(long()).expect("it is given up");
            c_exit(4)
        }),
        // The thread that goes on with the plugin is to go on with the process's drain, too: it is inside of both.
        case("a_relief_closes_what_it_has_yet_to_resume", GAVE_UP, &["p2", "p1", "A"], || {
            limit(limits());
            says("A");
            let plugin = plugin("plugin");
            says_in(&plugin, "p1");
            plugin.stack().register(|| {
                assert!(process_stack().close().is_ok());
                say("p2");
            });
            stuck_in(&plugin);
            register(move || drop(plugin.finalize()));
            OK
        }),
        case("a_relief_drains_what_it_has_yet_to_resume", GAVE_UP, &["q1", "p1", "A"], || {
            limit(limits());
            says("A");
            let outer = plugin("outer");
            says_in(&outer, "p1");
            let inner = outer.subinterpreter("inner");
            says_in(&inner, "q1");
            stuck_in(&outer);
            inner.stack().register(move || drop(outer.stack().close()));
            register(move || drop(inner.finalize()));
            OK
        }),
        case("two_threads_leave_and_both_are_given_up", GAVE_UP, &["B", "A"], || {
            limit(limits());
            says("A");
            stuck("second");
            says("B");
            let (begins, inside) = channel();
            register(begins_and_sticks(begins));
            until_inside(|| c_exit(3), &inside);
            c_exit(4)
        }),
    ]
}

/// Handlers that were given up and then return.
#[expect(clippy::too_many_lines, reason = "a table")]
fn come_back() -> Vec<Case> {
    vec![
        case("a_late_thread_runs_no_further_handler", GAVE_UP, &["below", "A on another thread"], || {
            limit(limits());
            says_thread("A");
            late(|| ());
            OK
        }),
        // Only this thread can reach the detached interpreter.
        case("a_late_thread_drops_a_detached_tree", GAVE_UP, &["p1", "d1", "below"], || {
            limit(limits());
            late(|| {
                let detached = Interpreter::detached("detached");
                says_in(&detached, "d1");
                says_in(&detached.subinterpreter("plugin"), "p1");
            });
            OK
        }),
        case("a_late_failure_is_reported", GAVE_UP, &["reported late", "reported late", "below"], || {
            limit(limits());
            reports(|| ());
            late(|| Err("too late"));
            OK
        }),
        case("a_late_panic_is_reported", GAVE_UP, &["reported late", "reported late", "below"], || {
            limit(limits());
            reports(|| ());
            late(|| -> () { panic!("too late") });
            OK
        }),
        case("a_late_exit_that_is_returned_is_ignored", GAVE_UP, &["below", "A"], || {
            limit(limits());
            says("A");
            late(|| Err::<(), _>(Exit(9)));
            OK
        }),
        case("a_late_exit_is_ignored", GAVE_UP, &["below", "A"], || {
            limit(limits());
            says("A");
            late(|| exit(9));
            OK
        }),
        case("a_late_c_exit_is_ignored", GAVE_UP, &["below", "A"], || {
            limit(limits());
            says("A");
            late(|| c_exit(9));
            OK
        }),
        case("a_late_std_exit_at_the_end_of_run_is_ignored", GAVE_UP, &["below", "A"], || {
            limit(limits());
            says("A");
            late(|| std::process::exit(9));
            Ok(run(|| ()))
        }),
        case("a_late_exit_at_the_end_of_run_is_ignored", GAVE_UP, &["below", "A"], || {
            limit(limits());
            says("A");
            late(|| exit(9));
            Ok(run(|| ()))
        }),
        case("a_late_return_begins_no_drain", GAVE_UP, &["below", "A", "1 begun"], || {
            says_how_many_drains();
            limit(limits());
            says("A");
            late(|| ());
            OK
        }),
        case("a_late_c_exit_begins_no_drain", GAVE_UP, &["below", "A", "1 begun"], || {
            says_how_many_drains();
            limit(limits());
            says("A");
            late(|| c_exit(9));
            OK
        }),
        // The late exit comes from a nested drain.
        case("a_late_exit_from_a_plugin_is_ignored", GAVE_UP, &["below", "A"], || {
            limit(limits());
            says("A");
            let plugin = plugin("plugin");
            plugin.enter(|| late(|| exit(9)));
            register(move || drop(plugin.finalize()));
            OK
        }),
        case("a_late_thread_drains_no_other_stack", GAVE_UP, &["a value's", "below", "p1 on another thread"], || {
            limit(limits());
            let plugin = plugin("plugin");
            plugin.enter(|| says_thread("p1"));
            let _ = PLUGIN.set(plugin);
            late(|| {
                let value = exitstack::SharedExitStack::new();
                value.register(|| say("a value's"));
                let _ = value.close();
                let _ = PLUGIN.get().map(Interpreter::finalize);
                let _ = process_stack().close();
            });
            OK
        }),
        case("a_late_thread_runs_nothing_out_of_turn", GAVE_UP, &["none", "below", "A on another thread"], || {
            limit(limits());
            let _ = ID.set(says_thread("A"));
            late(|| {
                let ran = ID.get().and_then(|id| process_stack().run_now(*id));
                say(if ran.is_none() { "none" } else { "ran" });
            });
            OK
        }),
        // It must not say that a transaction was committed that is then rolled back.
        case("a_late_thread_commits_nothing", GAVE_UP, &["not committed", "below", "rolled back"], || {
            limit(limits());
            late(|| {
                let done = Interpreter::scope("transaction", |work| {
                    work.stack().on_success(|| say("committed"));
                    work.stack().on_failure(|| say("rolled back"));
                    Ok::<(), exitstack::CloseError>(())
                });
                say(if done.is_ok() { "done" } else { "not committed" });
            });
            OK
        }),
    ]
}

/// Limits on the total time of all handlers.
#[expect(clippy::too_many_lines, reason = "a table")]
fn totals() -> Vec<Case> {
    vec![
        case("what_has_no_time_is_neither_run_nor_dropped", GAVE_UP, &["B"], || {
            limit(limits().within(2 * SHORT));
            let drops = Drops;
            register(Handler::new(move || drop(drops)).named("has no time"));
            register(|| forever());
            says("B");
            OK
        })
        .err("`has no time` registered at tests/exit/limits.rs")
        .err("was not run: there was no time left"),
        case("what_has_no_time_in_a_plugin_is_not_run", GAVE_UP, &[], || {
            limit(limits().within(2 * SHORT));
            let plugin = plugin("plugin");
            let drops = Drops;
            plugin.stack().register(Handler::new(move || drop(drops)).named("has no time"));
            register(|| forever());
            OK
        })
        .err("process > plugin: exit handler `has no time`"),
        case("a_reserve_is_kept_for_what_is_below", GAVE_UP, &["B", "A"], || {
            limit(limits().within(long() + 2 * SHORT).reserve(long()));
            says("A");
            says("B");
            register(|| forever());
            OK
        }),
        case("limits_may_be_endless", GAVE_UP, &["p1", "A"], || {
            let endless = Duration::MAX;
            limit(limits().within(endless).each(endless).reserve(endless).warn_after(endless));
            says("A");
            stuck("stuck");
            let plugin = plugin("plugin");
            says_in(&plugin, "p1");
            let _ = plugin.finalize_within(&Limits::new().within(endless).each(endless).reserve(endless));
            OK
        }),
        case("each_expires_before_the_total", GAVE_UP, &["A"], || {
            limit(limits().within(long()).each(3 * SHORT));
            says("A");
            register(|| forever());
            OK
        }),
        case("the_total_expires_before_each", GAVE_UP, &[], || {
            limit(limits().within(2 * SHORT).each(long()));
            says("A");
            register(|| forever());
            OK
        })
        .err("`A` registered at"),
        // The drop of a thread-local registers between the two, where there is one.
        case(
            "exit_and_cs_exit_share_one_total",
            Code(0),
            if DROPS_THREAD_LOCALS { &["one total"] } else { &[] },
            || {
                limit(limits().within(long()));
                REGISTERS.set(Some(Registers));
                register(notes_time_left);
                exit(0)
            },
        ),
        case("std_exit_in_a_handler_of_run_has_its_own_total", Code(3), &["slow", "A"], || {
            Ok(leaves_run(|| std::process::exit(3)))
        }),
        case("c_exit_in_a_handler_of_run_has_its_own_total", Code(3), &["slow", "A"], || Ok(leaves_run(|| c_exit(3)))),
        case("run_and_the_exit_have_a_total_each", Code(0), &["two totals"], || {
            limit(limits().within(long()));
            register(notes_time_left);
            let status = run(|| ());
            register(says_whether_it_went_on);
            Ok(status)
        }),
        case("the_limits_set_last_count", Code(8), &["B"], || {
            limit(limits().within(long()).on_expiry(Expiry::Wait));
            limit(Limits::new().on_expiry(Expiry::Leave).status(8));
            says("A");
            stuck("stuck");
            says("B");
            OK
        }),
        case("time_left_is_the_handlers_own", Code(0), &["own", "each"], || {
            limit(limits().within(4 * long()).each(2 * long()));
            let below = |limit: Duration| time_left().is_some_and(|left| left <= limit && left > limit / 2);
            register(move || say(if below(2 * long()) { "each" } else { "not" }));
            register(Handler::new(move || say(if below(long()) { "own" } else { "not" })).within(long()));
            OK
        }),
        // It is in drains of its own now and then.
        case("a_limit_counts_from_the_handlers_beginning", GAVE_UP, &["A"], || {
            limit(limits());
            says("A");
            let handler = || loop {
                let inner = Interpreter::new("inner");
                inner.stack().register(|| ());
                drop(inner.finalize());
            };
            register(Handler::new(handler).named("never idle").within(SHORT));
            OK
        })
        .err("`never idle`"),
        case("limits_hold_though_nobody_reads_standard_error", GAVE_UP, &[], || {
            full_pipe(libc::STDERR_FILENO);
            limit(limits().within(2 * SHORT).warn_after(SHORT / 2));
            register(|| forever());
            OK
        }),
        case("finalize_within_returns_though_nobody_reads_it", Code(4), &["over false"], || {
            full_pipe(libc::STDERR_FILENO);
            let plugin = plugin("plugin");
            plugin.stack().register(|| forever());
            say(&format!("over {}", plugin.finalize_within(&Limits::new().within(SHORT)).is_over()));
            std::process::exit(4)
        }),
        case("limits_hold_though_nobody_reads_standard_output", GAVE_UP, &[], || {
            full_pipe(libc::STDOUT_FILENO);
            print!("held back");
            limit(limits());
            stuck("stuck");
            exit(0)
        }),
        case("without_threads_there_are_no_limits", Code(0), &["A"], || {
            says("A");
            exhaust_threads();
            if set_limits(limits().within(SHORT)).is_ok() {
                say("set");
            }
            OK
        }),
        case("without_threads_one_is_still_given_up", GAVE_UP, &["A"], || {
            limit(limits());
            says("A");
            stuck("stuck");
            exhaust_threads();
            OK
        }),
        case("without_threads_to_go_on_the_process_ends", GAVE_UP, &["B"], || {
            limit(limits());
            says("A");
            stuck("second");
            says("B");
            stuck("first");
            exhaust_threads();
            OK
        }),
    ]
}

/// Observers and report hooks.
#[expect(clippy::too_many_lines, reason = "a table")]
fn watched() -> Vec<Case> {
    let events = [
        "began Exit",
        "finished C done",
        "slow stuck",
        "given up stuck given up",
        "finished B failed",
        "finished A done",
        "ended C done, stuck given up, B failed, A done; 2 failed",
    ];
    vec![
        case("an_observer_is_told_in_order", GAVE_UP, &events, || {
            says_events();
            limit(limits().warn_after(SHORT / 2));
            register(Handler::new(|| ()).named("A"));
            register(Handler::new(|| Err("failed")).named("B"));
            stuck("stuck");
            register(Handler::new(|| ()).named("C"));
            OK
        }),
        case(
            "an_observer_is_told_of_what_is_not_run",
            GAVE_UP,
            &[
                "began Close",
                "given up stuck given up",
                "finished A not run",
                "ended stuck given up, A not run; 2 failed",
            ],
            || {
                says_events();
                limit(limits().on_expiry(Expiry::Leave));
                register(Handler::new(|| ()).named("A"));
                stuck("stuck");
                Ok(run(|| ()))
            },
        ),
        case(
            "an_observer_needs_no_limits",
            Code(4),
            &["began Exit", "finished A done", "ended A done; 0 failed"],
            || {
                says_events();
                register(Handler::new(|| ()).named("A"));
                std::process::exit(4)
            },
        ),
        case(
            "an_observer_is_told_that_a_drain_was_left",
            Code(3),
            &[
                "began Close",
                "finished B failed",
                "ended B failed, leaves running; 1 failed",
                "began Exit",
                "finished A done",
                "ended A done; 1 failed",
            ],
            || {
                says_events();
                register(Handler::new(|| ()).named("A"));
                register(Handler::new(|| c_exit(3)).named("leaves"));
                register(Handler::new(|| Err("failed")).named("B"));
                Ok(run(|| ()))
            },
        ),
        case("an_observer_that_hangs_delays_nothing", GAVE_UP, &["B", "A"], || {
            set_observer(Box::new(|_| forever()));
            limit(limits());
            says("A");
            stuck("stuck");
            says("B");
            OK
        }),
        case("a_status_holds_for_a_thread_that_leaves_after_the_drain", Code(7), &[], || {
            // The thread that has drained waits for the observer, so this one leaves first.
            let (ends, ended) = channel();
            set_observer(Box::new(move |event| {
                if let Event::Ended(_) = event {
                    let _ = ends.send(());
                    forever();
                }
            }));
            register(|| Err(Exit(7)));
            thread::spawn(|| c_exit(1));
            ended.recv_timeout(long()).expect("the drain is over");
            c_exit(2)
        }),
        case("an_observer_that_panics_is_told_again", Code(0), &["began", "ended"], || {
            set_observer(Box::new(|event| match event {
                Event::Began(Reason::Exit) => {
                    say("began");
                    panic!("in the observer");
                }
                Event::Ended(_) => say("ended"),
                _ => {}
            }));
            register(|| ());
            OK
        }),
        case("an_observed_error_may_panic_when_dropped", Code(8), &["A"], || {
            set_observer(Box::new(|_| ()));
            says("A");
            register(|| Err(Exit(8)));
            register(|| Err(Rude));
            OK
        })
        .err("failed: rude"),
        case("an_observed_error_does_not_leave_run", Code(8), &["A"], || {
            set_observer(Box::new(|_| ()));
            Ok(run(|| {
                says("A");
                register(|| Err(Exit(8)));
                register(|| Err(Rude));
            }))
        }),
        // The observer is the last to have it.
        case("an_error_whose_drop_panics_ends_no_observer", Code(0), &["told", "told"], || {
            let (drop_it, dropped) = channel::<()>();
            let (ends, ended) = channel();
            let dropped = Mutex::new(dropped);
            set_observer(Box::new(move |event| {
                if let Event::Ended(_) = event {
                    let _ = dropped.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let _ = ends.send(());
                }
            }));
            for _ in 0..2 {
                let plugin = Interpreter::new("plugin");
                plugin.stack().register(|| Err(Rude));
                drop(plugin.finalize_within(&Limits::new()));
                let _ = drop_it.send(());
                ended.recv_timeout(long()).map_err(|_| "the observer is gone")?;
                say("told");
            }
            OK
        }),
        case("an_error_is_not_dropped_by_the_keeper", GAVE_UP, &["dropped on main", "A"], || {
            let (drops, dropped) = channel();
            main_thread();
            limit(limits());
            let _ = run(|| {
                register(move || Err(Somewhere(drops)));
            });
            dropped.recv_timeout(long()).map_err(|_| "it is not dropped")?;
            says("A");
            stuck("stuck"); // the keeper is still there to give it up
            OK
        }),
        case("an_observed_error_is_dropped_before_run_returns", Code(0), &["dropped on main", "returned"], || {
            let (drops, _dropped) = channel();
            main_thread();
            limit(limits());
            report::set_hook(Box::new(|_| ()));
            register(move || Err(Somewhere(drops)));
            let _ = run(|| ());
            say("returned");
            OK
        }),
        case("a_handler_that_takes_less_than_the_warning_is_not_slow", Code(0), &["not slow"], || {
            set_observer(Box::new(|event| {
                if let Event::Slow(_) = event {
                    say("slow");
                }
            }));
            limit(limits().warn_after(long()));
            register(|| {
                takes(SHORT);
                say("not slow");
            });
            OK
        }),
        // The hook is called because the handler was given up.
        case("a_report_hook_that_hangs_when_one_is_given_up", GAVE_UP, &["reported stuck"], || {
            limit(limits().within(3 * SHORT));
            reports(|| forever());
            says("A");
            stuck("stuck");
            OK
        }),
        // As in the report of an ordinary failure.
        case("exit_in_the_report_of_one_given_up", Code(5), &["reported stuck", "A"], || {
            limit(limits());
            reports(|| exit(5));
            says("A");
            stuck("stuck");
            OK
        }),
        case(
            "exit_in_the_report_of_one_on_another_thread",
            Code(5),
            &["reported stuck on another thread", "A"],
            || {
                limit(limits());
                reports(|| exit(5));
                says("A");
                let (begins, inside) = channel();
                register(begins_and_sticks(begins));
                until_inside(|| process_stack().close(), &inside);
                OK
            },
        ),
        // The drain of the process stack that `run` begins is in a handler of an interpreter.
        case("what_run_was_called_in_is_given_up_with_it", GAVE_UP, &["body", "plugin's", "A"], || {
            limit(limits());
            says("A");
            let plugin = Interpreter::new("plugin");
            says_in(&plugin, "plugin's");
            stuck_in(&plugin);
            plugin.stack().register(|| _ = exitstack::run(|| say("body")));
            let _ = plugin.finalize();
            OK
        })
        .err("`stuck in a plugin` registered"),
        case("a_thread_that_returns_late_leaves_the_drains_around", GAVE_UP, &["body", "plugin's", "A"], || {
            limit(limits());
            says("A");
            let plugin = Interpreter::new("plugin");
            says_in(&plugin, "plugin's");
            let (reported, until_reported) = channel::<()>();
            let reported = Mutex::new(Some(reported));
            exitstack::report::set_hook(Box::new(move |_| drop(reported.lock().unwrap().take())));
            plugin.stack().register(Handler::new(move || _ = until_reported.recv()).named("late").within(SHORT));
            plugin.stack().register(|| _ = exitstack::run(|| say("body")));
            let _ = plugin.finalize();
            OK
        }),
        // That handler is from a plugin that a handler of the process stack finalizes.
        case(
            "exit_in_the_report_of_one_further_in",
            Code(5),
            &["reported finalizes", "reported stuck on another thread", "A"],
            || {
                limit(limits());
                reports(|| exit(5));
                says("A");
                let (begins, inside) = channel();
                let plugin = plugin("plugin");
                plugin.stack().register(begins_and_sticks(begins));
                register(Handler::new(move || _ = plugin.finalize()).named("finalizes"));
                until_inside(|| process_stack().close(), &inside);
                OK
            },
        ),
        case("a_close_in_the_report_of_one_given_up", GAVE_UP, &["reported stuck", "closed", "A"], || {
            limit(limits());
            reports(|| {
                let _ = process_stack().close();
                say("closed");
            });
            says("A");
            stuck("stuck");
            OK
        }),
        case("a_report_hook_that_hangs_at_a_failure", GAVE_UP, &["reported fails"], || {
            limit(limits().within(3 * SHORT));
            reports(|| forever());
            says("A");
            register(Handler::new(|| Err("failed")).named("fails"));
            OK
        }),
        case("a_report_hook_that_hangs_at_a_plugins", GAVE_UP, &["reported stuck on another thread"], || {
            limit(limits().within(3 * SHORT));
            reports(|| forever());
            says("A");
            let plugin = plugin("plugin");
            let (begins, inside) = channel();
            plugin.stack().register(begins_and_sticks(begins));
            until_inside(move || plugin.finalize(), &inside);
            OK
        }),
    ]
}

/// Other processes, and handlers that were given up before the exit.
#[expect(clippy::too_many_lines, reason = "a table")]
fn others() -> Vec<Case> {
    vec![
        case("a_handler_that_was_left_is_not_running", Code(3), &["1 running"], || {
            limit(limits());
            register(|| say(&format!("{} running", running().len())));
            register(|| c_exit(3));
            Ok(run(|| ()))
        }),
        // Its own drain begins in the handler, when the parent's time is over.
        case("a_child_forked_in_a_watched_drain_has_time", Code(0), &["p1", "child 0"], || {
            let (forks, forked) = channel();
            let plugin = plugin("plugin");
            plugin.stack().register(move || {
                let status = fork(|| {
                    limit(Limits::new());
                    takes(2 * SHORT);
                    let plugin = Interpreter::new("the child's");
                    says_in(&plugin, "p1");
                    let _ = plugin.finalize();
                    leave()
                });
                let _ = forks.send(status);
            });
            let _ = plugin.finalize_within(&Limits::new().within(SHORT));
            after(forked.recv_timeout(long()).expect("the child ends"), say_child)
        }),
        case("a_forked_child_has_no_limits", Code(0), &["taken", "child 0"], || {
            limit(limits().within(long()).each(SHORT / 2));
            let forked = fork(|| {
                register(|| {
                    takes(2 * SHORT);
                    say(if time_left().is_none() { "taken" } else { "limited" });
                });
                OK
            });
            after(forked, say_child)
        }),
        case(
            "a_child_forked_in_a_handler_has_no_limits",
            GAVE_UP,
            &["the parent is gone", "p1", "the child's"],
            || {
                limit(limits().within(2 * SHORT));
                register(|| {
                    let forked = fork(|| {
                        takes(6 * SHORT); // the parent gives up the handler, which is waiting for this process
                        say("the parent is gone");
                        limit(Limits::new());
                        // Drained by the same thread that was in the parent's drain.
                        let plugin = Interpreter::new("plugin");
                        says_in(&plugin, "p1");
                        let _ = plugin.finalize();
                        register(|| say("the child's"));
                        OK
                    });
                    drop(forked);
                });
                OK
            },
        ),
        case(
            "a_child_forked_on_the_thread_that_goes_on",
            GAVE_UP,
            &["the child's", "child 0", "A on another thread"],
            || {
                limit(limits());
                says_thread("A");
                register(|| {
                    let forked = fork(|| {
                        register(|| say("the child's"));
                        OK
                    });
                    if let Ok(status) = forked {
                        say(&format!("child {status}"));
                    }
                });
                stuck("stuck");
                OK
            },
        ),
        case("a_child_sets_limits_of_its_own", Code(0), &["B", "child 8"], || {
            limit(limits());
            let forked = fork(|| {
                limit(Limits::new().status(8));
                says("B");
                stuck("stuck");
                OK
            });
            after(forked, say_child)
        }),
        case("given_up_before_the_exit_and_still_stuck", Code(4), &["given up", "B", "A"], || {
            says("A");
            let plugin = plugin("plugin");
            stuck_in(&plugin);
            says("B");
            let closed = plugin.finalize_within(&Limits::new());
            let gave_up = closed
                .result()
                .is_err_and(|error| error.iter().all(|error| matches!(error.kind(), HandlerErrorKind::TimedOut(_))));
            say(if gave_up && !closed.is_over() { "given up" } else { "not" });
            std::process::exit(4)
        }),
        // No thread can be started to go on for the second handler that is given up.
        case("without_threads_a_drain_is_left_to_who_comes", Code(0), &["left", "p1", "2 failed"], || {
            let plugin = plugin("plugin");
            says_in(&plugin, "p1");
            stuck_in(&plugin);
            stuck_in(&plugin);
            plugin.stack().register(exhaust_threads);
            let closed = plugin.finalize_within(&Limits::new());
            say(if closed.is_over() { "over" } else { "left" });
            say(&format!("{} failed", plugin.finalize().unwrap_err().errors().len()));
            OK
        }),
        // The thread that waits is not at the drain that would be resumed first.
        case("without_threads_one_who_waits_further_in_goes_on", Code(0), &["inner's", "outer's"], || {
            let [outer, inner] = ["outer", "inner"].map(Interpreter::detached);
            says_in(&outer, "outer's");
            says_in(&inner, "inner's");
            let (begins, begun) = channel();
            let (itself, waits) = mpsc::sync_channel::<Watched>(1);
            let also = inner.clone();
            let waiting = thread::spawn(move || {
                let () = begun.recv().expect("the handler begins");
                itself.send(Watched::this()).expect("it waits");
                also.finalize()
            });
            stuck_in(&inner);
            inner.stack().register(move || {
                begins.send(()).expect("it waits");
                waits.recv_timeout(long()).expect("it begins").until_it_sleeps();
            });
            outer.stack().register(move || inner.finalize());
            stuck_in(&outer); // uses up the thread that was started beforehand
            outer.stack().register(exhaust_threads);
            let _ = outer.finalize_within(&Limits::new());
            let _ = waiting.join();
            let _ = outer.finalize();
            OK
        }),
        // What is left of it takes long, on another thread.
        case("the_rest_of_one_given_up_before_comes_first", Code(0), &["inner's", "outer's"], || {
            let (tells, told) = channel();
            set_observer(Box::new(move |event| {
                if let Event::GivenUp(record) = event {
                    let _ = tells.send(record.name() == Some("finalizes"));
                }
            }));
            let [outer, inner] = ["outer", "inner"].map(Interpreter::detached);
            says_in(&outer, "outer's");
            let (slow, takes_long) = channel();
            let (release, released) = channel::<()>();
            inner.stack().register(move || {
                let _ = slow.send(());
                let _ = released.recv();
                say("inner's");
            });
            let (begins, inside) = channel();
            inner.stack().register(begins_and_sticks(begins));
            let inside_it = inner.clone();
            outer.stack().register(Handler::new(move || inside_it.finalize()).named("finalizes"));
            let own = outer.clone();
            until_inside(move || own.finalize(), &inside);
            until_inside(move || inner.finalize_within(&Limits::new()), &takes_long);
            let goes_on = thread::spawn(move || outer.finalize_within(&Limits::new()));
            while !told.recv_timeout(long()).expect("it is given up") {}
            until_others_sleep();
            drop(release);
            let _ = goes_on.join();
            leave()
        }),
        // It waits for a handler of a nested interpreter that has skipped itself.
        case("one_that_goes_on_waits_for_what_was_skipped", Code(0), &["inner ends", "it is over"], || {
            let (tells, told) = channel();
            set_observer(Box::new(move |event| {
                if let Event::GivenUp(_) = event {
                    let _ = tells.send(());
                }
            }));
            let outer = Interpreter::detached("outer");
            let inner = outer.subinterpreter("inner");
            let (begins, inside) = mpsc::sync_channel::<Watched>(1);
            let around = outer.clone();
            inner.stack().register(move || {
                let _ = begins.send(Watched::this());
                let _ = around.finalize();
                for _ in 0..2 {
                    told.recv_timeout(long()).expect("both go on without it");
                }
                until_others_sleep();
                say("inner ends");
            });
            let (sticks, stuck) = channel();
            outer.stack().register(begins_and_sticks(sticks));
            let (ends, ended) = channel();
            let within = move || {
                let _ = outer.finalize_within(&Limits::new().on_expiry(Expiry::Wait));
                say("it is over");
                let _ = ends.send(());
            };
            until_inside(within, &stuck);
            let own = inner.clone();
            thread::spawn(move || own.finalize());
            inside.recv_timeout(long()).expect("it begins").until_it_sleeps();
            let _ = inner.finalize_within(&Limits::new());
            ended.recv_timeout(long()).expect("it returns");
            leave()
        }),
        // An error that a thread was to be told of is dropped, but not on the thread that watches.
        case("an_errors_drop_that_asks_what_runs", GAVE_UP, &["A"], || {
            #[derive(Debug, thiserror::Error)]
            #[error("asks")]
            struct Asks;

            impl Drop for Asks {
                fn drop(&mut self) {
                    let _ = running();
                }
            }

            limit(limits());
            says("A");
            let plugin = Interpreter::detached("plugin");
            plugin.stack().register(|| Err(Asks));
            is_given_up_twice(&plugin);
            register(move || drop(plugin.finalize()));
            exit(3)
        }),
        case("one_given_up_after_what_it_waited_for_is_reported", GAVE_UP, &["reported finalizes", "A"], || {
            limit(limits());
            reports(|| ());
            says("A");
            let plugin = Interpreter::detached("plugin");
            is_given_up_twice(&plugin);
            register(Handler::new(move || drop(plugin.finalize())).named("finalizes"));
            Ok(run(|| ()))
        }),
        case("one_given_up_twice_is_reported", GAVE_UP, &["reported slow", "A"], || {
            limit(limits());
            reports(|| ());
            says("A");
            is_given_up_twice(&plugin("plugin"));
            OK
        }),
        // It forks in a drain that it goes on with because another one has given it up.
        case("a_child_forked_on_a_thread_that_comes_back_late", Code(0), &["the child's", "child 0"], || {
            forks_after_one_was_given_up(true, |outer| _ = outer.finalize())
        }),
        case("a_child_forked_on_the_thread_that_goes_on_after_another", Code(0), &["the child's", "child 0"], || {
            forks_after_one_was_given_up(false, |outer| _ = outer.finalize_within(&Limits::new()))
        }),
        case("given_up_before_and_the_exit_is_its_own", Code(9), &["A"], || {
            says("A");
            let plugin = plugin("plugin");
            let (release, released) = channel::<()>();
            let handler = move || {
                let _ = released.recv();
                exit(9)
            };
            plugin.stack().register(Handler::new(handler).within(SHORT));
            let _ = plugin.finalize_within(&Limits::new());
            release.send(()).expect("it waits");
            forever()
        }),
    ]
}

const WAYS: [(&str, i32); 9] = [
    ("return", 0),
    ("error", 1),
    ("std", 3),
    ("c", 3),
    ("exit", 3),
    ("run", 3),
    ("panic", 101),
    ("std on a thread", 3),
    ("c on a thread", 3),
];

/// Runs a handler that exceeds its limit, on each way out.
pub(crate) fn child() -> Ended {
    let [_, way, expiry] = &std::env::args().collect::<Vec<_>>()[..] else { return Err("way, expiry".into()) };
    let expiry = match &**expiry {
        "skip" => Expiry::Skip,
        "leave" => Expiry::Leave,
        _ => Expiry::Wait,
    };
    limit(limits().within(long()).on_expiry(expiry));
    says("A");
    says("B");
    let handler = move || {
        if expiry != Expiry::Wait {
            forever()
        }
        takes(2 * SHORT);
        say("slow");
    };
    register(Handler::new(handler).named("slow").within(SHORT));
    says("C");
    match &**way {
        "error" => Err("failed".into()),
        "std" => std::process::exit(3),
        "c" => c_exit(3),
        "exit" => exit(3),
        "run" => Ok(run(|| ExitCode::from(3))),
        "panic" => panic!("in main"),
        "std on a thread" => thread::spawn(|| std::process::exit(3)).join().map_err(|_| "a panic".into()),
        "c on a thread" => thread::spawn(|| c_exit(3)).join().map_err(|_| "a panic".into()),
        _ => OK,
    }
}

fn check(output: &Output, status: Status, out: &[&str], lines: &[&[&str]]) -> Result<(), Failed> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    let right = status_of(output) == status && text.lines().eq(out.iter().copied());
    let has_once =
        |parts: &&[&str]| err.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count() == 1;
    if right && lines.iter().all(has_once) {
        return Ok(());
    }
    Err(format!("not {status:?}, {out:?}, {lines:?} but {:?}\n{text}---\n{err}---", status_of(output)).into())
}

pub(crate) fn trials() -> Vec<Trial> {
    let given_up: &[&str] = &["process: exit handler `slow`", "limits.rs", "was given up: it was still running after"];
    let mut trials = Vec::new();
    for (way, natural) in WAYS {
        for expiry in ["skip", "leave", "wait"] {
            let name = format!("limits_{expiry}_by_{}", way.replace(' ', "_"));
            trials.push(Trial::test(name, move || {
                let output = run_child("limits", &[way.to_owned(), expiry.to_owned()]);
                match expiry {
                    "skip" => check(&output, GAVE_UP, &["C", "B", "A"], &[given_up]),
                    "leave" => {
                        let [a, b] = ["`A`", "`B`"].map(|name| [name, "was not run"]);
                        check(&output, GAVE_UP, &["C"], &[given_up, &a, &b])
                    }
                    _ => check(&output, Code(natural), &["C", "slow", "B", "A"], &[]),
                }
            }));
        }
    }
    trials.push(Trial::test("one_line_for_slow_and_one_for_given_up", || {
        let slow = ["process: exit handler `stuck`", "limits.rs", "is still running after", "on thread `main`"];
        let given_up = ["process: exit handler `stuck`", "limits.rs", "was given up: it was still running after"];
        check(&run_child("slow", &[]), GAVE_UP, &[], &[&slow, &given_up, &["was given up"]])
    }));
    trials
}

/// Shows what is written without an observer.
pub(crate) fn child_that_is_slow() -> Ended {
    limit(limits().warn_after(SHORT / 2));
    stuck("stuck");
    OK
}
