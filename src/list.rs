//! Where handlers wait: an append-only list with stable ids.
//!
//! **Storage.** One [`SmallVec`]: the first [`INLINE`] values stand in the list itself, more of them in a block on the heap,
//! which has room for [`FIRST_BLOCK`] at first.
//!
//! **Slots have no drop glue.** A slot keeps its value in a [`ManuallyDrop`], so that the compiler sees nothing to drop in
//! it. Two things become cheap by that:
//!
//! - A drain consumes the values where they stand. Then one store empties the list; no slot is looked at again.
//! - A value on its way into the list needs no clean-up should anything unwind. So the compiler writes a closure straight to
//!   its slot, instead of building it elsewhere and copying it.
//!
//! In return the list has to drop by itself what is left in it. A mistake here would leak a value and do no other harm: all
//! of this is safe code.
//!
//! **Behind a lock.** The global allocator is foreign code, so it is not called while a lock is held. These neither allocate
//! nor free: [`push_with`](HandlerList::push_with) unless the list [is full](HandlerList::is_full),
//! [`pop_to`](HandlerList::pop_to), [`take_out`](HandlerList::take_out), [`take_out_if`](HandlerList::take_out_if),
//! [`take`](HandlerList::take), [`append`](HandlerList::append) if the list does not [want](HandlerList::wanted) room for it,
//! and [`release`](HandlerList::release). When the list has to grow or ought to shrink, the owner of the lock makes a
//! [`Storage`] first, [exchanges](HandlerList::exchange) the list's own for it under the lock, and drops that afterwards. The
//! public methods do all of it at once, for a list that one thread has to itself.

use std::cell::Cell;
use std::collections::TryReserveError;
use std::fmt;
use std::mem::{self, ManuallyDrop};
use std::sync::atomic::{AtomicUsize, Ordering};

use smallvec::SmallVec;

use crate::sync::per_thread;

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests;

/// One registration, in one list: unique in the process, never reused, unknown to every other list.
///
/// ```
/// use exitstack::ExitStack;
///
/// let mut stack = ExitStack::new();
/// let id = stack.register(|| println!("not run"));
/// assert!(stack.unregister(id));
/// assert!(!stack.unregister(id)); // used
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandlerId(u64);

impl fmt::Debug for HandlerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandlerId({})", self.0)
    }
}

impl HandlerId {
    /// An id that no list has, nor will have.
    pub(crate) fn unknown() -> Self {
        HandlerList::<()>::new().next_id()
    }
}

// All threads count together, but in *shares*: each takes one of them at a time, and gives *blocks* of it to the lists that it
// appends to. So neither threads nor lists meet at the counter often. A list that never leaves its thread needs no blocks: it
// takes one id at a time, which saves it the first call for a block.

/// How many ids a block has.
const BLOCK: u64 = 32;

/// How many ids a share has, at least one block. Where fewer shares can be counted, each has more of the 64-bit ids.
const SHARE: u64 = if usize::BITS < 64 { 1 << 32 } else { 1 << 16 };

/// How many shares were taken. No `AtomicU64`: not every 32-bit system has one.
static SHARES: AtomicUsize = AtomicUsize::new(0);

per_thread! {
    /// The next id of this thread's share; a multiple of [`SHARE`] if none is left. It only grows.
    static NEXT: Cell<u64> = Cell::new(0);
}

/// Takes a share, and returns its first id, which is greater than those of all shares before.
fn new_share() -> u64 {
    let one_more = |taken: usize| ((taken as u64) < u64::MAX / SHARE).then_some(taken + 1);
    let taken = SHARES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
    taken.expect("no handler ids are left") as u64 * SHARE
}

