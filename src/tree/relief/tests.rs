//! Tests of who resumes what was given up, whatever other threads do in between.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::super::drains::Acquired;
use super::super::wait_graph::Who;
use super::super::{Node, Parent, Purpose, Spot};
use super::*;
use crate::Handler;
use crate::error::Outcome;

const PATIENCE: Duration = Duration::from_secs(60);

/// What comes before a drain that is given up is the outermost of those that its thread has further in.
#[test]
fn the_outermost_of_a_threads_drains_further_in_comes_first() {
    let root = Spot::Node(Node::new("root".into(), Parent::None));
    let [thread, another, key] = [(); 3].map(|()| ThreadKey::fresh());
    let mut frames = Chain::new();
    let (drains, runs_out_of_turn) = (Some(Purpose::Finalize), None);
    for (teardown, thread, purpose) in [
        (1, thread, drains),
        (2, another, drains),
        (3, thread, runs_out_of_turn),
        (4, another, drains),
        (5, thread, drains),
        (6, thread, drains),
        (7, thread, runs_out_of_turn),
    ] {
        let (root, given_up) = (root.clone(), Some(key));
        let (watch, run, slot, is_replaced, is_lost) = (None, None, None, false, false);
        let frame = Frame { teardown, thread, root, purpose, watch, run, given_up, slot, is_replaced, is_lost };
        frames.push(Link::new(frame));
    }
    let outermost = [1, 4, 5, 6].map(|further_out| further_in(&frames, thread, further_out).map(|left| left.teardown));
    assert_eq!(outermost, [Some(5), Some(5), Some(6), None]);
    assert!(further_in(&frames, thread, 1).is_some_and(|left| left.key == key));
}

/// Who is in the handler that keeps a watched drain from going on.
#[derive(PartialEq)]
enum On {
    ItsThread,
    Another,
}
use On::{Another, ItsThread};

/// Waits for such a handler.
fn blocking(watch: &Arc<Watch>, on: &On) -> Blocking {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(blocking) = watch.blocking().filter(|blocking| blocking.is_driver == (*on == ItsThread)) {
            return blocking;
        }
        assert!(Instant::now() < end, "nothing keeps it from going on");
        thread::yield_now();
    }
}

/// Gives that handler up.
fn give_up(watch: &Arc<Watch>, on: &On) {
    assert_eq!(watch.give_up(&blocking(watch, on)), Some(*on == ItsThread));
}

fn watch(node: &Arc<Node>) -> Arc<Watch> {
    Watch::begin(Spot::Node(Arc::clone(node)), Instant::now(), None, false, Box::new(|_, _| None), None)
}

/// Drains what is watched on a new thread, which returns whether it was not replaced.
fn drains(watch: &Arc<Watch>) -> JoinHandle<bool> {
    let watch = Arc::clone(watch);
    thread::spawn(move || watch.drive(|| watch.root.stack().drain_watched(Purpose::Finalize, Outcome::Success)).is_ok())
}

/// An interpreter whose only handler finalizes another one, whose handlers hang.
struct Nested {
    outer: Arc<Node>,
    inner: Arc<Node>,
    begun: Receiver<&'static str>,
    /// Releases the handlers.
    hanging: Vec<Sender<()>>,
}

impl Nested {
    /// The handler named first begins first.
    fn new(handlers: &[&'static str]) -> Self {
        let [outer, inner] = ["outer", "inner"].map(|name| Node::new(name.into(), Parent::None));
        let (begins, begun) = channel();
        let hang = |&name: &&'static str| {
            let (begins, (end, ended)) = (begins.clone(), channel::<()>());
            let hangs = move || {
                begins.send(name).unwrap();
                let _ = ended.recv();
            };
            inner.stack.register(Handler::new(hangs).named(name));
            end
        };
        let hanging = handlers.iter().rev().map(hang).collect();
        let of = Arc::clone(&inner);
        outer.stack.register(move || of.stack.drain(Purpose::Finalize, Outcome::Success));
        Self { outer, inner, begun, hanging }
    }

