//! What is left behind where a handler was given up (see [`relief`](super::relief)): what comes before a drain goes on, on
//! whichever thread.
//!
//! The lock of what is left behind is taken alone.

use std::mem;
use std::ptr;
use std::sync::Arc;

use super::SharedExitStack;
use super::frames::{Late, set_run};
use super::lifecycle::Purpose;
use super::run::Spot;
use super::wait_graph::{Slot, ThreadKey, Waited};
use crate::chain::{Chain, Link};
use crate::error::{CloseError, HandlerError};
use crate::report::report;
use crate::sync::{PerProcess, global};

/// Something that a thread has to do before it goes on with a drain whose owner was given up, or that waited for a handler
/// which was.
pub(crate) struct Behind {
    /// The stack that drains.
    stack: Spot,
    what: What,
}

/// What has to be done.
pub(super) enum What {
    /// Report this failure.
    Untold(HandlerError),
    /// Resume this drain further in, or wait for it.
    First(Left),
    /// Publish what is nested in the stack and was given up in this teardown.
    Nested(usize),
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
    pub(super) fn resume_first(&self, slot: Option<Slot>) -> Result<(), Late> {
        self.root.stack().report_all(); // who would get its result may never come back
        self.resume(slot).map(drop)
    }

    fn is(&self, other: &Self) -> bool {
        (self.teardown, self.key) == (other.teardown, other.key)
    }

    /// Returns whether nobody has resumed it.
    pub(super) fn is_left(&self) -> bool {
        self.root.stack().lock().drain_of(self.teardown).is_some()
    }

