//! A drain with limits or an observer: how it begins and, on whichever thread, how it ends.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event::{Closed, Reason};
use super::keeper::{Job, Look, Spare};
use super::limits::{Expiry, Limits};
use super::observer::{Observer, PATIENCE, Told};
use super::setup::{Setup, settle_lines, setup};
use crate::error::{CloseError, Outcome};
use crate::report::report;
use crate::sync::Lock;
use crate::tree::{self, Lean, Node, Purpose, Run, Spot, Tell, ThreadKey, Watch};

/// Begins to watch a drain.
fn begin(root: Spot, limits: Limits, began: Instant, ends_process: bool, observer: Option<&Observer>) -> Arc<Watch> {
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
    Watch::begin(root, began, stops, ends_process, Box::new(due), told)
}

fn tell(observer: Option<&Observer>, told: impl FnOnce() -> Told) {
    if let Some(observer) = observer {
        observer.tell(told());
    }
}

/// A watched drain at the end of the process.
#[derive(Clone)]
pub(crate) struct Watching {
    watch: Arc<Watch>,
    observer: Option<Observer>,
}

/// Begins to watch a drain of the process stack, if there are limits or an observer. On a thread that goes on for one
/// that was given up, `finish` is called with the result, notes that the drain is over, and ends the process. `force`
/// ends the process if the drain is not over in time.
pub(crate) fn watch_end(
    root: Spot,
    reason: Reason,
    began: Instant,
    finish: fn(&Watching, Result<(), CloseError>) -> !,
    force: fn() -> !,
) -> Option<Watching> {
    let Setup { limits, keeper, observer, .. } = setup();
    if keeper.is_none() && observer.is_none() {
        return None;
    }
    let watch = begin(root, limits, began, true, observer.as_ref());
    tell(observer.as_ref(), || Told::Began(reason));
    let watching = Watching { watch, observer };
    if let Some(keeper) = keeper {
        let Watching { watch, observer } = watching.clone();
        let ended = watching.clone();
        let finish = Arc::new(move |result| finish(&ended, result));
        let _ =
            keeper.send(Job { began, watch, limits, observer, finish, relieved: Arc::new(|| ()), force: Some(force) });
    }
    Some(watching)
}

/// Ends the watch over a drain at the end of the process that this thread has left by `exit`. The drain that follows
/// resumes it, within limits of its own.
pub(crate) fn leave_watched() {
    if let Some(watch) = tree::leave_watched() {
        tell(setup().observer.as_ref(), || Told::Closed(Closed::until_exit(&watch)));
    }
}

impl Watching {
    /// Runs the drain.
    pub(crate) fn drive<R>(&self, drain: impl FnOnce() -> R) -> R {
        self.watch.drive(drain)
    }

    /// Notes that the drain is over, and tells the observer.
    pub(crate) fn end(&self, result: &Result<(), CloseError>) {
        if !self.watch.is_ours() {
            return; // this process was forked in it
        }
        self.watch.end();
        if let Some(observer) = &self.observer {
            observer.tell(Told::Closed(Closed::new(&self.watch, result.clone())));
            observer.settle(PATIENCE);
        }
        settle_lines(PATIENCE);
        self.watch.clear();
    }
}

/// The caller of [`finalize_within`], as the thread that ends the drain finds it.
enum Caller {
    Waits,
    /// It is told this result of the drain.
    Told(Result<(), CloseError>),
    HasReturned,
}

/// Finalizes an interpreter on a thread of its own, and returns when its time is over, if not before.
pub(crate) fn finalize_within(node: &Arc<Node>, limits: Limits) -> Closed {
    let (root, observer, began) = (Spot::Node(Arc::clone(node)), setup().observer, Instant::now());
    let watch = begin(root, limits, began, false, observer.as_ref());
    if node.stack.is_drained_here() {
        let result = node.stack.drain(Purpose::Finalize, Outcome::Success);
        return Closed::new(&watch, result); // the drain goes on further up the call stack, and is the last
    }
    tell(observer.as_ref(), || Told::Began(Reason::Finalize));
    let lean = Arc::new(Lean::new(ThreadKey::current()));
    let caller = Arc::new(Lock::new(Caller::Waits));
    let job = {
        let (watch, observer) = (Arc::clone(&watch), observer.clone());
        let (ended, kept, leaning) = (Arc::clone(&watch), Arc::clone(&caller), Arc::downgrade(&lean));
        let finish = Arc::new(move |result| {
            if !ended.is_ours() {
                return; // this process was forked in it, perhaps while its caller held one of these locks
            }
            let mut kept = kept.lock();
            if let Caller::Waits = *kept {
                *kept = Caller::Told(result);
                drop(kept);
            } else {
                drop(kept);
                result.err().iter().flatten().for_each(report); // what was not reported yet
            }
            ended.end();
        });
        let relieved = Arc::new(move || leaning.upgrade().into_iter().for_each(|lean| lean.on(ThreadKey::current())));
        Job { began, watch, limits, observer, finish, relieved, force: None }
    };
    let returns = returns(&job);
    drain_elsewhere(job, Arc::clone(node), &lean);
    settle_lines(returns.map_or(PATIENCE, |at| at.saturating_duration_since(Instant::now()).min(PATIENCE)));
    let caller = mem::replace(&mut *caller.lock(), Caller::HasReturned);
    let closed = if let Caller::Told(result) = caller { Closed::new(&watch, result) } else { Closed::so_far(&watch) };
    tell(observer.as_ref(), || Told::Closed(closed.clone()));
    closed
}

