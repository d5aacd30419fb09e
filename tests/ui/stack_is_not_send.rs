//! A single-threaded stack stays on its thread.

use exitstack::ExitStack;

fn main() {
    let stack = ExitStack::new();
    std::thread::spawn(move || drop(stack));
}
