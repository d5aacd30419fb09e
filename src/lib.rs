//! Cleanup that runs last-in, first-out, whatever way the code is left.
//!
//! ```
//! use exitstack::ExitStack;
//!
//! fn main() -> Result<(), exitstack::CloseError> {
//!     exitstack::register(|| println!("3: the process ends"));
//!
//!     let mut stack = ExitStack::new();
//!     stack.register(|| println!("2: opened first, closed last"));
//!     stack.register(|| println!("1: opened last, closed first"));
//!     stack.close()?; // returns what failed; a drop runs them too
//!
//!     std::process::exit(0) // runs no destructor, but what was registered
//! }
//! ```
//!
//! **A stack that is dropped without [`close()`](ExitStack::close) has failed**: its
//! [`on_failure`](ExitStack::on_failure) handlers run and its [`on_success`](ExitStack::on_success) handlers do not.
//!
//! **An [`ExitStack`] is a local variable**: it does not run on `std::process::exit` or Ctrl-C.
//!
//! The [guide] has recipes: for terminals, temporary files, guards, exit statuses, tests, threads, C, plugins and daemons.
//!
//! # What runs, and when
//!
//! A *handler* is any closure or function without arguments that returns `()` or a `Result<(), E>`: see [`IntoHandler`].
//! A *stack* holds handlers and *drains*: it takes them out one by one, the last registered first, and runs each, once.
//! A stack that is a value drains when it is closed or dropped. The [process stack](process_stack) drains when the
//! process ends. On Unix, and elsewhere with the exceptions under [Platforms](#platforms):
//!
//! | way out | handlers run |
//! | --- | --- |
//! | return from `main`, `Ok` or `Err` | yes |
//! | panic in `main` | yes |
//! | `std::process::exit`, C `exit`, from any thread | yes |
//! | [`exitstack::exit`](exit), [`exitstack::run`](run) | yes |
//! | a panic with `panic = "abort"`, `abort`, a double panic | no |
//! | a signal's default action (SIGTERM, SIGINT, …), SIGKILL | no |
//! | `_exit`, `quick_exit` | no |
//! | `exec` | no |
//!
//! A handler registered while its stack drains runs next; one unregistered meanwhile does not run. No lock of this
//! library is held while a handler runs: it may register, unregister and close as it likes. A forked child neither runs
//! nor drops what its parent registered with the process stack and the interpreters: see [`adopt_after_fork`].
//!
//! # The four reaches
//!
//! From the easy to the far:
//!
//! - **A function**: [`ExitStack`] is a value. Its handlers may borrow; [`enter`](ExitStack::enter) lends a resource
//!   that the stack gives back; steps can be undone unless the work reaches its end, which is a
//!   [`close()`](ExitStack::close), or an `Ok` from the body of a [`scope`].
//! - **Several threads**: [`SharedExitStack`] is the same behind `&self`, for handlers that are `Send + 'static`. It can
//!   stand in a `static`.
//! - **An interpreter, a plugin, a subsystem, a test**: [`Interpreter`] is a named shared stack, nested in its parent
//!   and torn down at its place there. [`register`] goes to the one that is current on the thread.
//! - **The process**: [`process_stack`] is the root. [`register`] goes there where no interpreter is current. [`exit`]
//!   ends the process after running what it holds; [`run`], as the body of `main`, runs it while thread-locals live,
//!   and then reports what the body returned.
//!
//! Below them stands [`HandlerList`], public for language runtimes that keep handler objects of their own.
//!
//! # When a handler fails or panics
//!
//! The others run all the same. `close()` returns every failure in a [`CloseError`], in the order they happened, each
//! with the handler's name, the place where it was registered, and the interpreter's path; its causes are its
//! [`source`](std::error::Error::source), and `{:#}` shows everything on one line. A drop, and the end of the process, have
//! nobody to return them to: each goes to the [report hook](report) at the moment it happens, by default one line on
//! standard error. No drop of a stack panics. A failure does not change the exit status: a handler that wants to returns
//! [`Exit`].
//!
//! # What is not promised
//!
//! - **`std::process::exit` inside a handler of the process stack aborts the process**: Rust forbids to enter it again.
//!   In a handler of any drain that another thread's exit waits for, it never returns, nor does the process end. Call
//!   [`exit`], or return [`Exit`].
//! - **A panic with `panic = "abort"`** ends the process in the handler, or wherever it is; no handler runs after it.
//!   An `Err` is what it is elsewhere, and so is [`Exit`]. [`exit`] inside a handler cannot unwind then: the handlers
//!   below run within that call, each such call on the stack of the one before, and no local of the handler is dropped.
//! - Nothing runs on SIGKILL, `_exit` and the other ways out that the table answers with no.
//! - **Nothing here is async-signal-safe.** A signal handler must not register, close or exit: let a thread wait for the
//!   signal instead (the README says how a program cleans up and then dies by the signal).
//! - A foreign exception (of C++, say) or `pthread_exit` that unwinds out of a handler aborts the process.
//! - What a handler prints without a newline is lost if the process leaves through C's `exit`, which does not know Rust's
//!   buffer. On every other way out standard output has no buffer by then.
//! - **Thread-locals that have destructors are gone** when the process leaves through `atexit`, that is on every way out
//!   but [`run`] and [`exit`]. A handler that needs one (that logs through `tracing`, say) panics, and is contained and
//!   reported like any other.
//! - Other threads go on running while the process drains: what a handler shares with them needs a lock. A handler that
//!   never returns, or waits for a thread that is in `exit` itself, keeps the process from ending.
//! - Other libraries' `atexit` handlers run at C's places: before ours if registered after our first, after ours if
//!   before (with [`run`] and [`exit`], which drain first, after ours). When several threads are in C's `exit` at once,
//!   what happens to theirs, and to C's list itself where it holds more than 32 entries (ours are 31), is C's: glibc
//!   before 2.41 may crash there.
//!   Ours are safe from any number of threads in `std::process::exit` and `exitstack::exit`, and from 16 that enter C's in
//!   the same instant (more register hooks of their own as they come: 64 were tried).
//! - The default report takes no lock. A report hook or panic hook of the program's own may, and wait for ever for a
//!   thread that never lets go of it.
//! - A report that cannot be written stops nothing: see [`report`]. A panic's message is written by the panic hook, which
//!   has no such care: in a program that puts SIGPIPE back to its default action, a handler that panics when nobody reads
//!   standard error ends the process.
//! - A stack that is forgotten ([`std::mem::forget`]) runs nothing, and one in a `static` is never dropped: of these only
//!   the process stack drains at the end.
//!
//! # Platforms
//!
//! The README has a table of what was checked where. In short:
//!
//! - **On Windows `std::process::exit` runs no handler**: it ends every other thread, with whatever locks that held,
//!   before it calls anybody, so there is no moment at which handlers could safely run. [`exit`] and [`run`] drain
//!   before that; return from `main`, a panic in it, and C's `exit` reach the handlers as elsewhere.
//! - **On musl C's `exit` inside a handler is trapped** by newer versions. [`Exit`] and [`exit`] do without; but `exit`
//!   where it cannot unwind, in a process that is in C's `exit` already, leaves out other libraries' earlier `atexit`
//!   handlers.
//! - **On WASI** there is one thread, and a panic aborts.
//! - **On `wasm32-unknown-unknown`** there is no way out that could be hooked: [`exit`] and [`run`] drain by
//!   themselves. There is no standard error: without a [report hook](report), reports are lost.
//! - `fork` concerns Unix alone; elsewhere [`adopt_after_fork`] does nothing.
//! - macOS and other Unix than Linux are written from the documentation, and not tested.
//!
//! # Unsafe code
//!
//! It stands in `src/raw` alone; every other module is held to safe Rust by lint. `closure.rs` keeps small handlers in
//! the stack without an allocation, `entered.rs` lends out what is entered; a file for each kind of system is the C
//! boundary (`atexit`, `exit`, a raw write to standard error), `fork.rs` is for `fork`. Each file opens
//! with the argument why it is sound; the README tells how that is checked.
//!
//! # Features and Rust version
//!
//! There are no features but `loom`, which is for the crate's own tests. The minimum supported Rust version is 1.85.
//!
//! # Neighbours
//!
//! - [scopeguard](https://docs.rs/scopeguard) and std's `DropGuard` are one guard around one value, known when the code
//!   is written: the better choice for that.
//! - Python's [`atexit`](https://docs.python.org/3/library/atexit.html) and
//!   [`contextlib.ExitStack`](https://docs.python.org/3/library/contextlib.html#contextlib.ExitStack) are the models; where
//!   this crate differs from them on purpose, the item says so.
//! - JavaScript's `DisposableStack`: its `defer` is `register`, `adopt` is `enter`, `move` is `pop_all`, `dispose` is
//!   `close`.
//! - [exit-stack](https://docs.rs/exit-stack) is an unrelated crate, which pins values to the stack.

mod chain;
mod drain;
mod error;
pub mod guide;
mod handler;
mod interpreter;
mod list;
mod process;
#[allow(unsafe_code)]
mod raw;
pub mod report;
mod shared;
mod stack;
mod sync;
mod waits;

pub use error::{CloseError, Exit, HandlerError, HandlerErrorKind, Outcome, Refused};
pub use handler::{Handler, HandlerResult, IntoHandler, NoKey, PendingHandler};
pub use interpreter::{Interpreter, register, unregister, unregister_fn, unregister_key};
pub use list::{HandlerId, HandlerList, Iter};
pub use process::{adopt_after_fork, exit, process_stack, run};
pub use shared::SharedExitStack;
pub use stack::{ExitStack, scope};

/// What C's `exit` does on a thread, for the models in `tests/loom.rs`.
#[cfg(all(loom, feature = "loom"))]
#[doc(hidden)]
pub use process::drain_for_good;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct ReadmeDoctests;
