//! A function pointer cannot be identified by its type.

use exitstack::SharedExitStack;

fn function() {}

fn main() {
    let stack = SharedExitStack::new();
    stack.unregister_fn(function as fn());
}
