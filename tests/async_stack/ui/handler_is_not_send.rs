use std::rc::Rc;

fn main() {
    let shared = Rc::new(());
    let stack = exitstack::AsyncExitStack::new();
    stack.register(move || drop(shared));
}
