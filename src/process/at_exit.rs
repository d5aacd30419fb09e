//! C's `atexit` hooks, and the last drain of the process stack.
//!
//! 1. A hook is registered with C's `atexit` [`HOOKS`] times, before the first handler or interpreter. Threads
//!    that race in C's `exit` each take one of the hooks off C's list. The first thread drains; every other one waits
//!    in its hook until that is done, so that none of them ends the process earlier. Each registers another hook before
//!    it waits. Afterwards one thread returns to C's list, and the others wait inside C: several threads cannot safely
//!    run that list, and the library that they came from may be unloaded (see [`unload`]).
//! 2. The results of a drain are kept in the stack (invariant 4 of [`tree`](crate::tree)), so a hook that is called
//!    inside a handler, because the handler called C's `exit`, resumes the drain. A status that handlers decided is
//!    left to [`raw::end_with`]: some C libraries allow `exit` to be called again inside itself, others do not.
//! 3. Refusals that were only counted are reported once nothing runs any more that may be refused: by an
//!    [`oldest_exit_hook`], or before a way out on which C calls no further hook. There is one among the hooks that C was
//!    given before `exit` and one among those that it is given inside it: not every C library calls the latter, and one
//!    that is entered again may have forgotten the former.
//! 4. Nothing unwinds out of a hook: C calls it.
//! 5. A fork changes nothing here. The hooks are counted because they are on C's list, and a child inherits both.

use std::cell::Cell;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::{end, flush_stdout_briefly, process_stack, unload};
use crate::error::{CloseError, ExitRequest, Outcome, request_of};
use crate::panics::discard;
use crate::raw;
use crate::shutdown::{self, Reason, Watching};
use crate::tree::{Late, Purpose, Spot, enter, forget_frames, leave};

/// How many times the hook is registered at first, and how many more when the drain begins. Together with the one entry
/// of the dynamic linker they fill the block of 32 that C's list begins with: glibc before 2.41 frees further blocks
/// while other threads may still run through them.
const HOOKS: usize = 16;
const MORE_HOOKS: usize = 15;

/// The epoch of the first process of this line of forks that was on its way out; zero if none was.
static LEFT_IN: AtomicUsize = AtomicUsize::new(0);

/// The epoch of this process, once it is on its way out.
static EXITING_IN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread is inside C's `exit`.
    static IN_C_EXIT: Cell<bool> = const { Cell::new(false) };

    /// The status with which this thread has entered C's `exit`, if that is known. Unknown in handlers, which may enter
    /// it again, with another status.
    static GIVEN: Cell<Option<i32>> = const { Cell::new(None) };
}

/// Arranges for the process stack to be drained at the end; called before its first registration in each process.
/// Returns false if C refuses.
pub(super) fn arm() -> bool {
    if cfg!(all(loom, feature = "loom")) {
        return true; // a model is over before the process is
    }
    // Threads that race here may register a few hooks too many.
    loop {
        let taken = match unload::left_with_c() {
            0 => register_hooks(1, oldest_exit_hook),
            1..HOOKS => register_hooks(1, exit_hook),
            _ => return true,
        };
        if taken == 0 {
            return unload::left_with_c() > 0;
        }
    }
}

fn register_hooks(count: usize, hook: extern "C" fn()) -> usize {
    unload::prepare();
    let taken = (0..count).take_while(|_| raw::at_exit(hook)).count();
    unload::given(taken);
    taken
}

extern "C" fn exit_hook() {
    called_by_c(false);
}

/// The hook that C calls last.
extern "C" fn oldest_exit_hook() {
    called_by_c(true);
}

