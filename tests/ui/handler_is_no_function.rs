//! A handler is called.

use exitstack::ExitStack;

fn main() {
    let stack = ExitStack::new();
    stack.register("goodbye");
}
