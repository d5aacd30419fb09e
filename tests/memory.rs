//! What uses memory and what does not, measured with an allocator that counts and can be made to fail.
//!
//! This is a separate binary because there is one allocator per process. It counts for each thread separately, so that
//! the tests can run in parallel. Debug builds do a tenth of the work where that is noted.

#![allow(missing_docs, reason = "a test")]
#![allow(unsafe_code, reason = "an allocator is unsafe by its trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::hint::black_box;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use exitstack::{ExitStack, Handler, HandlerId, HandlerList, Interpreter, SharedExitStack};

struct Counting;

#[derive(Clone, Copy)]
struct Counts {
    /// Bytes allocated and not yet freed.
    live: isize,
    /// The maximum of `live`.
    peak: isize,
    /// Number of requests for memory.
    calls: usize,
    /// Whether requests fail.
    exhausted: bool,
}

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { live: 0, peak: 0, calls: 0, exhausted: false }) };
}

thread_local! {
    /// What else the allocator does on each call: to the library, an allocator is foreign code.
    static BESIDES: Cell<Option<fn()>> = const { Cell::new(None) };
}

fn besides() {
    if let Some(other) = BESIDES.take() {
        other();
        BESIDES.set(Some(other));
    }
}

/// Converts a size. No layout is larger than `isize::MAX`.
fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

/// Counts a request for this many more bytes. Returns false if it is to fail.
fn request(bytes: isize) -> bool {
    besides();
    let mut counts = COUNTS.get();
    if counts.exhausted {
        return false;
    }
    counts.calls += 1;
    counts.live += bytes;
    counts.peak = counts.peak.max(counts.live);
    COUNTS.set(counts);
    true
}

fn free(bytes: usize) {
    besides();
    let mut counts = COUNTS.get();
    counts.live -= signed(bytes);
    COUNTS.set(counts);
}

// SAFETY: `System` does the work; the counts are in a thread-local that neither allocates nor has a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !request(signed(layout.size())) {
            return std::ptr::null_mut();
        }
        // SAFETY: our caller keeps the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        free(layout.size());
        // SAFETY: our caller keeps the same contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !request(signed(size) - signed(layout.size())) {
            return std::ptr::null_mut();
        }
        // SAFETY: our caller keeps the same contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn live() -> isize {
    COUNTS.get().live
}

/// Returns how often `body` requests memory.
fn allocations(body: impl FnOnce()) -> usize {
    let before = COUNTS.get().calls;
    body();
    COUNTS.get().calls - before
}

/// Runs `body` without memory: as always in Rust, a failed request ends the process.
fn without_memory<R>(body: impl FnOnce() -> R) -> R {
    COUNTS.set(Counts { exhausted: true, ..COUNTS.get() });
    let value = body();
    COUNTS.set(Counts { exhausted: false, ..COUNTS.get() });
    value
}

/// The maximum memory in use during `body`, beyond what was in use before.
fn peak(body: impl FnOnce()) -> isize {
    let counts = COUNTS.get();
    COUNTS.set(Counts { peak: counts.live, ..counts });
    body();
    COUNTS.get().peak - counts.live
}

fn ignore<T>(value: T) {
    black_box(value);
}

const fn in_debug_a_tenth(count: usize) -> usize {
    if cfg!(debug_assertions) { count / 10 } else { count }
}

// ---------------------------------------------------------------------------------------------------------------------
// Interpreters

/// Checks that 100,000 cycles, after the first ones, use no memory.
fn cycles(cycle: impl Fn(usize)) {
    (0..100).for_each(&cycle);
    let before = live();
    (0..100_000).for_each(&cycle);
    assert_eq!(live(), before);
}

fn fill(interpreter: &Interpreter) {
    for _ in 0..6 {
        interpreter.stack().register(|| ());
    }
    let text = black_box(String::from("captured"));
    interpreter.stack().register(move || drop(text));
}