fn called_by_c(is_oldest: bool) {
    if shutdown::is_lost_here() {
        park_lost() // another thread ends the process
    }
    IN_C_EXIT.set(true);
    let unloads = raw::unloads_here();
    let called = unload::enter(unloads);
    let given = GIVEN.take();
    let status = if process_stack().is_closed() {
        if is_oldest {
            // If the report hook exits, the next hook reports the others.
            if end::has_refusals() {
                register_hooks(1, oldest_exit_hook);
            }
            report_refused();
        }
        unload::begin_list_anew(); // as C does by itself below, where hooks are registered
        // The thread that has drained, or that of a signal, may leave the end of the process to this one.
        end::decided()
    } else {
        // Before anything else: the next thread must find a hook, too.
        let first = if is_oldest || called == 1 { oldest_exit_hook } else { exit_hook };
        register_hooks(1, first);
        if called == 1 {
            register_hooks(MORE_HOOKS - 1, exit_hook);
        }
        let drain = || {
            if unloads {
                drain_at_unload();
                return None; // the thread goes on afterwards, so there is no exit status to decide
            }
            drain_for_good(given)
        };
        catch_unwind(drain).unwrap_or_else(|payload| {
            discard(payload);
            None
        })
    };
    let leaves = unloads || end::leaves_first();
    unload::leave(); // the library may be unloaded from here on
    if !leaves {
        raw::park(); // until another thread has ended the process
    }
    if unloads {
        return;
    }
    if status.or_else(end::decided).is_none() {
        if let Some(signal) = end::signal() {
            report_refused();
            die_by(signal); // what was registered with C before ours does not run
        }
    }
    GIVEN.set(status.or(given));
    if let Some(status) = status.filter(|status| given != Some(*status)) {
        raw::end_with(status);
    }
}

/// Blocks a thread that the drain which ends the process has given up. Others go on with the drains that it was in.
pub(super) fn park_lost() -> ! {
    forget_frames(leave());
    raw::park()
}

/// Reports the refusals that were only counted, once nothing runs that may be refused.
fn report_refused() {
    let _ = catch_unwind(end::report_refused).map_err(discard);
}

/// Ends the process as this signal does by default.
fn die_by(signal: i32) {
    #[cfg(all(any(unix, windows), feature = "signals"))]
    raw::die_by(signal);
    #[cfg(not(all(any(unix, windows), feature = "signals")))]
    let _ = signal; // there is none
}

/// Drains the process stack on a thread of this crate, because of a signal, and ends the process by that signal.
#[cfg(all(any(unix, windows), feature = "signals"))]
pub(crate) fn end_by_signal() -> ! {
    let status = catch_unwind(|| drain_to_exit(Purpose::Exit, Outcome::Failure)).unwrap_or_else(|payload| {
        discard(payload);
        None
    });
    if let Some(status) = status.filter(|_| !is_in_exit()) {
        GIVEN.set(Some(status));
        flush_stdout_briefly(); // std's `exit` would wait for a reader forever
        // What others have registered with C runs as well. If another thread is in std's `exit` already, this one
        // blocks there forever, so it must not claim to be the one that leaves.
        std::process::exit(status);
    }
    if !end::leaves_first() {
        raw::park() // another thread is past the last drain, and ends the process
    }
    report_refused();
    flush_stdout_briefly();
    if let Some(status) = status {
        raw::end_now(status); // forked inside `exit`, which this thread may not be able to enter
    }
    end::signal().into_iter().for_each(die_by);
    raw::end_now(1)
}

/// Resumes the drains that this thread is in, the innermost first, and drains the process stack for the last time.
/// The thread has entered C's `exit` with the status `given`, if that is known. Returns the exit status that was
/// requested.
#[cfg_attr(not(all(loom, feature = "loom")), expect(unreachable_pub, reason = "the models of tests/loom.rs call it"))]
pub fn drain_for_good(given: Option<i32>) -> Option<i32> {
    drain_to_exit(Purpose::Exit, outcome_of(given))
}

/// Drains the process stack of a library that is being unloaded.
fn drain_at_unload() {
    note_exiting();
    process_stack().drain_unattended(Purpose::Exit, outcome_of(None));
}

/// Returns the outcome of the work of a process that exits with this status. If the status is unknown, nothing says
/// that the work failed.
fn outcome_of(status: Option<i32>) -> Outcome {
    match status {
        // Unknown, or known to be good.
        None | Some(0) => Outcome::Success,
        // Known to be bad.
        Some(_) => Outcome::Failure,
    }
}

fn note_exiting() {
    let process = raw::epoch();
    EXITING_IN.store(process, Ordering::Relaxed);
    let _ = LEFT_IN.compare_exchange(0, process, Ordering::Relaxed, Ordering::Relaxed);
}

/// Returns whether this process is on its way out.
pub(super) fn is_exiting() -> bool {
    EXITING_IN.load(Ordering::Relaxed) == raw::epoch()
}

fn drain_to_exit(purpose: Purpose, outcome: Outcome) -> Option<i32> {
    note_exiting();
    let began = end::began(); // in a child, the first look at the end allocates, which must not happen under a stack's lock
    shutdown::leave_watched();
    process_stack().note_exit_here();
    let left = leave();
    let reason = end::signal().map_or(Reason::Exit, Reason::Signal);
    let request = drain_watched(reason, began, || process_stack().drain_to_leave(purpose, outcome, left));
    request.into_iter().for_each(end::decide);
    end::decided()
}

