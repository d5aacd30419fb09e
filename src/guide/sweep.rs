//! For what a killed process leaves behind and the kernel does not free, such as directories: write down what will
//! exist *before* it is created, and let the next start remove what nobody owns any more.
//!
#![doc = "```ignore-windows"]
#![doc = include_str!("../../examples/sweep/journal.rs")]
#![doc = "```"]
//!
//! The lock on the journal says that its process is alive: the kernel releases it at every end, whereas a process id
//! might belong to another process by then. Here the name of the journal says everything, because the directory has the
//! same name. A job with steps elsewhere writes each of them into the journal before it takes the step.
//!
//! On an end that runs handlers, the handler removes directory and journal, and then lets go of the lock that it has
//! [captured](super::guards). If it fails halfway, or is refused, the lock is released and the next sweep does the
//! rest.
//!
//! # What it does not do
//!
//! - A child that is forked shares the lock, and holds it as long as it has the descriptor open. Commands that std
//!   starts do not get it.
//! - **The directory of the journals must be writable for its user alone**, or another user can make you remove what
//!   you would not. `/tmp` itself is not such a place; `$XDG_STATE_HOME` and `$XDG_RUNTIME_DIR` are.
//! - Against a power failure, the journal has to be on the disk before the step: sync the file and its directory.
//! - Locks over a network file system hold only as far as that file system goes.
