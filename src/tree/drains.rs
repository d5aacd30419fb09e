//! A drain that runs: whose it is, and what it has gathered. The tables are in [`tree`](super).

use std::mem;

use super::SharedExitStack;
use super::lifecycle::{Lifecycle, Purpose};
use super::relief::go_on_for;
use super::wait_graph::{DrainResult, Slot, ThreadKey, Waited, Waiters, Who, wait};
use crate::error::{ExitRequest, Failures, HandlerError, Outcome};
use crate::panics::discard;
use crate::report::report;

/// A drain that runs.
pub(super) struct Drain {
    pub(super) owner: ThreadKey,
    /// The teardown that began it, or resumed it: that one ends it.
    pub(super) teardown: usize,
    /// What has failed, except for what was merged.
    pub(super) failures: Failures,
    /// What the drain around this one has been told of already.
    pub(super) merged: Failures,
    /// Failures go to the report hook as they happen.
    pub(super) reports: bool,
    pub(super) waiters: Waiters,
}

/// What [`SharedExitStack::claim`] answers.
pub(super) enum Claim {
    /// The drain is this teardown's.
    Mine,
    /// This thread is in the drain, further up the call stack.
    AlreadyMine,
    /// Another thread runs it, in this teardown; the slot that was given, if any, is set when it ends.
    HeldBy(ThreadKey, usize),
    /// Nothing is left to drain.
    Settled,
}

/// What [`SharedExitStack::acquire`] answers.
pub(super) enum Acquired {
    /// This thread is to run what there is.
    Mine,
    /// This thread is in the drain, further up the call stack.
    AlreadyMine,
    /// Another thread's drain has ended.
    Ended(DrainResult),
    /// Another thread's drain goes on; a closer does not wait for it, for it waits for the closer.
    CycleBroken,
    /// Nothing is left to drain.
    Settled,
    /// This thread was given up.
    Late,
}

impl Drain {
    /// Lets another owner have the drain, if this thread owns it in this teardown.
    pub(super) fn disown(&mut self, teardown: usize, thread: ThreadKey, key: ThreadKey) {
        if (self.owner, self.teardown) == (thread, teardown) {
            self.owner = key;
        }
    }

    /// Takes out who waits for it, if that is the owner.
    pub(super) fn waiters_of(&mut self, owner: ThreadKey) -> Option<Waiters> {
        (self.owner == owner).then(|| mem::take(&mut self.waiters))
    }
}

impl SharedExitStack {
    /// Makes the drain of this stack this teardown's, or waits for the thread whose it is.
    #[inline]
    pub(super) fn acquire(&self, purpose: Purpose, outcome: Outcome, teardown: usize, who: Who) -> Acquired {
        let (mut slot, mut left) = (None, None);
        loop {
            let (owner, theirs) = match self.claim(purpose, outcome, teardown, left, slot.as_mut()) {
                Claim::Mine => return Acquired::Mine,
                Claim::AlreadyMine => return Acquired::AlreadyMine,
                Claim::Settled => return Acquired::Settled,
                Claim::HeldBy(owner, theirs) => (owner, theirs),
            };
            let Some(waiting) = slot.take() else {
                slot = Some(Slot::new()); // not under the lock
                continue;
            };
            let waited = wait(owner, theirs, &waiting, who);
            discard(waiting); // it may hold the last of a user's error
            match waited {
                Waited::Ended(result) => return Acquired::Ended(result),
                Waited::CycleBroken => return Acquired::CycleBroken,
                // The other thread stays the owner; this one runs what there is.
                Waited::TakeOver => return Acquired::Mine,
                Waited::OwnerLeft(owner) => {
                    if go_on_for(owner).is_err() {
                        return Acquired::Late;
                    }
                    left = Some(owner);
                }
            }
        }
    }

    /// Makes the drain of this stack this teardown's, or says whose it is. The drain of the thread that has `left` is resumed.
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
        if state.is_settled() {
            return Claim::Settled;
        }
        state.lifecycle.begin(purpose);
        state.ready &= matches!(state.lifecycle, Lifecycle::Open);
        let Some(drain) = &mut state.drain else {
            let (failures, merged) = (Failures::default(), Failures::default());
            let (reports, waiters) = (purpose.reports(), Waiters::default());
            // What has closed it as failed has failed, though a handler that it skipped is still to be waited for.
            if !matches!(state.lifecycle, Lifecycle::Closed) {
                state.outcome = outcome;
            }
            state.drain = Some(Drain { owner: me, teardown, failures, merged, reports, waiters });
            // What an earlier drain skipped is waited for by this one.
            state.children.newest_first().for_each(|child| child.skipped_by = None);
            state.out_of_turn.iter_mut().for_each(|handler| handler.skipped_by = None);
            return Claim::Mine;
        };
        let (mut abandoned, mut waiters) = (None, None);
        let claim = if left == Some(drain.owner) {
            (drain.owner, drain.teardown) = (me, teardown);
            waiters = Some(mem::take(&mut drain.waiters));
            Claim::Mine
        } else if drain.owner == me {
            Claim::AlreadyMine
        } else {
            abandoned = slot.map(|slot| drain.waiters.add(slot));
            Claim::HeldBy(drain.owner, drain.teardown)
        };
        drop(state);
        drop(abandoned);
        if let Some((waiters, left)) = waiters.zip(left) {
            waiters.wake(&Waited::OwnerLeft(left)); // so that each waits for this thread, and sees a cycle with it
        }
        if purpose.exits() {
            self.report_all();
        }
        claim
    }

    /// Reports what the drain that runs has gathered, and lets it report from now on. The process may exit before the caller
    /// of `close()` sees these failures.
    #[cold]
    pub(super) fn report_all(&self) {
        let mut errors = Vec::new();
        loop {
            let mut state = self.lock();
            let Some(drain) = &mut state.drain else { return };
            drain.reports = true;
            let count = drain.failures.len();
            if count <= errors.capacity() {
                errors.extend(drain.failures.errors().cloned());
                break;
            }
            drop(state);
            errors.reserve(count);
        }
        errors.iter().rev().for_each(report);
        discard(errors);
    }

    /// Adds to what the drain of this stack has gathered. Returns whether it reports.
    pub(super) fn gather(&self, failures: Failures) -> bool {
        let mut state = self.lock();
        let Some(drain) = &mut state.drain else {
            drop(state);
            discard(failures); // nobody will ask for them
            return true;
        };
        let reports = drain.reports;
        let emptied = drain.failures.merge(failures);
        drop(state);
        drop(emptied);
        reports
    }

    /// Adds to what the drain of this stack has gathered, and reports it if that drain reports.
    pub(super) fn gather_and_report(&self, failures: Failures, error: Option<&HandlerError>) {
        if self.gather(failures) {
            error.into_iter().for_each(report);
        }
    }

    /// Records an exit status with the drain that runs.
    pub(crate) fn request_exit(&self, request: ExitRequest) {
        self.gather(Failures::exit(request));
    }

    /// Whether this thread is in a handler of this stack's drain, or of one nested in it.
    pub(crate) fn is_drained_here(&self) -> bool {
        self.lock().drain.as_ref().is_some_and(|drain| drain.owner == ThreadKey::current())
    }
}
