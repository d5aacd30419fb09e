//! What was lent by `enter` is gone when the stack is dropped.

use exitstack::ExitStack;

fn main() {
    let stack = ExitStack::new();
    let lent = stack.enter(String::new(), |_| ());
    drop(stack);
    lent.push('x');
}
