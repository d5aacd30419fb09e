//! For a `cdylib` or `staticlib` that is called from C: export a function that closes what the library has opened.
//!
//! ```
//! use std::ffi::c_int;
//! use std::io::Write;
//! use std::sync::LazyLock;
//!
//! use exitstack::{Handler, Interpreter};
//!
//! static LIBRARY: LazyLock<Interpreter> = LazyLock::new(|| Interpreter::new("example"));
//!
//! /// `int example_open(void);` returns 0 if it is open.
//! #[unsafe(no_mangle)]
//! pub extern "C" fn example_open() -> c_int {
//!     let close = Handler::new(|| println!("closed")).named("close the example");
//!     c_int::from(LIBRARY.stack().try_register(close).is_err())
//! }
//!
//! /// `int example_at_close(void (*callback)(void));` is `atexit` for this library: returns 0 if the callback will run.
//! #[unsafe(no_mangle)]
//! pub extern "C" fn example_at_close(callback: Option<extern "C" fn()>) -> c_int {
//!     let Some(callback) = callback else { return 1 };
//!     c_int::from(LIBRARY.stack().try_register(move || callback()).is_err())
//! }
//!
//! /// `int example_close(void);` returns 0 if all went well. The library can be used again after it.
//! #[unsafe(no_mangle)]
//! pub extern "C" fn example_close() -> c_int {
//!     let closed = LIBRARY.stack().close();
//!     if let Err(error) = &closed {
//!         let _ = writeln!(std::io::stderr(), "{error:#}"); // where `eprintln!` may panic
//!     }
//!     c_int::from(closed.is_err())
//! }
//! # extern "C" fn callback() { CALLED.store(true, Ordering::Relaxed); }
//! # use std::sync::atomic::{AtomicBool, Ordering};
//! # static CALLED: AtomicBool = AtomicBool::new(false);
//! # assert_eq!((example_open(), example_at_close(Some(callback))), (0, 0));
//! # assert_eq!((example_close(), example_close()), (0, 0));
//! # assert!(CALLED.load(Ordering::Relaxed));
//! ```
//!
//! A caller that never calls `example_close` loses nothing: the interpreter belongs to the process stack of the
//! library, which drains when the process exits, or when the library is unloaded.
//!
//! **Nothing may unwind into C.** A panic of a handler stays in its drain, and `close()` returns it as a failure. But a
//! panic that leaves an `extern "C"` function aborts the process: whatever else the exported functions do must not
//! panic, or needs a `catch_unwind`.
//!
//! # When a callback calls C's `exit`
//!
//! The process ends as the callback wishes, and the handlers below it still run, on the way out. The call to
//! `example_close` then does not return, and its failures so far are reported.
//!
//! [`exitstack::exit`](crate::exit) is not for such callbacks: in a handler it unwinds, and an `extern "C"` function
//! that is unwound aborts the process.
//!
//! # What it does not do
//!
//! - An [`Exit`](crate::Exit) is ignored when the library is unloaded. It decides the exit status of the program only
//!   if the library is still loaded when the program exits.
//! - Nothing of the library may be called from a signal handler.
//! - C++ exceptions that leave a callback abort the process.
//! - C's `quick_exit` and `_exit` run no handlers.
