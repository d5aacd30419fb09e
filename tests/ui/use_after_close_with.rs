//! A value lent by `enter` cannot be used once anything may have been removed.

use exitstack::*;

fn function() {}

fn main() {
    let mut stack = ExitStack::new();
    let id = stack.register(function);
    let lent = stack.enter(String::new(), |_| ());
    let _ = (id, Outcome::Success);
    let _ = stack.close_with(Outcome::Success);
    lent.push('x');
}
