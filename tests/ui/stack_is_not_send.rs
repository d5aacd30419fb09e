//! A stack of one thread stays there.

use exitstack::ExitStack;

fn main() {
    let stack = ExitStack::new();
    std::thread::spawn(move || drop(stack));
}
