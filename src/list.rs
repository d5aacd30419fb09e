//! The list of handlers: append-only, with stable ids.
//!
//! **Storage.** One [`SmallVec`]: up to [`INLINE`] values are stored in the list itself, more than that in a heap
//! block, which initially has room for [`FIRST_BLOCK`].
//!
//! **Slots have no drop glue.** A slot keeps its value in a [`ManuallyDrop`], so the compiler sees nothing to drop.
//! This makes two things cheap:
//!
//! - A drain consumes the values in place. One store then empties the list, without looking at any slot again.
//! - A value on its way into the list needs no cleanup if something unwinds. The compiler therefore writes a closure
//!   straight to its slot instead of building it elsewhere and copying it.
//!
//! In return, the list has to drop the values that are left in it. A mistake here would leak a value and do no other
//! harm: all of this is safe code.
//!
//! **Behind a lock.** The global allocator is foreign code, so it is not called under a lock, or a borrow. These neither
//! allocate nor free: [`push_with`](HandlerList::push_with) unless the list [is full](HandlerList::is_full),
//! [`push_here`](HandlerList::push_here), [`push_to_block`](HandlerList::push_to_block),
//! [`pop_to`](HandlerList::pop_to), [`take_out`](HandlerList::take_out), [`take_out_if`](HandlerList::take_out_if),
//! [`take`](HandlerList::take), [`append`](HandlerList::append) if the list does not [want](HandlerList::wanted) room
//! for it, and [`release`](HandlerList::release). When the list has to grow or should shrink, the owner of the lock
//! creates a [`Storage`] first, [exchanges](HandlerList::exchange) the list's own for it under the lock, and drops that
//! afterwards. The public methods do all of this at once, for a list that only one thread uses.

use alloc::vec::Vec;
use core::fmt;
use core::mem::{self, ManuallyDrop};

use smallvec::SmallVec;

mod ids;
mod iter;
mod storage;
#[cfg(all(test, feature = "std", not(all(loom, feature = "loom"))))]
mod tests;

pub use ids::HandlerId;
pub use iter::Iter;

pub(crate) use iter::NewestFirst;
pub(crate) use storage::Storage;

#[doc = include_str!("list.md")]
pub struct HandlerList<T> {
    /// Ascending by id. A removed value leaves an empty slot, but the last slot is never empty, and a removal from the
    /// middle leaves at most half of them empty. In a `ManuallyDrop`, so that the list's own drop needs one check to see that it has
    /// nothing to do.
    slots: ManuallyDrop<SmallVec<[Slot<T>; INLINE]>>,
    /// The number of empty slots.
    removed: usize,
    /// The ids that this list has yet to give, `next..end`. The next block begins at `end` or later.
    next: u64,
    end: u64,
}

struct Slot<T> {
    id: HandlerId,
    value: Option<ManuallyDrop<T>>,
}

impl<T> Slot<T> {
    #[inline]
    fn take(&mut self) -> Option<T> {
        self.value.take().map(ManuallyDrop::into_inner)
    }

    fn get(&self) -> Option<(HandlerId, &T)> {
        Some((self.id, self.value.as_deref()?))
    }
}

/// The number of values that are stored in the list itself.
const INLINE: usize = 4;

/// The capacity of the first heap block.
pub(crate) const FIRST_BLOCK: usize = 3 * INLINE;

/// The values that a search found: usually none or one.
pub(crate) type Found<T> = SmallVec<[T; 1]>;

/// Returns no slots. A call writes one word, where a constant would be copied whole, including its unused part.
#[cold]
const fn none<T>() -> SmallVec<[Slot<T>; INLINE]> {
    SmallVec::new_const()
}

impl<T> HandlerList<T> {
    /// Creates an empty list. Does not allocate.
    ///
    /// ```
    /// let list = exitstack::HandlerList::<String>::new();
    /// assert!(list.is_empty());
    /// ```
    #[inline]
    pub const fn new() -> Self {
        Self { slots: ManuallyDrop::new(none()), removed: 0, next: 0, end: 0 }
    }

