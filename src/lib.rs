//! Cleanup that runs last-in, first-out, whatever way the code is left.

mod drain;
mod error;
mod handler;
mod interpreter;
mod list;
mod process;
#[allow(unsafe_code)]
mod raw;
pub mod report;
mod shared;
mod stack;
mod sync;
mod waits;

pub use error::{CloseError, Exit, HandlerError, HandlerErrorKind, Outcome, Refused};
pub use handler::{Handler, HandlerResult, IntoHandler, NoKey, PendingHandler};
pub use interpreter::{Interpreter, register, unregister, unregister_fn, unregister_key};
pub use list::{HandlerId, HandlerList, Iter};
pub use process::{adopt_after_fork, exit, process_stack, run};
pub use shared::SharedExitStack;
pub use stack::{ExitStack, scope};

/// What C's `exit` does on a thread, for the models in `tests/loom.rs`.
#[cfg(loom)]
#[doc(hidden)]
pub use process::drain_for_good;
