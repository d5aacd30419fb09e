//! A list whose links are allocated before a lock is taken and freed after it is released.
//!
//! The global allocator is foreign code: it may register a handler. So nothing is allocated or freed under a lock, and
//! whatever is collected under one is collected in a [`Chain`].

use alloc::boxed::Box;
use core::iter;
use core::mem::{self, ManuallyDrop};

/// A list of values, the last one added first.
#[derive(Debug)]
pub(crate) struct Chain<T> {
    /// In a `ManuallyDrop`, so that the drop of an empty chain is one check.
    first: ManuallyDrop<Option<Link<T>>>,
    len: usize,
}

/// A value that can be added to a [`Chain`] without allocating.
#[derive(Debug)]
pub(crate) struct Link<T>(Box<(T, Option<Link<T>>)>);

impl<T> Link<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Box::new((value, None)))
    }

    pub(crate) fn into_value(self) -> T {
        self.0.0
    }

    pub(crate) fn value_mut(&mut self) -> &mut T {
        &mut self.0.0
    }
}

impl<T> Chain<T> {
    pub(crate) const fn new() -> Self {
        Self { first: ManuallyDrop::new(None), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(crate) fn push(&mut self, mut link: Link<T>) {
        link.0.1 = self.first.take();
        *self.first = Some(link);
        self.len += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<Link<T>> {
        let mut link = self.first.take()?;
        *self.first = link.0.1.take();
        self.len -= 1;
        Some(link)
    }

    /// Moves all links of `other` to this chain.
    pub(crate) fn append(&mut self, mut other: Self) {
        if self.is_empty() {
            mem::swap(self, &mut other);
        }
        while let Some(link) = other.pop() {
            self.push(link);
        }
    }

    /// Reverses the order, so that the value added first comes first.
    pub(crate) fn reverse(&mut self) {
        let mut reversed = Self::new();
        while let Some(link) = self.pop() {
            reversed.push(link);
        }
        *self = reversed;
    }

    /// Removes and returns the values for which `matches` returns true.
    pub(crate) fn take_if(&mut self, mut matches: impl FnMut(&T) -> bool) -> Self {
        let (mut kept, mut taken) = (Self::new(), Self::new());
        while let Some(link) = self.pop() {
            if matches(&link.0.0) { taken.push(link) } else { kept.push(link) }
        }
        while let Some(link) = kept.pop() {
            self.push(link);
        }
        taken
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        iter::successors(self.first.as_ref(), |link| link.0.1.as_ref()).map(|link| &link.0.0)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let mut at = self.first.as_mut();
        iter::from_fn(move || {
            let (value, next) = &mut *at.take()?.0;
            at = next.as_mut();
            Some(value)
        })
    }
}

impl<T> Default for Chain<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Iterator for Chain<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.pop().map(Link::into_value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len, Some(self.len))
    }
}

impl<T> Chain<T> {
    /// Drops the values one by one; dropping the first link would recurse along the chain.
    #[cold]
    #[inline(never)]
    fn drop_all(&mut self) {
        while let Some(link) = self.pop() {
            drop(link);
        }
    }
}

impl<T> Drop for Chain<T> {
    #[inline]
    fn drop(&mut self) {
        if !self.is_empty() {
            self.drop_all();
        }
    }
}

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn chain(values: &[i32]) -> Chain<i32> {
        let mut chain = Chain::new();
        for value in values {
            chain.push(Link::new(*value));
        }
        chain
    }

    #[test]
    fn what_is_taken_out_leaves_the_rest_in_order() {
        let mut all = chain(&[1, 2, 3, 4, 5]);
        let odd = all.take_if(|value| value % 2 == 1);
        assert_eq!((all.len(), odd.len()), (2, 3));
        assert_eq!((all.size_hint(), odd.size_hint()), ((2, Some(2)), (3, Some(3))));
        assert_eq!(all.collect::<Vec<_>>(), [4, 2]);
        assert_eq!(odd.collect::<Vec<_>>().len(), 3);
    }

    #[test]
    fn a_chain_that_is_appended_to_holds_all() {
        for (first, second) in [(&[1, 2][..], &[3][..]), (&[], &[3]), (&[1], &[])] {
            let mut all = chain(first);
            all.append(chain(second));
            let mut values: Vec<_> = all.collect();
            values.sort_unstable();
            assert_eq!(values, [first, second].concat());
        }
    }

    #[test]
    fn a_long_chain_is_dropped_without_recursion() {
        let mut long = Chain::new();
        (0..1_000_000).for_each(|n| long.push(Link::new(n)));
        drop(long);
    }
}
