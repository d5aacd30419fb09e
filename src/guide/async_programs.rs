//! For programs on an async runtime whose cleanup is async too: a stack of async handlers, closed with `.await`; and,
//! for the end of the process, handlers that block on the runtime.
//!
//! # A stack that is closed with `.await`
//!
//! **Async handlers run only in `close().await`.** If the stack is dropped without it, they are reported and dropped,
//! because a drop cannot wait. [`AsyncExitStack`] is available with the feature `async`, on any runtime:
//!
//! ```toml
//! [dependencies]
//! exitstack = { version = "0.1", features = ["async"] }
//! ```
//!
//! A service closes in reverse what it has opened: the queue is drained into the database, then the pool of connections
//! is closed, then the log is flushed. The stack has no timer of its own. Put the runtime's timeout around `close()`,
//! which loses nothing when it is dropped: `in_flight()` says which handler is stuck, and the next `close()` goes on
//! where the last one stopped.
//!
#![cfg_attr(feature = "async", doc = "```")]
#![cfg_attr(not(feature = "async"), doc = "```ignore")]
//! use std::io;
//! use std::time::Duration;
//!
//! use exitstack::{AsyncExitStack, CloseError, Handler};
//! use tokio::time::timeout;
//! # use std::sync::Mutex;
//! # static SEEN: Mutex<Vec<&str>> = Mutex::new(Vec::new());
//! # fn saw(what: &'static str) { SEEN.lock().unwrap().push(what) }
//! #
//! # struct Log;
//! # impl Log {
//! #     async fn open() -> io::Result<Self> { Ok(Self) }
//! #     async fn flush(self) -> io::Result<()> { saw("log"); Ok(()) }
//! # }
//! # #[derive(Clone)]
//! # struct Pool;
//! # impl Pool {
//! #     async fn connect() -> io::Result<Self> { Ok(Self) }
//! #     async fn close(self) { tokio::time::sleep(Duration::from_secs(60)).await }
//! # }
//! # struct Queue;
//! # impl Queue {
//! #     fn of(_: Pool) -> Self { Self }
//! #     async fn drain(self) -> io::Result<()> { saw("queue"); Ok(()) }
//! # }
//! # async fn serve(_: &Pool) -> io::Result<()> { Ok(()) }
//!
//! async fn run(stack: &AsyncExitStack<'_>) -> io::Result<()> {
//!     let log = Log::open().await?;
//!     stack.register_async(Handler::new(async || log.flush().await).named("flush log"));
//!
//!     let pool = Pool::connect().await?;
//!     let closing = pool.clone();
//!     stack.register_async(Handler::new(async || closing.close().await).named("close pool"));
//!
//!     let queue = Queue::of(pool.clone());
//!     stack.register_async(Handler::new(async || queue.drain().await).named("drain queue"));
//!
//!     serve(&pool).await
//! }
//!
//! /// Gives each handler that is stuck this long, and goes on with the rest.
//! async fn close_within(limit: Duration, stack: &mut AsyncExitStack<'_>) -> Result<(), CloseError> {
//!     loop {
//!         if let Ok(closed) = timeout(limit, stack.close()).await {
//!             return closed; // with the handlers that were cancelled among the failures
//!         }
//!         if let Some(stuck) = stack.in_flight() {
//!             eprintln!("gave up on {}, registered at {}", stuck.name().unwrap_or("a handler"), stuck.location());
//! #           assert_eq!(stuck.name(), Some("close pool"));
//!             stack.cancel_in_flight();
//!         }
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! # let failed = program().await.unwrap_err();
//! # assert!(failed.to_string().ends_with("was cancelled before it finished"));
//! # assert_eq!(*SEEN.lock().unwrap(), ["queue", "log"]);
//! # }
//! # async fn program() -> Result<(), Box<dyn std::error::Error>> {
//! let mut stack = AsyncExitStack::new();
//! let served = run(&stack).await; // no `?` yet: the stack has to be closed first
//! close_within(Duration::from_secs(10), &mut stack).await?;
//! served?;
//! # Ok(())
//! # }
//! ```
//!
//! The limit applies to each handler that is stuck. For a limit on all of them together, compute a deadline before the
//! loop and use the runtime's `timeout_at`. A timeout ends a future that is pending, not one that blocks its thread.
//!
//! Where the outcome decides between commit and rollback, [`scope_async`] closes the stack with the outcome of its
//! body. **It cannot do so if its future is dropped**, so put the timeout inside the body, not around the scope.
//!
//! # Handlers of the process that block on the runtime
//!
//! The process stack drains when the process ends, where nothing can be awaited. A handler there keeps the runtime and
//! blocks on it.
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
//! [`instrument`](crate::Interpreter::instrument) makes the interpreter current whenever the future is polled. At its
//! end the handlers run where `finalize` is called, so **slow handlers keep the runtime from polling other tasks**: let
//! them run on a thread for blocking work.
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
//! `spawn_blocking` a handler may call `block_on` of a runtime's `Handle`, which it must not do on a thread that polls.
//!
//! # What it does not do
//!
//! - If the thread that exits is the runtime's only one, a handler that blocks on a thread of its own waits forever:
//!   nothing drives timers and sockets.
//! - The [current interpreter](crate::Interpreter::current) does not follow into tasks that a task spawns: instrument
//!   those too. See [`threads`](super::threads).
//! - An [`ExitStack`](crate::ExitStack) is not `Send`: a future that keeps one across an `.await` cannot be spawned on
//!   a runtime of several threads. Close it before, or use a [`SharedExitStack`](crate::SharedExitStack).
//! - Without `run`, handlers run after `main` has returned and its thread-locals, which tokio needs, are gone.
//!
#![cfg_attr(feature = "async", doc = "[`AsyncExitStack`]: crate::AsyncExitStack")]
#![cfg_attr(feature = "async", doc = "[`scope_async`]: crate::scope_async")]
#![cfg_attr(
    not(feature = "async"),
    doc = "[`AsyncExitStack`]: https://docs.rs/exitstack/latest/exitstack/struct.AsyncExitStack.html"
)]
#![cfg_attr(
    not(feature = "async"),
    doc = "[`scope_async`]: https://docs.rs/exitstack/latest/exitstack/fn.scope_async.html"
)]
