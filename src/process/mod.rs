//! The process: its own stack, and the ways out that this crate offers. How the stack drains at the end is in `at_exit`.

mod at_exit;
mod end;

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{ExitCode, Termination};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

#[cfg(all(loom, feature = "loom"))]
pub use self::at_exit::drain_for_good;
use crate::error::{Exit, ExitRequest};
use crate::panics::discard;
use crate::sync::global;
use crate::tree::{Purpose, Root, SharedExitStack};

global! {
    static PROCESS: SharedExitStack = SharedExitStack::root(Root { name: "process", arm: at_exit::arm, note_refusals: end::note_refusals });
}

/// The process's own stack: it drains on every normal way out of the process.
///
#[doc = include_str!("../../docs/ways-out.md")]
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
    let request = ExitRequest::now(code);
    if PROCESS.is_drained_here() {
        PROCESS.request_exit(request);
        if cfg!(panic = "unwind") && !thread::panicking() {
            resume_unwind(Box::new(Exit(code)));
        }
    } else {
        end::decide(Some(request));
    }
    at_exit::leave_with(code)
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
    let request = PROCESS.drain_unattended(Purpose::EndOfRun);
    flush_stdout();
    let reported = ended.and_then(|value| catch_unwind(AssertUnwindSafe(|| value.report())).map_err(discard));
    let status = reported.unwrap_or(ExitCode::from(PANICKED));
    request.map_or(status, |request| Exit(request.code).report())
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
    PROCESS.adopt()
}
