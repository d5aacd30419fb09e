//! Models of the protocol between threads, run through every interleaving that loom finds within a bound:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release --test loom
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

use exitstack::{Interpreter, SharedExitStack, drain_for_good, process_stack};
use loom::sync::{Condvar, Mutex};
use loom::thread::{self, ThreadId};

/// What the models ask of a stack between threads.
trait Protocol: Send + Sync + 'static {
    fn register(&self, handler: impl FnOnce() + Send + 'static);
    /// False if it is refused.
    fn try_register(&self, handler: impl FnOnce() + Send + 'static) -> bool;
    fn close(&self);
    fn finalize(&self);
    /// What C's `exit` does on this thread: when it has returned, the process ends.
    fn exit(&self);
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
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(6));
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

/// One drain at a time; a second closer returns when it is done; what is registered meanwhile is not lost.
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

/// Handlers on two threads that close each other's stacks: both drains end.
fn circle_of_two_closers<P: Protocol>(new: impl Fn() -> P) {
    let (a, b, log) = (Arc::new(new()), Arc::new(new()), Log::new());
    for (own, other, below) in [(&a, &b, "below a"), (&b, &a, "below b")] {
        let other = Arc::clone(other);
        own.register(log.handler(below));
        own.register(move || other.close());
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
        process.register(move || other.close());
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

impl Protocol for SharedExitStack {
    fn register(&self, handler: impl FnOnce() + Send + 'static) {
        self.register(handler);
    }

    fn try_register(&self, handler: impl FnOnce() + Send + 'static) -> bool {
        self.try_register(handler).is_ok()
    }

    fn close(&self) {
        self.close().unwrap();
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

    fn close(&self) {
        self.stack().close().unwrap();
    }

    fn finalize(&self) {
        Interpreter::finalize(self).unwrap();
    }

    fn exit(&self) {
        let _ = drain_for_good();
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

    fn close(&self) {
        process_stack().close().unwrap();
    }

    fn finalize(&self) {
        self.exit();
    }

    fn exit(&self) {
        let _ = drain_for_good();
    }
}

#[test]
fn a_second_closer_waits_and_a_late_registration_runs() {
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

#[test]
fn parent_and_child_finalized_by_two_threads_run_each_handler_once() {
    check(|| {
        let log = Log::new();
        let parent = Interpreter::new("parent");
        parent.stack().register(log.handler("older"));
        let child = parent.subinterpreter("child");
        child.stack().register(log.handler("child"));
        let second = {
            let (child, log) = (child.clone(), log.clone());
            thread::spawn(move || {
                child.finalize().unwrap();
                assert!(log.has("child"));
            })
        };
        parent.finalize().unwrap();
        assert_eq!(log.all(), ["child", "older"]);
        second.join().unwrap();
        assert_eq!(log.all(), ["child", "older"]);
    });
}

#[test]
fn a_second_closer_gets_the_first_ones_result_or_came_after_it() {
    check(|| {
        let stack = Arc::new(SharedExitStack::new());
        stack.register(|| Err("disk full"));
        let second = {
            let stack = Arc::clone(&stack);
            thread::spawn(move || stack.close())
        };
        let results = [stack.close(), second.join().unwrap()];
        let failures: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
        assert!(!failures.is_empty() && failures.iter().all(|error| error.errors().len() == 1));
    });
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
fn an_exit_inside_a_handler_goes_on_with_the_drain() {
    check(|| exit_inside_a_handler(|| Process));
    check(|| exit_inside_a_handler(|| Interpreter::new("drained")));
}

#[test]
fn an_exit_whose_wait_would_close_a_circle_ends_the_other_wait() {
    check(|| exit_where_waiting_closes_a_circle(|| Process, SharedExitStack::new));
    check(|| exit_where_waiting_closes_a_circle(|| Process, || Interpreter::new("drained")));
}

// ---------------------------------------------------------------------------------------------------------------------
// The protocol in a few lines, with a bug or without

#[derive(Clone, Copy, PartialEq)]
enum Bug {
    None,
    /// Whoever closes drains.
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

type Work = Box<dyn FnOnce() + Send>;

/// What all stacks of a model share.
struct World {
    bug: Bug,
    /// Waiter, owner, and where the waiter waits.
    edges: Mutex<Vec<(ThreadId, ThreadId, Arc<Latch>)>>,
}

struct Latch {
    set: Mutex<bool>,
    changed: Condvar,
}

struct Small {
    world: Arc<World>,
    state: Mutex<State>,
}

struct State {
    handlers: Vec<Work>,
    /// Who drains, and where others wait for that.
    drain: Option<(ThreadId, Arc<Latch>)>,
    last: bool,
    over: bool,
}

impl World {
    fn new(bug: Bug) -> Arc<Self> {
        Arc::new(Self { bug, edges: Mutex::new(Vec::new()) })
    }

    fn wait(&self, owner: ThreadId, latch: &Arc<Latch>, exits: bool) {
        let waiter = thread::current().id();
        let mut edges = self.edges.lock().unwrap();
        let mut at = owner;
        while let Some((_, next, waits)) = edges.iter().find(|(thread, _, latch)| *thread == at && !latch.is_set()) {
            at = *next;
            if at == waiter && self.bug != Bug::CircleUnseen {
                if !exits || self.bug == Bug::ExitGivesUp {
                    return;
                }
                waits.set();
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
        latch.wait();
        self.edges.lock().unwrap().retain(|(thread, ..)| *thread != waiter);
    }
}

impl Latch {
    fn new() -> Arc<Self> {
        Arc::new(Self { set: Mutex::new(false), changed: Condvar::new() })
    }

    fn set(&self) {
        *self.set.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn is_set(&self) -> bool {
        *self.set.lock().unwrap()
    }

    fn wait(&self) {
        let mut set = self.set.lock().unwrap();
        while !*set {
            set = self.changed.wait(set).unwrap();
        }
    }
}

impl Small {
    fn new(world: &Arc<World>) -> Self {
        let state = State { handlers: Vec::new(), drain: None, last: false, over: false };
        Self { world: Arc::clone(world), state: Mutex::new(state) }
    }

    fn drain(&self, last: bool, exits: bool) {
        let (me, bug) = (thread::current().id(), self.world.bug);
        {
            let mut state = self.state.lock().unwrap();
            if state.over {
                return;
            }
            state.last |= last;
            match &state.drain {
                None => state.drain = Some((me, Latch::new())),
                Some((owner, _)) if *owner == me && exits && bug != Bug::ExitForgets => {}
                Some((owner, _)) if *owner == me || bug == Bug::NoWait => return,
                Some(_) if bug == Bug::TwoDrains => {}
                Some((owner, latch)) => {
                    let (owner, latch) = (*owner, Arc::clone(latch));
                    drop(state);
                    return self.world.wait(owner, &latch, exits);
                }
            }
        }
        loop {
            let mut state = self.state.lock().unwrap();
            if let Some(handler) = state.handlers.pop() {
                drop(state);
                handler();
                continue;
            }
            if bug == Bug::EndedLater {
                drop(state);
                state = self.state.lock().unwrap();
            }
            state.over = state.last;
            let drain = state.drain.take();
            drop(state);
            if let Some((_, latch)) = drain {
                latch.set();
            }
            return;
        }
    }
}

impl Protocol for Small {
    fn register(&self, handler: impl FnOnce() + Send + 'static) {
        self.try_register(handler);
    }

    fn try_register(&self, handler: impl FnOnce() + Send + 'static) -> bool {
        let mut state = self.state.lock().unwrap();
        if !state.over {
            state.handlers.push(Box::new(handler));
        }
        !state.over
    }

    fn close(&self) {
        self.drain(false, false);
    }

    fn finalize(&self) {
        self.drain(true, false);
    }

    fn exit(&self) {
        self.drain(true, true);
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
