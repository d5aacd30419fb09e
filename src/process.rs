//! The process's own stack, and every normal way out of the process: when the root drains.
//!
//! 1. `hook` is registered with C's `atexit` [`HOOKS`] times, when the first handler or interpreter comes. Threads that
//!    race in C's `exit` each take one of them off C's list; the first to come drains, every other one waits in its own
//!    until that is done, so that none of them ends the process under the drain. Each that waits registers another one.
//! 2. What a drain has gathered stands in the stack (invariant 4 of `shared`), so a hook that runs inside a handler (C
//!    `exit` called there) goes on with the drain where it was.
//! 3. Nothing unwinds out of `hook`, `before_fork`, `after_fork` and `in_child`: C calls them.
//! 4. Around a fork, the locks are taken in this order: `ARMED`, the report hook, the edges of waiting threads, then the
//!    stacks from the root outwards. No other code of the crate holds two of these at a time, except the edges and a
//!    latch.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::drain::discard;
use crate::error::{CloseError, Exit};
use crate::raw::{self, Held};
use crate::report::{HOOK, Hook};
use crate::shared::{Node, Occasion, SharedExitStack, State, forked, nested};
use crate::sync::{Lock, MutexGuard, global};
use crate::waits::{EDGES, Edge};

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
/// The last drain is over.
static OVER: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// This thread is inside C's `exit`.
    static IN_C_EXIT: Cell<bool> = const { Cell::new(false) };
}

fn register_hooks(count: usize) -> usize {
    let taken = (0..count).take_while(|_| raw::at_exit(hook)).count();
    REGISTERED.fetch_add(taken, Ordering::Relaxed);
    taken
}

extern "C" fn hook() {
    IN_C_EXIT.set(true);
    let called = CALLED.fetch_add(1, Ordering::Relaxed) + 1;
    if !OVER.load(Ordering::Acquire) {
        register_hooks(if called == 1 { MORE_HOOKS } else { 1 });
        match catch_unwind(drain_for_good) {
            Ok(Some(status)) if raw::in_main_program() => raw::c_exit(status),
            Ok(_) => {}
            Err(payload) => discard(payload),
        }
    } else if called == REGISTERED.load(Ordering::Relaxed) {
        let _ = catch_unwind(|| PROCESS.report_refused()).map_err(discard);
    }
}

/// Goes on with the drains that this thread was in the middle of, and drains the process stack; returns the exit status
/// that handlers asked for.
#[cfg_attr(not(loom), expect(unreachable_pub, reason = "the models of tests/loom.rs call it"))]
pub fn drain_for_good() -> Option<i32> {
    let mut status = None;
    if !PROCESS.drains_here() {
        for node in PROCESS.descendants() {
            if node.stack().drains_here() {
                status = exit_code(node.stack().drain(Occasion::Exit)).or(status);
            }
        }
    }
    status = exit_code(PROCESS.drain(Occasion::Exit)).or(status);
    OVER.store(true, Ordering::Release);
    status
}

fn exit_code(result: Result<(), CloseError>) -> Option<i32> {
    let code = result.as_ref().err().and_then(CloseError::exit_code);
    discard(result);
    code
}

/// Drains the process stack, then ends the process with this status.
///
/// What `std::process::exit` does, with the handlers run first: while `std::process::exit` is still legal, and also
/// where it reaches no `atexit` handler (Windows). Like it, it drops nothing that stands on the threads' stacks. An
/// [`Exit`] that a handler returns replaces the status. If another thread drains already, waits until it is done.
///
/// Inside a handler of the process stack, or of an interpreter that drains with it, it acts as [`Exit`]: the status is
/// recorded at once, the handler is left by unwinding (or, where that cannot be, never returned to), and the drain goes
/// on with the handlers below. `std::process::exit` there aborts the process: this is the call to use.
///
/// ```no_run
/// exitstack::register(|| println!("saved"));
/// if std::env::args().len() > 1 {
///     eprintln!("no arguments, please");
///     exitstack::exit(2); // prints "saved"
/// }
/// ```
pub fn exit(code: i32) -> ! {
    if PROCESS.drains_here() {
        PROCESS.ask_exit(code);
        if cfg!(panic = "unwind") && !thread::panicking() {
            resume_unwind(Box::new(Exit(code)));
        }
    }
    let code = drain_for_good().unwrap_or(code);
    if IN_C_EXIT.get() {
        raw::c_exit(code)
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
    let asked = exit_code(PROCESS.drain(Occasion::Run));
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
    let _ = catch_unwind(|| LOCKS.with(|locks| drop(locks.borrow_mut().take()))).map_err(discard);
}

extern "C" fn in_child() {
    raw::new_epoch();
    let _ = catch_unwind(|| {
        LOCKS.with(|locks| {
            if let Some(locks) = &mut **locks.borrow_mut() {
                locks.edges.clear();
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
/// the child, once; elsewhere it does nothing. The parent keeps its handlers too.
///
/// CPython runs inherited handlers in every child that exits normally.
///
/// ```
/// exitstack::adopt_after_fork(); // in a process that did not fork: nothing
/// ```
pub fn adopt_after_fork() {
    PROCESS.adopt();
    PROCESS.descendants().iter().for_each(|node| node.stack().adopt());
}
