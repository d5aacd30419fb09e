//! The process: its own stack, and the exit paths that this crate offers. How the stack drains at the end is in
//! `at_exit`.

mod at_exit;
mod end;
mod reported;
mod unload;

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{ExitCode, Termination};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(all(loom, feature = "loom"))]
pub use self::at_exit::drain_for_good;
use self::reported::Reported;
use crate::error::{Exit, ExitRequest, Outcome};
use crate::panics::discard;
use crate::shutdown;
use crate::sync::global;
use crate::tree::{Root, SharedExitStack};

static ROOT: Root = Root {
    name: "process",
    stack: process_stack,
    arm: at_exit::arm,
    note_refusals: end::note_refusals,
    prepare: end::prepare,
    decide: end::decide,
};

global! {
    static PROCESS: SharedExitStack = SharedExitStack::root(&ROOT);
}

/// Returns the process's own stack, which drains on every normal exit path of the process.
///
#[doc = include_str!("../../docs/ways-out.md")]
///
/// This is the table for Unix. On Windows `std::process::exit` runs no handler; see [Platforms](crate#platforms) for
/// what else differs elsewhere.
///
/// The stack is hooked into C's `atexit` when the first handler or interpreter is registered, so a program that does
/// not use it pays nothing. If C refuses, so does the stack.
///
/// # On the way out
///
/// - **`std::process::exit` in a handler aborts the process** if this thread is in `std::process::exit` already, or
///   past the end of `main`: std does not allow `exit` to be called twice. So does a panic hook that calls it. **If
///   another thread is in `exit` and waiting for this drain, the call blocks forever and the process hangs.** Call
///   [`exit`], or return [`Exit`].
/// - Each handler runs once, in order, and to its end, however many threads leave at the same time: any number in
///   `std::process::exit`, and at least 16 that enter C's `exit` at once (64 were tried). One thread drains and one
///   returns to C; the others wait for the end of the process. C libraries may crash where several threads run through
///   a list of more than 32 `atexit` handlers, 31 of which are this crate's: glibc before 2.41 does.
/// - A handler that calls C's `exit`, or [`exit`], ends only itself: the drains that its thread is in are resumed, the
///   innermost first, with the failures they have gathered. Handlers that call C's `exit` run inside one another, so
///   some thousands of them overflow the call stack, as they do in C; [`exit`] and [`Exit`] leave the handler first.
/// - What is registered during the last drain runs next, up to 65,536 registrations by each thread and on each stack.
///   Past that, and once the stack has been empty, registrations are [refused](SharedExitStack::try_register). So the
///   process always ends, even if handlers register themselves again. Stacks that are values are not limited: they
///   drain when their owner says so.
/// - Handlers do not change the exit status, except with [`Exit`]: a handler that fails is reported, and the status
///   stays as it is. No panic unwinds into C, and nothing is printed but [reports](crate::report).
///
/// # In a shared library
///
/// For authors of plugins, and of what loads them:
///
/// - **Do not join threads, and do not load libraries, in a handler that may run when the library is unloaded.** The
///   loader holds its lock while `dlclose` runs the handlers. A handler blocks forever if it needs that lock on another
///   thread, or waits for a thread that does: to load a library, or to use a thread-local with a destructor for the
///   first time, as most new threads do.
/// - A thread may leave by `exit` while another one unloads the library, in either order: each handler runs once, and
///   `dlclose` waits for threads that are inside the library on their way out. This holds on Linux with glibc;
///   elsewhere the host must not do both at the same time.
/// - Each shared library with this crate in it has a process stack and a [report hook](crate::report) of its own. The
///   host's [`Interpreter::enter`](crate::Interpreter::enter) does not reach the library's
///   [`register`](crate::register).
/// - Unloading is not an exit: an [`Exit`] that is returned there is ignored. If the library is still loaded when the
///   process ends, `Exit` decides the status, as in a program.
/// - A running thread that the library has started keeps it loaded, and so does a thread-local of the library with a
///   destructor, on every thread that has used it. `dlclose` then runs nothing, and the handlers run when the process
///   ends.
/// - An error refers to the code of the library that made it. Format errors, and
///   [finalize](crate::Interpreter::finalize) interpreters whose errors you want, before the library is unloaded.
/// - Two copies of this crate in one process, such as two versions of it, or those of a plugin and its host, do not
///   know of each other. **[`exit`] of one copy in a handler of the other copy may abort the process**, like
///   `std::process::exit`, and the handlers below are lost. Return [`Exit`] instead, from the copy that the handler is
///   registered with.
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
/// **Inside the destructor of a thread-local this aborts**, after the handlers have run, if the thread is in
/// `std::process::exit` already or past the end of `main`: std does not allow `exit` to be called twice.
///
/// This is `std::process::exit`, with the handlers run first, while thread-locals are alive; it also runs them where
/// `std::process::exit` reaches no `atexit` handler (Windows). Like that, it drops no local variables. If another
/// thread is draining the stack, it waits until that is done. Handlers that the destructors of this thread's
/// thread-locals register run last: no interpreter is current in these, and those of the process accept no handlers any
/// more. An [`Exit`] that a handler returns replaces the status, of which Unix keeps the low byte.
///
/// Inside a handler of the process stack, or of an interpreter that drains with it, this acts as [`Exit`]: the status
/// is recorded at once, the handler is left by unwinding, and the drain continues with the handlers below. (If the
/// handler is unwinding already, and with `panic = "abort"`, the handlers below run inside this call.) Two places can
/// only be left with C's `exit`: a function that C called from a handler, as unwinding out of an `extern "C"` function
/// aborts, and another library's `atexit` handler.
///
/// On a thread that is unwinding, in a drop or in the panic hook, it ends the process as well: the handlers run inside
/// this call. The locals that the panic had yet to drop are not dropped, and if it was a handler that panicked, that is
/// not reported. **In the panic hook, a handler that panics aborts the process**: std aborts at a panic inside it.
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
    if shutdown::is_lost_here() {
        leave_handler(code); // the handler was given up, and must not decide the status
        at_exit::park_lost()
    }
    if PROCESS.is_drained_here() {
        PROCESS.request_exit(request);
        leave_handler(code);
    } else {
        end::give(request);
    }
    at_exit::leave_with(code)
}

