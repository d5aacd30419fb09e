//! Any thread may run the handlers of a shared stack.

use std::rc::Rc;

use exitstack::SharedExitStack;

fn main() {
    let stack = SharedExitStack::new();
    let local = Rc::new(1);
    stack.register(move || drop(local));
}
