//! Where handlers wait: an append-only list with stable ids.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;

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
const BLOCK: u64 = 8;

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
/// | memory | in proportion to [`len`](Self::len); the first four stand in the value itself |
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
    /// Ascending by id. A removed value leaves `None`, but never in the last slot, and never in more than half of
    /// them (`remove` sees to both).
    slots: SmallVec<[Slot<T>; 4]>,
    /// How many slots are `None`.
    removed: usize,
    /// The ids that are this list's to give, `next..end`.
    next: u64,
    end: u64,
}

struct Slot<T> {
    id: HandlerId,
    value: Option<T>,
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
        Self { slots: SmallVec::new_const(), removed: 0, next: 0, end: 0 }
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
        let id = self.next_id();
        self.push_as(id, value);
        id
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
    fn more_ids(&mut self) {
        let block = (self.slots.len() as u64).clamp(BLOCK, LARGEST_BLOCK);
        self.next = NEXT.fetch_add(block, Ordering::Relaxed);
        self.end = self.next + block;
    }

    /// Appends a value under an id of another list's [`next_id`](Self::next_id), greater than all here.
    #[inline]
    pub(crate) fn push_as(&mut self, id: HandlerId, value: T) {
        debug_assert!(self.slots.last().is_none_or(|last| last.id < id));
        self.slots.push(Slot { id, value: Some(value) });
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
        let at = self.find(id)?;
        let value = self.slots[at].value.take()?;
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
        self.slots[self.find(id)?].value.as_ref()
    }

    fn find(&self, id: HandlerId) -> Option<usize> {
        self.slots.binary_search_by_key(&id, |slot| slot.id).ok()
    }

    /// Restores what `slots` promises, after values were taken out of its middle.
    fn tidy(&mut self) {
        self.trim();
        if self.removed > self.slots.len() / 2 {
            self.slots.retain(|slot| slot.value.is_some());
            self.removed = 0;
        }
        if self.slots.spilled() && self.slots.capacity() > 4 * self.slots.len().max(4) {
            self.slots.shrink_to_fit();
        }
    }

    /// Lets the last slot be one with a value.
    #[inline]
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
    pub fn pop(&mut self) -> Option<(HandlerId, T)> {
        let slot = self.slots.pop()?;
        self.trim();
        Some((slot.id, slot.value?))
    }

    /// The newest id.
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
        self.removed = 0;
        std::mem::take(&mut self.slots).into_iter().filter_map(|slot| slot.value).collect()
    }

    /// Takes every value for which `matches` is true, oldest first; a panic of `matches` leaves all in the list.
    pub(crate) fn remove_if(&mut self, mut matches: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut found = Vec::new();
        for (at, slot) in self.slots.iter().enumerate() {
            if slot.value.as_ref().is_some_and(&mut matches) {
                found.push(at);
            }
        }
        let values = found.iter().filter_map(|&at| self.slots[at].value.take()).collect();
        self.removed += found.len();
        self.tidy();
        values
    }

    /// Makes room for this many more without another allocation.
    pub(crate) fn reserve(&mut self, additional: usize) {
        self.slots.reserve(additional);
    }

    /// Gives the storage of an empty list back.
    #[inline]
    pub(crate) fn release(&mut self) {
        if self.slots.spilled() && self.slots.is_empty() {
            self.slots = SmallVec::new();
        }
    }

    /// Appends what `newer` holds, whose ids are all greater, and goes on with its ids.
    pub(crate) fn append(&mut self, newer: Self) {
        (self.next, self.end) = (newer.next, newer.end);
        for slot in newer.slots {
            if let Some(value) = slot.value {
                self.push_as(slot.id, value);
            }
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
#[derive(Debug)]
pub struct Iter<'l, T> {
    slots: std::slice::Iter<'l, Slot<T>>,
    left: usize,
}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}

impl<T> Slot<T> {
    fn pair(&self) -> Option<(HandlerId, &T)> {
        Some((self.id, self.value.as_ref()?))
    }
}

impl<'l, T> Iterator for Iter<'l, T> {
    type Item = (HandlerId, &'l T);

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.slots.find_map(Slot::pair)?;
        self.left -= 1;
        Some(next)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<T> DoubleEndedIterator for Iter<'_, T> {
    fn next_back(&mut self) -> Option<Self::Item> {
        let next = self.slots.by_ref().rev().find_map(Slot::pair)?;
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