/// Leaves the handler that this thread is in by unwinding, where that is possible.
fn leave_handler(code: i32) {
    if cfg!(panic = "unwind") && !thread::panicking() {
        resume_unwind(Box::new(Exit(code)));
    }
}

/// Runs the body of `main`, then the handlers of the process stack, then reports the body's value as `main` would.
///
/// **A panic's message is written before the handlers run**, by the panic hook: a program that changes the terminal
/// must also restore it there.
///
/// The handlers run inside `main`, where thread-locals are alive and other threads can be joined. The value is reported
/// after them, so an error can be read on a terminal that a handler has restored.
///
/// | `body` | status | printed |
/// | --- | --- | --- |
/// | returns `()` or `Ok(())` | 0 | |
/// | returns an [`ExitCode`] or an [`Exit`], bare or in an `Ok` | that | |
/// | returns an `Err` | 1 | `Error: …`, after the handlers |
/// | returns another [`Termination`] | what it reports; 101 if that panics | |
/// | panics | 101 | the panic's message, before the handlers |
///
/// In each of these cases an [`Exit`] that a handler returns replaces the status; the error is printed all the same.
/// What handlers have printed to standard output comes before the error, even without a newline, unless another thread
/// keeps standard output locked.
///
/// The stack is open again afterwards: what is registered then is drained by the `atexit` hook, as without `run`, or by
/// the next `run`. If a handler of the process stack calls `run`, the drain that it is in runs the other handlers.
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
    let ended = catch_unwind(AssertUnwindSafe(body)).map_err(discard).map(Reported::new);
    let request = at_exit::drain_after_run(ended.as_ref().map_or(Outcome::Failure, Reported::outcome));
    flush_stdout();
    let status = ended.and_then(Reported::status).unwrap_or(ExitCode::from(PANICKED));
    request.map_or(status, |request| Exit(request.code).report())
}