    /// Appends a value and returns its id, which is greater than all earlier ids of this list.
    ///
    /// ```
    /// let mut list = exitstack::HandlerList::new();
    /// let (a, b) = (list.push("a"), list.push("b"));
    /// assert!(a < b);
    /// ```
    #[inline]
    pub fn push(&mut self, value: T) -> HandlerId {
        self.push_with(|| value)
    }

    /// Appends the value that `make` returns, which the compiler builds in its slot.
    #[inline]
    pub(crate) fn push_with(&mut self, make: impl FnOnce() -> T) -> HandlerId {
        let id = self.next_id();
        self.put(id, make);
        id
    }

    /// Does what [`push_with`](Self::push_with) does, for a list that is never used by another thread. If the list
    /// [is full](Self::is_full), hands `make` back instead.
    #[inline]
    pub(crate) fn push_here<F: FnOnce() -> T>(&mut self, make: F) -> Result<HandlerId, F> {
        let id = Self::next_id_here(); // it may remain unused
        debug_assert!(self.last_id() < Some(id));
        // Two cases that look alike: in each of them the compiler sees that there is room.
        if self.slots.spilled() {
            if self.slots.len() == self.slots.capacity() {
                return Err(make);
            }
            self.slots.push(Slot { id, value: Some(ManuallyDrop::new(make())) });
        } else {
            if self.slots.len() == INLINE {
                return Err(make);
            }
            self.slots.push(Slot { id, value: Some(ManuallyDrop::new(make())) });
        }
        Ok(id)
    }

    #[inline]
    fn put(&mut self, id: HandlerId, make: impl FnOnce() -> T) {
        let slot = Slot { id, value: Some(ManuallyDrop::new(make())) };
        if !self.slots.spilled() && self.slots.len() == INLINE {
            self.spill();
        }
        self.slots.push(slot);
    }

    /// Moves the values to the first heap block. `SmallVec` does all growth after that.
    #[cold]
    #[inline(never)]
    fn spill(&mut self) {
        self.slots.grow(FIRST_BLOCK);
    }

    /// Appends a value under an id from another list's [`next_id`](Self::next_id), which is greater than all ids here.
    #[inline]
    pub(crate) fn push_as(&mut self, id: HandlerId, value: T) {
        debug_assert!(self.last_id() < Some(id));
        self.put(id, || value);
    }

    /// Removes and returns the value with this id, or `None` if the id is not, or no longer, in this list.
    ///
    /// ```
    /// let mut list = exitstack::HandlerList::new();
    /// let a = list.push("a");
    /// assert_eq!(list.remove(a), Some("a"));
    /// assert_eq!(list.remove(a), None);
    /// ```
    #[must_use = "dropping the value may run code: bind it to a name (not `_`), to be dropped where no lock is held"]
    pub fn remove(&mut self, id: HandlerId) -> Option<T> {
        let value = self.take_out(id)?;
        self.shrink();
        Some(value)
    }

    /// Removes and returns the value with this id. Unlike [`remove`](Self::remove), keeps the storage.
    pub(crate) fn take_out(&mut self, id: HandlerId) -> Option<T> {
        let at = self.find(id)?;
        let value = self.slots[at].take()?;
        self.removed += 1;
        self.close_gaps();
        Some(value)
    }

    /// Returns a reference to the value with this id.
    ///
    /// ```
    /// let mut list = exitstack::HandlerList::new();
    /// let a = list.push("a");
    /// assert_eq!(list.get(a), Some(&"a"));
    /// ```
    pub fn get(&self, id: HandlerId) -> Option<&T> {
        self.slots[self.find(id)?].value.as_deref()
    }

    pub(crate) fn get_mut(&mut self, id: HandlerId) -> Option<&mut T> {
        let at = self.find(id)?;
        self.slots[at].value.as_deref_mut()
    }

    fn find(&self, id: HandlerId) -> Option<usize> {
        self.slots.binary_search_by_key(&id, |slot| slot.id).ok()
    }

