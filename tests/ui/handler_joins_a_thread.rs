//! A thread's panic payload is not an error.

use exitstack::ExitStack;

fn main() {
    let worker = std::thread::spawn(|| ());
    let stack = ExitStack::new();
    stack.register(|| worker.join());
}
