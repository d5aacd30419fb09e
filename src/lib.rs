//! Cleanup that runs last-in, first-out, however the code exits.
//!
#![cfg_attr(feature = "std", doc = "```")]
#![cfg_attr(not(feature = "std"), doc = "```ignore")]
//! use exitstack::ExitStack;
//!
//! fn main() -> Result<(), exitstack::CloseError> {
//!     exitstack::register(|| println!("3: the process ends"));
//!
//!     let mut stack = ExitStack::new();
//!     stack.register(|| println!("2: opened first, closed last"));
//!     stack.register(|| println!("1: opened last, closed first"));
//!     stack.close()?; // returns the failures; dropping the stack runs the handlers too
//!
//!     std::process::exit(0) // runs no destructors, but does run what was registered
//! }
//! ```
//!
//! **A stack that is dropped without [`close()`](ExitStack::close) has failed**: its
//! [`on_failure`](ExitStack::on_failure) handlers run and its [`on_success`](ExitStack::on_success) handlers do not.
//!
//! **An [`ExitStack`] is a local variable**: it does not run on `std::process::exit` or Ctrl-C.
//!
//! The [guide] has recipes: for terminals, signals and deadlines, temporary files, rollback, guards, error types, exit
//! statuses, tests, threads, async programs, C, plugins and daemons.
//!
//! # What runs, and when
//!
//! A *handler* is a closure or function that takes no arguments and returns `()` or a `Result<(), E>`: see
//! [`IntoHandler`]. A *stack* holds handlers. When it *drains*, it takes them out one by one, the last registered
//! first, and runs each of them once. A stack that is a value drains when it is closed or dropped. The
//! [process stack](process_stack) drains when the process ends. On Unix:
//!
#![doc = include_str!("../docs/ways-out.md")]
//!
//! **On Windows `std::process::exit` runs no handler**: call [`exit`], or return from `main`. [Platforms](#platforms)
//! lists the other exceptions.
//!
//! A handler that is registered while its stack drains runs next; one that is unregistered before its turn does not
//! run. The library holds no lock while a handler runs, so a handler may register, unregister and close as it likes. A
//! forked child neither runs nor drops what its parent registered with the process stack, an interpreter or any other
//! shared stack: see [`adopt_after_fork`].
//!
//! # The four scopes
//!
//! - **A function**: [`ExitStack`] is a value, and its handlers may borrow. [`enter`](ExitStack::enter) lends out a
//!   resource that the stack disposes of. Steps can be undone unless the work succeeds, which means that
//!   [`close()`](ExitStack::close) is reached or that the body of a [`scope`] returns `Ok`. [`try_scope`] takes any
//!   error type, and returns both errors if the work and its cleanup fail. With the feature `async`, [`AsyncExitStack`]
//!   and [`scope_async`] do the same for async functions, and their handlers may be async too.
//! - **Several threads**: [`SharedExitStack`] is the same behind `&self`, for handlers that are `Send + 'static`. It
//!   can be a `static`.
//! - **An interpreter, a plugin, a subsystem, a test**: [`Interpreter`] is a named shared stack, nested in its parent
//!   and torn down at its position there. [`register`] uses the interpreter that is current on the thread.
//! - **A transaction**: [`Interpreter::scope`] is a `scope` whose rollback also runs if the process exits before the body
//!   has returned.
//! - **The process**: [`process_stack`] is the root, which [`register`] uses where no interpreter is current. [`exit`]
//!   drains it and then ends the process. [`run`], as the body of `main`, drains it while thread-locals are alive, and
//!   then reports what the body returned.
//!
//! [`HandlerList`] is the list under all of them, public for language runtimes that keep handler objects of their own.
//!
//! # When a handler fails or panics
//!
//! The other handlers still run. `close()` returns every failure in a [`CloseError`], in the order they happened, each
//! with the handler's name, the place where it was registered, and the interpreter's path. The cause of each is its
//! [`source`](std::error::Error::source); `{:#}` shows everything on one line. A drop, and the end of the process,
//! cannot return failures: each goes to the [report hook](report) as it happens, by default as one line on standard
//! error. Dropping a stack never panics. A failure does not change the exit status; a handler that should decide it
//! returns [`Exit`].
//!
//! # What is not promised
//!
//! - **`std::process::exit` inside a handler of the process stack aborts the process**: std does not allow `exit` to be
//!   called twice. If another thread is in `exit` and waiting for the drain that the handler runs in, the call blocks
//!   forever and the process hangs. Call [`exit`], or return [`Exit`].
//! - **If a handler of a stack that is a value ends the process, the handlers below it do not run**, and what had failed
//!   before is lost: only the process stack and the interpreters nested in it go on at the end of the process.
//! - **With `panic = "abort"`, a panic ends the process on the spot**, in a handler or elsewhere, and no handler runs
//!   after it. An `Err` and [`Exit`] work as usual. [`exit`] inside a handler cannot unwind then: the handlers below
//!   run within that call, each such call on top of the one before, and the handler's locals are not dropped.
//! - **Nothing runs on SIGKILL, `_exit`** and the other exit paths for which the table says no.
//! - **Nothing here is async-signal-safe.** A signal handler must not register, close or exit. To clean up on SIGINT,
//!   SIGTERM or SIGHUP, a program enables the feature `signals` and installs `signals::Signals`: see
//!   [`guide::signals_and_deadlines`].
//! - **Thread-locals with destructors are gone** when handlers run from C's `atexit`, which is on every exit path
//!   except [`run`], [`exit`] and signals. A handler that needs one (to log through `tracing`, say) panics, which is
//!   caught and reported like any other panic.
//! - **Other threads keep running** while the process drains: what a handler shares with them needs a lock. A handler
//!   that never returns, or that waits for a thread which is itself in `exit`, keeps the process from ending, unless
//!   [`shutdown`] sets limits.
//! - Other libraries' `atexit` handlers run at their position in C's list: before ours if they were registered after
//!   our first one, otherwise after ours. [`run`] and [`exit`] drain first, so on these paths all of them run after
//!   ours.
//! - Our handlers are safe with any number of threads in `std::process::exit` and [`exit`] at once, and with 16 that
//!   enter C's `exit` in the same instant (later ones add hooks of their own; 64 were tried). Whether other libraries'
//!   handlers are, and C's list if it holds more than 32 entries (31 are ours), is up to C: glibc before 2.41 may
//!   crash.
//! - **If two drops of what one handler holds panic, the process aborts**, as with any value that has two such fields:
//!   those of two captures, say, or of a capture and the [key](Handler::keyed). So it does if a handler panics, and the
//!   drop of what it has captured does too.
//! - A foreign exception (from C++, say) or a `pthread_exit` that unwinds out of a handler aborts the process.
//! - What a handler prints without a newline is lost if the process exits through C's `exit`, which does not know
//!   Rust's buffer. On every other exit path, it is written.
//! - The default report takes no lock that another thread might hold forever. A program's own report hook or panic hook
//!   may take one, and block forever if another thread never releases it.
//! - A report that cannot be written stops nothing: see [`report`]. A panic's message is written by the panic hook,
//!   which is less careful: in a program that resets SIGPIPE to its default action, a handler that panics while nobody
//!   reads standard error ends the process.
//! - In a shared library, handlers may run while the loader's lock is held: see
//!   [`process_stack`](process_stack#in-a-shared-library).
//! - A stack that is forgotten ([`std::mem::forget`]) runs nothing. One in a `static` is never dropped: only the
//!   process stack drains at the end.
//!
//! # Platforms
//!
#![doc = include_str!("../docs/platforms.md")]
//!
//! # Without std
//!
//! With `default-features = false`, the crate needs `alloc` alone, and atomics that can compare and swap a word. It then
//! consists of [`ExitStack`], [`scope`], [`try_scope`], [`Handler`], [`HandlerList`], the errors, and the [report
//! hook](report). What they promise holds, with two exceptions:
//!
//! - **A panic in a handler is not caught.** The other handlers run while it unwinds; then it propagates out of `close()`,
//!   of [`run_now`](ExitStack::run_now), or of the drop. A `close()` that ends so returns no failures: all of them go to the
//!   report hook. A panic that leaves `run_now` is not reported. **A second panic aborts the program**, once the other
//!   handlers have run: another handler's, the report hook's, or that of a stack which is dropped because of a panic. Where
//!   panics abort, as on most targets without an operating system, the first one does.
//! - **Without a report hook, the failures of a dropped stack are lost**, as there is no standard error. `close()` returns
//!   them as usual.
//!
//! # Unsafe code
//!
//! All of it is in `src/raw`; a lint holds every other module to safe Rust. `closure.rs` stores small handlers in the
//! stack without an allocation, `appendable.rs` and `lending.rs` lend out what is entered, `fork.rs` tells a child from
//! its parent, `unload.rs` notices that a library is unloaded, `signals.rs` asks C what a signal does, and `console.rs`
//! is called by Windows in place of one. The other files are the boundary to C of each kind of system: `atexit`,
//! `exit`, a raw write to standard error. Each file opens with the argument for its soundness; `docs/checks.md` in the
//! repository says how that is checked.
//!
//! # Features and Rust version
//!
//! - `std`, which is enabled by default: all but what is there [without std](#without-std).
//! - `async`: [`AsyncExitStack`] and [`scope_async`], for handlers that are awaited, on any runtime and without a further
//!   dependency.
//! - `signals`: the module `signals`, on Unix, with the crate signal-hook, and on Windows. For programs: SIGINT, SIGTERM and
//!   SIGHUP, or the events of the console, run the handlers, and the process dies by the signal.
//! - `loom` is for the crate's own tests.
//!
//! The others are not enabled by default; all of them enable `std`. The minimum supported Rust version is 1.85.
//!
//! # Neighbours
//!
//! - [scopeguard](https://docs.rs/scopeguard) and std's `DropGuard` put one guard around one value that is known when
//!   the code is written. For that, they are the better choice.
//! - Python's [`atexit`](https://docs.python.org/3/library/atexit.html) and
//!   [`contextlib.ExitStack`](https://docs.python.org/3/library/contextlib.html#contextlib.ExitStack) are the models.
//!   Where this crate differs on purpose, the item says so.
//! - JavaScript's
//!   [`DisposableStack`](https://developer.mozilla.org/docs/Web/JavaScript/Reference/Global_Objects/DisposableStack):
//!   its `defer` is `register`, `adopt` is `enter`, `move` is `pop_all`, `dispose` is `close`. [`AsyncExitStack`] says how it
//!   differs from Python's `AsyncExitStack` and JavaScript's `AsyncDisposableStack`.
//! - [exit-stack](https://docs.rs/exit-stack) is an unrelated crate, which pins values to the stack.
//!
#![cfg_attr(
    not(feature = "async"),
    doc = "[`AsyncExitStack`]: https://docs.rs/exitstack/latest/exitstack/struct.AsyncExitStack.html"
)]
#![cfg_attr(
    not(feature = "async"),
    doc = "[`scope_async`]: https://docs.rs/exitstack/latest/exitstack/fn.scope_async.html"
)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(feature = "std"), no_std)]
// What is used, and linked to, only by what needs std.
#![cfg_attr(not(feature = "std"), allow(dead_code, unused_imports, rustdoc::broken_intra_doc_links))]