/// The list under every stack, public for runtimes that keep handler objects of their own: append-only, last-in
/// first-out, with stable ids.
///
/// It is a plain container: it runs nothing, asks no bounds of `T`, and hands every value back instead of dropping it,
/// so that its owner can keep it behind a lock and do what runs foreign code (call, compare, drop) outside. The list is
/// invariant in `T`.
///
/// | operation | cost |
/// | --- | --- |
/// | [`push`](Self::push), [`pop`](Self::pop) | O(1), amortised |
/// | [`get`](Self::get) | O(log n) |
/// | [`remove`](Self::remove) | O(log n), amortised |
/// | [`remove_if`](Self::remove_if) | O(n) |
/// | memory | the first four stand in the list itself; the others in proportion to the most that waited at once, until a `remove`, `remove_if` or `clear` gives back what is too much |
///
/// # Behind a lock
///
/// Dropping a value runs foreign code, which may want the lock. So bind what comes out of the list to a name, in a
/// statement of its own: the lock is released at the end of that statement, and the value dropped later.
///
/// ```
/// use exitstack::HandlerList;
/// use std::sync::Mutex;
///
/// static LIST: Mutex<HandlerList<Value>> = Mutex::new(HandlerList::new());
///
/// struct Value;
///
/// impl Drop for Value {
///     fn drop(&mut self) {
///         assert!(LIST.try_lock().is_ok(), "dropped under the lock");
///     }
/// }
///
/// let id = LIST.lock().unwrap().push(Value);
/// let removed = LIST.lock().unwrap().remove(id);
/// drop(removed);
///
/// LIST.lock().unwrap().push(Value);
/// let values = LIST.lock().unwrap().clear();
/// for value in values.into_iter().rev() {
///     drop(value);
/// }
///
/// LIST.lock().unwrap().push(Value);
/// let pop = || LIST.lock().unwrap().pop(); // the lock is released when the closure returns
/// while let Some((_id, value)) = pop() {
///     drop(value);
/// }
/// ```
///
/// Each of these drops the value while the lock is still held:
///
/// - `drop(list.lock().unwrap().remove(id));`
/// - `let _ = list.lock().unwrap().clear();`
/// - `for value in list.lock().unwrap().clear() { … }`
/// - `while let Some((id, value)) = list.lock().unwrap().pop() { … }`
///
/// Only the global allocator is called under the lock, when the list grows or shrinks; one that uses the list itself would
/// wait for the lock forever.
///
/// # Removing all that equal `x`, when comparing runs foreign code
///
/// Where the language's own `==` is called, that code may register, remove, clear or fail. CPython's
/// `atexit.unregister` was wrong here four times (crashes, a wrong entry removed, a matching one missed), each time
/// because it held an *index* across the comparison. Hold ids, and compare outside the lock:
///
/// ```
/// use exitstack::{HandlerId, HandlerList};
/// use std::rc::Rc;
/// use std::cell::RefCell;
///
/// #[derive(Clone)]
/// struct Callback(Rc<dyn Fn(&Callback) -> Result<bool, String>>); // its `__eq__`, which may do anything
///
/// fn unregister_all(list: &RefCell<HandlerList<Callback>>, x: &Callback) -> Result<usize, String> {
///     let ids: Vec<HandlerId> = list.borrow().iter().map(|(id, _)| id).collect();
///     let mut removed = 0;
///     for id in ids {
///         let Some(candidate) = list.borrow().get(id).cloned() else { continue }; // gone meanwhile
///         if (candidate.0)(x)? {
///             let value = list.borrow_mut().remove(id); // this one, wherever it stands now
///             removed += usize::from(value.is_some());
///             drop(value); // outside the borrow: its drop is foreign code too
///         }
///     }
///     Ok(removed)
/// }
///
/// let list = Rc::new(RefCell::new(HandlerList::new()));
/// let yes = Callback(Rc::new(|_| Ok(true)));
/// let again = Rc::downgrade(&list);
/// let registers = Callback(Rc::new(move |x| {
///     again.upgrade().unwrap().borrow_mut().push(x.clone());
///     Ok(true)
/// }));
/// list.borrow_mut().push(yes.clone());
/// list.borrow_mut().push(registers);
/// assert_eq!(unregister_all(&list, &yes), Ok(2));
/// assert_eq!(list.borrow().len(), 1); // what was registered meanwhile
/// ```
pub struct HandlerList<T> {
    /// Ascending by id. A removed value leaves an empty slot, but never the last one; and a removal leaves no more than half
    /// of them empty. In a `ManuallyDrop`, so that one look tells the list's own drop whether there is anything to do.
    slots: ManuallyDrop<SmallVec<[Slot<T>; INLINE]>>,
    /// How many slots are empty.
    removed: usize,
    /// The ids that are this list's to give, `next..end`. The next block begins at `end` or later.
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

/// How many values stand in the list itself.
const INLINE: usize = 4;

/// How many values the first block on the heap has room for.
const FIRST_BLOCK: usize = 3 * INLINE;

/// What was looked for: as a rule, none or one.
pub(crate) type Found<T> = SmallVec<[T; 1]>;

/// Storage without values, for a list to [exchange](HandlerList::exchange) its own with.
pub(crate) struct Storage<T>(Vec<Slot<T>>);

impl<T> Storage<T> {
    /// Storage for so many values. If they fit into the list itself, this is no more than a permission to move there.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(if capacity > INLINE { capacity } else { 0 }))
    }

