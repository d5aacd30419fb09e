//! Which thread waits for which drain, and how a cycle of waits is broken.
//!
//! One drain of a stack runs at a time; other threads that want it drained wait for its end. Handlers may close other
//! stacks, so such waits can form a cycle: a handler on one thread closes the stack that a second thread drains, and
//! vice versa.
//!
//! 1. An edge says that `waiter` waits, at a slot of its own, for what `owner` runs. A thread has at most one edge.
//! 2. An edge whose slot is set has ended, whether or not its thread has woken up and removed it. A slot can be waited at
//!    again, until the drain that it is for has ended.
//! 3. Whether an edge would close a cycle is decided, and the edge is added, under one lock: of the threads in a cycle,
//!    the last one sees it. As a thread has at most one edge, it closes at most one cycle.
//! 4. A cycle is broken where a closer waits: its `close()` returns at once. If no closer is in it, the thread that
//!    sees the cycle takes over: it runs what is left of the other's drain. The handler that the other thread is in
//!    waits for this thread, as if it had called it.
//! 5. A thread that ends the process never comes back to the drains that it is in. It takes a new key ([`leave`]), and
//!    its drains have no owner any more: each thread that waits for one of them is woken, and resumes it. Where a drain
//!    gets another owner, those that wait for it are woken, too, so that each edge leads to the thread that drains.
//! 6. Lock order: the graph, then a slot. No stack's lock is held while the graph is locked, but slots are also set under
//!    one.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::chain::{Chain, Link};
use crate::error::CloseError;
use crate::sync::{Latch, PerProcess, global, per_thread};

/// The identity of a thread: a number of our own, which exists even on the exit path, where thread-locals with
/// destructors are gone and `std::thread::current()` may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadKey(usize);

impl ThreadKey {
    /// The owner of a drain that was given up and that whichever thread reaches it resumes.
    pub(super) const NOBODY: Self = Self(0);

    #[inline]
    pub(crate) fn current() -> Self {
        KEY.with(|key| {
            if key.get() == 0 {
                key.set(Self::next());
            }
            Self(key.get())
        })
    }

    /// Another key that no thread has.
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

/// The result of a drain, for the threads that waited for it.
#[derive(Clone, Debug)]
pub(crate) struct DrainResult {
    /// All of it, as a closer returns it.
    pub(super) all: Result<(), CloseError>,
    /// The part that was not yet merged into the drain around it.
    pub(super) unmerged: Result<(), CloseError>,
}

/// What kind of thread waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// A thread that drains the stack on its own account. It may return while the drain goes on further up the call
    /// stack.
    Closer,
    /// A drain that has reached an interpreter which another thread drains, or a thread that ends the process: it
    /// cannot go on before the other drain has ended.
    MustWait,
}

/// How a wait ended.
#[derive(Clone, Debug)]
pub(super) enum Waited {
    Ended(DrainResult),
    /// This closer is in a cycle. It returns, so that what waits for it can go on.
    CycleBroken,
    /// This thread is in a cycle without a closer. It runs what is left of the drain itself.
    TakeOver,
    /// The thread with this key never comes back to the drain. This thread resumes it.
    OwnerLeft(ThreadKey),
    /// Another thread owns the drain by now. This one looks again, as the wait for that thread may close a cycle.
    OwnerChanged,
}

impl Waited {
    /// Returns whether nothing is to be waited for any more.
    fn lasts(&self) -> bool {
        matches!(self, Self::Ended(_))
    }
}

/// Where a thread waits for one drain, or one handler.
#[derive(Debug)]
pub(super) struct Slot {
    latch: Arc<Latch<Waited>>,
    /// Adds the latch to [`Waiters`] without allocating; `None` once that is done.
    link: Option<Link<Arc<Latch<Waited>>>>,
}

impl Slot {
    pub(super) fn new() -> Self {
        let latch = Arc::<Latch<Waited>>::default();
        let link = Some(Link::new(Arc::clone(&latch)));
        Self { latch, link }
    }

    /// Returns whether it was added to the waiters of a drain, which end the wait once that is over.
    pub(super) fn is_added(&self) -> bool {
        self.link.is_none()
    }

    /// Lets the thread wait again, unless the drain has ended.
    pub(super) fn reset(&self) {
        self.latch.clear(Waited::lasts);
    }

    /// Returns the result of the drain, which is over and about to tell its waiters.
    pub(super) fn result(&self) -> DrainResult {
        loop {
            match self.latch.wait() {
                Waited::Ended(result) => return result,
                _ => self.reset(), // of no use any more
            }
        }
    }
}

/// The threads that wait for one thing to end.
#[derive(Debug, Default)]
pub(super) struct Waiters(Chain<Arc<Latch<Waited>>>);

