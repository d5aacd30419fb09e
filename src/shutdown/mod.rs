//! A shutdown that can be watched and bounded.
//!
//! Without limits, a drain waits for each handler for as long as it takes. [`set_limits`] bounds every exit path of the
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
//! Handlers run on the thread that drains, as always, and another thread watches. A handler whose time is over is given
//! up: **it is not stopped, and nothing it holds is released**, but the drain goes on without it, in order, on another
//! thread. So no handler runs twice, and none below it is lost. A handler that is itself draining another stack has no
//! limit but those of the handlers that run there: if one of them is given up, it is given up as well, and that drain
//! is resumed first. Each handler that was given up is a failure of its drain. If the drain waits for an interpreter
//! that another thread drains, the handler that runs there is given up.
//!
//! A handler that was given up may still return. Its thread then runs no further handler of that drain; if it failed,
//! the failure goes to the [report hook](crate::report), and an exit status that it requests is ignored. A drain around
//! it that is not bounded, or whose own time is not over, goes on there: `finalize_within` gives up a handler for the
//! sake of its interpreter, not for that of a thread which finalizes the parent. If another thread has gone on with it
//! by then, the call that began the drain returns what it came to.
//!
//! Until it returns, its thread runs no handler of the process stack or of an interpreter nested in it:
//! [`close`](crate::SharedExitStack::close) and [`finalize`](crate::Interpreter::finalize) return `Ok(())` at once,
//! [`run_now`](crate::SharedExitStack::run_now) returns `None`, and the drop of a last handle runs nothing. The handlers
//! are left to the next drain that comes to them, at the latest that of the end of the process. Stacks that are values,
//! and [detached](crate::Interpreter::detached) interpreters, drain there as ever.
//!
//! A process that has given up a handler on its way out ends with the status that another handler requested with
//! [`Exit`](crate::Exit), else by the signal that requested the end, else with [`Limits::status`]. It ends without
//! calling what other libraries have registered with C's `atexit`, except for what C's `exit` has called by then, on any
//! thread: it calls what was registered after our first handler before it comes to ours.
//!
//! A handler for which no time is left is neither run nor dropped. It is reported as
//! [`NotRun`](crate::HandlerErrorKind::NotRun).
//!
//! # What is watched
//!
//! From the first call of [`set_limits`], [`set_observer`], `finalize_within` or `Signals::install` on, the process
//! stack and all interpreters are watched. A [`SharedExitStack`](crate::SharedExitStack) or an
//! [`ExitStack`](crate::ExitStack) that is a value counts as part of the handler that drains it. A forked child has no
//! limits and no observer until it sets them.

mod bounded;
mod event;
mod keeper;
mod limits;
mod observer;
mod setup;

use std::io;
use std::time::{Duration, Instant};

#[cfg(any(fuzzing, all(loom, feature = "loom")))]
pub use self::bounded::Modelled;
pub(crate) use self::bounded::{Watching, finalize_within, leave_watched, watch_end};
pub use self::event::{Closed, Event, Reason};
#[cfg(all(any(unix, windows), feature = "signals"))]
pub(crate) use self::keeper::hurry;
pub use self::limits::{Expiry, Limits};
use self::observer::{Observer, PATIENCE};
use self::setup::{Setup, setup};
use crate::tree::{self, here, run_here};
pub use crate::tree::{Fate, Record, Running};
pub(crate) use crate::tree::{end_gave_up, is_lost_here};

/// Sets how long the handlers may take on every exit path of the process, replacing any earlier limits.
///
/// See the [module](self) for what happens when that time is over. **Call it before other threads drain anything**: a
/// drain that has begun before the first call is not watched, and what it waits for is not bounded.
///
/// The end of [`run`](crate::run) and the exit of the process afterwards are two drains, each with these limits.
/// [`exit`](crate::exit) drains twice, before and after this thread's thread-locals are dropped, within the same limits; an
/// observer is told of both drains. So it is where `std::process::exit` in a handler of `run`, or C's `exit` in any
/// handler, ends one drain and begins another.
///
/// # Errors
///
/// Returns an error if the threads that enforce limits cannot be started. No limits are set then.
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

/// Returns how much time is left for the handler that runs on this thread, or `None` if there is no limit.
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

/// Returns the handlers that are running in drains that are watched, including those that were given up.
///
/// Takes no lock that is held while a handler runs.
///
/// ```
/// assert!(exitstack::shutdown::running().is_empty());
/// ```
pub fn running() -> Vec<Running> {
    tree::running()
}

/// Sets the observer of shutdowns, replacing any earlier one.
///
/// It receives the events of drains at the end of the process and of [`run`](crate::run), and of
/// [`finalize_within`](crate::Interpreter::finalize_within).
///
/// The observer runs on a thread of its own, where thread-locals, and therefore `tracing`, work. One that hangs delays
/// no handler; the end of the process waits for it for up to 200 ms. A panic of the observer is caught.
///
/// Without an observer, each handler that is slow, or that `finalize_within` gives up, is one line on standard error. At
/// the end of the process, one that is given up goes to the [report hook](crate::report), with or without an observer.
///
/// If its thread cannot be started, there is no observer, not even the earlier one.
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

/// Makes sure that there is a thread that can give up a handler, even without limits.
#[cfg(all(any(unix, windows), feature = "signals"))]
pub(crate) fn ensure_keeper() -> io::Result<()> {
    set_limits(setup().limits)
}

/// Returns the exit status of a process that has given up a handler, if no handler has requested one.
pub(crate) fn status() -> i32 {
    setup().limits.status
}

/// Waits until the observer has seen everything it was told, and all lines are written, if that does not take long.
pub(crate) fn settle() {
    let Setup { observer, lines, .. } = setup();
    observer.iter().chain(&lines).for_each(|observer| observer.settle(PATIENCE));
}
