//! A handler returns nothing or a result.

use exitstack::ExitStack;

fn main() {
    let stack = ExitStack::new();
    stack.register(|| 1);
}
