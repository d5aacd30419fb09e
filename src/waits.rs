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
//! 5. A thread that ends the process never comes back to the drains that it runs. It takes another key
//!    ([`leave`]), and what it ran is nobody's: each that waits there is told so, and takes the drain over.
//! 6. Order of locks: the graph, then a latch. No stack's lock is held here.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::chain::{Chain, Link};
use crate::error::CloseError;
use crate::sync::{Latch, PerProcess, global, per_thread};

/// A thread, by a number of our own: it is known also when the thread-locals that have destructors are gone, as on the
/// way out of the process, and `std::thread::current()` may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadKey(usize);

impl ThreadKey {
    #[inline]
    pub(crate) fn current() -> Self {
        KEY.with(|key| {
            if key.get() == 0 {
                key.set(Self::another());
            }
            Self(key.get())
        })
    }

    fn another() -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }
}

per_thread! {
    static KEY: Cell<usize> = Cell::new(0);
}

/// What came of a drain, for those who waited for it.
#[derive(Clone, Debug)]
pub(crate) struct Drained {
    /// All of it: what a closer is told.
    pub(crate) whole: Result<(), CloseError>,
    /// What the drain around it has not been given before.
    pub(crate) new: Result<(), CloseError>,
}

/// Where one thread waits for a drain.
pub(crate) type Waiter = Latch<Waited>;

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
#[derive(Clone, Debug)]
pub(crate) enum Waited {
    Drained(Drained),
    /// A closer need not wait: what it waits for waits for it.
    NotNeeded,
    /// What this drain waits for waits for it: it is to go on with that itself.
    Inside,
    /// The thread of this key will never come back to the drain: it is to be taken over.
    Left(ThreadKey),
}

#[derive(Debug)]
struct Edge {
    waiter: ThreadKey,
    who: Who,
    owner: ThreadKey,
    latch: Arc<Waiter>,
}

#[derive(Debug, Default)]
pub(crate) struct Graph {
    edges: Chain<Edge>,
    /// The keys that threads have laid down.
    left: Chain<ThreadKey>,
}

global! {
    static GRAPH: PerProcess<Graph> = PerProcess::new(Graph { edges: Chain::new(), left: Chain::new() });
}

/// Lets the drains that this thread runs be nobody's: it never comes back to them. Returns the key that it had.
pub(crate) fn leave() -> ThreadKey {
    let before = ThreadKey::current();
    KEY.with(|key| key.set(ThreadKey::another()));
    let link = Link::new(before);
    let mut graph = GRAPH.lock();
    graph.left.push(link);
    for edge in graph.edges.iter().filter(|edge| edge.owner == before) {
        edge.latch.set(Waited::Left(before));
    }
    before
}

/// Waits for the drain that `owner` runs, and at whose end `latch` is set.
pub(crate) fn wait(owner: ThreadKey, latch: &Arc<Waiter>, who: Who) -> Waited {
    let waiter = ThreadKey::current();
    let edge = Link::new(Edge { waiter, who, owner, latch: Arc::clone(latch) });
    {
        let mut graph = GRAPH.lock();
        // The drain may have ended since it was found, and its owner wait for this thread now: that is no circle.
        if !latch.is_set() {
            if graph.left.iter().any(|left| *left == owner) {
                return Waited::Left(owner);
            }
            if graph.leads(owner, waiter) {
                if who == Who::Closer {
                    return Waited::NotNeeded;
                }
                match graph.way(owner, waiter).find(|edge| edge.who == Who::Closer) {
                    Some(closer) => closer.latch.set(Waited::NotNeeded),
                    None => return Waited::Inside,
                }
            }
        }
        graph.edges.push(edge);
    }
    let outcome = latch.wait();
    let ended = GRAPH.lock().edges.take_if(|edge| edge.waiter == waiter);
    drop(ended);
    outcome
}

impl Graph {
    /// Whether `from` waits for `to`, through whichever threads.
    fn leads(&self, from: ThreadKey, to: ThreadKey) -> bool {
        from == to || self.way(from, to).last().is_some_and(|last| last.owner == to)
    }

    /// The edges that lead from `from` towards `to`, as far as they go.
    fn way(&self, from: ThreadKey, to: ThreadKey) -> impl Iterator<Item = &Edge> {
        let edge = move |waiter| {
            let mut edges = self.edges.iter().filter(move |_| waiter != to);
            edges.find(|edge| edge.waiter == waiter && !edge.latch.is_set())
        };
        std::iter::successors(edge(from), move |last| edge(last.owner))
    }
}

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use super::*;

    #[test]
    fn an_edge_that_is_over_closes_no_circle() {
        let [here, there] = [ThreadKey(usize::MAX), ThreadKey(usize::MAX - 1)];
        let latch = Arc::new(Waiter::default());
        let mut graph = Graph::default();
        graph.edges.push(Link::new(Edge { waiter: there, who: Who::Closer, owner: here, latch: Arc::clone(&latch) }));
        assert!(graph.leads(there, here));
        latch.set(Waited::NotNeeded);
        assert!(!graph.leads(there, here));
    }

    #[test]
    fn a_wait_that_is_over_leaves_no_edge_behind() {
        let latch = Arc::new(Waiter::default());
        latch.set(Waited::NotNeeded);
        let owner = ThreadKey(usize::MAX);
        assert!(matches!(wait(owner, &latch, Who::Closer), Waited::NotNeeded));
        assert!(GRAPH.lock().edges.iter().all(|edge| edge.waiter != ThreadKey::current()));
    }

    #[test]
    fn a_wait_that_is_over_leaves_the_edges_of_others() {
        let [owner, other] = [ThreadKey(usize::MAX - 2), ThreadKey(usize::MAX - 3)];
        GRAPH.lock().edges.push(Link::new(Edge { waiter: other, who: Who::Drain, owner, latch: Arc::default() }));
        let latch = Arc::new(Waiter::default());
        latch.set(Waited::NotNeeded);
        wait(owner, &latch, Who::Closer);
        assert_eq!(GRAPH.lock().edges.take_if(|edge| edge.waiter == other).len(), 1);
    }
}