/// Finalizes the interpreter or drops its last handle, alternately.
fn end(interpreter: Interpreter, turn: usize) {
    if turn % 2 == 0 {
        interpreter.finalize().unwrap();
    }
    drop(interpreter);
}

#[test]
fn finalized_interpreters_cost_no_memory() {
    cycles(|turn| {
        let interpreter = Interpreter::new("cycle");
        fill(&interpreter);
        end(interpreter, turn);
    });
}

#[test]
fn finalized_subinterpreters_cost_no_memory() {
    let parent = Interpreter::new("parent");
    parent.stack().register(|| ());
    let siblings: Vec<_> = (0..10).map(|_| parent.subinterpreter("sibling")).collect();
    cycles(|turn| {
        let interpreter = parent.subinterpreter(String::from("cycle"));
        fill(&interpreter);
        end(interpreter, turn);
    });
    assert_eq!((siblings.len(), parent.stack().len()), (10, 1));
}

/// A hundred thousand trees, each finalized from its root.
#[test]
fn finalized_trees_cost_no_memory() {
    let outer = Interpreter::new("outer");
    cycles(|turn| {
        let parent = outer.subinterpreter("parent");
        let child = parent.subinterpreter("child");
        child.stack().register(|| ());
        end(parent, turn);
        drop(child);
    });
}

#[test]
fn interpreters_that_refuse_cost_no_memory() {
    exitstack::report::set_hook(Box::new(|_| ()));
    let parent = Interpreter::new("parent");
    parent.finalize().unwrap();
    cycles(|_| {
        let child = parent.subinterpreter("child");
        child.stack().register(|| ());
        child.stack().register(|| ());
    });
}

/// A drain cannot unlink an interpreter while one of its handlers is running. It is unlinked when that handler is done.
#[test]
fn what_settles_after_its_drain_costs_no_memory() {
    let outer = Interpreter::new("outer");
    cycles(|_| {
        let own = outer.subinterpreter("own");
        let inside = own.clone();
        let id = own.stack().register(move || inside.finalize());
        own.stack().run_now(id).unwrap().unwrap();
    });
    cycles(|_| {
        let parent = outer.subinterpreter("parent");
        let child = parent.subinterpreter("child");
        child.stack().register(move || parent.finalize());
        child.finalize().unwrap();
    });
}

