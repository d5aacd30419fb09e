//! For code that registers with the current interpreter from other threads: the current interpreter belongs to a
//! thread, and does not follow into threads, thread pools and tasks by itself.
//!
//! ```
//! use std::future::{Future, poll_fn};
//! use std::pin::pin;
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
//! /// The same for a future, on whichever threads it is polled.
//! fn carry_future<F: Future>(future: F) -> impl Future<Output = F::Output> {
//!     let here = Interpreter::current();
//!     async move {
//!         let mut future = pin!(future);
//!         poll_fn(|context| match &here {
//!             Some(here) => here.enter(|| future.as_mut().poll(context)),
//!             None => future.as_mut().poll(context),
//!         })
//!         .await
//!     }
//! }
//!
//! let job = Interpreter::new("job");
//! job.enter(|| {
//!     // A thread, or one of a pool: `pool.spawn(carry(..))`.
//!     let worker = thread::spawn(carry(|| register(|| println!("registered by a thread"))));
//!     worker.join().unwrap();
//!
//!     // A task: `tokio::spawn(carry_future(..))`.
//!     let task = carry_future(async { register(|| println!("registered by a task")) });
//! #   let spawned = thread::spawn(|| {
//! #       let mut context = std::task::Context::from_waker(std::task::Waker::noop());
//! #       assert!(pin!(task).poll(&mut context).is_ready());
//! #   });
//! #   spawned.join().unwrap();
//! });
//! assert_eq!(job.stack().len(), 2);
//! job.finalize()?;
//! # Ok::<(), exitstack::CloseError>(())
//! ```
//!
//! A closure that many threads call, as with rayon's parallel iterators, enters inside:
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
//! # What it does not do
//!
//! - Entering a pool carries nothing: inside rayon's `pool.install(..)`, no interpreter is current.
//! - A handle that is carried keeps the interpreter open: it drains when its *last* handle is dropped, and so on the
//!   thread that drops it. [`finalize`](crate::Interpreter::finalize) drains it no matter who else has a handle, and
//!   what a thread registers after that is refused.
//! - Do not hold [`enter`](crate::Interpreter::enter) across an `.await`: it takes a closure that is not async, because
//!   a task may continue on another thread. `carry_future` enters anew for each poll.
