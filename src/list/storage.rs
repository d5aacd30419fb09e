//! The memory of a list: how it grows, shrinks and is exchanged.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::mem::{self, ManuallyDrop};

use smallvec::SmallVec;

use super::{FIRST_BLOCK, HandlerId, HandlerList, INLINE, Slot, none};

/// Storage without values, which a list can [exchange](HandlerList::exchange) its own for.
pub(crate) struct Storage<T>(pub(super) Vec<Slot<T>>);

impl<T> Storage<T> {
    /// Creates storage for `capacity` values. If that many fit into the list itself, it has no memory, and the values
    /// move there.
    #[inline]
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(if capacity > INLINE { capacity } else { 0 }))
    }

    /// Creates storage for `capacity` values, or fails if there is no memory.
    pub(crate) fn try_with_capacity(capacity: usize) -> Result<Self, TryReserveError> {
        let mut storage = Self::with_capacity(0);
        if capacity > INLINE {
            storage.0.try_reserve_exact(capacity)?;
        }
        Ok(storage)
    }
}

impl<T> HandlerList<T> {
    /// Reserves room for `additional` more values, so that appending them does not allocate until values are removed.
    ///
    /// # Panics
    ///
    /// Panics if the capacity overflows. The list is unchanged then. If there is no memory, the process aborts, as with
    /// any collection.
    ///
    /// ```
    /// let mut list = exitstack::HandlerList::new();
    /// list.reserve(100);
    /// list.push("needs no memory");
    /// ```
    pub fn reserve(&mut self, additional: usize) {
        if let Some(capacity) = self.wanted(additional) {
            self.slots.grow(capacity);
        }
    }

    /// Tries to reserve room for `additional` more values, as [`reserve`](Self::reserve) does.
    ///
    /// # Errors
    ///
    /// Returns an error if the capacity overflows, or if the allocator has no memory. The list is unchanged then.
    ///
    /// ```
    /// let mut list = exitstack::HandlerList::new();
    /// list.try_reserve(100)?;
    /// list.push("needs no memory");
    /// assert!(list.try_reserve(usize::MAX).is_err());
    /// # Ok::<(), std::collections::TryReserveError>(())
    /// ```
    pub fn try_reserve(&mut self, additional: usize) -> Result<(), TryReserveError> {
        if let Some(capacity) = self.wanted(additional) {
            self.exchange(&mut Storage::try_with_capacity(capacity)?);
        }
        Ok(())
    }

    /// Returns the capacity to grow to, if there is no room for `additional` more values: a power of two, as if the
    /// list had grown by itself, unless more is needed.
    pub(crate) fn wanted(&self, additional: usize) -> Option<usize> {
        let used = self.slots.len();
        let needed = used.saturating_add(additional);
        (needed > self.slots.capacity()).then(|| needed.max((used + 1).next_power_of_two()).max(FIRST_BLOCK))
    }

    /// Returns the capacity to shrink to, if less than an eighth is in use.
    pub(crate) fn excess(&self) -> Option<usize> {
        let used = self.len().max(INLINE);
        (self.slots.capacity() / 8 > used).then_some(used)
    }

    /// Moves the values of a list that is full, but has no heap block yet, to this one, and appends a value. Hands both
    /// back if it is not such a list. For a list that is never used by another thread.
    #[inline]
    pub(crate) fn push_to_block(&mut self, block: Storage<T>, value: T) -> Result<HandlerId, (T, Storage<T>)> {
        if self.slots.spilled() || self.slots.len() != INLINE {
            return Err((value, block));
        }
        let id = Self::next_id_here();
        debug_assert!(self.last_id() < Some(id) && block.0.capacity() > INLINE);
        let mut slots = block.0;
        // One by one, which is faster here than what `exchange` does for every kind of list.
        slots.extend(self.slots.iter_mut().map(|slot| Slot { id: slot.id, value: slot.value.take() }));
        slots.push(Slot { id, value: Some(ManuallyDrop::new(value)) });
        self.slots = ManuallyDrop::new(SmallVec::from_vec(slots)); // what was inline needs no drop
        Ok(id)
    }

    /// Moves the values to `storage` and leaves the list's old storage there.
    ///
    /// Does nothing if the values do not fit. Nor does it do anything if the list would not grow and has no
    /// [excess](Self::excess), because another thread has exchanged it already.
    pub(crate) fn exchange(&mut self, storage: &mut Storage<T>) {
        let capacity = storage.0.capacity().max(INLINE);
        if self.len() > capacity || (capacity <= self.slots.capacity() && self.excess().is_none()) {
            return;
        }
        self.close_all_gaps();
        let old = mem::replace(&mut *self.slots, none());
        let mut new = mem::take(&mut storage.0);
        if old.spilled() {
            storage.0 = old.into_vec();
            if new.capacity() > 0 {
                new.append(&mut storage.0); // moves them all at once
                *self.slots = SmallVec::from_vec(new);
            } else {
                self.slots.extend(storage.0.drain(..));
            }
        } else {
            new.extend(old);
            *self.slots = SmallVec::from_vec(new);
        }
    }

    /// Frees the excess capacity. If there is no memory to move to, leaves that to a later call.
    pub(super) fn shrink(&mut self) {
        if let Some(capacity) = self.excess() {
            self.close_all_gaps();
            let _ = self.slots.try_grow(capacity);
        }
    }

    /// Takes the heap block of an empty list.
    #[inline]
    pub(crate) fn release(&mut self) -> Storage<T> {
        let mut storage = Storage(Vec::new());
        if self.slots.spilled() && self.slots.is_empty() {
            storage.0 = mem::replace(&mut *self.slots, none()).into_vec();
        }
        storage
    }
}