/// Drains the process stack after the body of `run`. Returns the exit status that was requested.
pub(super) fn drain_after_run(outcome: Outcome) -> Option<ExitRequest> {
    drain_watched(Reason::Close, Instant::now(), || process_stack().drain_watched(Purpose::EndOfRun, outcome))
}

/// Drains the process stack within the limits that are set. Returns the exit status that was requested, or does not
/// return at all if a handler was given up.
fn drain_watched(
    reason: Reason,
    began: Instant,
    drain: impl FnOnce() -> Result<Result<(), CloseError>, Late>,
) -> Option<ExitRequest> {
    let watching = shutdown::watch_end(Spot::Root(process_stack), reason, began, finish, force);
    let drained = match &watching {
        // Handlers may be given up, and the drain continued by another thread.
        Some(watching) => watching.drive(drain),
        // Neither limits nor an observer: nothing is noted.
        None => drain(),
    };
    let result = match drained {
        Ok(result) => result,
        Err(Late::Lost) => park_lost(), // the thread that has gone on ends the process
        // The handler that this is in runs nothing more, but the process does not end here.
        Err(Late::ForAnother | Late::Replaced) => {
            if let Some(watching) = &watching {
                watching.end(&Ok(()));
            }
            return None;
        }
    };
    if let Some(watching) = &watching {
        // `run` in a handler returns into the drain, which goes on.
        if shutdown::end_gave_up() && !process_stack().is_draining() {
            finish(watching, result)
        }
        watching.end(&result);
    }
    request_of(result)
}

/// Ends the process on a thread that has gone on for one that was given up.
fn finish(watching: &Watching, result: Result<(), CloseError>) -> ! {
    report_refused(); // while the drain is still watched: the report hook may hang
    watching.end(&result);
    request_of(result).into_iter().for_each(end::decide);
    // In a child forked by this thread, nothing was given up.
    end_now(if shutdown::end_gave_up() { shutdown::status() } else { 0 })
}

/// Ends the process when its time is over while a drain still waits for something that is not a handler.
fn force() -> ! {
    end_now(shutdown::status())
}

/// Ends the process without C's `exit`: a handler that was given up may still be running inside it. `status` counts if
/// neither a handler nor a signal decides.
fn end_now(status: i32) -> ! {
    static ENDS_IN: AtomicUsize = AtomicUsize::new(0);

    if ENDS_IN.swap(raw::epoch(), Ordering::Relaxed) == raw::epoch() {
        raw::park() // another thread ends it
    }
    shutdown::settle();
    if !is_in_exit() {
        flush_stdout_briefly(); // otherwise std has done so, and no thread can be started
    }
    // The status passed to `exit` does not count: it was meant for a process whose handlers have all ended.
    if let Some(status) = end::decided_by_handlers() {
        raw::end_now(status);
    }
    end::signal().into_iter().for_each(die_by);
    raw::end_now(status)
}

/// Drains the process stack and ends the process, with this status if no handler requests another.
pub(super) fn leave_with(code: i32) -> ! {
    // The last drain is that of C's `exit`: this thread's thread-locals are dropped before it, and their destructors
    // may still register.
    let purpose = if raw::EXIT_CALLS_HOOKS && !is_in_exit() { Purpose::BeforeExit } else { Purpose::Exit };
    let code = drain_to_exit(purpose, outcome_of(Some(code))).unwrap_or(code);
    let is_inside = is_in_exit(); // this process may have been forked in the drain
    let calls_hooks = if is_inside { raw::EXIT_INSIDE_EXIT_CALLS_HOOKS } else { raw::EXIT_CALLS_HOOKS };
    if !calls_hooks {
        report_refused();
    }
    // The current interpreter is closed, while the process stack may be open.
    let _current = enter(None);
    GIVEN.set(Some(code));
    if is_inside {
        raw::exit_inside_exit(code)
    }
    std::process::exit(code)
}

/// Returns whether std's `exit` would fail to end this process: because this thread is inside C's, or because the
/// process was forked by one that was already exiting, so that std would wait for a thread that only the parent has.
fn is_in_exit() -> bool {
    IN_C_EXIT.get() || !matches!(LEFT_IN.load(Ordering::Relaxed), left if left == 0 || left == raw::epoch())
}
