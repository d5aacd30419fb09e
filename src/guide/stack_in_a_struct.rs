//! For a type that opens several things and has to close them in reverse order: give it an `ExitStack<'static>` as a
//! field.
//!
//! ```
//! use std::io;
//! use std::sync::mpsc::{self, Sender};
//! use std::thread;
//!
//! use exitstack::{CloseError, ExitStack};
//!
//! pub struct Server {
//!     stack: ExitStack<'static>, // the first field: its handlers run before the others are dropped
//!     jobs: Sender<u32>,
//! }
//!
//! impl Server {
//!     /// Starts everything or nothing: a `?` drops the stack, which closes what was opened so far.
//!     pub fn start() -> io::Result<Self> {
//!         let mut stack = ExitStack::new();
//!
//!         let lock = std::env::temp_dir().join(format!("server-{}.lock", std::process::id()));
//!         std::fs::File::create_new(&lock)?;
//!         stack.register(move || std::fs::remove_file(lock));
//!
//!         let (jobs, received) = mpsc::channel();
//!         let (stop, stopped) = mpsc::channel::<()>();
//!         let worker = thread::Builder::new().spawn(move || {
//!             let _ = stopped.recv(); // an error: `stop` was dropped
//!             received.try_iter().sum::<u32>()
//!         })?;
//!         stack.register(|| worker.join().map(drop).map_err(|_| "the worker panicked"));
//!         stack.register(|| drop(stop)); // runs before the worker is joined
//!
//!         Ok(Self { stack: stack.pop_all(), jobs })
//!     }
//!
//!     pub fn add(&self, job: u32) {
//!         let _ = self.jobs.send(job);
//!     }
//!
//!     /// Stops the server and returns what failed. Dropping it stops it too, and reports what failed.
//!     pub fn stop(mut self) -> Result<(), CloseError> {
//!         self.stack.close()
//!     }
//! }
//!
//! let server = Server::start()?;
//! server.add(1);
//! server.stop()?;
//! # assert!(!std::env::temp_dir().join(format!("server-{}.lock", std::process::id())).exists());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Fields are dropped in the order of their declaration. Put the stack first if its handlers use what the other fields
//! keep open, and last if they must run when the other fields are gone.
//!
//! [`pop_all`](crate::ExitStack::pop_all) leaves an empty stack behind. Moving the whole stack does the same where that
//! is possible; `pop_all` also works behind a `&mut`, and in a type that implements `Drop`, which does not let its
//! fields be moved out.
//!
//! # What it does not do
//!
//! - With `'static`, handlers own what they use: they cannot borrow from the fields beside the stack, nor can a field
//!   hold what [`enter`](crate::ExitStack::enter) lends out. Share such a value through an `Rc` or an `Arc`.
//! - **A server that is dropped without `stop` has failed**: `on_failure` handlers run, and `on_success` handlers do
//!   not.
//! - The type is not `Send`. With a [`SharedExitStack`](crate::SharedExitStack) it is, and its methods take `&self`.
//! - Nothing runs on `std::process::exit`. With an [`Interpreter`](crate::Interpreter) as the field it does.