    /// Restores the invariant of `slots` after values were taken out of the middle.
    fn close_gaps(&mut self) {
        self.trim();
        if self.removed > self.slots.len() / 2 {
            self.close_all_gaps();
        }
    }

    fn close_all_gaps(&mut self) {
        if self.removed > 0 {
            self.slots.retain(|slot| slot.value.is_some());
            self.removed = 0;
        }
    }

    /// Removes empty slots from the end, so that the last one has a value.
    fn trim(&mut self) {
        while self.removed > 0 && self.slots.last().is_some_and(|last| last.value.is_none()) {
            self.slots.pop();
            self.removed -= 1;
        }
    }

    /// Removes the newest value and returns it with its id, or `None` if the list is empty.
    ///
    /// ```
    /// let mut list = exitstack::HandlerList::new();
    /// list.push("a");
    /// let b = list.push("b");
    /// assert_eq!(list.pop(), Some((b, "b")));
    /// ```
    #[inline]
    #[must_use = "dropping the value may run code: bind it to a name (not `_`), to be dropped where no lock is held"]
    pub fn pop(&mut self) -> Option<(HandlerId, T)> {
        let mut slot = self.slots.pop()?;
        if self.removed > 0 {
            self.trim();
        }
        Some((slot.id, slot.take()?))
    }

    /// Moves the newest value to `place`, or sets that to `None`. The old value of `place` must need no drop.
    #[inline]
    pub(crate) fn pop_to(&mut self, place: &mut Option<T>) {
        mem::forget(mem::replace(place, self.slots.last_mut().and_then(Slot::take)));
        let left = self.slots.len().saturating_sub(1);
        self.slots.truncate(left);
        if self.removed > 0 {
            self.trim();
        }
    }

