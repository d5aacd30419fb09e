//! Where ids come from.
//!
//! One counter serves all threads, in *shares*: a thread takes one share at a time and gives *blocks* of it to the lists
//! that it appends to. So neither threads nor lists use the counter often. A list that never leaves its thread
//! needs no blocks: it takes one id at a time, which saves it the first call for a block.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fmt, mem};

use crate::sync::per_thread;

/// The id of a registration in a list: unique in the process, never reused, and unknown to every other list.
///
/// ```
/// use exitstack::ExitStack;
///
/// let mut stack = ExitStack::new();
/// let id = stack.register(|| println!("not run"));
/// assert!(stack.unregister(id));
/// assert!(!stack.unregister(id)); // already removed
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandlerId(pub(super) u64);

impl fmt::Debug for HandlerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandlerId({})", self.0)
    }
}

impl HandlerId {
    /// Returns an id that no list has or will have.
    pub(crate) fn unknown() -> Self {
        Ids::none().next()
    }
}

/// The number of ids in a block.
pub(super) const BLOCK: u64 = 32;

/// The number of ids in a share, at least one block. Where the counter is smaller, each share is larger.
pub(super) const SHARE: u64 = if usize::BITS < 64 { 1 << 32 } else { 1 << 16 };

/// The number of shares taken. It is not an `AtomicU64`, which not every 32-bit system has.
static SHARES: AtomicUsize = AtomicUsize::new(0);

per_thread! {
    /// The next id of this thread's share; a multiple of [`SHARE`] if none is left. It only grows.
    static NEXT: Cell<u64> = Cell::new(0);
}

/// Takes a share and returns its first id, which is greater than all ids of earlier shares.
fn new_share() -> u64 {
    let one_more = |taken: usize| ((taken as u64) < u64::MAX / SHARE).then_some(taken + 1);
    let taken = SHARES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
    taken.expect("no handler ids are left") as u64 * SHARE
}

/// Takes one id of this thread's share, for a list that never leaves the thread.
#[inline]
pub(super) fn next_of_this_thread() -> HandlerId {
    NEXT.with(|own| {
        let next = own.get();
        if next % SHARE == 0 {
            return first_of_a_new_share();
        }
        own.set(next + 1);
        HandlerId(next)
    })
}

#[cold]
#[inline(never)]
fn first_of_a_new_share() -> HandlerId {
    let first = new_share() + 1; // a multiple of `SHARE` would say that nothing is left
    NEXT.with(|own| own.set(first + 1));
    HandlerId(first)
}

/// The ids that a list has yet to give, `next..end`. The next block begins at `end` or later.
pub(super) struct Ids {
    pub(super) next: u64,
    pub(super) end: u64,
}

impl Ids {
    /// Returns no ids; the first block is taken when one is needed.
    pub(super) const fn none() -> Self {
        Self { next: 0, end: 0 }
    }

    /// Returns no ids; those taken later are greater than all ids given before the fork.
    pub(super) fn after_fork() -> Self {
        Self::none_before(SHARES.load(Ordering::Relaxed) as u64 * SHARE)
    }

    /// Returns no ids; those taken later are greater than all of these.
    pub(super) const fn later(&self) -> Self {
        Self::none_before(self.end)
    }

    const fn none_before(floor: u64) -> Self {
        Self { next: floor, end: floor }
    }

    /// Takes over the ids of a list whose values were appended to this one, if they are greater.
    pub(super) fn take_over(&mut self, newer: &mut Self) {
        if self.end < newer.end {
            let left = newer.later();
            *self = mem::replace(newer, left);
        }
    }

    /// Takes the next id.
    #[inline]
    pub(super) fn next(&mut self) -> HandlerId {
        if self.next == self.end {
            self.take_block();
        }
        let id = HandlerId(self.next);
        self.next += 1;
        id
    }

    /// Takes a block of this thread's share, or of a new one if the share is used up or this list has greater ids.
    #[cold]
    #[inline(never)]
    fn take_block(&mut self) {
        let block = NEXT.with(|own| {
            let next = own.get();
            // With `SHARE` for a share of which nothing is left.
            let used = if next % SHARE == 0 { SHARE } else { next % SHARE };
            (next >= self.end && used + BLOCK <= SHARE).then(|| own.replace(next + BLOCK))
        });
        match block {
            Some(first) => (self.next, self.end) = (first, first + BLOCK),
            None => self.take_from_a_new_share(),
        }
    }

    #[cold]
    #[inline(never)]
    fn take_from_a_new_share(&mut self) {
        // A list with greater ids comes from another thread. It takes half of the share, so that threads that append to
        // it in turns rarely need a new one; the other half lets this thread keep up with the next list that comes from
        // there.
        let block = if NEXT.with(Cell::get) < self.end { SHARE / 2 } else { BLOCK };
        self.next = new_share();
        self.end = self.next + block;
        NEXT.with(|own| own.set(self.end));
    }
}