/// A long-lived interpreter is closed a hundred thousand times.
#[test]
fn closing_an_interpreter_again_costs_no_memory() {
    let interpreter = Interpreter::new("closed");
    cycles(|_| {
        fill(&interpreter);
        interpreter.stack().close().unwrap();
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Registering and unregistering forever

const PAIRS: usize = in_debug_a_tenth(10_000_000);

/// Checks that pairs of calls on a stack with 1000 pending handlers use no memory after the first 10,000, neither at
/// the end nor at any time in between.
fn pairs(mut pair: impl FnMut()) {
    (0..10_000).for_each(|_| pair());
    let before = live();
    let most = peak(|| (0..PAIRS).for_each(|_| pair()));
    assert_eq!((live() - before, most), (0, 0));
}

/// Pairs of `register` and `unregister`, forever.
#[test]
fn pairs_cost_no_memory_in_a_shared_stack() {
    let stack = SharedExitStack::new();
    (0..1000).for_each(|_| ignore(stack.register(|| ())));
    pairs(|| {
        let id = stack.register(|| ());
        assert!(stack.unregister(id));
    });
    stack.clear();
}

/// Pairs of `register` and `unregister`, forever.
#[test]
fn pairs_cost_no_memory_in_an_exit_stack() {
    let mut stack = ExitStack::new();
    (0..1000).for_each(|_| ignore(stack.register(|| ())));
    pairs(|| {
        let id = stack.register(|| ());
        assert!(stack.unregister(id));
    });
}

/// Pairs of `push` and `remove`, forever.
#[test]
fn pairs_cost_no_memory_in_a_list() {
    let mut list = HandlerList::new();
    (0..1000).for_each(|n| ignore(list.push(n)));
    pairs(|| {
        let id = list.push(7);
        assert_eq!(list.remove(id), Some(7));
    });
}

/// The oldest of the last 100 handlers is unregistered each time, not the newest, so that a window moves through the
/// list. The memory stays in proportion to what is pending.
#[test]
fn unregistering_the_oldest_costs_little_memory() {
    let stack = SharedExitStack::new();
    (0..1000).for_each(|_| ignore(stack.register(|| ())));
    let mut window: VecDeque<HandlerId> = (0..100).map(|_| stack.register(|| ())).collect();
    window.reserve(1);
    let most = peak(|| {
        for _ in 0..PAIRS {
            window.push_back(stack.register(|| ()));
            assert!(window.pop_front().is_some_and(|id| stack.unregister(id)));
        }
    });
    // Up to as many slots again may be empty, and as many again in use while the list is rebuilt, each rounded to a
    // power of two.
    let waits = 1100 * size_of::<[usize; 7]>();
    assert!(most <= signed(8 * waits), "{most} bytes for {waits}");
    assert_eq!(stack.len(), 1100);
}

/// Wherever the list's storage happens to end.
#[test]
fn a_few_pairs_by_turns_seldom_allocate() {
    let (mut stack, shared) = (ExitStack::new(), SharedExitStack::new());
    for waits in 0..300 {
        for few in [1, 2, 5] {
            let to_and_fro = || {
                for _ in 0..100 {
                    let ids: Vec<_> = (0..few).map(|_| (stack.register(|| ()), shared.register(|| ()))).collect();
                    for (local, between) in ids {
                        assert!(stack.unregister(local) && shared.unregister(between));
                    }
                }
            };
            let allocated = allocations(to_and_fro);
            assert!(allocated <= 102, "{allocated} allocations, {waits} wait");
        }
        stack.register(|| ());
        shared.register(|| ());
    }
}

/// Ten thousand handlers are unregistered at once.
#[test]
fn unregister_fn_gives_the_memory_back() {
    fn function() {}
    let (mut stack, shared) = (ExitStack::new(), SharedExitStack::new());
    let before = live();
    for n in 0..10_000 {
        // Other handlers are interspersed.
        if n % 1000 == 0 {
            stack.register(|| ());
            shared.register(|| ());
        }
        stack.register(function);
        shared.register(function);
    }
    stack.register(|| ());
    shared.register(|| ());
    assert_eq!((stack.unregister_fn(function), shared.unregister_fn(function)), (10_000, 10_000));
    let waits = (stack.len() + shared.len()) * size_of::<[usize; 7]>();
    assert!(live() - before <= signed(8 * waits), "{} bytes for {waits}", live() - before);
}

/// Ten thousand handlers are run out of turn, one after the other.
#[test]
fn run_now_gives_the_memory_back() {
    let (mut stack, shared) = (ExitStack::new(), SharedExitStack::new());
    let before = live();
    let ids: Vec<_> = (0..10_000).map(|_| (stack.register(|| ()), shared.register(|| ()))).collect();
    for (local, between) in &ids[10..] {
        stack.run_now(*local).unwrap().unwrap();
        shared.run_now(*between).unwrap().unwrap();
    }
    drop(ids);
    let waits = (stack.len() + shared.len()) * size_of::<[usize; 7]>();
    assert!(live() - before <= signed(8 * waits), "{} bytes for {waits}", live() - before);
}

// ---------------------------------------------------------------------------------------------------------------------
// No allocation

/// With up to four small handlers.
#[test]
fn a_small_exit_stack_allocates_nothing() {
    let (mut a, mut b, mut c) = (0, 0, 0);
    for count in 0..=4 {
        let body = || {
            let mut stack = ExitStack::new();
            let small = (&mut a, &mut b, &mut c); // three words
            stack.register(move || (*small.0, *small.1, *small.2) = (1, 2, 3));
            stack.close().unwrap();
            for _ in 0..count {
                stack.register(|| ());
            }
            if count % 2 == 0 {
                stack.close().unwrap();
            }
        };
        assert_eq!(allocations(body), 0);
    }
    assert_eq!((a, b, c), (1, 2, 3));
}

/// With up to four small handlers.
#[test]
fn a_small_shared_stack_allocates_nothing() {
    let body = || {
        let stack = SharedExitStack::new();
        for n in 0..4_usize {
            stack.register(move || ignore([n; 3]));
        }
        stack.close().unwrap();
    };
    assert_eq!(allocations(body), 0);
}

/// These are the fifth to the twelfth; the drain frees the memory.
#[test]
fn the_next_small_handlers_cost_one_allocation() {
    let (mut exit_stack, shared) = (ExitStack::new(), SharedExitStack::new());
    let before = live();
    for n in 0..12_usize {
        let expected = usize::from(n == 4);
        assert_eq!(allocations(|| ignore(exit_stack.register(move || ignore([n; 3])))), expected);
        assert_eq!(allocations(|| ignore(shared.register(move || ignore([n; 3])))), expected);
    }
    exit_stack.close().unwrap();
    shared.close().unwrap();
    assert_eq!(live(), before);
}

/// The memory is freed, whatever becomes of the handler.
#[test]
fn a_large_handler_costs_one_allocation() {
    let before = live();
    for end in 0..4 {
        let (mut exit_stack, shared) = (ExitStack::new(), SharedExitStack::new());
        let mut ids = None;
        let large = [black_box(end); 10];
        let register =
            || ids = Some((exit_stack.register(move || ignore(large)), shared.register(move || ignore(large))));
        assert_eq!(allocations(register), 2);
        let (local, between) = ids.unwrap();
        match end {
            0 => (exit_stack.close().unwrap(), shared.close().unwrap()),
            1 => (exit_stack.run_now(local).unwrap().unwrap(), shared.run_now(between).unwrap().unwrap()),
            2 => (exit_stack.clear(), shared.clear()),
            _ => (ignore(exit_stack.unregister(local)), ignore(shared.unregister(between))),
        };
        assert_eq!(live(), before);
    }
}

const MILLION: usize = 1_000_000;

/// The handlers are small, and draining them allocates nothing.
#[test]
fn a_million_handlers_cost_the_lists_growth_only() {
    let (exit_stack, shared, interpreter) = (ExitStack::new(), SharedExitStack::new(), Interpreter::new("million"));
    let before = live();
    let doublings = MILLION.ilog2() as usize + 2;
    let grow = |register: &dyn Fn(usize)| {
        let growths = allocations(|| (0..MILLION).for_each(register));
        assert!(growths <= doublings, "{growths} allocations");
    };
    grow(&|n| ignore(exit_stack.register(move || ignore([n; 3]))));
    grow(&|n| ignore(shared.register(move || ignore([n; 3]))));
    grow(&|n| ignore(interpreter.stack().register(move || ignore([n; 3]))));
    let mut exit_stack = exit_stack;
    assert_eq!(allocations(|| exit_stack.close().unwrap()), 0);
    assert_eq!(allocations(|| shared.close().unwrap()), 0);
    assert_eq!(allocations(|| interpreter.finalize().unwrap()), 0);
    assert_eq!(live(), before, "a drained list gives its memory back");
}

#[test]
fn a_drain_allocates_only_for_what_fails() {
    let stack = SharedExitStack::new();
    stack.register(|| ());
    stack.register(|| Err("disk full"));
    let before = live();
    let mut result = Ok(());
    assert!(allocations(|| result = stack.close()) > 0);
    drop(result);
    assert_eq!(live(), before);
}

/// Neither to register them nor to drain them.
#[test]
fn after_reserve_small_handlers_need_no_memory() {
    let (mut ran, count) = (0, Cell::new(0));
    let (mut exit_stack, shared) = (ExitStack::new(), SharedExitStack::new());
    let (interpreter, detached) = (Interpreter::new("reserved"), Interpreter::detached("detached"));
    exit_stack.reserve(1000);
    shared.reserve(1000);
    interpreter.stack().reserve(1000);
    detached.stack().reserve(1000);
    without_memory(|| {
        for n in 0..1000_usize {
            let count = &count;
            exit_stack.register(move || count.set(count.get() + 1));
            shared.register(move || ignore([n; 3]));
            interpreter.enter(|| exitstack::register(move || ignore([n; 3])));
            detached.stack().register(move || ignore([n; 3]));
        }
        exit_stack.close().unwrap();
        shared.close().unwrap();
        interpreter.finalize().unwrap();
        detached.finalize().unwrap();
        ran += 1;
    });
    assert_eq!((ran, count.get()), (1, 1000));
}

/// A handler registers another, which takes its slot.
#[test]
fn a_handler_is_replaced_without_memory() {
    let stack = SharedExitStack::new();
    stack.register(|| ());
    let interpreter = Interpreter::new("in place");
    interpreter.stack().register(|| {
        exitstack::register(|| ());
    });
    without_memory(|| {
        interpreter.finalize().unwrap();
        stack.close().unwrap();
    });
}

#[test]
fn after_reserve_a_list_needs_no_memory() {
    for reserve in [HandlerList::reserve, |list: &mut _, count| HandlerList::try_reserve(list, count).unwrap()] {
        let mut list = HandlerList::new();
        list.push(0);
        reserve(&mut list, 999);
        without_memory(|| (1..1000).for_each(|n| ignore(list.push(n))));
        assert!(list.clear().into_iter().eq(0..1000));
    }
}

/// The call returns an error.
#[test]
fn try_reserve_without_memory_changes_nothing() {
    for count in [0, 4, 100] {
        let mut list = HandlerList::new();
        (0..count).for_each(|n| ignore(list.push(n)));
        assert!(without_memory(|| list.try_reserve(1000)).is_err());
        assert!(without_memory(|| list.try_reserve(0)).is_ok());
        assert!(list.clear().into_iter().eq(0..count));
    }
}

/// To shrink, the list would have to be moved, so it does that later.
#[test]
fn unregister_needs_no_memory() {
    let (mut exit_stack, shared) = (ExitStack::new(), SharedExitStack::new());
    let mut ids: Vec<_> = (0..1000).map(|_| (exit_stack.register(|| ()), shared.register(|| ()))).collect();
    let last = ids.split_off(900);
    let mut unregister =
        |(local, between)| assert!(exit_stack.unregister(local) && shared.unregister(between), "it was registered");
    let before = live();
    without_memory(|| ids.iter().copied().for_each(&mut unregister));
    assert_eq!(live(), before);
    unregister(last[0]);
    assert!(live() < before / 2, "{} of {before} bytes", live());
}

/// The allocator queries the stack. If this thread held the stack's lock, that would block forever.
#[test]
fn a_stacks_list_grows_and_shrinks_unlocked() {
    static STACK: SharedExitStack = SharedExitStack::new();
    fn function() {}
    fn watched(body: impl FnOnce()) {
        BESIDES.set(Some(|| ignore(STACK.len())));
        body();
        BESIDES.set(None);
    }
    let (done, end) = mpsc::channel();
    thread::spawn(move || {
        let mut ids = Vec::with_capacity(1000);
        watched(|| (0..1000_usize).for_each(|n| ids.push(STACK.register(move || ignore([n; 3])))));
        watched(|| ids.iter().skip(10).for_each(|id| assert!(STACK.unregister(*id))));
        watched(|| (0..1000).for_each(|_| ignore(STACK.register(function))));
        watched(|| assert_eq!(STACK.unregister_fn(function), 1000));
        watched(|| STACK.reserve(5000));
        (0..100).for_each(|n| ignore(STACK.register(Handler::new(|| ()).keyed(n % 2))));
        watched(|| assert_eq!(STACK.unregister_key(&1), 50));
        watched(|| assert!(STACK.run_now(ids[0]).is_some()));
        watched(|| drop(STACK.pop_all()));
        watched(|| (0..100).for_each(|_| ignore(STACK.register(function))));
        watched(|| STACK.clear());
        watched(|| (0..100).for_each(|_| ignore(STACK.register(function))));
        watched(|| STACK.close().unwrap());
        done.send(()).unwrap();
    });
    end.recv_timeout(Duration::from_secs(20)).expect("its lock is not held");
}

/// The allocator registers handlers itself.
#[test]
fn an_exit_stack_allocates_unborrowed() {
    thread_local!(static STACK: ExitStack<'static> = const { ExitStack::new() });
    fn watched(body: fn(&ExitStack<'static>)) -> usize {
        STACK.with(|stack| {
            let before = stack.len();
            BESIDES.set(Some(|| STACK.with(|stack| ignore(stack.register(|| ())))));
            body(stack);
            BESIDES.set(None);
            stack.len() - before
        })
    }
    let large = |stack: &ExitStack<'static>| {
        let large = [1; 10];
        stack.register(move || ignore(large));
    };
    assert_eq!(watched(large), 2);
    assert!(watched(|stack| drop(stack.pending())) > 0);
    assert!(watched(|stack| stack.reserve(1000)) > 0);
}

/// The allocator uses a stack each time its list grows. The handlers run in the order of their ids, once each.
#[test]
fn an_exit_stack_grows_unborrowed() {
    type Act = fn(&ExitStack<'static>);
    thread_local! {
        static STACK: RefCell<Rc<ExitStack<'static>>> = RefCell::default();
        static ACT: Cell<Act> = const { Cell::new(|_| ()) };
        static RAN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    }
    fn register(stack: &ExitStack<'static>, number: usize) -> HandlerId {
        stack.register(move || RAN.with_borrow_mut(|ran| ran.push(number)))
    }
    let acts: [(usize, Act); 4] = [
        (0, |stack| assert!(stack.len() >= 4 && !stack.is_empty())),
        (1, |stack| ignore(register(stack, usize::MAX))),
        (20, |stack| (0..20).for_each(|_| ignore(register(stack, usize::MAX)))), // the list grows here, too
        (0, |stack| stack.reserve(100)),
    ];
    for (number, act) in acts {
        let mut stack = STACK.with_borrow(Rc::clone);
        ACT.set(act);
        let mut acted = 0;
        for n in 0..1000 {
            let before = stack.len();
            BESIDES.set(Some(|| STACK.with_borrow(|stack| ACT.get()(stack))));
            let id = register(&stack, n);
            BESIDES.set(None);
            acted += stack.len() - before - 1;
            assert_eq!(stack.pending()[0].id(), id); // above those that the allocator has registered
        }
        assert!(acted % number.max(1) == 0 && (acted > 0) == (number > 0));
        assert!(stack.pending().is_sorted_by(|newer, older| newer.id() > older.id()));
        drop(STACK.take());
        Rc::get_mut(&mut stack).unwrap().close().unwrap();
        let ran = RAN.take();
        assert_eq!(ran.len(), 1000 + acted);
        assert!(ran.into_iter().filter(|n| *n != usize::MAX).eq((0..1000).rev()));
    }
}

const CHILD: &str = "EXITSTACK_TEST_CHILD";

/// Checks the trap itself: if the tests above needed memory, this is how they would end.
#[test]
fn without_reserve_registering_many_needs_memory() {
    const NAME: &str = "without_reserve_registering_many_needs_memory";
    if std::env::var_os(CHILD).is_some() {
        let stack = SharedExitStack::new();
        without_memory(|| (0..100).for_each(|_| ignore(stack.register(|| ()))));
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([NAME, "--exact", "--test-threads=1"]).env(CHILD, "1").stdout(Stdio::null()).stderr(Stdio::null());
    assert!(!child.status().unwrap().success());
}
