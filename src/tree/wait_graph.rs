//! Which thread waits for which drain, and how a cycle of waits is broken.
//!
//! One drain of a stack runs at a time; other threads that want it drained wait for its end. Handlers may close other
//! stacks, so such waits can form a cycle: a handler on one thread closes the stack that a second thread drains, and the
//! other way round.
//!
//! 1. An edge says that `waiter` waits, at a slot of its own, for what `owner` runs. A thread has at most one edge.
//! 2. An edge whose slot is set has ended, whether or not its thread has woken up and removed it.
//! 3. Whether an edge would close a cycle is decided, and the edge is added, under one lock: of the threads in a cycle, the
//!    last one sees it. As a thread has at most one edge, it closes at most one cycle.
//! 4. A cycle is broken where a closer waits: its `close()` returns at once. If no closer is in it, the thread that sees the
//!    cycle takes over: it runs what is left of the other's drain. The handler that the other thread is in waits for this
//!    thread, as if it had called it.
//! 5. A thread that ends the process never comes back to the drains that it is in. It takes a new key ([`leave`]), and its
//!    drains have no owner any more: each thread that waits for one is told so and resumes it.
//! 6. Lock order: the graph, then a slot. No stack's lock is held here.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::chain::{Chain, Link};
use crate::error::CloseError;
use crate::sync::{Latch, PerProcess, global, per_thread};

/// A thread, by a number of our own, which also exists when the thread-locals that have destructors are gone, as on the way
/// out of the process, and `std::thread::current()` may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadKey(usize);

impl ThreadKey {
    #[inline]
    pub(crate) fn current() -> Self {
        KEY.with(|key| {
            if key.get() == 0 {
                key.set(Self::next());
            }
            Self(key.get())
        })
    }

    /// A key that no thread has.
    pub(super) fn fresh() -> Self {
        Self(Self::next())
    }

    fn next() -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }
}

per_thread! {
    static KEY: Cell<usize> = Cell::new(0);
}

/// The result of a drain, for those who waited for it.
#[derive(Clone, Debug)]
pub(crate) struct DrainResult {
    /// All of it: what a closer is told.
    pub(super) all: Result<(), CloseError>,
    /// The part that was not merged into the drain around it before.
    pub(super) unmerged: Result<(), CloseError>,
}

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// A caller of `close()` or `finalize()`, which may return while the drain goes on further down the call stack.
    Closer,
    /// A drain that has come to an interpreter which another thread drains, or a thread that ends the process: it cannot go
    /// on before that.
    MustWait,
}

/// How a wait ended.
#[derive(Clone, Debug)]
pub(super) enum Waited {
    Ended(DrainResult),
    /// This closer is in a cycle: it returns, so that what waits for it can go on.
    CycleBroken,
    /// This thread is in a cycle without a closer: it runs what is left of the drain itself.
    TakeOver,
    /// The thread with this key never comes back to the drain: this one resumes it.
    OwnerLeft(ThreadKey),
}

/// Where a thread waits.
#[derive(Debug)]
pub(super) struct Slot {
    latch: Arc<Latch<Waited>>,
    /// Until it is added to [`Waiters`].
    link: Option<Link<Arc<Latch<Waited>>>>,
}

impl Slot {
    pub(super) fn new() -> Self {
        let latch = Arc::<Latch<Waited>>::default();
        let link = Some(Link::new(Arc::clone(&latch)));
        Self { latch, link }
    }
}

/// The threads that wait for one thing to end.
#[derive(Debug, Default)]
pub(super) struct Waiters(Chain<Arc<Latch<Waited>>>);

impl Waiters {
    /// Adds a slot, without allocating. The slots that nobody waits at any more are returned, to be dropped where no lock is
    /// held.
    #[must_use]
    pub(super) fn add(&mut self, slot: &mut Slot) -> impl Sized + use<> {
        let abandoned = self.0.take_if(|latch| Arc::strong_count(latch) == 1);
        if let Some(link) = slot.link.take() {
            self.0.push(link);
        }
        abandoned
    }

