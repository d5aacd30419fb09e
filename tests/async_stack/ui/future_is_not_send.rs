use std::rc::Rc;

fn main() {
    let stack = exitstack::AsyncExitStack::new();
    stack.register_async(|| async {
        let shared = Rc::new(());
        std::future::ready(()).await;
        drop(shared);
    });
}
