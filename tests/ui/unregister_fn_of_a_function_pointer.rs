//! A function pointer is not known by its type.

use exitstack::SharedExitStack;

fn function() {}

fn main() {
    let stack = SharedExitStack::new();
    stack.unregister_fn(function as fn());
}
