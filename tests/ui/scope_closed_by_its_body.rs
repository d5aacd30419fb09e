//! A scope's stack drains only when the body has ended.

use exitstack::{CloseError, scope};

fn main() {
    scope::<_, CloseError>(|stack| stack.close()).unwrap();
}
