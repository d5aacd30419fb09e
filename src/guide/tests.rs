//! For tests of code that registers handlers: give each test an interpreter of its own, which runs them when the test
//! ends.
//!
//! ```
//! use exitstack::{CloseError, Handler, Interpreter};
//!
//! /// The code under test.
//! fn open_session() {
//!     exitstack::register(Handler::new(|| println!("session closed")).named("close the session"));
//! }
//!
//! // #[test]
//! fn a_session_is_closed() -> Result<(), CloseError> {
//!     let test = Interpreter::new("a_session_is_closed");
//!     test.enter(|| {
//!         open_session();
//!         assert_eq!(test.stack().pending()[0].name(), Some("close the session"));
//!     });
//!     test.finalize() // runs what was registered; a handler that fails makes the test fail
//! }
//! # a_session_is_closed().unwrap();
//! # assert!(exitstack::process_stack().is_empty());
//! ```
//!
//! A test that panics drops the interpreter: its handlers run, and their failures are reported as well.
//!
//! Without an interpreter, the handlers go to the process stack, and the test runner decides when they run:
//!
//! | | `cargo test` | `cargo nextest run` |
//! | --- | --- | --- |
//! | tests are | threads of one process for each test binary | a process each |
//! | the process stack drains | after the last test, when the results are printed already | after the test |
//! | a handler that fails there | is reported, and no test fails | is reported, and the test passes |
//! | one that returns `Err(Exit(1))` | makes the whole binary fail, after "ok" for each test | makes the test fail |
//! | handlers of other tests | are in the same stack: count nothing there, close nothing | are not there |
//!
//! The same holds for the [report hook](crate::report), as a process has only one: with `cargo test`, a test that sets
//! it gets the reports of the tests beside it.
//!
//! Testing an exit path of the process takes a process of its own. A test can start its own binary again, with a variable
//! that tells the child which way to take:
//!
//! ```no_run
//! use std::process::Command;
//!
//! // #[test]
//! fn exit_runs_the_handlers() {
//!     if std::env::var_os("AS_CHILD").is_some() {
//!         exitstack::register(|| println!("cleaned up"));
//!         std::process::exit(3);
//!     }
//!     let mut child = Command::new(std::env::current_exe().unwrap());
//!     child.args(["--exact", "exit_runs_the_handlers", "--nocapture"]).env("AS_CHILD", "1");
//!     let output = child.output().unwrap();
//!     assert_eq!(output.status.code(), Some(3));
//!     assert!(String::from_utf8_lossy(&output.stdout).contains("cleaned up"));
//! }
//! ```
//!
//! # What it does not do
//!
//! - Threads that the code under test starts are not in the interpreter: see [`threads`](super::threads).
//! - A test that a runner kills after its time limit runs no handlers.
