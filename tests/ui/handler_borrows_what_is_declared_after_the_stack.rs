//! Anything declared after the stack is dropped before it.

use exitstack::ExitStack;

fn main() {
    let stack = ExitStack::new();
    let later = String::from("later");
    stack.register(|| println!("{later}"));
}