    /// [`with_capacity`](Self::with_capacity), where there may be no memory.
    pub(crate) fn try_with_capacity(capacity: usize) -> Result<Self, TryReserveError> {
        let mut storage = Self::with_capacity(0);
        if capacity > INLINE {
            storage.0.try_reserve_exact(capacity)?;
        }
        Ok(storage)
    }
}

/// No slots. Where this is called, it writes one word; a constant would be copied whole, with all that is unused in it.
#[cold]
const fn none<T>() -> SmallVec<[Slot<T>; INLINE]> {
    SmallVec::new_const()
}

impl<T> HandlerList<T> {
    /// An empty list; allocates nothing.
    ///
    /// ```
    /// let list = exitstack::HandlerList::<String>::new();
    /// assert!(list.is_empty());
    /// ```
    #[inline]
    pub const fn new() -> Self {
        Self { slots: ManuallyDrop::new(none()), removed: 0, next: 0, end: 0 }
    }

    /// Appends a value; its id is greater than every earlier one's of this list.
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

    /// Appends the value that `make` returns; the compiler builds it in its slot.
    #[inline]
    pub(crate) fn push_with(&mut self, make: impl FnOnce() -> T) -> HandlerId {
        let id = self.next_id();
        self.put(id, make);
        id
    }

    /// [`push_with`](Self::push_with), for a list that has never been on another thread, nor will be.
    #[inline]
    pub(crate) fn push_here(&mut self, make: impl FnOnce() -> T) -> HandlerId {
        let id = NEXT.with(|own| {
            let next = own.get();
            if next % SHARE == 0 {
                return Self::first_of_a_new_share();
            }
            own.set(next + 1);
            HandlerId(next)
        });
        debug_assert!(self.last_id() < Some(id));
        self.put(id, make);
        id
    }

    #[cold]
    #[inline(never)]
    fn first_of_a_new_share() -> HandlerId {
        let first = new_share() + 1; // a multiple of `SHARE` would say that nothing is left
        NEXT.with(|own| own.set(first + 1));
        HandlerId(first)
    }

    #[inline]
    fn put(&mut self, id: HandlerId, make: impl FnOnce() -> T) {
        let slot = Slot { id, value: Some(ManuallyDrop::new(make())) };
        if !self.slots.spilled() && self.slots.len() == INLINE {
            self.spill();
        }
        self.slots.push(slot);
    }

    /// Moves to the first block. All growth after that is `SmallVec`'s.
    #[cold]
    #[inline(never)]
    fn spill(&mut self) {
        self.slots.grow(FIRST_BLOCK);
    }

    /// The id that a value pushed now would have; nothing else gets it.
    #[inline]
    pub(crate) fn next_id(&mut self) -> HandlerId {
        if self.next == self.end {
            self.more_ids();
        }
        let id = HandlerId(self.next);
        self.next += 1;
        id
    }

