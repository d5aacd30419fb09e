//! What is left behind where a handler was given up (see [`relief`](super::relief)): what comes before a drain goes on, on
//! whichever thread.
//!
//! The lock of what is left behind is taken alone.

use std::mem;
use std::ptr;
use std::sync::Arc;

use super::SharedExitStack;
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
    /// The teardown in which the drain was given up, if it was.
    of: Option<usize>,
}

global! {
    static BEHIND: PerProcess<Chain<Behind>> = PerProcess::new(Chain::new());
}

/// A drain whose thread was given up.
#[derive(Clone)]
pub(super) struct Left {
    pub(super) root: Spot,
    pub(super) purpose: Purpose,
    /// The teardown in which it was given up. Whoever resumes the drain gives it another one.
    pub(super) teardown: usize,
    /// The owner that it has until it is published or resumed.
    pub(super) key: ThreadKey,
}

impl Left {
    /// Resumes the drain, or waits for the thread that has, at this slot if there is one.
    pub(super) fn resume(&self, slot: Option<Slot>) -> Result<Result<(), CloseError>, Late> {
        self.root.stack().resume(self.purpose, Some(self.key), slot)
    }

    /// Does the same for the sake of a drain further out.
    pub(super) fn resume_first(&self) -> Result<(), Late> {
        self.root.stack().report_all(); // who would get its result may never come back
        self.resume(None).map(drop)
    }

    /// Returns the drain further in that comes before this one.
    pub(super) fn further_in(&self) -> Option<Self> {
        let all = BEHIND.lock();
        all.iter().find(|behind| ptr::eq(behind.stack.stack(), self.root.stack()))?.inner.clone()
    }

    /// Returns whether nobody has resumed it.
    pub(super) fn is_left(&self) -> bool {
        self.root.stack().lock().drain_of(self.teardown).is_some()
    }

    /// Takes the drain, of this stack and of those nested in it, from its thread, and leaves what is further in behind it.
    /// Returns false if another thread has resumed it; then whichever thread reaches those nested in it resumes them.
    pub(super) fn disown(&self, inner: Option<&Self>) -> bool {
        if !self.disown_at(self.root.stack()) {
            return false;
        }
        leave_behind(&self.root, Vec::new(), inner, Some(self.teardown));
        self.root.stack().visit_descendants(|node| {
            if self.disown_at(&node.stack) && inner.is_some() {
                leave_behind(&Spot::Node(Arc::clone(node)), Vec::new(), inner, Some(self.teardown));
            }
        });
        true
    }

    fn disown_at(&self, stack: &SharedExitStack) -> bool {
        stack.lock().drain_of(self.teardown).map(|drain| drain.owner = self.key).is_some()
    }

    /// Lets whichever thread reaches the drain, of this stack or of one nested in it, resume that.
    pub(super) fn publish(&self) {
        self.root.stack().publish(self.teardown);
    }
}

impl SharedExitStack {
    /// Lets whichever thread reaches a drain that was given up in this teardown, here or nested in this stack, resume it.
    fn publish(&self, teardown: usize) {
        let publish = |stack: &Self| {
            if let Some(drain) = stack.lock().drain_of(teardown) {
                drain.owner = ThreadKey::NOBODY;
                drain.waiters.wake(&Waited::OwnerChanged);
            }
        };
        publish(self);
        self.visit_descendants(|node| publish(&node.stack));
    }

    /// Does what was left behind for the drain of this stack. This thread owns that all the while: `exit` in the report hook
    /// counts as in one of its handlers, and what is resumed further in may come to it.
    #[cold]
    pub(super) fn catch_up(&self) -> Result<(), Late> {
        let is_for_it = |behind: &Behind| ptr::eq(behind.stack.stack(), self);
        loop {
            let mut all = BEHIND.lock();
            let Some(behind) = all.iter_mut().find(|behind| is_for_it(behind)) else { return Ok(()) };
            let (untold, inner, of) = (mem::take(&mut behind.untold), behind.inner.clone(), behind.of);
            drop(all);
            untold.iter().for_each(report);
            if let Some(of) = of {
                self.publish(of); // what is nested here: what is resumed further in may come to it
            }
            if let Some(inner) = inner {
                inner.resume_first()?;
                self.skip_nothing_here();
            }
            // Not before: if this thread is given up in turn, the next one finds what is left.
            let done = BEHIND.lock().take_if(is_for_it);
            drop(done);
        }
    }

    /// Lets the drains of this thread, here and in what is nested in this stack, wait for what it has skipped further in.
    fn skip_nothing_here(&self) {
        let me = ThreadKey::current();
        self.lock().skip_nothing_of(me);
        self.visit_descendants(|node| node.stack.lock().skip_nothing_of(me));
    }
}

/// Leaves something behind for the drain of a stack. No thread goes on with it yet.
pub(super) fn leave_behind(stack: &Spot, untold: Vec<HandlerError>, inner: Option<&Left>, of: Option<usize>) {
    let mut behind = Link::new(Behind { stack: stack.clone(), untold, inner: inner.cloned(), of });
    let earlier = BEHIND.lock().take_if(|earlier| ptr::eq(earlier.stack.stack(), stack.stack()));
    for mut earlier in earlier {
        // Nobody has read it. What it says is still true.
        let behind = behind.value_mut();
        earlier.untold.append(&mut behind.untold);
        behind.untold = earlier.untold;
        behind.inner = behind.inner.take().or(earlier.inner);
        behind.of = behind.of.or(earlier.of);
    }
    BEHIND.lock().push(behind);
}

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_left_behind_does_not_add_up() {
        const TIMES: usize = 20;
        let before = BEHIND.lock().len();
        for _ in 0..TIMES {
            let (release, released) = channel::<()>();
            let plugin = crate::Interpreter::detached("plugin");
            plugin.stack().register(move || _ = released.recv());
            let limits = crate::shutdown::Limits::new().each(Duration::from_millis(1));
            assert!(plugin.finalize_within(&limits).result().is_err());
            drop(release);
        }
        assert!(BEHIND.lock().len() < before + TIMES / 2); // other tests add some, too
    }
}