    /// Returns an iterator over the values in place, newest first.
    #[inline]
    pub(crate) fn newest_first(&mut self) -> NewestFirst<'_, T> {
        NewestFirst { slots: self.slots.iter_mut() }
    }

    /// Empties a list whose values need no drop any more, without looking at them.
    #[inline]
    pub(crate) fn forget_all(&mut self) {
        self.removed = 0;
        if self.slots.spilled() {
            self.free();
        } else {
            self.slots = ManuallyDrop::new(none());
        }
    }

    #[cold]
    #[inline(never)]
    fn free(&mut self) {
        *self.slots = none();
    }

    /// Returns the newest id.
    #[inline]
    pub(crate) fn last_id(&self) -> Option<HandlerId> {
        self.slots.last().map(|slot| slot.id)
    }

    /// Returns an iterator over ids and values, oldest first. Reverse it for the order of a drain.
    ///
    /// ```
    /// let mut list = exitstack::HandlerList::new();
    /// list.push("a");
    /// list.push("b");
    /// assert_eq!(list.iter().map(|(_, value)| *value).collect::<Vec<_>>(), ["a", "b"]);
    /// ```
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { slots: self.slots.iter(), left: self.len() }
    }

    /// Returns the number of values in the list.
    ///
    /// ```
    /// let mut list = exitstack::HandlerList::new();
    /// let a = list.push("a");
    /// list.push("b");
    /// list.remove(a);
    /// assert_eq!(list.len(), 1);
    /// ```
    #[inline]
    pub fn len(&self) -> usize {
        self.slots.len() - self.removed
    }

    /// Returns whether the list is empty.
    ///
    /// ```
    /// let mut list = exitstack::HandlerList::new();
    /// assert!(list.is_empty());
    /// list.push("a");
    /// assert!(!list.is_empty());
    /// ```
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Returns whether the list has neither values nor a heap block.
    #[inline]
    pub(crate) fn is_bare(&self) -> bool {
        !self.slots.spilled() && self.slots.is_empty()
    }

    /// Returns whether the values are in a heap block.
    pub(crate) fn is_spilled(&self) -> bool {
        self.slots.spilled()
    }

    /// Returns whether there is no room for another value.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.slots.len() == self.slots.capacity()
    }

    /// Empties the list and returns the values, oldest first.
    ///
    /// ```
    /// let mut list = exitstack::HandlerList::new();
    /// list.push("a");
    /// list.push("b");
    /// assert_eq!(list.clear(), ["a", "b"]);
    /// ```
    #[must_use = "dropping the values may run code: bind them to a name (not `_`), to be dropped where no lock is held"]
    pub fn clear(&mut self) -> Vec<T> {
        let mut values = Vec::with_capacity(self.len());
        values.extend(self.slots.iter_mut().filter_map(Slot::take));
        self.forget_all();
        values
    }

    /// Moves all values and the unused ids to a new list. Values appended to this one from now on have greater ids.
    pub(crate) fn take(&mut self) -> Self {
        let emptied = Self { slots: ManuallyDrop::new(none()), removed: 0, next: self.end, end: self.end };
        mem::replace(self, emptied)
    }

    /// Removes every value for which `matches` returns true, and returns them, oldest first.
    ///
    /// # Panics
    ///
    /// Panics if `matches` panics. All values are still in the list then.
    ///
    /// ```
    /// let mut list = exitstack::HandlerList::new();
    /// for n in 1..=6 {
    ///     list.push(n);
    /// }
    /// assert_eq!(list.remove_if(|n| n % 3 == 0), [3, 6]);
    /// assert_eq!(list.len(), 4);
    /// ```
    #[must_use = "dropping the values may run code: bind them to a name (not `_`), to be dropped where no lock is held"]
    pub fn remove_if(&mut self, matches: impl FnMut(&T) -> bool) -> Vec<T> {
        self.find_and_remove(matches).into_vec()
    }

    /// Does what [`remove_if`](Self::remove_if) does, without an allocation if it finds a single value.
    pub(crate) fn find_and_remove(&mut self, mut matches: impl FnMut(&T) -> bool) -> Found<T> {
        let mut found = SmallVec::<[usize; INLINE]>::new();
        for (at, slot) in self.slots.iter().enumerate() {
            if slot.value.as_deref().is_some_and(&mut matches) {
                found.push(at);
            }
        }
        let values = found.iter().filter_map(|&at| self.slots[at].take()).collect();
        self.removed += found.len();
        self.close_gaps();
        self.shrink();
        values
    }

    /// Moves every value for which `matches` returns true to `found`, oldest first.
    ///
    /// If `found` has no room for all of them, moves none and returns their number. The list keeps its storage.
    pub(crate) fn take_out_if(&mut self, found: &mut Found<T>, matches: impl Fn(&T) -> bool) -> Result<(), usize> {
        let count = self.iter().filter(|(_, value)| matches(value)).count();
        if found.capacity() - found.len() < count {
            return Err(count);
        }
        for slot in self.slots.iter_mut() {
            if slot.value.as_deref().is_some_and(&matches) {
                found.extend(slot.take());
                self.removed += 1;
            }
        }
        self.close_gaps();
        Ok(())
    }

    /// Appends the values of `newer`, whose ids are all greater, and takes over its unused ids. `newer` keeps its
    /// storage.
    pub(crate) fn append(&mut self, newer: &mut Self) {
        debug_assert!(newer.slots.first().is_none_or(|first| self.last_id() < Some(first.id)));
        self.reserve(newer.len());
        self.slots.extend(newer.slots.drain(..).filter(|slot| slot.value.is_some()));
        newer.removed = 0;
        if self.end < newer.end {
            (self.next, self.end) = (mem::replace(&mut newer.next, newer.end), newer.end);
        }
    }

    #[cold]
    #[inline(never)]
    fn drop_all(&mut self) {
        // If the drop of a value panics, the others are dropped all the same.
        let slots = mem::take(&mut *self.slots).into_iter().filter_map(|mut slot| slot.take());
        scopeguard::guard(slots, |rest| rest.for_each(drop)).by_ref().for_each(drop);
    }
}

impl<T> Drop for HandlerList<T> {
    #[inline]
    fn drop(&mut self) {
        if !self.is_bare() {
            self.drop_all();
        }
    }
}

impl<T> Default for HandlerList<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for HandlerList<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
