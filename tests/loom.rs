//! Models of the protocol between threads, run through every interleaving that loom finds within a bound:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release --features loom --test loom
//! ```
//!
//! Each model is stated once, over the trait [`Protocol`], and run twice: with the crate's `SharedExitStack`, where it
//! must hold; and with [`Small`], the same protocol in a few lines. `Small` must hold too as it stands, and must fail
//! with each [`Bug`] put in: so the model is known to bite.
//!
//! `LOOM_MAX_PREEMPTIONS` bounds the search, 6 if unset.

#![cfg(loom)]
#![allow(missing_docs, reason = "a test")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use exitstack::{CloseError, Interpreter, SharedExitStack, drain_for_good, process_stack};
use loom::sync::mpsc::channel;
use loom::sync::{Condvar, Mutex};
use loom::thread::{self, ThreadId};

/// What the models ask of a stack between threads.
trait Protocol: Send + Sync + 'static {
    fn register(&self, handler: impl FnOnce() + Send + 'static);
    /// False if it is refused.
    fn try_register(&self, handler: impl FnOnce() + Send + 'static) -> bool;
    /// Registers a handler that fails.
    fn register_failing(&self);
    /// Returns how many handlers failed.
    fn close(&self) -> usize;
    fn finalize(&self);
    /// What C's `exit` does on this thread: when it has returned, the process ends.
    fn exit(&self);
}

/// A stack that others may be nested in.
trait Nests: Protocol {
    /// Another one, nested in this one above what is registered here.
    fn child(&self) -> Self;
}

/// What happened, in order: under a lock of loom's, so that it tries every order of the entries.
#[derive(Clone)]
struct Log(Arc<Mutex<Vec<&'static str>>>);

impl Log {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Vec::new())))
    }

    fn push(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
    }

    fn has(&self, what: &'static str) -> bool {
        self.0.lock().unwrap().contains(&what)
    }

    fn all(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().clone()
    }

    fn handler(&self, what: &'static str) -> impl FnOnce() + Send + 'static {
        let log = self.clone();
        move || log.push(what)
    }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    check_within(6, model);
}

/// Tries every interleaving with so many preemptions, if `LOOM_MAX_PREEMPTIONS` does not say otherwise.
fn check_within(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(model);
}

/// An interleaving that breaks the model in this way is found.
fn check_fails(model: impl Fn() + Send + Sync + 'static, why: &str) {
    let panic = catch_unwind(AssertUnwindSafe(|| check(model))).expect_err("the model does not see the bug");
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref().map(String::as_str));
    assert!(text.is_some_and(|text| text.contains(why)), "{text:?}, not {why:?}");
}

// ---------------------------------------------------------------------------------------------------------------------
// The models

/// One drain at a time; a second closer returns when it is done; what is registered during it is not lost.
fn second_closer_and_late_registration<P: Protocol>(new: impl Fn() -> P) {
    let (stack, log) = (Arc::new(new()), Log::new());
    stack.register(log.handler("old"));
    let inside = log.clone();
    stack.register(move || {
        inside.push("new begins");
        inside.push("new ends");
    });
    let registers = {
        let (stack, log) = (Arc::clone(&stack), log.clone());
        thread::spawn(move || {
            stack.register(log.handler("late"));
            stack.close();
            assert!(log.has("late"), "a closer returned before what it had registered ran");
            assert!(log.has("old"), "a closer returned before the drain was done");
        })
    };
    stack.close();
    assert!(log.has("old") && log.has("new ends"), "a closer returned before the drain was done");
    registers.join().unwrap();
    let mut all = log.all();
    let at = all.iter().position(|what| *what == "late").expect("late ran");
    all.remove(at);
    assert_eq!(all, ["new begins", "new ends", "old"], "once each, one after the other");
}

/// What is registered while another thread finalizes runs, or comes back.
fn finalize_against_register<P: Protocol>(new: impl Fn() -> P) {
    let (stack, log) = (Arc::new(new()), Log::new());
    let registers = {
        let (stack, log) = (Arc::clone(&stack), log.clone());
        thread::spawn(move || stack.try_register(log.handler("raced")))
    };
    stack.finalize();
    let taken = registers.join().unwrap();
    assert_eq!(taken, log.has("raced"), "taken and lost, or handed back and run");
    assert!(!stack.try_register(|| ()));
}

