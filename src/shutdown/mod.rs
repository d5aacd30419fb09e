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

mod keeper;
mod limits;
mod observer;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use self::keeper::{Job, Look, Spare};
pub use self::limits::{Expiry, Limits};
use self::observer::{Observer, Told};
use crate::error::{CloseError, Failures, HandlerErrorKind, Outcome};
use crate::sync::{Lock, PerProcess, global};
pub use crate::tree::{Fate, Record, Running};
use crate::tree::{Lean, Node, Purpose, Run, Spot, Tell, ThreadKey, Watch, here, run_here, turn_on};
pub(crate) use crate::tree::{end_gave_up, is_lost_here};

/// Why a drain that is watched began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The body of [`run`](crate::run) has returned: the process stack is drained, and open again afterwards.
    Close,
    /// An interpreter is finalized.
    Finalize,
    /// The process exits.
    Exit,
    /// The process ends because of this signal.
    Signal(i32),
}

/// What an observer is told.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'e> {
    /// A drain has begun.
    Began(Reason),
    /// A handler has been running for as long as [`Limits::warn_after`] says.
    Slow(&'e Running),
    /// A handler has ended, or there was no time for it.
    Finished(&'e Record),
    /// A handler was given up.
    GivenUp(&'e Record),
    /// The drain is over.
    Ended(&'e Closed),
}

/// What became of a drain that was watched.
#[derive(Clone)]
pub struct Closed {
    records: Vec<Record>,
    result: Result<(), CloseError>,
    root: Spot,
}

impl Closed {
    fn new(watch: &Arc<Watch>, root: &Spot, result: Option<Result<(), CloseError>>) -> Self {
        let records = watch.records();
        let result = result.unwrap_or_else(|| {
            let mut failures = Failures::default();
            for record in &records {
                let error = match &record.fate {
                    Fate::Failed(error) => error.clone(),
                    Fate::GivenUp | Fate::Running => record.error(HandlerErrorKind::TimedOut(record.took)),
                    Fate::NotRun => record.error(HandlerErrorKind::NotRun),
                    Fate::Done => continue,
                };
                drop(failures.merge(Failures::failure(error)));
            }
            failures.into_result()
        });
        Self { records, result, root: root.clone() }
    }

    /// Returns what became of each handler, in the order in which they ended; those that are still running last.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Returns what the drain comes to; as far as it has come, if it is not over.
    ///
    /// # Errors
    ///
    /// Returns an error if a handler failed, was given up, was not run, or requested an exit status.
    pub fn result(&self) -> Result<(), CloseError> {
        self.result.clone()
    }

    /// Returns whether nothing of it runs or waits any more, a handler that was given up included.
    ///
    /// This looks anew on each call.
    pub fn is_over(&self) -> bool {
        self.root.stack().is_quiet()
    }
}

impl fmt::Debug for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closed").field("records", &self.records).field("result", &self.result).finish_non_exhaustive()
    }
}

#[derive(Default)]
pub(crate) struct Setup {
    limits: Limits,
    keeper: Option<Sender<Job>>,
    observer: Option<Observer>,
    /// How often what blocks a drain at the end of the process has still to be given up.
    hurried: usize,
}

global! {
    static SETUP: PerProcess<Setup> = PerProcess::new(Setup { limits: Limits::new(), keeper: None, observer: None, hurried: 0 });
}

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
pub fn set_limits(limits: Limits) -> io::Result<()> {
    let keeper = SETUP.lock().keeper.clone();
    let keeper = match keeper {
        Some(keeper) => keeper,
        None => keeper::start()?,
    };
    turn_on();
    let before = {
        let mut setup = SETUP.lock();
        setup.limits = limits;
        setup.keeper.replace(keeper)
    };
    drop(before);
    Ok(())
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
    crate::tree::running()
}

/// Sets what is told of each drain that is watched, replacing any earlier observer.
///
/// The observer runs on a thread of its own, where thread-locals work and `tracing` does: one that hangs delays no handler. The
/// end of the process waits for it for up to 200 ms. What it panics with is dropped.
///
/// Without an observer, a handler that is slow or given up is one line on standard error.
///
/// If its thread cannot be started, there is no observer.
pub fn set_observer(observer: Box<dyn Fn(&Event<'_>) + Send + Sync>) {
    let observer = Observer::new(observer).ok();
    turn_on();
    let before = std::mem::replace(&mut SETUP.lock().observer, observer);
    drop(before);
}

/// Begins to watch a drain.
fn begin(root: &Spot, limits: Limits, began: Instant, ends_process: bool, observer: Option<&Observer>) -> Arc<Watch> {
    let ends = limits.total.and_then(|total| began.checked_add(total));
    let of = root.clone();
    let due = move |run: &Run, since| match limits.expiry {
        Expiry::Wait => None,
        Expiry::Skip | Expiry::Leave => limits.due(run.limit(), since, ends, of.stack().count_all()),
    };
    let told = observer
        .cloned()
        .map(|observer| -> Tell { Box::new(move |record| observer.tell(Told::Ended(record.clone()))) });
    let stops = if limits.expiry == Expiry::Wait { None } else { ends };
    Watch::begin(began, stops, ends_process, Box::new(due), told)
}

fn tell(observer: Option<&Observer>, told: impl FnOnce() -> Told) {
    if let Some(observer) = observer {
        observer.tell(told());
    }
}

/// A drain at the end of the process that is watched.
pub(crate) struct Watching {
    watch: Arc<Watch>,
    root: Spot,
    observer: Option<Observer>,
}

/// Begins to watch a drain of the process stack, if there are limits or an observer. `finish` is called with the result on the
/// thread that goes on for one that was given up, and ends the process; `force` ends it if the drain does not end in time.
pub(crate) fn watch_end(
    root: Spot,
    reason: Reason,
    began: Instant,
    finish: fn(Result<(), CloseError>),
    force: fn() -> !,
) -> Option<Watching> {
    let (limits, keeper, observer) = {
        let setup = SETUP.lock();
        (setup.limits, setup.keeper.clone(), setup.observer.clone())
    };
    if keeper.is_none() && observer.is_none() {
        return None;
    }
    let watch = begin(&root, limits, began, true, observer.as_ref());
    tell(observer.as_ref(), || Told::Began(reason));
    if let Some(keeper) = keeper {
        let (watch, root, observer) = (Arc::clone(&watch), root.clone(), observer.clone());
        let ended = (Arc::clone(&watch), root.clone(), observer.clone());
        let finish = move |result: Result<(), CloseError>| {
            let (watch, root, observer) = ended.clone();
            Watching { watch, root, observer }.end(&result);
            finish(result);
        };
        let (finish, relieved) = (Arc::new(finish), Arc::new(|| ()));
        let _ = keeper.send(Job { began, watch, root, limits, observer, finish, relieved, force: Some(force) });
    }
    Some(Watching { watch, root, observer })
}

impl Watching {
    /// Runs the drain.
    pub(crate) fn drive<R>(&self, drain: impl FnOnce() -> R) -> R {
        self.watch.drive(drain)
    }

    /// The drain is over.
    pub(crate) fn end(&self, result: &Result<(), CloseError>) {
        if !self.watch.is_ours() {
            return; // this process was forked in it
        }
        self.watch.end();
        if let Some(observer) = &self.observer {
            observer.tell(Told::Closed(Closed::new(&self.watch, &self.root, Some(result.clone()))));
            observer.settle();
        }
    }
}

/// Sees to it that there is a thread which can give up a handler, also without limits.
#[cfg(all(unix, feature = "signals"))]
pub(crate) fn ensure_keeper() -> io::Result<()> {
    let limits = SETUP.lock().limits;
    set_limits(limits)
}

/// Lets what blocks a drain at the end of the process be given up now, or as soon as there is one.
#[cfg(all(unix, feature = "signals"))]
pub(crate) fn hurry() {
    SETUP.lock().hurried += 1;
}

/// Whether what blocks a drain has to be given up because of a `hurry`, each of which counts for one drain: another may be
/// watched that waits for it.
fn answer_hurry() -> bool {
    let mut setup = SETUP.lock();
    let hurried = setup.hurried > 0;
    setup.hurried -= usize::from(hurried);
    hurried
}

/// The exit status of a process that has given up a handler, if no handler has asked for one.
pub(crate) fn status() -> i32 {
    SETUP.lock().limits.status
}

/// Lets the observer see what it was told.
pub(crate) fn settle() {
    let observer = SETUP.lock().observer.clone();
    observer.iter().for_each(Observer::settle);
}

/// Finalizes an interpreter on a thread of its own, and returns by the time that it has.
pub(crate) fn finalize_within(node: &Arc<Node>, limits: Limits) -> Closed {
    let root = Spot::Node(Arc::clone(node));
    let observer = SETUP.lock().observer.clone();
    let began = Instant::now();
    let watch = begin(&root, limits, began, false, observer.as_ref());
    if node.stack.is_drained_here() {
        return Closed::new(&watch, &root, Some(Ok(()))); // it goes on further up the call stack
    }
    tell(observer.as_ref(), || Told::Began(Reason::Finalize));
    let lean = Arc::new(Lean::new(ThreadKey::current()));
    let result = Arc::new(Lock::new(None));
    let job = {
        let (result, watch, leaning) = (Arc::clone(&result), Arc::clone(&watch), Arc::downgrade(&lean));
        let over = Arc::clone(&watch);
        let finish = move |ended| {
            let before = result.lock().replace(ended);
            drop(before);
            over.end();
        };
        let relieved = move || leaning.upgrade().into_iter().for_each(|lean| lean.on(ThreadKey::current()));
        let (root, observer) = (root.clone(), observer.clone());
        let (finish, relieved) = (Arc::new(finish), Arc::new(relieved));
        Job { began, watch, root, limits, observer, finish, relieved, force: None }
    };
    let (running, node) = (job.clone(), Arc::clone(node));
    let drain = move || {
        (running.relieved)();
        let drain = || node.stack.drain_watched(Purpose::Finalize, Outcome::Success);
        // If not, another thread has gone on, or this is a child that a handler has forked.
        let result = running.watch.drive(drain);
        if let (Ok(result), true) = (result, running.watch.is_ours()) {
            (running.finish)(result);
        }
    };
    let mut spare = Spare::new().ok();
    if let Some(thread) = spare.take() {
        thread.run(drain);
        spare = Spare::new().ok();
        await_end(job, &mut spare, &lean);
    } else {
        drain(); // without threads nothing can be bounded, but it can be run
    }
    let result = result.lock().clone();
    let closed = Closed::new(&watch, &root, result);
    tell(observer.as_ref(), || Told::Closed(closed.clone()));
    closed
}

/// How long `finalize_within` takes beyond its time, to note what was not run.
const GRACE: Duration = Duration::from_millis(50);

/// Watches a drain until it is over, or its time is, or it waits for this thread.
fn await_end(mut job: Job, spare: &mut Option<Spare>, lean: &Lean) {
    let returns = job.limits.total.and_then(|total| job.began.checked_add(total + GRACE));
    loop {
        let now = Instant::now();
        match job.look(spare) {
            Look::At(next) if !lean.has_ended() && returns.is_none_or(|returns| now < returns) => {
                let until = returns.map_or(next, |returns| next.min(returns));
                job.watch.wait(until.saturating_duration_since(now));
            }
            Look::At(_) | Look::Over => return,
        }
    }
}

/// A drain of an interpreter that the models of tests/loom.rs give up, without a thread that watches and without time.
#[cfg(all(loom, feature = "loom"))]
#[doc(hidden)]
#[derive(Clone)]
#[allow(missing_debug_implementations)]
pub struct Modelled(Arc<Watch>, Arc<Node>);

#[cfg(all(loom, feature = "loom"))]
impl Modelled {
    pub(crate) fn new(node: &Arc<Node>) -> Self {
        let root = Spot::Node(Arc::clone(node));
        Self(begin(&root, Limits::new(), Instant::now(), false, None), Arc::clone(node))
    }

    /// Drains on this thread; returns whether that was not given up.
    pub fn drain(&self) -> bool {
        self.0.drive(|| self.1.stack.drain_watched(Purpose::Finalize, Outcome::Success)).is_ok()
    }

    /// Gives up the handler that runs, if one does; returns whether another thread has to resume the drain.
    pub fn give_up(&self) -> bool {
        self.0.blocking().and_then(|blocking| self.0.give_up(&blocking)) == Some(true)
    }

    /// Resumes the drain on this thread; returns whether that was not given up.
    pub fn resume(&self) -> bool {
        self.0.resume().is_ok()
    }
}
