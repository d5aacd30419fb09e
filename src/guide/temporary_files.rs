//! For files and directories that have to be gone when the work ends: by a return, by `?`, by a panic or by
//! `std::process::exit` on any thread.
//!
#![doc = "```"]
#![doc = include_str!("../../examples/tempdir.rs")]
#![doc = "```"]
//!
//! The [`Interpreter`](crate::Interpreter) drains in both cases: when it is dropped, as a local variable, and when the
//! process exits, as a part of the process's tree. An [`ExitStack`](crate::ExitStack) would do the first and not the
//! second. `finalize` returns what could not be removed; after a `?` or a panic there is nobody to return it to, and
//! the failure goes to the [report hook](crate::report).
//!
//! A guard that removes its file when it is dropped, such as `TempDir` of the crate `tempfile`, is not dropped by
//! `std::process::exit`. Let a handler own it: `register(move || directory.close())`. If the stack refuses the handler,
//! [the guard is dropped](super::guards) and removes its file at that moment.
//!
//! # The gap between making and registering
//!
//! Another thread may exit between the two lines, and the directory stays. A lock that the handler waits for closes the
//! gap: either the handler is refused, and nothing is made, or it runs after the directory was made.
//!
//! ```
//! use std::path::{Path, PathBuf};
//! use std::sync::{Arc, Mutex};
//! use std::{fs, io};
//!
//! use exitstack::Interpreter;
//!
//! fn make(job: &Interpreter, directory: &Path) -> io::Result<()> {
//!     let made = Arc::new(Mutex::new(None::<PathBuf>));
//!     let mut making = made.lock().unwrap();
//!     let removed = Arc::clone(&made);
//!     job.stack()
//!         .try_register(move || removed.lock().unwrap().take().map_or(Ok(()), fs::remove_dir_all))
//!         .map_err(|refused| io::Error::other(refused.to_string()))?;
//!     fs::create_dir(directory)?;
//!     *making = Some(directory.to_owned());
//!     Ok(())
//! }
//! # let job = Interpreter::new("job");
//! # let directory = std::env::temp_dir().join(format!("exitstack-guide-{}", std::process::id()));
//! # make(&job, &directory)?;
//! # assert!(directory.exists());
//! # job.finalize()?;
//! # assert!(!directory.exists());
//! # assert!(make(&job, &directory).is_err() && !directory.exists());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Without the lock, a handler that is registered first may have run before the directory is made. For steps that
//! stay together or not at all, see [`rollback`](super::rollback).
//!
//! # What it does not do
//!
//! SIGKILL, `abort` and a power failure leave the directory behind, before and after it has a handler: see
//! [`unclean_ends`](super::unclean_ends) for files that need no handler, and [`sweep`](super::sweep) for what the next
//! run can remove.
