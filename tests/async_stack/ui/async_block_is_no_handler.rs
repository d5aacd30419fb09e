fn main() {
    let stack = exitstack::AsyncExitStack::new();
    stack.register_async(async { println!("bye") });
}
