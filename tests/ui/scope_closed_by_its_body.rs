//! A scope's stack drains when the body has ended, and not before.

use exitstack::{CloseError, scope};

fn main() {
    scope::<_, CloseError>(|stack| stack.close()).unwrap();
}
