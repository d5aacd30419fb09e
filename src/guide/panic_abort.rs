//! For programs that are built with `panic = "abort"`, where a panic ends the process without running handlers: a panic
//! hook can run them first.
//!
#![doc = "```should_panic"]
#![doc = include_str!("../../examples/panic_abort.rs")]
#![doc = "```"]
//!
//! The hook is the last code that runs on the thread that panics, and thread-locals are alive there. It closes the
//! process stack and the interpreters nested in it; then the process dies by SIGABRT, as it would without the hook.
//!
//! A hook that ends with [`exitstack::exit(101)`](crate::exit) instead of the `close` changes that:
//!
//! | | `close()` | `exit(101)` |
//! | --- | --- | --- |
//! | the process ends | by SIGABRT, with a core dump | with status 101, as where panics unwind |
//! | failures of handlers | are returned to the hook | are reported |
//! | other libraries' `atexit` handlers | do not run | run |
//! | after a panic *in* a handler | the handlers below it do not run | they run |
//!
//! # What it does not do
//!
//! - **A handler that panics in the hook ends the process there and then**: std aborts at a panic inside a panic hook.
//!   Handlers that return an `Err` instead stop nothing.
//! - The panicking thread keeps its locks while the hook runs. A handler that needs one of them waits forever.
//! - Nothing on the panicking thread is dropped, so an [`ExitStack`](crate::ExitStack) does not drain: only what is in
//!   the process stack and in interpreters runs.
//! - Other threads keep running while the handlers run, and may register more. Those registered after the close do not
//!   run.
//! - `abort`, a stack overflow and a failed allocation call no hook.
