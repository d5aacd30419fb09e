//! Recipes for programs, libraries and tests that have something to clean up.
//!
//! | what you want | chapter |
//! | --- | --- |
//! | a working terminal and a readable message, however the program ends | [`terminal`] |
//! | handlers that run on Ctrl-C and SIGTERM, and a shutdown within a time limit | [`signals_and_deadlines`] |
//! | temporary files and directories that do not stay behind | [`temporary_files`] |
//! | steps that are undone unless all succeed, even on `std::process::exit` | [`rollback`] |
//! | a guard that lives until the process ends: a logger's, a profiler's, a lock | [`guards`] |
//! | a type that owns its cleanup | [`stack_in_a_struct`] |
//! | a [`scope`](crate::scope) that returns `io::Result` or an error type of your own | [`own_errors`] |
//! | an exit status that tells whether the cleanup failed | [`exit_status`] |
//! | tests that do not see one another's handlers | [`tests`] |
//! | threads, rayon and spawned tasks that register where their caller does | [`threads`] |
//! | async cleanup with a time limit; handlers that block on a runtime, run slowly, or belong to a task | [`async_programs`] |
//! | a library that is called from C | [`c_callers`] |
//! | a host that loads and unloads shared libraries | [`plugins`] |
//! | a daemon that takes over what its parent registered | [`daemons`] |
//! | handlers that run after a panic with `panic = "abort"` | [`panic_abort`] |
//! | a library whose users need not depend on this crate | [`optional_dependency`] |
//! | nothing left behind after SIGKILL, `abort` or a power failure | [`unclean_ends`] |
//! | what a killed run has left behind, removed by the next one | [`sweep`] |
//!
//! **On Windows `std::process::exit` runs no handlers.** Where a recipe says that handlers run on it, call
//! [`exitstack::exit`](crate::exit) there.
//!
//! Every example is compiled by the crate's tests, and run where it can be. One that is a whole program is in the
//! crate's `examples`, where it is run on every exit path, and its output and exit status are checked.

pub mod async_programs;
pub mod c_callers;
pub mod daemons;
pub mod exit_status;
pub mod guards;
pub mod optional_dependency;
pub mod own_errors;
pub mod panic_abort;
pub mod plugins;
pub mod rollback;
pub mod signals_and_deadlines;
pub mod stack_in_a_struct;
pub mod sweep;
pub mod temporary_files;
pub mod terminal;
pub mod tests;
pub mod threads;
pub mod unclean_ends;
