//! The process's own stack, and every normal way out of the process: when the root drains.
//!
//! 1. `hook` is registered with C's `atexit` [`HOOKS`] times, when the first handler or interpreter comes. Threads that
//!    race in C's `exit` each take one of them off C's list; the first to come drains, every other one waits in its own
//!    until that is done, so that none of them ends the process under the drain. Each that waits registers another one.
//!    Then one of them goes back to C's list, and the others stay where they are: C's list is not safe from several.
//! 2. What a drain has gathered stands in the stack (invariant 4 of `shared`), and so does what came of those that the way
//!    out went on with: a hook that runs inside a handler (C `exit` called there) goes on where it was. A status that
//!    handlers decide is left to `raw::end_with`: some C libraries let `exit` be entered again, some do not.
//! 3. Nothing unwinds out of `hook`: C calls it.
//! 4. Nothing is done at a fork: everything that a lock protects belongs to one process (`PerProcess`). The counts of hooks
//!    are about C's list, which a child inherits with them.

use std::cell::Cell;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{ExitCode, Termination};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::thread;
use std::time::Duration;

use crate::chain::{Chain, Link};
use crate::drain::discard;
use crate::error::{Asked, Exit};
use crate::raw;
use crate::shared::{Node, Occasion, SharedExitStack};
use crate::sync::{PerProcess, global};
use crate::waits::{ThreadKey, leave};

global! {
    static PROCESS: SharedExitStack = SharedExitStack::of_process(arm);
}

/// The process's own stack: it drains on every normal way out of the process.
///
/// | way out | handlers run |
/// | --- | --- |
/// | return from `main`, `Ok` or `Err` | yes |
/// | panic in `main` | yes |
/// | `std::process::exit`, C `exit`, from any thread | yes |
/// | [`exitstack::exit`](crate::exit), [`exitstack::run`](crate::run) | yes |
/// | a panic with `panic = "abort"`, `abort`, a double panic | no |
/// | a signal's default action (SIGTERM, SIGINT, …), SIGKILL | no |
/// | `_exit`, `quick_exit` | no |
/// | `exec` | no |
///
/// That is so on Unix. On Windows `std::process::exit` runs no handler; what else differs elsewhere is told under
/// [Platforms](crate#platforms).
///
/// What drains it is registered with C's `atexit` when the first handler or interpreter comes, so a program that does not
/// use it pays nothing. If C refuses, so does the stack. Code that is part of a shared library has a process stack of the
/// library's own, which drains when the library is unloaded, or when the process ends with the library loaded.
///
/// # On the way out
///
/// - Each handler runs once, in order, and none is cut short, whichever threads leave at the same time: any number in
///   `std::process::exit`, and 16 that enter C's `exit` in the same instant (more register hooks of their own as they come:
///   64 were tried). One of them drains and one goes back to C; the others wait for the end of the process. (C libraries
///   themselves may crash where several threads run through a list that has more than the 32 entries of its first block,
///   31 of which are this crate's: glibc before 2.41.)
/// - A handler that calls C's `exit`, or [`exit`], ends its own part only: the drains that its thread is in
///   are resumed where they were, the innermost first, with what they had gathered. `std::process::exit` in a handler
///   **aborts** the process where this thread is in `std::process::exit` or past the end of `main` already; where another
///   thread is, and waits for this one's drain, it **never returns**, and the process never ends.
/// - What is registered while it drains runs next, up to 65 536 registrations (those with interpreters made meanwhile
///   included). Past that, and once it has been empty, registrations are [refused](SharedExitStack::try_register). So the
///   process ends, whatever registers itself anew.
/// - Handlers do not change the exit status, but for [`Exit`]: a handler that fails is reported, and leaves the status as it
///   is. Nothing unwinds into C, and nothing is printed but [reports](crate::report).
/// - Handlers that each call C's `exit` run inside one another: some thousands of them overflow the stack, as they would in
///   C. [`exit`] and [`Exit`] leave the handler first.
///
/// ```no_run
/// exitstack::process_stack().register(|| println!("goodbye")); // whichever interpreter is current
/// ```
#[doc(alias = "atexit")]
pub fn process_stack() -> &'static SharedExitStack {
    &PROCESS
}

