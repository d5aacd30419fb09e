//! For a host that loads shared libraries: run everything that a library has registered *before* it is unloaded,
//! because the code of its handlers goes with it.
//!
//! ```
//! use exitstack::Interpreter;
//! # use std::sync::Mutex;
//! # static LOG: Mutex<Vec<&str>> = Mutex::new(Vec::new());
//! #
//! # /// Stands in for a library and what it exports.
//! # struct Library;
//! # impl Library {
//! #     fn open(_: &str) -> Self { Self }
//! #     fn close_function(&self) -> extern "C" fn() -> i32 {
//! #         extern "C" fn close() -> i32 { LOG.lock().unwrap().push("plugin_close"); 1 }
//! #         close
//! #     }
//! # }
//! # impl Drop for Library { fn drop(&mut self) { LOG.lock().unwrap().push("dlclose"); } }
//!
//! struct Plugin {
//!     interpreter: Interpreter, // the first field: it drains before the library is unloaded
//!     library: Library,         // its drop calls `dlclose`
//! }
//!
//! impl Plugin {
//!     fn load(path: &'static str) -> Self {
//!         let library = Library::open(path);
//!         let interpreter = Interpreter::new(path);
//!         let close = library.close_function(); // what the plugin exports for this
//!         interpreter.stack().register(move || if close() == 0 { Ok(()) } else { Err("plugin_close failed") });
//!         Self { interpreter, library }
//!     }
//!
//!     /// Unloads the plugin, and returns what failed as text: the errors themselves are the plugin's.
//!     fn unload(self) -> Result<(), String> {
//!         let closed = self.interpreter.finalize().map_err(|error| format!("{error:#}"));
//!         drop(self.library);
//!         closed
//!     }
//! }
//!
//! let plugin = Plugin::load("libplugin.so");
//! plugin.interpreter.enter(|| exitstack::register(|| println!("registered by the host for the plugin")));
//! let failed = plugin.unload().unwrap_err();
//! assert!(failed.starts_with("process > libplugin.so: ") && failed.ends_with("plugin_close failed"));
//! # assert_eq!(*LOG.lock().unwrap(), ["plugin_close", "dlclose"]);
//! ```
//!
//! **Every shared library has its own copy of this crate**, with its own process stack, current interpreter and report
//! hook. What the plugin registers is not in the host's interpreter, and it drains when the plugin is unloaded or when
//! the process ends. That is too late for many things: during `dlclose` the loader holds its lock, and a handler that
//! starts a thread and waits for it waits forever. So a plugin exports a function that closes what it has opened, as in
//! [`c_callers`](super::c_callers), and the host calls it first.
//!
//! **Format errors before the library is unloaded, and drop them.** A failure refers to the library's code and texts:
//! the error's type, the place of the registration, the handler's name. Copy text that the plugin hands over to memory
//! of the host.
//!
//! `finalize` drains the interpreter even if another handle to it is alive; a drop would not.
//!
//! If the process ends while the plugin is loaded, its interpreter drains at its position among the host's handlers,
//! and the library's own process stack drains when the loader is done with the library.
//!
//! # What it does not do
//!
//! - Threads that the plugin has started must have ended before it is unloaded. Its close function is where to join
//!   them.
//! - Some libraries stay loaded: on Linux, those whose thread-locals with destructors are alive in a running thread.
//!   Their handlers run when the process ends.
//! - Rust libraries that are linked to one `dylib` of this crate are an exception: they share its process stack and its
//!   current interpreter.