    /// Lets the threads look again at what they wait for.
    pub(super) fn wake(self, waited: &Waited) {
        self.0.for_each(|latch| latch.set(waited.clone()));
    }

    #[inline]
    pub(super) fn tell(self, result: &DrainResult) {
        if !self.0.is_empty() {
            self.tell_all(result);
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_all(self, result: &DrainResult) {
        for latch in self.0 {
            latch.set(Waited::Ended(result.clone()));
        }
    }
}

#[derive(Debug)]
struct Edge {
    waiter: ThreadKey,
    who: Who,
    owner: ThreadKey,
    /// The teardown that the waiter waits for.
    teardown: usize,
    latch: Arc<Latch<Waited>>,
}

#[derive(Debug, Default)]
pub(crate) struct Graph {
    edges: Chain<Edge>,
    /// The keys of threads that never come back to what they ran.
    left: Chain<ThreadKey>,
}

global! {
    static GRAPH: PerProcess<Graph> = PerProcess::new(Graph { edges: Chain::new(), left: Chain::new() });
}

/// Says that this thread never comes back to the drains that it is in. Returns the key that it had as their owner.
pub(crate) fn leave() -> ThreadKey {
    let before = ThreadKey::current();
    KEY.with(|key| key.set(ThreadKey::next()));
    let link = Link::new(before);
    let mut graph = GRAPH.lock();
    graph.left.push(link);
    for edge in graph.edges.iter().filter(|edge| edge.owner == before) {
        edge.latch.set(Waited::OwnerLeft(before));
    }
    before
}

/// Says that nobody will come back to the drains that are given this key as their owner.
pub(super) fn note_left(key: ThreadKey) {
    let link = Link::new(key);
    GRAPH.lock().left.push(link);
}

/// A closer's edge to a thread that drains for it. The closer does not sleep: it looks whether the edge has ended.
pub(crate) struct Lean {
    waiter: ThreadKey,
    latch: Arc<Latch<Waited>>,
}

impl Lean {
    pub(crate) fn new(waiter: ThreadKey) -> Self {
        Self { waiter, latch: Arc::default() }
    }

    /// The thread with this key drains from now on.
    pub(crate) fn on(&self, owner: ThreadKey) {
        let latch = Arc::clone(&self.latch);
        // No frame has this number: what drains there is bounded by itself.
        let edge = Link::new(Edge { waiter: self.waiter, who: Who::Closer, owner, teardown: usize::MAX, latch });
        let mut graph = GRAPH.lock();
        let before = graph.edges.take_if(|edge| edge.waiter == self.waiter);
        graph.edges.push(edge);
        drop(graph);
        drop(before);
    }

    /// Whether the drain waits for the closer, or its thread has left.
    pub(crate) fn has_ended(&self) -> bool {
        self.latch.is_set()
    }
}

impl Drop for Lean {
    fn drop(&mut self) {
        let edge = GRAPH.lock().edges.take_if(|edge| edge.waiter == self.waiter);
        drop(edge);
    }
}

/// Returns the thread that this thread waits for, and the teardown.
pub(super) fn awaited_by(thread: ThreadKey) -> Option<(ThreadKey, usize)> {
    let graph = GRAPH.lock();
    let edge = graph.edges.iter().find(|edge| edge.waiter == thread && !edge.latch.is_set())?;
    Some((edge.owner, edge.teardown))
}

/// Waits at `slot` for what `owner` runs, in this teardown.
pub(super) fn wait(owner: ThreadKey, teardown: usize, slot: &Slot, who: Who) -> Waited {
    let waiter = ThreadKey::current();
    let latch = &slot.latch;
    let edge = Link::new(Edge { waiter, who, owner, teardown, latch: Arc::clone(latch) });
    {
        let mut graph = GRAPH.lock();
        // The drain may have finished since it was looked up, and its owner may now be waiting for this thread: that is not
        // a cycle.
        if !latch.is_set() {
            if graph.left.iter().any(|left| *left == owner) {
                return Waited::OwnerLeft(owner);
            }
            if graph.leads(owner, waiter) {
                if who == Who::Closer {
                    return Waited::CycleBroken;
                }
                match graph.path(owner, waiter).find(|edge| edge.who == Who::Closer) {
                    Some(closer) => closer.latch.set(Waited::CycleBroken),
                    None => return Waited::TakeOver,
                }
            }
        }
        graph.edges.push(edge);
    }
    let outcome = latch.wait();
    let ended = GRAPH.lock().edges.take_if(|edge| edge.waiter == waiter);
    drop(ended); // where the graph is not locked
    outcome
}

impl Graph {
    /// Whether `from` waits for `to`, directly or through other threads.
    fn leads(&self, from: ThreadKey, to: ThreadKey) -> bool {
        from == to || self.path(from, to).last().is_some_and(|last| last.owner == to)
    }

    /// The edges from `from` towards `to`, as far as they go.
    fn path(&self, from: ThreadKey, to: ThreadKey) -> impl Iterator<Item = &Edge> {
        let edge_of = move |thread| {
            let mut edges = self.edges.iter().filter(move |_| thread != to);
            edges.find(|edge| edge.waiter == thread && !edge.latch.is_set())
        };
        std::iter::successors(edge_of(from), move |last| edge_of(last.owner))
    }
}

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use super::*;

    fn edge(waiter: ThreadKey, who: Who, owner: ThreadKey) -> Link<Edge> {
        Link::new(Edge { waiter, who, owner, teardown: 0, latch: Arc::default() })
    }

    #[test]
    fn an_edge_that_has_ended_closes_no_cycle() {
        let [here, there] = [ThreadKey(usize::MAX), ThreadKey(usize::MAX - 1)];
        let mut graph = Graph::default();
        graph.edges.push(edge(there, Who::Closer, here));
        assert!(graph.leads(there, here));
        graph.edges.iter().for_each(|edge| edge.latch.set(Waited::CycleBroken));
        assert!(!graph.leads(there, here));
    }

    #[test]
    fn a_path_leads_through_threads_to_its_goal() {
        let [a, b, c] = [1, 2, 3].map(|n| ThreadKey(usize::MAX - n));
        let mut graph = Graph::default();
        graph.edges.push(edge(a, Who::Closer, b));
        graph.edges.push(edge(b, Who::MustWait, c));
        graph.edges.push(edge(c, Who::MustWait, a));
        assert!(graph.leads(a, c));
        assert_eq!(graph.path(a, c).count(), 2);
        assert_eq!(graph.path(c, a).count(), 1);
    }

    /// Between looking up the drain and waiting for it, it may end, and its owner come to wait for this thread.
    #[test]
    fn a_wait_that_has_ended_closes_no_cycle() {
        let owner = ThreadKey(usize::MAX - 6);
        for who in [Who::Closer, Who::MustWait] {
            GRAPH.lock().edges.push(edge(owner, Who::MustWait, ThreadKey::current()));
            let slot = Slot::new();
            slot.latch.set(Waited::Ended(DrainResult { all: Ok(()), unmerged: Ok(()) }));
            assert!(matches!(wait(owner, 0, &slot, who), Waited::Ended(_)), "{who:?}");
            assert_eq!(GRAPH.lock().edges.take_if(|edge| edge.waiter == owner).len(), 1);
        }
    }

    /// The edges of other threads stay as they were.
    #[test]
    fn a_wait_that_has_ended_leaves_no_edge() {
        let [owner, other] = [ThreadKey(usize::MAX - 4), ThreadKey(usize::MAX - 5)];
        GRAPH.lock().edges.push(edge(other, Who::MustWait, owner));
        let slot = Slot::new();
        slot.latch.set(Waited::CycleBroken);
        assert!(matches!(wait(owner, 0, &slot, Who::Closer), Waited::CycleBroken));
        assert!(GRAPH.lock().edges.iter().all(|edge| edge.waiter != ThreadKey::current()));
        assert_eq!(GRAPH.lock().edges.take_if(|edge| edge.waiter == other).len(), 1);
    }
}
