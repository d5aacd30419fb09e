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
//! # Errors that are not `From<CloseError>`
//!
//! `io::Error` is not, and no other crate can make it so. [`try_scope`](crate::try_scope) asks nothing of the error
//! type. It returns a [`ScopeError`](crate::ScopeError), which holds the error of the work, that of the cleanup, or
//! both:
//!
//! ```
//! use std::path::Path;
//! use std::{fs, io};
//!
//! use exitstack::{ScopeError, try_scope};
//!
//! fn install(directory: &Path) -> io::Result<()> {
//!     try_scope(|stack| {
//!         fs::create_dir(directory)?;
//!         stack.on_failure(|| fs::remove_dir_all(directory));
//!         fs::write(directory.join("manual"), "press any key")
//!     })
//!     .map_err(|error| match error {
//!         ScopeError::Work(error) => error, // as it is, with its kind
//!         error => io::Error::other(error), // the cleanup failed, or both: each is shown
//!     })
//! }
//! # let directory = std::env::temp_dir().join(format!("exitstack-io-{}", std::process::id()));
//! # install(&directory)?;
//! # assert_eq!(install(&directory).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
//! # fs::remove_dir_all(&directory)?;
//! # Ok::<(), io::Error>(())
//! ```
//!
//! A `ScopeError<E>` is an error if `E` is one. `String`, `anyhow::Error` and `Box<dyn Error + Send + Sync>` are not:
//! [`erased`](crate::ScopeError::erased) turns those into an error.
//!
//! ```
//! use exitstack::try_scope;
//!
//! fn work() -> anyhow::Result<()> {
//!     try_scope(|stack| {
//!         stack.register(|| Err("disk full"));
//!         anyhow::bail!("no such user")
//!     })
//!     .map_err(|error| error.erased())?;
//!     Ok(())
//! }
//! let shown = work().unwrap_err().to_string();
//! assert!(shown.starts_with("no such user; then its cleanup failed: ") && shown.ends_with(" failed: disk full"));
//! ```
//!
//! # What it does not do
//!
//! - If the work and the cleanup of a `scope` both fail, the result is the error of the work, and the failures of the
//!   cleanup go to the [report hook](crate::report). `try_scope` returns both.
//! - [`Interpreter::scope`](crate::Interpreter::scope) has no such counterpart. Give it an error that is
//!   `From<CloseError>`, such as a `Box<dyn Error>`, and convert the result.
//! - A `CloseError` may hold no failure, only a [request to exit](crate::Exit). Look at its
//!   [`exit_code`](crate::CloseError::exit_code) before you convert it into another error.
