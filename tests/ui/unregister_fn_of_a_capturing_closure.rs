//! A closure that captures something cannot be identified by its type.

use exitstack::ExitStack;

fn main() {
    let text = String::from("captured");
    let mut stack = ExitStack::new();
    stack.unregister_fn(|| println!("{text}"));
}
