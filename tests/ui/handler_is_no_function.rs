//! A handler must be callable.

use exitstack::ExitStack;

fn main() {
    let stack = ExitStack::new();
    stack.register("goodbye");
}
