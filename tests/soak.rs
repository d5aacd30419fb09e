//! Soak tests. First, 8 threads, random operations on a tree of interpreters, and an account of every handler; then drains
//! with limits; then handlers that finalize one another.
//!
//! In the first, each handler holds a token. A token is settled exactly once: its handler runs, or it is dropped unrun by an
//! `unregister`, a `clear` or a refusal, on the thread that does this. In the end, registered = run + unregistered +
//! cleared + refused, exactly.
//!
//! `EXITSTACK_SOAK_SECONDS` sets the duration (2 if unset), `EXITSTACK_SEED` the seed. For 60 seconds, and all at once, as
//! each test is load for the others:
//!
//! ```text
//! EXITSTACK_SOAK_SECONDS=60 cargo test --release --test soak -- --nocapture --test-threads 3
//! ```

#![allow(missing_docs, reason = "a test")]
#![allow(unreachable_pub, reason = "`random` is shared with another test")]

#[path = "support/random.rs"]
mod random;

use std::cell::{Cell, RefCell};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Barrier, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use exitstack::shutdown::{Closed, Fate, Limits, set_observer};
use exitstack::{Exit, Handler, HandlerId, Interpreter, SharedExitStack, report};

use random::Random;

const THREADS: u64 = 8;
const INTERPRETERS: usize = 24;
/// Per thread.
const OPERATIONS: usize = 50_000_000;
/// How deeply handlers may nest operations of their own.
const NESTING: usize = 3;

/// How a token may be dropped unrun.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Removal {
    /// Not allowed.
    None,
    Unregister,
    Clear,
    Refusal,
}

struct Account {
    registered: AtomicU64,
    run: AtomicU64,
    unregistered: AtomicU64,
    cleared: AtomicU64,
    refused: AtomicU64,
    /// The number that `unregister` and its variants returned.
    said_unregistered: AtomicU64,
    /// Handlers that `try_register` handed back.
    handed_back: AtomicU64,
    /// Tokens dropped unrun where none may be.
    lost: AtomicU64,
}

static ACCOUNT: Account = Account {
    registered: AtomicU64::new(0),
    run: AtomicU64::new(0),
    unregistered: AtomicU64::new(0),
    cleared: AtomicU64::new(0),
    refused: AtomicU64::new(0),
    said_unregistered: AtomicU64::new(0),
    handed_back: AtomicU64::new(0),
    lost: AtomicU64::new(0),
};
static STOP: AtomicBool = AtomicBool::new(false);

fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

thread_local! {
    static REMOVAL: Cell<Removal> = const { Cell::new(Removal::None) };
    static NESTED: Cell<usize> = const { Cell::new(0) };
    static RANDOM: Cell<Random> = const { Cell::new(Random(0)) };
    static IDS: RefCell<Vec<(Interpreter, HandlerId)>> = const { RefCell::new(Vec::new()) };
}

/// Sets how tokens dropped while `body` runs are accounted for.
fn removing<R>(removal: Removal, body: impl FnOnce() -> R) -> R {
    let before = REMOVAL.replace(removal);
    let value = body();
    REMOVAL.set(before);
    value
}

struct Token {
    run: bool,
}

impl Token {
    fn new() -> Self {
        count(&ACCOUNT.registered, 1);
        Self { run: false }
    }

    fn run(mut self) {
        assert!(!self.run);
        self.run = true;
        count(&ACCOUNT.run, 1);
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        if !self.run {
            let counter = match REMOVAL.get() {
                Removal::None => &ACCOUNT.lost,
                Removal::Unregister => &ACCOUNT.unregistered,
                Removal::Clear => &ACCOUNT.cleared,
                Removal::Refusal => &ACCOUNT.refused,
            };
            count(counter, 1);
        }
    }
}

fn below(end: usize) -> usize {
    let mut random = RANDOM.get();
    let number = random.below(end);
    RANDOM.set(random);
    number
}

/// Shared by all threads.
struct Soaked {
    root: Interpreter,
    places: Vec<RwLock<Interpreter>>,
}

type World = Arc<Soaked>;