/// Drains an interpreter on a thread of its own, and waits until the drain is over, or its time is.
fn drain_elsewhere(job: Job, node: Arc<Node>, lean: &Lean) {
    let running = job.clone();
    let drain = move || {
        (running.relieved)();
        let drained = running.watch.drive(|| node.stack.drain_watched(Purpose::Finalize, Outcome::Success));
        // Otherwise another thread has gone on.
        if let Ok(result) = drained {
            (running.finish)(result);
        }
    };
    match Spare::new() {
        Ok(thread) => {
            thread.run(drain);
            let mut spare = Spare::new().ok();
            let cut = || lean.has_ended();
            if await_end(job.clone(), &mut spare, cut) {
                return;
            }
            // The drain waits for this thread, and goes on once the caller has returned.
            if let Some(thread) = spare.or_else(|| Spare::new().ok()) {
                thread.run(move || _ = await_end(job, &mut Spare::new().ok(), || false));
            }
        }
        Err(_) => drain(), // without a thread nothing can be bounded, but handlers can run
    }
}

/// How much longer than its time `finalize_within` may take, to record the handlers that were not run.
const GRACE: Duration = Duration::from_millis(50);

/// Returns when `finalize_within` returns at the latest.
fn returns(job: &Job) -> Option<Instant> {
    job.limits.total.and_then(|total| job.began.checked_add(total.saturating_add(GRACE)))
}

/// Watches a drain until it is over or its time is, and returns true; or until `cut` says so, and returns false.
fn await_end(mut job: Job, spare: &mut Option<Spare>, cut: impl Fn() -> bool) -> bool {
    let returns = returns(&job);
    loop {
        let now = Instant::now();
        match job.look(spare) {
            Look::Over => return true,
            Look::At(_) if returns.is_some_and(|returns| now >= returns) => return true,
            Look::At(_) if cut() => return false,
            Look::At(next) => {
                let until = returns.map_or(next, |returns| next.min(returns));
                job.watch.wait(until.saturating_duration_since(now));
            }
        }
    }
}

/// A drain of an interpreter that the models in `tests` give up, without a thread that watches and without time.
#[cfg(any(fuzzing, all(loom, feature = "loom")))]
#[doc(hidden)]
#[derive(Clone)]
#[allow(missing_debug_implementations)]
pub struct Modelled(Arc<Watch>, Arc<Node>);

#[cfg(any(fuzzing, all(loom, feature = "loom")))]
impl Modelled {
    pub(crate) fn new(node: &Arc<Node>) -> Self {
        let root = Spot::Node(Arc::clone(node));
        Self(begin(root, Limits::new(), Instant::now(), false, None), Arc::clone(node))
    }

    /// Drains on this thread; returns what it comes to, unless that was given up.
    pub fn drain(&self) -> Option<Result<(), CloseError>> {
        self.0.drive(|| self.1.stack.drain_watched(Purpose::Finalize, Outcome::Success)).ok()
    }

    /// Gives up the handler that runs, if one does; returns whether another thread has to resume the drain.
    pub fn give_up(&self) -> bool {
        self.0.blocking().and_then(|blocking| self.0.give_up(&blocking)) == Some(true)
    }

    /// Resumes the drain on this thread; returns what it comes to, unless that was given up.
    pub fn resume(&self) -> Option<Result<(), CloseError>> {
        self.0.resume().ok()
    }

    /// What `finalize_within` returns at this moment.
    pub fn closed(&self) -> Closed {
        Closed::new(&self.0, Ok(()))
    }
}
