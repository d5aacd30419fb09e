//! The value of a handler's result is dropped by the handler itself.

use exitstack::ExitStack;

fn main() {
    let stack = ExitStack::new();
    stack.register(|| std::fs::copy("journal", "backup"));
}