/// One that closes during a drain gets all that failed; one that comes after it gets nothing; none gets a part of it.
fn results_of_two_closers<P: Protocol>(new: impl Fn() -> P) {
    let stack = Arc::new(new());
    stack.register_failing();
    stack.register_failing();
    let second = {
        let stack = Arc::clone(&stack);
        thread::spawn(move || stack.close())
    };
    let failures = [stack.close(), second.join().unwrap()];
    assert!(matches!(failures, [2, 0 | 2] | [0, 2]), "failures are lost: {failures:?}");
}

/// A parent and its child are finalized by two threads: once each, the child first, and neither returns before.
fn parent_and_child<P: Nests>(new: impl Fn() -> P) {
    let (parent, log) = (new(), Log::new());
    parent.register(log.handler("older"));
    let child = Arc::new(parent.child());
    child.register(log.handler("child"));
    let second = {
        let (child, log) = (Arc::clone(&child), log.clone());
        thread::spawn(move || {
            child.finalize();
            assert!(log.has("child"), "finalized before the drain was done");
        })
    };
    parent.finalize();
    assert_eq!(log.all(), ["child", "older"], "finalized before the drain was done");
    second.join().unwrap();
    assert_eq!(log.all(), ["child", "older"]);
}

/// Handlers on two threads that close each other's stacks: both drains end.
fn circle_of_two_closers<P: Protocol>(new: impl Fn() -> P) {
    let (a, b, log) = (Arc::new(new()), Arc::new(new()), Log::new());
    for (own, other, below) in [(&a, &b, "below a"), (&b, &a, "below b")] {
        let other = Arc::clone(other);
        own.register(log.handler(below));
        own.register(move || {
            other.close();
        });
    }
    let second = {
        let (b, log) = (Arc::clone(&b), log.clone());
        thread::spawn(move || {
            b.close();
            assert!(log.has("below b"));
        })
    };
    a.close();
    assert!(log.has("below a"));
    second.join().unwrap();
    assert_eq!(log.all().len(), 2);
}

/// One thread drains the stack, another one exits: it waits for the drain.
fn exit_against_a_drain<P: Protocol>(new: impl Fn() -> P) {
    let (stack, log) = (Arc::new(new()), Log::new());
    stack.register(log.handler("old"));
    stack.register(log.handler("new"));
    let drains = {
        let stack = Arc::clone(&stack);
        thread::spawn(move || stack.close())
    };
    stack.exit();
    assert_eq!(log.all(), ["new", "old"], "the process ends under the drain");
    drains.join().unwrap();
    assert_eq!(log.all(), ["new", "old"]);
}

/// A handler exits while another thread exits too: the drain goes on below it, and neither ends under the other.
fn exit_inside_a_handler<P: Protocol>(new: impl Fn() -> P) {
    let (stack, log) = (Arc::new(new()), Log::new());
    stack.register(log.handler("below"));
    {
        let (own, log) = (Arc::clone(&stack), log.clone());
        stack.register(move || {
            own.exit();
            assert!(log.has("below"), "the process ends with handlers unrun");
        });
    }
    let exits = {
        let (stack, log) = (Arc::clone(&stack), log.clone());
        thread::spawn(move || {
            stack.exit();
            assert!(log.has("below"), "the process ends with handlers unrun");
        })
    };
    stack.close();
    exits.join().unwrap();
    assert_eq!(log.all(), ["below"]);
}

/// A handler of one stack exits, and the thread that drains the process stack waits for just that one's drain: the wait
/// is ended, not the process.
fn exit_where_waiting_closes_a_circle<P: Protocol, S: Protocol>(process: impl Fn() -> P, other: impl Fn() -> S) {
    let (process, other, log) = (Arc::new(process()), Arc::new(other()), Log::new());
    process.register(log.handler("below"));
    {
        let other = Arc::clone(&other);
        process.register(move || {
            other.close();
        });
    }
    {
        let (process, log) = (Arc::clone(&process), log.clone());
        other.register(move || {
            process.exit();
            assert!(log.has("below"), "the process ends with handlers unrun");
        });
    }
    let exits = {
        let other = Arc::clone(&other);
        thread::spawn(move || other.close())
    };
    process.close();
    exits.join().unwrap();
    assert_eq!(log.all(), ["below"]);
}

// ---------------------------------------------------------------------------------------------------------------------
// The crate's own

fn failures(result: Result<(), CloseError>) -> usize {
    result.map_or_else(|error| error.errors().len(), |()| 0)
}

impl Protocol for SharedExitStack {
    fn register(&self, handler: impl FnOnce() + Send + 'static) {
        self.register(handler);
    }

    fn try_register(&self, handler: impl FnOnce() + Send + 'static) -> bool {
        self.try_register(handler).is_ok()
    }

