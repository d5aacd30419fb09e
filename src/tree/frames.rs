//! What each thread runs now, where drains are watched.
//!
//! A thread that drains has a *frame* for each of its teardowns, the innermost last, and the frame says which handler runs. A
//! frame is in the list from the moment its drain is acquired until it is over. Whether a handler has ended or was given up is
//! decided under the lock of the list.
//!
//! Lock order: the list of frames, then a stack's lock or the wait graph's.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::lifecycle::Purpose;
use super::record::{Fate, Record, Running};
use super::run::{Run, Spot};
use super::wait_graph::ThreadKey;
use super::watch::{Watch, here, is_on};
use crate::chain::{Chain, Link};
use crate::raw;
use crate::sync::{PerProcess, global};

/// The frame was given up, or another one of its thread.
pub(crate) struct Late;

pub(crate) struct Frame {
    pub(super) teardown: usize,
    pub(super) thread: ThreadKey,
    pub(super) root: Spot,
    /// Why it drains; none if a handler just runs out of turn.
    pub(super) purpose: Option<Purpose>,
    pub(super) watch: Option<Arc<Watch>>,
    pub(super) run: Option<Arc<Run>>,
    pub(super) is_given_up: bool,
    /// It was given up by the end of the process, which is no longer this thread's affair.
    pub(super) is_lost: bool,
}

global! {
    /// The frames of all threads, the newest first.
    pub(super) static FRAMES: PerProcess<Chain<Frame>> = PerProcess::new(Chain::new());
}

impl Frame {
    pub(super) fn is_of(&self, watch: &Arc<Watch>) -> bool {
        !self.is_given_up && self.watch.as_ref().is_some_and(|own| Arc::ptr_eq(own, watch))
    }
}

/// The handlers that run in the frames that `pick` picks, the last begun first.
pub(super) fn runs(pick: impl Fn(&Frame) -> bool) -> Vec<Arc<Run>> {
    let mut found = Vec::new();
    loop {
        let frames = FRAMES.lock();
        if frames.len() <= found.capacity() {
            found.extend(frames.iter().filter(|frame| pick(frame)).filter_map(|frame| frame.run.clone()));
            return found;
        }
        let count = frames.len();
        drop(frames);
        found.reserve(count);
    }
}

/// Every handler that runs now in a drain of the tree, also those that were given up.
pub(crate) fn running() -> Vec<Running> {
    runs(|_| true).iter().rev().map(|run| run.running(run.top.stack().count_all())).collect()
}

/// The handler that this thread is in.
pub(crate) fn run_here() -> Option<Arc<Run>> {
    let me = ThreadKey::current();
    let frames = FRAMES.lock();
    frames.iter().find(|frame| frame.thread == me)?.run.clone()
}

/// Whether this thread is in a handler that was given up.
pub(crate) fn is_given_up_here() -> bool {
    let me = ThreadKey::current();
    FRAMES.lock().iter().any(|frame| frame.thread == me && frame.is_given_up)
}

global! {
    /// The epoch of the process in which its end has given up a handler.
    static END_GAVE_UP_IN: AtomicUsize = AtomicUsize::new(0);
}

/// Notes that the end of this process has given up a handler.
pub(super) fn note_end_gave_up() {
    END_GAVE_UP_IN.store(raw::epoch(), Ordering::Release);
}

/// Whether the end of this process has given up a handler, so that the process has to be ended without C.
pub(crate) fn end_gave_up() -> bool {
    END_GAVE_UP_IN.load(Ordering::Acquire) == raw::epoch()
}

/// Whether this thread is in a handler that the end of the process has given up: it may not end the process.
pub(crate) fn is_lost_here() -> bool {
    let me = ThreadKey::current();
    end_gave_up() && FRAMES.lock().iter().any(|frame| frame.thread == me && frame.is_lost)
}

pub(super) fn push_frame(teardown: usize, root: Spot, purpose: Option<Purpose>) {
    let thread = ThreadKey::current();
    let (is_given_up, is_lost) = (false, false);
    let frame = Frame { teardown, thread, root, purpose, watch: here(), run: None, is_given_up, is_lost };
    let link = Link::new(frame);
    FRAMES.lock().push(link);
}

pub(super) fn drop_frame(teardown: usize) {
    let frame = FRAMES.lock().take_if(|frame| frame.teardown == teardown);
    drop(frame);
}

/// Forgets the frames of a thread that never comes back to them.
pub(super) fn forget_frames(thread: ThreadKey) {
    if is_on(raw::epoch()) {
        let frames = FRAMES.lock().take_if(|frame| frame.thread == thread);
        drop(frames);
    }
}

/// Notes which handler a frame runs now. Returns the one that it ran before, or an error if that one was given up.
pub(super) fn set_run(teardown: usize, run: Option<Arc<Run>>) -> Result<Option<Arc<Run>>, Late> {
    let mut frames = FRAMES.lock();
    match frames.iter_mut().find(|frame| frame.teardown == teardown) {
        Some(frame) if frame.is_given_up => Err(Late),
        Some(frame) => Ok(mem::replace(&mut frame.run, run)),
        None => Ok(None), // this process was forked in the handler
    }
}

impl Watch {
    /// Returns what became of its handlers, those that run now last.
    pub(crate) fn records(self: &Arc<Self>) -> Vec<Record> {
        let mut records = Vec::new();
        loop {
            let progress = self.progress.lock();
            let count = progress.records.len();
            if count <= records.capacity() {
                // The texts in a record are allocated again, which happens to be done under this lock. No other lock is
                // held, and an allocator that drains a stack which is watched is not supported.
                records.extend(progress.records.iter().cloned());
                break;
            }
            drop(progress);
            records.reserve(count);
        }
        records.reverse();
        records.extend(runs(|frame| frame.is_of(self)).iter().rev().map(|run| run.record(Fate::Running)));
        records
    }
}
