//! The process's own stack, and every normal way out of the process: when the root drains.
//!
//! 1. `hook` is registered with C's `atexit` [`HOOKS`] times, when the first handler or interpreter comes. Threads that
//!    race in C's `exit` each take one of them off C's list; the first to come drains, every other one waits in its own
//!    until that is done, so that none of them ends the process under the drain. Each that waits registers another one.
//!    Then one of them goes back to C's list, and the others wait inside C: its list is not safe from several, and a
//!    library that they came from may be unloaded (see `unload`).
//! 2. What a drain has gathered stands in the stack (invariant 4 of `shared`), and so does what came of those that the way
//!    out went on with: a hook that runs inside a handler (C `exit` called there) goes on where it was. A status that
//!    handlers decide is left to `raw::end_with`: some C libraries let `exit` be entered again, some do not.
//! 3. Nothing unwinds out of `hook`, `before_fork`, `after_fork` and `in_child`: C calls them.
//! 4. Around a fork, the locks are taken in this order: `ARMED`, the report hook, the edges of waiting threads, then the
//!    stacks from the root outwards. No other code of the crate holds two of these at a time, except the edges and a
//!    latch, and a stack and one that is nested in it anew.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::drain::discard;
use crate::error::Exit;
use crate::raw::{self, Held};
use crate::report::{HOOK, Hook};
use crate::shared::{
    Node, Occasion, SharedExitStack, State, ends, forget_begun, forked, innermost, is_innermost, nested,
};
use crate::sync::{Lock, MutexGuard, global};
use crate::unload;
use crate::waits::{EDGES, Edge};

global! {
    static PROCESS: SharedExitStack = SharedExitStack::of_process(arm, process_stack);
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
/// - Handlers do not change the exit status, but for [`Exit`]. Nothing unwinds into C, and nothing is printed but
///   [reports](crate::report).
///
/// # In a shared library
///
/// For authors of plugins, and of what loads them:
///
/// - **Do not join threads, and do not load libraries, in a handler that may run when the library is unloaded.** The
///   loader holds its lock while `dlclose` runs the handlers. A handler blocks forever if it needs that lock on another
///   thread, or waits for a thread that does: to load a library, or to use a thread-local with a destructor for the first
///   time, as most new threads do.
/// - A thread may leave by `exit` while another one unloads the library, in either order: each handler runs once, and
///   `dlclose` waits for threads that are inside the library on their way out. This holds on Linux with glibc; elsewhere
///   the host must not do both at the same time.
/// - Each shared library with this crate in it has a process stack and a [report hook](crate::report) of its own. The
///   host's [`Interpreter::enter`](crate::Interpreter::enter) does not reach the library's [`register`](crate::register).
/// - Unloading is not an exit: an [`Exit`] that is returned there is ignored. If the library is still loaded when the
///   process ends, `Exit` decides the status, as in a program.
/// - A living thread that the library has started keeps it loaded, and so does a thread-local of it that has a destructor,
///   on every thread that has used it. `dlclose` then runs nothing, and the handlers run when the process ends.
/// - An error refers to the code of the library that made it. Format errors, and
///   [finalize](crate::Interpreter::finalize) interpreters whose errors you want, before the library is unloaded.
/// - Two copies of this crate in one process, as two versions of it, or those of a plugin and its host, do not know each
///   other. **[`exit`] of one copy in a handler of the other one may abort the process**, as `std::process::exit` does: it
///   is no handler of its own. Return [`Exit`], that of the copy with which the handler is registered.
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

/// The last drain is over.
static OVER: AtomicBool = AtomicBool::new(false);
/// This is the child of a process that was on its way out: `std::process::exit` would wait for a thread that only the
/// parent has.
static FORKED_IN_EXIT: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// This thread is inside C's `exit`.
    static IN_C_EXIT: Cell<bool> = const { Cell::new(false) };
}

fn register_hooks(count: usize) -> usize {
    unload::prepare();
    let taken = (0..count).take_while(|_| raw::at_exit(hook)).count();
    unload::given(taken);
    taken
}