// ---------------------------------------------------------------------------------------------------------------------
// The way out

/// How many times `hook` is registered at first, and how many more when the drain begins. Together they, and the one
/// entry that the dynamic linker has, fill the block of 32 that C's list begins with: glibc before 2.41 frees further
/// blocks under threads that race through them.
const HOOKS: usize = 16;
const MORE_HOOKS: usize = 15;

/// How many hooks C has been given, and how many it has called.
static REGISTERED: AtomicUsize = AtomicUsize::new(0);
static CALLED: AtomicUsize = AtomicUsize::new(0);
/// The epoch of the first process of this line of forks that was on its way out; zero if none was.
static LEFT_IN: AtomicUsize = AtomicUsize::new(0);

/// The end of this process.
#[derive(Default)]
pub(crate) struct End {
    /// The exit status that was asked for last, in a drain of the way out or by `exit`.
    status: Option<Asked>,
    /// The thread that is to end the process, once the drain is over; the others are not to disturb it.
    leaver: Option<ThreadKey>,
    /// Interpreters that have refused more than one handler, to be reported at the end; and at which length of this list
    /// those that are gone are taken out.
    refusing: Chain<Weak<dyn Node>>,
    prune_at: usize,
}

global! {
    static END: PerProcess<End> = PerProcess::new(End { status: None, leaver: None, refusing: Chain::new(), prune_at: 0 });
}

/// Keeps an exit status that was asked for: of several the last one counts.
fn decide(asked: Option<Asked>) {
    let mut end = END.lock();
    end.status = end.status.max(asked);
}

/// Whether this thread is the first to ask: that is the one to end the process.
fn leaves_first() -> bool {
    let me = ThreadKey::current();
    *END.lock().leaver.get_or_insert(me) == me
}

/// Has the refusals of this interpreter reported at the process's end, if not before.
pub(crate) fn count_refusals_of(node: &Arc<dyn Node>) {
    let link = Link::new(Arc::downgrade(node));
    let mut gone = Chain::new();
    let mut end = END.lock();
    if end.refusing.len() >= end.prune_at {
        gone = end.refusing.take_if(|node| node.strong_count() == 0);
        end.prune_at = 2 * end.refusing.len().max(8);
    }
    end.refusing.push(link);
    drop(end);
    drop(gone);
}

/// Reports the refusals that were only counted.
fn report_refused() {
    PROCESS.report_refused();
    END.lock().refusing.reverse();
    loop {
        // One at a time: a hook that exits leaves the others to be reported.
        let next = END.lock().refusing.pop();
        let Some(node) = next else { return };
        if let Some(node) = node.into_value().upgrade() {
            node.stack().report_refused();
        }
    }
}

thread_local! {
    /// This thread is inside C's `exit`.
    static IN_C_EXIT: Cell<bool> = const { Cell::new(false) };

    /// The status with which this thread has entered C's `exit`, as far as that is known.
    static GIVEN: Cell<Option<i32>> = const { Cell::new(None) };
}

fn register_hooks(count: usize) -> usize {
    let taken = (0..count).take_while(|_| raw::at_exit(hook)).count();
    REGISTERED.fetch_add(taken, Ordering::Relaxed);
    taken
}

extern "C" fn hook() {
    IN_C_EXIT.set(true);
    let called = CALLED.fetch_add(1, Ordering::Relaxed) + 1;
    let mut status = None;
    if !PROCESS.is_over() {
        register_hooks(if called == 1 { MORE_HOOKS } else { 1 });
        status = catch_unwind(drain_for_good).unwrap_or_else(|payload| {
            discard(payload);
            None
        });
    } else if called == REGISTERED.load(Ordering::Relaxed) {
        let _ = catch_unwind(report_refused).map_err(discard);
    }
    if raw::in_main_program() {
        while !leaves_first() {
            thread::sleep(Duration::MAX); // until another thread has ended the process
        }
        if let Some(status) = status.filter(|status| GIVEN.get() != Some(*status)) {
            raw::end_with(status);
        }
    }
}

