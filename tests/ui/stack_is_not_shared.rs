//! A single-threaded stack cannot be lent to another thread.

use exitstack::ExitStack;

fn main() {
    let stack = ExitStack::new();
    std::thread::scope(|scope| {
        scope.spawn(|| stack.register(|| ()));
    });
}
