//! How handlers get into a stack, and out of it without being run: which are accepted, what is counted, and where the
//! memory comes from.

use std::mem;
use std::panic::Location;
use std::sync::Arc;

use super::current::{late_budget, set_late_budget};
use super::lifecycle::{LateBudget, Lifecycle};
use super::{Node, Place, Refusals, SharedExitStack, State};
use crate::error::{HandlerError, HandlerErrorKind, Refused, Site};
use crate::handler::SharedEntry;
use crate::list::{Found, HandlerId, HandlerList, Storage};
use crate::raw::{Bound, Closure, Packed, Task};
use crate::report::report;
use crate::sync::MutexGuard;

impl State {
    /// Returns whether one more registration is accepted, and counts it. During a bounded drain it counts for the
    /// stack, whichever thread makes it, and for a thread in such a drain, whichever stack of a tree it registers with: a
    /// handler that keeps creating interpreters must not evade the limit.
    fn admits(&mut self) -> bool {
        let mut unlimited = LateBudget::new();
        let own = match &mut self.lifecycle {
            Lifecycle::Closed => return false,
            lifecycle => lifecycle.budget().unwrap_or(&mut unlimited),
        };
        let of_thread = late_budget();
        if own.is_spent() || of_thread.is_some_and(LateBudget::is_spent) {
            return false;
        }
        own.spend();
        set_late_budget(of_thread.map(|mut budget| {
            budget.spend();
            budget
        }));
        true
    }
}

