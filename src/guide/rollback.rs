//! For work in several steps that is done completely or not at all, even if the process exits in the middle of it.
//!
//! ```
//! use std::error::Error;
//! use std::path::Path;
//! use std::{fs, io};
//!
//! use exitstack::Interpreter;
//!
//! /// What has not been made need not be removed.
//! fn unless_missing(result: io::Result<()>) -> io::Result<()> {
//!     result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
//! }
//!
//! fn install(directory: &Path, listing: &Path, version: &str) -> Result<(), Box<dyn Error>> {
//!     let before = fs::read(listing)?;
//!     if directory.exists() {
//!         return Err("it is installed already".into()); // before a handler would remove it
//!     }
//!     Interpreter::scope("install", |install| {
//!         let undo = directory.to_owned();
//!         install.stack().on_failure(move || unless_missing(fs::remove_dir_all(undo)));
//!         fs::create_dir(directory)?;
//!         fs::write(directory.join("version"), version)?; // needs no handler: the directory's removes it
//!
//!         let undo = listing.to_owned();
//!         install.stack().on_failure(move || fs::write(undo, before));
//!         fs::write(listing, version)?;
//!
//!         check(directory)?; // on an error, a panic, or an `exit` on any thread, the handlers run
//!         Ok(())
//!     })
//! }
//! # fn check(directory: &Path) -> io::Result<()> {
//! #     if fs::read(directory.join("version"))?.is_empty() { Err(io::Error::other("no version")) } else { Ok(()) }
//! # }
//! # let root = std::env::temp_dir().join(format!("exitstack-rollback-guide-{}", std::process::id()));
//! # fs::create_dir(&root)?;
//! # let (directory, listing) = (root.join("program"), root.join("listing"));
//! # fs::write(&listing, "nothing")?;
//! # assert_eq!(install(&directory, &listing, "").unwrap_err().to_string(), "no version");
//! # assert!(!directory.exists());
//! # assert_eq!(fs::read_to_string(&listing)?, "nothing");
//! # install(&directory, &listing, "1.0")?;
//! # assert_eq!(fs::read_to_string(&listing)?, "1.0");
//! # assert!(install(&directory, &listing, "1.1").is_err() && directory.exists());
//! # fs::remove_dir_all(&root)?;
//! # Ok::<(), Box<dyn Error>>(())
//! ```
//!
//! **Register the handler that undoes a step before the step.** If another thread exits between the two, a handler that
//! comes too late is refused, and the step stays.
//!
//! **Such a handler also runs if the step was not made**, and must leave alone what was there before. Here a directory
//! that exists already ends the work before there is a handler that would remove it.
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
//! - A transaction inside another one commits by itself. What the outer one has to be able to undo, register there.
//! - A commit that can fail belongs in the body, as its last step: a failure of an `on_success` handler undoes nothing.
