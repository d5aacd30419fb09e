//! How an async stack drains: the one drain loop, left when a future is pending and entered again by the next poll.

use std::mem;
use std::task::{Poll, Waker};

use super::flight::{Advance, Flight};
use super::queue::Queue;
use crate::drain::{HandlerOutcome, Source, drain};
use crate::error::{CloseError, Failures, HandlerError, HandlerErrorKind, Outcome};
use crate::handler::{Entry, PendingHandler, SendEntry};
use crate::panics::discard;
use crate::raw::{Bound, Closure, Packed};
use crate::report::report;
use crate::stack::keep_or_report;

/// What a drain remembers from one poll to the next, and from a `close()` that was dropped to the one that resumes it.
#[derive(Default)]
pub(super) struct Teardown {
    /// The outcome that the drain began with; `None` if there is no drain.
    outcome: Option<Outcome>,
    /// The handler that began last. It is in flight if there is a future in the slot.
    latest: Option<PendingHandler>,
    /// The failures so far that were neither returned nor reported.
    failures: Failures,
}

/// What becomes of the failures of a drain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Failing {
    /// They are returned at the end.
    Returned,
    /// Each is reported as it happens.
    Reported,
}

impl Teardown {
    pub(super) const fn new() -> Self {
        Self { outcome: None, latest: None, failures: Failures::none() }
    }

    /// Drains until a future is pending or nothing is left.
    pub(super) fn poll(
        &mut self,
        queue: &Queue<'_>,
        waker: &Waker,
        outcome: Outcome,
        failing: Failing,
    ) -> Poll<Result<(), CloseError>> {
        let outcome = *self.outcome.get_or_insert(outcome);
        let failures = (failing == Failing::Returned).then_some(&mut self.failures);
        let latest = &mut self.latest;
        drain(&mut Polling { queue, waker, outcome, latest, failures, lent: None, polled: false });
        if queue.has_flight() {
            return Poll::Pending;
        }
        self.outcome = None;
        self.latest = None;
        queue.release();
        Poll::Ready(mem::take(&mut self.failures).into_result())
    }

    /// Returns whether there is nothing to resume or to return.
    pub(super) fn is_idle(&self) -> bool {
        self.outcome.is_none() && self.failures.is_empty()
    }

    /// Ends a drain of which no handler is left: what is registered from now on has an outcome of its own. The failures
    /// so far stay.
    pub(super) fn end_if_empty(&mut self, queue: &Queue<'_>) {
        if queue.len() == 0 && !queue.has_flight() {
            self.outcome = None;
        }
    }

    /// Returns the handler that began last. It counts only while a future is in flight.
    pub(super) fn latest(&self) -> Option<&PendingHandler> {
        self.latest.as_ref()
    }

    /// Takes out the future in flight, which the caller drops, and returns it with the failure that this counts as.
    fn ground<'a>(&mut self, queue: &Queue<'a>) -> Option<(Flight<'a>, HandlerError)> {
        let future = queue.occupied_slot()?.take()?;
        let site = self.latest.as_ref()?.site().clone();
        Some((future, HandlerError::new(None, site, HandlerErrorKind::Cancelled)))
    }

    /// Drops the future in flight, whose handler has failed then.
    pub(super) fn cancel_in_flight(&mut self, queue: &Queue<'_>) -> bool {
        let Some((future, error)) = self.ground(queue) else { return false };
        drop(self.failures.merge(Failures::failure(error)));
        self.end_if_empty(queue);
        drop(future); // may panic: everything else is done
        true
    }

    /// Ends everything at once, without a task to be woken: reports what no `close()` has returned, drops the future in
    /// flight, runs the handlers that are not async, and drops the others.
    pub(super) fn abandon(&mut self, queue: &Queue<'_>) {
        if let Err(unreturned) = mem::take(&mut self.failures).into_result() {
            unreturned.iter().for_each(report);
        }
        queue.slot().abandon(); // also for handlers that other handlers are yet to register
        if let Some((future, error)) = self.ground(queue) {
            report(&error);
            discard(future);
        }
        self.outcome = None; // the outcome that a `close()` began with: it was not completed
        let drained = self.poll(queue, Waker::noop(), Outcome::Failure, Failing::Reported);
        debug_assert!(drained.is_ready());
    }
}

/// The entries of an async stack, as the source of a drain that lasts for one poll.
struct Polling<'p, 'a> {
    queue: &'p Queue<'a>,
    waker: &'p Waker,
    outcome: Outcome,
    latest: &'p mut Option<PendingHandler>,
    failures: Option<&'p mut Failures>,
    lent: Option<SendEntry<'p>>,
    /// Whether the future in flight was polled: if it is still there, it is pending.
    polled: bool,
}

impl<'p, 'a: 'p> Source<dyn Bound + Send + 'p> for Polling<'p, 'a> {
    type Work = Outcome;

    fn next(&mut self) -> Option<(&mut SendEntry<'p>, &Outcome)> {
        let next = match (self.queue.occupied_slot(), &*self.latest) {
            // The future is pending. The task is woken when there is more to do.
            (Some(_), _) if self.polled => return None,
            // A future is in flight: poll it, once in this drain.
            (Some(slot), Some(latest)) => {
                self.polled = true;
                let closure =
                    Closure::<dyn Bound + Send + 'p>::new_send(Packed::new(Advance { slot, waker: self.waker }));
                Entry { closure, location: latest.location() }
            }
            // No future is in flight: the next handler's turn has come.
            _ => {
                self.polled = false;
                let (id, entry) = self.queue.pop()?;
                *self.latest = Some(entry.pending(id));
                entry
            }
        };
        self.lent = Some(next);
        self.lent.as_mut().map(|entry| (entry, &self.outcome))
    }

    fn note(&mut self, outcome: HandlerOutcome) {
        // A future fails under the name of the handler that returned it, which the entry that polls it does not have.
        let outcome = match &*self.latest {
            Some(latest) => outcome.at(latest.site().clone()),
            None => outcome,
        };
        keep_or_report(outcome, self.failures.as_deref_mut());
    }
}
