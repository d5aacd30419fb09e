use std::cell::Cell;

fn main() {
    let number = Cell::new(7);
    let stack = exitstack::AsyncExitStack::new();
    stack.enter_async(&number, async |_| ());
    stack.enter(&number, |_| ());
}
