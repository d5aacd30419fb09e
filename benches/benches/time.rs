//! Processor time, measured by criterion, so that other load on the machine does not count. Each case runs in several
//! short blocks, ours and theirs alternating; `table.rs` compares them block by block.
//!
//! The heap is warm, because the allocator keeps the memory it got from the system. What happens once per process
//! (`atexit`) is measured in child processes, which run this program again.

use std::ffi::c_int;
use std::hint::black_box;
use std::process::Command;
use std::sync::{Barrier, OnceLock};
use std::time::{Duration, Instant};

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BatchSize, BenchmarkId, Criterion, SamplingMode};
use exitstack::{ExitStack, Handler, HandlerId, SharedExitStack, process_stack};
use exitstack_benches::{
    Boxes, Cleanup, Shared, SharedBoxes, cpu_time, keep_memory, register_and_run, register_many,
    reserve_register_and_run, work, written_out_as_an_array, written_out_as_guards, written_out_on_a_stack,
};

const BLOCKS: usize = 5;
const MILLION: usize = 1_000_000;
/// Handlers that each thread registers on a shared stack in one round.
const ROUND: usize = 10_000;
/// Handlers registered where some are removed, or where a process ends.
const MANY: usize = 100_000;
/// Handlers removed by id.
const REMOVED: usize = 10_000;
/// Handlers removed by key, and by CPython, where each takes milliseconds.
const FEW: usize = 20;

type Bencher<'b> = criterion::Bencher<'b, CpuTime>;
type Bench = Criterion<CpuTime>;
type Case<'f> = (&'f str, &'f dyn Fn(&mut Bencher));

fn main() {
    keep_memory();
    if let [_, child, whose, ..] = &*std::env::args().collect::<Vec<_>>()
        && child == "child"
    {
        return end_a_process(whose);
    }
    let mut criterion = Criterion::default()
        .with_measurement(CpuTime)
        .warm_up_time(Duration::from_millis(40))
        .measurement_time(Duration::from_millis(100))
        .sample_size(10)
        .nresamples(2_000)
        .without_plots()
        .configure_from_args();
    let c = &mut criterion;
    local(c);
    shared(c);
    process(c);
    unregister(c);
}

