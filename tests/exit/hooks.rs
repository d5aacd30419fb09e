//! Other libraries' fork hooks: they hold their own locks around the fork, as POSIX recommends, and use every kind of
//! stack, before and after our hooks, if there are any.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;

use exitstack::{Interpreter, SharedExitStack, exit, process_stack, register};

use crate::Status::Code;
use crate::child::{c_exit, say, says};
use crate::fork::{after, fork, fork_each, say_child};
use crate::{Case, Ended, case};

static VALUE: SharedExitStack = SharedExitStack::new();
static PLUGIN: LazyLock<Interpreter> = LazyLock::new(|| Interpreter::new("plugin"));
static RAN: AtomicUsize = AtomicUsize::new(0);

fn counts() {
    RAN.fetch_add(1, Ordering::Relaxed);
}

/// Another library's lock. It stays locked from its first hook to its last.
static THEIRS: AtomicBool = AtomicBool::new(false);
/// Set while the hooks want the lock, so that the busy thread lets them have it.
static WANTED: AtomicBool = AtomicBool::new(false);

fn lock() {
    while THEIRS.swap(true, Ordering::Acquire) {
        thread::yield_now();
    }
}

fn unlock() {
    THEIRS.store(false, Ordering::Release);
}

/// Does with every kind of stack what any function may do. Four handlers run.
fn use_stacks() {
    for stack in [process_stack(), PLUGIN.stack(), &VALUE] {
        let [removed, runs] = [stack.register(|| ()), stack.register(counts)];
        stack.unregister(removed);
        let _ = (stack.len(), stack.pending());
        let _ = stack.run_now(runs);
        if !std::ptr::eq(stack, process_stack()) {
            stack.close().unwrap(); // closing the process stack would finalize the plugin
        }
    }
    let made = PLUGIN.subinterpreter("made");
    made.stack().register(counts);
    made.finalize().unwrap();
}

/// Closes stacks, including the process stack. Two handlers run.
fn close_stacks() {
    for stack in [process_stack(), &VALUE] {
        stack.register(counts);
        stack.close().unwrap();
    }
}

type Hook = extern "C" fn();

fn at_fork(prepare: Option<Hook>, parent: Option<Hook>, child: Option<Hook>) {
    let [prepare, parent, child] =
        [prepare, parent, child].map(|hook| hook.map(|hook| hook as unsafe extern "C" fn()));
    // SAFETY: the hooks are functions of this program that do not unwind.
    assert_eq!(unsafe { libc::pthread_atfork(prepare, parent, child) }, 0);
}

extern "C" fn lock_and_use() {
    WANTED.store(true, Ordering::Relaxed);
    lock();
    use_stacks();
}

extern "C" fn use_and_unlock() {
    use_stacks();
    unlock();
    WANTED.store(false, Ordering::Relaxed);
}

extern "C" fn use_only() {
    use_stacks();
}

extern "C" fn lock_and_close() {
    WANTED.store(true, Ordering::Relaxed);
    lock();
    close_stacks();
}

extern "C" fn close_and_unlock() {
    close_stacks();
    unlock();
    WANTED.store(false, Ordering::Relaxed);
}

/// Forks beside a thread that runs `work`, with this many handlers, under the other library's lock.
fn fork_beside_a_busy_thread(handlers: usize, work: fn()) -> Ended {
    static DONE: AtomicBool = AtomicBool::new(false);
    let (busy, is_busy) = channel();
    let thread = thread::spawn(move || {
        busy.send(()).unwrap();
        while !DONE.load(Ordering::Relaxed) {
            lock();
            work();
            unlock();
            while WANTED.load(Ordering::Relaxed) {
                thread::yield_now();
            }
        }
    });
    is_busy.recv().unwrap();
    let forked = fork_each(100, |_| {
        let before = RAN.load(Ordering::Relaxed);
        lock();
        work();
        unlock();
        assert_eq!(RAN.load(Ordering::Relaxed), before + handlers);
        exit(7)
    });
    after(forked, |ended| {
        DONE.store(true, Ordering::Relaxed);
        thread.join().unwrap();
        say(&format!("{ended} children"));
    })
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        // The hooks are registered before ours and take their own lock.
        case("earlier_hooks_may_use_stacks_at_the_fork", Code(0), &["100 children"], || {
            at_fork(Some(lock_and_use), Some(use_and_unlock), Some(use_and_unlock));
            fork_beside_a_busy_thread(4, use_stacks)
        }),
        // The hooks are registered after ours and take their own lock.
        case("later_hooks_may_use_stacks_at_the_fork", Code(0), &["100 children"], || {
            use_stacks();
            at_fork(Some(lock_and_use), Some(use_and_unlock), Some(use_and_unlock));
            fork_beside_a_busy_thread(4, use_stacks)
        }),
        // The hooks are registered before ours, and close the process stack as well.
        case("earlier_hooks_may_close_stacks_at_the_fork", Code(0), &["100 children"], || {
            at_fork(Some(lock_and_close), Some(close_and_unlock), Some(close_and_unlock));
            fork_beside_a_busy_thread(2, close_stacks)
        }),
        // The hooks are registered after ours, and close the process stack as well.
        case("later_hooks_may_close_stacks_at_the_fork", Code(0), &["100 children"], || {
            close_stacks();
            at_fork(Some(lock_and_close), Some(close_and_unlock), Some(close_and_unlock));
            fork_beside_a_busy_thread(2, close_stacks)
        }),
        // Some hooks are registered before ours, some after.
        case("hooks_on_both_sides_use_stacks_at_the_fork", Code(0), &["100 children"], || {
            at_fork(Some(lock_and_use), Some(use_and_unlock), Some(use_and_unlock));
            use_stacks();
            at_fork(Some(use_only), Some(use_only), Some(use_only));
            fork_beside_a_busy_thread(4, use_stacks)
        }),
        case("an_earlier_prepare_hook_may_ask_for_lengths", Code(0), &["child 0"], || {
            extern "C" fn ask() {
                assert!(process_stack().len() <= 1 && PLUGIN.stack().is_empty() && VALUE.pending().is_empty());
            }
            at_fork(Some(ask), None, None);
            register(|| ());
            after(fork(|| exit(0)), say_child)
        }),
        case("what_a_child_hook_registers_runs_in_the_child", Code(0), &["hook's", "child 3", "A"], || {
            extern "C" fn hook() {
                says("hook's");
            }
            at_fork(None, None, Some(hook));
            says("A");
            after(fork(|| std::process::exit(3)), say_child)
        }),
        // The handler runs in the child. The hook is registered after ours.
        case("what_a_later_child_hook_registers_runs", Code(0), &["hook's", "child 3", "A"], || {
            extern "C" fn hook() {
                says("hook's");
            }
            says("A");
            at_fork(None, None, Some(hook));
            after(fork(|| c_exit(3)), say_child)
        }),
        // The handler runs only in the parent.
        case("what_a_prepare_hook_registers_is_the_parents", Code(0), &["child 3", "hook's", "A"], || {
            extern "C" fn hook() {
                says("hook's");
            }
            says("A");
            at_fork(Some(hook), None, None);
            after(fork(|| exit(3)), say_child)
        }),
    ]
}
