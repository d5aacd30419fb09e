//! Any thread may compare the keys of a shared stack.

use std::cell::Cell;

use exitstack::{Handler, SharedExitStack};

fn main() {
    let stack = SharedExitStack::new();
    stack.register(Handler::new(|| ()).keyed(Cell::new(1)));
}
