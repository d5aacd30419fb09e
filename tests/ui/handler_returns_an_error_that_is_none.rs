//! The error of a handler is one.

use exitstack::ExitStack;

struct NoError;

fn main() {
    let stack = ExitStack::new();
    stack.register(|| Err(NoError));
}