    fn await_begin(&self, name: &str) {
        assert_eq!(self.begun.recv_timeout(PATIENCE), Ok(name));
    }

    /// Lets the handlers end. Returns what the threads do.
    fn end(self, threads: Vec<JoinHandle<bool>>) -> Vec<bool> {
        drop(self.hanging);
        let ended = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(self.outer.stack.is_closed() && self.inner.stack.is_closed());
        ended
    }
}

/// Waits for threads that end although handlers hang.
fn join_soon(threads: Vec<JoinHandle<bool>>) -> Vec<bool> {
    let end = Instant::now() + PATIENCE;
    let join = |thread: JoinHandle<bool>| {
        while !thread.is_finished() {
            assert!(Instant::now() < end, "a thread hangs");
            thread::yield_now();
        }
        thread.join().unwrap()
    };
    threads.into_iter().map(join).collect()
}

/// What a thread drains itself has what comes first behind it already, and nobody waits where no thread drains.
#[test]
fn only_another_threads_drain_waits_for_a_handler_out_of_turn() {
    let stack = &Node::new("interpreter".into(), Parent::None).stack;
    let (me, [another, key]) = (ThreadKey::current(), [(); 2].map(|()| ThreadKey::fresh()));
    assert!(!stack.is_drained_by_other(another, key));
    let drain = stack.acquire(Purpose::Finalize, Outcome::Success, 1, None, Who::MustWait);
    assert!(matches!(drain, Acquired::Mine));
    let waits = [(me, key), (another, me), (another, key)].map(|(lost, key)| stack.is_drained_by_other(lost, key));
    assert_eq!(waits, [false, false, true]);
}

#[test]
fn nothing_waits_for_a_handler_that_was_given_up_before() {
    let node = Node::new("interpreter".into(), Parent::None);
    let mut links = vec![Link::new(OutOfTurn::given_up())];
    for _ in 0..2 {
        assert!(node.stack.lock().note_given_up(0, ThreadKey::current(), &mut links).is_none());
    }
    node.stack.come_back(0);
}

/// One watch goes on without the first thread, and gives up the second. Then the other watch gives up the first thread, and
/// finds there what the second has resumed.
#[test]
fn what_is_given_up_again_on_its_first_thread_is_resumed_where_it_is_now() {
    let nested = Nested::new(&["one", "two"]);
    let [first, second] = [watch(&nested.outer), watch(&nested.outer)];
    let mut late = vec![drains(&first)];
    nested.await_begin("one");
    late.push(drains(&second));
    give_up(&second, &Another);
    nested.await_begin("two");
    give_up(&second, &ItsThread);
    give_up(&first, &ItsThread);
    let resume = |watch: Arc<Watch>| thread::spawn(move || watch.resume().is_ok());
    assert_eq!(join_soon([second, first].map(resume).into()), [true, true]);
    assert_eq!(nested.end(late), [false, false]);
}

/// A thread that resumes a drain further in is given up there, and then in the drain for which it does that.
#[test]
fn who_resumes_a_drain_further_in_is_given_up_for_the_one_further_out() {
    let nested = Nested::new(&["one", "two", "three"]);
    let around = Node::new("around".into(), Parent::None);
    let outer = Arc::clone(&nested.outer);
    around.stack.register(move || outer.stack.drain(Purpose::Finalize, Outcome::Success));
    let [first, second, last] = [&nested.outer, &around, &nested.outer].map(watch);
    let of_inner = watch(&nested.inner);
    let mut late = vec![drains(&first)];
    nested.await_begin("one");
    late.push(drains(&second));
    give_up(&second, &Another);
    nested.await_begin("two");
    late.push(drains(&of_inner));
    give_up(&of_inner, &Another);
    nested.await_begin("three");
    let drains_outer = drains(&last);
    assert_eq!(blocking(&last, &Another).run.site.name.as_deref(), Some("two"));
    give_up(&last, &Another);
    give_up(&of_inner, &ItsThread);
    assert!(of_inner.resume().is_ok());
    assert_eq!(join_soon(vec![drains_outer]), [true]);
    assert_eq!(nested.end(late), [true, true, false]);
}
