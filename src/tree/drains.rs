//! A drain that runs: who owns it, and what has failed in it. The tables are in [`tree`](super).

use super::lifecycle::{Lifecycle, Purpose};
use super::wait_graph::{DrainResult, Slot, ThreadKey, Waited, Waiters, Who, wait};
use super::{SharedExitStack, State};
use crate::error::{Errors, ExitRequest, Failures, HandlerError, Outcome, in_order};
use crate::report::report;

/// A drain that runs.
pub(super) struct Drain {
    pub(super) owner: ThreadKey,
    /// The teardown that began it or last resumed it, which is the one to end it.
    pub(super) teardown: usize,
    /// The failures and exit requests that are not in `merged`.
    pub(super) failures: Failures,
    /// Those that were merged into the drain around this one already.
    pub(super) merged: Failures,
    /// Why it runs: whether failures go to the report hook as they happen, and whether the exit status that is requested
    /// in it counts. Both do once a thread that ends the process comes to it or leaves it, even if a closer resumes it.
    pub(super) purpose: Purpose,
    pub(super) waiters: Waiters,
}

/// The answer of [`SharedExitStack::claim`].
pub(super) enum Claim {
    /// The drain is this teardown's.
    Mine,
    /// This thread is in the drain, further up the call stack.
    AlreadyMine,
    /// This other thread owns it, in the teardown with this number. The slot passed to `claim`, if any, is set when the
    /// drain ends.
    HeldBy(ThreadKey, usize),
    /// Nothing is left to drain, or the drain that the thread waited for or came to resume is over.
    Over,
}

/// The answer of [`SharedExitStack::acquire`].
pub(super) enum Acquired {
    /// This thread runs the drain, or what is left of it, after it has [caught up](SharedExitStack::catch_up).
    Mine,
    /// This thread is in the drain, further up the call stack.
    AlreadyMine,
    /// Another thread's drain has ended.
    Ended(DrainResult),
    /// Another thread's drain goes on, and this closer does not wait for it, because it waits for the closer.
    CycleBroken,
    /// Nothing is left to drain.
    Settled,
}

impl State {
    /// Notes that the stack is asked to drain.
    #[inline]
    fn begin(&mut self, purpose: Purpose) {
        self.lifecycle.begin(purpose);
        self.ready &= matches!(self.lifecycle, Lifecycle::Open);
    }

    /// Returns the drain, if it is this teardown's: nobody else has resumed it.
    pub(super) fn drain_of(&mut self, teardown: usize) -> Option<&mut Drain> {
        self.drain.as_mut().filter(|drain| drain.teardown == teardown)
    }

    /// Lets the drain wait for what an earlier one skipped.
    fn skip_nothing(&mut self) {
        self.skipped().for_each(|by| *by = None);
    }

    /// Lets the drain wait for what this thread has skipped.
    pub(super) fn skip_nothing_of(&mut self, thread: ThreadKey) {
        self.skipped().for_each(|by| *by = by.filter(|by| *by != thread));
    }

    fn skipped(&mut self) -> impl Iterator<Item = &mut Option<ThreadKey>> {
        let children = self.children.newest_first().map(|child| &mut child.skipped_by);
        children.chain(self.out_of_turn.iter_mut().map(|handler| &mut handler.skipped_by))
    }
}

impl SharedExitStack {
    /// Claims the drain of this stack for this teardown, or waits for the thread that owns it, unless that one has `left`.
    #[inline]
    pub(super) fn acquire(
        &self,
        purpose: Purpose,
        outcome: Outcome,
        teardown: usize,
        left: Option<ThreadKey>,
        who: Who,
    ) -> Acquired {
        match self.claim(purpose, outcome, teardown, left, None) {
            // Nobody's until now, or of the thread that has left.
            Claim::Mine => Acquired::Mine,
            // A thread that waited for itself would block forever.
            Claim::AlreadyMine => Acquired::AlreadyMine,
            // Nothing is left of it.
            Claim::Over => Acquired::Settled,
            // The only case in which to wait, at a slot that is allocated while no lock is held.
            Claim::HeldBy(..) => self.acquire_at(Slot::new(), purpose, outcome, teardown, left, who),
        }
    }