impl Waiters {
    /// Adds a slot without allocating. Returns the slots that no thread waits at any more, to be dropped while no lock
    /// is held.
    #[must_use]
    pub(super) fn add(&mut self, slot: &mut Slot) -> impl Sized + use<> {
        let abandoned = self.0.take_if(|latch| Arc::strong_count(latch) == 1);
        self.push(slot);
        abandoned
    }

    /// Adds a slot, and drops none.
    pub(super) fn push(&mut self, slot: &mut Slot) {
        if let Some(link) = slot.link.take() {
            self.0.push(link);
        }
    }

    pub(super) fn has(&self, slot: &Slot) -> bool {
        self.0.iter().any(|latch| Arc::ptr_eq(latch, &slot.latch))
    }

    /// Ends all waits in this way, so that the threads look again. They still get the result.
    pub(super) fn wake(&self, waited: &Waited) {
        self.0.iter().for_each(|latch| latch.set(waited.clone(), Waited::lasts));
    }

    /// Ends all waits with the result of the drain.
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
            latch.set(Waited::Ended(result.clone()), Waited::lasts);
        }
    }
}

/// A thread that waits for another one.
#[derive(Debug)]
struct Edge {
    waiter: ThreadKey,
    who: Who,
    owner: ThreadKey,
    /// The teardown that the waiter waits for.
    teardown: usize,
    latch: Arc<Latch<Waited>>,
}

/// The waits of all threads of this process.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    edges: Chain<Edge>,
    /// The keys of threads that never come back to what they ran.
    left: Chain<ThreadKey>,
}

global! {
    static GRAPH: PerProcess<Graph> = PerProcess::new(Graph { edges: Chain::new(), left: Chain::new() });
}

/// Creates this process's graph: the first use in a forked child allocates, and the graph is also used under another
/// lock.
pub(super) fn prepare() {
    drop(GRAPH.lock());
}

/// Notes that this thread never comes back to the drains that it is in. Returns the key under which it owns them.
pub(crate) fn leave() -> ThreadKey {
    let before = ThreadKey::current();
    KEY.with(|key| key.set(ThreadKey::next()));
    let link = Link::new(before);
    let mut graph = GRAPH.lock();
    graph.left.push(link);
    for edge in graph.edges.iter().filter(|edge| edge.owner == before) {
        edge.latch.set(Waited::OwnerLeft(before), Waited::lasts);
    }
    before
}

/// A closer's edge to a thread that drains for it. The closer does not sleep at it: it checks now and then whether the
/// edge has ended.
pub(crate) struct Lean {
    waiter: ThreadKey,
    latch: Arc<Latch<Waited>>,
}

impl Lean {
    pub(crate) fn new(waiter: ThreadKey) -> Self {
        Self { waiter, latch: Arc::default() }
    }

    /// Leads the edge to the thread with this key, which drains from now on.
    pub(crate) fn on(&self, owner: ThreadKey) {
        let latch = Arc::clone(&self.latch);
        // No frame has this number, so no watch looks behind the edge: the drain there has limits of its own.
        let edge = Link::new(Edge { waiter: self.waiter, who: Who::Closer, owner, teardown: usize::MAX, latch });
        let mut graph = GRAPH.lock();
        let before = graph.edges.take_if(|edge| edge.waiter == self.waiter);
        graph.edges.push(edge);
        drop(graph);
        drop(before);
    }

    /// Returns whether the edge has ended: the drain waits for the closer, or its thread has left.
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

/// Returns the thread that `thread` waits for, and which of its teardowns.
pub(super) fn awaited_by(thread: ThreadKey) -> Option<(ThreadKey, usize)> {
    let graph = GRAPH.lock();
    let edge = graph.edges.iter().find(|edge| edge.waiter == thread && !edge.latch.is_set())?;
    Some((edge.owner, edge.teardown))
}

/// Waits at `slot` for what `owner` runs in this teardown, and returns how that ended.
pub(super) fn wait(owner: ThreadKey, teardown: usize, slot: &Slot, who: Who) -> Waited {
    let waiter = ThreadKey::current();
    let latch = &slot.latch;
    let edge = Link::new(Edge { waiter, who, owner, teardown, latch: Arc::clone(latch) });
    {
        let mut graph = GRAPH.lock();
        // The drain may have finished since it was looked up, and its owner may now be waiting for this thread: that is
        // not a cycle.
        if !latch.is_set() {
            // Nothing would ever set the slot.
            if graph.left.iter().any(|left| *left == owner) {
                return Waited::OwnerLeft(owner);
            }
            if graph.leads(owner, waiter) {
                // The thread that sees the cycle need not wait itself.
                if who == Who::Closer {
                    return Waited::CycleBroken;
                }
                match graph.path(owner, waiter).find(|edge| edge.who == Who::Closer) {
                    // That closer returns, and this thread can wait.
                    Some(closer) => closer.latch.set(Waited::CycleBroken, Waited::lasts),
                    // All in the cycle must wait, so one of them has to run what is left.
                    None => return Waited::TakeOver,
                }
            }
        }
        graph.edges.push(edge);
    }
    let outcome = latch.wait();
    let ended = GRAPH.lock().edges.take_if(|edge| edge.waiter == waiter);
    drop(ended); // while the graph is not locked
    outcome
}

impl Graph {
    /// Returns whether `from` waits for `to`, directly or through other threads.
    fn leads(&self, from: ThreadKey, to: ThreadKey) -> bool {
        from == to || self.path(from, to).last().is_some_and(|last| last.owner == to)
    }

