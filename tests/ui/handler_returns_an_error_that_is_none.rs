//! A handler's error must be an error type.

use exitstack::ExitStack;

struct NoError;

fn main() {
    let stack = ExitStack::new();
    stack.register(|| Err(NoError));
}