    /// Does what [`acquire`](Self::acquire) does, and waits at this slot. If that was added to a drain, it is this drain
    /// that is claimed.
    #[cold]
    pub(super) fn acquire_at(
        &self,
        mut slot: Slot,
        purpose: Purpose,
        outcome: Outcome,
        teardown: usize,
        mut left: Option<ThreadKey>,
        who: Who,
    ) -> Acquired {
        loop {
            let (owner, theirs) = match self.claim(purpose, outcome, teardown, left, Some(&mut slot)) {
                // Left by the thread that this one waited for, or nobody's by now.
                Claim::Mine => return Acquired::Mine,
                Claim::AlreadyMine => return Acquired::AlreadyMine,
                // Another thread has run everything while this one did not look.
                Claim::Over if slot.is_added() => return Acquired::Ended(slot.result()),
                Claim::Over => return Acquired::Settled,
                Claim::HeldBy(owner, theirs) => (owner, theirs),
            };
            let waited = wait(owner, theirs, &slot, who);
            slot.reset();
            match waited {
                // The owner has run everything.
                Waited::Ended(result) => return Acquired::Ended(result),
                // The owner waits for this closer: both can go on once it returns.
                Waited::CycleBroken => return Acquired::CycleBroken,
                // The owner waits for this thread, so this one runs what is left. The other stays the owner.
                Waited::TakeOver => return Acquired::Mine,
                // The owner never comes back: its drain can be claimed.
                Waited::OwnerLeft(owner) => left = Some(owner),
                // It has another owner.
                Waited::OwnerChanged => {}
            }
        }
    }

    /// Claims the drain of this stack for this teardown, or says who owns it. A drain owned by the thread that has
    /// `left` is resumed.
    #[inline]
    fn claim(
        &self,
        purpose: Purpose,
        outcome: Outcome,
        teardown: usize,
        left: Option<ThreadKey>,
        slot: Option<&mut Slot>,
    ) -> Claim {
        let me = ThreadKey::current();
        let mut state = self.lock();
        let was_added = slot.as_ref().filter(|slot| slot.is_added());
        let is_over = match &state.drain {
            Some(drain) => was_added.is_some_and(|slot| !drain.waiters.has(slot)),
            None => was_added.is_some() || left.is_some() || state.is_settled(),
        };
        if is_over {
            return Claim::Over;
        }
        state.begin(purpose);
        let Some(drain) = &mut state.drain else {
            let (failures, merged) = (Failures::default(), Failures::default());
            let waiters = Waiters::default();
            // A stack that is closed keeps its outcome: this drain only waits for a handler that an earlier one
            // skipped.
            if !matches!(state.lifecycle, Lifecycle::Closed) {
                state.outcome = outcome;
            }
            state.drain = Some(Drain { owner: me, teardown, failures, merged, purpose, waiters });
            state.skip_nothing();
            return Claim::Mine;
        };
        if purpose.exits() {
            drain.purpose = purpose;
        }
        let mut abandoned = None;
        let claim = if drain.owner == ThreadKey::NOBODY || left == Some(drain.owner) {
            (drain.owner, drain.teardown) = (me, teardown);
            drain.waiters.wake(&Waited::OwnerChanged); // each waits for this thread instead, and sees a cycle with it
            state.skip_nothing(); // this thread may have passed something in a drain further in
            Claim::Mine
        } else if drain.owner == me {
            Claim::AlreadyMine
        } else {
            abandoned = slot.map(|slot| drain.waiters.add(slot));
            Claim::HeldBy(drain.owner, drain.teardown)
        };
        drop(state);
        drop(abandoned);
        if purpose.exits() {
            self.report_all();
        }
        claim
    }

    /// Reports the failures of the running drain, in the order in which they happened, and makes it report later ones as
    /// they happen. The process may exit before the caller of `close()` sees them.
    #[cold]
    pub(super) fn report_all(&self) {
        in_order(self.leave_unattended()).iter().for_each(report);
    }

    /// Makes the running drain report failures as they happen, as nobody waits for its result any more. Returns those so
    /// far.
    #[cold]
    pub(crate) fn leave_unattended(&self) -> Errors {
        let mut errors = Errors::new();
        loop {
            let mut state = self.lock();
            let Some(drain) = &mut state.drain else { return errors };
            drain.purpose = drain.purpose.unattended();
            let count = drain.failures.len();
            if count <= errors.capacity() {
                drain.failures.copy_to(&mut errors);
                return errors;
            }
            drop(state);
            errors.reserve(count);
        }
    }

