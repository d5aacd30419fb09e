//! For programs whose caller has to know that the cleanup failed: by default, a handler that fails is reported and
//! leaves the exit status as it is.
//!
#![doc = "```"]
#![doc = include_str!("../../examples/status.rs")]
#![doc = "```"]
//!
//! There are three ways, each covering more than the one before:
//!
//! | a handler fails | status | printed |
//! | --- | --- | --- |
//! | and returns `Err(Exit(1))` | 1 | nothing: an [`Exit`](crate::Exit) is a request, not a failure |
//! | in a [`close()`](crate::SharedExitStack::close) whose result `main` returns | 1 | `Error: …`, by std |
//! | on any other exit path, with the report hook of the example | 1 | the report |
//!
//! A handler that requests a status has to print what went wrong itself:
//!
//! ```
//! use exitstack::{Exit, ExitStack};
//!
//! fn save() -> std::io::Result<()> {
//!     Err(std::io::Error::other("disk full"))
//! }
//!
//! let mut stack = ExitStack::new();
//! stack.register(|| {
//!     save().map_err(|error| {
//!         eprintln!("cannot save: {error}");
//!         Exit(1)
//!     })
//! });
//! assert_eq!(stack.close().unwrap_err().exit_code(), Some(1));
//! ```
//!
//! With [`run`](crate::run), the body can end with the same `process_stack().close()?`: what it runs does not run
//! again.
//!
//! # What it does not do
//!
//! - An `Exit` decides the status on the exit paths of the *process*. An [`ExitStack`](crate::ExitStack) that is dropped
//!   forgets it, and so does a [`scope`](crate::scope) whose body failed. As the source of another error, or in an
//!   `anyhow::Error`, it is a failure like any other.
//! - `main` prints a `CloseError` by its `Debug`. For one readable line, print `{error:#}` and return an `ExitCode`.
//! - Of several requests the last one counts, and replaces the status that `exit` was called with.
//! - The handlers of a shared library do not decide the status of its host when it is unloaded. And where no handlers
//!   run, none can decide anything.
