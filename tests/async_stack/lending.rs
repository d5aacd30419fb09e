//! Values that a stack lends out, on one thread and on several.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use exitstack::{AsyncExitStack, Handler, Outcome};
use pollster::block_on;

use crate::Log;
use crate::support::{Yields, polled, reported};

#[test]
fn a_lent_value_is_passed_to_its_exit() {
    let mut stack = AsyncExitStack::new();
    let below = stack.enter(vec![1], |values| assert_eq!(values, [1, 2]));
    let value = stack.enter_async(String::from("a"), async |text: String| {
        Yields(1).await;
        Err::<(), _>(text)
    });
    stack.register(|| ());
    below.push(2);
    value.push('b');
    let error = block_on(stack.close()).unwrap_err();
    assert!(format!("{error:#}").ends_with("failed: ab"));
}

/// The list grows, and other threads append to it, while each thread holds a value of its own.
#[test]
fn threads_are_lent_values_at_once() {
    const EACH: usize = 200;
    let sum = AtomicUsize::new(0);
    let mut stack = AsyncExitStack::new();
    thread::scope(|threads| {
        for thread in 0..4 {
            let (stack, sum) = (&stack, &sum);
            threads.spawn(move || {
                let mut lent = Vec::new();
                for n in 0..EACH {
                    lent.push(stack.enter_async(vec![n], async move |values: Vec<usize>| {
                        assert_eq!(values.len(), 3);
                        sum.fetch_add(values.iter().sum(), Ordering::Relaxed);
                    }));
                    stack.register(|| ());
                    assert!(!stack.pending().is_empty() && stack.in_flight().is_none());
                }
                for values in &mut lent {
                    values.push(thread);
                }
                for values in lent {
                    values.push(1);
                }
            });
        }
    });
    assert_eq!(stack.len(), 2 * 4 * EACH);
    thread::scope(|threads| threads.spawn(|| block_on(stack.close())).join().unwrap()).unwrap();
    drop(stack);
    assert_eq!(sum.into_inner(), 4 * (EACH * (EACH - 1) / 2) + EACH * (1 + 2 + 3) + 4 * EACH);
}

#[test]
fn a_value_whose_exit_never_runs_is_dropped_once() {
    struct Says(Log);
    impl Drop for Says {
        fn drop(&mut self) {
            self.0.push("dropped");
        }
    }
    let log = Log::default();
    let mut stack = AsyncExitStack::new();
    stack.enter_async(Says(log.clone()), async |_| unreachable!("removed"));
    let id = stack.pending()[0].id();
    assert!(stack.unregister(id));
    assert_eq!(log.take(), ["dropped"]);

    stack.enter_async(Says(log.clone()), async |_| unreachable!("cleared"));
    stack.clear();
    assert_eq!(log.take(), ["dropped"]);

    stack.enter_async(Says(log.clone()), async |_| unreachable!("the stack is dropped"));
    assert_eq!(reported(|| drop(stack.pop_all())).len(), 1);
    assert_eq!(log.take(), ["dropped"]);

    stack.enter_async(Says(log.clone()), async |says| {
        Yields(1).await;
        drop(says);
    });
    assert!(polled(&mut stack, Outcome::Success, 1).is_pending());
    assert!(stack.cancel_in_flight());
    assert_eq!(log.take(), ["dropped"]);
    assert!(block_on(stack.close()).is_err());
}

#[test]
fn threads_register_at_once() {
    let ran = AtomicUsize::new(0);
    let mut stack = AsyncExitStack::new();
    thread::scope(|threads| {
        for thread in 0..4 {
            let (stack, ran) = (&stack, &ran);
            threads.spawn(move || {
                for _ in 0..500 {
                    stack.register(|| _ = ran.fetch_add(1, Ordering::Relaxed));
                    let future = async || _ = ran.fetch_add(1, Ordering::Relaxed);
                    stack.register_async(Handler::new(future).keyed(thread));
                }
            });
        }
    });
    assert_eq!(stack.unregister_key(&3), 500);
    block_on(stack.close()).unwrap();
    drop(stack);
    assert_eq!(ran.into_inner(), 3_500);
}
