//! Models of the protocol between threads, run through every interleaving that loom finds within a bound:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release --features loom --test loom
//! ```
//!
//! Each model is written once, over the trait [`Protocol`], and most are run twice: with the crate's own stacks, where it
//! must hold; and with [`Small`], a small copy of the protocol. `Small` must hold as well, and must fail with each
//! [`Bug`] injected, which proves that the model can detect it.
//!
//! `LOOM_MAX_PREEMPTIONS` bounds the search. If it is unset, that is 6, and 2 to 4 for the models with more threads.

#![cfg(loom)]
#![allow(missing_docs, reason = "a test")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use exitstack::shutdown::Modelled;
use exitstack::{CloseError, Interpreter, SharedExitStack, drain_for_good, process_stack};
use loom::sync::mpsc::{Receiver, Sender, channel};
use loom::sync::{Condvar, Mutex};
use loom::thread::{self, ThreadId};

/// What the models need of a stack shared between threads.
trait Protocol: Send + Sync + 'static {
    fn register(&self, handler: impl FnOnce() + Send + 'static);
    /// Returns false if the handler is refused.
    fn try_register(&self, handler: impl FnOnce() + Send + 'static) -> bool;
    /// Registers a handler that fails.
    fn register_failing(&self);
    /// Returns how many handlers failed.
    fn close(&self) -> usize;
    fn finalize(&self);
    /// Does what C's `exit` does on this thread. When it returns, the process ends.
    fn exit(&self);
}

/// A stack that others can be nested in.
trait Nests: Protocol {
    /// Creates another stack, nested in this one above what is registered so far.
    fn child(&self) -> Self;
}

/// A stack whose drain another thread can continue if a handler takes too long.
trait Relieves: Protocol {
    /// A drain that can be given up.
    type Drain: Clone + Send + 'static;

    fn begin(&self) -> Self::Drain;
    /// Drains. Returns false if this thread was given up.
    fn drain(drain: &Self::Drain) -> bool;
    /// Gives up the handler that is running, if any. Returns true if another thread must continue.
    fn give_up(drain: &Self::Drain) -> bool;
    /// Continues the drain. Returns false if this thread was given up in turn.
    fn resume(drain: &Self::Drain) -> bool;
}

/// What happened, in order. The lock is loom's, so that every order of the entries is tried.
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

/// Returns what a handler does that runs until it is released, and the means to wait for its start and to release it.
fn held() -> (impl FnOnce() + Send + 'static, Held) {
    let ((begins, begun), (release, released)) = (channel(), channel());
    let handler = move || {
        begins.send(()).unwrap();
        released.recv().unwrap();
    };
    (handler, Held { begun, release })
}

struct Held {
    begun: Receiver<()>,
    release: Sender<()>,
}

impl Held {
    fn until_it_runs(&self) {
        self.begun.recv().unwrap();
    }

    fn release(&self) {
        self.release.send(()).unwrap();
    }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    check_within(6, model);
}

/// Tries every interleaving with this many preemptions, unless `LOOM_MAX_PREEMPTIONS` is set.
fn check_within(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(model);
}

/// Checks that an interleaving is found that breaks the model with this message.
fn check_fails(model: impl Fn() + Send + Sync + 'static, why: &str) {
    let panic = catch_unwind(AssertUnwindSafe(|| check(model))).expect_err("the model does not see the bug");
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref().map(String::as_str));
    assert!(text.is_some_and(|text| text.contains(why)), "{text:?}, not {why:?}");
}

// ---------------------------------------------------------------------------------------------------------------------
// The models

/// There is one drain at a time, a second closer returns when it is done, and a handler registered during it is not
/// lost.
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

/// A handler registered while another thread finalizes either runs or is handed back.
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

/// A closer that arrives during a drain gets all failures, and one that arrives after it gets none; no closer gets only
/// some.
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

/// Two threads finalize a parent and its child: each once, the child first, and neither call returns before its drain
/// is done.
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

/// Handlers on two threads close each other's stacks, and both drains end.
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

/// One thread drains the stack while another exits: the exit waits for the drain.
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

/// A handler exits while another thread exits as well: the drain continues below it, and neither exit ends before the
/// drain.
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

/// A handler of one stack exits while the thread that drains the process stack is waiting for that handler's drain.
/// That wait must end, not the process.
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

