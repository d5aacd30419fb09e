//! `SharedExitStack` between threads, which meet at barriers and channels; nothing is timed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::thread;

use exitstack::{Handler, HandlerId, HandlerList, SharedExitStack};

use crate::support::Counter;
use crate::watched::Watched;

type Shared = Arc<SharedExitStack>;

#[test]
fn every_handler_of_every_thread_runs_once() {
    const THREADS: usize = 8;
    const EACH: usize = 500;
    let (stack, counter) = (Shared::default(), Counter::default());
    let start = Arc::new(Barrier::new(THREADS + 1));
    let removed = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (stack, counter, start, removed) =
                (Arc::clone(&stack), counter.clone(), Arc::clone(&start), Arc::clone(&removed));
            thread::spawn(move || {
                start.wait();
                for n in 0..EACH {
                    let mut bomb = counter.bomb();
                    let id = stack.register(move || bomb.use_up());
                    if n % 3 == 0 && stack.unregister(id) {
                        removed.fetch_add(1, Ordering::SeqCst);
                    }
                    if n % 50 == 0 {
                        stack.close().unwrap();
                    }
                }
            })
        })
        .collect();
    start.wait();
    for thread in threads {
        thread.join().unwrap();
    }
    stack.close().unwrap();
    assert_eq!(counter.dropped(), THREADS * EACH);
    assert_eq!(counter.used() + removed.load(Ordering::SeqCst), THREADS * EACH);
}

/// Other threads may register in between.
#[test]
fn one_threads_handlers_run_newest_first() {
    const THREADS: usize = 4;
    let stack = Shared::default();
    let log = Arc::new(std::sync::Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (stack, log) = (&stack, &log);
            scope.spawn(move || {
                for n in 0..200 {
                    let log = Arc::clone(log);
                    stack.register(move || log.lock().unwrap().push((thread, n)));
                }
            });
        }
    });
    stack.close().unwrap();
    let log = log.lock().unwrap();
    for thread in 0..THREADS {
        assert!(log.iter().filter(|(of, _)| *of == thread).map(|(_, n)| *n).eq((0..200).rev()));
    }
}

#[test]
fn further_closers_wait_and_get_the_same_result() {
    const CLOSERS: usize = 3;
    let stack = Shared::default();
    let (results, result) = channel();
    let result = Arc::new(std::sync::Mutex::new(result));
    stack.register(|| Err("kept for all"));
    let (inner, early) = (Arc::clone(&stack), Arc::clone(&result));
    stack.register(move || {
        for _ in 0..CLOSERS {
            let (inner, results) = (Arc::clone(&inner), results.clone());
            let (here, is_here) = channel();
            thread::spawn(move || {
                here.send(Watched::this()).unwrap();
                results.send(inner.close().map_err(|error| error.to_string())).unwrap();
            });
            is_here.recv().unwrap().until_it_sleeps();
            assert!(early.lock().unwrap().try_recv().is_err(), "a closer did not wait");
        }
        Err("and this")
    });
    let mine = stack.close().unwrap_err();
    assert_eq!(mine.errors().len(), 2);
    for _ in 0..CLOSERS {
        assert_eq!(result.lock().unwrap().recv().unwrap().unwrap_err(), mine.to_string());
    }
    assert!(stack.close().is_ok());
}

/// The other thread registers while a handler runs.
#[test]
fn a_drain_runs_what_another_thread_registers() {
    let (stack, counter) = (Shared::default(), Counter::default());
    let (ask, asked) = channel::<()>();
    let (done, is_done) = channel();
    let (inner, bombs) = (Arc::clone(&stack), counter.clone());
    let other = thread::spawn(move || {
        asked.recv().unwrap();
        let mut bomb = bombs.bomb();
        inner.register(move || bomb.use_up());
        done.send(()).unwrap();
    });
    let last = counter.clone();
    stack.register(move || assert_eq!(last.used(), 1, "what came during the drain runs before what was there"));
    stack.register(move || {
        ask.send(()).unwrap();
        is_done.recv().unwrap();
    });
    stack.close().unwrap();
    other.join().unwrap();
    assert_eq!((counter.used(), stack.len()), (1, 0));
}

