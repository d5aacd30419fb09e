//! A drain that is watched: its time, its records, and which thread runs it.
//!
//! None of this costs a drain anything until the process has called [`turn_on`]. From then on, each thread that drains
//! has [frames](super::frames), which say what is running. A handler that does not return is given up, and its drain is
//! continued by another thread (see [`relief`](super::relief)).
//!
//! Lock order: a [`Watch`]'s lock is taken alone.

use std::cell::Cell;
use std::mem::{self, ManuallyDrop};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::behind::Left;
use super::frames::Late;
use super::record::Record;
use super::run::{Run, Spot};
use super::wait_graph::{self, Slot, ThreadKey};
use crate::chain::{Chain, Link};
use crate::raw;
use crate::sync::{Condvar, Lock, global, per_thread};

global! {
    /// The epoch of the process in which drains are watched.
    static ON_IN: AtomicUsize = AtomicUsize::new(0);
}

/// Watches all drains of the tree that begin from now on in this process.
pub(crate) fn turn_on() {
    wait_graph::prepare();
    ON_IN.store(raw::epoch(), Ordering::Release);
}

#[inline]
pub(super) fn is_on(epoch: usize) -> bool {
    ON_IN.load(Ordering::Acquire) == epoch
}

/// Returns when to give up a handler that a drain has been waiting for since an instant.
pub(crate) type Due = Box<dyn Fn(&Run, Instant) -> Option<Instant> + Send + Sync>;

/// Receives the record of each handler that has ended.
pub(crate) type Tell = Box<dyn Fn(&Record) + Send + Sync>;

/// A drain that is watched, whichever threads run it.
pub(crate) struct Watch {
    /// The epoch of the process that it belongs to.
    pub(super) epoch: usize,
    pub(crate) root: Spot,
    /// Whether the process ends with it.
    pub(super) ends_process: bool,
    /// When its time is over; no further handler begins after that.
    pub(crate) ends: Option<Instant>,
    /// When to give up a handler; see [`due`](Self::due).
    pub(super) due: Due,
    pub(super) told: Option<Tell>,
    pub(super) progress: Lock<Progress>,
    pub(super) changed: Condvar,
}

pub(super) struct Progress {
    /// The thread that runs it, or the last one that did.
    pub(super) driver: ThreadKey,
    pub(super) records: Chain<Record>,
    /// When the last handler began or ended.
    pub(super) moved: Instant,
    /// Whether no further handler may begin.
    pub(super) is_stopped: bool,
    pub(super) is_over: bool,
    /// Its drains that no thread runs any more, and where to wait for one that another thread has resumed. The last one added
    /// comes first; what comes before that is behind it.
    pub(super) left: Chain<(Left, Option<Slot>)>,
}

per_thread! {
    /// The watched drain that this thread runs.
    static HERE: Cell<ManuallyDrop<Option<Arc<Watch>>>> = Cell::new(ManuallyDrop::new(None));
}

pub(super) fn set_here(watch: Option<Arc<Watch>>) -> Option<Arc<Watch>> {
    HERE.with(|here| ManuallyDrop::into_inner(here.replace(ManuallyDrop::new(watch))))
}

/// Returns the watched drain that this thread is in; `None` in a child that was forked in it.
pub(crate) fn here() -> Option<Arc<Watch>> {
    let watch = set_here(None);
    set_here(watch.clone());
    watch.filter(|watch| watch.is_ours())
}

/// Ends the watched drain that this thread is in, if the process was to end with it: the thread never comes back to that,
/// and drains anew. Returns that drain.
pub(crate) fn leave_watched() -> Option<Arc<Watch>> {
    let watch = here().filter(|watch| watch.ends_process)?;
    let before = set_here(None);
    watch.end();
    drop(before);
    Some(watch)
}

impl Watch {
    /// Begins to watch a drain that this thread is about to run. `told` receives the record of each handler that has
    /// ended.
    pub(crate) fn begin(
        root: Spot,
        began: Instant,
        ends: Option<Instant>,
        ends_process: bool,
        due: Due,
        told: Option<Tell>,
    ) -> Arc<Self> {
        turn_on();
        let progress = Progress {
            driver: ThreadKey::current(),
            records: Chain::new(),
            moved: began,
            is_stopped: false,
            is_over: false,
            left: Chain::new(),
        };
        let (progress, changed) = (Lock::new(progress), Condvar::new());
        Arc::new(Self { epoch: raw::epoch(), root, ends_process, ends, due, told, progress, changed })
    }

    /// Runs `drain` as the drain that is watched.
    pub(crate) fn drive<R>(self: &Arc<Self>, drain: impl FnOnce() -> R) -> R {
        self.progress.lock().driver = ThreadKey::current();
        let before = scopeguard::guard(set_here(Some(Arc::clone(self))), |before| drop(set_here(before)));
        let result = drain();
        drop(before);
        result
    }

    /// Notes that nothing of it is left to run.
    pub(crate) fn end(&self) {
        self.progress.lock().is_over = true;
        self.changed.notify_all();
    }

    /// Drops the records here rather than on the keeper: the drop of a user's error may take forever.
    pub(crate) fn clear(&self) {
        let records = mem::take(&mut self.progress.lock().records);
        drop(records);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.progress.lock().is_over
    }

    /// Returns whether it belongs to this process. In a child forked since, its lock may be held forever.
    pub(crate) fn is_ours(&self) -> bool {
        self.epoch == raw::epoch()
    }

    /// Returns what a thread is that this watch has given up.
    pub(super) fn late(&self) -> Late {
        if self.ends_process { Late::Lost } else { Late::Replaced }
    }

    /// Prevents any further handler from beginning.
    pub(crate) fn stop(&self) {
        self.progress.lock().is_stopped = true;
    }

    /// Returns when handlers were no longer allowed to begin or when one last began or ended, whichever is later;
    /// `None` while they may begin.
    pub(crate) fn stopped_since(&self) -> Option<Instant> {
        let progress = self.progress.lock();
        let ends = self.ends.filter(|ends| Instant::now() >= *ends);
        let stopped = if progress.is_stopped { Some(progress.moved) } else { None };
        [ends, stopped].into_iter().flatten().min().map(|at| at.max(progress.moved))
    }

    /// Waits until a handler begins or ends or the drain is over, but no longer than `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) {
        let progress = self.progress.lock();
        if !progress.is_over {
            let _ = self.changed.wait_timeout(progress, timeout);
        }
    }

    /// Returns when to give up a handler that the drain has been waiting for since `since`.
    pub(crate) fn due(&self, run: &Run, since: Instant) -> Option<Instant> {
        (self.due)(run, since)
    }

    pub(super) fn add(&self, record: Record) {
        if let Some(told) = &self.told {
            told(&record);
        }
        let link = Link::new(record);
        let mut progress = self.progress.lock();
        progress.records.push(link);
        progress.moved = Instant::now();
        drop(progress);
        self.changed.notify_all();
    }
}
