//! Threads inside [`exit_hook`](super::at_exit), and the thread that unloads the library they are in.
//!
//! A shared library may be unloaded by one thread (`dlclose`) while others are in C's `exit`. Either way C takes a hook
//! off its list before it calls it, so each is called once; but C does not wait for the other threads. So the thread that
//! unloads the library waits until
//!
//! 1. no other thread is inside a hook: `enter` and `leave` count them. A thread that is to wait for the end of the
//!    process leaves too, because it waits inside C;
//! 2. no other thread is about to enter one: C has called all hooks that it was given;
//! 3. the last one to leave has executed the few instructions from `leave` to C. No count can follow those, so it is
//!    given [`TO_MOVE`].
//!
//! The loader's lock is taken all the while. So nothing that a hook does may need it: no `dladdr`, no first use of a
//! thread-local that has a destructor.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::raw;

static HOOKS: Hooks = Hooks::new();

thread_local! {
    /// How many of the hooks C has called on this thread.
    static CALLED_HERE: Cell<usize> = const { Cell::new(0) };
    /// The process in which this thread counts as inside; zero if it does not.
    static INSIDE_IN: Cell<usize> = const { Cell::new(0) };
    /// This thread is in C's `exit`.
    static EXITS: Cell<bool> = const { Cell::new(false) };
}

/// The process in which C was given the first hooks, as [`Hooks::tag`] has it. A forked child may miss one forever: a
/// thread that only its parent has was about to enter it.
static GIVEN_IN: AtomicUsize = AtomicUsize::new(0);

/// How often the thread that unloads the library looks for others.
const INTERVAL: Duration = Duration::from_millis(1);
/// How long a thread may take for the few instructions in which it is not counted: those after `leave`; and those before
/// `enter`, in a forked child, which may wait for a thread that it does not have.
const TO_MOVE: Duration = Duration::from_millis(50);
/// How long a thread may take for those before `enter` otherwise; and how long the end of the process waits, when nothing
/// is unmapped: a thread may hang in a report hook, say.
const PATIENCE: Duration = Duration::from_secs(1);

/// Prepares for hooks; called before C is given any.
pub(crate) fn prepare() {
    let _ = GIVEN_IN.compare_exchange(0, Hooks::tag(raw::epoch()), SeqCst, SeqCst);
    raw::at_unload(wait_for_others);
}

/// Notes that C has been given this many more hooks.
pub(crate) fn given(hooks: usize) {
    HOOKS.given.fetch_add(hooks, SeqCst);
}

/// Notes that this thread has entered a hook, and returns how many have been called by now.
pub(crate) fn enter(unloads: bool) -> usize {
    if !unloads {
        EXITS.set(true);
    }
    let process = raw::epoch();
    if INSIDE_IN.replace(process) != process {
        HOOKS.count(process, 1); // else a handler has called C's `exit`, and this thread is inside already
    }
    CALLED_HERE.set(CALLED_HERE.get() + 1);
    HOOKS.called.fetch_add(1, SeqCst) + 1
}

/// Returns how many hooks C was given and has not called.
pub(crate) fn left_with_c() -> usize {
    HOOKS.given.load(SeqCst) - HOOKS.called.load(SeqCst)
}

/// Returns whether C was given no more than this many hooks.
pub(crate) fn are_all(called: usize) -> bool {
    called == HOOKS.given.load(SeqCst)
}

/// Notes that this thread goes to C, or back to it, and has nothing to do in this library any more.
pub(crate) fn leave() {
    if raw::is_unloading() && others_came() {
        raw::begin_list_anew();
    }
    let process = raw::epoch();
    if INSIDE_IN.replace(0) == process {
        HOOKS.count(process, -1);
    }
}

/// Returns when no other thread is inside a hook, nor will be. Called after the `atexit` handlers of this library, when
/// it is unloaded and at the end of the process.
fn wait_for_others() {
    let process = raw::epoch();
    let to_enter = if GIVEN_IN.load(SeqCst) == Hooks::tag(process) { PATIENCE } else { TO_MOVE };
    let began = Instant::now();
    loop {
        raw::call_handlers(); // a thread that is inside may have registered further ones
        let own = usize::from(INSIDE_IN.get() == process);
        let waited = began.elapsed();
        match HOOKS.others(process, own) {
            Others::Gone => break,
            Others::AboutToEnter if waited > to_enter => break,
            Others::Inside if EXITS.get() && waited > PATIENCE => break,
            Others::AboutToEnter | Others::Inside => thread::sleep(INTERVAL),
        }
    }
    if others_came() {
        // On the way out of the process it is hardly ever an unloading: one by another library's `atexit` handler.
        thread::sleep(if EXITS.get() { INTERVAL } else { TO_MOVE });
    }
}

