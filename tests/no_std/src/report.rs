//! The report hook.

use alloc::boxed::Box;
use alloc::sync::Arc;
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

#[test]
fn no_report_is_lost_while_hooks_are_set() {
    const THREADS: usize = 4;
    let _alone = alone();
    let counts: [Arc<AtomicUsize>; THREADS] = Default::default();
    let start = Arc::new(Barrier::new(THREADS));
    let threads = counts.clone().map(|count| {
        let start = Arc::clone(&start);
        thread::spawn(move || {
            start.wait();
            set_hook(counting(&count));
            fail();
        })
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let total: usize = counts.iter().map(|count| count.load(Ordering::SeqCst)).sum();
    assert_eq!(total, THREADS);
    drop(take_hook());
    fail();
    assert_eq!(counts.iter().map(|count| count.load(Ordering::SeqCst)).sum::<usize>(), THREADS);
}
