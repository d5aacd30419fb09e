//! For programs that switch the terminal to raw mode or to the alternate screen: it has to be switched back on every
//! exit path, and *before* the error or the panic message is printed.
//!
#![doc = "```no_run"]
#![doc = include_str!("../../examples/terminal.rs")]
#![doc = "```"]
//!
//! [`run`](crate::run) runs the handlers and prints the error of the work after that. Without it, std would print the
//! error first, to the alternate screen, where it disappears. Without the hook the same would happen to the message of
//! a panic: std prints it where the panic begins, before any handler runs. `std::process::exit`, on any thread, needs
//! neither.
//!
//! The handlers belong to an [`Interpreter`](crate::Interpreter) and not to the process stack, so that the hook runs
//! only the terminal's handlers. The hook may keep its handle forever: an interpreter that is alive when the process
//! ends drains then.
//!
//! # What it does not do
//!
//! - **The hook sees every panic**, even one that is caught, or that ends only a thread. A program that goes on after
//!   such a panic switches the terminal over again, or lets its hook look at `std::thread::current()` first.
//! - A handler that runs inside the hook must not panic: a panic in a panic hook aborts the process. Return an `Err`.
//! - The terminal is not restored on SIGKILL, nor on a signal that the program does not handle: see the next section.
//!   `stty sane` and `tput rmcup` help then.
//!
//! # Ctrl-C
//!
//! A program that leaves `isig` on, as this one does, gets SIGINT when the user presses Ctrl-C; SIGTERM and SIGHUP may
//! come to any program. With the feature `signals`, the handlers run then, and the terminal is restored before the
//! process dies by the signal, so that a shell's loop stops too:
//!
#![cfg_attr(feature = "signals", doc = "```no_run")]
#![cfg_attr(not(feature = "signals"), doc = "```ignore")]
#![doc = include_str!("../../examples/pager.rs")]
#![doc = "```"]
//!
//! In raw mode, Ctrl-C is a key and not a signal. A program that wants it to end the process sends itself the signal,
//! with signal-hook's `low_level::raise(SIGINT)`, and does not call `exit(130)`: that is a status like any other, after
//! which a shell's loop goes on.
