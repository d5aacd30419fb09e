//! Where handlers wait: an append-only list with stable ids.

use std::fmt;
use std::mem::{self, ManuallyDrop};
use std::sync::atomic::{AtomicU64, Ordering};

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

/// The next id that no list has. A list takes a block of them at a time, so that lists share nothing in between.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The least block.
const LEAST_BLOCK: u64 = 8;

/// The largest block: enough to make the counter's cost vanish, not so much as to waste it.
const LARGEST_BLOCK: u64 = 1 << 16;

impl HandlerId {
    /// An id that no list has, nor will have.
    pub(crate) fn unknown() -> Self {
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The list under every stack, public for runtimes that keep handler objects of their own: append-only, last-in
/// first-out, with stable ids.
///
/// It is a plain container: it runs nothing, asks no bounds of `T`, and hands every value back instead of dropping it,
/// so that its owner can keep it behind a lock and do what runs foreign code (call, compare, drop) outside.
///
/// | operation | cost |
/// | --- | --- |
/// | [`push`](Self::push), [`pop`](Self::pop) | O(1), amortised |
/// | [`get`](Self::get) | O(log n) |
/// | [`remove`](Self::remove) | O(log n), amortised |
/// | memory | the first four stand in the list itself; the others in proportion to the most that waited at once, until a `remove` or `clear` gives back what is too much |
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
    /// The oldest values, in the list itself: in its leftmost `held` places, filled while `rest` is empty. What stands in
    /// the others needs no drop.
    first: ManuallyDrop<[Option<(HandlerId, T)>; FIRST]>,
    held: usize,
    /// The values after those, ascending by id. A removed value leaves `None`, but never in the last slot, and never in
    /// more than half of them (`remove` sees to both).
    rest: ManuallyDrop<Vec<Slot<T>>>,
    /// How many slots of `rest` are `None`.
    removed: usize,
    /// The ids that are this list's to give, `next..end`.
    next: u64,
    end: u64,
}

struct Slot<T> {
    id: HandlerId,
    value: Option<T>,
}

/// How many values stand in the list itself.
const FIRST: usize = 4;

/// A place with nothing in it: one word is written. (An array of a constant is copied whole, with all that is unused.)
#[cold]
const fn none<T>() -> Option<(HandlerId, T)> {
    None
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
        Self {
            first: ManuallyDrop::new([none(), none(), none(), none()]),
            held: 0,
            rest: ManuallyDrop::new(Vec::new()),
            removed: 0,
            next: 0,
            end: 0,
        }
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

    /// Appends the value that `make` makes, when there is room for it: where nothing can unwind any more with the value at
    /// hand, the compiler writes it to its place, and does not build it elsewhere to copy it.
    #[inline]
    pub(crate) fn push_with(&mut self, make: impl FnOnce() -> T) -> HandlerId {
        let id = self.next_id();
        self.put(id, make);
        id
    }

    #[inline]
    fn put(&mut self, id: HandlerId, make: impl FnOnce() -> T) {
        match self.first.get_mut(self.held) {
            Some(place) if self.rest.is_empty() => {
                mem::forget(place.replace((id, make()))); // spares the look for something to drop
                self.held += 1;
            }
            _ => {
                if self.rest.len() == self.rest.capacity() {
                    self.grow();
                }
                self.rest.push(Slot { id, value: Some(make()) });
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self) {
        if self.rest.capacity() == 0 {
            *self.rest = Vec::with_capacity(2 * FIRST);
        } else {
            self.rest.reserve(1);
        }
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

    #[cold]
    #[inline(never)]
    fn more_ids(&mut self) {
        let block = (self.rest.len() as u64 + LEAST_BLOCK).min(LARGEST_BLOCK);
        self.next = NEXT.fetch_add(block, Ordering::Relaxed);
        self.end = self.next + block;
    }

    /// A list whose ids are greater than all that were given before the fork that made this process.
    pub(crate) fn after_fork() -> Self {
        Self::new() // each block of ids is greater than all before it
    }

    /// The id that was given last by [`next_id`](Self::next_id).
    pub(crate) fn last_given(&self) -> HandlerId {
        HandlerId(self.next - 1)
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
    pub fn remove(&mut self, id: HandlerId) -> Option<T> {
        if let Some(at) = self.find_first(id) {
            let (_, value) = self.first[at].take()?;
            self.close_gaps();
            self.tidy();
            return Some(value);
        }
        let at = self.find_rest(id)?;
        let value = self.rest[at].value.take()?;
        self.removed += 1;
        self.tidy();
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
        match self.find_first(id) {
            Some(at) => self.first[at].as_ref().map(|(_, value)| value),
            None => self.rest[self.find_rest(id)?].value.as_ref(),
        }
    }

    pub(crate) fn get_mut(&mut self, id: HandlerId) -> Option<&mut T> {
        if let Some(at) = self.find_first(id) {
            return self.first[at].as_mut().map(|(_, value)| value);
        }
        let at = self.find_rest(id)?;
        self.rest[at].value.as_mut()
    }

    fn find_first(&self, id: HandlerId) -> Option<usize> {
        self.first[..self.held].iter().position(|place| place.as_ref().is_some_and(|(own, _)| *own == id))
    }

    fn find_rest(&self, id: HandlerId) -> Option<usize> {
        self.rest.binary_search_by_key(&id, |slot| slot.id).ok()
    }

    /// Restores what `first` promises, after values were taken out of its middle.
    fn close_gaps(&mut self) {
        for at in 0..mem::take(&mut self.held) {
            if self.first[at].is_some() {
                self.first.swap(self.held, at);
                self.held += 1;
            }
        }
    }

    /// Restores what `rest` promises, after values were taken out of its middle.
    fn tidy(&mut self) {
        self.trim();
        if self.removed > self.rest.len() / 2 {
            self.rest.retain(|slot| slot.value.is_some());
            self.removed = 0;
        }
        if self.rest.capacity() > 4 * self.rest.len().max(FIRST) {
            self.rest.shrink_to_fit();
        }
    }

    /// Lets the last slot be one with a value.
    fn trim(&mut self) {
        while self.removed > 0 && self.rest.last().is_some_and(|last| last.value.is_none()) {
            self.rest.pop();
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
    pub fn pop(&mut self) -> Option<(HandlerId, T)> {
        if let Some(slot) = self.rest.pop() {
            if self.removed > 0 {
                self.trim();
            }
            return Some((slot.id, slot.value?));
        }
        self.held = self.held.checked_sub(1)?;
        self.first.get_mut(self.held)?.take()
    }

    /// Takes the newest value, or nothing, to this place; what stood there needs no drop.
    #[inline]
    pub(crate) fn pop_to(&mut self, place: &mut Option<T>) {
        let Some(before) = self.rest.len().checked_sub(1) else {
            mem::forget(mem::replace(place, self.pop().map(|(_, value)| value)));
            return;
        };
        mem::forget(mem::replace(place, self.rest[before].value.take()));
        self.rest.truncate(before);
        if self.removed > 0 {
            self.trim();
        }
    }

    /// The values, newest first, where they stand.
    #[inline]
    pub(crate) fn newest_first(&mut self) -> NewestFirst<'_, T> {
        NewestFirst { first: self.first[..self.held].iter_mut(), rest: self.rest.iter_mut() }
    }

    /// Empties the list of values that need no drop any more; those in the list itself are not even looked at.
    #[inline]
    pub(crate) fn forget_all(&mut self) {
        self.held = 0;
        if self.rest.capacity() > 0 {
            self.forget_rest();
        }
    }

    #[cold]
    #[inline(never)]
    fn forget_rest(&mut self) {
        self.removed = 0;
        *self.rest = Vec::new();
    }

    /// The newest id.
    #[inline]
    pub(crate) fn last_id(&self) -> Option<HandlerId> {
        match self.rest.last() {
            Some(slot) => Some(slot.id),
            None => self.first[..self.held].last()?.as_ref().map(|(id, _)| *id),
        }
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
        Iter { first: self.first[..self.held].iter(), rest: self.rest.iter(), left: self.len() }
    }

    /// How many values wait.
    #[inline]
    pub fn len(&self) -> usize {
        self.held + self.rest.len() - self.removed
    }

    /// Whether none does.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.held | self.rest.len() == 0 // one test, not two: each empty stack makes it
    }

    /// Empties the list and returns the values, oldest first, for the caller to drop where it may.
    ///
    /// ```
    /// let mut list = exitstack::HandlerList::new();
    /// list.push("a");
    /// list.push("b");
    /// assert_eq!(list.clear(), ["a", "b"]);
    /// ```
    #[must_use = "dropping the values runs their code: do it where no lock is held"]
    pub fn clear(&mut self) -> Vec<T> {
        self.take().map(|(_, value)| value).collect()
    }

    /// Empties the list: ids and values, oldest first.
    fn take(&mut self) -> impl Iterator<Item = (HandlerId, T)> + use<T> {
        let held = mem::take(&mut self.held);
        let mut first = [const { None }; FIRST];
        first[..held].swap_with_slice(&mut self.first[..held]);
        let rest = mem::take(&mut *self.rest);
        self.removed = 0;
        first.into_iter().flatten().chain(rest.into_iter().filter_map(|slot| Some((slot.id, slot.value?))))
    }

    #[cold]
    #[inline(never)]
    fn drop_all(&mut self) {
        drop(self.take());
    }

    /// Takes every value for which `matches` is true, oldest first; a panic of `matches` leaves all in the list.
    pub(crate) fn remove_if(&mut self, mut matches: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut found = Vec::new();
        for (at, place) in self.first[..self.held].iter().enumerate() {
            if place.as_ref().is_some_and(|(_, value)| matches(value)) {
                found.push(at);
            }
        }
        let in_first = found.len();
        for (at, slot) in self.rest.iter().enumerate() {
            if slot.value.as_ref().is_some_and(&mut matches) {
                found.push(at);
            }
        }
        let (in_first, in_rest) = found.split_at(in_first);
        let mut values = Vec::with_capacity(found.len());
        values.extend(in_first.iter().filter_map(|&at| self.first[at].take()).map(|(_, value)| value));
        values.extend(in_rest.iter().filter_map(|&at| self.rest[at].value.take()));
        self.removed += in_rest.len();
        self.close_gaps();
        self.tidy();
        values
    }

    /// Makes room for this many more without another allocation.
    pub(crate) fn reserve(&mut self, additional: usize) {
        self.rest.reserve(additional);
    }

    /// Gives the storage of an empty list back.
    #[inline]
    pub(crate) fn release(&mut self) {
        if self.rest.is_empty() {
            *self.rest = Vec::new();
        }
    }

    /// Appends what `newer` holds, whose ids are all greater, and goes on with its ids.
    pub(crate) fn append(&mut self, mut newer: Self) {
        (self.next, self.end) = (newer.next, newer.end);
        for (id, value) in newer.take() {
            self.push_as(id, value);
        }
    }
}

impl<T> Drop for HandlerList<T> {
    #[inline]
    fn drop(&mut self) {
        if self.held | self.rest.capacity() != 0 {
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

/// What [`HandlerList::iter`] returns.
pub struct Iter<'l, T> {
    first: std::slice::Iter<'l, Option<(HandlerId, T)>>,
    rest: std::slice::Iter<'l, Slot<T>>,
    left: usize,
}

/// What [`HandlerList::newest_first`] returns.
pub(crate) struct NewestFirst<'l, T> {
    first: std::slice::IterMut<'l, Option<(HandlerId, T)>>,
    rest: std::slice::IterMut<'l, Slot<T>>,
}

impl<'l, T> Iterator for NewestFirst<'l, T> {
    type Item = &'l mut T;

    #[inline]
    fn next(&mut self) -> Option<&'l mut T> {
        while let Some(slot) = self.rest.next_back() {
            if let Some(value) = &mut slot.value {
                return Some(value);
            }
        }
        self.first.next_back()?.as_mut().map(|(_, value)| value)
    }
}

impl<T: fmt::Debug> fmt::Debug for Iter<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.clone()).finish()
    }
}

impl<T> Clone for Iter<'_, T> {
    fn clone(&self) -> Self {
        Self { first: self.first.clone(), rest: self.rest.clone(), left: self.left }
    }
}

fn in_first<T>((id, value): &(HandlerId, T)) -> (HandlerId, &T) {
    (*id, value)
}

fn in_rest<T>(slot: &Slot<T>) -> Option<(HandlerId, &T)> {
    Some((slot.id, slot.value.as_ref()?))
}

impl<'l, T> Iterator for Iter<'l, T> {
    type Item = (HandlerId, &'l T);

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.first.find_map(Option::as_ref).map(in_first).or_else(|| self.rest.find_map(in_rest))?;
        self.left -= 1;
        Some(next)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<T> DoubleEndedIterator for Iter<'_, T> {
    fn next_back(&mut self) -> Option<Self::Item> {
        let rest = self.rest.by_ref().rev().find_map(in_rest);
        let next = rest.or_else(|| self.first.by_ref().rev().find_map(Option::as_ref).map(in_first))?;
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
