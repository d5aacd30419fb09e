//! A value lent by `enter` cannot be used once the stack is dropped.

use exitstack::ExitStack;

fn main() {
    let stack = ExitStack::new();
    let lent = stack.enter(String::new(), |_| ());
    drop(stack);
    lent.push('x');
}
