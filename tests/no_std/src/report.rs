//! The report hook.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::hint;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Barrier;
use std::thread;

use exitstack::report::{set_hook, take_hook};
use exitstack::{ExitStack, HandlerError};

use crate::support::alone;

fn fail() {
    let stack = ExitStack::new();
    stack.register(|| Err("disk full"));
}

fn failure() -> HandlerError {
    let mut stack = ExitStack::new();
    stack.register(|| Err("disk full"));
    stack.close().unwrap_err().errors()[0].clone()
}

fn counting(count: &Arc<AtomicUsize>) -> Box<dyn Fn(&HandlerError) + Send + Sync> {
    let count = Arc::clone(count);
    Box::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    })
}

#[test]
fn the_hook_that_was_set_last_counts() {
    let _alone = alone();
    let [first, second] = [Arc::default(), Arc::default()];
    fail(); // nobody is told
    set_hook(counting(&first));
    fail();
    set_hook(counting(&second));
    fail();
    fail();
    assert_eq!((first.load(Ordering::SeqCst), second.load(Ordering::SeqCst)), (1, 2));
    drop(take_hook());
    fail();
    assert_eq!((first.load(Ordering::SeqCst), second.load(Ordering::SeqCst)), (1, 2));
}

#[test]
fn a_hook_can_call_the_one_before() {
    let _alone = alone();
    let [first, second] = [Arc::default(), Arc::default()];
    set_hook(counting(&first));
    let (earlier, own) = (take_hook(), counting(&second));
    set_hook(Box::new(move |error| {
        own(error);
        earlier(error);
    }));
    fail();
    assert_eq!((first.load(Ordering::SeqCst), second.load(Ordering::SeqCst)), (1, 1));
    drop(take_hook());
}

/// Whichever of two threads comes first: a hook that is set is either taken by the other one, or in use afterwards.
#[test]
fn no_hook_is_lost_between_two_threads() {
    const ROUNDS: usize = 3000;
    let _alone = alone();
    let count = Arc::new(AtomicUsize::new(0));
    let (start, awake) = (Arc::new(Barrier::new(2)), Arc::new(AtomicUsize::new(0)));
    // A barrier wakes one thread long before the other: they look at each other for a moment more.
    let meet = |awake: &AtomicUsize, round: usize| {
        awake.fetch_add(1, Ordering::SeqCst);
        (0..10_000).take_while(|_| awake.load(Ordering::SeqCst) < 2 * round).for_each(|_| hint::spin_loop());
    };
    let taking = {
        let (start, awake) = (Arc::clone(&start), Arc::clone(&awake));
        thread::spawn(move || {
            let error = failure();
            for round in 1..=ROUNDS {
                start.wait();
                meet(&awake, round);
                let taken = take_hook();
                start.wait();
                taken(&error);
                start.wait();
            }
        })
    };
    for round in 1..=ROUNDS {
        let hook = counting(&count);
        start.wait();
        meet(&awake, round);
        set_hook(hook);
        start.wait();
        fail();
        drop(take_hook());
        start.wait();
        assert_eq!(count.load(Ordering::SeqCst), round);
    }
    taking.join().unwrap();
}
