//! All unsafe code of the crate. Each file opens with its safety argument and exports safe types and functions; the
//! `unsafe_code` lint holds every other module to safe Rust.
//!
//! Differences between systems are known only here. Each of these modules is one of several files that define the same
//! functions:
//!
//! | module | file | where | what it stands for |
//! | --- | --- | --- | --- |
//! | `system` | `unix.rs` | Unix | `atexit` is reached by return from `main`, by `std::process::exit` and by C's `exit` |
//! | | and `stderr.rs` | | a write may raise a signal, or have to wait for its reader |
//! | | `wasi.rs` | WASI | as on Unix, but with one thread and one program |
//! | | `windows.rs` | Windows | `atexit` is reached by return from `main` and by C's `exit` |
//! | | `bare.rs` | elsewhere, such as `wasm32-unknown-unknown` | there is no C library |
//! | `status` | `exit_again.rs` | other C libraries | C's `exit` can be called again, to change the exit status |
//! | | `exit_once.rs` | musl | it cannot: new versions trap that |
//! | | `exit_never.rs` | elsewhere | there is no C library |
//! | `fork` | `fork.rs` | Unix | a child has a copy of its parent's memory |
//! | | `no_fork.rs` | elsewhere | no process has a copy of another's memory |
//! | `signals` | `signals.rs` | Unix, with the feature `signals` | signals, as far as signal-hook leaves them to its callers |
//! | | `console.rs` | Windows, with that feature | the events of the console, in place of signals |
//! | `unload` | `unload.rs` | glibc | a library can be unloaded while other threads are inside it |
//! | | `no_unload.rs` | elsewhere | it cannot, or there is no known way to wait for them |

mod appendable;
mod closure;
#[cfg(feature = "async")]
mod lending;

#[cfg(feature = "std")]
#[cfg_attr(unix, path = "fork.rs")]
#[cfg_attr(not(unix), path = "no_fork.rs")]
mod fork;

#[cfg(feature = "std")]
#[cfg_attr(all(target_os = "linux", target_env = "gnu"), path = "unload.rs")]
#[cfg_attr(not(all(target_os = "linux", target_env = "gnu")), path = "no_unload.rs")]
mod unload;

#[cfg(feature = "std")]
#[cfg_attr(all(unix, target_env = "musl"), path = "exit_once.rs")]
#[cfg_attr(any(all(unix, not(target_env = "musl")), target_os = "wasi", windows), path = "exit_again.rs")]
#[cfg_attr(not(any(unix, target_os = "wasi", windows)), path = "exit_never.rs")]
mod status;

#[cfg(all(unix, feature = "std"))]
mod stderr;

#[cfg(all(any(unix, windows), feature = "signals"))]
#[cfg_attr(windows, path = "console.rs")]
mod signals;

#[cfg(feature = "std")]
#[cfg_attr(unix, path = "unix.rs")]
#[cfg_attr(target_os = "wasi", path = "wasi.rs")]
#[cfg_attr(windows, path = "windows.rs")]
#[cfg_attr(not(any(unix, target_os = "wasi", windows)), path = "bare.rs")]
mod system;

pub(crate) use appendable::Appendable;
#[expect(unreachable_pub, reason = "sealed: it is the supertrait of a public trait")]
pub use closure::Task;
pub(crate) use closure::{Bound, BoxError, Closure, Packed};
#[cfg(feature = "std")]
pub(crate) use fork::{epoch, peek};
#[cfg(feature = "async")]
pub(crate) use lending::Lending;
#[cfg(all(any(unix, windows), feature = "signals"))]
pub(crate) use signals::{ENDING, Incoming, catch, die_by, is_ignored};
#[cfg(feature = "std")]
pub(crate) use status::{EXIT_INSIDE_EXIT_CALLS_HOOKS, end_with, exit_inside_exit};
#[cfg(feature = "std")]
pub(crate) use system::{EXIT_CALLS_HOOKS, at_exit, end_now, thread_name, write_stderr};
#[cfg(feature = "std")]
pub(crate) use unload::{at_unload, begin_list_anew, call_handlers, is_unloading, park, unloads_here};