    fn register_failing(&self) {
        self.register(|| Err("disk full"));
    }

    fn close(&self) -> usize {
        failures(self.close())
    }

    fn finalize(&self) {
        unreachable!("an interpreter's affair");
    }

    fn exit(&self) {
        unreachable!("the process's affair");
    }
}

impl Protocol for Interpreter {
    fn register(&self, handler: impl FnOnce() + Send + 'static) {
        self.stack().register(handler);
    }

    fn try_register(&self, handler: impl FnOnce() + Send + 'static) -> bool {
        self.stack().try_register(handler).is_ok()
    }

    fn register_failing(&self) {
        self.stack().register(|| Err("disk full"));
    }

    fn close(&self) -> usize {
        failures(self.stack().close())
    }

    fn finalize(&self) {
        Interpreter::finalize(self).unwrap();
    }

    fn exit(&self) {
        let _ = drain_for_good();
    }
}

impl Nests for Interpreter {
    fn child(&self) -> Self {
        self.subinterpreter("child")
    }
}

/// The process stack.
struct Process;

impl Protocol for Process {
    fn register(&self, handler: impl FnOnce() + Send + 'static) {
        process_stack().register(handler);
    }

    fn try_register(&self, handler: impl FnOnce() + Send + 'static) -> bool {
        process_stack().try_register(handler).is_ok()
    }

    fn register_failing(&self) {
        process_stack().register(|| Err("disk full"));
    }

    fn close(&self) -> usize {
        failures(process_stack().close())
    }

    fn finalize(&self) {
        self.exit();
    }

    fn exit(&self) {
        let _ = drain_for_good();
    }
}

#[test]
fn a_closer_waits_and_a_late_registration_runs() {
    check(|| second_closer_and_late_registration(SharedExitStack::new));
}

#[test]
fn what_races_with_finalize_runs_or_comes_back() {
    check(|| finalize_against_register(|| Interpreter::new("raced")));
}

#[test]
fn handlers_that_close_each_others_stacks_end() {
    check(|| circle_of_two_closers(SharedExitStack::new));
}

/// One of two threads finalizes the parent, one the child.
#[test]
fn two_finalizers_run_each_handler_once() {
    check(|| parent_and_child(|| Interpreter::new("parent")));
}

/// Unless it came after the first one: then there is nothing to get.
#[test]
fn a_second_closer_gets_the_first_ones_result() {
    check(|| results_of_two_closers(SharedExitStack::new));
}

/// A handler of the child closes the parent, and fails. The parent's finalizer may wait for that close, and then for the
/// child: it returns what failed in either.
#[test]
fn a_finalizer_that_waits_twice_returns_both() {
    static SEEN: AtomicBool = AtomicBool::new(false);
    check(|| {
        let parent = Interpreter::new("parent");
        parent.stack().register(|| Err("the parent's"));
        let child = parent.child();
        let (runs, wait_runs) = channel();
        let inside = parent.clone();
        child.stack().register(move || {
            runs.send(()).unwrap();
            let _ = inside.close();
            Err("the child's")
        });
        let second = thread::spawn(move || child.finalize().unwrap_err());
        wait_runs.recv().unwrap();
        let failed: Vec<String> = parent.finalize().err().iter().flat_map(|e| e).map(|e| format!("{e:#}")).collect();
        if let [first, second] = &failed[..] {
            SEEN.fetch_or(first.contains("the parent's") && second.contains("the child's"), Ordering::Relaxed);
        }
        assert_eq!(second.join().unwrap().errors().len(), 1);
    });
    assert!(SEEN.load(Ordering::Relaxed));
}

#[test]
fn what_races_with_the_exit_runs_or_comes_back() {
    check(|| finalize_against_register(|| Process));
}

#[test]
fn an_exit_waits_for_the_thread_that_drains() {
    check(|| exit_against_a_drain(|| Process));
    check(|| exit_against_a_drain(|| Interpreter::new("drained")));
}

#[test]
fn an_exit_inside_a_handler_resumes_the_drain() {
    // An exit takes many locks: with 6 preemptions this alone takes some minutes.
    check_within(4, || exit_inside_a_handler(|| Process));
    check_within(4, || exit_inside_a_handler(|| Interpreter::new("drained")));
}

/// Where its own wait would close a circle, it is the other wait that ends.
#[test]
fn an_exit_breaks_the_circle_it_would_wait_in() {
    check(|| exit_where_waiting_closes_a_circle(|| Process, SharedExitStack::new));
    check(|| exit_where_waiting_closes_a_circle(|| Process, || Interpreter::new("drained")));
}