fn at(world: &World, place: usize) -> Interpreter {
    world.places[place].read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn any(world: &World) -> Interpreter {
    at(world, below(INTERPRETERS))
}

fn registration(world: &World) {
    let place = below(INTERPRETERS);
    let interpreter = at(world, place);
    let stack = interpreter.stack();
    let mut refused = false;
    let token = Token::new();
    // Whatever else a handler does, it settles its token first.
    let id = removing(Removal::Refusal, || match below(8) {
        0 => stack.register(move || token.run()),
        1 => stack.register(Handler::new(move || token.run()).named(String::from("soak")).keyed(below(8))),
        2 => stack.register(move || {
            token.run();
            Err("planned")
        }),
        3 => stack.register(move || {
            token.run();
            resume_unwind(Box::new("planned"))
        }),
        4 => {
            let large = [7_u64; 16];
            stack.register(move || {
                token.run();
                if large[below(16)] == 7 { Err(Exit(3)) } else { Ok(()) }
            })
        }
        5 => stack.try_register(move || token.run()).unwrap_or_else(|handler| {
            count(&ACCOUNT.handed_back, 1);
            drop(handler);
            refused = true;
            stack.register(|| ()) // an id unknown to every other stack
        }),
        6 => interpreter.enter(|| exitstack::register(move || token.run())),
        _ => {
            let world = Arc::clone(world);
            stack.register(move || {
                token.run();
                nested(&world);
            })
        }
    });
    let replaced = IDS.with_borrow_mut(|ids| {
        if ids.len() < 64 {
            ids.push((interpreter, id));
            return None;
        }
        Some(std::mem::replace(&mut ids[below(64)], (interpreter, id)))
    });
    drop(replaced); // perhaps the last handle, which runs handlers
    if refused {
        renewal(world, place);
    }
}

/// Does what a handler does: a few operations, not nested too deeply.
fn nested(world: &World) {
    let depth = NESTED.get();
    if depth < NESTING && !STOP.load(Ordering::Relaxed) {
        NESTED.set(depth + 1);
        (0..below(3)).for_each(|_| operation(world));
        NESTED.set(depth);
    }
}

/// Replaces an interpreter with a new one.
fn renewal(world: &World, place: usize) {
    let parent = if below(2) == 0 { any(world) } else { world.root.clone() };
    let new = parent.subinterpreter("inner");
    let mut place = world.places[place].write().unwrap_or_else(PoisonError::into_inner);
    let old = std::mem::replace(&mut *place, new);
    drop(place);
    drop(old);
}

fn removal(world: &World) {
    let Some((interpreter, id)) =
        IDS.with_borrow_mut(|ids| (!ids.is_empty()).then(|| ids.swap_remove(below(ids.len()))))
    else {
        return;
    };
    let other = if below(4) == 0 { any(world) } else { interpreter.clone() };
    if below(4) == 0 {
        let _ = other.stack().run_now(id);
    } else if removing(Removal::Unregister, || other.stack().unregister(id)) {
        assert!(other == interpreter, "an id was known to another stack");
        count(&ACCOUNT.said_unregistered, 1);
    }
}

fn operation(world: &World) {
    match below(64) {
        0..32 => registration(world),
        32..44 => removal(world),
        44..46 => {
            let key = below(8);
            let removed = any_stack(world, |stack| removing(Removal::Unregister, || stack.unregister_key(&key)));
            count(&ACCOUNT.said_unregistered, removed);
        }
        46 => any_stack(world, |stack| removing(Removal::Clear, || stack.clear())),
        47 => {
            let moved = any_stack(world, SharedExitStack::pop_all);
            if below(2) == 0 {
                let _ = moved.close();
            }
        }
        48..52 => drop(any_stack(world, SharedExitStack::close)),
        52 => {
            let place = below(INTERPRETERS);
            let _ = at(world, place).finalize();
            renewal(world, place);
        }
        53..60 => renewal(world, below(INTERPRETERS)),
        60 => drop(any_stack(world, SharedExitStack::pending)),
        61 => drop(Interpreter::current().map(|current| current.stack().close())),
        62 => {
            let interpreter = any(world);
            let _ = interpreter.enter(|| interpreter.stack().close());
        }
        _ => assert!(any(world).name().len() == "inner".len()),
    }
}

/// Does something with the stack of a random interpreter. The handle is dropped only afterwards, because it may be the
/// last one and run handlers: these are accounted for separately from what `action` removes.
fn any_stack<R>(world: &World, action: impl FnOnce(&SharedExitStack) -> R) -> R {
    action(any(world).stack())
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn every_handler_is_accounted_for() {
    let seconds = from_environment("EXITSTACK_SOAK_SECONDS", 2);
    let seed = from_environment("EXITSTACK_SEED", 0x5eed);
    report::set_hook(Box::new(|_| ()));
    let root = Interpreter::new("soak");
    let places = (0..INTERPRETERS).map(|_| RwLock::new(root.subinterpreter("inner"))).collect();
    let world: World = Arc::new(Soaked { root, places });

    let (done, wait) = channel();
    let end = Instant::now() + Duration::from_secs(seconds);
    let barrier = Arc::new(Barrier::new(usize::try_from(THREADS).expect("a few")));
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let (world, barrier, done) = (Arc::clone(&world), Arc::clone(&barrier), done.clone());
            let body = move || {
                RANDOM.set(Random::stream(seed, number));
                let mut operations = 0;
                while operations < OPERATIONS && !STOP.load(Ordering::Relaxed) {
                    operation(&world);
                    operations += 1;
                    if operations % 256 == 0 && Instant::now() >= end {
                        STOP.store(true, Ordering::Relaxed);
                    }
                }
                STOP.store(true, Ordering::Relaxed);
                barrier.wait();
                drop(IDS.take());
                done.send(operations).expect("somebody waits");
            };
            thread::Builder::new().stack_size(16 << 20).spawn(body).expect("a thread")
        })
        .collect();
    drop(done);
    let mut operations = 0;
    for _ in 0..THREADS {
        match wait.recv_timeout(Duration::from_secs(seconds + 120)) {
            Ok(more) => operations += more,
            Err(RecvTimeoutError::Timeout) => panic!("threads wait for one another (seed {seed})"),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    for thread in threads {
        thread.join().expect("no panic gets out");
    }

    let _ = world.root.finalize();
    drop(Arc::into_inner(world).expect("every handler that held it is gone"));
    let get = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let [registered, run, unregistered, cleared, refused] =
        [&ACCOUNT.registered, &ACCOUNT.run, &ACCOUNT.unregistered, &ACCOUNT.cleared, &ACCOUNT.refused].map(get);
    println!(
        "{operations} operations, seed {seed}: {registered} registered = {run} run + {unregistered} unregistered \
         + {cleared} cleared + {refused} refused"
    );
    assert_eq!(get(&ACCOUNT.lost), 0, "dropped unrun by nobody's wish");
    assert_eq!(registered, run + unregistered + cleared + refused);
    assert_eq!(unregistered, get(&ACCOUNT.said_unregistered));
    assert!(get(&ACCOUNT.handed_back) <= refused);
}

/// The numbers of the handlers, in the order in which they began.
type Begun = Arc<Mutex<Vec<usize>>>;

/// Finalizes an interpreter and those nested in it, whose handlers take up to a few milliseconds, with limits that
/// expire at random. Each handler either begins exactly once or has no time, in order, whichever threads continue the
/// drain.
fn bounded_round() {
    let root = Interpreter::new("bounded");
    let mut at = vec![root.clone()];
    let begun = Begun::default();
    let registered = 1 + below(24);
    // Always uses the newest interpreter, so that the numbers follow the order of the tree.
    for number in 0..registered {
        if below(4) == 0 {
            at.push(at[at.len() - 1].subinterpreter("inner"));
        }
        let takes = if below(3) == 0 { Duration::from_millis(below(8) as u64) } else { Duration::ZERO };
        let (begun, inner) = (Arc::clone(&begun), at[at.len() - 1].clone());
        let closes = below(8) == 0;
        let handler = move || {
            begun.lock().unwrap_or_else(PoisonError::into_inner).push(number);
            let (_never, waits) = channel::<()>();
            let _ = waits.recv_timeout(takes);
            if closes {
                let _ = inner.stack().close();
            }
        };
        let handler = Handler::new(handler).named(number.to_string());
        let stack = at[at.len() - 1].stack();
        match below(3) {
            0 => stack.register(handler.within(Duration::from_millis(below(6) as u64))),
            _ => stack.register(handler),
        };
    }
    let milliseconds = |end: usize| Duration::from_millis(below(end) as u64);
    let limits = Limits::new().within(milliseconds(40)).each(milliseconds(10)).reserve(milliseconds(20));
    let others: Vec<_> = (0..below(3))
        .map(|_| (at[below(at.len())].clone(), below(2) == 0))
        .map(|(inner, bounded)| {
            let finalize = move || -> Option<Closed> {
                if bounded {
                    return Some(inner.finalize_within(&limits));
                }
                let _ = inner.finalize();
                None
            };
            thread::spawn(finalize)
        })
        .collect();
    let is_alone = others.is_empty();
    let closed = root.finalize_within(&limits);
    for other in others {
        let _ = other.join().expect("no panic gets out");
    }
    let end = Instant::now() + Duration::from_secs(60);
    while !closed.is_over() {
        assert!(Instant::now() < end, "it is never over");
        thread::yield_now();
    }
    let begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
    // A handler may have been given up before it could record that it began.
    let number = |name: &str| name.parse::<usize>().expect("a number");
    let of_fate = |is: fn(&Fate) -> bool| -> Vec<usize> {
        closed
            .records()
            .iter()
            .filter(|record| is(record.fate()))
            .filter_map(|record| record.name())
            .map(number)
            .collect()
    };
    let done = of_fate(|fate| matches!(fate, Fate::Done));
    if is_alone {
        let mut in_order: Vec<usize> = begun.clone();
        in_order.retain(|number| done.contains(number));
        assert_eq!(in_order, done);
        assert!(done.is_sorted_by(|before, next| before > next), "out of order: {done:?}");
        let not_run = of_fate(|fate| matches!(fate, Fate::NotRun));
        assert!(not_run.is_sorted_by(|before, next| before > next), "out of order: {not_run:?}");
        assert!(!not_run.iter().any(|number| begun.contains(number)));
    }
    let mut once = begun.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), begun.len(), "twice: {begun:?}");
    let not_run = closed.records().iter().filter(|record| matches!(record.fate(), Fate::NotRun)).count();
    assert!(begun.len() + not_run <= registered);
    // Handlers without time are recorded only by the thread that drains, and only until it returns.
    assert!(!is_alone || closed.records().len() < registered || begun.len() + not_run == registered);
    count(&BOUNDED, 1);
    count(&GIVEN_UP, closed.records().iter().filter(|record| matches!(record.fate(), Fate::GivenUp)).count());
}

