//! What each thread is running, where drains are watched.
//!
//! A thread that drains has a *frame* for each of its teardowns, which says which handler is running. A frame is in the
//! list from the moment its drain is acquired until the drain is over. Whether a handler has ended or was given up is
//! decided under the lock of the list.
//!
//! Lock order: the list of frames, then a stack's lock or the wait graph's.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::lifecycle::Purpose;
use super::record::{Fate, Record, Running};
use super::run::{Run, Spot};
use super::wait_graph::{Slot, ThreadKey};
use super::watch::{Watch, here, is_on};
use crate::chain::{Chain, Link};
use crate::raw;
use crate::sync::{PerProcess, global};

/// The error of a thread that was given up, in this frame or in another of its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Late {
    /// Another watch goes on without what the frame drained. Any thread may resume the rest, so this one does.
    ForAnother,
    /// Its own watch goes on, on another thread.
    Replaced,
    /// The same, and that watch ends the process: this thread must not.
    Lost,
}

/// A teardown that a thread is in, or a handler that it runs out of turn.
pub(crate) struct Frame {
    pub(super) teardown: usize,
    pub(super) thread: ThreadKey,
    pub(super) root: Spot,
    /// Why it drains; `None` for a handler that runs out of turn.
    pub(super) purpose: Option<Purpose>,
    pub(super) watch: Option<Arc<Watch>>,
    pub(super) run: Option<Arc<Run>>,
    /// Set once some drain goes on without it: the key that owns its drain from then on.
    pub(super) given_up: Option<ThreadKey>,
    /// Where its thread waits for its drain if another watch has given it up.
    pub(super) slot: Option<Slot>,
    /// Whether its own watch has given it up: another thread goes on with the whole of its drain, so it never does.
    pub(super) is_replaced: bool,
    /// Whether the drain that ends the process has given it up: the thread must not end the process itself.
    pub(super) is_lost: bool,
}

global! {
    /// The frames of all threads, the newest first.
    pub(super) static FRAMES: PerProcess<Chain<Frame>> = PerProcess::new(Chain::new());
}

impl Frame {
    /// Returns whether it is the work of this watch, and not replaced.
    pub(super) fn is_of(&self, watch: &Arc<Watch>) -> bool {
        !self.is_replaced && self.watch.as_ref().is_some_and(|own| Arc::ptr_eq(own, watch))
    }

    /// Returns whether it still has to be given up if this watch is to go on without it. What another watch has given up
    /// may still keep its own from going on.
    pub(super) fn may_block(&self, watch: &Arc<Watch>) -> bool {
        self.given_up.is_none() || self.is_of(watch)
    }

    fn late(&self) -> Late {
        match &self.watch {
            Some(watch) if self.is_replaced => watch.late(),
            _ => Late::ForAnother,
        }
    }
}

/// Returns the handlers that are running in the frames for which `pick` returns true, the first begun first, each with
/// the stack that its drain began with.
fn runs(pick: impl Fn(&Frame) -> bool) -> Vec<(Arc<Run>, Spot)> {
    let mut found = Vec::new();
    loop {
        let frames = FRAMES.lock();
        if frames.len() <= found.capacity() {
            let root = |frame: &Frame| frame.watch.as_ref().map_or(&frame.root, |watch| &watch.root).clone();
            let picked = frames.iter().filter(|frame| pick(frame));
            found.extend(picked.filter_map(|frame| frame.run.clone().zip(Some(root(frame)))));
            break;
        }
        let count = frames.len();
        drop(frames);
        found.reserve(count);
    }
    found.reverse();
    found
}

/// Returns every handler that is running in a drain of the tree, including those that were given up.
pub(crate) fn running() -> Vec<Running> {
    runs(|_| true).iter().map(|(run, root)| run.running(root.stack().count_all())).collect()
}

/// Returns the handler that this thread is in.
pub(crate) fn run_here() -> Option<Arc<Run>> {
    let me = ThreadKey::current();
    let frames = FRAMES.lock();
    frames.iter().find(|frame| frame.thread == me)?.run.clone()
}

/// Returns whether this thread is in a handler that was given up.
pub(crate) fn is_given_up_here() -> bool {
    let me = ThreadKey::current();
    FRAMES.lock().iter().any(|frame| frame.thread == me && frame.given_up.is_some())
}

global! {
    /// The epoch of this process, once the drain that ends it has given up a handler.
    static END_GAVE_UP_IN: AtomicUsize = AtomicUsize::new(0);
}

/// Notes that the drain that ends this process has given up a handler.
pub(super) fn note_end_gave_up() {
    END_GAVE_UP_IN.store(raw::epoch(), Ordering::Release);
}

/// Returns whether the drain that ends this process has given up a handler, so that the process has to end without C's
/// `exit`.
pub(crate) fn end_gave_up() -> bool {
    END_GAVE_UP_IN.load(Ordering::Acquire) == raw::epoch()
}

/// Returns whether this thread is in a handler that the drain that ends the process has given up: it must not end the
/// process.
pub(crate) fn is_lost_here() -> bool {
    let me = ThreadKey::current();
    end_gave_up() && FRAMES.lock().iter().any(|frame| frame.thread == me && frame.is_lost)
}

pub(super) fn push_frame(teardown: usize, root: Spot, purpose: Option<Purpose>) {
    let thread = ThreadKey::current();
    let (given_up, is_replaced, is_lost) = (None, false, false);
    let (watch, run, slot) = (here(), None, None);
    let frame = Frame { teardown, thread, root, purpose, watch, run, given_up, slot, is_replaced, is_lost };
    let link = Link::new(frame);
    FRAMES.lock().push(link);
}

/// Removes a frame. If it was given up, returns what its thread is, and where to wait for its drain.
pub(super) fn drop_frame(teardown: usize) -> Option<(Late, Option<Slot>)> {
    let mut frames = FRAMES.lock().take_if(|frame| frame.teardown == teardown);
    frames.iter_mut().find(|frame| frame.given_up.is_some()).map(|frame| (frame.late(), frame.slot.take()))
}

/// Removes the frames of a thread that never comes back to them.
pub(crate) fn forget_frames(thread: ThreadKey) {
    if is_on(raw::epoch()) {
        let frames = FRAMES.lock().take_if(|frame| frame.thread == thread);
        drop(frames);
    }
}

/// Sets the handler that a frame is running. Returns the previous one, or an error if the frame was given up.
pub(super) fn set_run(teardown: usize, run: Option<Arc<Run>>) -> Result<Option<Arc<Run>>, Late> {
    let mut frames = FRAMES.lock();
    let Some(frame) = frames.iter_mut().find(|frame| frame.teardown == teardown) else {
        return Ok(None); // this process was forked in the handler, and has no such frame
    };
    // Of a frame that was given up as well: its own watch must not find a handler that has returned.
    let before = mem::replace(&mut frame.run, run);
    let late = frame.given_up.map(|_| frame.late());
    drop(frames);
    late.map_or(Ok(before), Err)
}

impl Watch {
    /// Returns what became of its handlers; those that are still running come last.
    pub(crate) fn records(self: &Arc<Self>) -> Vec<Record> {
        let mut records = Vec::new();
        loop {
            let progress = self.progress.lock();
            let count = progress.records.len();
            if count <= records.capacity() {
                records.extend(progress.records.iter().cloned());
                break;
            }
            drop(progress);
            records.reserve(count);
        }
        records.reverse();
        records.extend(runs(|frame| frame.is_of(self)).iter().map(|(run, _)| run.record(Fate::Running)));
        records
    }
}
