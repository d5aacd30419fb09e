//! What is left behind where a handler was given up (see [`relief`](super::relief)): what comes before a drain goes on, on
//! whichever thread.
//!
//! The lock of what is left behind is taken alone.

use std::mem;
use std::ptr;
use std::sync::Arc;

use super::SharedExitStack;
use super::drains::Drain;
use super::frames::Late;
use super::lifecycle::Purpose;
use super::run::Spot;
use super::wait_graph::{Slot, ThreadKey, Waited};
use crate::chain::{Chain, Link};
use crate::error::{CloseError, HandlerError};
use crate::report::report;
use crate::sync::{PerProcess, global};

/// What a thread has to do before it goes on with a drain whose owner has left, or that waited for a handler which was
/// given up.
pub(crate) struct Behind {
    /// The stack that drains.
    stack: Spot,
    /// Failures that are still to be reported.
    untold: Vec<HandlerError>,
    /// The drain further in that comes first.
    inner: Option<Left>,
    /// The teardown in which the drain was given up, and its owner since then, if it was.
    of: Option<(usize, ThreadKey)>,
}

global! {
    static BEHIND: PerProcess<Chain<Behind>> = PerProcess::new(Chain::new());
}

/// A drain whose thread was given up.
#[derive(Clone)]
pub(super) struct Left {
    pub(super) root: Spot,
    pub(super) purpose: Purpose,
    pub(super) teardown: usize,
    /// The owner that it has until it is resumed.
    pub(super) key: ThreadKey,
}

impl Left {
    /// Resumes the drain, or waits for the thread that has, at this slot if there is one.
    pub(super) fn resume(&self, slot: Option<Slot>) -> Result<Result<(), CloseError>, Late> {
        self.root.stack().resume(self.purpose, Some(self.key), slot)
    }

    /// Returns the drain further in that comes before this one.
    pub(super) fn further_in(&self) -> Option<Self> {
        let all = BEHIND.lock();
        all.iter().find(|behind| ptr::eq(behind.stack.stack(), self.root.stack()))?.inner.clone()
    }

    /// Returns whether nobody has resumed it.
    pub(super) fn is_left(&self) -> bool {
        self.root.stack().lock().drain.as_ref().is_some_and(|drain| self.is(drain))
    }

    fn is(&self, drain: &Drain) -> bool {
        (drain.owner, drain.teardown) == (self.key, self.teardown)
    }

    /// Takes the drain, of this stack and of those nested in it, from the thread, and leaves what is further in behind it.
    pub(super) fn disown(&self, thread: ThreadKey, inner: Option<&Self>) {
        self.root.stack().disown(self.teardown, thread, self.key);
        if inner.is_none() || !self.is_left() {
            return;
        }
        let of = Some((self.teardown, self.key));
        leave_behind(&self.root, Vec::new(), inner, of);
        self.root.stack().visit_descendants(|node| {
            if node.stack.lock().drain.as_ref().is_some_and(|drain| self.is(drain)) {
                leave_behind(&Spot::Node(Arc::clone(node)), Vec::new(), inner, of);
            }
        });
    }

    /// Wakes the threads that wait for the drain of this stack, or of one nested in it.
    pub(super) fn wake_waiters(&self) {
        let wake = |stack: &SharedExitStack| {
            if let Some(drain) = stack.lock().drain.as_ref().filter(|drain| self.is(drain)) {
                drain.waiters.wake(&Waited::OwnerLeft(self.key));
            }
        };
        wake(self.root.stack());
        self.root.stack().visit_descendants(|node| wake(&node.stack));
    }
}

impl SharedExitStack {
    /// Does what was left behind for the drain of this stack, which is this teardown's. It is owned all the while: `exit` in
    /// the report hook counts as in one of its handlers, and what is resumed further in may come to it.
    #[cold]
    pub(super) fn catch_up(&self, teardown: usize) -> Result<(), Late> {
        let is_for_it = |behind: &Behind| ptr::eq(behind.stack.stack(), self);
        loop {
            let mut all = BEHIND.lock();
            let Some(behind) = all.iter_mut().find(|behind| is_for_it(behind)) else { return Ok(()) };
            let (untold, inner, of) = (mem::take(&mut behind.untold), behind.inner.clone(), behind.of);
            drop(all);
            untold.iter().for_each(report);
            if let Some(inner) = inner {
                if let Some(of) = of {
                    self.take_over(of, teardown);
                }
                inner.root.stack().report_all(); // who would get its result may never come back
                drop(inner.resume(None)?);
                self.skip_nothing_here();
            }
            // Not before: if this thread is given up in turn, the next one finds what is left.
            let done = BEHIND.lock().take_if(is_for_it);
            drop(done);
        }
    }

    /// Takes over the drains of all that is nested in this stack and that was given up together with this stack's own. So
    /// what is resumed further in finds them this thread's, as it would have found them that of the one that was given up.
    fn take_over(&self, of: (usize, ThreadKey), teardown: usize) {
        self.visit_descendants(|node| {
            let mut state = node.stack.lock();
            let Some(drain) = state.drain.as_mut().filter(|drain| (drain.teardown, drain.owner) == of) else {
                return;
            };
            (drain.owner, drain.teardown) = (ThreadKey::current(), teardown);
            drain.waiters.wake(&Waited::OwnerChanged);
            drop(state);
            let same = BEHIND.lock().take_if(|behind| ptr::eq(behind.stack.stack(), &raw const node.stack));
            drop(same); // what comes first here comes first there
        });
    }

    /// Lets the drains of this thread, here and in what is nested in this stack, wait for what it has skipped further in.
    fn skip_nothing_here(&self) {
        let me = ThreadKey::current();
        self.lock().skip_nothing_of(me);
        self.visit_descendants(|node| node.stack.lock().skip_nothing_of(me));
    }
}

/// Leaves something behind for the drain of a stack. No thread goes on with it yet.
pub(super) fn leave_behind(
    stack: &Spot,
    untold: Vec<HandlerError>,
    inner: Option<&Left>,
    of: Option<(usize, ThreadKey)>,
) {
    let mut behind = Link::new(Behind { stack: stack.clone(), untold, inner: inner.cloned(), of });
    let earlier = BEHIND.lock().take_if(|earlier| ptr::eq(earlier.stack.stack(), stack.stack()));
    for mut earlier in earlier {
        // Nobody has read it. What it says is still true.
        let behind = behind.value_mut();
        earlier.untold.append(&mut behind.untold);
        behind.untold = earlier.untold;
        if behind.inner.is_none() {
            (behind.inner, behind.of) = (earlier.inner, earlier.of);
        }
    }
    BEHIND.lock().push(behind);
}
