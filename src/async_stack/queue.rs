//! The handlers of an async stack, behind a lock. Both a stack and the handles of a scope register with it.
//!
//! No foreign code runs under the lock, the global allocator included: entries are packed, memory is allocated and
//! removed handlers are dropped outside of it.

use std::panic::Location;
use std::sync::Arc;

use once_cell::race::OnceBox;

use super::flight::Slot;
use crate::error::{HandlerError, HandlerErrorKind, Refused, Site};
use crate::handler::{PendingHandler, SendEntry};
use crate::list::{HandlerId, HandlerList, Storage};
use crate::raw::{Bound, Closure, Packed, Task};
use crate::report::report;
use crate::sync::{Lock, const_fn};

/// The handlers of an async stack, and the slot for its future in flight.
pub(crate) struct Queue<'a> {
    state: Lock<State<'a>>,
    /// Created for the first async handler.
    slot: OnceBox<Arc<Slot<'a>>>,
}

struct State<'a> {
    handlers: HandlerList<SendEntry<'a>>,
    door: Door,
    refused: Option<Refusals>,
}

/// Whether registrations are accepted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    /// Always: the queue of a stack, which can be used again after a drain.
    Open,
    /// Until a drain finds no handler: the queue of a scope.
    OpenUntilDrained,
    Closed,
}

/// The registrations that were refused.
struct Refusals {
    first: &'static Location<'static>,
    /// The number of refusals after the first.
    more: usize,
}

impl<'a> Queue<'a> {
    const_fn! {
        pub(crate) const fn new() -> Self {
            Self::with(Door::Open)
        }
    }

    pub(super) fn of_scope() -> Self {
        Self::with(Door::OpenUntilDrained)
    }

    const_fn! {
        const fn with(door: Door) -> Self {
            let state = State { handlers: HandlerList::new(), door, refused: None };
            Self { state: Lock::new(state), slot: OnceBox::new() }
        }
    }

    /// Appends a handler, or hands it back if the queue is closed.
    pub(crate) fn push<T: Task + Send + 'a>(
        &self,
        task: T,
        location: &'static Location<'static>,
    ) -> Result<HandlerId, Refused<T>> {
        let location = task.location().unwrap_or(location);
        let packed = Packed::new(task); // boxed, if it has to be, while no lock is held
        let mut state = self.state.lock();
        loop {
            if state.door == Door::Closed {
                drop(state);
                return Err(Refused::new(packed.unpack(), location));
            }
            if !state.handlers.is_full() {
                let closure = || Closure::<dyn Bound + Send + 'a>::new_send(packed);
                return Ok(state.handlers.push_with(|| SendEntry { closure: closure(), location }));
            }
            drop(state);
            self.reserve(1);
            state = self.state.lock();
        }
    }

    pub(crate) fn slot(&self) -> &Arc<Slot<'a>> {
        self.slot.get_or_init(|| Box::new(Arc::new(Slot::new())))
    }

    /// Returns the slot if a future is in it.
    pub(super) fn occupied_slot(&self) -> Option<&Slot<'a>> {
        self.slot.get().map(|slot| &**slot).filter(|slot| !slot.is_empty())
    }

    pub(crate) fn has_flight(&self) -> bool {
        self.occupied_slot().is_some()
    }

    pub(crate) fn reserve(&self, additional: usize) {
        loop {
            let wanted = self.state.lock().handlers.wanted(additional);
            let Some(capacity) = wanted else { return };
            let mut storage = Storage::with_capacity(capacity);
            self.state.lock().handlers.exchange(&mut storage);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.state.lock().handlers.len()
    }

    /// Returns a list of the handlers, the next to run first.
    pub(crate) fn pending(&self) -> Vec<PendingHandler> {
        let mut pending = Vec::new();
        loop {
            let state = self.state.lock();
            let count = state.handlers.len();
            if count <= pending.capacity() {
                pending.extend(state.handlers.iter().rev().map(|(id, entry)| entry.pending(id)));
                return pending;
            }
            drop(state);
            pending.reserve(count);
        }
    }

    /// Returns the list itself, for what needs the queue exclusively.
    pub(super) fn handlers(&mut self) -> &mut HandlerList<SendEntry<'a>> {
        &mut self.state.get_mut().handlers
    }

    /// Takes out the newest handler. If there is none, the queue of a scope is closed.
    pub(super) fn pop(&self) -> Option<(HandlerId, SendEntry<'a>)> {
        let mut state = self.state.lock();
        let newest = state.handlers.pop();
        if newest.is_none() && state.door == Door::OpenUntilDrained {
            state.door = Door::Closed; // under the same lock, so that no registration is lost in between
        }
        newest
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().door == Door::Closed
    }

    /// Frees the memory of a list without handlers.
    pub(super) fn release(&self) {
        let storage = self.state.lock().handlers.release();
        drop(storage); // where no lock is held
    }

    /// Counts a registration that was refused, and reports the first one. Returns an id that is unknown to every stack.
    #[cold]
    pub(super) fn refuse<T: Task>(&self, refused: &Refused<T>) -> HandlerId {
        let (name, location) = (refused.handler().name(), refused.location());
        let is_first = {
            let refused = &mut self.state.lock().refused;
            match refused {
                Some(refused) => refused.more += 1,
                None => *refused = Some(Refusals { first: location, more: 0 }),
            }
            refused.as_ref().is_some_and(|refused| refused.more == 0)
        };
        if is_first {
            let site = Site { name: name.cloned(), location };
            report(&HandlerError::new(None, site, HandlerErrorKind::Refused));
        }
        HandlerId::unknown()
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        if let Some(Refusals { first, more: more @ 1.. }) = self.state.get_mut().refused.take() {
            report(&HandlerError::more_refused(None, first, more));
        }
    }
}
