//! What was lent by `enter` is gone when the stack closes.

use exitstack::ExitStack;

fn main() {
    let mut stack = ExitStack::new();
    let lent = stack.enter(String::new(), |_| ());
    stack.close().unwrap();
    lent.push('x');
}
