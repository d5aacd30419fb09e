//! For programs on an async runtime. Handlers are not async: where the cleanup is, a handler keeps the runtime and blocks
//! on it.
//!
//! ```
//! use std::io;
//! use std::process::ExitCode;
//! use std::sync::Arc;
//!
//! use tokio::runtime::Runtime;
//! # use std::sync::atomic::{AtomicBool, Ordering};
//! #
//! # /// Stands in for the crate: the example is the same with it.
//! # mod tokio {
//! #     pub mod runtime {
//! #         use std::pin::pin;
//! #         use std::task::{Context, Poll, Waker};
//! #         pub struct Runtime;
//! #         impl Runtime {
//! #             pub fn new() -> std::io::Result<Self> {
//! #                 Ok(Self)
//! #             }
//! #             pub fn block_on<F: Future>(&self, future: F) -> F::Output {
//! #                 let mut future = pin!(future);
//! #                 loop {
//! #                     if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
//! #                         return value;
//! #                     }
//! #                 }
//! #             }
//! #         }
//! #     }
//! # }
//! # static CLOSED: AtomicBool = AtomicBool::new(false);
//!
//! struct Pool;
//!
//! impl Pool {
//!     async fn close(self) -> io::Result<()> {
//! #       CLOSED.store(true, Ordering::Relaxed);
//!         Ok(())
//!     }
//! }
//!
//! async fn serve() -> io::Result<()> {
//!     Ok(())
//! }
//!
//! fn main() -> ExitCode {
//! #   let status =
//!     exitstack::run(|| {
//!         let runtime = Arc::new(Runtime::new()?);
//!         let (pool, in_handler) = (Pool, Arc::clone(&runtime));
//!         exitstack::register(move || in_handler.block_on(pool.close()));
//!         runtime.block_on(serve())
//!     }) // the handlers run here, on the main thread, where nothing async runs any more
//! #   ;
//! #   assert!(CLOSED.load(Ordering::Relaxed));
//! #   status
//! }
//! ```
//!
//! `run` is outside and `block_on` inside, and the handler owns a share of the runtime, which therefore lives until the
//! handler has run. With `#[tokio::main]`, or with only a `Handle`, the runtime is gone by then, and tokio's timers
//! panic.
//!
//! # Handlers that run on one of the runtime's own threads
//!
//! `exit`, called from a task, runs the handlers on the thread of that task, and `block_on` panics there. Leave from a
//! thread that runs no tasks:
//!
//! | call | |
//! | --- | --- |
//! | return from `serve`, with an error for the status | best: `main` goes on as above |
//! | `spawn_blocking(\|\| exitstack::exit(1))` | the handlers run on a thread for blocking work |
//! | `exitstack::exit(1)` in a task | only with handlers that block on a thread of their own, as below |
//!
//! ```
//! # struct Runtime;
//! # impl Runtime { fn block_on<T>(&self, value: T) -> T { value } }
//! # let (runtime, close) = (Runtime, || ());
//! exitstack::register(move || std::thread::scope(|scope| {
//!     let closed = scope.spawn(|| runtime.block_on(close()));
//!     closed.join().map_err(|_| "closing the pool panicked")
//! }));
//! ```
//!
//! # A task with an interpreter of its own
//!
//! [`instrument`](crate::Interpreter::instrument) makes the interpreter current whenever the future is polled. At its end
//! the handlers run where `finalize` is called, so **slow handlers keep the runtime from polling other tasks**: let them
//! run on a thread for blocking work.
//!
//! ```
//! use exitstack::{Interpreter, register};
//! # /// Stands in for the crate: the example is the same with it.
//! # mod tokio {
//! #     pub mod task {
//! #         pub async fn spawn_blocking<T>(work: impl FnOnce() -> T) -> Result<T, std::convert::Infallible> {
//! #             Ok(work())
//! #         }
//! #     }
//! # }
//! # type Error = Box<dyn std::error::Error + Send + Sync>;
//!
//! async fn serve() -> Result<(), Error> {
//!     register(|| println!("the session's files are removed, slowly"));
//!     Ok(())
//! }
//!
//! async fn session(name: String) -> Result<(), Error> {
//!     let session = Interpreter::new(name);
//!     let served = session.instrument(serve()).await;
//!     tokio::task::spawn_blocking(move || session.finalize()).await??;
//!     served
//! }
//! # pollster::block_on(session(String::from("session 7"))).unwrap();
//! # assert!(exitstack::process_stack().is_empty());
//! ```
//!
//! A task that is cancelled drops the interpreter, whose handlers then run on the thread that drops it. In
//! `spawn_blocking` a handler may call `block_on` of a runtime's `Handle`, which it must not on a thread that polls.
//!
//! # What it does not do
//!
//! - If the thread that exits is the runtime's only one, a handler that blocks on a thread of its own waits forever:
//!   nobody drives timers and sockets.
//! - The [current interpreter](crate::Interpreter::current) does not follow into tasks that a task spawns: instrument
//!   those too. See [`threads`](super::threads).
//! - An [`ExitStack`](crate::ExitStack) is not `Send`: a future that keeps one across an `.await` cannot be spawned on a
//!   runtime of several threads. Close it before, or use a [`SharedExitStack`](crate::SharedExitStack).
//! - Without `run`, the handlers of a `main` that returns run after its thread-locals are gone, which tokio needs.