/// Finalizes interpreters, some of them nested and some detached, from several threads, with limits and without. Their
/// handlers finalize one another, run too long, or block until all that can go on without them has. Each runs exactly once.
fn tangled_round() {
    let mut all: Vec<Interpreter> = Vec::new();
    for number in 0..2 + below(4) {
        let name = number.to_string();
        all.push(match number {
            1.. if below(2) == 0 => all[below(number)].subinterpreter(name),
            _ => Interpreter::detached(name),
        });
    }
    let (release, released) = channel::<()>();
    let released = Arc::new(Mutex::new(released));
    let mut runs = Vec::new();
    let mut ids = Vec::new();
    for (place, interpreter) in all.iter().enumerate() {
        for _ in 0..=below(4) {
            let (count, released) = (Arc::new(AtomicU64::new(0)), Arc::clone(&released));
            let (kind, target) = (below(8), all[below(all.len())].clone());
            runs.push(Arc::clone(&count));
            let handler = move || {
                count.fetch_add(1, Ordering::Relaxed);
                match kind {
                    0 | 1 => _ = released.lock().unwrap_or_else(PoisonError::into_inner).recv(),
                    2 | 3 => _ = target.finalize(),
                    4 => _ = target.stack().close(),
                    5 => drop(target.finalize_within(&Limits::new().each(Duration::from_millis(10)))),
                    6 => {
                        pause(2);
                        return Err("failed");
                    }
                    _ => {}
                }
                Ok(())
            };
            let limit = Duration::from_millis(3 + below(15) as u64);
            ids.push((place, interpreter.stack().register(Handler::new(handler).within(limit))));
        }
    }
    let (ends, ended) = channel::<()>();
    let start = |delay: usize, act: Box<dyn FnOnce() + Send>| {
        let ends = ends.clone();
        thread::spawn(move || {
            pause(delay);
            act();
            drop(ends);
        })
    };
    let mut threads = Vec::new();
    for (place, id) in ids {
        if below(5) == 0 {
            let interpreter = all[place].clone();
            threads.push(start(below(20), Box::new(move || _ = interpreter.stack().run_now(id))));
        }
    }
    for _ in 0..2 + below(4) {
        let (interpreter, how, time) = (all[below(all.len())].clone(), below(4), 3 + below(20) as u64);
        let finalize = move || match how {
            0 => _ = interpreter.finalize(),
            1 => _ = interpreter.stack().close(),
            2 => drop(interpreter.finalize_within(&Limits::new().each(Duration::from_millis(time)))),
            _ => drop(interpreter.finalize_within(&Limits::new().within(Duration::from_secs(20 + time)))),
        };
        threads.push(start(below(25), Box::new(finalize)));
    }
    drop(ends);
    pause(60);
    drop(release);
    assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Err(RecvTimeoutError::Disconnected), "a thread hangs");
    for thread in threads {
        thread.join().expect("no panic gets out");
    }
    let end = Instant::now() + Duration::from_secs(60);
    for interpreter in &all {
        while !interpreter.finalize_within(&Limits::new()).is_over() {
            assert!(Instant::now() < end, "it is never over");
            thread::yield_now();
        }
    }
    let runs: Vec<u64> = runs.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    assert!(runs.iter().all(|count| *count == 1), "{runs:?}");
    count(&TANGLED, 1);
}