    /// Takes the drain, of this stack and of those nested in it, from its thread, and leaves behind it what comes first.
    /// Returns false if another thread has resumed it; then whichever thread reaches those nested in it resumes them.
    pub(super) fn disown(&self, first: &[&Self]) -> bool {
        if !self.disown_at(self.root.stack()) {
            return false;
        }
        leave_first(&self.root, first);
        leave_behind(&self.root, What::Nested(self.teardown));
        self.root.stack().visit_descendants(|node| {
            if self.disown_at(&node.stack) {
                leave_first(&Spot::Node(Arc::clone(node)), first);
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

    /// Does this for what comes before it, too.
    pub(super) fn publish_all(self) {
        let mut all = vec![self];
        while let Some(left) = all.pop() {
            // Nobody has done that yet.
            if left.root.stack().lock().drain_of(left.teardown).is_some_and(|drain| drain.owner == left.key) {
                let first = |behind: &Behind| match &behind.what {
                    What::First(first) if behind.is_for(left.root.stack()) => Some(first.clone()),
                    _ => None,
                };
                let count = BEHIND.lock().len();
                all.reserve(count);
                all.extend(BEHIND.lock().iter().filter_map(first).take(count));
                left.publish();
            }
        }
    }
}

impl Behind {
    fn is_for(&self, stack: &SharedExitStack) -> bool {
        ptr::eq(self.stack.stack(), stack)
    }

    fn is_first(&self, stack: &SharedExitStack, is_it: impl FnOnce(&Left) -> bool) -> bool {
        self.is_for(stack) && matches!(&self.what, What::First(first) if is_it(first))
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

    /// Does what was left behind for the drain of this stack, in this teardown. This thread owns the drain all the while:
    /// `exit` in the report hook counts as in one of its handlers, and what is resumed further in may come to it.
    #[cold]
    pub(super) fn catch_up(&self, teardown: usize) -> Result<(), Late> {
        loop {
            let mut all = BEHIND.lock();
            let Some(next) = all.iter().find(|behind| behind.is_for(self)) else { return Ok(()) };
            if let What::First(first) = &next.what {
                let first = first.clone();
                drop(all);
                first.resume_first(None)?;
                self.skip_nothing_here();
                // Not before: if this thread is given up there, the next one finds it. It may have been given up, and
                // something else left behind: that is the next one's.
                let done = BEHIND.lock().take_if(|behind| behind.is_first(self, |other| other.is(&first)));
                drop(done);
                set_run(teardown, None)?;
                continue;
            }
            let mut is_next = true;
            let next = all.take_if(|behind| behind.is_for(self) && mem::take(&mut is_next));
            drop(all);
            for behind in next {
                match behind.what {
                    What::Untold(error) => report(&error),
                    // What is resumed further in may come to it.
                    What::Nested(of) => self.publish(of),
                    // Resumed above.
                    What::First(_) => {}
                }
            }
        }
    }

    /// Lets the drains of this thread, here and in what is nested in this stack, wait for what it has skipped further in.
    fn skip_nothing_here(&self) {
        let me = ThreadKey::current();
        self.lock().skip_nothing_of(me);
        self.visit_descendants(|node| node.stack.lock().skip_nothing_of(me));
    }
}

/// Leaves something behind for the drain of a stack, to be done before all that was left behind earlier.
pub(super) fn leave_behind(stack: &Spot, what: What) {
    let link = Link::new(Behind { stack: stack.clone(), what });
    BEHIND.lock().push(link);
}

/// Leaves drains further in behind that of a stack, the innermost first. Of one that was resumed and given up again, the
/// newest is kept: its first thread may be given up once more, by another watch.
pub(super) fn leave_first(stack: &Spot, first: &[&Left]) {
    for &left in first.iter().rev() {
        let link = Link::new(Behind { stack: stack.clone(), what: What::First(left.clone()) });
        let mut all = BEHIND.lock();
        let is_same = |earlier: &Left| ptr::eq(earlier.root.stack(), left.root.stack());
        let mut earlier = all.take_if(|behind| behind.is_first(stack.stack(), is_same));
        let is_newer = |behind: &Behind| behind.is_first(stack.stack(), |other| other.teardown > left.teardown);
        let newer = if earlier.iter().any(is_newer) { earlier.pop() } else { None };
        let (newest, other) = match newer {
            Some(newer) => (newer, Some(link)),
            None => (link, None),
        };
        all.push(newest);
        drop(all);
        drop((earlier, other)); // while nothing is locked
    }
}

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::super::wait_graph::Who;
    use super::super::{Node, Parent};
    use super::*;
    use crate::error::Outcome;

    #[test]
    fn of_a_drain_the_newest_is_left_behind() {
        let [outer, inner] = ["outer", "inner"].map(|name| Spot::Node(Node::new(name.into(), Parent::None)));
        let [oldest, first, again, resumed] = [1, 2, 2, 3].map(|teardown| {
            let (root, purpose, key) = (inner.clone(), Purpose::Finalize, ThreadKey::fresh());
            Left { root, purpose, teardown, key }
        });
        // Its owner has another key when the same teardown is given up again.
        for (left, newest) in [(&first, &first), (&oldest, &first), (&again, &again), (&resumed, &resumed)] {
            leave_first(&outer, &[left]);
            let all = BEHIND.lock();
            let of_outer: Vec<_> = all.iter().filter(|behind| behind.is_for(outer.stack())).collect();
            assert!(matches!(of_outer[..], [only] if only.is_first(outer.stack(), |left| left.is(newest))));
        }
        let left = BEHIND.lock().take_if(|behind| behind.is_for(outer.stack()));
        drop(left);
    }

    /// A thread that has resumed a drain further in may have skipped something there that it can wait for now. What another
    /// thread has skipped stays so.
    #[test]
    fn what_was_skipped_further_in_is_waited_for_again() {
        let outer = Node::new("outer".into(), Parent::None);
        let nested = |parent: &Arc<Node>| Node::new("nested".into(), Parent::Node(Arc::clone(parent)));
        let inner = nested(&outer);
        let innermost = nested(&inner);
        nested(&innermost).stack.register(|| ());
        let [me, other] = [ThreadKey::current(), ThreadKey::fresh()];

        // The thread of this drain was given up, and another goes on with it.
        let first = Node::new("first".into(), Parent::None);
        let nodes = [&outer, &inner, &innermost].map(Arc::clone);
        let all = nodes.clone();
        first.stack.register(move || {
            for (node, by) in all.iter().zip([me, me, other]) {
                node.stack.lock().children.newest_first().for_each(|child| child.skipped_by = Some(by));
            }
        });
        first.stack.acquire(Purpose::Finalize, Outcome::Success, 0, None, Who::Closer);
        let left = Left { root: Spot::Node(first), purpose: Purpose::Finalize, teardown: 0, key: ThreadKey::fresh() };
        assert!(left.disown(&[]));

        let root = Spot::Node(Arc::clone(&outer));
        leave_first(&root, &[&left]);
        assert!(outer.stack.catch_up(0).is_ok());
        let skipped = nodes.map(|node| node.stack.lock().children.newest_first().next().unwrap().skipped_by);
        assert_eq!(skipped, [None, None, Some(other)]);
        outer.stack.drain(Purpose::Finalize, Outcome::Success).unwrap();
    }

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
