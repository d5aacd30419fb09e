//! Threads inside the hooks of [`at_exit`](super::at_exit), and the thread that unloads the library they are in.
//!
//! One thread may unload a shared library (`dlclose`) while others are in C's `exit`. C removes a hook from its list
//! before it calls it, so each is called once; but it does not wait for the other threads. So the thread that unloads
//! the library waits until
//!
//! 1. no other thread is inside a hook: `enter` and `leave` count them. A thread that waits for the process to end has
//!    left too, because it waits inside C;
//! 2. no other thread is about to enter one: C has called all hooks that it was given;
//! 3. the last thread to leave has executed the few instructions from `leave` to C. They cannot be counted, so it is
//!    given [`TO_MOVE`].
//!
//! The loader's lock is held throughout. So nothing in a hook may need it: no `dladdr`, and no first use of a
//! thread-local that has a destructor.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::raw;

static HOOKS: Hooks = Hooks::new();

thread_local! {
    /// The number of hooks that C has called on this thread.
    static CALLED_HERE: Cell<usize> = const { Cell::new(0) };
    /// The process in which this thread counts as inside; zero if it does not.
    static INSIDE_IN: Cell<usize> = const { Cell::new(0) };
    /// Whether this thread is in C's `exit`.
    static EXITS: Cell<bool> = const { Cell::new(false) };
}

/// The [`Hooks::tag`] of the process in which C was given the first hooks. In a forked child one of them may never be
/// called: the thread that was about to enter it exists only in the parent.
static GIVEN_IN: AtomicUsize = AtomicUsize::new(0);

/// How long the thread that unloads the library sleeps before it looks for others again.
const INTERVAL: Duration = Duration::from_millis(1);
/// How long a thread may take for the few instructions during which it is not counted: those after `leave`, and, in a
/// forked child, those before `enter`. (A child may be waiting for a thread that only its parent has.)
const TO_MOVE: Duration = Duration::from_millis(50);
/// How long a thread may otherwise take for those before `enter`; and how long the end of the process waits, where
/// nothing is unmapped, for a thread that may hang, in a report hook for example.
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

/// Notes that this thread has entered a hook, and returns how many hooks have been called by now.
pub(crate) fn enter(unloads: bool) -> usize {
    if !unloads {
        EXITS.set(true);
    }
    let process = raw::epoch();
    if INSIDE_IN.replace(process) != process {
        HOOKS.count(process, 1); // otherwise a handler has called C's `exit`, and this thread is inside already
    }
    CALLED_HERE.set(CALLED_HERE.get() + 1);
    HOOKS.called.fetch_add(1, SeqCst) + 1
}

/// Returns how many hooks C was given and has not called.
pub(crate) fn left_with_c() -> usize {
    HOOKS.given.load(SeqCst) - HOOKS.called.load(SeqCst)
}

/// Makes C start its list again when this thread returns to it, if another thread may have changed it.
pub(crate) fn begin_list_anew() {
    if raw::is_unloading() && others_came() {
        raw::begin_list_anew();
    }
}

/// Notes that this thread is about to return to C, or to wait inside it, and no longer needs anything of this library.
pub(crate) fn leave() {
    let process = raw::epoch();
    if INSIDE_IN.replace(0) == process {
        HOOKS.count(process, -1);
    }
}

/// Waits until no other thread is inside a hook or will enter one. Called after the `atexit` handlers of this library,
/// both when it is unloaded and at the end of the process.
fn wait_for_others() {
    let process = raw::epoch();
    let to_enter = if GIVEN_IN.load(SeqCst) == Hooks::tag(process) { PATIENCE } else { TO_MOVE };
    let began = Instant::now();
    loop {
        raw::call_handlers(); // a thread that is inside may have registered more of them
        let own = usize::from(INSIDE_IN.get() == process);
        let waited = began.elapsed(); // before the look at the others: they had at least this long
        if !waits(HOOKS.others(process, own), waited, to_enter, EXITS.get()) {
            break;
        }
        thread::sleep(INTERVAL);
    }
    if others_came() {
        // When the process exits, a library is only unloaded if another one's `atexit` handler does that.
        thread::sleep(if EXITS.get() { INTERVAL } else { TO_MOVE });
    }
}