    /// Adds failures to the drain of this stack. Returns whether they have to be reported.
    pub(super) fn gather(&self, failures: Failures) -> bool {
        let mut state = self.lock();
        let Some(drain) = &mut state.drain else {
            drop(state);
            return true; // no drain will return them
        };
        let reports = drain.purpose.reports();
        let emptied = drain.failures.merge(failures);
        drop(state);
        drop(emptied);
        reports
    }

    /// Adds failures to the drain of this stack, and reports `error` if that drain reports.
    pub(super) fn gather_and_report(&self, failures: Failures, error: Option<&HandlerError>) {
        if self.gather(failures) {
            error.into_iter().for_each(report);
        }
    }

    /// Adds a request for an exit status to the running drain.
    pub(crate) fn request_exit(&self, request: ExitRequest) {
        self.gather(Failures::exit(request));
    }

    /// Notes that this thread ends the process, and is about to leave the drains that it is in. These are bounded from now
    /// on.
    pub(crate) fn note_exit_here(&self) {
        let me = ThreadKey::current();
        let note = |stack: &Self| {
            let mut state = stack.lock();
            let Some(drain) = state.drain.as_mut().filter(|drain| drain.owner == me) else { return };
            drain.purpose = Purpose::BeforeExit;
            state.begin(Purpose::BeforeExit);
        };
        note(self);
        self.visit_descendants(|node| note(&node.stack));
    }

    /// Returns whether this thread owns this stack's drain, and so is in one of its handlers or of those nested in it.
    pub(crate) fn is_drained_here(&self) -> bool {
        self.lock().drain.as_ref().is_some_and(|drain| drain.owner == ThreadKey::current())
    }
}

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use std::sync::Arc;

    use super::super::{Node, Parent};
    use super::*;

    /// The thread comes back late to a drain that nobody has resumed: what it skipped may wait for it no longer.
    #[test]
    fn a_drain_that_its_thread_resumes_waits_for_what_that_skipped() {
        let outer = Node::new("outer".into(), Parent::None);
        let inner = Node::new("inner".into(), Parent::Node(Arc::clone(&outer)));
        inner.stack.register(|| ());
        let claim = |teardown| outer.stack.claim(Purpose::Close, Outcome::Success, teardown, None, None);
        assert!(matches!(claim(0), Claim::Mine));
        let mut state = outer.stack.lock();
        state.skipped().for_each(|by| *by = Some(ThreadKey::current()));
        state.drain.as_mut().unwrap().owner = ThreadKey::NOBODY;
        drop(state);
        assert!(matches!(claim(1), Claim::Mine));
        assert_eq!(outer.stack.lock().skipped().map(|by| *by).collect::<Vec<_>>(), [None]);
        outer.stack.lock().drain = None;
        outer.stack.drain(Purpose::Finalize, Outcome::Success).unwrap();
    }

    /// A thread that comes for a drain which is over, to resume it or because it has waited for it, begins no other one.
    #[test]
    fn who_comes_for_a_drain_begins_no_other() {
        fn claim(stack: &SharedExitStack, left: Option<ThreadKey>, slot: Option<&mut Slot>) -> Claim {
            stack.claim(Purpose::Close, Outcome::Success, 0, left, slot)
        }
        let node = Node::new("node".into(), Parent::None);
        node.stack.register(|| ());
        let stack = &node.stack;
        assert!(matches!(claim(stack, Some(ThreadKey::fresh()), None), Claim::Over));

        let mut slot = Slot::new();
        assert!(matches!(claim(stack, None, None), Claim::Mine));
        stack.lock().drain.as_mut().unwrap().owner = ThreadKey::fresh();
        assert!(matches!(claim(stack, None, Some(&mut slot)), Claim::HeldBy(..)));
        stack.lock().drain = None;
        assert!(matches!(claim(stack, None, Some(&mut slot)), Claim::Over));

        assert!(matches!(claim(stack, None, None), Claim::Mine));
        stack.lock().drain = None;
        stack.drain(Purpose::Finalize, Outcome::Success).unwrap();
    }
}