/// Goes on with the drains that this thread was in, the innermost first, and drains the process stack for good; returns the
/// exit status that was asked for.
#[cfg_attr(not(all(loom, feature = "loom")), expect(unreachable_pub, reason = "the models of tests/loom.rs call it"))]
pub fn drain_for_good() -> Option<i32> {
    drain_all(Occasion::Exit)
}

fn drain_all(occasion: Occasion) -> Option<i32> {
    let _ = LEFT_IN.compare_exchange(0, raw::epoch(), Ordering::Relaxed, Ordering::Relaxed);
    let left = leave();
    for node in PROCESS.left_by(left) {
        decide(node.stack().drain_untold(Occasion::Exit));
    }
    decide(PROCESS.drain_untold(occasion));
    END.lock().status.map(|asked| asked.code)
}

/// Drains the process stack, then ends the process with this status.
///
/// What `std::process::exit` does, with the handlers run first: while `std::process::exit` is still legal, and also
/// where it reaches no `atexit` handler (Windows). Like it, it drops nothing that stands on the threads' stacks. An
/// [`Exit`] that a handler returns replaces the status. If another thread drains already, waits until it is done. Of the
/// status the system keeps what it can: on Unix the low byte.
///
/// Inside a handler of the process stack, or of an interpreter that drains with it, it acts as [`Exit`]: the status is
/// recorded at once, the handler is left by unwinding (or, while it unwinds already and with `panic = "abort"`, never
/// returned to), and the drain goes on with the handlers below. `std::process::exit` there aborts the process: this is the
/// call to use. Two places have no way out but C's `exit`: a function that C called from a handler (unwinding out of an
/// `extern "C"` function aborts), and another library's `atexit` handler.
///
/// **In the destructor of a thread-local it aborts**, after the handlers have run, if the thread is in
/// `std::process::exit` or past the end of `main` already: std's `exit` cannot be called twice. On the way out by this
/// function the handlers run before such destructors, and what the destructors register runs after them.
///
/// ```no_run
/// exitstack::register(|| println!("saved"));
/// if std::env::args().len() > 1 {
///     eprintln!("no arguments, please");
///     exitstack::exit(2); // prints "saved"
/// }
/// ```
pub fn exit(code: i32) -> ! {
    let asked = Asked::now(code);
    if PROCESS.drains_here() {
        PROCESS.ask_exit(asked);
    } else {
        decide(Some(asked));
    }
    if PROCESS.drains_here() && cfg!(panic = "unwind") && !thread::panicking() {
        resume_unwind(Box::new(Exit(code)));
    }
    // C's `exit` drains for good: this thread's thread-locals, which are dropped before, may register still.
    let occasion = if raw::EXIT_CALLS_HOOKS && !in_exit() { Occasion::Leave } else { Occasion::Exit };
    let code = drain_all(occasion).unwrap_or(code);
    GIVEN.set(Some(code));
    if in_exit() {
        raw::exit_inside_exit(code)
    }
    std::process::exit(code)
}

/// Whether std's `exit` would not end this process: this thread is inside C's, or the process is the child of one that was on
/// its way out, and std would wait for a thread that only that one has.
fn in_exit() -> bool {
    IN_C_EXIT.get() || !matches!(LEFT_IN.load(Ordering::Relaxed), left if left == 0 || left == raw::epoch())
}