    /// Takes a block of this thread's share; or of a new one if none is left of it, or if this list has greater ids.
    #[cold]
    #[inline(never)]
    fn more_ids(&mut self) {
        let block = NEXT.with(|own| {
            let next = own.get();
            // With `SHARE` for a share of which nothing is left.
            let used = if next % SHARE == 0 { SHARE } else { next % SHARE };
            (next >= self.end && used + BLOCK <= SHARE).then(|| own.replace(next + BLOCK))
        });
        match block {
            Some(first) => (self.next, self.end) = (first, first + BLOCK),
            None => self.more_ids_of_a_new_share(),
        }
    }

    #[cold]
    #[inline(never)]
    fn more_ids_of_a_new_share(&mut self) {
        // With greater ids, it has been to another thread. It takes half of the share, so that threads that append to it by
        // turns need a new one seldom; the other half lets this thread keep up with the next list that comes from there.
        let block = if NEXT.with(Cell::get) < self.end { SHARE / 2 } else { BLOCK };
        self.next = new_share();
        self.end = self.next + block;
        NEXT.with(|own| own.set(self.end));
    }

    /// An empty list in a forked child. Its ids are greater than all that were given before the fork.
    pub(crate) fn after_fork() -> Self {
        let floor = SHARES.load(Ordering::Relaxed) as u64 * SHARE;
        Self { slots: ManuallyDrop::new(none()), removed: 0, next: floor, end: floor }
    }

    /// Appends a value under an id of another list's [`next_id`](Self::next_id), greater than all here.
    #[inline]
    pub(crate) fn push_as(&mut self, id: HandlerId, value: T) {
        debug_assert!(self.last_id() < Some(id));
        self.put(id, || value);
    }

    /// Takes the value out, wherever it stands; `None` if the id is not in this list (any more).
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

    /// [`remove`](Self::remove), but the list keeps its storage.
    pub(crate) fn take_out(&mut self, id: HandlerId) -> Option<T> {
        let at = self.find(id)?;
        let value = self.slots[at].take()?;
        self.removed += 1;
        self.close_gaps();
        Some(value)
    }

    /// The value under this id.
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

    /// Restores what `slots` promises, after values were taken out of its middle.
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

    /// Lets the last slot be one with a value.
    fn trim(&mut self) {
        while self.removed > 0 && self.slots.last().is_some_and(|last| last.value.is_none()) {
            self.slots.pop();
            self.removed -= 1;
        }
    }

    /// Takes the newest value.
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

    /// Takes the newest value, or nothing, to this place; what stood there needs no drop.
    #[inline]
    pub(crate) fn pop_to(&mut self, place: &mut Option<T>) {
        mem::forget(mem::replace(place, self.slots.last_mut().and_then(Slot::take)));
        let left = self.slots.len().saturating_sub(1);
        self.slots.truncate(left);
        if self.removed > 0 {
            self.trim();
        }
    }

