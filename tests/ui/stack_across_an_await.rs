//! A future that holds a single-threaded stack across an await stays on its thread.

use exitstack::ExitStack;

/// Like `tokio::spawn`.
fn spawn(_: impl Future<Output = ()> + Send + 'static) {}

async fn serve() {}

fn main() {
    spawn(async {
        let stack = ExitStack::new();
        stack.register(|| println!("served"));
        serve().await;
    });
}
