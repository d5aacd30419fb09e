//! The iterators over a list.

use core::fmt;
use core::slice;

use super::{HandlerId, HandlerList, Slot};

/// The iterator returned by [`HandlerList::newest_first`].
pub(crate) struct NewestFirst<'l, T> {
    pub(super) slots: slice::IterMut<'l, Slot<T>>,
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

/// An iterator over the ids and values of a list, oldest first, returned by [`HandlerList::iter`].
///
/// ```
/// let mut list = exitstack::HandlerList::new();
/// let ids = [list.push("a"), list.push("b")];
/// let mut iter = list.iter();
/// assert_eq!(iter.len(), 2);
/// assert_eq!(iter.next(), Some((ids[0], &"a")));
/// ```
pub struct Iter<'l, T> {
    pub(super) slots: slice::Iter<'l, Slot<T>>,
    pub(super) left: usize,
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