/// The status of a `main` that panics.
const PANICKED: u8 = 101;

/// How long to wait for a thread that has locked standard output, and for its reader where the process cannot wait.
const PATIENCE: Duration = Duration::from_millis(100);

/// Flushes standard output, which std does not do before it reports an error.
fn flush_stdout() {
    match start_flush() {
        // A slow reader gets everything.
        Ok(steps) if steps.recv_timeout(PATIENCE).is_ok() => _ = steps.recv(),
        // Where there are no threads, no other one has the lock.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => _ = io::stdout().flush(),
        // Another thread keeps the lock, perhaps forever; or it may, and no thread can be started to find out.
        Ok(_) | Err(_) => {}
    }
}

/// Flushes standard output as far as its reader allows within [`PATIENCE`]. What is left in its buffer is lost: std does
/// not wait for it either, as the lock is kept.
fn flush_stdout_briefly() {
    let until = Instant::now() + PATIENCE;
    if let Ok(steps) = start_flush() {
        while steps.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
    }
}

/// Starts to flush standard output. What is returned receives something once that is locked, and is disconnected once
/// it is flushed. This needs a thread, because another one may hold the lock forever and there is no `try_lock`.
fn start_flush() -> io::Result<Receiver<()>> {
    let (locked, steps) = mpsc::sync_channel(0);
    thread::Builder::new().spawn(move || {
        let mut stdout = io::stdout().lock();
        if locked.send(()).is_ok() {
            let _ = stdout.flush();
        }
    })?;
    Ok(steps)
}

/// Returns whether this process is on its way out.
///
/// This is true in the handlers that run when the process ends or calls [`exit`], on every thread from then on, and
/// when the shared library that contains this crate is unloaded. It is false in the handlers that run at the end of
/// [`run`], after which the stack is open again, and in a forked child of a process that exits.
///
/// Python has `sys.is_finalizing` for this. Other threads keep running while the process exits, so an answer of false
/// may be outdated as soon as it is returned.
///
/// ```
/// assert!(!exitstack::is_exiting());
/// ```
pub fn is_exiting() -> bool {
    at_exit::is_exiting()
}

/// What `signals` needs from the process.
#[cfg(all(any(unix, windows), feature = "signals"))]
pub(crate) mod by_signal {
    pub(crate) use super::at_exit::end_by_signal;
    pub(crate) use super::end::{note_signal, signal};

    /// Arranges for the process stack to be drained when the process exits, even if nothing is registered with it.
    pub(crate) fn arm() {
        super::at_exit::arm();
    }
}

/// Lets this forked child take over what its parent registered with the process stack and with every interpreter.
///
/// **The parent keeps its handlers too.** If it leaves by `exit` or by returning from `main`, it runs them, and the
/// child runs them again: let it leave by `_exit`, or move them away first with [`pop_all`](SharedExitStack::pop_all)
/// and [`std::mem::forget`].
///
/// A forked child neither runs nor drops what it inherited, only what it registers itself: otherwise it would delete
/// its parent's files. A daemon whose parent leaves after the fork calls this in the child, once, to take the handlers
/// over. In a process that was not forked, and on systems without `fork`, it does nothing. CPython runs inherited
/// handlers in every child that exits normally.
///
/// Returns false if some handlers cannot be taken over, because another thread was in a method of their stack at the
/// fork, or because that stack no longer accepts handlers. Those handlers are neither run nor dropped in this process.
/// A child may use every shared stack of its parent, whatever other threads did at the fork. For a stack that is a
/// value, there is [`SharedExitStack::adopt_after_fork`].
///
/// C's own `atexit` is not made for forks: glibc holds a lock in it, so a child that was forked while another thread
/// was in `atexit` hangs when it exits. This crate calls `atexit` at its first registration in a process and on the way
/// out.
///
/// ```
/// assert!(exitstack::adopt_after_fork()); // does nothing in a process that was not forked
/// ```
pub fn adopt_after_fork() -> bool {
    PROCESS.adopt()
}
