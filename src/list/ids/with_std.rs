//! With std, ids come from one counter and from thread-locals.
//!
//! The counter serves all threads in *shares*: a thread takes one share at a time, and gives *blocks* of it to the lists
//! that it appends to, so the counter is rarely used. A list that never leaves its thread takes single ids instead, which
//! saves it the call for its first block.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::HandlerId;
use crate::list::{HandlerList, none};
use crate::sync::per_thread;

/// The number of ids in a block.
pub(in crate::list) const BLOCK: u64 = 32;

/// The number of ids in a share, at least one block. Where the counter is smaller, each share is larger.
pub(in crate::list) const SHARE: u64 = if usize::BITS < 64 { 1 << 32 } else { 1 << 16 };

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

impl<T> HandlerList<T> {
    /// Takes a block of this thread's share, or of a new one if the share is used up or this list has greater ids.
    #[cold]
    #[inline(never)]
    pub(super) fn more_ids(&mut self) {
        let block = NEXT.with(|own| {
            let next = own.get();
            // `SHARE` means that nothing is left of the share.
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
        // A list with greater ids comes from another thread. It takes half of the share, so that threads that append to
        // it in turns rarely need a new one; the other half lets this thread keep up with the next list that comes from
        // there.
        let block = if NEXT.with(Cell::get) < self.end { SHARE / 2 } else { BLOCK };
        self.next = new_share();
        self.end = self.next + block;
        NEXT.with(|own| own.set(self.end));
    }

    /// Returns the next id of this thread's share, for a list that never leaves the thread.
    #[inline]
    pub(in crate::list) fn next_id_here() -> HandlerId {
        NEXT.with(|own| {
            let next = own.get();
            if next % SHARE == 0 {
                return Self::first_of_a_new_share();
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

    /// Creates an empty list in a forked child. Its ids are greater than all ids given before the fork.
    pub(crate) fn after_fork() -> Self {
        let floor = SHARES.load(Ordering::Relaxed) as u64 * SHARE;
        Self { slots: ManuallyDrop::new(none()), removed: 0, next: floor, end: floor }
    }
}