/// Returns whether the thread that unloads the library, or that `exits`, waits for the others any longer.
fn waits(others: Others, waited: Duration, to_enter: Duration, exits: bool) -> bool {
    match others {
        // No other thread needs this library's code any more.
        Others::Gone => false,
        // In a forked child, its thread may not exist.
        Others::AboutToEnter => waited <= to_enter,
        // Its code would be unmapped under it. At exit nothing is unmapped, and it may hang.
        Others::Inside => !exits || waited <= PATIENCE,
    }
}

/// Returns whether C has called hooks on other threads.
fn others_came() -> bool {
    HOOKS.called.load(SeqCst) != CALLED_HERE.get()
}

/// The hooks that C has, and the threads that are inside them.
#[derive(Debug)]
struct Hooks {
    /// The number of hooks that C has been given, and of those it has called.
    given: AtomicUsize,
    called: AtomicUsize,
    /// The number of threads inside a hook, in the lower half of the bits. The upper half identifies the process: a
    /// forked child does not have its parent's threads.
    inside: AtomicUsize,
}

/// Where the other threads are, relative to the hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    Inside,
    AboutToEnter,
    /// No other thread is inside a hook or will enter one.
    Gone,
}

impl Hooks {
    const HALF: u32 = usize::BITS / 2;

    const fn new() -> Self {
        Self { given: AtomicUsize::new(0), called: AtomicUsize::new(0), inside: AtomicUsize::new(0) }
    }

    /// Counts one thread more, or one less, inside a hook.
    fn count(&self, process: usize, change: isize) {
        let count = |word| Some(Self::tag(process) | Self::threads(word, process).wrapping_add_signed(change));
        let _ = self.inside.fetch_update(SeqCst, SeqCst, count);
    }

    /// Returns the upper half of `inside` for this process.
    fn tag(process: usize) -> usize {
        process << Self::HALF
    }

    /// Returns how many threads of this process `inside` counts.
    fn threads(inside: usize, process: usize) -> usize {
        let threads = inside & (usize::MAX >> Self::HALF);
        if inside - threads == Self::tag(process) { threads } else { 0 }
    }

    /// Returns where the other threads are. This thread accounts for `own` of those inside.
    fn others(&self, process: usize, own: usize) -> Others {
        // The order matters. Only threads inside a hook give C more of them, and those are counted before the thread
        // leaves. So if every hook given by the last load had been called by the first, and no thread was inside in
        // between, then C had none left and no thread was on its way. That is final.
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
    fn only_a_thread_inside_keeps_a_library_loaded_however_long_it_takes() {
        let waits = |others, exits, waited| waits(others, waited, TO_MOVE, exits);
        assert!(!waits(Others::Gone, false, Duration::ZERO));
        for (others, exits, longest) in [
            (Others::AboutToEnter, false, TO_MOVE),
            (Others::AboutToEnter, true, TO_MOVE),
            (Others::Inside, true, PATIENCE),
        ] {
            assert!(waits(others, exits, longest), "{others:?}, {exits}");
            assert!(!waits(others, exits, longest + Duration::from_nanos(1)), "{others:?}, {exits}");
        }
        assert!(waits(Others::Inside, false, 10 * PATIENCE));
    }

    #[test]
    fn a_thread_that_unloads_the_library_does_not_exit() {
        for unloads in [true, false] {
            let exits = move || {
                given(1);
                super::enter(unloads);
                leave();
                EXITS.get()
            };
            assert_eq!(thread::spawn(exits).join().unwrap(), !unloads);
        }
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
    fn a_child_does_not_wait_for_its_parents_threads() {
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