/// Whether C has called hooks on other threads.
fn others_came() -> bool {
    HOOKS.called.load(SeqCst) != CALLED_HERE.get()
}

/// The hooks that C has, and the threads that are inside of them.
#[derive(Debug)]
struct Hooks {
    /// How many C has been given, and how many it has called.
    given: AtomicUsize,
    called: AtomicUsize,
    /// How many threads are inside one, in the lower half of the bits. The upper half tells in which process: a forked
    /// child does not have the threads of its parent.
    inside: AtomicUsize,
}

/// Where the other threads are that have to do with hooks.
#[derive(Debug, PartialEq, Eq)]
enum Others {
    Inside,
    AboutToEnter,
    /// None is inside a hook, nor will be.
    Gone,
}

impl Hooks {
    const HALF: u32 = usize::BITS / 2;

    const fn new() -> Self {
        Self { given: AtomicUsize::new(0), called: AtomicUsize::new(0), inside: AtomicUsize::new(0) }
    }

    /// Counts one more thread inside, or one less.
    fn count(&self, process: usize, change: isize) {
        let count = |word| Some(Self::tag(process) | Self::threads(word, process).wrapping_add_signed(change));
        let _ = self.inside.fetch_update(SeqCst, SeqCst, count);
    }

    /// The upper half of `inside` in this process.
    fn tag(process: usize) -> usize {
        process << Self::HALF
    }

    /// How many threads of this process `inside` counts.
    fn threads(inside: usize, process: usize) -> usize {
        let threads = inside & (usize::MAX >> Self::HALF);
        if inside - threads == Self::tag(process) { threads } else { 0 }
    }

    /// Where other threads are than this one, which counts as `own` inside.
    fn others(&self, process: usize, own: usize) -> Others {
        // In this order. Further hooks are given by threads that are inside, and counted before those leave. So if all
        // that C has been given in the end was called before nobody was inside, C had none left then, and no thread was
        // on its way: it stays so.
        let called = self.called.load(SeqCst);
        let inside = Self::threads(self.inside.load(SeqCst), process);
        let given = self.given.load(SeqCst);
        if inside > own {
            Others::Inside
        } else if called < given {
            Others::AboutToEnter
        } else {
            Others::Gone
        }
    }
}

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use super::*;

    const PROCESS: usize = 1;
    const CHILD: usize = 2;

    fn with_two_given() -> Hooks {
        let hooks = Hooks::new();
        hooks.given.store(2, SeqCst);
        hooks
    }

    fn enter(hooks: &Hooks, process: usize) {
        hooks.count(process, 1);
        hooks.called.fetch_add(1, SeqCst);
    }

    #[test]
    fn a_thread_is_waited_for_until_it_leaves() {
        let hooks = with_two_given();
        enter(&hooks, PROCESS);
        enter(&hooks, PROCESS);
        assert_eq!(hooks.others(PROCESS, 0), Others::Inside);
        hooks.count(PROCESS, -1);
        assert_eq!(hooks.others(PROCESS, 0), Others::Inside);
        assert_eq!(hooks.others(PROCESS, 1), Others::Gone, "the other one is this thread");
        hooks.count(PROCESS, -1);
        assert_eq!(hooks.others(PROCESS, 0), Others::Gone);
    }

    #[test]
    fn a_thread_that_c_lets_enter_is_waited_for() {
        let hooks = with_two_given();
        enter(&hooks, PROCESS);
        hooks.count(PROCESS, -1);
        assert_eq!(hooks.others(PROCESS, 0), Others::AboutToEnter);
        hooks.called.fetch_add(1, SeqCst);
        assert_eq!(hooks.others(PROCESS, 0), Others::Gone);
    }

    #[test]
    fn a_child_does_not_wait_for_threads_of_its_parent() {
        let hooks = with_two_given();
        enter(&hooks, PROCESS);
        enter(&hooks, PROCESS);
        assert_eq!(hooks.others(CHILD, 0), Others::Gone);
        enter(&hooks, CHILD);
        assert_eq!(hooks.others(CHILD, 0), Others::Inside);
        hooks.count(CHILD, -1);
        assert_eq!(hooks.others(CHILD, 0), Others::Gone);
    }
}
