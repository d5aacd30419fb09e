//! A key is found with its `==`.

use exitstack::{ExitStack, Handler};

struct Key;

fn main() {
    let stack = ExitStack::new();
    stack.register(Handler::new(|| ()).keyed(Key));
}
