//! A handler of a shared stack must own everything it needs.

use exitstack::SharedExitStack;

fn main() {
    let local = String::from("local");
    let stack = SharedExitStack::new();
    stack.register(|| println!("{local}"));
}
