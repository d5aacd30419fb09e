//! For programs that have to clean up on Ctrl-C, SIGTERM or SIGHUP, and for a shutdown that must be over in time.
//!
//! Both are for **programs**: a library registers its handlers, and leaves to the program which signals end the process and how
//! long that may take. Signals need the feature `signals`, limits need none: see [`shutdown`](crate::shutdown) and the module
//! `signals`.
//!
//! # A command-line tool
//!
#![cfg_attr(feature = "signals", doc = "```no_run")]
#![cfg_attr(not(feature = "signals"), doc = "```ignore")]
#![doc = include_str!("../../examples/ctrl_c.rs")]
#![doc = "```"]
//!
//! The first Ctrl-C runs the handlers, on a thread of this crate: the work is still in the middle of something, so what a
//! handler shares with it needs a lock. Then the process *dies by the signal*. A plain `exit(130)` would look the same in
//! `$?`, but a shell goes on with its loop or its script after that.
//!
//! # A service
//!
#![cfg_attr(feature = "signals", doc = "```no_run")]
#![cfg_attr(not(feature = "signals"), doc = "```ignore")]
#![doc = include_str!("../../examples/service.rs")]
#![doc = "```"]
//!
//! Who stops a service waits for a while and then sends SIGKILL: 10 seconds for `docker stop`, 30 for Kubernetes, 90 for
//! systemd, if nothing else is set. **The grace and the limits together must be less**, or what is last in the drain does
//! not run. As process 1 of a container the process has to install signals in any case: the kernel ignores a signal there
//! that has the default action.
//!
//! Async tasks are asked, not killed: `on_request` sets a `watch` channel or a `CancellationToken`, `main` waits for the tasks
//! for as long as it may, and returns. The process stack drains after that, in `main`.
//!
//! # Beside other crates
//!
//! - `tokio::signal` and signal-hook share the signals with this crate: each is told. A program that waits for
//!   `tokio::signal::ctrl_c` and then returns from `main` needs `grace`, or the handlers run at once.
//! - **`ctrlc::set_handler` after `install` replaces it silently**, for all that ctrlc catches. Use one of them.
//! - `Command` starts a child with the default actions. One that is forked has them too, until it installs its own.
//!
//! # What it does not do
//!
//! - A handler that is given up **is not stopped**: it may still be running until the process ends, and what it holds stays
//!   held.
//! - SIGKILL, SIGSTOP and the out-of-memory killer cannot be caught: see [`unclean_ends`](super::unclean_ends). SIGQUIT, SIGPIPE
//!   and the signals of crashes are left alone.
//! - SIGTSTP (Ctrl-Z) stops the process and runs nothing.
