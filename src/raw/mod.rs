//! The only unsafe code of the crate. Each file opens with its argument and exports safe types and functions; every
//! other module is held to safe Rust by the `unsafe_code` lint.
//!
//! What a system has and what it lacks is known here alone: each of these modules is one of several files that define
//! the same functions.
//!
//! | module | file | where | what it stands for |
//! | --- | --- | --- | --- |
//! | `system` | `unix.rs` | Unix | `atexit` is reached by return from `main`, by `std::process::exit` and by C's `exit` |
//! | | and `stderr.rs` | | a write may raise a signal, or find its reader slow |
//! | | `wasi.rs` | WASI | the same; but one thread, and one program |
//! | | `windows.rs` | Windows | `atexit` is reached by return from `main` and by C's `exit` |
//! | | `bare.rs` | elsewhere, as `wasm32-unknown-unknown` | there is no C |
//! | `status` | `exit_again.rs` | where C's `exit` may be entered again | ... to change the exit status |
//! | | `exit_once.rs` | musl | it may not: a trap in new versions |
//! | | `exit_never.rs` | without C | |
//! | `fork` | `fork.rs` | Unix | a child has its parent's memory |
//! | | `no_fork.rs` | elsewhere | no process has another's |
//! | `unload` | `unload.rs` | glibc | a library is unloaded while other threads are inside it |
//! | | `no_unload.rs` | elsewhere | it is not, or not known how to wait for them |

mod appendable;
mod closure;

#[cfg_attr(unix, path = "fork.rs")]
#[cfg_attr(not(unix), path = "no_fork.rs")]
mod fork;

#[cfg_attr(all(target_os = "linux", target_env = "gnu"), path = "unload.rs")]
#[cfg_attr(not(all(target_os = "linux", target_env = "gnu")), path = "no_unload.rs")]
mod unload;

#[cfg_attr(all(unix, target_env = "musl"), path = "exit_once.rs")]
#[cfg_attr(any(all(unix, not(target_env = "musl")), target_os = "wasi", windows), path = "exit_again.rs")]
#[cfg_attr(not(any(unix, target_os = "wasi", windows)), path = "exit_never.rs")]
mod status;

#[cfg(unix)]
mod stderr;

#[cfg_attr(unix, path = "unix.rs")]
#[cfg_attr(target_os = "wasi", path = "wasi.rs")]
#[cfg_attr(windows, path = "windows.rs")]
#[cfg_attr(not(any(unix, target_os = "wasi", windows)), path = "bare.rs")]
mod system;

pub(crate) use appendable::Appendable;
#[expect(unreachable_pub, reason = "sealed: a public trait has it for its base")]
pub use closure::Task;
pub(crate) use closure::{Bound, BoxError, Closure, Packed};
pub(crate) use fork::{epoch, peek};
pub(crate) use status::{end_with, exit_inside_exit};
pub(crate) use system::{EXIT_CALLS_HOOKS, at_exit, write_stderr};
pub(crate) use unload::{at_unload, begin_list_anew, call_handlers, is_unloading, park, unloads_here};
