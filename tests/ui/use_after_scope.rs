//! A value lent by `enter` cannot leave the scope.

use exitstack::{CloseError, scope};

fn main() {
    let lent = scope::<_, CloseError>(|stack| Ok(stack.enter(String::new(), |_| ()))).unwrap();
    lent.push('x');
}