/// For `main`: runs `body`, then the handlers of the process stack, then reports what `body` returned as `main` would.
///
/// The handlers run inside `main`, where thread-locals are alive and other threads can be joined. Because the value is
/// reported after them, an error is shown on a terminal that a handler has restored.
///
/// | `body` | status | printed |
/// | --- | --- | --- |
/// | returns `()` or `Ok(())` | 0 | |
/// | returns an [`ExitCode`] or an [`Exit`], bare or in an `Ok` | that | |
/// | returns an `Err` | 1 | `Error: …`, after the handlers |
/// | returns another [`Termination`] | what it reports; 101 if that panics | |
/// | panics | 101 | the panic's message, before the handlers |
///
/// An [`Exit`] that a handler returns decides the status in each of these cases; the error is printed all the same. What
/// handlers printed to standard output, also without a newline, comes before the error, unless somebody keeps standard
/// output locked.
///
/// **A panic's message is written before the handlers run**, by the panic hook: a program that changes the terminal has
/// to restore it in its panic hook, too. A handler that ends the process by itself, with `std::process::exit`, ends it
/// before the value is reported.
///
/// What is registered after that is drained by the `atexit` hook, as without `run`, and by the next `run`. Called inside a
/// handler of the process stack, `run` leaves the other handlers to the drain that it is called in.
///
/// ```
/// use std::process::ExitCode;
///
/// fn main() -> ExitCode {
///     exitstack::run(|| {
///         exitstack::register(|| println!("goodbye"));
///         println!("hello");
///         Ok::<(), std::io::Error>(())
///     })
/// }
/// ```
pub fn run<T: Termination>(body: impl FnOnce() -> T) -> ExitCode {
    let ended = catch_unwind(AssertUnwindSafe(body)).map_err(discard);
    let asked = PROCESS.drain_untold(Occasion::Run);
    flush_stdout();
    let reported = ended.and_then(|value| catch_unwind(AssertUnwindSafe(|| value.report())).map_err(discard));
    let status = reported.unwrap_or(ExitCode::from(PANICKED));
    asked.map_or(status, |asked| Exit(asked.code).report())
}

/// The status of a `main` that panics.
const PANICKED: u8 = 101;

/// How long [`run`] waits for a thread that has locked standard output.
const LOCKED: Duration = Duration::from_millis(200);

/// Writes what is in the buffer of standard output, which std does not do before it reports an error. On a thread of its
/// own: another one may hold the lock forever, and there is no `try_lock`.
fn flush_stdout() {
    let (locked, is_locked) = mpsc::sync_channel(0);
    let flushing = thread::Builder::new().spawn(move || {
        let mut stdout = io::stdout().lock();
        if locked.send(()).is_ok() {
            let _ = stdout.flush();
        }
    });
    match flushing {
        // Once it has the lock it is waited for: a reader that is slow is to get everything.
        Ok(flushing) if is_locked.recv_timeout(LOCKED).is_ok() => _ = flushing.join(),
        Ok(_) => {}
        Err(_) => _ = io::stdout().flush(), // without threads, nobody else has the lock
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The way in

/// Sets up what drains the process stack; called before its first registration in each process. False if C refuses. (C's
/// list, and the hooks in it that were not called yet, are inherited by a child. Threads that race here may register some
/// hooks too many.)
fn arm() -> bool {
    if cfg!(all(loom, feature = "loom")) {
        return true; // a model is over before the process is
    }
    let in_list = || REGISTERED.load(Ordering::Relaxed) - CALLED.load(Ordering::Relaxed);
    while in_list() < HOOKS && register_hooks(1) > 0 {}
    in_list() > 0
}

// ---------------------------------------------------------------------------------------------------------------------
// Fork

/// Lets this forked child own what its parent registered, with the process stack and with every interpreter.
///
/// Without it, a child neither runs nor drops what it inherited, only what it registers itself: it would delete its
/// parent's files. A daemon that forks and lets its parent leave by `_exit` should call this in the child, once;
/// elsewhere, and on systems without `fork`, it does nothing.
///
/// **The parent keeps its handlers too.** A parent that leaves by `exit` or by returning from `main`, instead of by `_exit`,
/// runs them: let it move them away first, with [`pop_all`](SharedExitStack::pop_all) and [`std::mem::forget`].
///
/// CPython runs inherited handlers in every child that exits normally.
///
/// False if another thread was in a method of one of the stacks at the fork, or if one takes no more handlers: what that
/// one held is lost to the child. A child may use every shared stack of its parent, whatever other threads did at the fork.
/// For a stack that is a value there is [`SharedExitStack::adopt_after_fork`].
///
/// C's own `atexit` is not made for forks: glibc keeps a lock in it, and a child that is forked while another thread
/// registers with `atexit` hangs when it exits. This crate calls `atexit` at its first registration in a process and on the
/// way out, at no other time.
///
/// ```
/// assert!(exitstack::adopt_after_fork()); // in a process that did not fork: nothing
/// ```
pub fn adopt_after_fork() -> bool {
    PROCESS.adopt_after_fork()
}
