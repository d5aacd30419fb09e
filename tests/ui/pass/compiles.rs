//! What the other cases get wrong, done right.

use exitstack::{ExitStack, Handler, SharedExitStack};

fn function() {}

fn main() {
    let mut outlives = String::new();
    let mut stack = ExitStack::new();
    stack.register(|| outlives.push('x'));
    let lent = stack.enter(1, |_| ());
    *lent = 2;
    stack.unregister_fn(function);
    stack.unregister_fn(|| ());
    stack.close().unwrap();

    let shared = SharedExitStack::new();
    shared.register(Handler::new(function).keyed(String::from("Send + Sync")));
    shared.unregister_fn(function);
}