/// The other thread unregisters while a handler runs.
#[test]
fn a_drain_skips_what_another_thread_removes() {
    let (stack, counter) = (Shared::default(), Counter::default());
    let mut bomb = counter.bomb();
    let id = stack.register(move || bomb.use_up());
    let mut bomb = counter.bomb();
    stack.register(Handler::new(move || bomb.use_up()).keyed("key"));
    let inner = Arc::clone(&stack);
    stack.register(move || {
        let removed = thread::spawn(move || (inner.unregister(id), inner.unregister_key(&"key")));
        assert_eq!(removed.join().unwrap(), (true, 1));
    });
    stack.close().unwrap();
    assert_eq!((counter.used(), counter.dropped()), (0, 2));
}

/// Two threads each drain one of the stacks.
#[test]
fn handlers_that_close_each_others_stacks_end() {
    for _ in 0..50 {
        let stacks: [Shared; 2] = Default::default();
        let both_drain = Arc::new(Barrier::new(2));
        let counter = Counter::default();
        for n in 0..2 {
            let mut bomb = counter.bomb();
            stacks[n].register(move || bomb.use_up());
            let (other, both_drain) = (Arc::clone(&stacks[1 - n]), Arc::clone(&both_drain));
            stacks[n].register(move || {
                both_drain.wait();
                other.close()
            });
        }
        let threads = stacks.clone().map(|stack| thread::spawn(move || stack.close()));
        for thread in threads {
            thread.join().unwrap().unwrap();
        }
        assert_eq!(counter.used(), 2);
        assert!(stacks.iter().all(|stack| stack.is_empty()));
    }
}

#[test]
fn a_circle_of_many_stacks_ends() {
    const STACKS: usize = 6;
    for _ in 0..20 {
        let stacks: Vec<Shared> = (0..STACKS).map(|_| Shared::default()).collect();
        let all_drain = Arc::new(Barrier::new(STACKS));
        for n in 0..STACKS {
            let (next, all_drain) = (Arc::clone(&stacks[(n + 1) % STACKS]), Arc::clone(&all_drain));
            stacks[n].register(|| Err("kept"));
            stacks[n].register(move || {
                all_drain.wait();
                let _ = next.close();
            });
        }
        let threads: Vec<_> = stacks.iter().cloned().map(|stack| thread::spawn(move || stack.close())).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap().unwrap_err().errors().len(), 1);
        }
    }
}

#[test]
fn nothing_is_locked_while_a_handler_runs() {
    let stack = Shared::default();
    let inner = Arc::clone(&stack);
    let id = stack.register(|| ());
    stack.register(move || {
        let others = thread::spawn(move || {
            inner.register(|| ());
            assert_eq!((inner.len(), inner.pending().len(), inner.is_empty()), (2, 2, false));
            assert!(inner.unregister(id));
            inner.reserve(10);
            drop(inner.pop_all());
            inner.clear();
            format!("{inner:?}")
        });
        others.join().unwrap();
    });
    stack.close().unwrap();
}

/// The stack is filled on one thread and its handlers run on another.
#[test]
fn a_stack_may_be_dropped_on_another_thread() {
    let counter = Counter::default();
    let stack = SharedExitStack::new();
    let mut bomb = counter.bomb();
    stack.register(move || bomb.use_up());
    thread::spawn(move || drop(stack)).join().unwrap();
    assert_eq!((counter.used(), counter.dropped()), (1, 1));
}

/// Two threads fill many lists at the same time.
#[test]
fn no_two_lists_filled_at_once_share_an_id() {
    let barrier = Barrier::new(2);
    let fill = || {
        barrier.wait();
        (0..200_000).map(|_| HandlerList::new().push(())).collect::<Vec<HandlerId>>()
    };
    let mut ids = thread::scope(|scope| {
        let other = scope.spawn(fill);
        [fill(), other.join().unwrap()].concat()
    });
    ids.sort_unstable();
    assert!(ids.is_sorted_by(|one, next| one < next));
}