// ---------------------------------------------------------------------------------------------------------------------
// The protocol in a few lines, with a bug or without

#[derive(Clone, Copy, PartialEq)]
enum Bug {
    None,
    /// Each thread that closes drains.
    TwoDrains,
    /// A second closer does not wait.
    NoWait,
    /// That the list is empty is found in one critical section, and the drain ended in another one.
    EndedLater,
    /// Nobody looks for a circle.
    CircleUnseen,
    /// The circle is looked for in one critical section, and the edge added in another one.
    EdgeAddedLater,
    /// An exit that would close a circle returns, as a close does.
    ExitGivesUp,
    /// An exit inside a handler returns, as a close does.
    ExitForgets,
}

/// What all stacks of a model share.
struct World {
    bug: Bug,
    /// Waiter, owner, and where the waiter waits.
    edges: Mutex<Vec<(ThreadId, ThreadId, Arc<Latch>)>>,
}

/// Where the end of a drain is awaited: set to how many handlers failed.
struct Latch {
    set: Mutex<Option<usize>>,
    changed: Condvar,
}

#[derive(Clone)]
struct Small {
    world: Arc<World>,
    state: Arc<Mutex<State>>,
}

enum Item {
    /// A handler, which returns whether it failed.
    Handler(Box<dyn FnOnce() -> bool + Send>),
    Nested(Small),
}

struct State {
    items: Vec<Item>,
    drain: Option<Drain>,
    last: bool,
    over: bool,
}

struct Drain {
    owner: ThreadId,
    failures: usize,
    latch: Arc<Latch>,
}

impl World {
    fn new(bug: Bug) -> Arc<Self> {
        Arc::new(Self { bug, edges: Mutex::new(Vec::new()) })
    }

    fn wait(&self, owner: ThreadId, latch: &Arc<Latch>, exits: bool) -> usize {
        let waiter = thread::current().id();
        let mut edges = self.edges.lock().unwrap();
        let mut at = owner;
        while let Some((_, next, waits)) = edges.iter().find(|(thread, _, latch)| *thread == at && !latch.is_set()) {
            at = *next;
            if at == waiter && self.bug != Bug::CircleUnseen {
                if !exits || self.bug == Bug::ExitGivesUp {
                    return 0;
                }
                waits.set(0);
                break;
            }
            if at == waiter {
                break;
            }
        }
        if self.bug == Bug::EdgeAddedLater {
            drop(edges);
            edges = self.edges.lock().unwrap();
        }
        edges.push((waiter, owner, Arc::clone(latch)));
        drop(edges);
        let failures = latch.wait();
        self.edges.lock().unwrap().retain(|(thread, ..)| *thread != waiter);
        failures
    }
}

impl Latch {
    fn new() -> Arc<Self> {
        Arc::new(Self { set: Mutex::new(None), changed: Condvar::new() })
    }

    fn set(&self, failures: usize) {
        self.set.lock().unwrap().get_or_insert(failures);
        self.changed.notify_all();
    }

    fn is_set(&self) -> bool {
        self.set.lock().unwrap().is_some()
    }

    fn wait(&self) -> usize {
        let mut set = self.set.lock().unwrap();
        loop {
            match *set {
                Some(failures) => return failures,
                None => set = self.changed.wait(set).unwrap(),
            }
        }
    }
}

impl Small {
    fn new(world: &Arc<World>) -> Self {
        let state = State { items: Vec::new(), drain: None, last: false, over: false };
        Self { world: Arc::clone(world), state: Arc::new(Mutex::new(state)) }
    }

    fn drain(&self, last: bool, exits: bool) -> usize {
        let (me, bug) = (thread::current().id(), self.world.bug);
        {
            let mut state = self.state.lock().unwrap();
            if state.over {
                return 0;
            }
            state.last |= last;
            match &state.drain {
                None => state.drain = Some(Drain { owner: me, failures: 0, latch: Latch::new() }),
                Some(drain) if drain.owner == me && exits && bug != Bug::ExitForgets => {}
                Some(drain) if drain.owner == me => return 0,
                Some(drain) if bug == Bug::NoWait => return drain.failures,
                Some(_) if bug == Bug::TwoDrains => {}
                Some(drain) => {
                    let (owner, latch) = (drain.owner, Arc::clone(&drain.latch));
                    drop(state);
                    return self.world.wait(owner, &latch, exits);
                }
            }
        }
        loop {
            let mut state = self.state.lock().unwrap();
            let failures = match state.items.pop() {
                Some(Item::Handler(handler)) => {
                    drop(state);
                    usize::from(handler())
                }
                Some(Item::Nested(child)) => {
                    // It keeps its place until it is drained: an exit inside of it must find it.
                    state.items.push(Item::Nested(child.clone()));
                    drop(state);
                    let failures = child.drain(true, exits);
                    self.state.lock().unwrap().items.retain(|item| !item.is(&child));
                    failures
                }
                None => {
                    if bug == Bug::EndedLater {
                        drop(state);
                        state = self.state.lock().unwrap();
                    }
                    state.over = state.last;
                    let drain = state.drain.take();
                    drop(state);
                    let Some(drain) = drain else { return 0 };
                    drain.latch.set(drain.failures);
                    return drain.failures;
                }
            };
            if let Some(drain) = &mut self.state.lock().unwrap().drain {
                drain.failures += failures;
            }
        }
    }

