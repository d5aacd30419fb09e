//! For work in several steps that has to be done completely or not at all, even if the process exits in the middle of
//! it.
//!
#![doc = "```no_run"]
#![doc = include_str!("../../examples/transaction.rs")]
#![doc = "```"]
//!
//! **Register the handler that undoes a step before the step.** If another thread exits between the two, a handler that
//! comes too late is refused, and the step stays.
//!
//! **Such a handler also runs if the step was not taken**, and must leave alone what was there before: where a step
//! creates a directory, check whether it exists *before* you register its removal.
//!
//! | | [`scope`](crate::scope) | [`Interpreter::scope`](crate::Interpreter::scope) |
//! | --- | --- | --- |
//! | undone on an `Err`, a `?` and a panic | yes | yes |
//! | undone on `std::process::exit`, on any thread | no | yes |
//! | handlers | may borrow | are `Send + 'static` |
//! | [`register`](crate::register) in the body | goes to the interpreter around it, or to the process | goes to the transaction |
//! | costs | nothing is allocated for small handlers | an interpreter |
//!
//! If the process exits while the body runs on another thread, the body may still return `Ok`. The handlers have undone
//! its work by then, and the result is an error that says so, a
//! [`RolledBack`](crate::HandlerErrorKind::RolledBack).
//!
//! # What it does not do
//!
//! - SIGKILL, `abort`, and signals that the program does not handle undo nothing: see
//!   [`unclean_ends`](super::unclean_ends) and [`sweep`](super::sweep).
//! - **The body is not stopped**: if another thread exits, body and handlers run at the same time, and a step that is
//!   taken after its handler has run stays. Where that matters, the handler waits for a lock that the step holds, as in
//!   [`temporary_files`](super::temporary_files#the-gap-between-making-and-registering).
//! - A transaction inside another one commits by itself. Register with the outer one whatever that has to be able to
//!   undo.
//! - A commit that can fail belongs in the body, as its last step: a failure of an `on_success` handler undoes nothing.
