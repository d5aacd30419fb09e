//! For a program that forks itself into the background after it has registered handlers: the child has to own them, and
//! the parent must not run them.
//!
#![doc = "```no_run"]
#![doc = include_str!("../../examples/daemon.rs")]
#![doc = "```"]
//!
//! A forked child neither runs nor drops what its parent registered, because it would delete its parent's files. A
//! daemon is the case where that is wanted: [`adopt_after_fork`](crate::adopt_after_fork) makes the handlers the
//! child's, those of interpreters included.
//!
//! The parent still has them. It leaves by `_exit`, which runs no handlers; if it has to leave by `exit`, it moves them
//! to a stack of their own and forgets that stack. It does so after the fork, or the child would have nothing to adopt.
//!
//! If you can, **daemonize first and register after that**. Then there is nothing to adopt and nothing to forget.
//!
//! # What it does not do
//!
//! - `adopt_after_fork` returns false if another thread was using one of the stacks at the fork: then the handlers of
//!   that stack are lost to the child. Fork before you start threads: in any case, the child of a program with threads
//!   may do little more than a signal handler may.
//! - [`pop_all`](crate::SharedExitStack::pop_all) on the process stack leaves the interpreters where they are. A parent
//!   that leaves by `exit` does the same with the stack of each.
//! - A library that forks for you may let the parent leave by `exit` inside the call. Then register after the call.
//! - What is in the buffer of standard output at the fork is written twice if the parent leaves by `exit`. Flush it
//!   before the fork.
//! - A [`SharedExitStack`](crate::SharedExitStack) that is a value is
//!   [adopted](crate::SharedExitStack::adopt_after_fork) separately. An [`ExitStack`](crate::ExitStack) is copied with
//!   the memory of the process, and drains in both.
