//! A handler is called without arguments.

use exitstack::ExitStack;

fn main() {
    let stack = ExitStack::new();
    stack.register(|code: i32| drop(code));
}