/// A handler returns while it is being given up: either its thread continues the drain or another thread does, never
/// both.
fn owner_returns_while_it_is_relieved<P: Relieves>(new: impl Fn() -> P) {
    let (stack, log) = (new(), Log::new());
    stack.register(log.handler("below"));
    stack.register(log.handler("late"));
    let drain = stack.begin();
    let owner = {
        let drain = drain.clone();
        thread::spawn(move || P::drain(&drain))
    };
    let gave_up = P::give_up(&drain);
    if gave_up {
        assert!(P::resume(&drain), "the thread that goes on is not told so");
        // All but the handler that was given up.
        assert!(!log.all().is_empty(), "over before the drain was done");
    }
    assert_eq!(owner.join().unwrap(), !gave_up, "a late thread went on");
    let mut all = log.all();
    all.sort_unstable(); // the handler that was given up may be slower than those below it
    assert_eq!(all, ["below", "late"]);
}

/// The thread that continues is given up as well.
fn two_reliefs_in_a_row<P: Relieves>(new: impl Fn() -> P) {
    let (stack, log) = (new(), Log::new());
    stack.register(log.handler("below"));
    stack.register(log.handler("second"));
    stack.register(log.handler("first"));
    let drain = stack.begin();
    let goes_on = |drain: &P::Drain, work: fn(&P::Drain) -> bool| {
        let drain = drain.clone();
        thread::spawn(move || work(&drain))
    };
    let mut threads = vec![goes_on(&drain, P::drain)];
    if P::give_up(&drain) {
        threads.push(goes_on(&drain, P::resume));
        if P::give_up(&drain) {
            threads.push(goes_on(&drain, P::resume));
        }
    }
    let not_late: Vec<bool> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let last = not_late.len() - 1;
    assert!(not_late.iter().enumerate().all(|(at, not_late)| *not_late == (at == last)), "a late thread went on");
    let mut all = log.all();
    all.sort_unstable();
    assert_eq!(all, ["below", "first", "second"]);
}

/// A third thread waits for the drain, in `close` or in `exit`, until the thread that continues it is done.
fn another_waits_for_what_is_relieved<P: Relieves>(new: impl Fn() -> P, waits: fn(&P)) {
    let (stack, log) = (Arc::new(new()), Log::new());
    stack.register(log.handler("last"));
    stack.register(log.handler("below"));
    let (begins, begun) = channel();
    let inside = log.clone();
    stack.register(move || {
        begins.send(()).unwrap();
        inside.push("late");
    });
    let drain = stack.begin();
    let owner = {
        let drain = drain.clone();
        thread::spawn(move || P::drain(&drain))
    };
    let waiter = {
        let (stack, log) = (Arc::clone(&stack), log.clone());
        thread::spawn(move || {
            begun.recv().unwrap(); // so that it does not start the drain itself
            waits(&stack);
            // All but the handler that was given up.
            assert!(log.all().len() >= 2, "a closer returned before the drain was done");
        })
    };
    let gave_up = P::give_up(&drain);
    if gave_up {
        assert!(P::resume(&drain));
    }
    waiter.join().unwrap();
    assert_eq!(owner.join().unwrap(), !gave_up, "a late thread went on");
    let mut all = log.all();
    all.sort_unstable();
    assert_eq!(all, ["below", "last", "late"]);
}

// ---------------------------------------------------------------------------------------------------------------------
// The crate's own stacks

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
        let failed = failures(Interpreter::finalize(self));
        assert!(failed <= 1, "only what was given up");
    }

    fn exit(&self) {
        let _ = drain_for_good(None);
    }
}

impl Nests for Interpreter {
    fn child(&self) -> Self {
        self.subinterpreter("child")
    }
}

impl Relieves for Interpreter {
    type Drain = Modelled;

    fn begin(&self) -> Modelled {
        self.modelled()
    }

    fn drain(drain: &Modelled) -> bool {
        drain.drain().is_some()
    }

    fn give_up(drain: &Modelled) -> bool {
        drain.give_up()
    }

