//! What an observer is told, and the result of a drain that was watched.

use std::fmt;
use std::sync::Arc;

use crate::error::{CloseError, Failures, HandlerErrorKind};
use crate::tree::{Fate, Record, Running, Spot, Watch};

/// Why a drain that is watched began.
///
/// ```
/// use exitstack::shutdown::{Event, Reason, set_observer};
///
/// set_observer(Box::new(|event| {
///     if let Event::Began(Reason::Signal(signal)) = event {
///         eprintln!("signal {signal}: cleaning up");
///     }
/// }));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The body of [`run`](crate::run) has returned or panicked: the process stack drains, and is open again afterwards.
    Close,
    /// An interpreter is finalized with [`finalize_within`](crate::Interpreter::finalize_within).
    Finalize,
    /// The process exits.
    Exit,
    /// The process ends because of this signal.
    Signal(i32),
}

/// What an observer is told.
///
/// ```
/// use exitstack::Interpreter;
/// use exitstack::shutdown::{Event, Limits, set_observer};
/// use std::sync::mpsc;
///
/// let (sender, receiver) = mpsc::channel();
/// set_observer(Box::new(move |event| {
///     if let Event::Ended(closed) = event {
///         let _ = sender.send(closed.records().len());
///     }
/// }));
/// let plugin = Interpreter::new("plugin-a");
/// plugin.stack().register(|| ());
/// plugin.finalize_within(&Limits::new());
/// assert_eq!(receiver.recv(), Ok(1));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'e> {
    /// A drain has begun.
    Began(Reason),
    /// A handler has been running for as long as [`Limits::warn_after`](super::Limits::warn_after) says.
    Slow(&'e Running),
    /// A handler has ended, or there was no time for it.
    Finished(&'e Record),
    /// A handler was given up.
    GivenUp(&'e Record),
    /// The drain is over.
    Ended(&'e Closed),
}

/// What became of a drain that was watched.
///
/// ```
/// use exitstack::shutdown::Limits;
/// use exitstack::{Handler, Interpreter};
/// use std::time::Duration;
///
/// let plugin = Interpreter::new("plugin-a");
/// plugin.stack().register(Handler::new(|| Err("disk full")).named("save"));
/// let closed = plugin.finalize_within(&Limits::new().within(Duration::from_secs(60)));
/// for record in closed.records() {
///     eprintln!("{:?}: {:?} after {:?}", record.name(), record.fate(), record.took());
/// }
/// assert_eq!(closed.result().unwrap_err().errors().len(), 1);
/// ```
#[derive(Clone)]
pub struct Closed {
    records: Vec<Record>,
    result: Result<(), CloseError>,
    root: Spot,
}

impl Closed {
    pub(super) fn new(watch: &Arc<Watch>, result: Result<(), CloseError>) -> Self {
        Self { records: watch.records(), result, root: watch.root.clone() }
    }

    /// What became of a drain that goes on, although nobody waits for it any more. From now on it reports its failures.
    pub(super) fn so_far(watch: &Arc<Watch>) -> Self {
        let records = watch.records();
        let mut failures = failures_of(&records);
        for error in watch.root.stack().leave_unattended() {
            drop(failures.merge(Failures::failure(error)));
        }
        let result = failures.into_result();
        if let Err(error) = &result {
            error.iter().for_each(|failure| _ = failure.tell()); // it is returned
        }
        Self { records, result, root: watch.root.clone() }
    }

    /// What became of a drain up to the call of `exit` in one of its handlers, which has not failed by that.
    pub(super) fn until_exit(watch: &Arc<Watch>) -> Self {
        let records = watch.records();
        let running = records.iter().position(|record| matches!(record.fate, Fate::Running));
        let result = failures_of(&records[..running.unwrap_or(records.len())]).into_result();
        Self { records, result, root: watch.root.clone() }
    }

    /// Returns what became of each handler, in the order in which they ended; those that are still running last.
    ///
    /// ```
    /// use exitstack::Interpreter;
    /// use exitstack::shutdown::{Fate, Limits};
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(|| ());
    /// let closed = plugin.finalize_within(&Limits::new());
    /// assert!(matches!(closed.records()[0].fate(), Fate::Done));
    /// ```
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Returns the result of the drain, or its result so far if it was not over in time.
    ///
    /// # Errors
    ///
    /// Returns an error if a handler failed, was given up, was not run, or requested an exit status.
    ///
    /// ```
    /// use exitstack::Interpreter;
    /// use exitstack::shutdown::Limits;
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(|| Err("disk full"));
    /// assert!(plugin.finalize_within(&Limits::new()).result().is_err());
    /// ```
    pub fn result(&self) -> Result<(), CloseError> {
        self.result.clone()
    }

    /// Returns whether no handler of the drain is running or pending any more, including those that were given up.
    ///
    /// The answer may change from one call to the next.
    ///
    /// ```
    /// use exitstack::Interpreter;
    /// use exitstack::shutdown::Limits;
    /// use std::sync::Barrier;
    /// use std::time::Duration;
    ///
    /// static RETURNS: Barrier = Barrier::new(2);
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(|| {
    ///     RETURNS.wait();
    /// });
    /// let closed = plugin.finalize_within(&Limits::new().each(Duration::from_millis(10)));
    /// assert!(!closed.is_over()); // the handler was given up
    /// RETURNS.wait();
    /// while !closed.is_over() {
    ///     std::thread::yield_now();
    /// }
    /// ```
    pub fn is_over(&self) -> bool {
        self.root.stack().is_quiet()
    }
}

/// Returns the failures that records tell of.
fn failures_of(records: &[Record]) -> Failures {
    let mut failures = Failures::default();
    for record in records {
        let error = match &record.fate {
            Fate::Failed(error) => error.clone(),
            Fate::GivenUp | Fate::Running => record.error(HandlerErrorKind::TimedOut(record.took)),
            Fate::NotRun => record.error(HandlerErrorKind::NotRun),
            Fate::Done => continue,
        };
        drop(failures.merge(Failures::failure(error)));
    }
    failures
}

impl fmt::Debug for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closed").field("records", &self.records).field("result", &self.result).finish_non_exhaustive()
    }
}
