//! A stack of one thread is not lent to another one.

use exitstack::ExitStack;

fn main() {
    let stack = ExitStack::new();
    std::thread::scope(|scope| {
        scope.spawn(|| stack.register(|| ()));
    });
}
