//! For programs that have to clean up on Ctrl-C, SIGTERM or SIGHUP, or to shut down within a time limit.
//!
//! Both are for **programs**: a library registers its handlers, and leaves it to the program which signals end the
//! process and how long that may take. Signals need the feature `signals`; limits need no feature: see
//! [`shutdown`](crate::shutdown) and the module `signals`.
//!
//! # A command-line tool
//!
#![cfg_attr(feature = "signals", doc = "```no_run")]
#![cfg_attr(not(feature = "signals"), doc = "```ignore")]
#![doc = include_str!("../../examples/ctrl_c.rs")]
#![doc = "```"]
//!
//! The first Ctrl-C runs the handlers, on a thread of this crate: the work is still in the middle of something, so what
//! a handler shares with it needs a lock. Then the process *dies by the signal*. A plain `exit(130)` would look the
//! same in `$?`, but a shell goes on with its loop or its script after that.
//!
//! # A service
//!
#![cfg_attr(feature = "signals", doc = "```no_run")]
#![cfg_attr(not(feature = "signals"), doc = "```ignore")]
#![doc = include_str!("../../examples/service.rs")]
#![doc = "```"]
//!
//! **The grace and the limits together must be shorter than the time until SIGKILL**, or the last handlers of the drain
//! do not run: whatever stops the service sends that after a while, by default after 10 seconds (`docker stop`), 30
//! (Kubernetes) or 90 (systemd). Windows waits for about 5 seconds when the console is closed or the system shuts down.
//! Process 1 of a container has to install signals in any case: the kernel ignores a
//! signal to it whose action is the default one.
//!
//! Async tasks are asked, not killed: `on_request` sets a `watch` channel or a `CancellationToken`, `main` waits for
//! the tasks for as long as it may, and returns. The process stack drains after that, in `main`.
//!
//! # Beside other crates
//!
//! - `tokio::signal` and signal-hook share the signals with this crate: each of them is notified. A program that waits
//!   for `tokio::signal::ctrl_c` and then returns from `main` needs `grace`, or the handlers run at once. On Windows,
//!   only the last of them to be installed receives an event.
//! - **`ctrlc::set_handler` after `install` replaces it silently**, for all signals that ctrlc catches. Use only one of
//!   them.
//! - `Command` starts a child with the default actions. A forked child has them too, until it installs its own.
//!
//! # What it does not do
//!
//! - **A handler that is given up is not stopped**: it may keep running until the process ends, and what it holds stays
//!   held.
//! - SIGKILL, SIGSTOP and the out-of-memory killer cannot be caught: see [`unclean_ends`](super::unclean_ends).
//!   SIGQUIT, SIGPIPE and the signals of crashes are left alone.
//! - SIGTSTP (Ctrl-Z) stops the process and runs nothing.