impl SharedExitStack {
    /// Registers a handler, or hands it back if the stack refuses it.
    #[inline]
    pub(crate) fn admit<H: Task + Send + 'static>(
        &self,
        handler: H,
        location: &'static Location<'static>,
    ) -> Result<HandlerId, Refused<H>> {
        let location = handler.location().unwrap_or(location);
        let packed = Packed::new(handler); // boxed, if it has to be, while no lock is held
        let Some(mut state) = self.lock_to_admit() else { return Err(Refused::new(packed.unpack(), location)) };
        let entry = || SharedEntry { closure: Closure::<dyn Bound + Send>::new_send(packed), location };
        Ok(state.handlers.push_with(entry))
    }

    /// Locks the state for one registration, with room for it. Returns `None` if the stack refuses it.
    #[inline]
    pub(super) fn lock_to_admit(&self) -> Option<MutexGuard<'_, State>> {
        let state = self.lock();
        if state.ready && !state.handlers.is_full() && late_budget().is_none() {
            return Some(state);
        }
        drop(state);
        self.lock_slow()
    }

    #[cold]
    #[inline(never)]
    fn lock_slow(&self) -> Option<MutexGuard<'_, State>> {
        let mut state = self.lock();
        if !state.armed {
            drop(state);
            state = self.arm()?;
        }
        while state.handlers.is_full() {
            let fourfold = 3 * state.handlers.len(); // moving to another block is expensive, so do it rarely
            drop(state);
            self.make_room(fourfold.max(1));
            state = self.lock();
        }
        state.ready = matches!(state.lifecycle, Lifecycle::Open);
        // A value drains when its owner says so, not as part of a bounded drain.
        let is_free = matches!(self.place, Place::Value);
        (is_free || state.admits()).then_some(state)
    }

    /// Arranges for the stack to be drained at the end, and locks the state. Returns `None` if that is impossible.
    #[cold]
    fn arm(&self) -> Option<MutexGuard<'_, State>> {
        match &self.place {
            Place::Value => {}
            Place::Root(root) => {
                if !(root.arm)() {
                    return None;
                }
            }
            Place::Nested(node) => {
                if let Some(node) = node.upgrade() {
                    node.take_positions();
                }
            }
        }
        let mut state = self.lock();
        state.armed = true;
        Some(state)
    }

    /// Makes room for this many more handlers.
    pub(crate) fn make_room(&self, additional: usize) {
        loop {
            let wanted = self.lock().handlers.wanted(additional);
            let Some(capacity) = wanted else { return };
            let mut storage = Storage::with_capacity(capacity);
            self.lock().handlers.exchange(&mut storage);
        }
    }

    /// Frees the excess memory of the list. If there is no memory to move to, the list keeps what it has until next
    /// time.
    pub(super) fn shrink(&self) {
        let excess = self.lock().handlers.excess();
        if let Some(Ok(mut storage)) = excess.map(Storage::try_with_capacity) {
            self.lock().handlers.exchange(&mut storage);
        }
    }

    /// Takes out the handler with this id.
    pub(crate) fn take_out(&self, id: HandlerId) -> Option<SharedEntry> {
        let mut state = self.lock();
        let entry = state.handlers.take_out(id);
        let excess = state.handlers.excess();
        drop(state);
        if excess.is_some() {
            self.shrink();
        }
        entry
    }

    /// Takes out all handlers with these ids.
    pub(crate) fn take_out_all(&self, ids: &[HandlerId]) -> Found<SharedEntry> {
        let mut found = Found::with_capacity(ids.len());
        let mut state = self.lock();
        found.extend(ids.iter().filter_map(|id| state.handlers.take_out(*id)));
        drop(state);
        self.shrink();
        found
    }

    /// Takes out all handlers for which `matches` returns true.
    pub(crate) fn take_out_if(&self, matches: impl Fn(&SharedEntry) -> bool) -> Found<SharedEntry> {
        let mut found = Found::new();
        loop {
            let taken = self.lock().handlers.take_out_if(&mut found, &matches);
            match taken {
                Ok(()) => break,
                Err(count) => found.reserve(count),
            }
        }
        self.shrink();
        found
    }

    /// Collects what `pick` returns for each handler and its id, oldest first.
    pub(crate) fn collect<T>(&self, pick: impl Fn(HandlerId, &SharedEntry) -> Option<T>) -> Vec<T> {
        let mut picked = Vec::new();
        loop {
            let state = self.lock();
            let count = state.handlers.len();
            if count <= picked.capacity() {
                picked.extend(state.handlers.iter().filter_map(|(id, entry)| pick(id, entry)));
                return picked;
            }
            drop(state);
            picked.reserve(count);
        }
    }

    /// Returns the number of handlers.
    pub(crate) fn count(&self) -> usize {
        self.lock().handlers.len()
    }

    /// Takes out all handlers, together with the unused ids.
    pub(crate) fn take_all(&self) -> HandlerList<SharedEntry> {
        self.lock().handlers.take()
    }

    /// Sets the handlers of an empty stack that nothing else can reach yet.
    pub(crate) fn fill(&self, handlers: HandlerList<SharedEntry>) {
        self.lock().handlers = handlers;
    }

    /// Refuses all registrations from now on. For a stack that holds nothing.
    pub(super) fn refuse_all(&self) {
        self.lock().lifecycle = Lifecycle::Closed;
        self.note_closed();
    }

    /// Counts a registration that was refused, and reports the first one. Returns an id that is unknown to every stack.
    #[cold]
    pub(crate) fn refuse<H: Task>(&self, refused: &Refused<H>) -> HandlerId {
        let (name, location) = (refused.handler().name(), refused.location());
        let mut none_before = Some(Box::new(Refusals { first: location, path: None, more: 0 }));
        let before = match &mut self.lock().refused {
            Some(refused) => {
                refused.more += 1;
                Some(refused.more - 1)
            }
            refused @ None => {
                *refused = none_before.take();
                None
            }
        };
        match before {
            // The first refusal is reported at once, with the path of the stack.
            None => {
                let path = self.path();
                let mut shared = path.as_deref().map(Arc::from);
                if let Some(refused) = &mut self.lock().refused {
                    mem::swap(&mut refused.path, &mut shared);
                }
                let site = Site { name: name.cloned(), location };
                report(&HandlerError::new(path, site, HandlerErrorKind::Refused));
            }
            // The interpreter may never be dropped: then the root reports the count.
            Some(0) => {
                if let Some(node) = self.node() {
                    node.root().into_iter().for_each(|root| (root.note_refusals)(&node));
                }
            }
            // The root already knows: counting is enough.
            Some(_) => {}
        }
        HandlerId::unknown()
    }

    /// Reports how many registrations were refused beyond the first, and begins to count anew.
    pub(crate) fn report_refused(&self) {
        let counted = self.lock().refused.as_mut().map(|refused| {
            let Refusals { first, path, more } = &mut **refused;
            (*first, path.clone(), mem::take(more))
        });
        if let Some((first, path, more @ 1..)) = counted {
            report(&HandlerError::more_refused(path.as_deref().map(str::to_owned), first, more));
        }
    }
}

impl Node {
    /// Takes a position in its parent, after the interpreters around it have taken theirs, if they have none in this
    /// process.
    fn take_positions(self: Arc<Self>) {
        let mut without = Vec::new();
        let mut next = Some(self);
        while let Some(node) = next {
            let needs_none = node.parent_stack().is_none() || {
                let state = node.stack.lock();
                state.position.is_some() || matches!(state.lifecycle, Lifecycle::Closed)
            };
            if needs_none {
                break;
            }
            next = node.parent_node().cloned();
            without.push(node);
        }
        without.iter().rev().for_each(Self::take_position);
    }
}
