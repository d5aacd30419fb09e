//! A handler of a stack between threads owns all it needs.

use exitstack::SharedExitStack;

fn main() {
    let local = String::from("local");
    let stack = SharedExitStack::new();
    stack.register(|| println!("{local}"));
}
