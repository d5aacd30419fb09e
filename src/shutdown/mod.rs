//! A shutdown that can be watched and bounded.
//!
//! Without limits a drain waits for each handler for as long as that takes. [`set_limits`] bounds every way out of the
//! process; [`Interpreter::finalize_within`](crate::Interpreter::finalize_within) bounds the end of one interpreter.
//!
//! ```no_run
//! use exitstack::Handler;
//! use exitstack::shutdown::{Limits, set_limits};
//! use std::time::Duration;
//!
//! fn main() -> std::io::Result<()> {
//!     set_limits(Limits::new().within(Duration::from_secs(10)).each(Duration::from_secs(3)))?;
//!     exitstack::register(Handler::new(|| println!("saved")).named("save"));
//!     exitstack::register(Handler::new(|| std::thread::park()).named("hangs")); // given up after three seconds
//!     Ok(()) // prints "saved"; the status is 1
//! }
//! ```
//!
//! # What is given up
//!
//! Handlers run on the thread that drains, as ever, and another thread watches. A handler whose time is over is given up:
//! **it is not stopped, and nothing it holds is released**, but the drain goes on without it, in order, on another thread. So
//! no handler runs twice, and none below it is lost. If the handler is itself draining another stack, the handler of that one
//! is given up, and that drain is resumed first. If the drain waits for an interpreter that another thread drains, the
//! handler that runs there is given up.
//!
//! A thread that comes back from a handler that was given up runs no further handler of the tree. A failure that it comes
//! back with goes to the [report hook](crate::report), and an exit status that it asks for is ignored. A process that has
//! given up a handler ends with the status that a handler asked for with [`Exit`](crate::Exit), else with
//! [`Limits::status`], and without calling what else is registered with C.
//!
//! A handler for which no time is left is neither run nor dropped, and reported as
//! [`NotRun`](crate::HandlerErrorKind::NotRun).
//!
//! # What is watched
//!
//! The process stack and all interpreters, from the first call of [`set_limits`], [`set_observer`] or `finalize_within` on. A
//! [`SharedExitStack`](crate::SharedExitStack) or an [`ExitStack`](crate::ExitStack) that is a value counts as part of the
//! handler that drains it. A forked child has no limits and no observer until it sets them.

mod bounded;
mod event;
mod keeper;
mod limits;
mod observer;
mod setup;

use std::io;
use std::time::{Duration, Instant};

#[cfg(all(loom, feature = "loom"))]
pub use self::bounded::Modelled;
pub(crate) use self::bounded::{finalize_within, watch_end};
pub use self::event::{Closed, Event, Reason};
#[cfg(all(unix, feature = "signals"))]
pub(crate) use self::keeper::hurry;
pub use self::limits::{Expiry, Limits};
use self::observer::Observer;
use self::setup::setup;
use crate::tree::{self, here, run_here};
pub use crate::tree::{Fate, Record, Running};
pub(crate) use crate::tree::{end_gave_up, is_lost_here};

/// Sets how much time every way out of the process has, replacing any earlier limits.
///
/// See the [module](self) for what happens when it is over. **Call it before other threads drain anything**: a drain that has
/// begun before the first call is not watched, and what it waits for is not bounded.
///
/// The end of [`run`](crate::run) and the exit of the process afterwards are two drains with these limits each.
/// [`exit`](crate::exit) and C's `exit` after it are one.
///
/// # Errors
///
/// Returns an error if the two threads that watch cannot be started. There are no limits then.
///
/// ```
/// use exitstack::shutdown::{Limits, set_limits};
/// use std::time::Duration;
///
/// set_limits(Limits::new().within(Duration::from_secs(10)).reserve(Duration::from_secs(2)))?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn set_limits(limits: Limits) -> io::Result<()> {
    setup::limit(limits)
}

/// Returns how much time is left for the handler that runs on this thread; `None` if there is no limit.
///
/// ```
/// assert_eq!(exitstack::shutdown::time_left(), None);
/// ```
pub fn time_left() -> Option<Duration> {
    let watch = here()?;
    let run = run_here()?;
    let due = watch.due(&run, run.since())?;
    Some(due.saturating_duration_since(Instant::now()))
}

/// Returns the handlers that run now in drains that are watched, including those that were given up.
///
/// Takes no lock that is held while a handler runs.
///
/// ```
/// assert!(exitstack::shutdown::running().is_empty());
/// ```
pub fn running() -> Vec<Running> {
    tree::running()
}

/// Sets what is told of each drain that is watched, replacing any earlier observer.
///
/// The observer runs on a thread of its own, where thread-locals work and `tracing` does: one that hangs delays no handler. The
/// end of the process waits for it for up to 200 ms. What it panics with is dropped.
///
/// Without an observer, a handler that is slow or given up is one line on standard error.
///
/// If its thread cannot be started, there is no observer.
///
/// ```
/// use exitstack::shutdown::{Event, set_observer};
///
/// set_observer(Box::new(|event| match event {
///     Event::Slow(handler) => eprintln!("{:?} takes its time", handler.name()),
///     Event::GivenUp(record) => eprintln!("{:?} was given up after {:?}", record.name(), record.took()),
///     _ => {}
/// }));
/// ```
pub fn set_observer(observer: Box<dyn Fn(&Event<'_>) + Send + Sync>) {
    setup::observe(Observer::new(observer).ok());
}

/// Sees to it that there is a thread which can give up a handler, also without limits.
#[cfg(all(unix, feature = "signals"))]
pub(crate) fn ensure_keeper() -> io::Result<()> {
    set_limits(setup().limits)
}

/// The exit status of a process that has given up a handler, if no handler has asked for one.
pub(crate) fn status() -> i32 {
    setup().limits.status
}

/// Lets the observer see what it was told.
pub(crate) fn settle() {
    setup().observer.iter().for_each(Observer::settle);
}