extern crate alloc;

mod chain;
mod drain;
mod error;
mod handler;
mod list;
mod panics;
#[allow(unsafe_code)]
mod raw;
pub mod report;
mod scoped;
mod stack;

#[cfg(feature = "async")]
mod async_stack;
#[cfg(feature = "std")]
pub mod guide;
#[cfg(feature = "std")]
mod interpreter;
#[cfg(feature = "std")]
mod process;
#[cfg(feature = "std")]
mod shared;
#[cfg(feature = "std")]
pub mod shutdown;
#[cfg(all(any(unix, windows), feature = "signals"))]
pub mod signals;
#[cfg(feature = "std")]
mod sync;
#[cfg(feature = "std")]
mod tree;

#[cfg(feature = "async")]
pub use async_stack::{AsyncExitStack, AsyncScope, scope_async};
#[cfg(feature = "std")]
pub use error::Refused;
pub use error::{CloseError, Exit, HandlerError, HandlerErrorKind, Outcome, ScopeError, ScopeFailure};
#[cfg(feature = "async")]
pub use handler::IntoAsyncHandler;
pub use handler::{Handler, HandlerResult, IntoHandler, NoKey, PendingHandler};
#[cfg(feature = "std")]
pub use interpreter::{Instrumented, Interpreter, register, unregister, unregister_fn, unregister_key};
pub use list::{HandlerId, HandlerList, Iter};
#[cfg(feature = "std")]
pub use process::{adopt_after_fork, exit, is_exiting, process_stack, run};
pub use scoped::{scope, try_scope};
pub use stack::ExitStack;
#[cfg(feature = "std")]
pub use tree::SharedExitStack;

/// What C's `exit` does on a thread, for the models in `tests/loom.rs`.
#[cfg(all(loom, feature = "loom"))]
#[doc(hidden)]
pub use process::drain_for_good;

#[doc = include_str!("../README.md")]
#[cfg(all(doctest, feature = "std"))]
struct ReadmeDoctests;