/// [`cpu_time`], for criterion.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        cpu_time()
    }

    fn end(&self, start: Duration) -> Duration {
        cpu_time() - start
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, time: &Duration) -> f64 {
        WallTime.to_f64(time)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// Measures the cases alternately, in this many blocks.
fn compare(criterion: &mut Bench, name: &str, blocks: usize, cases: &[Case]) {
    let mut group = criterion.benchmark_group(name);
    for block in 0..blocks {
        for (side, case) in cases {
            group.bench_function(BenchmarkId::new(*side, block), case);
        }
    }
}

/// The same for cases in which one iteration takes long.
fn compare_long(criterion: &mut Bench, name: &str, blocks: usize, cases: &[Case]) {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat).warm_up_time(Duration::from_millis(1));
    for block in 0..blocks {
        for (side, case) in cases {
            group.bench_function(BenchmarkId::new(*side, block), case);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// In a function

fn local(c: &mut Bench) {
    for count in [1, 3, 8, MILLION] {
        let ours: Case = ("ours", &|b| b.iter(|| register_and_run::<ExitStack>(black_box(count))));
        let boxes: Case = ("theirs", &|b| b.iter(|| register_and_run::<Boxes>(black_box(count))));
        let compare = if count < 100 { compare } else { compare_long };
        compare(c, &format!("{count} handlers"), BLOCKS, &[ours, boxes]);
    }
    let reserved: Case = ("reserved", &|b| b.iter(|| reserve_register_and_run(black_box(MILLION))));
    let boxes: Case = ("theirs", &|b| b.iter(|| register_and_run::<Boxes>(black_box(MILLION))));
    compare_long(c, "a million, reserved", BLOCKS, &[reserved, boxes]);
    let ours: Case = ("ours", &|b| b.iter(|| written_out_on_a_stack(black_box(1), black_box(2))));
    let guards: Case = ("guards", &|b| b.iter(|| written_out_as_guards(black_box(1), black_box(2))));
    let array: Case = ("array", &|b| b.iter(|| written_out_as_an_array(black_box(1), black_box(2))));
    compare(c, "written out", BLOCKS, &[ours, guards, array]);
    let ours: Case = ("ours", &on_stacks_of_their_own::<ExitStack>);
    compare_long(c, "3 handlers, two threads", BLOCKS, &[ours, ("theirs", &on_stacks_of_their_own::<Boxes>)]);
}

fn on_stacks_of_their_own<S: Cleanup<'static>>(b: &mut Bencher) {
    from_threads(b, 2, || (), |()| (0..10 * ROUND).for_each(|_| register_and_run::<S>(black_box(3))));
}

/// Several threads do the same at once on something they share. Measures wall-clock time from the first start to the
/// last end, because threads also wait for each other.
fn from_threads<T: Sync>(b: &mut Bencher, threads: usize, make: impl Fn() -> T, work: impl Fn(&T) + Sync) {
    b.iter_custom(|rounds| {
        let one = |shared: &T, ready: &Barrier| {
            ready.wait();
            let start = Instant::now();
            work(shared);
            (start, Instant::now())
        };
        let round = || {
            let (shared, ready) = (make(), Barrier::new(threads));
            let spans = std::thread::scope(|scope| {
                let all: Vec<_> = (0..threads).map(|_| scope.spawn(|| one(&shared, &ready))).collect();
                all.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            let start = spans.iter().map(|(start, _)| *start).min().unwrap();
            spans.iter().map(|(_, end)| *end).max().unwrap() - start
        };
        (0..rounds).map(|_| round()).sum()
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Between threads

fn shared(c: &mut Bench) {
    let ours: Case = ("ours", &register::<SharedExitStack>);
    compare(c, "shared register", BLOCKS, &[ours, ("theirs", &register::<SharedBoxes>)]);
    let ours: Case = ("ours", &register_from::<SharedExitStack, 2>);
    compare(c, "shared register, two threads", BLOCKS, &[ours, ("theirs", &register_from::<SharedBoxes, 2>)]);
    let ours: Case = ("ours", &register_from::<SharedExitStack, 4>);
    compare_long(c, "shared register, four threads", BLOCKS, &[ours, ("theirs", &register_from::<SharedBoxes, 4>)]);
    let ours: Case = ("ours", &register_and_close::<SharedExitStack>);
    compare(c, "shared register and close", BLOCKS, &[ours, ("theirs", &register_and_close::<SharedBoxes>)]);
}

fn register<S: Shared>(b: &mut Bencher) {
    b.iter_batched_ref(S::new, |stack| register_many(stack, ROUND), BatchSize::PerIteration);
}

fn register_and_close<S: Shared>(b: &mut Bencher) {
    b.iter(|| {
        let stack = S::new();
        register_many(&stack, ROUND);
        stack.run();
    });
}

fn register_from<S: Shared, const THREADS: usize>(b: &mut Bencher) {
    from_threads(b, THREADS, S::new, |stack| register_many(stack, 10 * ROUND));
}

// ---------------------------------------------------------------------------------------------------------------------
// At the end of the process

fn process(c: &mut Bench) {
    let child = |whose: &str, at: usize| {
        let this = std::env::current_exe().unwrap();
        let output = Command::new(this).args(["child", whose]).output().unwrap();
        let nanoseconds = String::from_utf8(output.stdout).unwrap();
        Duration::from_nanos(nanoseconds.split_whitespace().nth(at).unwrap().parse().unwrap())
    };
    for (at, name) in ["process register", "process run"].into_iter().enumerate() {
        let ours: Case = ("ours", &|b| b.iter_custom(|rounds| (0..rounds).map(|_| child("ours", at)).sum()));
        let reserved: Case =
            ("reserved", &|b| b.iter_custom(|rounds| (0..rounds).map(|_| child("reserved", at)).sum()));
        let theirs: Case = ("theirs", &|b| b.iter_custom(|rounds| (0..rounds).map(|_| child("theirs", at)).sum()));
        compare_long(c, name, BLOCKS, &[ours, reserved, theirs]);
    }
}

static REGISTERED: OnceLock<Duration> = OnceLock::new();
static EXIT: OnceLock<Duration> = OnceLock::new();

/// Registers handlers with our process stack, which may have room for them from the beginning, or with C, and exits. The
/// last handler prints how long both took.
fn end_a_process(whose: &str) {
    warm_up();
    let register: fn() = if whose != "theirs" {
        exitstack::register(|| last());
        if whose == "reserved" {
            process_stack().reserve(MANY);
        }
        || {
            for n in 0..MANY {
                let (a, b) = (black_box(n), black_box(n));
                process_stack().register(move || work(a, b));
            }
        }
    } else {
        at_exit(last);
        || (0..MANY).for_each(|_| at_exit(handler))
    };
    let start = cpu_time();
    register();
    REGISTERED.get_or_init(|| cpu_time() - start);
    EXIT.get_or_init(cpu_time);
    std::process::exit(0);
}

/// Touches as much memory as will be needed.
fn warm_up() {
    drop(black_box(vec![1_u8; 32 << 20]));
}

extern "C" fn handler() {
    work(black_box(1), black_box(2));
}

extern "C" fn last() {
    let took = cpu_time() - *EXIT.get().unwrap();
    println!("{} {}", REGISTERED.get().unwrap().as_nanos(), took.as_nanos());
}

fn at_exit(function: extern "C" fn()) {
    // SAFETY: the function belongs to this program and is always callable.
    let refused: c_int = unsafe { libc::atexit(function) };
    assert_eq!(refused, 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Unregistering

fn unregister(c: &mut Bench) {
    let id = |b: &mut Bencher| {
        b.iter_batched(by_id, |(stack, ids)| remove(stack, &ids), BatchSize::PerIteration);
    };
    let key = |b: &mut Bencher| {
        b.iter_batched(by_key, remove_keys, BatchSize::PerIteration);
    };
    let shared_key = |b: &mut Bencher| {
        b.iter_batched(by_key_shared, remove_shared_keys, BatchSize::PerIteration);
    };
    let one_key = |b: &mut Bencher| {
        b.iter_batched(with_one_key, |mut stack| (stack.unregister_key(&MANY), stack), BatchSize::PerIteration);
    };
    let shared_one_key = |b: &mut Bencher| {
        b.iter_batched(with_one_key_shared, |stack| (stack.unregister_key(&MANY), stack), BatchSize::PerIteration);
    };
    compare_long(c, "unregister", 1, &[("id", &id), ("key", &key), ("shared key", &shared_key)]);
    compare_long(c, "unregister", 1, &[("one key", &one_key), ("shared one key", &shared_one_key)]);
    if Command::new("python3").arg("--version").output().is_ok() {
        let python = |b: &mut Bencher| b.iter_custom(|rounds| (0..rounds).map(|_| cpython()).sum());
        compare_long(c, "unregister", 1, &[("cpython", &python)]);
    }
}

fn by_id() -> (ExitStack<'static>, Vec<HandlerId>) {
    let stack = ExitStack::new();
    let ids: Vec<_> = (0..MANY).map(|n| stack.register(move || work(n, n))).collect();
    (stack, ids.into_iter().step_by(MANY / REMOVED).collect())
}

fn remove(mut stack: ExitStack<'static>, ids: &[HandlerId]) -> ExitStack<'static> {
    ids.iter().for_each(|id| assert!(stack.unregister(*id)));
    stack
}

fn keys() -> impl Iterator<Item = usize> {
    (0..MANY).step_by(MANY / FEW)
}

fn by_key() -> ExitStack<'static> {
    let stack = ExitStack::new();
    for n in 0..MANY {
        stack.register(Handler::new(move || work(n, n)).keyed(n));
    }
    stack
}

fn with_one_key() -> ExitStack<'static> {
    let stack = ExitStack::new();
    (0..MANY / 2).for_each(|n| _ = stack.register(move || work(n, n)));
    stack.register(Handler::new(|| work(1, 1)).keyed(MANY));
    (0..MANY / 2).for_each(|n| _ = stack.register(move || work(n, n)));
    stack
}

fn with_one_key_shared() -> SharedExitStack {
    let stack = SharedExitStack::new();
    (0..MANY / 2).for_each(|n| _ = stack.register(move || work(n, n)));
    stack.register(Handler::new(|| work(1, 1)).keyed(MANY));
    (0..MANY / 2).for_each(|n| _ = stack.register(move || work(n, n)));
    stack
}

fn remove_keys(mut stack: ExitStack<'static>) -> ExitStack<'static> {
    keys().for_each(|key| assert_eq!(stack.unregister_key(&key), 1));
    stack
}

fn by_key_shared() -> SharedExitStack {
    let stack = SharedExitStack::new();
    for n in 0..MANY {
        stack.register(Handler::new(move || work(n, n)).keyed(n));
    }
    stack
}

fn remove_shared_keys(stack: SharedExitStack) -> SharedExitStack {
    keys().for_each(|key| assert_eq!(stack.unregister_key(&key), 1));
    stack
}

const CPYTHON: &str = "
import atexit, sys, time
many, few = map(int, sys.argv[1:])
functions = [lambda: None for _ in range(many)]
for function in functions:
    atexit.register(function)
start = time.process_time_ns()
for function in functions[::many // few]:
    atexit.unregister(function)
print(time.process_time_ns() - start)
atexit._clear()
";

fn cpython() -> Duration {
    let output = Command::new("python3").args(["-c", CPYTHON, &MANY.to_string(), &FEW.to_string()]).output().unwrap();
    let nanoseconds = String::from_utf8(output.stdout).unwrap();
    Duration::from_nanos(nanoseconds.trim().parse().unwrap())
}
