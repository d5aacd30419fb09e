//! Threads that wait for one another's drains, and the circle that must not close.
//!
//! One drain of a stack runs at a time; who else wants it drained waits for its end. Handlers may close other stacks, so
//! such waits can form a circle: a handler on thread 1 closes the stack that thread 2 drains, and the other way round.
//!
//! 1. An edge says: `waiter` waits, on a latch of its own, for a drain that `owner` runs. A thread has one edge at most.
//! 2. An edge whose latch is set is over, whether or not its thread has woken and taken it out.
//! 3. Whether an edge would close a circle is decided, and the edge added, under one lock: of the threads of a circle
//!    the last one sees it. As a thread has one edge, it closes one circle at most.
//! 4. A circle is opened where a closer waits: its `close()` returns at once. Only where none does, the thread that sees
//!    the circle goes on with the other's drain: the handler that runs there waits for this thread, as if it had called it.
//! 5. Order of locks: the edges, then a latch. No stack's lock is held here.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{CloseError, Handed};
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
    /// What of it the drain around has been given already.
    pub(crate) handed: Handed,
}

/// Where one thread waits for a drain; set to nothing if it is to wait no longer.
pub(crate) type Waiter = Latch<Option<Drained>>;

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// One who called `close()` or `finalize()`, and may be told that the drain goes on below.
    Closer,
    /// A drain that has come to an interpreter which another thread drains, or a thread on its way out of the process:
    /// it cannot go on before.
    Drain,
}

/// What came of a wait.
pub(crate) enum Waited {
    Drained(Drained),
    /// A closer need not wait: what it waits for waits for it.
    NotNeeded,
    /// What this drain waits for waits for it: it is to go on with that itself.
    Inside,
}

#[derive(Debug)]
pub(crate) struct Edge {
    waiter: ThreadKey,
    who: Who,
    owner: ThreadKey,
    latch: Arc<Waiter>,
}

global! {
    pub(crate) static EDGES: Lock<Vec<Edge>> = Lock::new(Vec::new());
}

/// Waits for the drain that `owner` runs, and at whose end `latch` is set.
pub(crate) fn wait(owner: ThreadKey, latch: &Arc<Waiter>, who: Who) -> Waited {
    let waiter = ThreadKey::current();
    {
        let mut edges = EDGES.lock();
        // The drain may have ended since it was found, and its owner wait for this thread now: that is no circle.
        if let Some(circle) = circle(&edges, waiter, owner).filter(|_| !latch.is_set()) {
            if who == Who::Closer {
                return Waited::NotNeeded;
            }
            match circle.into_iter().find(|&edge| edges[edge].who == Who::Closer) {
                Some(closer) => edges[closer].latch.set(None),
                None => return Waited::Inside,
            }
        }
        edges.push(Edge { waiter, who, owner, latch: Arc::clone(latch) });
    }
    let drained = latch.wait();
    EDGES.lock().retain(|edge| edge.waiter != waiter);
    drained.map_or(Waited::NotNeeded, Waited::Drained)
}

/// The edges that lead from `owner` to `waiter`, if they do.
fn circle(edges: &[Edge], waiter: ThreadKey, owner: ThreadKey) -> Option<Vec<usize>> {
    let (mut at, mut path) = (owner, Vec::new());
    while at != waiter {
        let next = edges.iter().position(|edge| edge.waiter == at && !edge.latch.is_set())?;
        path.push(next);
        at = edges[next].owner;
    }
    Some(path)
}

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use super::*;

    #[test]
    fn an_edge_that_is_over_closes_no_circle() {
        let [here, there] = [ThreadKey(u64::MAX), ThreadKey(u64::MAX - 1)];
        let latch = Arc::new(Waiter::default());
        let edges = [Edge { waiter: there, who: Who::Closer, owner: here, latch: Arc::clone(&latch) }];
        assert_eq!(circle(&edges, here, there), Some(vec![0]));
        latch.set(None);
        assert_eq!(circle(&edges, here, there), None);
    }

    #[test]
    fn a_wait_that_is_over_leaves_no_edge_behind() {
        let latch = Arc::new(Waiter::default());
        latch.set(None);
        let owner = ThreadKey(u64::MAX);
        assert!(matches!(wait(owner, &latch, Who::Closer), Waited::NotNeeded));
        assert!(EDGES.lock().iter().all(|edge| edge.waiter != ThreadKey::current()));
    }

    #[test]
    fn a_wait_that_is_over_leaves_the_edges_of_others() {
        let [owner, other] = [ThreadKey(u64::MAX - 2), ThreadKey(u64::MAX - 3)];
        EDGES.lock().push(Edge { waiter: other, who: Who::Drain, owner, latch: Arc::default() });
        let latch = Arc::new(Waiter::default());
        latch.set(None);
        wait(owner, &latch, Who::Closer);
        let mut edges = EDGES.lock();
        let before = edges.len();
        edges.retain(|edge| edge.waiter != other);
        assert_eq!(edges.len(), before - 1);
    }
}