    /// The values, newest first, where they stand.
    #[inline]
    pub(crate) fn newest_first(&mut self) -> NewestFirst<'_, T> {
        NewestFirst { slots: self.slots.iter_mut() }
    }

    /// Empties the list of values that need no drop any more; they are not even looked at.
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

    /// The newest id.
    #[inline]
    pub(crate) fn last_id(&self) -> Option<HandlerId> {
        self.slots.last().map(|slot| slot.id)
    }

    /// Ids and values, oldest first; reverse it for the order of a drain.
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

    /// How many values wait.
    #[inline]
    pub fn len(&self) -> usize {
        self.slots.len() - self.removed
    }

    /// Whether none does.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether it has neither values nor a block on the heap.
    #[inline]
    pub(crate) fn is_bare(&self) -> bool {
        !self.slots.spilled() && self.slots.is_empty()
    }

    /// Whether the next value does not fit.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.slots.len() == self.slots.capacity()
    }

    /// Empties the list and returns the values, oldest first, for the caller to drop where it may.
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

    /// Moves all values, and the ids that are left, to a list of their own; what is appended here from now on has greater
    /// ids.
    pub(crate) fn take(&mut self) -> Self {
        let emptied = Self { slots: ManuallyDrop::new(none()), removed: 0, next: self.end, end: self.end };
        mem::replace(self, emptied)
    }

    /// Takes out every value for which `matches` returns true, and returns them, oldest first.
    ///
    /// # Panics
    ///
    /// If `matches` does; all values are still in the list then.
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

    /// [`remove_if`](Self::remove_if), without an allocation for a single one.
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

    /// Moves every value for which `matches` is true to `found`, oldest first. If there is no room for them all, moves none,
    /// and says how many there are. The list keeps its storage.
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

    /// Makes room for this many more values, so that appending them allocates nothing, until values are removed.
    ///
    /// # Panics
    ///
    /// If the capacity overflows. Without memory the process aborts, as with any collection.
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

    /// [`reserve`](Self::reserve), where there may be no memory.
    ///
    /// # Errors
    ///
    /// If the capacity overflows, or the allocator has no memory for it. The list is as it was.
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

    /// The capacity to grow to, if there is no room for so many more values.
    pub(crate) fn wanted(&self, additional: usize) -> Option<usize> {
        let used = self.slots.len();
        let needed = used.saturating_add(additional);
        (needed > self.slots.capacity()).then(|| needed.max(2 * used).max(FIRST_BLOCK))
    }

    /// The capacity to shrink to, if less than an eighth is in use.
    pub(crate) fn excess(&self) -> Option<usize> {
        let used = self.len().max(INLINE);
        (self.slots.capacity() / 8 > used).then_some(used)
    }

    /// Moves the values to this storage, and leaves the list's own there. Does nothing if they do not fit; or if neither the
    /// list gets larger by it nor has [too much](Self::excess), for then another thread was faster.
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

    /// Gives back what is too much; later, if there is no memory to move to.
    fn shrink(&mut self) {
        if let Some(capacity) = self.excess() {
            self.close_all_gaps();
            let _ = self.slots.try_grow(capacity);
        }
    }

    /// Takes the block of an empty list.
    #[inline]
    pub(crate) fn release(&mut self) -> Storage<T> {
        let mut storage = Storage(Vec::new());
        if self.slots.spilled() && self.slots.is_empty() {
            storage.0 = mem::replace(&mut *self.slots, none()).into_vec();
        }
        storage
    }

    /// Appends what `newer` holds, whose ids are all greater, and goes on with its ids. Its storage stays there.
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
        // One whose drop panics does not keep the others from being dropped.
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

/// What [`HandlerList::newest_first`] returns.
pub(crate) struct NewestFirst<'l, T> {
    slots: std::slice::IterMut<'l, Slot<T>>,
}

impl<'l, T> Iterator for NewestFirst<'l, T> {
    type Item = &'l mut T;

    #[inline]
    fn next(&mut self) -> Option<&'l mut T> {
        while let Some(slot) = self.slots.next_back() {
            if let Some(value) = &mut slot.value {
                return Some(value);
            }
        }
        None
    }
}

/// What [`HandlerList::iter`] returns.
pub struct Iter<'l, T> {
    slots: std::slice::Iter<'l, Slot<T>>,
    left: usize,
}

impl<T: fmt::Debug> fmt::Debug for Iter<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.clone()).finish()
    }
}

impl<T> Clone for Iter<'_, T> {
    fn clone(&self) -> Self {
        Self { slots: self.slots.clone(), left: self.left }
    }
}

impl<'l, T> Iterator for Iter<'l, T> {
    type Item = (HandlerId, &'l T);

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.slots.find_map(Slot::get)?;
        self.left -= 1;
        Some(next)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<T> DoubleEndedIterator for Iter<'_, T> {
    fn next_back(&mut self) -> Option<Self::Item> {
        let next = self.slots.by_ref().rev().find_map(Slot::get)?;
        self.left -= 1;
        Some(next)
    }
}

impl<T> ExactSizeIterator for Iter<'_, T> {}

impl<'l, T> IntoIterator for &'l HandlerList<T> {
    type Item = (HandlerId, &'l T);
    type IntoIter = Iter<'l, T>;

    fn into_iter(self) -> Iter<'l, T> {
        self.iter()
    }
}
