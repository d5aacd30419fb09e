//! The only unsafe code of the crate. Each file opens with its argument and exports safe types and functions; every
//! other module is held to safe Rust by the `unsafe_code` lint.

mod atexit;
mod closure;
mod entered;
mod fork;
mod held;

pub(crate) use atexit::{at_exit, c_exit, in_main_program, write_stderr};
#[expect(unreachable_pub, reason = "sealed: a public trait has it for its base")]
pub use closure::Task;
pub(crate) use closure::{Bound, BoxError, Closure};
pub(crate) use entered::enter;
pub(crate) use fork::{at_fork, epoch, new_epoch};
pub(crate) use held::Held;