extern "C" fn hook() {
    IN_C_EXIT.set(true);
    let unloads = raw::unloads_here();
    let called = unload::enter(unloads);
    let mut status = None;
    if !OVER.load(Ordering::Acquire) {
        register_hooks(if called == 1 { MORE_HOOKS } else { 1 });
        status = catch_unwind(drain_for_good).unwrap_or_else(|payload| {
            discard(payload);
            None
        });
    } else if unload::are_all(called) {
        let _ = catch_unwind(|| PROCESS.report_refused()).map_err(discard);
    }
    let leaves = unloads || PROCESS.leaves_first();
    unload::leave(); // the library may be unloaded from here on
    if !leaves {
        raw::park(); // until another thread has ended the process
    }
    if let Some(status) = status.filter(|_| !unloads) {
        raw::end_with(status);
    }
}

/// Goes on with the drains that this thread has begun, the innermost first, and drains the process stack; returns the exit
/// status that handlers asked for.
#[cfg_attr(not(loom), expect(unreachable_pub, reason = "the models of tests/loom.rs call it"))]
pub fn drain_for_good() -> Option<i32> {
    while let Some(begun) = innermost() {
        if let Some(code) = begun.stack().drain_untold(Occasion::Exit) {
            ask_exit(code);
            PROCESS.decide(code);
        }
        if is_innermost(begun.stack()) {
            forget_begun(); // a fork that went past C's hooks took the drain away
        }
    }
    loop {
        if let Some(code) = PROCESS.drain_untold(Occasion::Exit) {
            PROCESS.decide(code);
        }
        if PROCESS.is_settled() || !PROCESS.is_over() {
            break;
        }
        thread::yield_now(); // a handler that waited for this drain goes on now, and is waited for
    }
    if PROCESS.is_over() {
        OVER.store(true, Ordering::Release);
    }
    PROCESS.decided()
}

