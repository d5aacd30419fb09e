fn main() {
    let mut stack = exitstack::AsyncExitStack::new();
    let text = stack.enter(String::new(), drop);
    let close = stack.close();
    text.push('!');
    drop(close);
}
