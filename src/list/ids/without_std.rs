//! Without std there are no thread-locals: one counter serves all lists, an id at a time.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicUsize, Ordering};

use once_cell::race::OnceBox;

use super::HandlerId;
use crate::list::HandlerList;

/// A counter of 64 bits, which never runs out, for systems that may have no `AtomicU64`: when a `usize` is used up, the
/// next one goes on, at the price of an allocation.
struct Counter {
    first: u64,
    taken: AtomicUsize,
    next: OnceBox<Self>,
}

static IDS: Counter = Counter::starting_at(0, 0);

impl Counter {
    /// Creates a counter of which some numbers are taken.
    const fn starting_at(first: u64, taken: usize) -> Self {
        Self { first, taken: AtomicUsize::new(taken), next: OnceBox::new() }
    }

    /// Returns a number greater than all that were taken before.
    fn take(&self) -> u64 {
        let mut counter = self;
        loop {
            let one_more = |taken: usize| taken.checked_add(1);
            if let Ok(taken) = counter.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
                return counter.first + taken as u64;
            }
            let first = counter.first + usize::MAX as u64; // nobody uses up 64 bits
            counter = counter.next.get_or_init(|| Box::new(Self::starting_at(first, 0)));
        }
    }
}

impl<T> HandlerList<T> {
    /// Takes one more id.
    pub(super) fn more_ids(&mut self) {
        self.next = IDS.take();
        self.end = self.next + 1;
    }

    /// Returns a new id, greater than all before.
    pub(in crate::list) fn next_id_here() -> HandlerId {
        HandlerId(IDS.take())
    }
}

#[cfg(test)]
mod tests {
    use super::Counter;

    #[test]
    fn ids_go_on_after_a_word_is_used_up() {
        let counter = Counter::starting_at(0, usize::MAX - 1);
        assert_eq!([counter.take(), counter.take()], [usize::MAX as u64 - 1, usize::MAX as u64]);
    }
}
