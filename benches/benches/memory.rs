//! Memory, measured with a counting allocator: prints a line `name value` for each case.

use std::hint::black_box;

use allocation_counter::{AllocationInfo, measure};
use exitstack::{ExitStack, HandlerId, SharedExitStack};
use exitstack_benches::{register_and_run, work};

const MILLION: usize = 1_000_000;

fn register(stack: &ExitStack, a: usize) -> HandlerId {
    let b = black_box(1);
    stack.register(move || work(a, b))
}

/// What registering this many handlers takes; they are still pending at the end.
fn pending(count: usize) -> AllocationInfo {
    let stack = ExitStack::new();
    measure(|| {
        for a in 0..count {
            register(&stack, a);
        }
    })
}

/// By how many bytes a stack with 1000 handlers grows between the 10,000th and the 10,000,000th pair of register and
/// unregister.
fn growth_by_pairs(mut pair: impl FnMut()) -> i64 {
    (0..10_000).for_each(|_| pair());
    measure(|| (10_000..10_000_000).for_each(|_| pair())).bytes_current
}

fn pairs() -> i64 {
    let mut stack = ExitStack::new();
    for a in 0..1000 {
        register(&stack, a);
    }
    growth_by_pairs(|| {
        let id = register(&stack, 0);
        assert!(stack.unregister(id));
    })
}

fn shared_pairs() -> i64 {
    let stack = SharedExitStack::new();
    let register = |a: usize| stack.register(move || work(a, a));
    for a in 0..1000 {
        register(a);
    }
    growth_by_pairs(|| {
        let id = register(black_box(0));
        assert!(stack.unregister(id));
    })
}

#[expect(clippy::cast_precision_loss, reason = "a mean to be read")]
fn main() {
    let million = pending(MILLION);
    println!("bytes {:.1}", million.bytes_current as f64 / MILLION as f64);
    println!("allocations-four {}", measure(|| register_and_run::<ExitStack>(black_box(4))).count_total);
    println!("allocations-million {}", million.count_total);
    println!("pairs {}", pairs());
    println!("shared-pairs {}", shared_pairs());
}
