//! For code that registers with the current interpreter from other threads: the current interpreter belongs to a
//! thread, and does not follow into threads, thread pools and tasks by itself.
//!
//! ```
//! use std::thread;
//!
//! use exitstack::{Interpreter, register};
//!
//! /// Makes the interpreter that is current here current in `body`, on whichever thread that is called.
//! fn carry<R>(body: impl FnOnce() -> R) -> impl FnOnce() -> R {
//!     let here = Interpreter::current();
//!     move || match &here {
//!         Some(here) => here.enter(body),
//!         None => body(),
//!     }
//! }
//!
//! let job = Interpreter::new("job");
//! job.enter(|| {
//!     // A thread, or one of a pool: `pool.spawn(carry(..))`.
//!     let worker = thread::spawn(carry(|| register(|| println!("registered by a thread"))));
//!     worker.join().unwrap();
//!
//!     // A task: `tokio::spawn(task)`, on whichever threads it is polled.
//!     let here = Interpreter::current().expect("entered above");
//!     let task = here.instrument(async { register(|| println!("registered by a task")) });
//! #   thread::spawn(|| pollster::block_on(task)).join().unwrap();
//! });
//! assert_eq!(job.stack().len(), 2);
//! job.finalize()?;
//! # Ok::<(), exitstack::CloseError>(())
//! ```
//!
//! # rayon
//!
//! Entering around a parallel iterator carries nothing: its closures run on the pool's threads. Either each closure
//! enters by itself:
//!
//! ```
//! # use std::thread;
//! # use exitstack::{Interpreter, register};
//! let job = Interpreter::new("job");
//! let each = |number: u32| job.enter(|| register(move || println!("{number} is done")));
//! // numbers.par_iter().for_each(|&number| each(number));
//! # thread::scope(|scope| (0..4).for_each(|number| _ = scope.spawn(move || each(number))));
//! # assert_eq!(job.stack().len(), 4);
//! # assert!(exitstack::process_stack().is_empty());
//! ```
//!
//! or the job has a pool of its own, whose threads enter once, and for as long as they run:
//!
//! ```
//! use exitstack::{Interpreter, register};
//! use rayon::ThreadPoolBuilder;
//! # /// Stands in for the crate: the example is the same with it.
//! # mod rayon {
//! #     pub struct ThreadBuilder<'a>(Box<dyn FnOnce() + Send + 'a>);
//! #     impl ThreadBuilder<'_> { pub fn run(self) { (self.0)() } }
//! #     pub struct ThreadPool<'a>(&'a (dyn Fn(ThreadBuilder) + Sync));
//! #     impl ThreadPool<'_> {
//! #         pub fn install(&self, body: impl FnOnce() + Send) {
//! #             std::thread::scope(|scope| _ = scope.spawn(|| (self.0)(ThreadBuilder(Box::new(body)))));
//! #         }
//! #     }
//! #     pub struct ThreadPoolBuilder;
//! #     impl ThreadPoolBuilder {
//! #         pub fn new() -> Self { Self }
//! #         pub fn build_scoped(
//! #             self,
//! #             thread: impl Fn(ThreadBuilder) + Sync,
//! #             body: impl FnOnce(&ThreadPool),
//! #         ) -> std::io::Result<()> {
//! #             Ok(body(&ThreadPool(&thread)))
//! #         }
//! #     }
//! # }
//!
//! let job = Interpreter::new("job");
//! ThreadPoolBuilder::new().build_scoped(
//!     |thread| job.enter(|| thread.run()),
//!     |pool| pool.install(|| {
//!         // parallel iterators, `join`, `scope`: all of it runs in the job
//!         register(|| println!("registered by a thread of the pool"));
//!     }),
//! )?;
//! assert_eq!(job.stack().len(), 1);
//! # job.finalize()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it does not do
//!
//! - Inside `pool.install(..)` of a shared pool no interpreter is current. `pool.broadcast(..)` reaches each thread
//!   once, but an `enter` in it is over before the thread's next work begins.
//! - A rayon thread that waits inside `enter` may run another job's closure while it waits, which then registers here.
//!   Enter in the innermost closure, or use a pool for each job.
//! - A handle that is carried keeps the interpreter open: it drains when its *last* handle is dropped, and on the
//!   thread that drops it. [`finalize`](crate::Interpreter::finalize) drains it no matter who else has a handle, and
//!   what a thread registers after that is refused.
//! - [`enter`](crate::Interpreter::enter) cannot be held across an `.await`.
//!   [`instrument`](crate::Interpreter::instrument) enters anew for each poll; what the task spawns is instrumented
//!   separately.
