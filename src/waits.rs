//! Threads that wait for one another's drains, and the circle that must not close.
//!
//! One drain of a stack runs at a time; a second closer waits for its end. Handlers may close other stacks, so such
//! waits can form a circle: a handler on thread 1 closes the stack that thread 2 drains, and the other way round.
//!
//! 1. An edge says: `waiter` waits, on `latch`, for a drain that `owner` runs. A thread has one edge at most.
//! 2. An edge whose latch is set is over, whether or not its thread has woken and taken it out.
//! 3. Whether an edge would close a circle is decided, and the edge added, under one lock: of the threads of a circle
//!    the last one sees it.
//! 4. Order of locks: the edges, then a latch. No stack's lock is held here.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::CloseError;
use crate::sync::{Latch, Lock, global, per_thread};

/// A thread, by a number of our own: it is known also when the thread-locals that have destructors are gone, as on the
/// way out of the process, and `std::thread::current()` may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadKey(u64);

impl ThreadKey {
    #[inline]
    pub(crate) fn current() -> Self {
        per_thread! {
            static KEY: Cell<u64> = Cell::new(0);
        }
        static NEXT: AtomicU64 = AtomicU64::new(1);
        KEY.with(|key| {
            if key.get() == 0 {
                key.set(NEXT.fetch_add(1, Ordering::Relaxed));
            }
            Self(key.get())
        })
    }
}

/// What came of a drain, for those who waited for it.
#[derive(Clone, Debug)]
pub(crate) struct Drained {
    pub(crate) result: Result<(), CloseError>,
    /// Whether the failures in it went to the report hook already.
    pub(crate) reported: bool,
}

#[derive(Debug)]
pub(crate) struct Edge {
    waiter: ThreadKey,
    owner: ThreadKey,
    latch: Arc<Latch<Drained>>,
}

global! {
    pub(crate) static EDGES: Lock<Vec<Edge>> = Lock::new(Vec::new());
}

/// What to do when the wait would close a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Circle {
    /// Not to wait: the handlers below this thread's own frames go on first.
    GiveUp,
    /// To end the wait of the thread that waits for this one, and then to wait: this thread is on its way out of the
    /// process, what it was draining will never go on.
    Break,
}

/// Waits for the drain that `owner` runs; `None` if that would close a circle.
pub(crate) fn wait(owner: ThreadKey, latch: &Arc<Latch<Drained>>, circle: Circle) -> Option<Drained> {
    let waiter = ThreadKey::current();
    {
        let mut edges = EDGES.lock();
        if let Some(last) = closes_circle(&edges, waiter, owner) {
            match circle {
                Circle::GiveUp => return None,
                Circle::Break => edges[last].latch.set(Drained { result: Ok(()), reported: true }),
            }
        }
        edges.push(Edge { waiter, owner, latch: Arc::clone(latch) });
    }
    let drained = latch.wait();
    EDGES.lock().retain(|edge| edge.waiter != waiter);
    Some(drained)
}

/// The edge that ends at `waiter`, if following the edges from `owner` leads there.
fn closes_circle(edges: &[Edge], waiter: ThreadKey, owner: ThreadKey) -> Option<usize> {
    let mut at = owner;
    loop {
        let next = edges.iter().position(|edge| edge.waiter == at && !edge.latch.is_set())?;
        at = edges[next].owner;
        if at == waiter {
            return Some(next);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_is_over_leaves_no_edge_behind() {
        let latch = Arc::new(Latch::default());
        latch.set(Drained { result: Ok(()), reported: true });
        let owner = ThreadKey(u64::MAX);
        assert!(wait(owner, &latch, Circle::GiveUp).is_some());
        assert!(EDGES.lock().iter().all(|edge| edge.waiter != ThreadKey::current()));
    }
}
