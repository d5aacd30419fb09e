//! For a value whose drop does the cleanup and that has to live until the process ends: let a handler own it.
//!
//! Here it is a guard like `tracing_appender`'s `WorkerGuard`, whose drop waits until everything is written:
//!
//! ```
//! use std::process::ExitCode;
//! # use logger::LOG;
//! #
//! # /// Stands in for `tracing_appender`.
//! # mod logger {
//! #     use std::sync::{Mutex, mpsc};
//! #     use std::thread;
//! #     pub static LOG: Mutex<Vec<&str>> = Mutex::new(Vec::new());
//! #     pub type Logger = mpsc::Sender<Option<&'static str>>;
//! #     pub struct WorkerGuard(Logger, Option<thread::JoinHandle<()>>);
//! #     pub fn start() -> (Logger, WorkerGuard) {
//! #         let (logger, lines) = mpsc::channel();
//! #         let worker = thread::spawn(move || lines.iter().map_while(|line| line).for_each(|line| LOG.lock().unwrap().push(line)));
//! #         (logger.clone(), WorkerGuard(logger, Some(worker)))
//! #     }
//! #     impl Drop for WorkerGuard {
//! #         fn drop(&mut self) {
//! #             let _ = self.0.send(None);
//! #             let _ = self.1.take().map(thread::JoinHandle::join);
//! #         }
//! #     }
//! # }
//!
//! fn main() -> ExitCode {
//! #     let status =
//!     exitstack::run(|| {
//!         let (logger, guard) = logger::start();
//!         exitstack::register(move || drop(guard)); // registered first, so the last to run
//!
//!         let in_handler = logger.clone();
//!         exitstack::register(move || in_handler.send(Some("stopped")));
//!         logger.send(Some("started"))
//!     })
//! #     ;
//! #     assert_eq!(*LOG.lock().unwrap(), ["started", "stopped"]);
//! #     status
//! }
//! ```
//!
//! What the program's other handlers log is written too, because the guard's handler runs after them. `run` is what
//! lets them log at all: when the process leaves through C's `atexit`, the thread-locals that `tracing` needs are gone,
//! and a handler that logs panics. (The guard's own handler works there too.)
//!
//! # When the guard is dropped
//!
//! | its handler | the guard |
//! | --- | --- |
//! | has run, returned an `Err` or panicked | is dropped before the next handler runs, if the handler has not dropped it |
//! | was removed (`unregister`, `unregister_key`, `clear`) or refused | is dropped at that moment |
//! | was registered for the other outcome (`on_success`, `on_failure`) | is dropped at the handler's turn |
//! | never runs | is kept |
//!
//! So a guard is dropped once at most, and never while its handler may still run. A handler never runs if its stack is
//! forgotten ([`std::mem::forget`]) or is in a `static` that nobody closes, if the process ends in a way that runs no
//! handlers, or, in a forked child, if its parent registered it.
//!
//! # What it does not do
//!
//! - **`move || { let _ = guard; }` does not capture the guard**, which is then dropped at the end of the block that
//!   registers. Write `move || drop(guard)`.
//! - A drop cannot fail. If the guard has a method that returns a `Result`, call that: `move || guard.finish()`.
//! - A guard that is not `Send` fits an [`ExitStack`](crate::ExitStack) only, which is a local variable.