/// Waits this many milliseconds.
fn pause(milliseconds: usize) {
    let (_never, waits) = channel::<()>();
    let _ = waits.recv_timeout(Duration::from_millis(milliseconds as u64));
}

static BOUNDED: AtomicU64 = AtomicU64::new(0);
static GIVEN_UP: AtomicU64 = AtomicU64::new(0);
static TANGLED: AtomicU64 = AtomicU64::new(0);

/// Repeats a round on four threads, until the time is over.
fn repeat(round: fn(), first_stream: u64) -> u64 {
    let seconds = from_environment("EXITSTACK_SOAK_SECONDS", 2);
    let seed = from_environment("EXITSTACK_SEED", 0x5eed);
    report::set_hook(Box::new(|_| ()));
    set_observer(Box::new(|_| ())); // instead of a line on standard error for each handler given up
    let (done, wait) = channel();
    let end = Instant::now() + Duration::from_secs(seconds);
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let done = done.clone();
            thread::spawn(move || {
                RANDOM.set(Random::stream(seed, first_stream + number));
                while Instant::now() < end {
                    round();
                }
                done.send(()).expect("somebody waits");
            })
        })
        .collect();
    drop(done);
    for _ in 0..threads.len() {
        match wait.recv_timeout(Duration::from_secs(seconds + 120)) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => panic!("a drain hangs (seed {seed})"),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    for thread in threads {
        thread.join().expect("no panic gets out");
    }
    seed
}

#[test]
fn limits_that_expire_at_random_lose_nothing() {
    let seed = repeat(bounded_round, 100);
    let [rounds, given_up] = [&BOUNDED, &GIVEN_UP].map(|counter| counter.load(Ordering::Relaxed));
    println!("{rounds} drains with limits, seed {seed}: {given_up} handlers given up");
    assert!(given_up > 0);
}

#[test]
fn handlers_that_finalize_each_other_run_once() {
    let seed = repeat(tangled_round, 200);
    println!("{} tangles of drains, seed {seed}", TANGLED.load(Ordering::Relaxed));
}
