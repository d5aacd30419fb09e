//! The work that is measured, in one function for each way to do it.
//!
//! The naive way is [`Boxes`]: a `Vec` of boxed closures, popped and called. Unless noted otherwise, handlers capture
//! two words and add to a thread-local sum: enough that the compiler cannot remove them, and negligible beside what is
//! measured.

use std::cell::Cell;
use std::hint::black_box;
use std::sync::Mutex;
use std::time::Duration;

use exitstack::{ExitStack, SharedExitStack};

thread_local!(static SUM: Cell<usize> = const { Cell::new(0) });

/// What every handler does.
#[inline]
pub fn work(a: usize, b: usize) {
    SUM.set(SUM.get().wrapping_add(a ^ b));
}

/// A function's pending handlers; dropping it runs them.
pub trait Cleanup<'a>: Sized {
    fn new() -> Self;
    fn register(&mut self, handler: impl FnOnce() + 'a);
}

/// Handlers in boxes.
pub struct Boxes<'a>(Vec<Box<dyn FnOnce() + 'a>>);

impl<'a> Cleanup<'a> for Boxes<'a> {
    #[inline]
    fn new() -> Self {
        Self(Vec::new())
    }

    #[inline]
    fn register(&mut self, handler: impl FnOnce() + 'a) {
        self.0.push(Box::new(handler));
    }
}

impl Drop for Boxes<'_> {
    #[inline]
    fn drop(&mut self) {
        while let Some(handler) = self.0.pop() {
            handler();
        }
    }
}

impl<'a> Cleanup<'a> for ExitStack<'a> {
    #[inline]
    fn new() -> Self {
        ExitStack::new()
    }

    #[inline]
    fn register(&mut self, handler: impl FnOnce() + 'a) {
        ExitStack::register(self, handler);
    }
}

/// Pending handlers shared by several threads.
pub trait Shared: Sync + Sized {
    fn new() -> Self;
    fn register(&self, handler: impl FnOnce() + Send + 'static);
    fn run(&self);
}

/// Handlers in boxes, behind a lock.
pub struct SharedBoxes(Mutex<Vec<Box<dyn FnOnce() + Send>>>);

impl Shared for SharedBoxes {
    fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    #[inline]
    fn register(&self, handler: impl FnOnce() + Send + 'static) {
        self.0.lock().unwrap().push(Box::new(handler));
    }

    /// Written so that the lock is not held while a handler runs.
    fn run(&self) {
        loop {
            let Some(handler) = self.0.lock().unwrap().pop() else { return };
            handler();
        }
    }
}

impl Shared for SharedExitStack {
    fn new() -> Self {
        SharedExitStack::new()
    }

    #[inline]
    fn register(&self, handler: impl FnOnce() + Send + 'static) {
        SharedExitStack::register(self, handler);
    }

    fn run(&self) {
        self.close().unwrap();
    }
}

/// Registers `count` handlers and runs them.
#[inline(never)]
pub fn register_and_run<'a, C: Cleanup<'a>>(count: usize) {
    let mut cleanup = C::new();
    for n in 0..count {
        let (a, b) = (black_box(n), black_box(count));
        cleanup.register(move || work(a, b));
    }
}

/// The same for a stack that has room for all of them from the beginning.
pub fn reserve_register_and_run(count: usize) {
    let cleanup = ExitStack::new();
    cleanup.reserve(count);
    for n in 0..count {
        let (a, b) = (black_box(n), black_box(count));
        cleanup.register(move || work(a, b));
    }
}

/// A stack that is never used.
#[inline]
pub fn empty() {
    let stack = ExitStack::new();
    black_box(&stack);
}

/// A shared stack with one handler, closed and dropped.
#[inline(never)]
pub fn one_on_a_shared_stack(a: usize, b: usize) {
    let stack = SharedExitStack::new();
    stack.register(move || work(a, b));
    stack.close().unwrap();
}

/// Three handlers written out, on a stack.
#[inline(never)]
pub fn written_out_on_a_stack(a: usize, b: usize) {
    let stack = ExitStack::new();
    stack.register(move || work(a, b));
    black_box(&stack);
    stack.register(move || work(b, a));
    black_box(&stack);
    stack.register(move || work(a, a));
    black_box(&stack);
}

/// The same three as guards.
#[inline(never)]
pub fn written_out_as_guards(a: usize, b: usize) {
    let one = scopeguard::guard((), |()| work(a, b));
    black_box(&one);
    let two = scopeguard::guard((), |()| work(b, a));
    black_box(&two);
    let three = scopeguard::guard((), |()| work(a, a));
    black_box(&three);
}

/// The same three as an array, run backwards.
#[inline(never)]
pub fn written_out_as_an_array(a: usize, b: usize) {
    type Handler = (fn(usize, usize), usize, usize);
    let handlers: [Handler; 3] = black_box([(work, a, b), (work, b, a), (work, a, a)]);
    for (handler, a, b) in handlers.into_iter().rev() {
        handler(a, b);
    }
}

/// Registers `count` handlers.
#[inline(never)]
pub fn register_many<S: Shared>(stack: &S, count: usize) {
    for n in 0..count {
        let (a, b) = (black_box(n), black_box(count));
        stack.register(move || work(a, b));
    }
}

/// Makes the allocator keep freed memory, so that the heap stays warm: page faults would drown out what is measured.
pub fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (option, value) in [(libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, i32::MAX)] {
        // SAFETY: changes how later calls of the allocator behave, within its rules.
        let taken = unsafe { libc::mallopt(option, value) };
        assert_eq!(taken, 1);
    }
}

/// The processor time that this process has used.
pub fn cpu_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is live and writable.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut now) };
    assert_eq!(failed, 0);
    Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap())
}
