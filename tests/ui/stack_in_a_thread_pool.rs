//! A thread pool's closures cannot use a single-threaded stack.

use exitstack::ExitStack;

/// Like `rayon::join`.
fn join<A, B>(_: impl FnOnce() -> A + Send, _: impl FnOnce() -> B + Send) {}

fn main() {
    let stack = ExitStack::new();
    join(|| stack.register(|| println!("left")), || ());
}
