//! A handler is not async, because nobody would poll its future.

use exitstack::ExitStack;

async fn close() {}

fn main() {
    let stack = ExitStack::new();
    stack.register(close);
    stack.register(async || close().await);
    stack.register(close());
}