/// Records an exit status with every drain that this thread has begun.
fn ask_exit(code: i32) {
    let mut begun = innermost();
    while let Some(this) = begun {
        begun = this.stack().ask_exit(code);
    }
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
/// ```no_run
/// exitstack::register(|| println!("saved"));
/// if std::env::args().len() > 1 {
///     eprintln!("no arguments, please");
///     exitstack::exit(2); // prints "saved"
/// }
/// ```
pub fn exit(code: i32) -> ! {
    ask_exit(code);
    if PROCESS.drains_here() && cfg!(panic = "unwind") && !thread::panicking() {
        resume_unwind(Box::new(Exit(code)));
    }
    let code = drain_for_good().unwrap_or(code);
    if IN_C_EXIT.get() || FORKED_IN_EXIT.load(Ordering::Relaxed) {
        raw::exit_inside_exit(code)
    }
    std::process::exit(code)
}

/// For `main`: runs `body`, then the handlers of the process stack, and returns the exit status.
///
/// The handlers run inside `main`, where thread-locals are alive and other threads can be joined. An error of the body is
/// printed as `main` would print it and the status is 1; after a panic it is 101; an [`Exit`] that a handler returns
/// decides otherwise. What is registered after that is drained by the `atexit` hook, as without `run`.
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
pub fn run<T, E: Debug>(body: impl FnOnce() -> Result<T, E>) -> ExitCode {
    let ended = catch_unwind(AssertUnwindSafe(|| match body() {
        Ok(value) => {
            drop(value);
            0
        }
        Err(error) => {
            raw::write_stderr(format!("Error: {error:?}\n").as_bytes());
            1
        }
    }));
    let status = ended.unwrap_or_else(|payload| {
        discard(payload);
        101
    });
    let asked = PROCESS.drain_untold(Occasion::Run);
    ExitCode::from(asked.map_or(status, low_byte))
}

/// What a parent sees of an exit status.
fn low_byte(code: i32) -> u8 {
    code.to_le_bytes()[0]
}

// ---------------------------------------------------------------------------------------------------------------------
// The way in

global! {
    static ARMED: Lock<Armed> = Lock::new(Armed { forks: false, exit: false });
}

#[derive(Debug)]
pub(crate) struct Armed {
    forks: bool,
    exit: bool,
}

/// Sets up what drains the process stack; called before its first registration. False if C refuses.
fn arm() -> bool {
    if cfg!(loom) {
        return true; // a model is over before the process is
    }
    let mut armed = ARMED.lock();
    armed.forks = armed.forks || raw::at_fork(before_fork, after_fork, in_child);
    armed.exit = armed.exit || armed.forks && register_hooks(HOOKS) > 0;
    armed.exit
}

// ---------------------------------------------------------------------------------------------------------------------
// Fork

/// Every lock of the crate that a child may need, in the order they are taken; they are released in reverse.
struct Locks {
    stacks: Vec<Held<dyn Node, State>>,
    process: MutexGuard<'static, State>,
    edges: MutexGuard<'static, Vec<Edge>>,
    _hook: MutexGuard<'static, Option<Arc<Hook>>>,
    _armed: MutexGuard<'static, Armed>,
}

impl Locks {
    /// Releases all. What kept the stacks is left, to be dropped after that: it may be the last of an interpreter.
    fn release(self) -> Vec<Arc<dyn Node>> {
        self.stacks.into_iter().map(Held::release).collect()
    }
}

thread_local! {
    /// The locks, while this thread forks. `ManuallyDrop`: without a destructor, the thread-local is there to the end.
    static LOCKS: RefCell<ManuallyDrop<Option<Locks>>> = const { RefCell::new(ManuallyDrop::new(None)) };
}

fn take_locks() -> Locks {
    let armed = ARMED.lock();
    let hook = HOOK.lock();
    let edges = EDGES.lock();
    let process = PROCESS.lock();
    let mut stacks: Vec<Held<dyn Node, State>> = Vec::new();
    let mut nodes: Vec<Arc<dyn Node>> = nested(&process).cloned().collect();
    while let Some(node) = nodes.pop() {
        let held = Held::new(node, |node| node.stack().lock());
        nodes.extend(nested(held.get()).cloned());
        stacks.push(held);
    }
    Locks { stacks, process, edges, _hook: hook, _armed: armed }
}

extern "C" fn before_fork() {
    let _ = catch_unwind(|| LOCKS.with(|locks| **locks.borrow_mut() = Some(take_locks()))).map_err(discard);
}

extern "C" fn after_fork() {
    let take = || LOCKS.with(|locks| locks.borrow_mut().take());
    let _ = catch_unwind(|| drop(take().map(Locks::release))).map_err(discard);
}

extern "C" fn in_child() {
    raw::new_epoch();
    let _ = catch_unwind(|| {
        LOCKS.with(|locks| {
            if let Some(locks) = &mut **locks.borrow_mut() {
                locks.edges.clear();
                FORKED_IN_EXIT.fetch_or(ends(&locks.process), Ordering::Relaxed);
                forked(&mut locks.process);
                locks.stacks.iter_mut().for_each(|stack| forked(stack.get_mut()));
            }
        });
    })
    .map_err(discard);
    after_fork();
}

/// Lets this forked child own what its parent registered, with the process stack and with every interpreter.
///
/// Without it, a child neither runs nor drops what it inherited, only what it registers itself: it would delete its
/// parent's files. A daemon that forks and lets its parent leave by `_exit` is the one who wants the handlers. Call it in
/// the child, once; elsewhere, and on systems without `fork`, it does nothing. The parent keeps its handlers too.
///
/// CPython runs inherited handlers in every child that exits normally.
///
/// A child may use the process stack and the interpreters of its parent, whatever other threads did at the fork: their locks
/// are free in it. Two kinds of stack are not looked after: a [`SharedExitStack`] that is a value, and the stack of an
/// interpreter that was finalized. If another thread was in one of their methods at the fork, using it in the child waits
/// for ever, as with any lock.
///
/// ```
/// exitstack::adopt_after_fork(); // in a process that did not fork: nothing
/// ```
pub fn adopt_after_fork() {
    PROCESS.adopt();
    PROCESS.descendants().iter().for_each(|node| node.stack().adopt());
}
