//! For a library that cleans up at exit if its user wants that, and whose other users should not have to depend on this
//! crate: make it a feature.
//!
//! ```toml
//! [dependencies]
//! exitstack = { version = "0.1", optional = true }
//!
//! [features]
//! exitstack = ["dep:exitstack"]
//! ```
//!
//! ```rust
//! use std::path::{Path, PathBuf};
//! use std::{fs, io};
//!
//! /// A directory for intermediate results.
//! ///
//! /// With the feature `exitstack` it is removed when the current interpreter or the process ends, if not before. Without
//! /// it, call [`remove`](Self::remove).
//! pub struct Cache {
//!     directory: PathBuf,
//! }
//!
//! impl Cache {
//!     pub fn create(directory: &Path) -> io::Result<Self> {
//!         fs::create_dir(directory)?;
//!         let removed = directory.to_owned();
//!         at_exit(move || if removed.exists() { fs::remove_dir_all(removed) } else { Ok(()) });
//!         Ok(Self { directory: directory.to_owned() })
//!     }
//!
//!     pub fn remove(self) -> io::Result<()> {
//!         fs::remove_dir_all(self.directory)
//!     }
//! }
//!
//! #[cfg(feature = "exitstack")]
//! fn at_exit(handler: impl FnOnce() -> io::Result<()> + Send + 'static) {
//!     exitstack::register(handler);
//! }
//!
//! #[cfg(not(feature = "exitstack"))]
//! fn at_exit(_: impl FnOnce() -> io::Result<()> + Send + 'static) {}
//! #
//! # let directory = std::env::temp_dir().join(format!("exitstack-optional-{}", std::process::id()));
//! # Cache::create(&directory)?.remove()?;
//! # assert!(!directory.exists());
//! # Ok::<(), io::Error>(())
//! ```
//!
//! Only one function needs a `cfg`, and the rest of the library is the same with and without the feature.
//!
//! Call [`register`](crate::register) rather than [`process_stack().register`](crate::process_stack): a user who runs
//! the library in an interpreter, such as a test or a plugin, gets the handlers there.
//!
//! # What it does not do
//!
//! - A feature is on for every user of the library in a program as soon as one of them asks for it. It must only add
//!   cleanup, and the library must work without it.
//! - The handler of a cache that is removed early stays registered. A library that makes many keeps the
//!   [`HandlerId`](crate::HandlerId) and unregisters it.
//! - Two incompatible versions of this crate in one program have two process stacks. Each keeps its own order, but
//!   there is no order between them. If you keep the types of this crate out of your public items, the version is yours
//!   to choose.
//! - The [report hook](crate::report), [`exit`](crate::exit) and [`run`](crate::run) are the program's to use, not the
//!   library's.