    /// Returns an iterator over the edges from `from` towards `to`, as far as they go.
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
        graph.edges.iter().for_each(|edge| edge.latch.set(Waited::CycleBroken, Waited::lasts));
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

    /// Before the thread wakes, its wait may be ended in another way, too.
    #[test]
    fn only_the_end_of_a_drain_lasts() {
        let (mut slot, mut other) = (Slot::new(), Slot::new());
        let mut waiters = Waiters::default();
        drop(waiters.add(&mut slot));
        assert!(slot.is_added() && waiters.has(&slot) && !waiters.has(&other));
        drop(waiters.add(&mut other));
        waiters.wake(&Waited::CycleBroken);
        waiters.wake(&Waited::OwnerChanged);
        assert!(matches!(slot.latch.wait(), Waited::OwnerChanged));
        slot.reset();
        assert!(!slot.latch.is_set());
        slot.latch.set(Waited::Ended(DrainResult { all: Ok(()), unmerged: Ok(()) }), Waited::lasts);
        waiters.wake(&Waited::OwnerChanged);
        slot.reset();
        assert!(slot.latch.is_set());
        assert!(matches!(slot.latch.wait(), Waited::Ended(_)));
    }

    /// Between the look-up of a drain and the wait for it, the drain may end, and its owner may begin to wait for this
    /// thread.
    #[test]
    fn a_wait_that_has_ended_closes_no_cycle() {
        let owner = ThreadKey(usize::MAX - 6);
        for who in [Who::Closer, Who::MustWait] {
            GRAPH.lock().edges.push(edge(owner, Who::MustWait, ThreadKey::current()));
            let slot = Slot::new();
            slot.latch.set(Waited::Ended(DrainResult { all: Ok(()), unmerged: Ok(()) }), Waited::lasts);
            assert!(matches!(wait(owner, 0, &slot, who), Waited::Ended(_)), "{who:?}");
            assert_eq!(GRAPH.lock().edges.take_if(|edge| edge.waiter == owner).len(), 1);
        }
    }

    /// The edges of other threads stay as they were.
    #[test]
    fn a_lean_has_one_edge_until_it_is_dropped() {
        let [me, other, before, now] = [7, 8, 9, 10].map(|n| ThreadKey(usize::MAX - n));
        GRAPH.lock().edges.push(edge(other, Who::Closer, before));
        assert!(awaited_by(me).is_none());
        let lean = Lean::new(me);
        lean.on(before);
        lean.on(now);
        assert_eq!(awaited_by(me).map(|(owner, _)| owner), Some(now));
        assert!(awaited_by(other).is_some());
        drop(lean);
        assert!(awaited_by(me).is_none());
        assert_eq!(GRAPH.lock().edges.take_if(|edge| edge.waiter == other).len(), 1);
    }

    #[test]
    fn who_waits_for_a_key_that_has_left_looks_again() {
        let left = std::thread::spawn(leave).join().unwrap();
        assert!(matches!(wait(left, 0, &Slot::new(), Who::Closer), Waited::OwnerLeft(key) if key == left));
    }

    /// The edges of other threads stay as they were.
    #[test]
    fn a_wait_that_has_ended_leaves_no_edge() {
        let [owner, other] = [ThreadKey(usize::MAX - 4), ThreadKey(usize::MAX - 5)];
        GRAPH.lock().edges.push(edge(other, Who::MustWait, owner));
        let slot = Slot::new();
        slot.latch.set(Waited::CycleBroken, Waited::lasts);
        assert!(matches!(wait(owner, 0, &slot, Who::Closer), Waited::CycleBroken));
        assert!(GRAPH.lock().edges.iter().all(|edge| edge.waiter != ThreadKey::current()));
        assert_eq!(GRAPH.lock().edges.take_if(|edge| edge.waiter == other).len(), 1);
    }
}