    /// Whether it was taken.
    fn add(&self, item: Item) -> bool {
        let mut state = self.state.lock().unwrap();
        if !state.over {
            state.items.push(item);
        }
        !state.over
    }
}

impl Item {
    fn is(&self, stack: &Small) -> bool {
        matches!(self, Self::Nested(own) if Arc::ptr_eq(&own.state, &stack.state))
    }
}

impl Protocol for Small {
    fn register(&self, handler: impl FnOnce() + Send + 'static) {
        self.try_register(handler);
    }

    fn try_register(&self, handler: impl FnOnce() + Send + 'static) -> bool {
        self.add(Item::Handler(Box::new(|| {
            handler();
            false
        })))
    }

    fn register_failing(&self) {
        self.add(Item::Handler(Box::new(|| true)));
    }

    fn close(&self) -> usize {
        self.drain(false, false)
    }

    fn finalize(&self) {
        self.drain(true, false);
    }

    fn exit(&self) {
        self.drain(true, true);
    }
}

impl Nests for Small {
    fn child(&self) -> Self {
        let child = Self::new(&self.world);
        assert!(self.add(Item::Nested(child.clone())));
        child
    }
}

/// The model holds without a bug, and fails with each of these in the way named.
fn bites(model: fn(&dyn Fn() -> Small), bugs: &[(Bug, &str)]) {
    let with = |bug| {
        move || {
            let world = World::new(bug);
            model(&|| Small::new(&world));
        }
    };
    check(with(Bug::None));
    for (bug, why) in bugs {
        check_fails(with(*bug), why);
    }
}

const RETURNED_EARLY: &str = "a closer returned before";
const DEADLOCK: &str = "deadlock";
const UNRUN: &str = "the process ends with handlers unrun";
const UNDER_THE_DRAIN: &str = "the process ends under the drain";

#[test]
fn the_model_of_a_second_closer_bites() {
    let bugs = [(Bug::TwoDrains, RETURNED_EARLY), (Bug::NoWait, RETURNED_EARLY), (Bug::EndedLater, RETURNED_EARLY)];
    bites(|new| second_closer_and_late_registration(new), &bugs);
}

#[test]
fn the_model_of_what_two_closers_return_bites() {
    let lost = "failures are lost";
    bites(|new| results_of_two_closers(new), &[(Bug::TwoDrains, lost), (Bug::NoWait, lost)]);
}

#[test]
fn the_model_of_parent_and_child_bites() {
    let early = "finalized before the drain was done";
    bites(|new| parent_and_child(new), &[(Bug::NoWait, early), (Bug::TwoDrains, early)]);
}

#[test]
fn the_model_of_finalize_against_register_bites() {
    bites(|new| finalize_against_register(new), &[(Bug::EndedLater, "taken and lost")]);
}

#[test]
fn the_model_of_two_closers_in_a_circle_bites() {
    bites(|new| circle_of_two_closers(new), &[(Bug::CircleUnseen, DEADLOCK), (Bug::EdgeAddedLater, DEADLOCK)]);
}

#[test]
fn the_models_of_the_exit_bite() {
    let bugs = [(Bug::NoWait, UNDER_THE_DRAIN), (Bug::TwoDrains, UNDER_THE_DRAIN)];
    bites(|new| exit_against_a_drain(new), &bugs);
    bites(|new| exit_inside_a_handler(new), &[(Bug::ExitForgets, UNRUN), (Bug::NoWait, UNRUN)]);
    let bugs = [(Bug::ExitGivesUp, UNRUN), (Bug::CircleUnseen, DEADLOCK)];
    bites(|new| exit_where_waiting_closes_a_circle(new, new), &bugs);
}
