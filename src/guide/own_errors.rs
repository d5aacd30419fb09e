//! For functions whose errors are `io::Error` or a type of your own: what to do with the
//! [`CloseError`](crate::CloseError) of the cleanup.
//!
//! A [`scope`](crate::scope) takes every error type that is `From<CloseError>`. `Box<dyn Error>` and `anyhow::Error`
//! are; give your own type a variant for it. Here `thiserror` derives the conversions:
//!
//! ```
//! use std::path::Path;
//! use std::{fs, io};
//!
//! use exitstack::{CloseError, scope};
//!
//! #[derive(Debug, thiserror::Error)]
//! enum InstallError {
//!     #[error("cannot write to the disk")]
//!     Disk(#[from] io::Error),
//!     #[error("installed, but the cleanup failed")]
//!     Cleanup(#[from] CloseError),
//! }
//!
//! fn install(directory: &Path) -> Result<(), InstallError> {
//!     scope(|stack| {
//!         fs::create_dir(directory)?;
//!         stack.on_failure(|| fs::remove_dir_all(directory));
//!         fs::write(directory.join("manual"), "press any key")?;
//!         Ok(())
//!     })
//! }
//! # let directory = std::env::temp_dir().join(format!("exitstack-errors-{}", std::process::id()));
//! # install(&directory)?;
//! # assert!(matches!(install(&directory), Err(InstallError::Disk(_))));
//! # fs::remove_dir_all(&directory)?;
//! # let failed: Result<(), InstallError> = scope(|stack| Ok(_ = stack.register(|| Err("failed"))));
//! # assert!(matches!(failed, Err(InstallError::Cleanup(_))));
//! # Ok::<(), InstallError>(())
//! ```
//!
//! `io::Error` is not `From<CloseError>`, and no other crate can make it so. Use the stack itself, and convert the one
//! result:
//!
//! ```
//! use std::path::Path;
//! use std::{fs, io};
//!
//! use exitstack::ExitStack;
//!
//! fn install(directory: &Path) -> io::Result<()> {
//!     let mut stack = ExitStack::new();
//!     fs::create_dir(directory)?;
//!     stack.on_failure(|| fs::remove_dir_all(directory));
//!     fs::write(directory.join("manual"), "press any key")?; // a `?` drops the stack, which has failed
//!     stack.close().map_err(io::Error::other)
//! }
//! # let directory = std::env::temp_dir().join(format!("exitstack-io-{}", std::process::id()));
//! # install(&directory)?;
//! # assert_eq!(install(&directory).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
//! # fs::remove_dir_all(&directory)?;
//! # Ok::<(), io::Error>(())
//! ```
//!
//! # What it does not do
//!
//! - If the work and the cleanup both fail, the result is the error of the work, and the failures of the cleanup go to
//!   the [report hook](crate::report). To have both, call
//!   [`close_with(Outcome::Failure)`](crate::ExitStack::close_with) yourself where the work has failed.
//! - A `CloseError` may hold no failure, only a [request to exit](crate::Exit). Look at its
//!   [`exit_code`](crate::CloseError::exit_code) before it becomes an error among others.