    fn resume(drain: &Modelled) -> bool {
        drain.resume().is_some()
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
        let _ = drain_for_good(None);
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

/// One thread finalizes the parent, the other the child.
#[test]
fn two_finalizers_run_each_handler_once() {
    check(|| parent_and_child(|| Interpreter::new("parent")));
}

/// Unless it arrives after the first one has finished: then there is nothing to get.
#[test]
fn a_second_closer_gets_the_first_ones_result() {
    check(|| results_of_two_closers(SharedExitStack::new));
}

/// A handler of the child closes the parent and then fails. The parent's finalizer may wait first for that close and
/// then for the child; it returns the failures of both.
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
    // An exit takes many locks: with 6 preemptions, this alone would take minutes.
    check_within(4, || exit_inside_a_handler(|| Process));
    check_within(4, || exit_inside_a_handler(|| Interpreter::new("drained")));
}

/// If an exit's own wait would close a cycle, the other wait ends instead.
#[test]
fn an_exit_breaks_the_circle_it_would_wait_in() {
    check(|| exit_where_waiting_closes_a_circle(|| Process, SharedExitStack::new));
    check(|| exit_where_waiting_closes_a_circle(|| Process, || Interpreter::new("drained")));
}

// A watched drain takes many more locks, so these have lower bounds.

#[test]
fn an_owner_that_returns_while_it_is_relieved_is_late() {
    check_within(3, || owner_returns_while_it_is_relieved(|| Interpreter::new("relieved")));
}

#[test]
fn a_relief_is_relieved_in_turn() {
    check_within(4, || two_reliefs_in_a_row(|| Interpreter::new("relieved")));
}

#[test]
fn a_closer_waits_for_the_relief() {
    check_within(3, || another_waits_for_what_is_relieved(|| Interpreter::new("relieved"), Protocol::finalize));
}

#[test]
fn an_exit_waits_for_the_relief() {
    check_within(3, || another_waits_for_what_is_relieved(|| Interpreter::new("relieved"), Protocol::exit));
}

/// Another thread has ended a drain when its own thread begins one inside it, and is given up there.
#[test]
fn what_is_begun_inside_a_drain_that_is_over_goes_on() {
    check_within(2, || {
        let [plugin, inside] = ["plugin", "inside"].map(Interpreter::detached);
        let log = Log::new();
        inside.register(log.handler("inside"));
        let (stuck, held_inside) = held();
        inside.register(stuck);
        plugin.register(log.handler("plugin"));
        let (waits, held_plugin) = held();
        let begun = inside.clone();
        plugin.register(move || {
            waits();
            Protocol::finalize(&begun);
        });
        let [own, other] = [plugin.begin(), plugin.begin()];
        let drains = own.clone();
        let late = thread::spawn(move || drains.drain().is_some());
        held_plugin.until_it_runs();
        let waits = other.clone();
        let waiter = thread::spawn(move || waits.drain().is_some());
        assert!(!other.give_up(), "its own thread waits");
        held_plugin.release();
        held_inside.until_it_runs();
        assert!(own.give_up());
        assert!(own.resume().is_some());
        Protocol::finalize(&inside);
        assert!(waiter.join().unwrap());
        let mut all = log.all();
        all.sort_unstable();
        assert_eq!(all, ["inside", "plugin"]);
        held_inside.release();
        assert!(!late.join().unwrap(), "a late thread went on");
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// A small copy of the protocol, with or without a bug

#[derive(Clone, Copy, PartialEq)]
enum Bug {
    None,
    /// Every thread that closes also drains.
    TwoDrains,
    /// A second closer does not wait.
    NoWait,
    /// One critical section finds the list empty, and another ends the drain.
    EndedLater,
    /// Cycles are not looked for.
    CircleUnseen,
    /// One critical section looks for a cycle, and another adds the edge.
    EdgeAddedLater,
    /// An exit that would close a cycle returns, as a close does.
    ExitGivesUp,
    /// An exit inside a handler returns, as a close does.
    ExitForgets,
    /// A thread that returns does not check whether it was given up.
    LateGoesOn,
    /// A thread that returns ends the drain even though another thread is continuing it.
    LateEnds,
    /// A relief can be told apart from the first thread, but not from another relief.
    OneTicket,
    /// The waiting threads are forgotten when another thread continues.
    WaitersForgotten,
}

/// Shared by all stacks of a model.
struct World {
    bug: Bug,
    /// The waiting thread, the owner it waits for, and where it waits.
    edges: Mutex<Vec<(ThreadId, ThreadId, Arc<Latch>)>>,
}

/// Where threads wait for the end of a drain: set to the number of handlers that failed.
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
    /// A handler; returns whether it failed.
    Handler(Box<dyn FnOnce() -> bool + Send>),
    Nested(Small),
}

struct State {
    items: Vec<Item>,
    drain: Option<Drain>,
    last: bool,
    over: bool,
    /// The ticket of the thread that ended the last drain.
    ended_with: usize,
}

struct Drain {
    owner: ThreadId,
    /// Changes when the owner is given up. A thread with an older ticket is late.
    ticket: usize,
    in_handler: bool,
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
        let state = State { items: Vec::new(), drain: None, last: false, over: false, ended_with: 0 };
        Self { world: Arc::clone(world), state: Arc::new(Mutex::new(state)) }
    }

    fn drain(&self, last: bool, exits: bool) -> usize {
        self.drain_unless_late(last, exits).unwrap_or(0)
    }

    /// Returns `None` if this thread was given up.
    fn drain_unless_late(&self, last: bool, exits: bool) -> Option<usize> {
        let (me, bug) = (thread::current().id(), self.world.bug);
        {
            let mut state = self.state.lock().unwrap();
            if state.over {
                return Some(0);
            }
            state.last |= last;
            match &state.drain {
                None => {
                    let latch = Latch::new();
                    state.drain = Some(Drain { owner: me, ticket: 0, in_handler: false, failures: 0, latch });
                }
                Some(drain) if drain.owner == me && exits && bug != Bug::ExitForgets => {}
                Some(drain) if drain.owner == me => return Some(0),
                Some(drain) if bug == Bug::NoWait => return Some(drain.failures),
                Some(_) if bug == Bug::TwoDrains => {}
                Some(drain) => {
                    let (owner, latch) = (drain.owner, Arc::clone(&drain.latch));
                    drop(state);
                    return Some(self.world.wait(owner, &latch, exits));
                }
            }
        }
        self.go_on(exits)
    }

    /// Returns `None` if this thread was given up.
    fn go_on(&self, exits: bool) -> Option<usize> {
        let bug = self.world.bug;
        let Some(ticket) = self.state.lock().unwrap().drain.as_ref().map(|drain| drain.ticket) else { return Some(0) };
        loop {
            let mut state = self.state.lock().unwrap();
            let is_handler = matches!(state.items.last(), Some(Item::Handler(_)));
            if let Some(drain) = &mut state.drain {
                if drain.ticket != ticket && bug != Bug::LateGoesOn {
                    if bug == Bug::LateEnds {
                        drain.latch.set(drain.failures);
                    }
                    return None;
                }
                drain.in_handler = is_handler;
            } else if state.ended_with != ticket && bug != Bug::LateGoesOn {
                return None;
            }
            let failures = match state.items.pop() {
                Some(Item::Handler(handler)) => {
                    drop(state);
                    usize::from(handler())
                }
                Some(Item::Nested(child)) => {
                    // It keeps its position until it is drained, because an exit inside it must find it.
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
                    state.ended_with = drain.as_ref().map_or(state.ended_with, |drain| drain.ticket);
                    drop(state);
                    let Some(drain) = drain else { return Some(0) };
                    drain.latch.set(drain.failures);
                    return Some(drain.failures);
                }
            };
            if let Some(drain) = &mut self.state.lock().unwrap().drain {
                drain.failures += failures;
            }
        }
    }

    /// Returns whether the item was accepted.
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

impl Relieves for Small {
    type Drain = Self;

    fn begin(&self) -> Self {
        self.clone()
    }

    fn drain(drain: &Self) -> bool {
        drain.drain_unless_late(true, false).is_some()
    }

    fn give_up(drain: &Self) -> bool {
        let mut state = drain.state.lock().unwrap();
        let Some(given_up) = state.drain.as_mut().filter(|drain| drain.in_handler) else { return false };
        given_up.in_handler = false;
        given_up.ticket = if drain.world.bug == Bug::OneTicket { 1 } else { given_up.ticket + 1 };
        true
    }

    fn resume(drain: &Self) -> bool {
        if let Some(resumed) = &mut drain.state.lock().unwrap().drain {
            resumed.owner = thread::current().id();
            if drain.world.bug == Bug::WaitersForgotten {
                resumed.latch = Latch::new();
            }
        }
        drain.go_on(false).is_some()
    }
}

impl Nests for Small {
    fn child(&self) -> Self {
        let child = Self::new(&self.world);
        assert!(self.add(Item::Nested(child.clone())));
        child
    }
}

/// Checks that the model holds without a bug, and fails in the expected way with each of these.
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
fn the_models_of_relief_bite() {
    let late = "a late thread went on";
    bites(|new| owner_returns_while_it_is_relieved(new), &[(Bug::LateGoesOn, late)]);
    bites(|new| two_reliefs_in_a_row(new), &[(Bug::LateGoesOn, late), (Bug::OneTicket, late)]);
    let bugs = [(Bug::LateEnds, RETURNED_EARLY), (Bug::WaitersForgotten, DEADLOCK), (Bug::NoWait, RETURNED_EARLY)];
    bites(|new| another_waits_for_what_is_relieved(new, Protocol::finalize), &bugs);
    bites(|new| another_waits_for_what_is_relieved(new, Protocol::exit), &bugs);
}

#[test]
fn the_models_of_the_exit_bite() {
    let bugs = [(Bug::NoWait, UNDER_THE_DRAIN), (Bug::TwoDrains, UNDER_THE_DRAIN)];
    bites(|new| exit_against_a_drain(new), &bugs);
    bites(|new| exit_inside_a_handler(new), &[(Bug::ExitForgets, UNRUN), (Bug::NoWait, UNRUN)]);
    let bugs = [(Bug::ExitGivesUp, UNRUN), (Bug::CircleUnseen, DEADLOCK)];
    bites(|new| exit_where_waiting_closes_a_circle(new, new), &bugs);
}
