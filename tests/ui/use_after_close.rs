//! A value lent by `enter` cannot be used once the stack closes.

use exitstack::ExitStack;

fn main() {
    let mut stack = ExitStack::new();
    let lent = stack.enter(String::new(), |_| ());
    stack.close().unwrap();
    lent.push('x');
}
